//! The weights of a resize along one axis, as integers, and the same cut up for vector instructions.
//!
//! A weight has up to 22 fractional bits and a sign and is below 2 in size, so it fits 24 bits. No product of a byte
//! with 24 bits exists in AVX2, but a sum of products is the same modulo 2^32 however the weights are cut, and the sum
//! itself fits 32 bits:
//!
//! - halves, `w = 65536 * high + low`: products of pairs with `low`, and of bytes with `high`, whose sums stay below
//!   2^15 as long as the sizes of the high parts add up to 128 or less. They do for up to a hundred taps; beyond that
//!   [`Vectors::run`] says how often the sum has to be emptied.
//! - bytes, `w = 65536 * d2 + 256 * d1 + d0`: products of bytes throughout.
//!
//! Taps go in fours. What fills the last four has weight zero.

use crate::vision::kernels::Cut;
use crate::vision::resize::Weights;

/// Half width of the cubic kernel.
const SUPPORT: f64 = 2.0;
/// The largest sum of high parts with which a sum of 16 bits cannot overflow: `255 * 128 < 32768`.
const LARGEST_HIGH: u32 = 128;

/// Which axis the weights are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Taps are neighbouring pixels of a row: fours that would leave the row begin earlier.
    Columns,
    /// Taps are rows, found one by one.
    Rows,
}

/// For each output position along one axis: the first input position and the integer weights from there on.
#[derive(Debug)]
pub(crate) struct Taps {
    size: usize,
    /// `(first input position, number of weights)`.
    bounds: Vec<(usize, usize)>,
    /// `weights[i * stride ..][.. bounds[i].1]`.
    weights: Vec<i32>,
    stride: usize,
    /// Fractional bits of the weights.
    shift: u32,
    vectors: Option<Vectors>,
}

/// Weights in fours.
#[derive(Debug)]
pub(crate) struct Vectors {
    /// Where the first four of each output position begin.
    pub(crate) starts: Vec<usize>,
    /// Fours of each output position.
    pub(crate) quads: usize,
    /// `[starts.len(), quads]`; each the three vectors of 32 bits that [`Cut`] says.
    pub(crate) cuts: Vec<[i32; 3]>,
    /// Fours after which a sum of 16 bits has to be emptied.
    pub(crate) run: usize,
}

impl Taps {
    /// The weights for `size` positions that become `new_size`; with vectors of the wanted cut where they are exact.
    pub(crate) fn new(weights: Weights, size: usize, new_size: usize, axis: Axis, cut: Option<Cut>) -> Self {
        let scale = size as f64 / new_size as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut bounds = Vec::with_capacity(new_size);
        let mut exact = vec![0.0; new_size * stride];
        let mut largest = 0.0f64;
        for i in 0..new_size {
            let center = (i as f64 + 0.5) * scale;
            // Conversion to an integer truncates; a negative start is clamped to the edge.
            let start = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5) as usize).min(size);
            let count = end.saturating_sub(start).min(stride);
            let row = &mut exact[i * stride..][..count];
            let mut sum = 0.0;
            for (k, weight) in row.iter_mut().enumerate() {
                *weight = cubic(((k + start) as f64 - center + 0.5) * inverse);
                sum += *weight;
            }
            if sum != 0.0 {
                for weight in row.iter_mut() {
                    *weight /= sum;
                    largest = largest.max(*weight);
                }
            }
            bounds.push((start, count));
        }
        let shift = match weights {
            Weights::Pillow => 22,
            Weights::Torch => {
                // The most bits with which the largest weight still fits 15 bits.
                (0..22u32).find(|bits| 0.5 + largest * f64::from(1 << (bits + 1)) >= 32_768.0).unwrap_or(22)
            }
        };
        let one = f64::from(1u32 << shift);
        let weights = exact.iter().map(|w| (w * one + if *w < 0.0 { -0.5 } else { 0.5 }) as i32).collect();
        let mut taps = Self { size, bounds, weights, stride, shift, vectors: None };
        taps.vectors = cut.and_then(|cut| Vectors::new(&taps, axis, cut));
        taps
    }

    /// Positions that come in.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Positions that come out.
    pub(crate) fn new_size(&self) -> usize {
        self.bounds.len()
    }

    /// Fractional bits of the weights.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// The weights in fours, unless there are none for this size or they would not be exact.
    pub(crate) fn vectors(&self) -> Option<&Vectors> {
        self.vectors.as_ref()
    }

    /// Input positions that are read, as a half-open range.
    pub(crate) fn span(&self) -> (usize, usize) {
        let first = self.bounds.first().map_or(0, |b| b.0);
        let last = self.bounds.last().map_or(0, |b| b.0 + b.1);
        (first, last)
    }

    /// The most weights of an output position.
    pub(crate) fn most(&self) -> usize {
        self.bounds.iter().map(|b| b.1).max().unwrap_or(0)
    }

    /// `(first input position, weights)` of output position `i`.
    pub(crate) fn at(&self, i: usize) -> (usize, &[i32]) {
        let (start, count) = self.bounds[i];
        (start, &self.weights[i * self.stride..][..count])
    }

    /// How many rows the vertical pass reads for output row `i`: in fours if there are vectors.
    pub(crate) fn row_count(&self, i: usize) -> usize {
        self.vectors.as_ref().map_or(self.bounds[i].1, |v| v.quads * 4)
    }

    /// Memory of the tables.
    pub(crate) fn bytes(&self) -> usize {
        let vectors = self.vectors.as_ref().map_or(0, |v| v.cuts.capacity() * 12 + v.starts.capacity() * 8);
        self.bounds.capacity() * 16 + self.weights.capacity() * 4 + vectors
    }
}

impl Vectors {
    /// The weights cut up; `None` if a weight or a sum does not fit.
    fn new(taps: &Taps, axis: Axis, cut: Cut) -> Option<Self> {
        let quads = taps.most().div_ceil(4).max(1);
        let reach = match axis {
            Axis::Columns => taps.size.checked_sub(quads * 4)?,
            Axis::Rows => usize::MAX,
        };
        let mut run = quads;
        let (mut starts, mut cuts) = (Vec::new(), Vec::with_capacity(taps.new_size() * quads));
        for i in 0..taps.new_size() {
            let (first, weights) = taps.at(i);
            let start = first.min(reach);
            let weight = |at: usize| at.checked_sub(first - start).and_then(|k| weights.get(k)).copied();
            starts.push(start);
            let row = cuts.len();
            for quad in 0..quads {
                let four = std::array::from_fn(|k| weight(quad * 4 + k).unwrap_or(0));
                cuts.push(cut.four(four)?);
            }
            if cut == Cut::Halves {
                while !cuts[row..].chunks(run).all(|c| high_sum(c) <= LARGEST_HIGH) {
                    run = if run > 1 { run.div_ceil(2) } else { return None };
                }
            }
        }
        Some(Self { starts, quads, cuts, run })
    }
}

/// The sizes of the high parts of some fours, added up.
fn high_sum(cuts: &[[i32; 3]]) -> u32 {
    cuts.iter().flat_map(|c| c[2].to_le_bytes()).map(|b| u32::from(b.cast_signed().unsigned_abs())).sum()
}

impl Cut {
    /// Four weights as three vectors of 32 bits, or `None` if they have more than 24 bits.
    fn four(self, weights: [i32; 4]) -> Option<[i32; 3]> {
        let bytes = |b: [i8; 4]| i32::from_le_bytes(b.map(i8::cast_unsigned));
        let pair = |low: i16, high: i16| i32::from(low) & 0xFFFF | i32::from(high) << 16;
        let high = |w: i32, low: i32, bits: u32| i8::try_from((w - low) >> bits).ok();
        match self {
            Self::Halves => {
                let low = weights.map(|w| w as i16);
                let mut highs = [0; 4];
                for k in 0..4 {
                    highs[k] = high(weights[k], i32::from(low[k]), 16)?;
                }
                // Bytes 0 and 2 of a four are its even 16-bit lanes, 1 and 3 its odd ones.
                Some([pair(low[0], low[2]), pair(low[1], low[3]), bytes(highs)])
            }
            Self::Bytes => {
                let mut digits = [[0; 4]; 3];
                for k in 0..4 {
                    let d0 = weights[k] as i8;
                    let rest = (weights[k] - i32::from(d0)) >> 8;
                    let d1 = rest as i8;
                    let d2 = high(rest, i32::from(d1), 8)?;
                    for (digit, value) in digits.iter_mut().zip([d0, d1, d2]) {
                        digit[k] = value;
                    }
                }
                Some(digits.map(bytes))
            }
        }
    }
}

/// Cubic convolution with a = -0.5, in the order of operations of Pillow's `bicubic_filter`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_add_up_to_the_weights() {
        for w in
            [0, 1, -1, 127, 128, -128, -129, 32_767, 32_768, -32_769, 65_535, 1 << 22, -(1 << 22), 8_355_711]
        {
            let [low, _, high] = Cut::Halves.four([w, 0, 0, 0]).unwrap();
            assert_eq!(i32::from(high as i8) * 65_536 + i32::from(low as i16), w);
            let [d0, d1, d2] = Cut::Bytes.four([0, 0, w, 0]).unwrap().map(|d| i32::from((d >> 16) as i8));
            assert_eq!(d2 * 65_536 + d1 * 256 + d0, w);
        }
        for cut in [Cut::Halves, Cut::Bytes] {
            assert_eq!(cut.four([0, 1 << 23, 0, 0]), None);
        }
    }

    /// Forty times smaller, the high parts are of the size of their rounding and the sum has to be emptied.
    #[test]
    fn runs_are_short_where_sums_could_overflow() {
        let ordinary = Taps::new(Weights::Pillow, 4032, 1024, Axis::Columns, Some(Cut::Halves));
        let vectors = ordinary.vectors().unwrap();
        assert_eq!((vectors.quads, vectors.run), (4, 4));
        for size in [60, 100, 1000, 4000, 20_000] {
            for new_size in [1, 7, 50, 99, 128] {
                let taps = Taps::new(Weights::Pillow, size, new_size, Axis::Rows, Some(Cut::Halves));
                let vectors = taps.vectors().unwrap();
                for row in vectors.cuts.chunks(vectors.quads) {
                    assert!(
                        row.chunks(vectors.run).all(|c| high_sum(c) <= LARGEST_HIGH),
                        "{size} to {new_size}"
                    );
                }
            }
        }
    }
}

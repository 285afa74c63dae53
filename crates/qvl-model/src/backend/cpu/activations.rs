//! Activations in 8 bits, for the products with quantised weights.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calling a function compiled for an instruction set that was detected")
)]

use bytemuck::{Pod, Zeroable};
use smallvec::SmallVec;

use super::isa::{Isa, dispatched};
use super::panels::BLOCK;
use super::team::Team;

/// Rows of activations, quantised in blocks of 32 inputs.
///
/// A block's scale is its largest magnitude over 127. What the kernels read together lies together: for each
/// block of inputs, all rows.
#[derive(Debug, Default)]
pub(super) struct QuantRows {
    rows: usize,
    blocks: usize,
    /// `[block][row]`
    codes: Vec<Codes>,
    /// `[block][row]`
    pub(super) scales: Vec<f32>,
    /// What the sums of codes contribute to a product, by what is added to the codes of the weights.
    pub(super) offsets: Vec<Offsets>,
}

/// Of one block of one row: the sum of its codes, multiplied for each format of weights. An unsigned code `q`
/// stands for `q - z`, and `Σ (q - z) x = Σ q x - z Σ x`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(super) struct Offsets {
    /// Nothing: of codes that stand for themselves.
    pub(super) none: i32,
    /// `-128 Σ x`
    pub(super) of_128: i32,
    /// `-8 Σ x`
    pub(super) of_8: i32,
    /// `-32 Σ x` for each half of the block.
    pub(super) of_32: [i32; 2],
    /// `-scale Σ x`: what a minimum of the weights is multiplied by.
    pub(super) of_min: f32,
}

/// Those of a block, within a cache line: tiles are loaded half as fast across two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(32))]
pub(super) struct Codes([i8; BLOCK]);

impl QuantRows {
    /// `[block][row][32]`
    pub(super) fn codes(&self) -> &[i8] {
        bytemuck::cast_slice(&self.codes)
    }

    /// Makes room for `rows` rows of `cols` inputs, a multiple of 32; allocates only if there never was as
    /// much.
    pub(super) fn resize(&mut self, rows: usize, cols: usize) {
        assert!(cols.is_multiple_of(BLOCK), "{cols} inputs are not whole blocks");
        (self.rows, self.blocks) = (rows, cols / BLOCK);
        self.codes.resize(rows * self.blocks, Codes::zeroed());
        self.scales.resize(rows * self.blocks, 0.0);
        self.offsets.resize(rows * self.blocks, Offsets::default());
    }

    /// Rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Quantises `x`, `[rows, cols]`; on all threads of the team if there is much of it.
    pub(super) fn quantize(&mut self, isa: Isa, team: &Team, x: &[f32]) {
        let (rows, cols) = (self.rows, self.blocks * BLOCK);
        assert_eq!(x.len(), rows * cols, "activations: shape");
        if x.is_empty() {
            return;
        }
        // At least so many that it pays to wake a thread, and that a row is read a page's half at a time.
        let blocks_min = (PARALLEL_MIN / (rows * BLOCK)).max(16).min(self.blocks);
        let codes = self.codes.chunks_mut(blocks_min * rows);
        let scales = self.scales.chunks_mut(blocks_min * rows);
        let offsets = self.offsets.chunks_mut(blocks_min * rows);
        let mut parts: SmallVec<[_; 16]> = codes.zip(scales.zip(offsets)).collect();
        let quantize =
            |index: usize, (codes, (scales, offsets)): &mut (&mut [Codes], (&mut [f32], &mut [Offsets]))| {
                quantize_blocks(isa, &x[index * blocks_min * BLOCK..], cols, rows, codes, scales, offsets);
            };
        if x.len() >= PARALLEL_MIN {
            team.for_each_mut(&mut parts, quantize);
        } else {
            parts.iter_mut().enumerate().for_each(|(index, part)| quantize(index, part));
        }
    }
}

/// Values below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 15;

dispatched!(
    /// Quantises some blocks of all rows, which are `stride` values apart.
    fn quantize_blocks(
        x: &[f32],
        stride: usize,
        rows: usize,
        codes: &mut [Codes],
        scales: &mut [f32],
        offsets: &mut [Offsets],
    ) = quantize_body
);

#[inline(always)]
fn quantize_body(
    x: &[f32],
    stride: usize,
    rows: usize,
    codes: &mut [Codes],
    scales: &mut [f32],
    offsets: &mut [Offsets],
) {
    let blocks = scales.len() / rows;
    let (mut row, mut block) = (0, 0);
    for _ in 0..scales.len() {
        let at = block * rows + row;
        let Some(values) = x[row * stride + block * BLOCK..].first_chunk::<BLOCK>() else { unreachable!() };
        // As integers, magnitudes have the order of their values, then infinity, then everything that is none.
        let mut maxima = [0u32; 16];
        for half in 0..2 {
            for lane in 0..16 {
                let magnitude = values[half * 16 + lane].to_bits() & 0x7fff_ffff;
                maxima[lane] = if magnitude > maxima[lane] { magnitude } else { maxima[lane] };
            }
        }
        let max = f32::from_bits(folded(maxima, |a, b| if a > b { a } else { b }));
        // Whatever is multiplied with a block that has no finite values becomes NaN, in this row only.
        let finite = max < f32::INFINITY;
        let scale = if finite { max / 127.0 } else { f32::NAN };
        let inverse = if finite && max > 0.0 { 127.0 / max } else { 0.0 };
        // Of a subnormal maximum the inverse may be infinite: such a block is as good as zero.
        let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
        let mut rounded = [0i32; BLOCK];
        for k in 0..BLOCK {
            rounded[k] = nearest(values[k] * inverse);
        }
        let mut halves = [[0i32; BLOCK / 2]; 2];
        for k in 0..BLOCK / 2 {
            halves[0][k] = rounded[k];
            halves[1][k] = rounded[k + BLOCK / 2];
        }
        let halves = [folded(halves[0], |a, b| a + b), folded(halves[1], |a, b| a + b)];
        for k in 0..BLOCK {
            codes[at].0[k] = rounded[k] as i8;
        }
        let sum = halves[0] + halves[1];
        scales[at] = scale;
        offsets[at] = Offsets {
            none: 0,
            of_128: -128 * sum,
            of_8: -8 * sum,
            of_32: [-32 * halves[0], -32 * halves[1]],
            of_min: -(scale * sum as f32),
        };
        block += 1;
        if block == blocks {
            (row, block) = (row + 1, 0);
        }
    }
}

/// All lanes folded into one. Halves written out: of a loop over their widths the compiler makes no vectors.
#[inline(always)]
fn folded<T: Copy>(lanes: [T; 16], f: impl Fn(T, T) -> T) -> T {
    let mut eight = [lanes[0]; 8];
    for lane in 0..8 {
        eight[lane] = f(lanes[lane], lanes[lane + 8]);
    }
    let mut four = [eight[0]; 4];
    for lane in 0..4 {
        four[lane] = f(eight[lane], eight[lane + 4]);
    }
    f(f(four[0], four[2]), f(four[1], four[3]))
}

/// The nearest integer, the even one of two, for magnitudes below 2²²; 0 for NaN.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    /// Adding it rounds to an integer and leaves it in the low bits: 1.5 * 2^23.
    const ROUNDER: f32 = 12_582_912.0;
    let x = if x > -128.0 { x } else { 0.0 };
    ((x + ROUNDER).to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use super::super::panels::tests::noise;
    use super::*;

    #[test]
    fn codes_are_the_nearest_and_the_same_at_every_level() {
        let x = noise(5 * 96, 3);
        let mut expected: Option<(Vec<i8>, Vec<f32>, Vec<Offsets>)> = None;
        for isa in Isa::available() {
            let mut rows = QuantRows::default();
            rows.resize(5, 96);
            rows.quantize(isa, &Team::new(2).unwrap(), &x);
            for row in 0..5 {
                for block in 0..3 {
                    let values = &x[row * 96 + block * 32..][..32];
                    let max = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                    let at = block * 5 + row;
                    assert_eq!(rows.scales[at], max / 127.0);
                    let codes = &rows.codes()[at * 32..][..32];
                    for (code, value) in codes.iter().zip(values) {
                        assert_eq!(*code, (value * (127.0 / max)).round_ties_even() as i8);
                    }
                    let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
                    let (low, high) = (sum(&codes[..16]), sum(&codes[16..]));
                    let offsets = rows.offsets[at];
                    assert_eq!(offsets.of_32, [-32 * low, -32 * high]);
                    assert_eq!((offsets.of_128, offsets.of_8), (-128 * (low + high), -8 * (low + high)));
                    assert_eq!(offsets.of_min, -(rows.scales[at] * (low + high) as f32));
                }
            }
            let all = (rows.codes().to_vec(), rows.scales, rows.offsets);
            assert_eq!(*expected.get_or_insert_with(|| all.clone()), all, "{}", isa.name());
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_block() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = noise(2 * 64, 4);
            x[5] = bad;
            let mut rows = QuantRows::default();
            rows.resize(2, 64);
            rows.quantize(Isa::detect(), &Team::new(1).unwrap(), &x);
            let finite: Vec<bool> = rows.scales.iter().map(|scale| scale.is_finite()).collect();
            assert_eq!(finite, [false, true, true, true]);
        }
    }

    #[test]
    fn zeros_and_the_smallest_numbers_are_zero() {
        let mut rows = QuantRows::default();
        rows.resize(1, 64);
        let mut x = [0.0; 64];
        x[40] = f32::from_bits(1);
        rows.quantize(Isa::detect(), &Team::new(1).unwrap(), &x);
        assert!(rows.codes().iter().all(|&code| code == 0));
        assert!(rows.scales.iter().all(|scale| scale.abs() < 1e-40));
    }
}

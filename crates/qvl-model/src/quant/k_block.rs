//! `Q4_K` and `Q5_K`: 256 values in eight sub-blocks of 32, each with a scale and a minimum.

use half::f16;

use super::fit::{self, Affine};
use super::{BlockFormat, Unquantizable, unquantizable};

/// One block of `Q4_K` or `Q5_K`. Value `i`, in sub-block `s = i / 32`, is
/// `(d * scales[s]) * codes[i] - (dmin * mins[s])`.
///
/// Layout: `d`; `dmin`; 12 bytes of scales and minima; for `Q5_K` 32 bytes of fifth bits; 128 bytes of low
/// halves.
///
/// - Scales and minima have 6 bits. Byte `s` of the twelve, `s < 4`, holds scale `s` in its low 6 bits and bits
///   4 and 5 of scale `s + 4` above; byte `4 + s` the same of the minima; byte `8 + s` the low 4 bits of scale
///   `s + 4`, and above them those of minimum `s + 4`.
/// - Low halves: byte `32 * p + i` holds the low 4 bits of code `i` of sub-block `2 * p`, and above them those
///   of sub-block `2 * p + 1`.
/// - Fifth bits: bit `s` of byte `i` belongs to code `i` of sub-block `s`.
#[derive(Clone, Debug, PartialEq)]
pub struct KBlock {
    /// Scale of the scales.
    pub d: f16,
    /// Scale of the minima.
    pub dmin: f16,
    /// Scales of the sub-blocks, 0 to 63.
    pub scales: [u8; 8],
    /// What is subtracted in each sub-block, 0 to 63.
    pub mins: [u8; 8],
    /// Codes: 0 to 15 for `Q4_K`, 0 to 31 for `Q5_K`.
    pub codes: [u8; 256],
}

impl KBlock {
    /// Bytes of one block of `Q4_K`.
    pub const Q4_BYTES: usize = 144;
    /// Bytes of one block of `Q5_K`.
    pub const Q5_BYTES: usize = 176;

    /// Reads a block of `Q4_K`.
    #[inline]
    pub fn unpack_q4(bytes: &[u8; Self::Q4_BYTES]) -> Self {
        let mut block = Self::unpack_head(bytes);
        unpack_halves(&bytes[HEAD_BYTES..], &mut block.codes);
        block
    }

    /// Reads a block of `Q5_K`.
    #[inline]
    pub fn unpack_q5(bytes: &[u8; Self::Q5_BYTES]) -> Self {
        let mut block = Self::unpack_head(bytes);
        let (fifth, halves) = bytes[HEAD_BYTES..].split_at(32);
        unpack_halves(halves, &mut block.codes);
        for (s, codes) in block.codes.chunks_exact_mut(32).enumerate() {
            for (code, bits) in codes.iter_mut().zip(fifth) {
                *code |= ((bits >> s) & 1) << 4;
            }
        }
        block
    }

    /// Writes a block of `Q4_K`. Of each scale and minimum only the low six bits count, of each code four.
    #[inline]
    pub fn pack_q4(&self, out: &mut [u8; Self::Q4_BYTES]) {
        self.pack_head(out);
        pack_halves(&self.codes, &mut out[HEAD_BYTES..]);
    }

    /// Writes a block of `Q5_K`. Of each scale and minimum only the low six bits count, of each code five.
    #[inline]
    pub fn pack_q5(&self, out: &mut [u8; Self::Q5_BYTES]) {
        self.pack_head(out);
        let (fifth, halves) = out[HEAD_BYTES..].split_at_mut(32);
        fifth.fill(0);
        for (s, codes) in self.codes.chunks_exact(32).enumerate() {
            for (bits, code) in fifth.iter_mut().zip(codes) {
                *bits |= ((code >> 4) & 1) << s;
            }
        }
        pack_halves(&self.codes, halves);
    }

    fn unpack_head(bytes: &[u8]) -> Self {
        let packed = &bytes[4..HEAD_BYTES];
        let (mut scales, mut mins) = ([0; 8], [0; 8]);
        for s in 0..4 {
            scales[s] = packed[s] & 0x3f;
            mins[s] = packed[4 + s] & 0x3f;
            scales[4 + s] = (packed[8 + s] & 0xf) | ((packed[s] >> 6) << 4);
            mins[4 + s] = (packed[8 + s] >> 4) | ((packed[4 + s] >> 6) << 4);
        }
        Self {
            d: f16::from_le_bytes([bytes[0], bytes[1]]),
            dmin: f16::from_le_bytes([bytes[2], bytes[3]]),
            scales,
            mins,
            codes: [0; 256],
        }
    }

    fn pack_head(&self, out: &mut [u8]) {
        out[..2].copy_from_slice(&self.d.to_le_bytes());
        out[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        let packed = &mut out[4..HEAD_BYTES];
        for s in 0..4 {
            packed[s] = (self.scales[s] & 0x3f) | ((self.scales[4 + s] & 0x30) << 2);
            packed[4 + s] = (self.mins[s] & 0x3f) | ((self.mins[4 + s] & 0x30) << 2);
            packed[8 + s] = (self.scales[4 + s] & 0xf) | (self.mins[4 + s] << 4);
        }
    }

    /// The values.
    #[inline]
    pub fn values(&self) -> [f32; 256] {
        let mut values = [0.0; 256];
        self.write_values(&mut values);
        values
    }

    /// Writes the values.
    #[inline]
    pub fn write_values(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (s, (out, codes)) in out.chunks_exact_mut(32).zip(self.codes.chunks_exact(32)).enumerate() {
            let scale = d * f32::from(self.scales[s]);
            let min = dmin * f32::from(self.mins[s]);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(code) - min;
            }
        }
    }

    /// A block of `Q4_K` close to the values.
    ///
    /// # Errors
    /// [`Unquantizable`], with the index in this block.
    pub fn quantize_q4(values: &[f32; 256]) -> Result<Self, Unquantizable> {
        Self::quantize(values, &fit::Q4_SEARCH).ok_or_else(|| unquantizable(BlockFormat::Q4K, values))
    }

    /// A block of `Q5_K` close to the values.
    ///
    /// # Errors
    /// [`Unquantizable`], with the index in this block.
    pub fn quantize_q5(values: &[f32; 256]) -> Result<Self, Unquantizable> {
        Self::quantize(values, &fit::Q5_SEARCH).ok_or_else(|| unquantizable(BlockFormat::Q5K, values))
    }

    fn quantize(values: &[f32; 256], search: &fit::Search) -> Option<Self> {
        if fit::any_non_finite(values) {
            return None;
        }
        let (sub_blocks, _) = values.as_chunks::<32>();
        let weights: [[f32; 32]; 8] = std::array::from_fn(|s| fit::weights(&sub_blocks[s]));
        let fits: [Affine; 8] = std::array::from_fn(|s| fit::affine(&sub_blocks[s], &weights[s], search));

        let largest = |part: fn(&Affine) -> f32| fits.iter().map(part).fold(0.0f32, f32::max);
        let d = f16::from_f32(largest(|fit| fit.scale) / STEPS);
        let dmin = f16::from_f32(largest(|fit| fit.min) / STEPS);
        if !d.is_finite() || !dmin.is_finite() {
            return None;
        }
        let mut block = Self { d, dmin, scales: [0; 8], mins: [0; 8], codes: [0; 256] };
        let (d, dmin) = (d.to_f32(), dmin.to_f32());
        for (s, codes) in block.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            (block.scales[s], block.mins[s]) =
                fit::on_grid(&sub_blocks[s], &weights[s], fits[s], (d, dmin), search, codes);
        }
        Some(block)
    }
}

/// `d`, `dmin`, scales and minima.
const HEAD_BYTES: usize = 16;

/// Largest scale and minimum of a sub-block.
const STEPS: f32 = 63.0;

#[inline(always)]
fn unpack_halves(halves: &[u8], codes: &mut [u8; 256]) {
    for (bytes, codes) in halves.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            *low = byte & 0xf;
            *high = byte >> 4;
        }
    }
}

#[inline(always)]
fn pack_halves(codes: &[u8; 256], halves: &mut [u8]) {
    for (bytes, codes) in halves.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        let (low, high) = codes.split_at(32);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = (low & 0xf) | (high << 4);
        }
    }
}

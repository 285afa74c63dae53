//! `Q8_0` and `Q4_0`: 32 values with one scale.

use half::f16;

use super::fit::{self, round_to_even};
use super::{BlockFormat, Unquantizable, unquantizable};

/// One block of `Q8_0`. Value `i` is `codes[i] * d`.
///
/// Layout: `d`, then 32 codes as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Q8Block {
    /// Scale.
    pub d: f16,
    /// Signed codes.
    pub codes: [i8; 32],
}

impl Q8Block {
    /// Bytes of one block.
    pub const BYTES: usize = 34;

    /// Reads a block.
    #[inline]
    pub fn unpack(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            d: f16::from_le_bytes([bytes[0], bytes[1]]),
            codes: std::array::from_fn(|i| bytes[2 + i].cast_signed()),
        }
    }

    /// Writes a block.
    #[inline]
    pub fn pack(&self, out: &mut [u8; Self::BYTES]) {
        out[..2].copy_from_slice(&self.d.to_le_bytes());
        for (byte, code) in out[2..].iter_mut().zip(self.codes) {
            *byte = code.cast_unsigned();
        }
    }

    /// The values.
    #[inline]
    pub fn values(&self) -> [f32; 32] {
        let d = self.d.to_f32();
        self.codes.map(|code| f32::from(code) * d)
    }

    /// The nearest block: the largest magnitude becomes 127.
    ///
    /// # Errors
    /// [`Unquantizable`], with the index in this block.
    #[inline]
    pub fn quantize(values: &[f32; 32]) -> Result<Self, Unquantizable> {
        let d = fit::max_abs(values) / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { d.recip() };
        let d = f16::from_f32(d);
        if !d.is_finite() || fit::any_non_finite(values) {
            return Err(unquantizable(BlockFormat::Q8_0, values));
        }
        Ok(Self { d, codes: values.map(|value| round_half_away(value * inverse)) })
    }
}

/// Rounds to the nearest integer, halves away from zero. In range: `|x| < 127.5`.
#[inline(always)]
fn round_half_away(x: f32) -> i8 {
    let magnitude = x.abs();
    let even = round_to_even(magnitude);
    let rounded = if magnitude - even >= 0.5 { even + 1.0 } else { even };
    let code = fit::small_integer(rounded).cast_signed();
    if x < 0.0 { code.wrapping_neg() } else { code }
}

/// One block of `Q4_0`. Value `i` is `(codes[i] - 8) * d`.
///
/// Layout: `d`, then 16 bytes: byte `i` holds code `i` in its low and code `i + 16` in its high half.
#[derive(Clone, Debug, PartialEq)]
pub struct Q4Block {
    /// Scale; often negative.
    pub d: f16,
    /// Codes, 0 to 15.
    pub codes: [u8; 32],
}

impl Q4Block {
    /// Bytes of one block.
    pub const BYTES: usize = 18;

    /// Reads a block.
    #[inline]
    pub fn unpack(bytes: &[u8; Self::BYTES]) -> Self {
        let mut codes = [0; 32];
        for (i, byte) in bytes[2..].iter().enumerate() {
            codes[i] = byte & 0xf;
            codes[i + 16] = byte >> 4;
        }
        Self { d: f16::from_le_bytes([bytes[0], bytes[1]]), codes }
    }

    /// Writes a block. Of each code only the low four bits count.
    #[inline]
    pub fn pack(&self, out: &mut [u8; Self::BYTES]) {
        out[..2].copy_from_slice(&self.d.to_le_bytes());
        for (i, byte) in out[2..].iter_mut().enumerate() {
            *byte = (self.codes[i] & 0xf) | (self.codes[i + 16] << 4);
        }
    }

    /// The values.
    #[inline]
    pub fn values(&self) -> [f32; 32] {
        let d = self.d.to_f32();
        self.codes.map(|code| d * (f32::from(code) - 8.0))
    }

    /// The block whose code 0 is the value of largest magnitude, the first of them.
    ///
    /// # Errors
    /// [`Unquantizable`], with the index in this block.
    #[inline]
    pub fn quantize(values: &[f32; 32]) -> Result<Self, Unquantizable> {
        let d = values[fit::largest(values)] / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { d.recip() };
        let d = f16::from_f32(d);
        if !d.is_finite() || fit::any_non_finite(values) {
            return Err(unquantizable(BlockFormat::Q4_0, values));
        }
        Ok(Self { d, codes: values.map(|value| (value * inverse + 8.5).min(15.0) as u8) })
    }
}

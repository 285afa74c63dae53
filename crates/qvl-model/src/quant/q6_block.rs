//! `Q6_K`: 256 values in sixteen sub-blocks of 16, each with a scale.

use half::f16;

use super::{BlockFormat, Unquantizable, fit, unquantizable};

/// One block of `Q6_K`. Value `i` is `(d * scales[i / 16]) * (codes[i] - 32)`.
///
/// Layout: 128 bytes of low halves, 64 bytes of upper pairs of bits, 16 scales, `d`. Each half of the block, 128
/// values, has its own 64 bytes of low halves and 32 bytes of pairs. Within it, code `32 * q + i` has its low 4
/// bits in byte `32 * (q % 2) + i`, in the low half for `q < 2` and the high half for the others, and its upper
/// 2 bits in byte `i`, from bit `2 * q`.
#[derive(Clone, Debug, PartialEq)]
pub struct Q6Block {
    /// Scale of the scales; often negative.
    pub d: f16,
    /// Scales of the sub-blocks.
    pub scales: [i8; 16],
    /// Codes, 0 to 63.
    pub codes: [u8; 256],
}

impl Q6Block {
    /// Bytes of one block.
    pub const BYTES: usize = 210;

    /// Reads a block.
    #[inline]
    pub fn unpack(bytes: &[u8; Self::BYTES]) -> Self {
        let (low, pairs) = bytes[..192].split_at(128);
        let mut codes = [0; 256];
        for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
            let (low, pairs) = (&low[64 * half..][..64], &pairs[32 * half..][..32]);
            let (first, second) = low.split_at(32);
            for i in 0..32 {
                codes[i] = (first[i] & 0xf) | ((pairs[i] & 3) << 4);
                codes[32 + i] = (second[i] & 0xf) | (((pairs[i] >> 2) & 3) << 4);
                codes[64 + i] = (first[i] >> 4) | (((pairs[i] >> 4) & 3) << 4);
                codes[96 + i] = (second[i] >> 4) | ((pairs[i] >> 6) << 4);
            }
        }
        Self {
            d: f16::from_le_bytes([bytes[208], bytes[209]]),
            scales: std::array::from_fn(|s| bytes[192 + s].cast_signed()),
            codes,
        }
    }

    /// Writes a block. Of each code only the low six bits count.
    #[inline]
    pub fn pack(&self, out: &mut [u8; Self::BYTES]) {
        let (low, pairs) = out[..192].split_at_mut(128);
        for (half, codes) in self.codes.chunks_exact(128).enumerate() {
            let (low, pairs) = (&mut low[64 * half..][..64], &mut pairs[32 * half..][..32]);
            let (first, second) = low.split_at_mut(32);
            for i in 0..32 {
                let code = |quarter: usize| codes[32 * quarter + i] & 0x3f;
                first[i] = (code(0) & 0xf) | (code(2) << 4);
                second[i] = (code(1) & 0xf) | (code(3) << 4);
                pairs[i] =
                    (code(0) >> 4) | ((code(1) >> 4) << 2) | ((code(2) >> 4) << 4) | ((code(3) >> 4) << 6);
            }
        }
        for (byte, scale) in out[192..208].iter_mut().zip(self.scales) {
            *byte = scale.cast_unsigned();
        }
        out[208..].copy_from_slice(&self.d.to_le_bytes());
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
        let d = self.d.to_f32();
        for (s, (out, codes)) in out.chunks_exact_mut(16).zip(self.codes.chunks_exact(16)).enumerate() {
            let scale = d * f32::from(self.scales[s]);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * (f32::from(code) - 32.0);
            }
        }
    }

    /// A block close to the values.
    ///
    /// # Errors
    /// [`Unquantizable`], with the index in this block.
    pub fn quantize(values: &[f32; 256]) -> Result<Self, Unquantizable> {
        let fail = || unquantizable(BlockFormat::Q6K, values);
        if fit::any_non_finite(values) {
            return Err(fail());
        }
        let (sub_blocks, _) = values.as_chunks::<16>();
        let fits: [f32; 16] = std::array::from_fn(|s| fit::symmetric(&sub_blocks[s]));
        // The scale of largest magnitude becomes -128: the codes have one more step on the negative side.
        let d = f16::from_f32(fits[fit::largest(&fits)] / -128.0);
        if !d.is_finite() {
            return Err(fail());
        }
        let mut block = Self { d, scales: [0; 16], codes: [32; 256] };
        let d = d.to_f32();
        for (s, codes) in block.codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            block.scales[s] = fit::symmetric_on_grid(&sub_blocks[s], fits[s], d, codes);
        }
        Ok(block)
    }
}

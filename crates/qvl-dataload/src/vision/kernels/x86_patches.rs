//! Bytes of a patch to its values in AVX2: 16 pixels at a time are split into R, G and B, widened and normalised.
//!
//! A value is computed once and stored for each frame that the picture stands for. Storing past the caches
//! (`stream`) pays when the patches are larger than those: a store into a line that is not there reads it first.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_blendv_epi8, _mm_loadu_si128, _mm_setr_epi8, _mm_sfence, _mm_shuffle_epi8,
    _mm_srli_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_div_ps, _mm256_fmadd_ps, _mm256_mul_ps, _mm256_packus_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_ps, _mm256_srli_epi32, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_stream_ps, _mm256_stream_si256, _mm256_sub_ps,
};

use half::bf16;

use super::Patch;
use crate::vision::values::Formula;

/// Pixels that are taken together.
pub(super) const PIXELS: usize = 16;

/// The constants of a formula in vectors.
#[derive(Clone, Copy)]
struct Constants {
    high: __m256,
    low: __m256,
    mean: __m256,
    /// The deviation, or its inverse if that is as good.
    std: __m256,
    inverse: bool,
}

impl Constants {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(formula: &Formula, channel: usize) -> Self {
        let std = formula.std[channel];
        // A power of two has an exact inverse, unless that is not a normal number.
        let inverse = std.to_bits() & 0x007F_FFFF == 0 && std.is_normal() && std.recip().is_normal();
        Self {
            high: _mm256_set1_ps(formula.high),
            low: _mm256_set1_ps(formula.low),
            mean: _mm256_set1_ps(formula.mean[channel]),
            std: _mm256_set1_ps(if inverse { std.recip() } else { std }),
            inverse,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn value(&self, bytes: __m128i) -> __m256 {
        let x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let scaled = _mm256_fmadd_ps(x, self.high, _mm256_mul_ps(x, self.low));
        let centered = _mm256_sub_ps(scaled, self.mean);
        if self.inverse { _mm256_mul_ps(centered, self.std) } else { _mm256_div_ps(centered, self.std) }
    }
}

/// A function that cuts one patch, for a type of values and a way to store 16 of them.
macro_rules! patch {
    ($name:ident, $value:ty, $store:ident) => {
        /// # Safety
        /// The CPU has AVX2 and FMA. `patch` has been checked against `out` and its own `rgb`, its side is a multiple
        /// of [`PIXELS`], and with `stream` `out` begins at a multiple of 32 bytes.
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $name(patch: Patch<'_>, formula: &Formula, out: &mut [$value]) {
            let Patch { rgb, stride, side, temporal, places, stream } = patch;
            let constants = [0, 1, 2].map(|channel| Constants::new(formula, channel));
            let plane = side * side;
            let out = out.as_mut_ptr();
            for y in 0..side {
                for x in (0..side).step_by(PIXELS) {
                    // SAFETY: 48 bytes of a line of the patch, which lies in `rgb`.
                    let channels = unsafe { split(rgb.as_ptr().add(y * stride + x * 3)) };
                    for (channel, bytes) in channels.into_iter().enumerate() {
                        let low = constants[channel].value(bytes);
                        let high = constants[channel].value(_mm_srli_si128::<8>(bytes));
                        for t in places.0..places.1 {
                            let at = (channel * temporal + t) * plane + y * side + x;
                            // SAFETY: 16 values of one line of one plane of `out`, which has `3 * temporal` planes.
                            unsafe { $store(out.add(at), low, high, stream) };
                        }
                    }
                }
            }
        }
    };
}

patch!(patch_f32, f32, store_f32);
patch!(patch_bf16, bf16, store_bf16);

/// Waits until streamed stores are seen by everyone.
pub(super) fn fence() {
    // SAFETY: every x86-64 has this instruction; it takes nothing and touches no memory of ours.
    #[allow(unused_unsafe, reason = "a safe function in newer toolchains")]
    unsafe {
        _mm_sfence();
    }
}

/// # Safety
/// `out` takes 16 values, and with `stream` is aligned to 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_f32(out: *mut f32, low: __m256, high: __m256, stream: bool) {
    // SAFETY: the caller promises room and alignment for both vectors.
    unsafe {
        if stream {
            _mm256_stream_ps(out, low);
            _mm256_stream_ps(out.add(8), high);
        } else {
            _mm256_storeu_ps(out, low);
            _mm256_storeu_ps(out.add(8), high);
        }
    }
}

/// # Safety
/// `out` takes 16 values, and with `stream` is aligned to 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_bf16(out: *mut bf16, low: __m256, high: __m256, stream: bool) {
    // Packing works on halves of 128 bits and leaves the quarters in the order 0, 2, 1, 3.
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(round(low), round(high)));
    // SAFETY: the caller promises room and alignment for the vector.
    unsafe {
        if stream {
            _mm256_stream_si256(out.cast(), packed);
        } else {
            _mm256_storeu_si256(out.cast(), packed);
        }
    }
}

/// The upper half of each f32, rounded to the nearest and half to even. Not for NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn round(values: __m256) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), odd);
    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up))
}

/// 16 pixels to 16 bytes each of R, of G and of B.
///
/// Every third byte of the 48 is of one channel: blending the three vectors brings the 16 bytes of a channel into one,
/// out of order, and a shuffle puts them in order.
///
/// # Safety
/// 48 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn split(rgb: *const u8) -> [__m128i; 3] {
    // SAFETY: the caller promises 48 bytes.
    let [a, b, c] = unsafe {
        [
            _mm_loadu_si128(rgb.cast()),
            _mm_loadu_si128(rgb.add(16).cast()),
            _mm_loadu_si128(rgb.add(32).cast()),
        ]
    };
    // Bytes 0, 3, .. 15; 1, 4, .. 13; 2, 5, .. 14 of a vector.
    let first = _mm_setr_epi8(-1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1);
    let second = _mm_setr_epi8(0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0);
    // The first vector starts with R, the second with G, the third with B.
    let red = _mm_blendv_epi8(_mm_blendv_epi8(c, b, third()), a, first);
    let green = _mm_blendv_epi8(_mm_blendv_epi8(c, a, second), b, first);
    let blue = _mm_blendv_epi8(_mm_blendv_epi8(a, b, second), c, first);
    [
        _mm_shuffle_epi8(red, _mm_setr_epi8(0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13)),
        _mm_shuffle_epi8(green, _mm_setr_epi8(1, 4, 7, 10, 13, 0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14)),
        _mm_shuffle_epi8(blue, _mm_setr_epi8(2, 5, 8, 11, 14, 1, 4, 7, 10, 13, 0, 3, 6, 9, 12, 15)),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn third() -> __m128i {
    _mm_setr_epi8(0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0)
}

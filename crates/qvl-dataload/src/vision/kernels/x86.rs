//! The passes of a resize in vectors of 32 bytes, for three sets of x86 instructions.
//!
//! Both passes bring four taps of one sample together in 32 bits and multiply them there: a lane is a sample. The
//! horizontal pass takes four neighbouring pixels with one shuffle, two rows in a vector, three of four lanes in use;
//! the vertical pass interleaves four rows. How four bytes are multiplied with their weights is what the sets differ
//! in, and is a `Sum` of their own; see [`taps`](crate::vision::resize::taps) for why the sums are exact.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_storeu_si128, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castsi128_si256, _mm256_castsi256_si128, _mm256_dpbusd_epi32,
    _mm256_dpwssd_avx_epi32, _mm256_extracti128_si256, _mm256_inserti128_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_packs_epi32, _mm256_packus_epi16, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setr_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32,
    _mm256_sra_epi32, _mm256_srli_epi16, _mm256_storeu_si256, _mm256_unpackhi_epi8, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

use super::{GROUP, LANES};
use crate::vision::resize::taps::Vectors;

/// Pairs of rows in a group.
const PAIRS: usize = GROUP / 2;

/// Both passes for one `Sum` of one set of instructions.
macro_rules! passes {
    ($features:literal) => {
        /// See [`Isa::horizontal`](crate::vision::kernels::Isa::horizontal).
        ///
        /// # Safety
        /// The CPU has the features. From every offset in `rows` there are `3 * width + SLACK` bytes of `source`, and
        /// `out` is `GROUP` rows of `stride` bytes, `3 * new_width + SLACK` or more.
        #[target_feature(enable = $features)]
        pub(in crate::vision::kernels) unsafe fn horizontal(
            vectors: &Vectors,
            shift: u32,
            source: &[u8],
            rows: &[usize; GROUP],
            out: &mut [u8],
            stride: usize,
        ) {
            let new_width = vectors.starts.len();
            let gather = gather();
            let join = join();
            let half = _mm256_set1_epi32(1 << (shift - 1));
            let shift = _mm_cvtsi32_si128(shift as i32);
            let source = source.as_ptr();
            let out = out.as_mut_ptr();
            for block in (0..new_width).step_by(4) {
                let mut bytes = [[_mm256_setzero_si256(); 4]; PAIRS];
                for k in 0..4 {
                    // What lies behind the last pixel is written into the slack.
                    let i = (block + k).min(new_width - 1);
                    let mut at = vectors.starts[i] * 3;
                    let mut sums = [Sum::zero(); PAIRS];
                    for run in vectors.cuts[i * vectors.quads..][..vectors.quads].chunks(vectors.run) {
                        for cut in run {
                            let cut = cut.map(|c| _mm256_set1_epi32(c));
                            for (pair, sum) in sums.iter_mut().enumerate() {
                                // SAFETY: a four begins at most four pixels before the end of its row, so these
                                // 16 bytes end within the slack behind it.
                                let samples = unsafe {
                                    two(source.add(rows[2 * pair] + at), source.add(rows[2 * pair + 1] + at))
                                };
                                sum.add(_mm256_shuffle_epi8(samples, gather), cut);
                            }
                            at += 12;
                        }
                        for sum in &mut sums {
                            sum.empty();
                        }
                    }
                    for (bytes, sum) in bytes.iter_mut().zip(sums) {
                        bytes[k] = _mm256_sra_epi32(_mm256_add_epi32(sum.total(), half), shift);
                    }
                }
                for (pair, bytes) in bytes.iter().enumerate() {
                    let first = _mm256_packs_epi32(bytes[0], bytes[1]);
                    let second = _mm256_packs_epi32(bytes[2], bytes[3]);
                    let four = _mm256_shuffle_epi8(_mm256_packus_epi16(first, second), join);
                    // SAFETY: four pixels and four bytes more, from a pixel of the row, end within the slack.
                    unsafe {
                        let at = out.add(2 * pair * stride + block * 3);
                        _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(four));
                        _mm_storeu_si128(at.add(stride).cast(), _mm256_extracti128_si256::<1>(four));
                    }
                }
            }
        }

        /// See [`Isa::vertical`](crate::vision::kernels::Isa::vertical).
        ///
        /// # Safety
        /// The CPU has the features. From every offset in `rows` there are as many bytes of `source` as `out` has,
        /// and those are `LANES` or more.
        #[target_feature(enable = $features)]
        pub(in crate::vision::kernels) unsafe fn vertical(
            vectors: &Vectors,
            i: usize,
            shift: u32,
            source: &[u8],
            rows: &[usize],
            out: &mut [u8],
        ) {
            let cuts = &vectors.cuts[i * vectors.quads..][..vectors.quads];
            let half = _mm256_set1_epi32(1 << (shift - 1));
            let shift = _mm_cvtsi32_si128(shift as i32);
            let source = source.as_ptr();
            let mut begin = 0;
            while begin < out.len() {
                // The last vector overlaps the one before it.
                let at = begin.min(out.len() - LANES);
                let mut sums = [Sum::zero(); 4];
                for (cuts, rows) in cuts.chunks(vectors.run).zip(rows.chunks(vectors.run * 4)) {
                    for (cut, rows) in cuts.iter().zip(rows.as_chunks::<4>().0) {
                        let cut = cut.map(|c| _mm256_set1_epi32(c));
                        // SAFETY: `at + LANES` is within `out`, and the rows are as long.
                        let rows = rows.map(|row| unsafe { _mm256_loadu_si256(source.add(row + at).cast()) });
                        for (sum, samples) in sums.iter_mut().zip(interleave(rows)) {
                            sum.add(samples, cut);
                        }
                    }
                    for sum in &mut sums {
                        sum.empty();
                    }
                }
                let level = |sum: Sum| _mm256_sra_epi32(_mm256_add_epi32(sum.total(), half), shift);
                let [a, b, c, d] = [level(sums[0]), level(sums[1]), level(sums[2]), level(sums[3])];
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                // SAFETY: `at + LANES` is within `out`.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), bytes) };
                begin += LANES;
            }
        }
    };
}

/// A `Sum` of halves, for a way to add products of pairs.
macro_rules! halves {
    ($features:literal, $pairs:ident) => {
        /// Lanes of 32 bits with products of low halves, and of 16 bits with products of high ones.
        #[derive(Clone, Copy)]
        struct Sum {
            low: __m256i,
            high: __m256i,
        }

        impl Sum {
            #[inline]
            #[target_feature(enable = $features)]
            fn zero() -> Self {
                Self { low: _mm256_setzero_si256(), high: _mm256_setzero_si256() }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn add(&mut self, samples: __m256i, [even, odd, high]: [__m256i; 3]) {
                let evens = _mm256_and_si256(samples, _mm256_set1_epi16(255));
                let odds = _mm256_srli_epi16::<8>(samples);
                self.low = $pairs(self.low, evens, even);
                self.low = $pairs(self.low, odds, odd);
                self.high = _mm256_add_epi16(self.high, _mm256_maddubs_epi16(samples, high));
            }

            /// Brings the high sums over before they overflow.
            #[inline]
            #[target_feature(enable = $features)]
            fn empty(&mut self) {
                let high = _mm256_madd_epi16(self.high, _mm256_set1_epi16(1));
                self.low = _mm256_add_epi32(self.low, _mm256_slli_epi32::<16>(high));
                self.high = _mm256_setzero_si256();
            }

            /// The sum; nothing was added since it was emptied.
            #[inline]
            #[target_feature(enable = $features)]
            fn total(self) -> __m256i {
                self.low
            }
        }
    };
}

/// AVX2 alone.
pub(super) mod avx2 {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn pairs(sum: __m256i, samples: __m256i, weights: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(samples, weights))
    }

    halves!("avx2", pairs);
    passes!("avx2");
}

/// VNNI in the encoding of AVX. Three digits for each sum take more registers than its sixteen, so weights are in
/// halves here too, and the addition is what is saved.
pub(super) mod avx_vnni {
    use super::*;
    halves!("avx2,avxvnni", _mm256_dpwssd_avx_epi32);
    passes!("avx2,avxvnni");
}

/// VNNI in the encoding of AVX-512, with its 32 registers: weights in digits. Vectors of 64 bytes would double the
/// shuffles that bring rows together and halve nothing but the products.
pub(super) mod avx512_vnni {
    use super::*;

    /// For each digit lanes of 32 bits.
    #[derive(Clone, Copy)]
    struct Sum([__m256i; 3]);

    impl Sum {
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn zero() -> Self {
            Self([_mm256_setzero_si256(); 3])
        }

        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn add(&mut self, samples: __m256i, digits: [__m256i; 3]) {
            for (sum, digit) in self.0.iter_mut().zip(digits) {
                *sum = _mm256_dpbusd_epi32(*sum, samples, digit);
            }
        }

        /// These sums cannot overflow.
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn empty(&mut self) {}

        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn total(self) -> __m256i {
            let high = _mm256_add_epi32(_mm256_slli_epi32::<8>(self.0[2]), self.0[1]);
            _mm256_add_epi32(_mm256_slli_epi32::<8>(high), self.0[0])
        }
    }

    passes!("avx2,avx512f,avx512bw,avx512vl,avx512vnni");
}

/// 16 bytes from each of two rows.
///
/// # Safety
/// Both can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn two(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: the caller promises 16 bytes at each.
    let (low, high): (__m128i, __m128i) =
        unsafe { (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast())) };
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
}

/// Shuffle from four pixels to four samples of R, of G and of B.
#[inline]
#[target_feature(enable = "avx2")]
fn gather() -> __m256i {
    _mm256_setr_epi8(
        0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1, //
        0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1,
    )
}

/// Shuffle from four pixels of four bytes to four of three.
#[inline]
#[target_feature(enable = "avx2")]
fn join() -> __m256i {
    _mm256_setr_epi8(
        0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1, //
        0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
    )
}

/// Four rows to vectors whose lanes hold a byte of each, in the order that packing twice undoes.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
    [
        _mm256_unpacklo_epi16(ab_low, cd_low),
        _mm256_unpackhi_epi16(ab_low, cd_low),
        _mm256_unpacklo_epi16(ab_high, cd_high),
        _mm256_unpackhi_epi16(ab_high, cd_high),
    ]
}

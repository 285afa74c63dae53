//! Inner loops of `limits`, compiled for the instruction sets that the CPU is asked for.
//!
//! Each does nothing useful as fast as it can. The only file of this package with `unsafe`: a function that
//! was compiled for an instruction set may only be called where the CPU has it.
#![expect(unsafe_code, reason = "calls of functions compiled for a detected instruction set")]

/// Reads everything once; the result depends on every byte, so that nothing can be left out.
pub(crate) fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F was detected in the line above.
            return unsafe { x86::read_avx512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was detected in the line above.
            return unsafe { x86::read_avx2(bytes) };
        }
    }
    read_portable(bytes)
}

/// Streams a thread reads side by side: hardware prefetchers follow each.
const STREAMS: usize = 4;

fn read_portable(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for block in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// A kind of multiply-and-add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    F32Avx2,
    F32Avx512,
    I8Avx2,
    I8AvxVnni,
    I8Avx512Vnni,
}

impl Arithmetic {
    pub(crate) const ALL: [Self; 5] =
        [Self::F32Avx2, Self::F32Avx512, Self::I8Avx2, Self::I8AvxVnni, Self::I8Avx512Vnni];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32Avx2 => "f32_avx2",
            Self::F32Avx512 => "f32_avx512",
            Self::I8Avx2 => "i8_avx2",
            Self::I8AvxVnni => "i8_avx_vnni",
            Self::I8Avx512Vnni => "i8_avx512_vnni",
        }
    }

    /// Multiplications and additions in so many rounds of [`CHAINS`] instructions.
    pub(crate) fn operations(self, rounds: u64) -> f64 {
        let per_instruction = match self {
            Self::F32Avx2 => 16,
            Self::F32Avx512 => 32,
            Self::I8Avx2 | Self::I8AvxVnni => 64,
            Self::I8Avx512Vnni => 128,
        };
        (rounds * CHAINS as u64 * per_instruction) as f64
    }
}

/// Independent chains: latency (4 or 5 cycles) times the units (2), with some to spare; the operands still
/// fit in 16 registers.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
impl Arithmetic {
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::F32Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::F32Avx512 => is_x86_feature_detected!("avx512f"),
            Self::I8Avx2 => is_x86_feature_detected!("avx2"),
            Self::I8AvxVnni => is_x86_feature_detected!("avxvnni"),
            Self::I8Avx512Vnni => is_x86_feature_detected!("avx512vnni"),
        }
    }

    /// Runs the rounds; the result keeps them from being left out.
    pub(crate) fn run(self, rounds: u64) -> f32 {
        assert!(self.is_available(), "{} on a CPU without it", self.name());
        match self {
            // SAFETY: asserted to be available above.
            Self::F32Avx2 => unsafe { x86::f32_avx2(rounds) },
            // SAFETY: as above.
            Self::F32Avx512 => unsafe { x86::f32_avx512(rounds) },
            // SAFETY: as above.
            Self::I8Avx2 => unsafe { x86::i8_avx2(rounds) },
            // SAFETY: as above.
            Self::I8AvxVnni => unsafe { x86::i8_avx_vnni(rounds) },
            // SAFETY: as above.
            Self::I8Avx512Vnni => unsafe { x86::i8_avx512_vnni(rounds) },
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Arithmetic {
    pub(crate) fn is_available(self) -> bool {
        false
    }

    pub(crate) fn run(self, _rounds: u64) -> f32 {
        0.0
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{CHAINS, STREAMS};

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(bytes: &[u8]) -> u64 {
        let blocks = bytes.as_chunks::<64>().0;
        let quarter = blocks.len() / STREAMS;
        let mut sums = [_mm512_setzero_si512(); STREAMS];
        for index in 0..quarter {
            for (stream, sum) in sums.iter_mut().enumerate() {
                let block = &blocks[stream * quarter + index];
                // SAFETY: a block has 64 bytes, and the load asks for no alignment.
                let loaded = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
                *sum = _mm512_xor_si512(*sum, loaded);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi64(sum) as u64).fold(0, |a, b| a ^ b)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(bytes: &[u8]) -> u64 {
        let blocks = bytes.as_chunks::<32>().0;
        let quarter = blocks.len() / STREAMS;
        let mut sums = [_mm256_setzero_si256(); STREAMS];
        for index in 0..quarter {
            for (stream, sum) in sums.iter_mut().enumerate() {
                let block = &blocks[stream * quarter + index];
                // SAFETY: a block has 32 bytes, and the load asks for no alignment.
                let loaded = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
                *sum = _mm256_xor_si256(*sum, loaded);
            }
        }
        sums.into_iter().map(|sum| _mm256_extract_epi64::<0>(sum) as u64).fold(0, |a, b| a ^ b)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(rounds: u64) -> f32 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums = [_mm256_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(rounds: u64) -> f32 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        sums.into_iter().map(|sum| _mm512_cvtss_f32(sum)).sum()
    }

    /// Without VNNI a dot product of bytes takes three instructions.
    #[target_feature(enable = "avx2")]
    pub(super) fn i8_avx2(rounds: u64) -> f32 {
        let (a, ones) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [_mm256_set1_epi32(black_box(1)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                let pairs = _mm256_maddubs_epi16(a, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        sums.into_iter().map(|sum| _mm256_extract_epi32::<0>(sum) as f32).sum()
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn i8_avx_vnni(rounds: u64) -> f32 {
        let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(5)));
        let mut sums = [_mm256_set1_epi32(black_box(1)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| _mm256_extract_epi32::<0>(sum) as f32).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn i8_avx512_vnni(rounds: u64) -> f32 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
        let mut sums = [_mm512_set1_epi32(black_box(1)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum) as f32).sum()
    }
}

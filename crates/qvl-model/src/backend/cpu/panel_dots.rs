//! Products of quantised activations with panels of quantised weights.
//!
//! For one row and one column, blocks of 32 inputs come in ascending order; the integer product of a block is
//! exact, is scaled by the row's and the column's scale, and is added to the sum so far. Nothing of that depends
//! on the rows beside it. AVX2 and AVX-512 give the same bits; the portable code rounds products and sums
//! one by one, so its last bits differ.

#![expect(unsafe_code, reason = "vector loads by pointer: the bounds are asserted once for a whole panel")]

use std::ops::Range;

use super::activations::{Offsets, QuantRows};
use super::amx::{self, Amx};
use super::isa::{Isa, dispatched};
use super::panels::{BLOCK, PANEL, Panels, SCALE_BYTES, code_bytes, super_bytes};
use crate::backend::mat::Values;
use crate::quant::BlockFormat;

/// Bytes of one group of four inputs of a panel.
const GROUP_BYTES: usize = PANEL * 4;

/// Bytes of codes asked for before they are used: what arrives while one line is waited for, several times over.
const AHEAD: usize = 2048;

/// Panels that are read side by side for a few rows: a core waits for memory less when it asks in several
/// places.
const STREAMS: usize = 4;

/// Multiples of this many rows are multiplied in tiles where there are any. Fewer have the time that tiles
/// save while the panels come from memory.
pub(super) const TILE_ROWS: usize = 16;

/// Rows so few that reading the panels is what takes the time.
const STREAM_ROWS: usize = 4;

/// Groups of four inputs in a block.
pub(super) const GROUPS: usize = BLOCK / 4;

/// The products of some rows with some panels.
pub(super) struct Product<'a> {
    /// The weights.
    pub(super) weights: &'a Panels,
    /// Which panels of them.
    pub(super) panels: Range<usize>,
    /// The activations.
    pub(super) x: &'a QuantRows,
    /// Which of them.
    pub(super) rows: Range<usize>,
    /// The results: row after row, sixteen values for each panel.
    pub(super) out: &'a mut [f32],
    /// Values from one row of results to the next.
    pub(super) out_stride: usize,
    /// Room to work in.
    pub(super) room: &'a mut Values,
}

/// Where everything is that the inner loop reads: in registers, not behind a reference that a store might
/// change.
#[derive(Clone, Copy)]
struct Places<const N: usize> {
    codes: [*const u8; N],
    scales: [*const u8; N],
    supers: [*const u8; N],
}

/// Computes the products.
pub(super) fn product(isa: Isa, job: &mut Product<'_>) {
    check(job);
    match Amx::of(isa) {
        Some(amx) if job.rows.len().is_multiple_of(TILE_ROWS) => amx::bytes::product(amx, job),
        _ => {
            // Sums of one panel lie together: where the distance of two rows is no constant, the compiler makes
            // vectors across rows of the portable code, with three times as many instructions.
            job.room.resize(job.panels.len() * job.rows.len() * PANEL);
            vectors(isa, job);
            for (panel, sums) in job.room.chunks_exact(job.rows.len() * PANEL).enumerate() {
                for (row, sums) in sums.chunks_exact(PANEL).enumerate() {
                    job.out[row * job.out_stride + panel * PANEL..][..PANEL].copy_from_slice(sums);
                }
            }
        }
    }
}

dispatched!(
    /// The same in vectors, `[panel][row][16]`, in the room that the job has.
    fn vectors(job: &mut Product<'_>) = run::<Portable>, run::<Avx2>, run::<Avx512>
);

fn check(job: &Product<'_>) {
    let (blocks, rows) = (job.x.blocks(), job.x.rows());
    assert_eq!(blocks * BLOCK, job.weights.cols(), "panels: inputs");
    assert!(job.rows.end <= rows, "panels: rows");
    assert!(job.out_stride >= job.panels.len() * PANEL, "panels: results");
    assert!(job.out.len() >= job.rows.len() * job.out_stride, "panels: results");
    assert_eq!(job.x.codes().len(), rows * blocks * BLOCK, "panels: activations");
    assert_eq!((job.x.scales.len(), job.x.offsets.len()), (rows * blocks, rows * blocks));
}

/// One block of one row of activations.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) codes: *const i8,
    pub(super) scale: *const f32,
    pub(super) offsets: *const Offsets,
}

/// Vectors of some columns of a panel: four bytes, an integer or a float for each.
///
/// Invariant: implementations with intrinsics are only used by bodies that `dispatched!` compiles for their
/// instruction set. Pointers must be readable for as much as is loaded.
pub(super) trait Simd: Copy {
    /// Columns: 16, or 8 for half a panel.
    const COLUMNS: usize;
    /// Whether there are registers for the codes of two panels: each byte of the activations is then read once
    /// for both.
    const PAIRS: bool;
    type Bytes: Copy;
    type Ints: Copy;
    type Floats: Copy;

    /// Asks for the cache line at an address that need not exist.
    fn prefetch(at: *const u8);
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// The low four bits of each byte.
    unsafe fn low(bytes: Self::Bytes) -> Self::Bytes;
    /// The high four bits of each byte.
    unsafe fn high(bytes: Self::Bytes) -> Self::Bytes;
    /// `WIDTH` bits of `plane` from bit `AT` on, as bits 4 and above of `bytes`.
    unsafe fn join<const AT: u32, const WIDTH: u32>(bytes: Self::Bytes, plane: Self::Bytes) -> Self::Bytes;
    /// For each of `P` panels: `offset` plus, for each column, the products of its bytes of `N` groups from
    /// `first` on with the signed bytes at `x`. `BITS`: of the codes, which are unsigned. `offset` takes account
    /// of what was added to them.
    unsafe fn dot<const BITS: u32, const N: usize, const P: usize>(
        offset: *const i32,
        codes: &[[Self::Bytes; GROUPS]; P],
        first: usize,
        x: *const i8,
    ) -> [Self::Ints; P];
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "tiles store what is loaded so"))]
    unsafe fn ints(from: *const i32) -> Self::Ints;
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn splat(from: *const f32) -> Self::Floats;
    unsafe fn floats(from: *const f32) -> Self::Floats;
    unsafe fn halves(from: *const u8) -> Self::Floats;
    unsafe fn unsigned_bytes(from: *const u8) -> Self::Floats;
    unsafe fn signed_bytes(from: *const u8) -> Self::Floats;
    unsafe fn store(floats: Self::Floats, to: *mut f32);
    unsafe fn product(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `sum + a * b`: rounded once where there are fused instructions, twice in the portable code.
    unsafe fn add_product(sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats;
}

#[derive(Clone, Copy)]
struct Portable;

impl Simd for Portable {
    const COLUMNS: usize = 16;
    const PAIRS: bool = false;
    type Bytes = [u8; 64];
    type Ints = [i32; 16];
    type Floats = [f32; 16];

    #[inline(always)]
    fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        // SAFETY: 64 bytes can be read there, by the invariant of `Simd`; so in all loads here.
        unsafe { from.cast::<[u8; 64]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn low(mut bytes: [u8; 64]) -> [u8; 64] {
        for byte in 0..64 {
            bytes[byte] &= 15;
        }
        bytes
    }

    #[inline(always)]
    unsafe fn high(mut bytes: [u8; 64]) -> [u8; 64] {
        for byte in 0..64 {
            bytes[byte] >>= 4;
        }
        bytes
    }

    #[inline(always)]
    unsafe fn join<const AT: u32, const WIDTH: u32>(mut bytes: [u8; 64], plane: [u8; 64]) -> [u8; 64] {
        for byte in 0..64 {
            bytes[byte] |= (plane[byte] >> AT & ((1 << WIDTH) - 1)) << 4;
        }
        bytes
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const N: usize, const P: usize>(
        offset: *const i32,
        codes: &[[[u8; 64]; GROUPS]; P],
        first: usize,
        x: *const i8,
    ) -> [[i32; 16]; P] {
        // SAFETY: an offset and 4 N bytes can be read there.
        let mut sums = [[unsafe { offset.read() }; 16]; P];
        for panel in 0..P {
            for group in 0..N {
                // SAFETY: as above.
                let x = unsafe { x.add(4 * group).cast::<[i8; 4]>().read_unaligned() };
                let codes = &codes[panel][first + group];
                for column in 0..16 {
                    for byte in 0..4 {
                        sums[panel][column] += i32::from(codes[column * 4 + byte]) * i32::from(x[byte]);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn ints(from: *const i32) -> [i32; 16] {
        // SAFETY: 16 values can be read there.
        unsafe { from.cast::<[i32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: [i32; 16]) -> [f32; 16] {
        let mut floats = [0.0; 16];
        for column in 0..16 {
            floats[column] = ints[column] as f32;
        }
        floats
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> [f32; 16] {
        // SAFETY: a value can be read there.
        [unsafe { from.read() }; 16]
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [f32; 16] {
        // SAFETY: 16 values can be read there.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 values of 2 bytes can be read there.
        let bytes = unsafe { from.cast::<[[u8; 2]; 16]>().read_unaligned() };
        let mut floats = [0.0; 16];
        for column in 0..16 {
            floats[column] = half::f16::from_le_bytes(bytes[column]).to_f32();
        }
        floats
    }

    #[inline(always)]
    unsafe fn unsigned_bytes(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 bytes can be read there.
        let bytes = unsafe { from.cast::<[u8; 16]>().read_unaligned() };
        let mut floats = [0.0; 16];
        for column in 0..16 {
            floats[column] = f32::from(bytes[column]);
        }
        floats
    }

    #[inline(always)]
    unsafe fn signed_bytes(from: *const u8) -> [f32; 16] {
        // SAFETY: 16 bytes can be read there.
        let bytes = unsafe { from.cast::<[i8; 16]>().read_unaligned() };
        let mut floats = [0.0; 16];
        for column in 0..16 {
            floats[column] = f32::from(bytes[column]);
        }
        floats
    }

    #[inline(always)]
    unsafe fn store(floats: [f32; 16], to: *mut f32) {
        // SAFETY: 16 values can be written there.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn product(mut a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        for column in 0..16 {
            a[column] *= b[column];
        }
        a
    }

    #[inline(always)]
    unsafe fn add_product(mut sum: [f32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        for column in 0..16 {
            sum[column] += a[column] * b[column];
        }
        sum
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{GROUPS, Simd};

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    /// Groups whose products with one row can be summed in 16 bits: `2 * 127 * (2^BITS - 1)` each.
    const fn groups_in_16_bits(bits: u32) -> usize {
        match bits {
            4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        }
    }

    impl Simd for Avx2 {
        const COLUMNS: usize = 8;
        const PAIRS: bool = false;
        type Bytes = __m256i;
        type Ints = __m256i;
        type Floats = __m256;

        #[inline(always)]
        fn prefetch(at: *const u8) {
            // SAFETY: a prefetch reads nothing and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }

        #[inline(always)]
        unsafe fn bytes(from: *const u8) -> __m256i {
            // SAFETY: 32 bytes can be read there, and there is AVX2, by the invariant of `Simd`; so in all
            // methods here.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn low(bytes: __m256i) -> __m256i {
            // SAFETY: AVX2.
            unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
        }

        #[inline(always)]
        unsafe fn high(bytes: __m256i) -> __m256i {
            // SAFETY: AVX2.
            unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)) }
        }

        #[inline(always)]
        unsafe fn join<const AT: u32, const WIDTH: u32>(bytes: __m256i, plane: __m256i) -> __m256i {
            // SAFETY: AVX2.
            unsafe {
                let mask = _mm256_set1_epi8((((1 << WIDTH) - 1) << 4) as i8);
                let moved = if AT <= 4 {
                    _mm256_sll_epi16(plane, _mm_cvtsi32_si128(4 - AT as i32))
                } else {
                    _mm256_srl_epi16(plane, _mm_cvtsi32_si128(AT as i32 - 4))
                };
                _mm256_or_si256(bytes, _mm256_and_si256(moved, mask))
            }
        }

        #[inline(always)]
        unsafe fn dot<const BITS: u32, const N: usize, const P: usize>(
            offset: *const i32,
            codes: &[[__m256i; GROUPS]; P],
            first: usize,
            x: *const i8,
        ) -> [__m256i; P] {
            // SAFETY: an offset and 4 N bytes can be read there; AVX2.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                let x_of = |group: usize| _mm256_set1_epi32(x.add(4 * group).cast::<i32>().read_unaligned());
                let mut sums = [_mm256_set1_epi32(offset.read()); P];
                for panel in 0..P {
                    let codes = &codes[panel];
                    if BITS == 8 {
                        // The codes with their sign: bytes as they are would overflow 16 bits in pairs. What
                        // was added to them is taken off, so is the offset.
                        sums[panel] = _mm256_setzero_si256();
                        let mut group = 0;
                        while group < N {
                            let w = _mm256_xor_si256(codes[first + group], _mm256_set1_epi8(-128));
                            let pairs =
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x_of(group), w));
                            sums[panel] = _mm256_add_epi32(sums[panel], _mm256_madd_epi16(pairs, ones));
                            group += 1;
                        }
                        continue;
                    }
                    let run = groups_in_16_bits(BITS);
                    let mut group = 0;
                    while group < N {
                        let mut pairs = _mm256_maddubs_epi16(codes[first + group], x_of(group));
                        let mut next = group + 1;
                        while next < N && next < group + run {
                            let more = _mm256_maddubs_epi16(codes[first + next], x_of(next));
                            pairs = _mm256_add_epi16(pairs, more);
                            next += 1;
                        }
                        sums[panel] = _mm256_add_epi32(sums[panel], _mm256_madd_epi16(pairs, ones));
                        group = next;
                    }
                }
                sums
            }
        }

        #[inline(always)]
        unsafe fn ints(from: *const i32) -> __m256i {
            // SAFETY: 8 values can be read there; AVX2.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn to_floats(ints: __m256i) -> __m256 {
            // SAFETY: AVX2.
            unsafe { _mm256_cvtepi32_ps(ints) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> __m256 {
            // SAFETY: a value can be read there; AVX2.
            unsafe { _mm256_set1_ps(from.read()) }
        }

        #[inline(always)]
        unsafe fn floats(from: *const f32) -> __m256 {
            // SAFETY: 8 values can be read there; AVX2.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn halves(from: *const u8) -> __m256 {
            // SAFETY: 8 values of 2 bytes can be read there; F16C.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn unsigned_bytes(from: *const u8) -> __m256 {
            // SAFETY: 8 bytes can be read there; AVX2.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn signed_bytes(from: *const u8) -> __m256 {
            // SAFETY: 8 bytes can be read there; AVX2.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn store(floats: __m256, to: *mut f32) {
            // SAFETY: 8 values can be written there; AVX2.
            unsafe { _mm256_storeu_ps(to, floats) }
        }

        #[inline(always)]
        unsafe fn product(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX2.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn add_product(sum: __m256, a: __m256, b: __m256) -> __m256 {
            // SAFETY: FMA.
            unsafe { _mm256_fmadd_ps(a, b, sum) }
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::backend::cpu) struct Avx512;

    impl Simd for Avx512 {
        const COLUMNS: usize = 16;
        const PAIRS: bool = true;
        type Bytes = __m512i;
        type Ints = __m512i;
        type Floats = __m512;

        #[inline(always)]
        fn prefetch(at: *const u8) {
            // SAFETY: a prefetch reads nothing and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }

        #[inline(always)]
        unsafe fn bytes(from: *const u8) -> __m512i {
            // SAFETY: 64 bytes can be read there, and there is AVX-512, by the invariant of `Simd`; so in all
            // methods here.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn low(bytes: __m512i) -> __m512i {
            // SAFETY: AVX-512F.
            unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
        }

        #[inline(always)]
        unsafe fn high(bytes: __m512i) -> __m512i {
            // SAFETY: AVX-512BW.
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
        }

        #[inline(always)]
        unsafe fn join<const AT: u32, const WIDTH: u32>(bytes: __m512i, plane: __m512i) -> __m512i {
            // SAFETY: AVX-512BW.
            unsafe {
                let mask = _mm512_set1_epi8((((1 << WIDTH) - 1) << 4) as i8);
                let moved = if AT <= 4 {
                    _mm512_sll_epi16(plane, _mm_cvtsi32_si128(4 - AT as i32))
                } else {
                    _mm512_srl_epi16(plane, _mm_cvtsi32_si128(AT as i32 - 4))
                };
                // bytes | (moved & mask)
                _mm512_ternarylogic_epi32::<0xf8>(bytes, moved, mask)
            }
        }

        #[inline(always)]
        unsafe fn dot<const BITS: u32, const N: usize, const P: usize>(
            offset: *const i32,
            codes: &[[__m512i; GROUPS]; P],
            first: usize,
            x: *const i8,
        ) -> [__m512i; P] {
            // SAFETY: an offset and 4 N bytes can be read there; AVX-512 VNNI.
            unsafe {
                // Two chains a panel: one of eight instructions would wait for itself, and fill the scheduler
                // with what waits. Each group of activations is broadcast once for all panels, which as an
                // operand from memory would halve the rate of the products.
                let mut even = [_mm512_set1_epi32(offset.read()); P];
                let mut odd = [_mm512_setzero_si512(); P];
                let mut group = 0;
                while group < N {
                    let x_of =
                        |group: usize| _mm512_set1_epi32(x.add(4 * group).cast::<i32>().read_unaligned());
                    let (first_x, second_x) = (x_of(group), x_of(group + 1));
                    for panel in 0..P {
                        let codes = &codes[panel];
                        even[panel] = _mm512_dpbusd_epi32(even[panel], codes[first + group], first_x);
                        odd[panel] = _mm512_dpbusd_epi32(odd[panel], codes[first + group + 1], second_x);
                    }
                    group += 2;
                }
                for panel in 0..P {
                    even[panel] = _mm512_add_epi32(even[panel], odd[panel]);
                }
                even
            }
        }

        #[inline(always)]
        unsafe fn ints(from: *const i32) -> __m512i {
            // SAFETY: 16 values can be read there; AVX-512F.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn to_floats(ints: __m512i) -> __m512 {
            // SAFETY: AVX-512F.
            unsafe { _mm512_cvtepi32_ps(ints) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> __m512 {
            // SAFETY: a value can be read there; AVX-512F.
            unsafe { _mm512_set1_ps(from.read()) }
        }

        #[inline(always)]
        unsafe fn floats(from: *const f32) -> __m512 {
            // SAFETY: 16 values can be read there; AVX-512F.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn halves(from: *const u8) -> __m512 {
            // SAFETY: 16 values of 2 bytes can be read there; AVX-512F.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn unsigned_bytes(from: *const u8) -> __m512 {
            // SAFETY: 16 bytes can be read there; AVX-512F.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn signed_bytes(from: *const u8) -> __m512 {
            // SAFETY: 16 bytes can be read there; AVX-512F.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn store(floats: __m512, to: *mut f32) {
            // SAFETY: 16 values can be written there; AVX-512F.
            unsafe { _mm512_storeu_ps(to, floats) }
        }

        #[inline(always)]
        unsafe fn product(a: __m512, b: __m512) -> __m512 {
            // SAFETY: AVX-512F.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn add_product(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: AVX-512F.
            unsafe { _mm512_fmadd_ps(a, b, sum) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx512;

/// How the codes of a block become bytes.
pub(super) trait Codes {
    /// Of a block of a panel.
    const BYTES: usize;

    /// The eight groups of some columns: `from` points at the first group's bytes of them.
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::Bytes; GROUPS];
}

pub(super) struct Bits8;
pub(super) struct Bits4;
pub(super) struct Bits5;
pub(super) struct Bits6;

impl Codes for Bits8 {
    const BYTES: usize = code_bytes(BlockFormat::Q8_0);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::Bytes; GROUPS] {
        // SAFETY: the caller's: a block of codes can be read there.
        unsafe {
            let mut codes = [S::bytes(from); GROUPS];
            for group in 1..GROUPS {
                codes[group] = S::bytes(from.add(group * GROUP_BYTES));
            }
            codes
        }
    }
}

impl Codes for Bits4 {
    const BYTES: usize = code_bytes(BlockFormat::Q4K);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::Bytes; GROUPS] {
        // SAFETY: the caller's: a block of codes can be read there.
        unsafe {
            let mut codes = [S::bytes(from); GROUPS];
            for pair in 0..4 {
                let both = S::bytes(from.add(pair * GROUP_BYTES));
                codes[pair] = S::low(both);
                codes[pair + 4] = S::high(both);
            }
            codes
        }
    }
}

impl Codes for Bits5 {
    const BYTES: usize = code_bytes(BlockFormat::Q5K);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::Bytes; GROUPS] {
        // SAFETY: the caller's: a block of codes can be read there, the plane behind the nibbles.
        unsafe {
            let low = Bits4::unpack::<S>(from);
            let plane = S::bytes(from.add(4 * GROUP_BYTES));
            [
                S::join::<0, 1>(low[0], plane),
                S::join::<1, 1>(low[1], plane),
                S::join::<2, 1>(low[2], plane),
                S::join::<3, 1>(low[3], plane),
                S::join::<4, 1>(low[4], plane),
                S::join::<5, 1>(low[5], plane),
                S::join::<6, 1>(low[6], plane),
                S::join::<7, 1>(low[7], plane),
            ]
        }
    }
}

impl Codes for Bits6 {
    const BYTES: usize = code_bytes(BlockFormat::Q6K);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::Bytes; GROUPS] {
        // SAFETY: the caller's: a block of codes can be read there, two planes behind the nibbles.
        unsafe {
            let low = Bits4::unpack::<S>(from);
            let first = S::bytes(from.add(4 * GROUP_BYTES));
            let second = S::bytes(from.add(5 * GROUP_BYTES));
            [
                S::join::<0, 2>(low[0], first),
                S::join::<2, 2>(low[1], first),
                S::join::<4, 2>(low[2], first),
                S::join::<6, 2>(low[3], first),
                S::join::<0, 2>(low[4], second),
                S::join::<2, 2>(low[5], second),
                S::join::<4, 2>(low[6], second),
                S::join::<6, 2>(low[7], second),
            ]
        }
    }
}

/// How the integer products of a block become floats.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some of it is for tiles"))]
pub(super) trait Scaling {
    /// Bytes of the scales of the scales of 256 inputs.
    const SUPER_BYTES: usize;
    /// What was added to the codes, which are unsigned.
    const ZERO: i8;
    /// Runs of inputs of a block that have a scale of their own.
    const PARTS: usize;
    /// The scales of some columns in one block.
    type Scales<S: Simd>: Copy;
    /// The integer products of each part.
    type Products<S: Simd>: Copy;

    /// The scales of one block and what they are multiples of, both from the wanted columns on.
    unsafe fn scales<S: Simd>(scales: *const u8, supers: *const u8, column: usize) -> Self::Scales<S>;

    /// Adds to each of `P` panels' sums, `stride` values apart, the scaled product of a block with a row's
    /// activations.
    unsafe fn add<S: Simd, const P: usize>(
        row: Row,
        codes: &[[S::Bytes; GROUPS]; P],
        scales: &[Self::Scales<S>; P],
        sums: *mut f32,
        stride: usize,
    );

    /// The integer products of a block of one panel, from where they were stored: 16 integers for each part, `stride` integers apart.
    unsafe fn load<S: Simd>(products: *const i32, stride: usize) -> Self::Products<S>;

    /// The sums of a panel with them added, scaled.
    unsafe fn sum<S: Simd>(
        row: Row,
        products: Self::Products<S>,
        scales: Self::Scales<S>,
        sums: S::Floats,
    ) -> S::Floats;
}

/// A half-precision scale for 32 inputs, codes of `BITS` bits around the middle of their range.
pub(super) struct OneScale<const BITS: u32>;
/// Scale and minimum for 32 inputs, each with a scale for 256.
pub(super) struct ScaleAndMin<const BITS: u32>;
/// Two scales for 16 inputs each, with a scale for 256; codes around 32.
pub(super) struct TwoScales;

impl<const BITS: u32> Scaling for OneScale<BITS> {
    const SUPER_BYTES: usize = 0;
    const ZERO: i8 = if BITS == 8 { -128 } else { 8 };
    const PARTS: usize = 1;
    type Scales<S: Simd> = S::Floats;
    type Products<S: Simd> = S::Ints;

    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, _: *const u8, column: usize) -> S::Floats {
        // SAFETY: the caller's: 16 halves are there.
        unsafe { S::halves(scales.add(2 * column)) }
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const P: usize>(
        row: Row,
        codes: &[[S::Bytes; GROUPS]; P],
        scales: &[S::Floats; P],
        sums: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's: a block of a row is there, and sums of each panel.
        unsafe {
            let offsets = row.offsets;
            let offset = if BITS == 8 { &raw const (*offsets).of_128 } else { &raw const (*offsets).of_8 };
            let ints = S::dot::<BITS, GROUPS, P>(offset, codes, 0, row.codes);
            for panel in 0..P {
                let sum = sums.add(panel * stride);
                S::store(Self::sum::<S>(row, ints[panel], scales[panel], S::floats(sum)), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(products: *const i32, _: usize) -> S::Ints {
        // SAFETY: the caller's.
        unsafe { S::ints(products) }
    }

    #[inline(always)]
    unsafe fn sum<S: Simd>(row: Row, products: S::Ints, scales: S::Floats, sums: S::Floats) -> S::Floats {
        // SAFETY: the caller's: a block of a row is there.
        unsafe {
            let scaled = S::product(S::to_floats(products), S::splat(row.scale));
            S::add_product(sums, scaled, scales)
        }
    }
}

impl<const BITS: u32> Scaling for ScaleAndMin<BITS> {
    const SUPER_BYTES: usize = super_bytes(BlockFormat::Q4K);
    const ZERO: i8 = 0;
    const PARTS: usize = 1;
    type Scales<S: Simd> = (S::Floats, S::Floats);
    type Products<S: Simd> = S::Ints;

    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, supers: *const u8, column: usize) -> (S::Floats, S::Floats) {
        // SAFETY: the caller's: 16 bytes and 16 bytes are there, and 16 halves and 16 halves.
        unsafe {
            let (scales, supers) = (scales.add(column), supers.add(2 * column));
            (
                S::product(S::halves(supers), S::unsigned_bytes(scales)),
                S::product(S::halves(supers.add(2 * PANEL)), S::unsigned_bytes(scales.add(PANEL))),
            )
        }
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const P: usize>(
        row: Row,
        codes: &[[S::Bytes; GROUPS]; P],
        scales: &[(S::Floats, S::Floats); P],
        sums: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's: a block of a row is there, and sums of each panel.
        unsafe {
            let ints = S::dot::<BITS, GROUPS, P>(&raw const (*row.offsets).none, codes, 0, row.codes);
            for panel in 0..P {
                let sum = sums.add(panel * stride);
                S::store(Self::sum::<S>(row, ints[panel], scales[panel], S::floats(sum)), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(products: *const i32, _: usize) -> S::Ints {
        // SAFETY: the caller's.
        unsafe { S::ints(products) }
    }

    #[inline(always)]
    unsafe fn sum<S: Simd>(
        row: Row,
        products: S::Ints,
        scales: (S::Floats, S::Floats),
        sums: S::Floats,
    ) -> S::Floats {
        // SAFETY: the caller's: a block of a row is there.
        unsafe {
            let (scales, mins) = scales;
            let scaled = S::product(S::to_floats(products), S::splat(row.scale));
            let so_far = S::add_product(sums, scaled, scales);
            S::add_product(so_far, S::splat(&raw const (*row.offsets).of_min), mins)
        }
    }
}

impl Scaling for TwoScales {
    const SUPER_BYTES: usize = super_bytes(BlockFormat::Q6K);
    const ZERO: i8 = 32;
    const PARTS: usize = 2;
    type Scales<S: Simd> = (S::Floats, S::Floats);
    type Products<S: Simd> = (S::Ints, S::Ints);

    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, supers: *const u8, column: usize) -> (S::Floats, S::Floats) {
        // SAFETY: the caller's: twice 16 bytes are there, and 16 halves.
        unsafe {
            let (scales, d) = (scales.add(column), S::halves(supers.add(2 * column)));
            (S::product(d, S::signed_bytes(scales)), S::product(d, S::signed_bytes(scales.add(PANEL))))
        }
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const P: usize>(
        row: Row,
        codes: &[[S::Bytes; GROUPS]; P],
        scales: &[(S::Floats, S::Floats); P],
        sums: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's: a block of a row is there, and sums of each panel.
        unsafe {
            let offsets = (&raw const (*row.offsets).of_32).cast::<i32>();
            let x = row.codes;
            let low = S::dot::<6, { GROUPS / 2 }, P>(offsets, codes, 0, x);
            let high = S::dot::<6, { GROUPS / 2 }, P>(offsets.add(1), codes, GROUPS / 2, x.add(BLOCK / 2));
            for panel in 0..P {
                let (sum, both) = (sums.add(panel * stride), (low[panel], high[panel]));
                S::store(Self::sum::<S>(row, both, scales[panel], S::floats(sum)), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(products: *const i32, stride: usize) -> (S::Ints, S::Ints) {
        // SAFETY: the caller's.
        unsafe { (S::ints(products), S::ints(products.add(stride))) }
    }

    #[inline(always)]
    unsafe fn sum<S: Simd>(
        row: Row,
        products: (S::Ints, S::Ints),
        scales: (S::Floats, S::Floats),
        sums: S::Floats,
    ) -> S::Floats {
        // SAFETY: the caller's: a block of a row is there.
        unsafe {
            let scaled = S::product(S::to_floats(products.0), scales.0);
            let scaled = S::add_product(scaled, S::to_floats(products.1), scales.1);
            S::add_product(sums, scaled, S::splat(row.scale))
        }
    }
}

#[inline(always)]
fn run<S: Simd>(job: &mut Product<'_>) {
    check(job);
    // SAFETY: a panel has all its blocks, as its own constructor ensures; all rows of the activations and all
    // results lie inside their slices, as was just asserted.
    unsafe {
        match job.weights.format() {
            BlockFormat::Q8_0 => panels_of::<S, Bits8, OneScale<8>>(job),
            BlockFormat::Q4_0 => panels_of::<S, Bits4, OneScale<4>>(job),
            BlockFormat::Q4K => panels_of::<S, Bits4, ScaleAndMin<4>>(job),
            BlockFormat::Q5K => panels_of::<S, Bits5, ScaleAndMin<5>>(job),
            BlockFormat::Q6K => panels_of::<S, Bits6, TwoScales>(job),
        }
    }
}

#[inline(always)]
unsafe fn panels_of<S: Simd, C: Codes, F: Scaling>(job: &mut Product<'_>) {
    let mut panel = job.panels.start;
    while panel < job.panels.end {
        // SAFETY: the caller's; panels from `panel` on exist.
        unsafe {
            if job.rows.len() <= STREAM_ROWS && panel + STREAMS <= job.panels.end {
                if S::PAIRS {
                    blocks_of::<S, C, F, 2, { STREAMS / 2 }>(job, panel);
                } else {
                    blocks_of::<S, C, F, 1, STREAMS>(job, panel);
                }
                panel += STREAMS;
            } else if S::PAIRS && panel + 2 <= job.panels.end {
                blocks_of::<S, C, F, 2, 1>(job, panel);
                panel += 2;
            } else {
                blocks_of::<S, C, F, 1, 1>(job, panel);
                panel += 1;
            }
        }
    }
}

/// Block after block of `G` groups of `N` panels: the codes of a group's block stay in registers while all rows
/// go by; the sums of a row wait in the results.
#[inline(always)]
unsafe fn blocks_of<S: Simd, C: Codes, F: Scaling, const N: usize, const G: usize>(
    job: &mut Product<'_>,
    first: usize,
) {
    let (count, rows, blocks) = (job.rows.len(), job.x.rows(), job.x.blocks());
    let out = &mut job.room[(first - job.panels.start) * count * PANEL..][..G * N * count * PANEL];
    out.fill(0.0);
    let out = out.as_mut_ptr();
    let code_bytes = const { C::BYTES };
    let (blocks_ahead, panel_bytes) = (const { AHEAD / C::BYTES }, job.weights.panel_bytes());
    // SAFETY: the caller's; each pointer stays inside the part of its panel or of the activations.
    unsafe {
        let x_codes = job.x.codes().as_ptr().add(job.rows.start * BLOCK);
        let x_scales = job.x.scales.as_ptr().add(job.rows.start);
        let x_offsets = job.x.offsets.as_ptr().add(job.rows.start);
        // The first group's; the others' lie the same way, so many bytes on.
        let mut places = Places {
            codes: [std::ptr::null(); N],
            scales: [std::ptr::null(); N],
            supers: [std::ptr::null(); N],
        };
        for n in 0..N {
            let panel = job.weights.panel(first + n);
            places.codes[n] = panel.codes.as_ptr();
            places.scales[n] = panel.scales.as_ptr();
            places.supers[n] = panel.supers.as_ptr();
        }
        for block in 0..blocks {
            // With few rows the codes come straight from memory, and the hardware's own prefetching stops at each
            // page. Behind the end of these panels the next ones are wanted.
            let ahead = if block + blocks_ahead < blocks {
                (block + blocks_ahead) * code_bytes
            } else {
                (block + blocks_ahead - blocks) * code_bytes + G * N * panel_bytes
            };
            for group in 0..G {
                let group_at = group * N * panel_bytes;
                for n in 0..N {
                    let ahead = places.codes[n].wrapping_add(group_at + ahead);
                    for line in 0..code_bytes / 64 {
                        S::prefetch(ahead.wrapping_add(64 * line));
                    }
                }
                let codes_at = group_at + block * code_bytes;
                let scales_at = group_at + block * SCALE_BYTES;
                let supers_at = group_at + block / 8 * F::SUPER_BYTES;
                let mut column = 0;
                while column < PANEL {
                    let codes_of = |n: usize| C::unpack::<S>(places.codes[n].add(codes_at + 4 * column));
                    let scales_of = |n: usize| {
                        F::scales::<S>(
                            places.scales[n].add(scales_at),
                            places.supers[n].add(supers_at),
                            column,
                        )
                    };
                    let (mut codes, mut scales) = ([codes_of(0); N], [scales_of(0); N]);
                    for n in 1..N {
                        codes[n] = codes_of(n);
                        scales[n] = scales_of(n);
                    }
                    let mut row = Row {
                        codes: x_codes.add(block * rows * BLOCK),
                        scale: x_scales.add(block * rows),
                        offsets: x_offsets.add(block * rows),
                    };
                    let mut sums = out.add(group * N * count * PANEL + column);
                    for _ in 0..count {
                        F::add::<S, N>(row, &codes, &scales, sums, count * PANEL);
                        row = Row {
                            codes: row.codes.add(BLOCK),
                            scale: row.scale.add(1),
                            offsets: row.offsets.add(1),
                        };
                        sums = sums.add(PANEL);
                    }
                    column += S::COLUMNS;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::panels::tests::{blocks, noise, pack};
    use super::super::team::Team;
    use super::*;

    fn products(isa: Isa, panels: &Panels, x: &QuantRows, rows: Range<usize>) -> Vec<f32> {
        // A guard behind the results.
        let mut out = vec![7.25; rows.len() * PANEL + 16];
        let count = rows.len() * PANEL;
        let (weights, panels, out_stride) = (panels, 0..1, PANEL);
        let room = &mut Values::default();
        product(isa, &mut Product { weights, panels, x, rows, out: &mut out, out_stride, room });
        assert!(out[count..].iter().all(|&v| v == 7.25), "wrote outside its results");
        out.truncate(count);
        out
    }

    fn quantized(isa: Isa, x: &[f32], rows: usize, cols: usize) -> QuantRows {
        let mut quantized = QuantRows::default();
        quantized.resize(rows, cols);
        quantized.quantize(isa, &Team::new(1).unwrap(), x);
        quantized
    }

    /// Blocks of random bytes: codes and scales at both ends of their ranges, finite halves.
    fn wild(format: BlockFormat, rows: usize, cols: usize) -> Vec<u8> {
        let mut bytes = blocks(format, rows, cols, 11);
        let mut state = 5u32;
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            let kept: Vec<u8> = match format {
                BlockFormat::Q6K => block[208..210].to_vec(),
                BlockFormat::Q4K | BlockFormat::Q5K => block[..4].to_vec(),
                _ => block[..2].to_vec(),
            };
            for byte in &mut *block {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
                if state & 0x300 == 0 {
                    *byte = if state & 0x400 == 0 { 0x80 } else { 0xff };
                }
            }
            match format {
                BlockFormat::Q6K => block[208..210].copy_from_slice(&kept),
                _ => block[..kept.len()].copy_from_slice(&kept),
            }
        }
        bytes
    }

    #[test]
    fn products_equal_those_of_the_decoded_values() {
        for format in BlockFormat::ALL {
            for cols in [format.block_len(), 3 * format.block_len(), 1024] {
                for stored in [blocks(format, 16, cols, 2), wild(format, 16, cols)] {
                    let panels = pack(format, 16, cols, &stored);
                    let mut weights = vec![0.0; 16 * cols];
                    format.dequantize(&stored, &mut weights);
                    let rows = 5;
                    // The largest magnitudes too.
                    let mut x = noise(rows * cols, 3);
                    x[..32].fill(1.0);
                    x[cols..cols + 32].fill(-1.0);
                    for isa in Isa::available() {
                        let quantized = quantized(isa, &x, rows, cols);
                        let got = products(isa, &panels, &quantized, 0..rows);
                        for row in 0..rows {
                            for column in 0..16 {
                                let (mut sum, mut size) = (0.0f64, 0.0f64);
                                for k in 0..cols {
                                    let at = k / 32 * rows + row;
                                    let x = f64::from(quantized.codes()[at * 32 + k % 32])
                                        * f64::from(quantized.scales[at]);
                                    let term = x * f64::from(weights[column * cols + k]);
                                    sum += term;
                                    size += term.abs();
                                }
                                let got = f64::from(got[row * 16 + column]);
                                assert!(
                                    (got - sum).abs() <= 1e-5 * size + 1e-6,
                                    "{format}, {cols} inputs [{row}, {column}] at {}: {got}, expected {sum}",
                                    isa.name()
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others_and_with_avx2_and_avx512() {
        for format in BlockFormat::ALL {
            let cols = 2 * format.block_len();
            let panels = pack(format, 16, cols, &wild(format, 16, cols));
            let x = noise(33 * cols, 4);
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let all = quantized(isa, &x, 33, cols);
                let together = products(isa, &panels, &all, 0..33);
                for row in 0..33 {
                    let alone = quantized(isa, &x[row * cols..][..cols], 1, cols);
                    let expected = &together[row * 16..][..16];
                    assert_eq!(products(isa, &panels, &alone, 0..1), expected, "{format}, row {row}");
                    assert_eq!(products(isa, &panels, &all, row..row + 1), expected);
                }
                if isa.name() != "portable" {
                    assert_eq!(*fused.get_or_insert_with(|| together.clone()), together, "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn several_panels_are_what_each_is_alone() {
        for format in BlockFormat::ALL {
            let cols = format.block_len();
            let all = pack(format, 16 * 3, cols, &wild(format, 16 * 3, cols));
            let x = noise(2 * cols, 4);
            for isa in Isa::available() {
                let x = quantized(isa, &x, 2, cols);
                let run = |panels: Range<usize>| {
                    // A guard behind each row.
                    let out_stride = panels.len() * PANEL + 3;
                    let mut out = vec![7.25; 2 * out_stride];
                    let (weights, count, room) = (&all, out_stride - 3, &mut Values::default());
                    product(
                        isa,
                        &mut Product { weights, panels, x: &x, rows: 0..2, out: &mut out, out_stride, room },
                    );
                    out.chunks_exact(out_stride).for_each(|row| assert_eq!(row[count..], [7.25; 3]));
                    [out[..count].to_vec(), out[out_stride..][..count].to_vec()]
                };
                let side_by_side = |parts: &[[Vec<f32>; 2]]| {
                    [0, 1].map(|row| parts.iter().flat_map(|part| part[row].clone()).collect::<Vec<f32>>())
                };
                assert_eq!(run(0..3), side_by_side(&[run(0..1), run(1..2), run(2..3)]), "{format}");
                assert_eq!(run(1..3), side_by_side(&[run(1..2), run(2..3)]), "{format}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        for format in BlockFormat::ALL {
            let cols = format.block_len();
            let panels = pack(format, 16, cols, &blocks(format, 16, cols, 6));
            let mut x = noise(3 * cols, 7);
            let clean = x.clone();
            x[cols + 3] = f32::NAN;
            for isa in Isa::available() {
                let got = products(isa, &panels, &quantized(isa, &x, 3, cols), 0..3);
                let expected = products(isa, &panels, &quantized(isa, &clean, 3, cols), 0..3);
                assert!(got[16..32].iter().all(|v| v.is_nan()), "{format}");
                assert_eq!((&got[..16], &got[32..]), (&expected[..16], &expected[32..]));
            }
        }
    }
}

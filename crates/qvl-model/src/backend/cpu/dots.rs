//! Dot products of rows of activations with rows of weights as the checkpoint stores them.
//!
//! Both lie with their inputs side by side, so a row of weights is read in place, whatever its float type,
//! and the vector lanes run along the inputs. For one pair of rows, lane `l` sums the products at
//! `k ≡ l (mod lanes)` in ascending order and the lanes are summed in one fixed tree, for each [`CHUNK`] of
//! the inputs; the chunks' sums are added in ascending order. It is the same however many rows are multiplied
//! at once, whether a row is multiplied whole or chunk by chunk, and whether it was packed before.
//!
//! A few rows of activations are multiplied where everything lies: each weight comes from memory once. Many
//! rows are packed first ([`pack`]), activations and weights alike, and the vector lanes run along the
//! outputs. The sums are the same: what is lane `l` above is a pass over the inputs `k ≡ l (mod lanes)` here,
//! and the passes are added in the same tree. But no lanes have to be added in the end, and a register tile
//! reads one short stream on either side, even if another thread of the core takes half of the caches.

#![expect(
    unsafe_code,
    reason = "vector loads by pointer: the bounds are asserted once for a whole block of rows"
)]

use std::ops::Range;

use super::isa::{Isa, Level, dispatched};

/// Inputs that are summed before the lanes are: with 4 rows of weights and 6 of activations, a tile's
/// operands take 20 KiB, within a first-level cache of 32 KiB. Longer rows are cut at multiples of it.
pub(super) const CHUNK: usize = 512;

/// Rows of weights in a register tile whose lanes run along the inputs.
const TILE_ROWS: usize = 4;

/// Vectors of outputs in a register tile whose lanes run along them.
const TILE_VECTORS: usize = 2;

/// Up to so many rows, weights are converted in registers each time instead of once into the cache.
const FEW_ROWS: usize = 12;

/// Packed rows of activations that are multiplied with [`NEAR_OUTPUTS`] packed rows of weights in turn: a
/// chunk of both takes 200 KiB, within a second-level cache of 256 KiB.
const NEAR_ROWS: usize = 36;

/// See [`NEAR_ROWS`].
const NEAR_OUTPUTS: usize = 64;

/// Multiples of this many rows of activations are whole register tiles at every level.
pub(super) const WHOLE_TILES: usize = 12;

/// The values of some rows of weights.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weights<'a> {
    /// Already unpacked.
    F32(&'a [f32]),
    /// Little-endian bytes of f32.
    F32Bytes(&'a [u8]),
    /// Little-endian bytes of bfloat16.
    Bf16(&'a [u8]),
    /// Little-endian bytes of IEEE half precision.
    F16(&'a [u8]),
}

impl Weights<'_> {
    /// Without the values before `input` of the first row.
    pub(super) fn skip_inputs(&self, input: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[input..]),
            Self::F32Bytes(bytes) => Self::F32Bytes(&bytes[4 * input..]),
            Self::Bf16(bytes) => Self::Bf16(&bytes[2 * input..]),
            Self::F16(bytes) => Self::F16(&bytes[2 * input..]),
        }
    }

    fn values(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F32Bytes(bytes) => bytes.len() / 4,
            Self::Bf16(bytes) | Self::F16(bytes) => bytes.len() / 2,
        }
    }
}

/// `out[m * out_stride + n] = x[m * x_stride..][..k] · w[n * w_stride..][..k]`.
pub(super) struct Dots<'a> {
    /// Activations.
    pub(super) x: &'a [f32],
    /// How many rows of them.
    pub(super) x_rows: usize,
    /// Values from one row to the next.
    pub(super) x_stride: usize,
    /// Weights.
    pub(super) w: Weights<'a>,
    /// How many rows of them.
    pub(super) w_rows: usize,
    /// Values from one row to the next.
    pub(super) w_stride: usize,
    /// Values of a row to multiply.
    pub(super) k: usize,
    /// Results.
    pub(super) out: &'a mut [f32],
    /// Values from one row of results to the next.
    pub(super) out_stride: usize,
}

dispatched!(
    /// Computes the products.
    fn dots(job: &mut Dots<'_>) = run::<Portable>, run::<Avx2>, run::<Avx512>
);

/// Which operand of a product is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The rows that results come from one by one.
    Activations,
    /// The rows of the matrix.
    Weights,
}

/// Some inputs of some rows on their way into the order in which register tiles read them, zeros where there
/// is no row or no input: `[tile][chunk][pass][k / lanes][row of the tile]`, all of one chunk with weights. A
/// tile reads one stream on either side. Each pass ends with some room ([`room_behind`]), or passes would lie
/// whole pages apart and displace each other from the cache.
pub(super) struct Pack<'a> {
    /// The rows, from the first wanted input on.
    pub(super) from: Weights<'a>,
    /// Values from one row to the next.
    pub(super) stride: usize,
    /// How many rows.
    pub(super) rows: usize,
    /// How many inputs.
    pub(super) k: usize,
    /// What they are.
    pub(super) side: Side,
    /// [`packed_len`] values.
    pub(super) out: &'a mut [f32],
}

/// Whether so many rows of activations had better be packed. Without intrinsics they had not: rows of a tile
/// that lie side by side tempt the compiler to put lanes across them, and shuffles cost more than is saved.
pub(super) fn packing_pays(isa: Isa, rows: usize) -> bool {
    rows > FEW_ROWS && isa.level() != Level::Portable
}

/// Values that `rows` rows of `k` inputs take when they are packed.
pub(super) fn packed_len(isa: Isa, side: Side, rows: usize, k: usize) -> usize {
    match isa.level() {
        Level::Portable => len::<Portable>(side, rows, k),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => len::<Avx2>(side, rows, k),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => len::<Avx512>(side, rows, k),
    }
}

/// [`packed_len`] of one level.
#[inline(always)]
fn len<V: Vector>(side: Side, rows: usize, k: usize) -> usize {
    const { assert!(WHOLE_TILES.is_multiple_of(V::PACKED_ROWS) && CHUNK.is_multiple_of(V::LANES)) };
    let height = height::<V>(side);
    let room = k.div_ceil(CHUNK) * V::LANES * room_behind::<V>(side);
    rows.div_ceil(height) * (k.next_multiple_of(V::LANES) * height + room)
}

/// Rows of a tile whose lanes run along the outputs.
#[inline(always)]
fn height<V: Vector>(side: Side) -> usize {
    match side {
        Side::Activations => V::PACKED_ROWS,
        Side::Weights => TILE_VECTORS * V::LANES,
    }
}

/// Values behind those of a pass: a vector of inputs of the whole tile. Activations are packed a vector at a
/// time even where a tile has fewer rows, and the last one reaches into it.
#[inline(always)]
fn room_behind<V: Vector>(side: Side) -> usize {
    match side {
        Side::Activations => V::LANES,
        Side::Weights => TILE_VECTORS * V::LANES,
    }
}

/// Values from one pass over a chunk of `k` inputs to the next.
#[inline(always)]
fn pass_len<V: Vector>(side: Side, k: usize) -> usize {
    k.div_ceil(V::LANES) * height::<V>(side) + room_behind::<V>(side)
}

/// The same as [`Dots`] for packed rows and one chunk of their inputs.
pub(super) struct PackedDots<'a> {
    /// Activations, packed with all their inputs.
    pub(super) x: &'a [f32],
    /// How many rows of them.
    pub(super) x_rows: usize,
    /// Their inputs.
    pub(super) x_cols: usize,
    /// The input that the chunk starts with, a multiple of [`CHUNK`].
    pub(super) start: usize,
    /// The weights of the chunk, packed.
    pub(super) w: &'a [f32],
    /// How many rows of them.
    pub(super) w_rows: usize,
    /// Inputs of the chunk, at most [`CHUNK`].
    pub(super) k: usize,
    /// Results.
    pub(super) out: &'a mut [f32],
    /// Values from one row of results to the next.
    pub(super) out_stride: usize,
}

dispatched!(
    /// Packs rows.
    fn pack(job: &mut Pack<'_>) = run_pack::<Portable>, run_pack::<Avx2>, run_pack::<Avx512>
);
dispatched!(
    /// Computes the products of a chunk, and adds them to those of the chunks before if it is not the first.
    fn packed_dots(job: &mut PackedDots<'_>)
        = run_packed::<Portable, 2, 1>, run_packed::<Avx2, 6, 3>, run_packed::<Avx512, 12, 6>
);
dispatched!(
    /// `w_rows` rows of `k` values as f32, one after the other.
    fn unpack(w: Weights<'_>, w_stride: usize, k: usize, out: &mut [f32])
        = unpack_rows::<Portable>, unpack_rows::<Avx2>, unpack_rows::<Avx512>
);

/// Values of a cache line.
const LINE: usize = 16;

/// How many values ahead of their use a pass asks for its weights, which come from the second-level cache.
const AHEAD: usize = 256;

/// Most lanes of a [`Vector`].
const LANES_MAX: usize = 16;
/// Some lanes of f32.
///
/// Invariant: implementations with intrinsics are only used by bodies that `dispatched!` compiles for their
/// instruction set. Pointers must be readable for as many values as there are lanes.
trait Vector: Copy {
    const LANES: usize;
    /// Rows of activations in a register tile: with 4 rows of weights it fills the registers.
    const ROWS: usize;
    /// Rows of activations in a register tile whose lanes run along the outputs.
    const PACKED_ROWS: usize;
    /// The lanes in the order in which [`sums`](Self::sums) takes them: two that follow each other are added,
    /// then two such sums, and so on.
    const ORDER: [usize; LANES_MAX];
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self + a * b`: rounded once where there are fused instructions, twice in the portable code.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Stores lane `l` of the first [`LANES`](Self::LANES) rows at `to[l]`, for each lane.
    unsafe fn store_lanes(rows: &[Self; LANES_MAX], to: &[*mut f32; LANES_MAX]);
    /// The sum of the lanes of each, in one fixed tree.
    unsafe fn sums(four: [Self; TILE_ROWS]) -> [f32; TILE_ROWS];
}

#[derive(Clone, Copy)]
struct Portable([f32; 8]);

impl Vector for Portable {
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const PACKED_ROWS: usize = 2;
    const ORDER: [usize; LANES_MAX] = [0, 4, 2, 6, 1, 5, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 8 values can be read there, by the invariant of `Vector`.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: 8 values of 2 bytes can be read there, by the invariant of `Vector`.
        let bytes = unsafe { from.cast::<[[u8; 2]; 8]>().read_unaligned() };
        let mut values = [0.0; 8];
        for lane in 0..8 {
            values[lane] = f32::from_bits(u32::from(u16::from_le_bytes(bytes[lane])) << 16);
        }
        Self(values)
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: 8 values of 2 bytes can be read there, by the invariant of `Vector`.
        let bytes = unsafe { from.cast::<[[u8; 2]; 8]>().read_unaligned() };
        let mut values = [0.0; 8];
        for lane in 0..8 {
            values[lane] = half::f16::from_le_bytes(bytes[lane]).to_f32();
        }
        Self(values)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 8 values can be written there, by the invariant of `Vector`.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        let mut sum = self.0;
        for lane in 0..8 {
            sum[lane] += a.0[lane] * b.0[lane];
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        let mut sum = self.0;
        for lane in 0..8 {
            sum[lane] += other.0[lane];
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn store_lanes(rows: &[Self; LANES_MAX], to: &[*mut f32; LANES_MAX]) {
        for lane in 0..8 {
            for row in 0..8 {
                // SAFETY: 8 values can be written for each lane, by the caller's word.
                unsafe { *to[lane].add(row) = rows[row].0[lane] };
            }
        }
    }

    #[inline(always)]
    unsafe fn sums(four: [Self; TILE_ROWS]) -> [f32; TILE_ROWS] {
        let mut sums = [0.0; TILE_ROWS];
        for n in 0..TILE_ROWS {
            let v = four[n].0;
            let half = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
            sums[n] = (half[0] + half[2]) + (half[1] + half[3]);
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES_MAX, TILE_ROWS, Vector};

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256);

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const ROWS: usize = 3;
        const PACKED_ROWS: usize = 6;
        const ORDER: [usize; LANES_MAX] = [0, 2, 1, 3, 4, 6, 5, 7, 0, 0, 0, 0, 0, 0, 0, 0];

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: AVX2, by the invariant of `Vector`; so in all methods here.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX2, by the invariant of `Vector`.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: 8 values can be read there, by the invariant of `Vector`.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            // SAFETY: 8 values of 2 bytes can be read there, by the invariant of `Vector`.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: 8 values of 2 bytes can be read there, by the invariant of `Vector`.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: 8 values can be written there, by the invariant of `Vector`.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: FMA, by the invariant of `Vector`.
            Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: AVX2, by the invariant of `Vector`.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn store_lanes(rows: &[Self; LANES_MAX], to: &[*mut f32; LANES_MAX]) {
            // SAFETY: AVX2, by the invariant of `Vector`; 8 values can be written for each lane, by the
            // caller's word.
            unsafe {
                // Four rows each: lanes `l` and `l + 4` of all four in vector `l`.
                let mut fours = [[_mm256_setzero_ps(); 4]; 2];
                for half in 0..2 {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|row| rows[4 * half + row].0);
                    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    fours[half][0] = _mm256_shuffle_ps::<0x44>(ab, cd);
                    fours[half][1] = _mm256_shuffle_ps::<0xee>(ab, cd);
                    let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    fours[half][2] = _mm256_shuffle_ps::<0x44>(ab, cd);
                    fours[half][3] = _mm256_shuffle_ps::<0xee>(ab, cd);
                }
                for lane in 0..4 {
                    let (low, high) = (fours[0][lane], fours[1][lane]);
                    _mm256_storeu_ps(to[lane], _mm256_permute2f128_ps::<0x20>(low, high));
                    _mm256_storeu_ps(to[lane + 4], _mm256_permute2f128_ps::<0x31>(low, high));
                }
            }
        }

        #[inline(always)]
        unsafe fn sums(four: [Self; TILE_ROWS]) -> [f32; TILE_ROWS] {
            let [a, b, c, d] = four;
            // SAFETY: AVX2, by the invariant of `Vector`; four values are stored in an array of four.
            unsafe {
                let ab = _mm256_add_ps(_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
                let cd = _mm256_add_ps(_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
                let low = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd)));
                let high = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd)));
                let sum = _mm256_add_ps(low, high);
                let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
                let mut sums = [0.0; TILE_ROWS];
                _mm_storeu_ps(sums.as_mut_ptr(), sum);
                sums
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512(__m512);

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const ROWS: usize = 6;
        const PACKED_ROWS: usize = 12;
        const ORDER: [usize; LANES_MAX] = [0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15];

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: AVX-512F, by the invariant of `Vector`; so in all methods here.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX-512F, by the invariant of `Vector`.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: 16 values can be read there, by the invariant of `Vector`.
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            // SAFETY: 16 values of 2 bytes can be read there, by the invariant of `Vector`.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: 16 values of 2 bytes can be read there, by the invariant of `Vector`.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: 16 values can be written there, by the invariant of `Vector`.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: AVX-512F, by the invariant of `Vector`.
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: AVX-512F, by the invariant of `Vector`.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn store_lanes(rows: &[Self; LANES_MAX], to: &[*mut f32; LANES_MAX]) {
            // SAFETY: AVX-512F, by the invariant of `Vector`; 16 values can be written for each lane, by the
            // caller's word.
            unsafe {
                // Four rows each: lanes `l`, `l + 4`, `l + 8` and `l + 12` of all four in vector `l`.
                let mut fours = [[_mm512_setzero_ps(); 4]; 4];
                for quarter in 0..4 {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|row| rows[4 * quarter + row].0);
                    let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                    fours[quarter][0] = _mm512_shuffle_ps::<0x44>(ab, cd);
                    fours[quarter][1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                    let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                    fours[quarter][2] = _mm512_shuffle_ps::<0x44>(ab, cd);
                    fours[quarter][3] = _mm512_shuffle_ps::<0xee>(ab, cd);
                }
                for lane in 0..4 {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|quarter| fours[quarter][lane]);
                    // Of lanes `l` and `l + 4`, then of the other two: a quarter each of `a` and `b`, or `c`
                    // and `d`.
                    let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                    _mm512_storeu_ps(to[lane], _mm512_shuffle_f32x4::<0x88>(ab, cd));
                    _mm512_storeu_ps(to[lane + 4], _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                    let (ab, cd) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                    _mm512_storeu_ps(to[lane + 8], _mm512_shuffle_f32x4::<0x88>(ab, cd));
                    _mm512_storeu_ps(to[lane + 12], _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                }
            }
        }

        #[inline(always)]
        unsafe fn sums(four: [Self; TILE_ROWS]) -> [f32; TILE_ROWS] {
            let [a, b, c, d] = four;
            // SAFETY: AVX-512F, by the invariant of `Vector`; four values are stored in an array of four.
            unsafe {
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                let sum = _mm512_add_ps(low, high);
                let sum = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
                let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
                let mut sums = [0.0; TILE_ROWS];
                _mm_storeu_ps(sums.as_mut_ptr(), sum);
                sums
            }
        }
    }

    /// Asks for the cache line at an address that need not exist.
    #[inline(always)]
    pub(super) fn prefetch(at: *const u8) {
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::{Avx2, Avx512, prefetch};

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_: *const u8) {}

/// How values of weights are read.
trait Element {
    const BYTES: usize;
    /// `V::LANES` values, all readable.
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

struct F32;
struct Bf16;
struct F16;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's. Loads need no alignment.
        unsafe { V::load(from.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_bf16(from) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_f16(from) }
    }
}

#[inline(always)]
fn run<V: Vector>(job: &mut Dots<'_>) {
    if job.x_rows == 0 || job.w_rows == 0 {
        return;
    }
    assert!((job.x_rows - 1) * job.x_stride + job.k <= job.x.len(), "dots: activations");
    assert!((job.w_rows - 1) * job.w_stride + job.k <= job.w.values(), "dots: weights");
    assert!((job.x_rows - 1) * job.out_stride + job.w_rows <= job.out.len(), "dots: results");
    // SAFETY: all rows of all three lie inside their slices, as was just asserted.
    unsafe {
        match job.w {
            Weights::F32(values) => run_rows::<V, F32>(job, values.as_ptr().cast()),
            Weights::F32Bytes(bytes) => run_rows::<V, F32>(job, bytes.as_ptr()),
            Weights::Bf16(bytes) => run_rows::<V, Bf16>(job, bytes.as_ptr()),
            Weights::F16(bytes) => run_rows::<V, F16>(job, bytes.as_ptr()),
        }
    }
}

/// `w` points at the weights that [`run`] has asserted to exist.
#[inline(always)]
unsafe fn run_rows<V: Vector, E: Element>(job: &mut Dots<'_>, w: *const u8) {
    // SAFETY: the caller's; all rows exist.
    unsafe {
        if job.x_rows == 1 {
            // Twice the rows are twice the streams that memory is asked for side by side.
            for n in (0..job.w_rows).step_by(2 * TILE_ROWS) {
                if job.w_rows - n > TILE_ROWS {
                    tile::<V, E, 1, 2>(job, w, 0, n);
                } else {
                    tile::<V, E, 1, 1>(job, w, 0, n);
                }
            }
            return;
        }
        // Each row of weights comes from memory once, and stays near for all activations.
        for n in (0..job.w_rows).step_by(TILE_ROWS) {
            for m in (0..job.x_rows).step_by(V::ROWS) {
                rows::<V, E>(job, w, m, n);
            }
        }
    }
}

/// The rows of activations from `m` on that fit a tile.
#[inline(always)]
unsafe fn rows<V: Vector, E: Element>(job: &mut Dots<'_>, w: *const u8, m: usize, n: usize) {
    // SAFETY: the caller's; rows from `m` and `n` on exist.
    unsafe {
        match (job.x_rows - m).min(V::ROWS) {
            1 => tile::<V, E, 1, 1>(job, w, m, n),
            2 => tile::<V, E, 2, 1>(job, w, m, n),
            3 => tile::<V, E, 3, 1>(job, w, m, n),
            4 => tile::<V, E, 4, 1>(job, w, m, n),
            5 => tile::<V, E, 5, 1>(job, w, m, n),
            _ => tile::<V, E, 6, 1>(job, w, m, n),
        }
    }
}

/// `MR` rows of activations with up to `4 Q` rows of weights; where there are fewer, the last one stands in
/// for the absent ones and their results are not kept. The caller has asserted what [`run`] asserts, `w`
/// points at the weights, and rows `m..m + MR` of the activations and row `n` of the weights exist.
#[inline(always)]
unsafe fn tile<V: Vector, E: Element, const MR: usize, const Q: usize>(
    job: &mut Dots<'_>,
    w: *const u8,
    m: usize,
    n: usize,
) {
    let count = (job.w_rows - n).min(Q * TILE_ROWS);
    // SAFETY: rows `m..m + MR` of `x` and `n..n + count` of `w` hold `k` values each, and all their results
    // have a place, by `run`'s assertions.
    unsafe {
        let mut x = [std::ptr::null(); MR];
        for i in 0..MR {
            x[i] = job.x.as_ptr().add((m + i) * job.x_stride);
        }
        let mut rows = [[std::ptr::null(); TILE_ROWS]; Q];
        for q in 0..Q {
            for j in 0..TILE_ROWS {
                let row = if q * TILE_ROWS + j < count { q * TILE_ROWS + j } else { count - 1 };
                rows[q][j] = w.add((n + row) * job.w_stride * E::BYTES);
            }
        }
        // The rows of the next tile: they come straight from memory when there are few rows of activations,
        // and the hardware's own prefetching stops at each page.
        let ahead = Q * TILE_ROWS * job.w_stride * E::BYTES;
        let mut start = 0;
        while start < job.k {
            let end = (start + CHUNK).min(job.k);
            let mut acc = [[[V::zero(); TILE_ROWS]; Q]; MR];
            let mut k = start;
            while k + V::LANES <= end {
                let mut xs = [V::zero(); MR];
                for i in 0..MR {
                    xs[i] = V::load(x[i].add(k));
                }
                for q in 0..Q {
                    for j in 0..TILE_ROWS {
                        let at = rows[q][j].add(k * E::BYTES);
                        if E::BYTES == 2 {
                            prefetch(at.wrapping_add(ahead));
                        }
                        let value: V = E::load(at);
                        for i in 0..MR {
                            acc[i][q][j] = acc[i][q][j].add_product(xs[i], value);
                        }
                    }
                }
                k += V::LANES;
            }
            if k < end {
                for q in 0..Q {
                    for j in 0..TILE_ROWS {
                        let value: V = partial::<V, E>(rows[q][j].add(k * E::BYTES), end - k);
                        for i in 0..MR {
                            let xs = partial::<V, F32>(x[i].add(k).cast(), end - k);
                            acc[i][q][j] = acc[i][q][j].add_product(xs, value);
                        }
                    }
                }
            }
            // The sums of the chunks before are there already.
            let add = start > 0;
            for i in 0..MR {
                for q in 0..Q {
                    let first = n + q * TILE_ROWS;
                    let out = job.out.as_mut_ptr().add((m + i) * job.out_stride + first);
                    give(V::sums(acc[i][q]), out, (job.w_rows - first).min(TILE_ROWS), add);
                }
            }
            start = end;
        }
    }
}

/// Stores or adds the first `count` sums, at most all. So many values must have a place at `out`.
#[inline(always)]
unsafe fn give(mut sums: [f32; TILE_ROWS], out: *mut f32, count: usize, add: bool) {
    // SAFETY: the caller's: `count` values have a place there.
    unsafe {
        if count == TILE_ROWS {
            // All four at once, which the compiler makes one vector of.
            let out = out.cast::<[f32; TILE_ROWS]>();
            if add {
                let before = out.read_unaligned();
                for j in 0..TILE_ROWS {
                    sums[j] += before[j];
                }
            }
            out.write_unaligned(sums);
            return;
        }
        for j in 0..count {
            *out.add(j) = if add { *out.add(j) + sums[j] } else { sums[j] };
        }
    }
}

/// `MR` is `V::PACKED_ROWS`, `HALF` half of it.
#[inline(always)]
fn run_packed<V: Vector, const MR: usize, const HALF: usize>(job: &mut PackedDots<'_>) {
    const { assert!(MR == V::PACKED_ROWS && MR == 2 * HALF && NEAR_ROWS.is_multiple_of(MR)) };
    const { assert!(NEAR_OUTPUTS.is_multiple_of(TILE_VECTORS * V::LANES)) };
    assert!(job.start.is_multiple_of(CHUNK) && job.k <= CHUNK, "dots: one chunk");
    assert!(job.start + job.k == job.x_cols.min(job.start + CHUNK), "dots: a whole chunk");
    assert!(len::<V>(Side::Activations, job.x_rows, job.x_cols) <= job.x.len(), "dots: activations");
    assert!(len::<V>(Side::Weights, job.w_rows, job.k) <= job.w.len(), "dots: weights");
    if job.x_rows == 0 || job.w_rows == 0 {
        return;
    }
    assert!((job.x_rows - 1) * job.out_stride + job.w_rows <= job.out.len(), "dots: results");
    let x_tile = len::<V>(Side::Activations, MR, job.x_cols);
    let chunk = len::<V>(Side::Activations, MR, job.start);
    let (width, w_tile) = (TILE_VECTORS * V::LANES, V::LANES * pass_len::<V>(Side::Weights, job.k));
    // A tile of activations stays in the first-level cache while some outputs' weights go by. Those stay in the
    // second while some tiles go by, which stay there in turn for the next outputs.
    for near in (0..job.x_rows).step_by(NEAR_ROWS) {
        let rows = near..(near + NEAR_ROWS).min(job.x_rows);
        for part in (0..job.w_rows).step_by(NEAR_OUTPUTS) {
            let outputs = part..(part + NEAR_OUTPUTS).min(job.w_rows);
            for m in rows.clone().step_by(MR) {
                for n in outputs.clone().step_by(width) {
                    // SAFETY: packed rows are whole tiles, of which this chunk is read; results have a place
                    // for each row that exists. All as was just asserted.
                    unsafe {
                        let x = job.x.as_ptr().add(m / MR * x_tile + chunk);
                        let w = job.w.as_ptr().add(n / width * w_tile);
                        if job.x_rows - m > HALF {
                            packed_tile::<V, MR, MR>(job, x, w, m, n);
                        } else {
                            packed_tile::<V, MR, HALF>(job, x, w, m, n);
                        }
                    }
                }
            }
        }
    }
}

/// The first `R` rows of a packed tile of activations at `x`, which are rows from `m` on, with one of weights
/// at `w`, which are outputs from `n` on. The caller has asserted what [`run_packed`] asserts.
#[inline(always)]
unsafe fn packed_tile<V: Vector, const MR: usize, const R: usize>(
    job: &mut PackedDots<'_>,
    x: *const f32,
    w: *const f32,
    m: usize,
    n: usize,
) {
    let width = TILE_VECTORS * V::LANES;
    // SAFETY: the caller's: both tiles can be read whole.
    let sums = unsafe {
        let first = eight::<V, MR, R>(x, w, job.k, 0);
        if V::LANES == 16 { add(&first, &eight::<V, MR, R>(x, w, job.k, 8)) } else { first }
    };
    // The sums of the chunks before are there already.
    let (rows, count, more) = ((job.x_rows - m).min(R), (job.w_rows - n).min(width), job.start > 0);
    // SAFETY: `count` results of each row have a place, by the caller's word.
    unsafe {
        for i in 0..rows {
            let out = job.out.as_mut_ptr().add((m + i) * job.out_stride + n);
            if count == width {
                for v in 0..TILE_VECTORS {
                    let out = out.add(v * V::LANES);
                    let sum = if more { V::load(out).add(sums[i][v]) } else { sums[i][v] };
                    sum.store(out);
                }
                continue;
            }
            let mut row = [0.0f32; TILE_VECTORS * LANES_MAX];
            for v in 0..TILE_VECTORS {
                sums[i][v].store(row.as_mut_ptr().add(v * V::LANES));
            }
            for j in 0..count {
                *out.add(j) = if more { *out.add(j) + row[j] } else { row[j] };
            }
        }
    }
}

/// Sums of a packed tile.
type Sums<V, const R: usize> = [[V; TILE_VECTORS]; R];

// The tree of passes is written out: if what a pass is added to hung on a branch, the processor would guess
// it wrong after each pass, which costs a tenth of it.

#[inline(always)]
unsafe fn eight<V: Vector, const MR: usize, const R: usize>(
    x: *const f32,
    w: *const f32,
    k: usize,
    first: usize,
) -> Sums<V, R> {
    // SAFETY: the caller's.
    unsafe {
        let low = four::<V, MR, R>(x, w, k, first);
        add(&low, &four::<V, MR, R>(x, w, k, first + 4))
    }
}

#[inline(always)]
unsafe fn four<V: Vector, const MR: usize, const R: usize>(
    x: *const f32,
    w: *const f32,
    k: usize,
    first: usize,
) -> Sums<V, R> {
    // SAFETY: the caller's.
    unsafe {
        let low = add(&pass::<V, MR, R>(x, w, k, first), &pass::<V, MR, R>(x, w, k, first + 1));
        let high = add(&pass::<V, MR, R>(x, w, k, first + 2), &pass::<V, MR, R>(x, w, k, first + 3));
        add(&low, &high)
    }
}

#[inline(always)]
unsafe fn add<V: Vector, const R: usize>(a: &Sums<V, R>, b: &Sums<V, R>) -> Sums<V, R> {
    let mut sums = *a;
    for i in 0..R {
        for v in 0..TILE_VECTORS {
            // SAFETY: the caller runs code for the instruction set of `V`.
            sums[i][v] = unsafe { sums[i][v].add(b[i][v]) };
        }
    }
    sums
}

/// The products with the inputs of one lane, in ascending order.
#[inline(always)]
unsafe fn pass<V: Vector, const MR: usize, const R: usize>(
    x: *const f32,
    w: *const f32,
    k: usize,
    number: usize,
) -> Sums<V, R> {
    let width = TILE_VECTORS * V::LANES;
    // SAFETY: the caller's: each pass over `k` inputs of both tiles can be read.
    unsafe {
        let mut x = x.add(number * pass_len::<V>(Side::Activations, k));
        let mut w = w.add(number * pass_len::<V>(Side::Weights, k));
        let mut acc = [[V::zero(); TILE_VECTORS]; R];
        for _ in 0..k.div_ceil(V::LANES) {
            let mut values = [V::zero(); TILE_VECTORS];
            for v in 0..TILE_VECTORS {
                values[v] = V::load(w.add(v * V::LANES));
            }
            for line in 0..width / LINE {
                prefetch(w.wrapping_add(AHEAD + line * LINE).cast());
            }
            for i in 0..R {
                let x = V::splat(*x.add(i));
                for v in 0..TILE_VECTORS {
                    acc[i][v] = acc[i][v].add_product(x, values[v]);
                }
            }
            (x, w) = (x.add(MR), w.add(width));
        }
        acc
    }
}

#[inline(always)]
fn run_pack<V: Vector>(job: &mut Pack<'_>) {
    assert!(job.side == Side::Activations || job.k <= CHUNK, "pack: one chunk of weights");
    assert!(len::<V>(job.side, job.rows, job.k) <= job.out.len(), "pack: room");
    if job.rows == 0 || job.k == 0 {
        return;
    }
    assert!((job.rows - 1) * job.stride + job.k <= job.from.values(), "pack: rows");
    // SAFETY: all rows lie inside the slice, and whole tiles of them have room, as was just asserted.
    unsafe {
        match job.from {
            Weights::F32(values) => pack_rows::<V, F32>(job, values.as_ptr().cast()),
            Weights::F32Bytes(bytes) => pack_rows::<V, F32>(job, bytes.as_ptr()),
            Weights::Bf16(bytes) => pack_rows::<V, Bf16>(job, bytes.as_ptr()),
            Weights::F16(bytes) => pack_rows::<V, F16>(job, bytes.as_ptr()),
        }
    }
}

/// `from` points at the rows that [`run_pack`] has asserted to exist.
#[inline(always)]
unsafe fn pack_rows<V: Vector, E: Element>(job: &mut Pack<'_>, from: *const u8) {
    let (height, mut to) = (height::<V>(job.side), job.out.as_mut_ptr());
    for first in (0..job.rows).step_by(height) {
        for start in (0..job.k).step_by(CHUNK) {
            let end = (start + CHUNK).min(job.k);
            let pass = pass_len::<V>(job.side, end - start);
            for part in (0..height).step_by(V::LANES) {
                let rows = first + part..job.rows.min(first + height).min(first + part + V::LANES);
                // SAFETY: the caller's; of a tile, each vector of rows has its place in each vector of inputs
                // in each pass. A tile of fewer rows than there are lanes is stored with zeros behind them:
                // where the next rows come, or in the room behind the pass.
                unsafe {
                    let mut lanes = lanes::<V>(to.add(part), pass);
                    for at in (start..end).step_by(V::LANES) {
                        let tile = rows_of::<V, E>(from, job.stride, rows.clone(), at, job.k - at);
                        V::store_lanes(&tile, &lanes);
                        for lane in &mut lanes {
                            *lane = lane.wrapping_add(height);
                        }
                    }
                }
            }
            // SAFETY: so much room of the tile is filled now.
            to = unsafe { to.add(V::LANES * pass) };
        }
    }
}

/// Where each lane's first values go, passes being `pass` values long.
#[inline(always)]
fn lanes<V: Vector>(to: *mut f32, pass: usize) -> [*mut f32; LANES_MAX] {
    let mut lanes = [to; LANES_MAX];
    for number in 0..V::LANES {
        lanes[V::ORDER[number]] = to.wrapping_add(number * pass);
    }
    lanes
}

/// A vector of inputs of each of some rows from input `at` on, where `rest` are left; zeros where there is no
/// row.
#[inline(always)]
unsafe fn rows_of<V: Vector, E: Element>(
    from: *const u8,
    stride: usize,
    rows: Range<usize>,
    at: usize,
    rest: usize,
) -> [V; LANES_MAX] {
    // SAFETY: the caller's: these rows hold `at + rest` values.
    unsafe {
        let mut tile = [V::zero(); LANES_MAX];
        for number in 0..V::LANES {
            let row = rows.start + number;
            if row < rows.end {
                let from = from.add((row * stride + at) * E::BYTES);
                // The next chunk of this row, which is wanted when this one was multiplied.
                prefetch(from.wrapping_add(CHUNK * E::BYTES));
                tile[number] = if rest < V::LANES { partial::<V, E>(from, rest) } else { E::load::<V>(from) };
            }
        }
        tile
    }
}

/// `count` values, fewer than a vector holds, followed by zeros.
#[inline(always)]
unsafe fn partial<V: Vector, E: Element>(from: *const u8, count: usize) -> V {
    let mut bytes = [0u8; 64];
    // SAFETY: the caller's: `count` values can be read; 16 values of 4 bytes fill the array.
    unsafe {
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count * E::BYTES);
        E::load(bytes.as_ptr())
    }
}

#[inline(always)]
fn unpack_rows<V: Vector>(w: Weights<'_>, w_stride: usize, k: usize, out: &mut [f32]) {
    let rows = out.len() / k;
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * w_stride + k <= w.values(), "unpack: weights");
    // SAFETY: all rows lie inside the slice, as was just asserted, and `out` has room for all.
    unsafe {
        match w {
            Weights::F32(values) => unpack_values::<V, F32>(values.as_ptr().cast(), w_stride, k, out),
            Weights::F32Bytes(bytes) => unpack_values::<V, F32>(bytes.as_ptr(), w_stride, k, out),
            Weights::Bf16(bytes) => unpack_values::<V, Bf16>(bytes.as_ptr(), w_stride, k, out),
            Weights::F16(bytes) => unpack_values::<V, F16>(bytes.as_ptr(), w_stride, k, out),
        }
    }
}

#[inline(always)]
unsafe fn unpack_values<V: Vector, E: Element>(w: *const u8, w_stride: usize, k: usize, out: &mut [f32]) {
    for row in 0..out.len() / k {
        // SAFETY: the caller's.
        unsafe {
            let (from, to) = (w.add(row * w_stride * E::BYTES), out.as_mut_ptr().add(row * k));
            let mut at = 0;
            while at + V::LANES <= k {
                // The next chunk of this row, which is wanted when this one was multiplied.
                prefetch(from.wrapping_add((at + k) * E::BYTES));
                E::load::<V>(from.add(at * E::BYTES)).store(to.add(at));
                at += V::LANES;
            }
            if at < k {
                let mut rest = [0.0f32; 16];
                partial::<V, E>(from.add(at * E::BYTES), k - at).store(rest.as_mut_ptr());
                std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(at), k - at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values without pattern in [-1, 1), the same on every machine; exact in bfloat16.
    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as f32 / 128.0 - 1.0
            })
            .collect()
    }

    /// Edges of lanes, tiles and chunks.
    const SIZES: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 33, 72, 511, 512, 513, 1_100];

    fn bytes(w: &[f32], kind: usize) -> Vec<u8> {
        match kind {
            0 => w.iter().flat_map(|v| v.to_le_bytes()).collect(),
            1 => w.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => w.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    fn weights(bytes: &[u8], kind: usize) -> Weights<'_> {
        match kind {
            0 => Weights::F32Bytes(bytes),
            1 => Weights::Bf16(bytes),
            _ => Weights::F16(bytes),
        }
    }

    /// Products of `rows` rows with `outputs` rows, results in rows of `outputs + 2` with guards behind.
    fn products(isa: Isa, x: &[f32], rows: usize, w: Weights<'_>, outputs: usize, k: usize) -> Vec<f32> {
        let mut out = vec![7.25; rows * (outputs + 2)];
        let out_stride = outputs + 2;
        let mut job = Dots {
            x,
            x_rows: rows,
            x_stride: k,
            w,
            w_rows: outputs,
            w_stride: k,
            k,
            out: &mut out,
            out_stride,
        };
        dots(isa, &mut job);
        out
    }

    #[test]
    fn products_equal_the_sum_in_f64_at_every_size_level_and_type() {
        for k in SIZES {
            for (rows, outputs) in [(1, 1), (1, 9), (2, 4), (3, 3), (7, 5), (13, 6)] {
                let (x, w) = (noise(rows * k, 1), noise(outputs * k, 2));
                for isa in Isa::available() {
                    for kind in 0..3 {
                        let stored = bytes(&w, kind);
                        let got = products(isa, &x, rows, weights(&stored, kind), outputs, k);
                        for m in 0..rows {
                            for n in 0..outputs + 2 {
                                let got = got[m * (outputs + 2) + n];
                                if n >= outputs {
                                    assert_eq!(got, 7.25, "wrote outside its columns");
                                    continue;
                                }
                                let expected: f64 =
                                    (0..k).map(|i| f64::from(x[m * k + i]) * f64::from(w[n * k + i])).sum();
                                assert!(
                                    (f64::from(got) - expected).abs() < 1e-4,
                                    "k {k} [{m}, {n}] at {}: {got} {expected}",
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
    fn a_row_has_the_same_bits_alone_and_among_others_in_place_and_unpacked() {
        for k in SIZES {
            let (rows, outputs) = (17, 11);
            let (x, w) = (noise(rows * k, 3), noise(outputs * k, 4));
            for isa in Isa::available() {
                let mut expected = Vec::new();
                for kind in 0..3 {
                    let stored = bytes(&w, kind);
                    let together = products(isa, &x, rows, weights(&stored, kind), outputs, k);
                    for m in 0..rows {
                        let alone = products(isa, &x[m * k..][..k], 1, weights(&stored, kind), outputs, k);
                        assert_eq!(alone, together[m * (outputs + 2)..][..outputs + 2], "k {k}, row {m}");
                    }
                    let mut unpacked = vec![0.0; outputs * k];
                    unpack(isa, weights(&stored, kind), k, k, &mut unpacked);
                    assert_eq!(unpacked, w, "unpacked at {}", isa.name());
                    let from_unpacked = products(isa, &x, rows, Weights::F32(&unpacked), outputs, k);
                    assert_eq!(from_unpacked, together, "k {k} at {}", isa.name());
                    if expected.is_empty() {
                        expected.clone_from(&together);
                    }
                    assert_eq!(together, expected, "type {kind}");
                }
            }
        }
    }

    #[test]
    fn packed_rows_have_the_same_bits() {
        // Edges of tiles, of half tiles and of vectors of outputs.
        let shapes = [(1, 1), (6, 16), (7, 33), (12, 32), (17, 11), (19, 64)];
        for (k, (rows, outputs)) in SIZES.into_iter().flat_map(|k| shapes.map(|shape| (k, shape))) {
            let (x, w) = (noise(rows * k, 3), noise(outputs * k, 4));
            for isa in Isa::available() {
                let stored = bytes(&w, 1);
                let expected = products(isa, &x, rows, weights(&stored, 1), outputs, k);
                let packed = |from: Weights<'_>, side, rows, k| {
                    let mut out = vec![9.0; packed_len(isa, side, rows, k)];
                    pack(isa, &mut Pack { from, stride: from.values() / rows, rows, k, side, out: &mut out });
                    out
                };
                let x = packed(Weights::F32(&x), Side::Activations, rows, k);
                let mut out = vec![7.25; rows * (outputs + 2)];
                for start in (0..k).step_by(CHUNK) {
                    let length = CHUNK.min(k - start);
                    let mut stored_chunk = Vec::new();
                    for row in stored.chunks_exact(2 * k) {
                        stored_chunk.extend_from_slice(&row[2 * start..2 * (start + length)]);
                    }
                    let w = packed(Weights::Bf16(&stored_chunk), Side::Weights, outputs, length);
                    let mut job = PackedDots {
                        x: &x,
                        x_rows: rows,
                        x_cols: k,
                        start,
                        w: &w,
                        w_rows: outputs,
                        k: length,
                        out: &mut out,
                        out_stride: outputs + 2,
                    };
                    packed_dots(isa, &mut job);
                }
                assert_eq!(out, expected, "{rows} rows, {outputs} outputs, k {k} at {}", isa.name());
            }
        }
    }
}

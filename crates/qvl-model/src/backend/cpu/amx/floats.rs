//! Products of activations with bfloat16 weights in tiles.
//!
//! The first operand of an instruction is sixteen rows of weights, the second the activations of up to sixteen rows,
//! rounded to bfloat16 and laid out in pairs of inputs by [`pack`]. For a few rows of activations the weights are
//! read where the checkpoint has them, for more they are gathered first. Results have the weights' rows one
//! below the other and are turned round on their way out. A result is summed over the inputs 32 by 32 in
//! ascending order, however many rows there are.

#![expect(
    unsafe_code,
    reason = "tiles are loaded by pointer: the bounds are asserted once for a whole product"
)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Amx, TILE, TILE_BYTES, transposed};
use crate::backend::mat::Values;

/// Inputs of a tile.
const DEPTH: usize = 32;

/// Rows of a pair of tiles: blocks of rows start at multiples of it.
pub(in crate::backend::cpu) const PAIR: usize = 2 * TILE;

/// Inputs asked for ahead of their use by a few rows of activations, in tiles of each row of weights: what
/// arrives while one line is waited for, several times over.
const AHEAD: usize = 8;

/// Rows that the packed form of `rows` rows has.
fn padded(rows: usize) -> usize {
    if rows > TILE { rows.next_multiple_of(PAIR) } else { rows }
}

/// Pairs of values that `rows` rows of `k` inputs take when they are packed.
pub(in crate::backend::cpu) fn packed_len(rows: usize, k: usize) -> usize {
    padded(rows) * k.div_ceil(DEPTH) * DEPTH / 2
}

/// How many rows are packed side by side.
pub(in crate::backend::cpu) fn pack_rows(rows: usize) -> usize {
    rows.min(TILE)
}

/// Packs up to sixteen rows of `k` inputs: `[k / 2][width][2]`, zeros where there is no row or no input.
///
/// `width`: [`pack_rows`] of all rows there are. `out`: as many pairs as `width` rows of whole tiles have.
pub(in crate::backend::cpu) fn pack(_: Amx, x: &[f32], rows: usize, k: usize, width: usize, out: &mut [u32]) {
    assert!(rows <= width && width <= TILE && x.len() >= rows * k, "pack: rows");
    assert_eq!(out.len(), width * k.div_ceil(DEPTH) * DEPTH / 2, "pack: room");
    // SAFETY: a CPU with AMX has AVX-512 BF16, of which the level was made; the lengths were asserted.
    unsafe { pack_avx512(x, rows, k, width, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_avx512(x: &[f32], rows: usize, k: usize, width: usize, out: &mut [u32]) {
    let pairs = DEPTH / 2;
    for (step, out) in out.chunks_exact_mut(pairs * width).enumerate() {
        let start = step * DEPTH;
        let count = DEPTH.min(k - start);
        let mut tile = [_mm512_setzero_si512(); TILE];
        for row in 0..rows {
            let from = &x[row * k + start..][..count];
            tile[row] = match from.first_chunk::<DEPTH>() {
                Some(from) => rounded(from),
                None => {
                    let mut rest = [0.0; DEPTH];
                    rest[..count].copy_from_slice(from);
                    rounded(&rest)
                }
            };
        }
        if width == TILE {
            for (pair, values) in transposed(tile).into_iter().enumerate() {
                let Some(out) = out[pair * TILE..].first_chunk_mut::<TILE>() else { unreachable!() };
                // SAFETY: there is room for sixteen pairs.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values) };
            }
            continue;
        }
        for row in 0..rows {
            let mut values = [0u32; TILE];
            // SAFETY: there is room for sixteen pairs.
            unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), tile[row]) };
            for pair in 0..pairs {
                out[pair * width + row] = values[pair];
            }
        }
    }
}

/// The nearest bfloat16 of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::backend::cpu) fn rounded(values: &[f32; DEPTH]) -> __m512i {
    // SAFETY: 32 values lie there.
    let (low, high) =
        unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(DEPTH / 2))) };
    // SAFETY: both are 512 bits without a meaning of their own.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The products of some rows with some rows of weights.
pub(in crate::backend::cpu) struct TileProduct<'a> {
    /// All activations, packed in tiles of [`pack_rows`] rows.
    pub(in crate::backend::cpu) x: &'a [u32],
    /// How many rows they are.
    pub(in crate::backend::cpu) x_rows: usize,
    /// Which of them, from a multiple of [`PAIR`] on.
    pub(in crate::backend::cpu) rows: Range<usize>,
    /// Little-endian bytes of bfloat16, row after row.
    pub(in crate::backend::cpu) w: &'a [u8],
    /// How many rows of weights.
    pub(in crate::backend::cpu) w_rows: usize,
    /// Inputs.
    pub(in crate::backend::cpu) k: usize,
    /// Results: row after row of activations, a value for each row of weights.
    pub(in crate::backend::cpu) out: &'a mut [f32],
    /// Values from one row of results to the next.
    pub(in crate::backend::cpu) out_stride: usize,
    /// Room to work in.
    pub(in crate::backend::cpu) room: &'a mut Values,
}

/// Inputs that a block is multiplied with at once: of 256 rows of activations so many take 1 MiB, of a second-level
/// cache of 2 MiB.
pub(in crate::backend::cpu) const CHUNK_INPUTS: usize = 2_048;

/// The same in tiles.
const CHUNK: usize = CHUNK_INPUTS / DEPTH;

/// Results of a pair of tiles of weights with one of activations, `[weights][activations]`.
const RESULTS: usize = PAIR * PAIR;

/// The last inputs of some rows of weights, followed by zeros.
#[repr(C, align(64))]
struct Rest([u8; TILE * TILE_BYTES]);

/// Computes the products.
pub(in crate::backend::cpu) fn product(amx: Amx, job: &mut TileProduct<'_>) {
    let (rows, row_bytes) = (job.rows.len(), 2 * job.k);
    assert!(job.rows.start.is_multiple_of(PAIR) && job.rows.end <= job.x_rows, "tiles: rows");
    assert_eq!(job.x.len(), packed_len(job.x_rows, job.k), "tiles: activations");
    assert!(job.w.len() >= job.w_rows * row_bytes, "tiles: weights");
    if rows == 0 || job.w_rows == 0 {
        return;
    }
    assert!((rows - 1) * job.out_stride + job.w_rows <= job.out.len(), "tiles: results");
    if job.x_rows <= TILE {
        for first in (0..job.w_rows).step_by(TILE) {
            few_rows(amx, job, first, TILE.min(job.w_rows - first));
        }
    } else {
        many_rows(amx, job);
    }
}

/// Up to sixteen rows of activations with `height` rows of weights from `first` on.
fn few_rows(amx: Amx, job: &mut TileProduct<'_>, first: usize, height: usize) {
    let (rows, width) = (job.rows.len(), pack_rows(job.x_rows));
    let mut rest = Rest([0; TILE * TILE_BYTES]);
    let weights = Operand::new(job, first, height, &mut rest);
    let tiles = amx.shapes(height, width, TILE_BYTES);
    job.room.resize(RESULTS);
    // SAFETY: `height` rows of weights lie inside the slice, all rows of activations inside theirs, as was asserted;
    // the results of `height` x `width` have room.
    unsafe { few(&weights, job.x.as_ptr(), width, job.room.as_mut_ptr()) };
    drop(tiles);
    for row in 0..rows {
        let out = &mut job.out[row * job.out_stride + first..][..height];
        for (column, out) in out.iter_mut().enumerate() {
            *out = job.room[column * width + row];
        }
    }
}

/// More rows of activations with all rows of weights. Some inputs of all of them at a time, which stay in the
/// second-level cache while every row meets every other; sums so far wait in the results.
fn many_rows(amx: Amx, job: &mut TileProduct<'_>) {
    let steps = job.k.div_ceil(DEPTH);
    let tile_len = steps * DEPTH / 2 * TILE;
    let pairs = job.rows.len().div_ceil(PAIR);
    let x = &job.x[job.rows.start / TILE * tile_len..][..pairs * 2 * tile_len];
    // The weights come first, then the results.
    let weights_len = CHUNK * PAIR * TILE_BYTES / size_of::<f32>();
    job.room.resize(weights_len + job.w_rows.div_ceil(PAIR) * pairs * RESULTS);
    let (weights, results) = job.room.split_at_mut(weights_len);
    let tiles = amx.shapes(TILE, TILE, TILE_BYTES);
    for start in (0..steps).step_by(CHUNK) {
        let chunk = start..(start + CHUNK).min(steps);
        let blocks = results.chunks_exact_mut(pairs * RESULTS);
        for (first, results) in (0..job.w_rows).step_by(PAIR).zip(blocks) {
            let height = PAIR.min(job.w_rows - first);
            let rows = &job.w[first * 2 * job.k..][..height * 2 * job.k];
            // SAFETY: a CPU with AMX has AVX-512.
            unsafe { gather(rows, job.k, &chunk, bytemuck::cast_slice_mut(weights)) };
            for (pair, results) in results.chunks_exact_mut(RESULTS).enumerate() {
                let ahead = Ahead {
                    at: rows.as_ptr().wrapping_add((PAIR + 4 * pair % PAIR) * 2 * job.k + start * TILE_BYTES),
                    row_bytes: 2 * job.k,
                };
                // SAFETY: weights and two tiles of activations have the inputs of the chunk, as was sliced; there
                // is room for the results.
                unsafe {
                    let x = x.as_ptr().add(pair * 2 * tile_len + start * TILE * TILE);
                    let out = results.as_mut_ptr();
                    many(weights.as_ptr().cast(), x, tile_len, chunk.len(), &ahead, start > 0, out);
                }
                if chunk.end == steps {
                    let count = PAIR.min(job.rows.len() - pair * PAIR);
                    let out = &mut job.out[pair * PAIR * job.out_stride + first..];
                    // SAFETY: a CPU with AMX has AVX-512.
                    unsafe { give(results, height, count, out, job.out_stride) };
                }
            }
        }
    }
    drop(tiles);
}

/// Puts some inputs of up to 32 rows of weights where tiles read them, `[step][32][64]` bytes; zeros behind the last
/// row and input. Checkpoints start their tensors anywhere, and a tile whose rows each lie on two cache lines takes
/// twice as long to load.
#[target_feature(enable = "avx512f,avx512bw")]
fn gather(rows: &[u8], k: usize, steps: &Range<usize>, out: &mut [u8]) {
    for (row, from) in rows.chunks_exact(2 * k).enumerate() {
        for (index, step) in steps.clone().enumerate() {
            let from = &from[step * TILE_BYTES..];
            let Some(out) = out[(index * PAIR + row) * TILE_BYTES..].first_chunk_mut::<TILE_BYTES>() else {
                unreachable!()
            };
            let present = from.len().min(TILE_BYTES);
            let mask = u64::MAX >> (TILE_BYTES - present);
            // SAFETY: the bytes of the mask are there, and there is room for all.
            unsafe {
                let values = _mm512_maskz_loadu_epi8(mask, from.as_ptr().cast());
                _mm512_storeu_si512(out.as_mut_ptr().cast(), values);
            }
        }
    }
    let present = rows.len() / (2 * k);
    for index in 0..steps.len() {
        out[(index * PAIR + present) * TILE_BYTES..(index + 1) * PAIR * TILE_BYTES].fill(0);
    }
}

/// Some rows of weights.
struct Operand {
    at: *const u8,
    row_bytes: usize,
    /// Whole tiles of inputs.
    steps: usize,
    /// What is left of them, padded.
    rest: *const u8,
    has_rest: bool,
}

impl Operand {
    /// `height` rows from `first` on.
    fn new(job: &TileProduct<'_>, first: usize, height: usize, rest: &mut Rest) -> Self {
        let (row_bytes, steps) = (2 * job.k, job.k / DEPTH);
        let rows = &job.w[first * row_bytes..][..height * row_bytes];
        let has_rest = !job.k.is_multiple_of(DEPTH);
        if has_rest {
            for (row, rest) in rows.chunks_exact(row_bytes).zip(rest.0.chunks_exact_mut(TILE_BYTES)) {
                let from = &row[steps * TILE_BYTES..];
                rest[..from.len()].copy_from_slice(from);
            }
        }
        Self { at: rows.as_ptr(), row_bytes, steps, rest: rest.0.as_ptr(), has_rest }
    }
}

/// A tile of weights with up to sixteen rows of activations, `width` side by side; results `[16][width]`. The
/// weights come from memory once, so what is wanted next is asked for early. Two tiles at a time would ask for
/// lines of 32 pages, more than the hardware follows: 5 % slower in decoding the 2B shape.
#[inline]
unsafe fn few(w: &Operand, x: *const u32, width: usize, out: *mut f32) {
    // Behind the end of these rows the next ones are wanted.
    let near = w.steps.saturating_sub(AHEAD);
    let ahead = (AHEAD * TILE_BYTES) as isize;
    let next_rows = (TILE * w.row_bytes) as isize + ahead - (w.steps * TILE_BYTES) as isize;
    let x_bytes = 4 * width;
    // SAFETY: the caller's: all operands can be read, and results written. Prefetches read nothing. No code
    // between these blocks uses tiles.
    unsafe {
        asm!("tilezero tmm0", out("tmm0") _, options(nostack, nomem));
        for (start, count, ahead) in [(0, near, ahead), (near, w.steps - near, next_rows)] {
            if count == 0 {
                continue;
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{w} + {s}]",
                "tileloadd tmm6, [{x} + {xs}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "lea {p}, [{w} + {ahead}]",
                "prefetcht0 [{p}]",
                "prefetcht0 [{p} + {s}]",
                "prefetcht0 [{p} + 2*{s}]",
                "prefetcht0 [{p} + {s3}]",
                "lea {p}, [{p} + 4*{s}]",
                "prefetcht0 [{p}]",
                "prefetcht0 [{p} + {s}]",
                "prefetcht0 [{p} + 2*{s}]",
                "prefetcht0 [{p} + {s3}]",
                "lea {p}, [{p} + 4*{s}]",
                "prefetcht0 [{p}]",
                "prefetcht0 [{p} + {s}]",
                "prefetcht0 [{p} + 2*{s}]",
                "prefetcht0 [{p} + {s3}]",
                "lea {p}, [{p} + 4*{s}]",
                "prefetcht0 [{p}]",
                "prefetcht0 [{p} + {s}]",
                "prefetcht0 [{p} + 2*{s}]",
                "prefetcht0 [{p} + {s3}]",
                "add {w}, 64",
                "add {x}, {xstep}",
                "dec {count}",
                "jnz 2b",
                w = inout(reg) w.at.add(start * TILE_BYTES) => _,
                x = inout(reg) x.cast::<u8>().add(start * TILE * x_bytes) => _,
                count = inout(reg) count => _,
                p = out(reg) _,
                s = in(reg) w.row_bytes,
                s3 = in(reg) 3 * w.row_bytes,
                xs = in(reg) x_bytes,
                xstep = in(reg) TILE * x_bytes,
                ahead = in(reg) ahead,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack, readonly)
            );
        }
        if w.has_rest {
            asm!(
                "tileloadd tmm6, [{x} + {xs}]",
                "tileloadd tmm4, [{w} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                x = in(reg) x.cast::<u8>().add(w.steps * TILE * x_bytes), xs = in(reg) x_bytes,
                w = in(reg) w.rest, s = in(reg) TILE_BYTES,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack, readonly)
            );
        }
        asm!("tilestored [{out} + {s}], tmm0", out = in(reg) out, s = in(reg) x_bytes, options(nostack));
    }
}

/// Four of the rows of weights that are gathered next; they need not exist.
struct Ahead {
    at: *const u8,
    row_bytes: usize,
}

/// Some inputs of two tiles of weights, as [`gather`] puts them, with those of two of activations, the second
/// `tile_len` pairs behind the first; results `[32][32]`, added to what is there if `add`.
#[inline]
unsafe fn many(
    w: *const u8,
    x: *const u32,
    tile_len: usize,
    steps: usize,
    ahead: &Ahead,
    add: bool,
    out: *mut f32,
) {
    // SAFETY: the caller's: all operands can be read, and results written. No code between these blocks uses
    // tiles.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{out} + {s}]",
                "tileloadd tmm1, [{out} + {s} + 64]",
                "tileloadd tmm2, [{behind} + {s}]",
                "tileloadd tmm3, [{behind} + {s} + 64]",
                out = in(reg) out, behind = in(reg) out.add(TILE * PAIR), s = in(reg) 4 * PAIR,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly)
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem)
            );
        }
        asm!(
            "2:",
            "tileloadd tmm4, [{w} + {s}]",
            "tileloadd tmm6, [{x0} + {s}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {s}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{w} + {s} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + {ahead_s}]",
            "prefetcht1 [{ahead} + 2*{ahead_s}]",
            "prefetcht1 [{ahead} + {ahead_s3}]",
            "add {ahead}, 64",
            "add {w}, 2048",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "dec {steps}",
            "jnz 2b",
            w = inout(reg) w => _,
            x0 = inout(reg) x => _,
            x1 = inout(reg) x.add(tile_len) => _,
            steps = inout(reg) steps => _,
            ahead = inout(reg) ahead.at => _,
            ahead_s = in(reg) ahead.row_bytes,
            ahead_s3 = in(reg) 3 * ahead.row_bytes,
            s = in(reg) TILE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly)
        );
        asm!(
            "tilestored [{out} + {s}], tmm0",
            "tilestored [{out} + {s} + 64], tmm1",
            "tilestored [{behind} + {s}], tmm2",
            "tilestored [{behind} + {s} + 64], tmm3",
            out = in(reg) out, behind = in(reg) out.add(TILE * PAIR), s = in(reg) 4 * PAIR,
            options(nostack)
        );
    }
    const { assert!(TILE * TILE_BYTES == 1024 && PAIR * TILE_BYTES == 2048) };
}

/// Puts `[height][count]` results, in rows of 32, where they belong: `[count][height]` in rows of `stride`.
#[target_feature(enable = "avx512f")]
unsafe fn give(results: &[f32], height: usize, count: usize, out: &mut [f32], stride: usize) {
    for column in (0..height).step_by(TILE) {
        let present = (height - column).min(TILE);
        let mask = ((1u32 << present) - 1) as u16;
        for row in (0..count).step_by(TILE) {
            let mut tile = [_mm512_setzero_si512(); TILE];
            for (index, values) in tile.iter_mut().enumerate().take(present) {
                let from = &results[(column + index) * PAIR + row..][..TILE];
                // SAFETY: sixteen values lie there.
                *values = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
            }
            let rows = transposed(tile);
            for (index, values) in rows.iter().enumerate().take(count - row) {
                let out = &mut out[(row + index) * stride + column..][..present];
                // SAFETY: there is room for the values of the mask.
                unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, *values) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::super::Isa;
    use super::super::super::panels::tests::noise;
    use super::*;

    fn amx() -> Option<Amx> {
        let amx = Isa::available().into_iter().find_map(Amx::of);
        if amx.is_none() {
            println!("skipped: no AMX");
        }
        amx
    }

    fn packed(amx: Amx, x: &[f32], rows: usize, k: usize) -> Vec<u32> {
        let mut out = vec![0xffff_ffff; packed_len(rows, k)];
        let width = pack_rows(rows);
        let tile = width * k.div_ceil(DEPTH) * DEPTH / 2;
        for (index, out) in out.chunks_exact_mut(tile).enumerate() {
            let first = (index * TILE).min(rows);
            pack(amx, &x[first * k..], (rows - first).min(width), k, width, out);
        }
        out
    }

    /// Results in rows of `outputs + 3`, with guards behind each row.
    fn products(amx: Amx, x: &[f32], rows: usize, w: &[u8], outputs: usize, k: usize) -> Vec<f32> {
        let x = packed(amx, x, rows, k);
        let out_stride = outputs + 3;
        let mut out = vec![7.25; rows * out_stride];
        let mut room = Values::default();
        // In two blocks where there are enough rows for it.
        let cut = if rows > PAIR { PAIR } else { rows };
        for rows_of_block in [0..cut, cut..rows].into_iter().filter(|block| !block.is_empty()) {
            let first = rows_of_block.start;
            let out = &mut out[first * out_stride..];
            let job = TileProduct {
                x: &x,
                x_rows: rows,
                rows: rows_of_block,
                w,
                w_rows: outputs,
                k,
                out,
                out_stride,
                room: &mut room,
            };
            product(amx, &mut { job });
        }
        for row in out.chunks_exact(out_stride) {
            assert!(row[outputs..].iter().all(|&v| v == 7.25), "wrote outside its columns");
        }
        out
    }

    fn stored(w: &[f32]) -> Vec<u8> {
        w.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
    }

    /// Edges of tiles, pairs of them, what is asked for ahead, and chunks.
    const INPUTS: [usize; 10] = [1, 2, 31, 32, 33, 64, 300, 1_024, 1_056, 1_100];
    const OUTPUTS: [usize; 7] = [1, 5, 16, 17, 32, 47, 64];
    const ROWS: [usize; 8] = [1, 2, 3, 15, 16, 17, 33, 70];

    #[test]
    fn products_equal_the_sum_in_f64() {
        let Some(amx) = amx() else { return };
        for k in INPUTS {
            for outputs in OUTPUTS {
                for rows in ROWS {
                    let (x, w) = (noise(rows * k, 1), noise(outputs * k, 2));
                    let stored = stored(&w);
                    let got = products(amx, &x, rows, &stored, outputs, k);
                    let round = |v: f32| f64::from(bf16::from_f32(v).to_f32());
                    for m in 0..rows {
                        for n in 0..outputs {
                            let expected: f64 =
                                (0..k).map(|i| round(x[m * k + i]) * round(w[n * k + i])).sum();
                            let got = f64::from(got[m * (outputs + 3) + n]);
                            assert!((got - expected).abs() < 1e-4, "{k} [{m}, {n}]: {got}, {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let Some(amx) = amx() else { return };
        for k in INPUTS {
            for outputs in OUTPUTS {
                let rows = 70;
                let (x, w) = (noise(rows * k, 3), stored(&noise(outputs * k, 4)));
                let together = products(amx, &x, rows, &w, outputs, k);
                for count in [1, 2, 5, 16, 31] {
                    for first in [0, 7, 39] {
                        let some = products(amx, &x[first * k..][..count * k], count, &w, outputs, k);
                        assert_eq!(
                            some,
                            together[first * (outputs + 3)..][..some.len()],
                            "{k}, {count} rows"
                        );
                    }
                }
            }
        }
    }
}

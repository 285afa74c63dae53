//! Attention in tiles: keys and values in bfloat16, laid out as the second operands of tile instructions.
//!
//! A page of 64 tokens holds keys in panels of 16 tokens, `[head_dim / 2][16][2]`, then values in panels of 16
//! columns, `[32][16][2]`, pairs of tokens. Sixteen queries take 256 keys after 256 keys (four pages) with a
//! running maximum and sum: scores in tiles, their exponentials rounded to bfloat16, the mixture in tiles.
//! What happens to a query depends on its own values and on the keys it may see: keys it does not see add
//! zeros.

#![expect(unsafe_code, reason = "tiles are loaded by pointer: the bounds are asserted once for all pages")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::floats::rounded;
use super::{Amx, TILE, TILE_BYTES, transposed};
use crate::backend::mat::Values;

/// Tokens of a page.
pub(in crate::backend::cpu) const PAGE: usize = 64;

/// Tokens that a running maximum is moved on by.
const SPAN: usize = 256;

/// Inputs of a tile.
const DEPTH: usize = 32;

/// Panels of 16 tokens in a page.
const PANELS: usize = PAGE / TILE;

/// What the keys and values of a head take.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct PageShape {
    head_dim: usize,
}

impl PageShape {
    pub(in crate::backend::cpu) fn new(head_dim: usize) -> Self {
        Self { head_dim }
    }

    /// Dimensions of a key, padded to whole tiles.
    fn depth(self) -> usize {
        self.head_dim.next_multiple_of(DEPTH)
    }

    /// Columns of a value, padded to whole panels.
    fn width(self) -> usize {
        self.head_dim.next_multiple_of(TILE)
    }

    /// Pairs in front of the values of a page.
    fn keys(self) -> usize {
        PAGE * self.depth() / 2
    }

    /// Pairs of a page.
    pub(in crate::backend::cpu) fn pairs(self) -> usize {
        self.keys() + PAGE * self.width() / 2
    }
}

/// Puts the keys and values of some tokens, `stride` values apart, in the slots of a page from `slot` on.
pub(in crate::backend::cpu) fn push(
    _: Amx,
    shape: PageShape,
    [keys, values]: [&[f32]; 2],
    stride: usize,
    count: usize,
    slot: usize,
    page: &mut [f32],
) {
    let page: &mut [u32] = bytemuck::cast_slice_mut(page);
    if count == 0 {
        return;
    }
    assert!(slot + count <= PAGE && page.len() == shape.pairs(), "a page has {PAGE} slots");
    let needed = (count - 1) * stride + shape.head_dim;
    assert!(keys.len() >= needed && values.len() >= needed, "{count} tokens");
    // SAFETY: a CPU with AMX has AVX-512 BF16.
    unsafe { push_avx512(shape, [keys, values], stride, count, slot, page) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn push_avx512(
    shape: PageShape,
    [keys, values]: [&[f32]; 2],
    stride: usize,
    count: usize,
    slot: usize,
    page: &mut [u32],
) {
    let (depth, head_dim) = (shape.depth(), shape.head_dim);
    let (page_keys, page_values) = page.split_at_mut(shape.keys());
    let chunk = |from: &[f32], token: usize, at: usize, end: usize| -> [f32; DEPTH] {
        let mut chunk = [0.0; DEPTH];
        let from = &from[token * stride + at..][..end - at];
        chunk[..end - at].copy_from_slice(from);
        chunk
    };
    let mut token = 0;
    while token < count {
        let (panel, column) = ((slot + token) / TILE, (slot + token) % TILE);
        let run = (TILE - column).min(count - token);
        let page_keys = &mut page_keys[panel * depth / 2 * TILE..][..depth / 2 * TILE];
        for (step, out) in page_keys.as_chunks_mut::<{ DEPTH / 2 * TILE }>().0.iter_mut().enumerate() {
            let at = step * DEPTH;
            let end = (at + DEPTH).min(head_dim);
            if run == TILE {
                let mut tile = [_mm512_setzero_si512(); TILE];
                for row in 0..TILE {
                    tile[row] = rounded(&chunk(keys, token + row, at, end));
                }
                for (out, pairs) in out.as_chunks_mut::<TILE>().0.iter_mut().zip(transposed(tile)) {
                    // SAFETY: there is room for sixteen pairs.
                    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs) };
                }
                continue;
            }
            for row in 0..run {
                let mut pairs = [0u32; DEPTH / 2];
                let values = rounded(&chunk(keys, token + row, at, end));
                // SAFETY: there is room for sixteen pairs.
                unsafe { _mm512_storeu_si512(pairs.as_mut_ptr().cast(), values) };
                for (pair, value) in pairs.into_iter().enumerate() {
                    out[pair * TILE + column + row] = value;
                }
            }
        }
        token += run;
    }
    for (panel, out) in page_values.chunks_exact_mut(PAGE / 2 * TILE).enumerate() {
        let at = panel * TILE;
        let end = (at + TILE).min(head_dim);
        let out: &mut [u16] = bytemuck::cast_slice_mut(out);
        let mut token = 0;
        while token < count {
            let place = (slot + token) / 2 * 2 * TILE;
            let out = &mut out[place..][..2 * TILE];
            let second = (slot + token) % 2;
            let mut both = chunk(values, token, at, end);
            if second == 0 && token + 1 < count {
                let next = chunk(values, token + 1, at, end);
                both[TILE..].copy_from_slice(&next[..TILE]);
            }
            let mut rounded_values = [0u16; 2 * TILE];
            // SAFETY: there is room for 32 values.
            unsafe { _mm512_storeu_si512(rounded_values.as_mut_ptr().cast(), rounded(&both)) };
            if second == 0 && token + 1 < count {
                for column in 0..TILE {
                    out[2 * column] = rounded_values[column];
                    out[2 * column + 1] = rounded_values[TILE + column];
                }
                token += 2;
            } else {
                for column in 0..TILE {
                    out[2 * column + second] = rounded_values[column];
                }
                token += 1;
            }
        }
    }
}

/// Forgets the values of a page from `slot` on: what nobody sees has weight zero, and must be finite for that.
pub(in crate::backend::cpu) fn forget(shape: PageShape, slot: usize, page: &mut [f32]) {
    let values = &mut bytemuck::cast_slice_mut::<f32, u16>(page)[2 * shape.keys()..];
    for panel in values.chunks_exact_mut(PAGE * TILE) {
        for token in slot..PAGE {
            for column in 0..TILE {
                panel[token / 2 * 2 * TILE + 2 * column + token % 2] = 0;
            }
        }
    }
}

/// Some queries of one head of keys.
pub(in crate::backend::cpu) struct Attend<'a> {
    pub(in crate::backend::cpu) shape: PageShape,
    /// `[query][head_dim]`
    pub(in crate::backend::cpu) queries: &'a [f32],
    /// What scores are multiplied by.
    pub(in crate::backend::cpu) scale: f32,
    /// The head's pages.
    pub(in crate::backend::cpu) pages: &'a [Values],
    /// How many keys each query sees: at least one, not descending.
    pub(in crate::backend::cpu) visible: &'a [usize],
    /// `[query][width]`, `width` being `head_dim` rounded up to 16: the results.
    pub(in crate::backend::cpu) mixed: &'a mut [f32],
}

/// How far a query has come: its largest score, and the sums of exponentials over every sixteenth key.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sums: [f32; TILE],
}

/// Scores of sixteen queries.
#[repr(C, align(64))]
struct Scores([[f32; SPAN]; TILE]);

/// Their exponentials, in bfloat16.
#[repr(C, align(64))]
struct Weights([[u16; SPAN]; TILE]);

/// Sixteen queries in bfloat16.
#[repr(C, align(64))]
struct Queries([u16; TILE * DEPTH_MAX]);

/// Dimensions of a head at most; those of the family have 128.
pub(in crate::backend::cpu) const DEPTH_MAX: usize = 256;

/// Attends.
pub(in crate::backend::cpu) fn attend(amx: Amx, job: &mut Attend<'_>) {
    let (count, shape) = (job.visible.len(), job.shape);
    let (head_dim, depth, width) = (shape.head_dim, shape.depth(), shape.width());
    assert!(depth <= DEPTH_MAX, "heads of {head_dim}");
    assert!(job.queries.len() >= count * head_dim && job.mixed.len() >= count * width, "attention: shapes");
    assert!(job.visible.is_sorted() && job.visible.first().is_none_or(|&first| first > 0));
    let keys = job.visible.last().copied().unwrap_or(0);
    let pages = &job.pages[..keys.div_ceil(PAGE)];
    assert!(pages.iter().all(|page| page.len() == shape.pairs()), "attention: pages");
    // Exponentials are powers of two.
    let scale = job.scale * std::f32::consts::LOG2_E;
    let mut queries = Queries([0; TILE * DEPTH_MAX]);
    let mut scores = Scores([[0.0; SPAN]; TILE]);
    let mut weights = Weights([[0; SPAN]; TILE]);
    for first in (0..count).step_by(TILE) {
        let rows = TILE.min(count - first);
        let tiles = amx.shapes(rows, TILE, TILE_BYTES);
        let visible = &job.visible[first..][..rows];
        let mixed = &mut job.mixed[first * width..][..rows * width];
        mixed.fill(0.0);
        // SAFETY: a CPU with AMX has these; lengths were asserted.
        unsafe { scaled(&job.queries[first * head_dim..], rows, head_dim, scale, &mut queries) };
        let mut states = [State { max: f32::NEG_INFINITY, sums: [0.0; TILE] }; TILE];
        let keys = visible[rows - 1];
        for (span, pages) in pages[..keys.div_ceil(PAGE)].chunks(SPAN / PAGE).enumerate() {
            let start = span * SPAN;
            for (index, page) in pages.iter().enumerate() {
                // SAFETY: the tiles have their shapes; queries, page and scores are as large as is read and
                // written: all panels of keys, 64 scores of each of sixteen rows.
                unsafe { scores_of(&queries, depth, page, &raw mut scores.0[0][index * PAGE]) };
            }
            for row in 0..rows {
                let seen = visible[row].saturating_sub(start).min(SPAN);
                let mixed = &mut mixed[row * width..][..width];
                let (scores, weights) = (&scores.0[row], &mut weights.0[row]);
                // SAFETY: a CPU with AMX has these instructions.
                unsafe { softmax(scores, pages.len(), seen, &mut states[row], mixed, weights) };
            }
            let mut column = 0;
            while column < width {
                let panels = ((width - column) / TILE).min(4);
                // SAFETY: the tiles have their shapes; so many panels of values are in each page, and so many
                // columns in the mixture.
                unsafe { mix(&weights, pages, shape, column, panels, mixed.as_mut_ptr(), width) };
                column += panels * TILE;
            }
        }
        drop(tiles);
        for (state, mixed) in states.iter().zip(mixed.chunks_exact_mut(width)) {
            let sum = super::super::kernels::reduce(state.sums);
            for value in mixed {
                *value /= sum;
            }
        }
    }
}

/// Queries times `scale`, rounded, `[query][depth]`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn scaled(from: &[f32], rows: usize, head_dim: usize, scale: f32, queries: &mut Queries) {
    let depth = head_dim.next_multiple_of(DEPTH);
    for row in 0..rows {
        for at in (0..head_dim).step_by(DEPTH) {
            let count = DEPTH.min(head_dim - at);
            let mut values = [0.0; DEPTH];
            for (to, from) in values.iter_mut().zip(&from[row * head_dim + at..][..count]) {
                *to = from * scale;
            }
            let out = &mut queries.0[row * depth + at..][..DEPTH];
            // SAFETY: there is room for 32 values.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), rounded(&values)) };
        }
    }
}

/// The scores of the queries with a page of keys, in rows of 256.
#[inline]
unsafe fn scores_of(queries: &Queries, depth: usize, page: &Values, out: *mut f32) {
    let panel_bytes = depth / 2 * TILE_BYTES;
    // SAFETY: the caller's. No code between these blocks uses tiles.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{q} + {qs}]",
            "tileloadd tmm6, [{k0} + {ks}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{k1} + {ks}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{k2} + {ks}]",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tileloadd tmm7, [{k3} + {ks}]",
            "tdpbf16ps tmm3, tmm4, tmm7",
            "add {q}, 64",
            "add {k0}, 1024", "add {k1}, 1024", "add {k2}, 1024", "add {k3}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {os}], tmm0",
            "tilestored [{out} + {os} + 64], tmm1",
            "tilestored [{out} + {os} + 128], tmm2",
            "tilestored [{out} + {os} + 192], tmm3",
            q = inout(reg) queries.0.as_ptr() => _,
            qs = in(reg) 2 * depth,
            k0 = inout(reg) page.as_ptr().cast::<u8>() => _,
            k1 = inout(reg) page.as_ptr().cast::<u8>().add(panel_bytes) => _,
            k2 = inout(reg) page.as_ptr().cast::<u8>().add(2 * panel_bytes) => _,
            k3 = inout(reg) page.as_ptr().cast::<u8>().add(3 * panel_bytes) => _,
            ks = in(reg) TILE_BYTES,
            steps = inout(reg) depth / DEPTH => _,
            out = in(reg) out,
            os = in(reg) 4 * SPAN,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
    const { assert!(PANELS == 4) };
}

/// `2^x` for `x` that is not positive, sixteen at a time: `2^floor(x)` times a polynomial in the rest whose
/// relative error is below 3e-6, a six-hundredth of what rounding to bfloat16 adds. 0 for minus infinity.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn power(x: __m512) -> __m512 {
    let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut p = _mm512_set1_ps(0.013_426_701);
    for coefficient in [0.052_242_447, 0.241_280_21, 0.693_044_84, 1.0] {
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(p, x)
}

/// Scores to weights, the first `seen` of those of so many pages; the mixture so far is corrected where the
/// maximum rises.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
fn softmax(
    scores: &[f32; SPAN],
    pages: usize,
    seen: usize,
    state: &mut State,
    mixed: &mut [f32],
    weights: &mut [u16; SPAN],
) {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let vectors = pages * PANELS;
    let load = |vector: usize| {
        let from = &scores[vector * TILE..][..TILE];
        let present = seen.saturating_sub(vector * TILE).min(TILE);
        let mask = ((1u32 << present) - 1) as u16;
        // SAFETY: sixteen values lie there.
        unsafe { _mm512_mask_loadu_ps(lowest, mask, from.as_ptr()) }
    };
    // In two chains, so that one does not wait for itself. What is no number is left out here and comes back
    // as a weight.
    let mut maxima = [lowest; 2];
    for vector in 0..vectors / 2 {
        maxima[0] = _mm512_max_ps(load(2 * vector), maxima[0]);
        maxima[1] = _mm512_max_ps(load(2 * vector + 1), maxima[1]);
    }
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(maxima[0], maxima[1]));
    // SAFETY: sixteen values lie there.
    let mut sums = unsafe { _mm512_loadu_ps(state.sums.as_ptr()) };
    if largest > state.max {
        let correction = power(_mm512_set1_ps(state.max - largest));
        sums = _mm512_mul_ps(sums, correction);
        for mixed in mixed.as_chunks_mut::<TILE>().0 {
            // SAFETY: sixteen values lie there.
            unsafe {
                let before = _mm512_loadu_ps(mixed.as_ptr());
                _mm512_storeu_ps(mixed.as_mut_ptr(), _mm512_mul_ps(before, correction));
            }
        }
        state.max = largest;
    }
    let max = _mm512_set1_ps(state.max);
    for pair in 0..vectors / 2 {
        let low = power(_mm512_sub_ps(load(2 * pair), max));
        let high = power(_mm512_sub_ps(load(2 * pair + 1), max));
        sums = _mm512_add_ps(_mm512_add_ps(sums, low), high);
        let out = &mut weights[2 * pair * TILE..][..2 * TILE];
        // SAFETY: both are 512 bits without a meaning of their own; there is room for 32 values.
        unsafe {
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), rounded);
        }
    }
    // SAFETY: there is room for sixteen values.
    unsafe { _mm512_storeu_ps(state.sums.as_mut_ptr(), sums) };
}

/// Adds the weighted values of some pages to `panels` x 16 columns of the mixture, from `column` on.
#[inline]
unsafe fn mix(
    weights: &Weights,
    pages: &[Values],
    shape: PageShape,
    column: usize,
    panels: usize,
    mixed: *mut f32,
    width: usize,
) {
    let panel_bytes = PAGE / 2 * TILE_BYTES;
    // SAFETY: the caller's. No code between these blocks uses tiles.
    unsafe {
        let out = mixed.add(column);
        // What is there already, for as many panels as there are.
        asm!(
            "tileloadd tmm0, [{out} + {os}]",
            "cmp {panels}, 2",
            "jb 2f",
            "tileloadd tmm1, [{out} + {os} + 64]",
            "je 2f",
            "tileloadd tmm2, [{out} + {os} + 128]",
            "cmp {panels}, 4",
            "jb 2f",
            "tileloadd tmm3, [{out} + {os} + 192]",
            "2:",
            out = in(reg) out, os = in(reg) 4 * width, panels = in(reg) panels,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, readonly)
        );
        for (index, page) in pages.iter().enumerate() {
            let values = page.as_ptr().add(shape.keys()).cast::<u8>().add(column / TILE * panel_bytes);
            asm!(
                "2:",
                "tileloadd tmm4, [{w} + {ws}]",
                "tileloadd tmm6, [{v} + {vs}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "cmp {panels}, 2",
                "jb 3f",
                "tileloadd tmm7, [{v} + {vs} + 2048]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "je 3f",
                "tileloadd tmm6, [{v} + {vs} + 4096]",
                "tdpbf16ps tmm2, tmm4, tmm6",
                "cmp {panels}, 4",
                "jb 3f",
                "tileloadd tmm7, [{v} + {vs} + 6144]",
                "tdpbf16ps tmm3, tmm4, tmm7",
                "3:",
                "add {w}, 64",
                "add {v}, 1024",
                "dec {steps}",
                "jnz 2b",
                w = inout(reg) (&raw const weights.0[0][index * PAGE]) => _,
                ws = in(reg) 2 * SPAN,
                v = inout(reg) values => _,
                vs = in(reg) TILE_BYTES,
                panels = in(reg) panels,
                steps = inout(reg) PAGE / DEPTH => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly)
            );
        }
        asm!(
            "tilestored [{out} + {os}], tmm0",
            "cmp {panels}, 2",
            "jb 2f",
            "tilestored [{out} + {os} + 64], tmm1",
            "je 2f",
            "tilestored [{out} + {os} + 128], tmm2",
            "cmp {panels}, 4",
            "jb 2f",
            "tilestored [{out} + {os} + 192], tmm3",
            "2:",
            out = in(reg) out, os = in(reg) 4 * width, panels = in(reg) panels,
            options(nostack)
        );
    }
    const { assert!(PAGE / 2 * TILE_BYTES == 2048) };
}

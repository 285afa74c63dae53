//! The inner loops of attention: one page of keys and values with some queries.

#![expect(unsafe_code, reason = "vector loads by pointer: the bounds are asserted once for a whole tile")]

use super::isa::dispatched;
use super::kernels::Portable;
#[cfg(target_arch = "x86_64")]
use super::kernels::{Avx2, Avx512};
use super::kernels::{LANES, Lanes, reduce};

/// Tokens of a page.
pub(super) const PAGE: usize = 64;

/// Panels of keys in a page.
const PANELS: usize = PAGE / LANES;

/// How far a query has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The largest score so far.
    max: f32,
    /// The sums of `exp(score - max)` over every sixteenth key.
    sums: [f32; LANES],
    /// What the mixture so far has to be multiplied by, now that the maximum is larger.
    correction: f32,
    /// Keys of the page at hand that it sees.
    pub(super) visible: usize,
}

impl Default for State {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sums: [0.0; LANES], correction: 0.0, visible: 0 }
    }
}

impl State {
    /// The sum of `exp(score - max)` over all keys so far.
    pub(super) fn sum(&self) -> f32 {
        reduce(self.sums)
    }
}

/// Some queries and one page.
pub(super) struct Tile<'a> {
    /// `[query][head_dim]`, scaled.
    pub(super) queries: &'a [f32],
    pub(super) head_dim: usize,
    /// `[panel][head_dim][16]`
    pub(super) keys: &'a [f32],
    /// `[64][width]`
    pub(super) values: &'a [f32],
    /// Columns of the values, a multiple of 16.
    pub(super) width: usize,
    /// `[query][64]`
    pub(super) scores: &'a mut [f32],
    /// One a query; each sees at least one key.
    pub(super) states: &'a mut [State],
    /// `[query][width]`
    pub(super) mixed: &'a mut [f32],
    /// What is read after this page.
    pub(super) next: &'a [f32],
}

dispatched!(
    /// Takes the page into the queries' running softmax.
    fn attend_page(tile: &mut Tile<'_>)
        = page_body::<Portable, 2, 1, 1>, page_body::<Avx2, 6, 1, 4>, page_body::<Avx512, 6, 4, 4>
);
dispatched!(
    /// bfloat16 to f32.
    fn unpack(from: &[u16], to: &mut [f32]) = unpack_body
);

#[inline(always)]
fn unpack_body(from: &[u16], to: &mut [f32]) {
    let count = to.len();
    let from = &from[..count];
    for i in 0..count {
        to[i] = f32::from_bits(u32::from(from[i]) << 16);
    }
}

/// `MR` queries by `NV` vectors at a time: that many sums fill the registers. Queries that are left go one by
/// one with `ONE` vectors. The page is taken in three phases, each for all queries, so that either its keys
/// or its values lie in the first-level cache, never both.
#[inline(always)]
fn page_body<V: Lanes, const MR: usize, const NV: usize, const ONE: usize>(tile: &mut Tile<'_>) {
    let count = tile.states.len();
    assert!(tile.queries.len() >= count * tile.head_dim && tile.scores.len() >= count * PAGE);
    assert!(tile.mixed.len() >= count * tile.width && tile.width.is_multiple_of(LANES));
    assert_eq!((tile.keys.len(), tile.values.len()), (PAGE * tile.head_dim, PAGE * tile.width));
    assert!(tile.states.iter().all(|state| (1..=PAGE).contains(&state.visible)));
    let whole = count - count % MR;
    // What comes next is asked for evenly, a little at each step of the whole tiles.
    let steps = PANELS / NV * tile.head_dim;
    let stride = tile.next.len().div_ceil((count / MR * steps).max(1));
    let next = if tile.next.is_empty() { tile.keys } else { tile.next }.as_ptr();
    // SAFETY: the asserted lengths hold all queries from `m` to `m + MR`, or only `m`, all their scores and
    // mixtures, and the page's keys and values.
    unsafe {
        for m in (0..whole).step_by(MR) {
            scores_of::<V, MR, NV>(tile, m, next.wrapping_add(m / MR * steps * stride), stride);
        }
        for m in whole..count {
            scores_of::<V, 1, ONE>(tile, m, next, 0);
        }
    }
    let (scores, _) = tile.scores.as_chunks_mut::<PAGE>();
    for m in 0..count {
        maximum::<V>(&mut scores[m], &mut tile.states[m]);
    }
    for m in 0..count {
        weights::<V>(&mut scores[m], &mut tile.states[m]);
    }
    // SAFETY: as above.
    unsafe {
        for m in (0..whole).step_by(MR) {
            mix::<V, MR, NV>(tile, m);
        }
        for m in whole..count {
            mix::<V, 1, ONE>(tile, m);
        }
    }
}

/// Asks for a value that is wanted soon, into the second-level cache. It need not exist.
#[inline(always)]
fn ask_for(value: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(value.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// A score is summed over the head's dimensions in ascending order. What comes later is asked for meanwhile:
/// `stride` values from `next` on at each step.
#[inline(always)]
unsafe fn scores_of<V: Lanes, const MR: usize, const NV: usize>(
    tile: &mut Tile<'_>,
    m: usize,
    mut next: *const f32,
    stride: usize,
) {
    let head_dim = tile.head_dim;
    // SAFETY: the caller's: queries, keys and scores are as long as `page_body` asserted.
    unsafe {
        let queries = tile.queries.as_ptr().add(m * head_dim);
        let scores = tile.scores.as_mut_ptr().add(m * PAGE);
        let mut panel = 0;
        while panel < PANELS {
            let keys = tile.keys.as_ptr().add(panel * head_dim * LANES);
            let mut acc = [[V::zero(); NV]; MR];
            // Between short loops all at once, in long ones a line at each step.
            if NV < PANELS {
                for at in (0..stride * head_dim).step_by(LANES) {
                    ask_for(next.wrapping_add(at));
                }
                next = next.wrapping_add(stride * head_dim);
            }
            for d in 0..head_dim {
                if NV == PANELS && MR > 1 {
                    ask_for(next);
                    next = next.wrapping_add(stride);
                }
                let mut key = [V::zero(); NV];
                for v in 0..NV {
                    key[v] = V::load(&*keys.add((v * head_dim + d) * LANES).cast());
                }
                for i in 0..MR {
                    let query = V::splat(*queries.add(i * head_dim + d));
                    for v in 0..NV {
                        acc[i][v] = acc[i][v].add_product(query, key[v]);
                    }
                }
            }
            for i in 0..MR {
                for v in 0..NV {
                    let out: &mut [f32; LANES] = &mut *scores.add(i * PAGE + (panel + v) * LANES).cast();
                    *out = acc[i][v].values();
                }
            }
            panel += NV;
        }
    }
}

/// The largest score of those seen so far, and what it changes. Scores that are not visible become the
/// smallest.
#[inline(always)]
fn maximum<V: Lanes>(scores: &mut [f32; PAGE], state: &mut State) {
    if state.visible < PAGE {
        for key in state.visible..PAGE {
            scores[key] = f32::NEG_INFINITY;
        }
    }
    let (panels, _) = scores.as_chunks::<LANES>();
    let mut maxima = V::load(&panels[0]);
    for panel in 1..PANELS {
        maxima = V::load(&panels[panel]).max(maxima);
    }
    let largest = maxima.largest();
    state.correction = 1.0;
    // After the first pages a larger maximum is rare.
    if largest > state.max {
        state.correction = V::splat(state.max - largest).exp().values()[0];
        state.max = largest;
    }
}

/// Scores to weights: `exp(score - max)` of the visible ones, 0 of the others.
#[inline(always)]
fn weights<V: Lanes>(scores: &mut [f32; PAGE], state: &mut State) {
    let max = V::splat(state.max);
    let (panels, _) = scores.as_chunks_mut::<LANES>();
    let mut sums = V::zero();
    for panel in 0..PANELS {
        let weights = V::load(&panels[panel]).sub(max).exp();
        panels[panel] = weights.values();
        sums = sums.add(weights);
    }
    state.sums = sums.add_product(V::load(&state.sums), V::splat(state.correction)).values();
}

/// The mixture so far, corrected, and the values of the page, summed over the keys in ascending order.
#[inline(always)]
unsafe fn mix<V: Lanes, const MR: usize, const NV: usize>(tile: &mut Tile<'_>, m: usize) {
    let (width, columns) = (tile.width, tile.width / LANES);
    // What no query here sees may be anything; what one of them sees has weight 0 for the others.
    let mut keys = 0;
    for state in &tile.states[m..m + MR] {
        keys = if state.visible > keys { state.visible } else { keys };
    }
    // SAFETY: the caller's: scores, values and mixtures are as long as `page_body` asserted.
    unsafe {
        let mut column = 0;
        while column < columns {
            if column + NV <= columns {
                mix_columns::<V, MR, NV>(tile, m, column, keys, width);
                column += NV;
            } else {
                mix_columns::<V, MR, 1>(tile, m, column, keys, width);
                column += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn mix_columns<V: Lanes, const MR: usize, const NV: usize>(
    tile: &mut Tile<'_>,
    m: usize,
    column: usize,
    keys: usize,
    width: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let weights = tile.scores.as_ptr().add(m * PAGE);
        let values = tile.values.as_ptr().add(column * LANES);
        let mixed = tile.mixed.as_mut_ptr().add(m * width + column * LANES);
        let mut acc = [[V::zero(); NV]; MR];
        for i in 0..MR {
            let correction = V::splat(tile.states[m + i].correction);
            for v in 0..NV {
                let before = V::load(&*mixed.add(i * width + v * LANES).cast());
                acc[i][v] = V::zero().add_product(correction, before);
            }
        }
        for j in 0..keys {
            let mut value = [V::zero(); NV];
            for v in 0..NV {
                value[v] = V::load(&*values.add(j * width + v * LANES).cast());
            }
            for i in 0..MR {
                let weight = V::splat(*weights.add(i * PAGE + j));
                for v in 0..NV {
                    acc[i][v] = acc[i][v].add_product(weight, value[v]);
                }
            }
        }
        for i in 0..MR {
            for v in 0..NV {
                let out: &mut [f32; LANES] = &mut *mixed.add(i * width + v * LANES).cast();
                *out = acc[i][v].values();
            }
        }
    }
}

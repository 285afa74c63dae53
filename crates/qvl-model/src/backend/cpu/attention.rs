//! Attention, and the keys and values it reads.
//!
//! Keys and values of a head lie in pages of 64 tokens at absolute positions: keys in panels of 16 tokens,
//! `[head_dim][16]`, so that 16 scores are one vector, values `[token][width]`, `width` being `head_dim` rounded
//! up to 16. A query takes page after page with a running maximum and sum (online softmax): what happens to it
//! depends on its own values and on the keys it may see, not on the queries beside it, nor on how the
//! prompt was cut, nor on the threads. All query heads of a group read a page together.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use smallvec::SmallVec;

use super::amx::attention::{Attend, PageShape};
use super::amx::{self, Amx};
use super::attention_kernels::{self as kernels, PAGE, Tile};
use super::blocks::{Order, Tiling, for_each_block};
use super::isa::Isa;
use super::kernels::LANES;
use super::team::Team;
use crate::backend::mat::Values;
use crate::backend::{HeadShape, Mat};

/// Queries handled together, heads of a group counted singly: they share each unpacked page.
const QUERIES: usize = 48;

/// Scores below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 11;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvFormat {
    /// Rounded to the nearest bfloat16.
    Bf16,
    /// As they are.
    F32,
    /// Rounded to the nearest bfloat16, in the order in which tile instructions take them. The proof that there
    /// are tiles stays with them, so a cache serves a backend of a lower level too.
    Tiles(Amx),
}

impl KvFormat {
    /// How keys and values of heads of this shape are kept when they may be rounded.
    pub(super) fn rounded(isa: Isa, shape: HeadShape) -> Self {
        let fits = shape.head_dim <= amx::attention::DEPTH_MAX;
        Amx::of(isa).filter(|_| fits).map_or(Self::Bf16, Self::Tiles)
    }
}

/// Keys and values of one head.
#[derive(Clone, Debug, Default)]
struct HeadKv {
    /// Each with `64 * head_dim` keys, then `64 * width` values, of 2 or 4 bytes; those for tiles are described
    /// there. Pages behind the last token wait to be filled again.
    pages: Vec<Values>,
    len: usize,
}

impl HeadKv {
    /// Appends a token, in bfloat16 if `rounded`.
    fn push(&mut self, rounded: bool, key: &[f32], value: &[f32]) {
        let (head_dim, width, slot) = (key.len(), width(key.len()), self.len % PAGE);
        let values = PAGE * (head_dim + width);
        if self.len / PAGE == self.pages.len() {
            self.pages.push(Values::zeros(if rounded { values / 2 } else { values }));
        }
        let page = &mut self.pages[self.len / PAGE];
        let first_key = slot / LANES * head_dim * LANES + slot % LANES;
        let first_value = PAGE * head_dim + slot * width;
        if rounded {
            let page: &mut [u16] = bytemuck::cast_slice_mut(page);
            for (d, &key) in key.iter().enumerate() {
                page[first_key + d * LANES] = bf16::from_f32(key).to_bits();
            }
            for (to, &value) in page[first_value..].iter_mut().zip(value) {
                *to = bf16::from_f32(value).to_bits();
            }
        } else {
            for (d, &key) in key.iter().enumerate() {
                page[first_key + d * LANES] = key;
            }
            page[first_value..][..head_dim].copy_from_slice(value);
        }
        self.len += 1;
    }

    /// The same for `count` tokens, `stride` values apart, in the order of tiles.
    fn push_tiles(
        &mut self,
        amx: Amx,
        head_dim: usize,
        [keys, values]: [&[f32]; 2],
        stride: usize,
        count: usize,
    ) {
        let shape = PageShape::new(head_dim);
        let mut done = 0;
        while done < count {
            let slot = self.len % PAGE;
            if self.len / PAGE == self.pages.len() {
                self.pages.push(Values::zeros(shape.pairs()));
            }
            let page = &mut self.pages[self.len / PAGE];
            let run = (PAGE - slot).min(count - done);
            if slot == 0 && run < PAGE {
                amx::attention::forget(shape, 0, page);
            }
            let from = [&keys[done * stride..], &values[done * stride..]];
            amx::attention::push(amx, shape, from, stride, run, slot, page);
            (self.len, done) = (self.len + run, done + run);
        }
    }
}

fn width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Keys and values of one sequence, all layers.
#[derive(Clone, Debug)]
pub struct CpuKv {
    /// `[layer][kv_head]`
    heads: Vec<HeadKv>,
    shape: HeadShape,
    format: KvFormat,
}

impl CpuKv {
    pub(super) fn new(layers: usize, shape: HeadShape, format: KvFormat) -> Self {
        Self { heads: vec![HeadKv::default(); layers * shape.kv_heads], shape, format }
    }

    pub(super) fn shape(&self) -> HeadShape {
        self.shape
    }

    /// Bytes of the keys and values, filled or waiting.
    pub fn bytes(&self) -> usize {
        self.heads.iter().flat_map(|head| &head.pages).map(|page| page.len() * size_of::<f32>()).sum()
    }

    /// Appends the keys and values of some rows; on all threads of the team if there are many.
    pub(super) fn append(
        &mut self,
        team: &Team,
        layer: usize,
        qkv: &Mat,
        rows: Range<usize>,
        shape: HeadShape,
    ) {
        assert_eq!(shape, self.shape, "the cache was made for another shape");
        if rows.is_empty() {
            return;
        }
        let format = self.format;
        let heads = &mut self.heads[layer * shape.kv_heads..][..shape.kv_heads];
        let push = |index: usize, head: &mut HeadKv| {
            if let KvFormat::Tiles(amx) = format {
                let first = rows.start * qkv.cols + shape.q_width() + index * shape.head_dim;
                let from = [&qkv.values[first..], &qkv.values[first + shape.kv_width()..]];
                head.push_tiles(amx, shape.head_dim, from, qkv.cols, rows.len());
                return;
            }
            for row in rows.clone() {
                let (keys, values) = qkv.row(row)[shape.q_width()..].split_at(shape.kv_width());
                let (key, value) = (&keys[index * shape.head_dim..], &values[index * shape.head_dim..]);
                head.push(format == KvFormat::Bf16, &key[..shape.head_dim], &value[..shape.head_dim]);
            }
        };
        if rows.len() * shape.kv_width() >= 1 << 14 {
            team.for_each_mut(heads, push);
        } else {
            heads.iter_mut().enumerate().for_each(|(index, head)| push(index, head));
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        for head in &mut self.heads {
            if len < head.len && matches!(self.format, KvFormat::Tiles(_)) && !len.is_multiple_of(PAGE) {
                let shape = PageShape::new(self.shape.head_dim);
                amx::attention::forget(shape, len % PAGE, &mut head.pages[len / PAGE]);
            }
            head.len = head.len.min(len);
        }
    }

    fn head(&self, layer: usize, kv_head: usize) -> &HeadKv {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }
}

/// What a thread computes in.
#[derive(Default)]
struct Scratch {
    /// `[query][head_dim]`, multiplied by the scale of the scores.
    queries: Values,
    /// `[query][64]`
    scores: Values,
    /// `[query][width]`
    mixed: Values,
    /// A page in f32.
    page: Values,
    /// Of each query: the largest score so far, the sums of exponentials, what to multiply the mixture by.
    states: Vec<kernels::State>,
}

thread_local! {
    /// Kept between operations: a steady decode step allocates nothing.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lets some rows of queries attend to the keys of one head; results stay in `scratch.mixed`, row by row, the
/// group's heads side by side. `visible(row)`: how many keys the row of that index sees, not descending.
fn attend(
    isa: Isa,
    qkv: &Mat,
    shape: HeadShape,
    kv: (&HeadKv, KvFormat),
    kv_head: usize,
    rows: Range<usize>,
    visible: impl Fn(usize) -> usize,
    scratch: &mut Scratch,
) {
    let (head, format) = kv;
    let (head_dim, width, group) = (shape.head_dim, width(shape.head_dim), shape.group());
    let count = rows.len() * group;
    let Scratch { queries, scores, mixed, page: unpacked, states } = scratch;
    queries.resize(count * head_dim);
    scores.resize(count * PAGE);
    mixed.resize(count * width);
    mixed.fill(0.0);
    states.clear();
    states.resize(count, kernels::State::default());
    let columns = group * head_dim;
    if let KvFormat::Tiles(amx) = format {
        for (row, queries) in rows.clone().zip(queries.chunks_exact_mut(columns)) {
            queries.copy_from_slice(&qkv.row(row)[kv_head * columns..][..columns]);
        }
        let mut seen: SmallVec<[usize; 64]> = SmallVec::new();
        seen.extend((0..count).map(|query| visible(query / group)));
        let mut job = Attend {
            shape: PageShape::new(head_dim),
            queries,
            scale: shape.scale(),
            pages: &head.pages,
            visible: &seen,
            mixed,
        };
        amx::attention::attend(amx, &mut job);
        return;
    }
    for (row, queries) in rows.clone().zip(queries.chunks_exact_mut(columns)) {
        let from = &qkv.row(row)[kv_head * columns..][..columns];
        for (query, &value) in queries.iter_mut().zip(from) {
            *query = value * shape.scale();
        }
    }
    let keys = visible(rows.len() - 1);
    let pages = &head.pages[..keys.div_ceil(PAGE)];
    for (index, page) in pages.iter().enumerate() {
        let page: &[f32] = if format == KvFormat::Bf16 {
            unpacked.resize(PAGE * (head_dim + width));
            kernels::unpack(isa, bytemuck::cast_slice(page), unpacked);
            unpacked
        } else {
            page
        };
        // Rows before the first one that sees this page are done.
        let first_key = index * PAGE;
        let first_row = (0..rows.len()).position(|row| visible(row) > first_key).unwrap_or(rows.len());
        let skipped = first_row * group;
        for (query, state) in states.iter_mut().enumerate().skip(skipped) {
            state.visible = (visible(query / group) - first_key).min(PAGE);
        }
        let mut tile = Tile {
            queries: &queries[skipped * head_dim..],
            head_dim,
            keys: &page[..PAGE * head_dim],
            values: &page[PAGE * head_dim..],
            width,
            scores: &mut scores[skipped * PAGE..],
            states: &mut states[skipped..],
            mixed: &mut mixed[skipped * width..],
            next: pages.get(index + 1).map_or(&[], |next| next),
        };
        kernels::attend_page(isa, &mut tile);
    }
    for (state, mixed) in states.iter().zip(mixed.chunks_exact_mut(width)) {
        let sum = state.sum();
        for value in mixed {
            *value /= sum;
        }
    }
}

/// Full attention inside each segment. `memory`: keys and values of an earlier call, used again.
pub(super) fn segments(
    isa: Isa,
    team: &Team,
    qkv: &Mat,
    shape: HeadShape,
    cu_seqlens: &[usize],
    memory: &mut CpuKv,
    y: &mut Mat,
) {
    assert_eq!(memory.shape, shape, "memory for another shape");
    for segment in cu_seqlens.windows(2).map(|pair| pair[0]..pair[1]) {
        if segment.is_empty() {
            continue;
        }
        memory.truncate(0);
        memory.append(team, 0, qkv, segment.clone(), shape);
        let (memory, len) = (&*memory, segment.len());
        // Blocks of other segments' rows are left alone.
        let row_borders = [segment.start, segment.end, y.rows];
        let width = y.cols;
        let tiling = Tiling {
            row_borders: &row_borders,
            borders: &[width],
            row_block: (QUERIES / shape.group()).max(1),
            col_block: shape.group() * shape.head_dim,
            order: Order::ByColumns,
        };
        for_each_block(team, y, tiling, len * len * shape.heads >= PARALLEL_MIN, |mut block| {
            if block.place.row_run != 1 {
                return;
            }
            let kv_head = block.place.columns.start / tiling.col_block;
            let kv = (memory.head(0, kv_head), memory.format);
            SCRATCH.with_borrow_mut(|scratch| {
                attend(isa, qkv, shape, kv, kv_head, block.place.rows.clone(), |_| len, scratch);
                give(&mut block, shape, scratch);
            });
        });
    }
}

/// Causal attention of a step: each part's rows are appended to its cache, then each row sees all up to itself.
/// The parts' rows follow each other and are all rows there are.
pub(super) fn causal<'p>(
    isa: Isa,
    team: &Team,
    parts: impl Iterator<Item = (&'p mut CpuKv, Range<usize>)>,
    layer: usize,
    qkv: &Mat,
    shape: HeadShape,
    y: &mut Mat,
) {
    let mut row_borders: SmallVec<[usize; 16]> = SmallVec::new();
    let mut caches: SmallVec<[(&CpuKv, usize); 16]> = SmallVec::new();
    let mut scores = 0;
    for (kv, rows) in parts {
        assert_eq!(rows.start, row_borders.last().copied().unwrap_or(0), "parts follow each other");
        kv.append(team, layer, qkv, rows.clone(), shape);
        let before = kv.head(layer, 0).len - rows.len();
        scores += rows.len() * (before + rows.len()) * shape.heads;
        row_borders.push(rows.end);
        caches.push((kv, before));
    }
    if qkv.rows == 0 {
        return;
    }
    let width = y.cols;
    let tiling = Tiling {
        row_borders: &row_borders,
        borders: &[width],
        row_block: (QUERIES / shape.group()).max(1),
        col_block: shape.group() * shape.head_dim,
        order: Order::ByColumns,
    };
    for_each_block(team, y, tiling, scores >= PARALLEL_MIN, |mut block| {
        let part = block.place.row_run;
        let first = part.checked_sub(1).map_or(0, |before| row_borders[before]);
        let (kv, before) = caches[part];
        let rows = block.place.rows.clone();
        let seen_by_first = before + rows.start - first + 1;
        let kv_head = block.place.columns.start / tiling.col_block;
        let head = (kv.head(layer, kv_head), kv.format);
        SCRATCH.with_borrow_mut(|scratch| {
            attend(isa, qkv, shape, head, kv_head, rows, |row| seen_by_first + row, scratch);
            give(&mut block, shape, scratch);
        });
    });
}

/// Copies results to where they belong.
fn give(block: &mut super::blocks::Block<'_>, shape: HeadShape, scratch: &Scratch) {
    let width = width(shape.head_dim);
    let rows = scratch.mixed.chunks_exact(width * shape.group());
    for (row, mixed) in (0..block.place.rows.len()).zip(rows) {
        let out = block.row(row).chunks_exact_mut(shape.head_dim);
        for (out, mixed) in out.zip(mixed.chunks_exact(width)) {
            out.copy_from_slice(&mixed[..shape.head_dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::KvPart;
    use crate::backend::reference::Reference;

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 4), (4, 2, 10), (6, 2, 16), (2, 2, 24), (3, 1, 72), (5, 5, 8)];
    /// Around the edges of a panel of keys, of a tile of queries and of a page.
    /// and, for tiles, of four pages.
    const LENGTHS: [usize; 10] = [1, 2, 15, 17, 33, 50, 64, 65, 130, 261];

    fn noise(rows: usize, shape: HeadShape) -> Mat {
        let cols = shape.qkv_width();
        let mut state = (rows * 31 + cols) as u32;
        let values = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        });
        Mat { rows, cols, values: values.collect::<Vec<f32>>().into() }
    }

    fn team() -> Team {
        Team::new(2).unwrap()
    }

    /// Runs `test` for every shape, length and instruction set.
    fn check(test: impl Fn(Isa, HeadShape, usize)) {
        for (heads, kv_heads, head_dim) in SHAPES {
            for rows in LENGTHS {
                for isa in Isa::available() {
                    test(isa, HeadShape { heads, kv_heads, head_dim }, rows);
                }
            }
        }
    }

    fn assert_close(got: &Mat, expected: &Mat, tolerance: f32, what: &str) {
        assert_eq!((got.rows, got.cols), (expected.rows, expected.cols), "{what}");
        for (index, (got, expected)) in got.values.iter().zip(expected.values.iter()).enumerate() {
            assert!((got - expected).abs() < tolerance, "{what}, value {index}: {got}, expected {expected}");
        }
    }

    const EXACT: f32 = 1e-5;
    /// Queries and weights are rounded to 8 bits: scores of up to 6 by up to a 256th each way, weights by a
    /// 512th, of values up to 2.
    const ROUNDED: f32 = 5e-2;

    /// The levels with tiles, if this CPU has one.
    fn with_tiles() -> impl Iterator<Item = (Isa, KvFormat)> {
        Isa::available().into_iter().filter_map(|isa| Some((isa, KvFormat::Tiles(Amx::of(isa)?))))
    }

    /// What a cache in bfloat16 keeps of it.
    fn rounded(qkv: &Mat, shape: HeadShape) -> Mat {
        let mut rounded = qkv.clone();
        for row in 0..qkv.rows {
            for value in &mut rounded.row_mut(row)[shape.q_width()..] {
                *value = bf16::from_f32(*value).to_f32();
            }
        }
        rounded
    }

    #[test]
    fn segments_equal_the_formula() {
        check(|isa, shape, rows| {
            let qkv = noise(rows, shape);
            let cu_seqlens = [0, rows.div_ceil(3), rows.div_ceil(3), rows];
            let expected = Reference.segment_attention(&qkv, shape, &cu_seqlens);
            let tiles = Amx::of(isa).map(|amx| (KvFormat::Tiles(amx), ROUNDED));
            for (format, tolerance) in [Some((KvFormat::F32, EXACT)), tiles].into_iter().flatten() {
                let mut got = Mat::zeros(rows, shape.q_width());
                let mut memory = CpuKv::new(1, shape, format);
                // What was there before is forgotten.
                memory.append(&team(), 0, &noise(rows + 70, shape), 0..rows + 70, shape);
                segments(isa, &team(), &qkv, shape, &cu_seqlens, &mut memory, &mut got);
                assert_close(&got, &expected, tolerance, &format!("{shape:?}, {rows} rows, {}", isa.name()));
            }
        });
    }

    /// A step of three sequences: one row, `rows` rows, one row.
    fn step(isa: Isa, format: KvFormat, qkv: &Mat, shape: HeadShape) -> Mat {
        let mut caches = [0; 3].map(|_| CpuKv::new(2, shape, format));
        let [first, second, third] = &mut caches;
        let mut y = Mat::zeros(qkv.rows, shape.q_width());
        let parts = [(first, 0..1), (second, 1..qkv.rows - 1), (third, qkv.rows - 1..qkv.rows)];
        causal(isa, &team(), parts.into_iter(), 1, qkv, shape, &mut y);
        y
    }

    #[test]
    fn causal_equals_the_formula() {
        check(|isa, shape, rows| {
            let qkv = noise(rows + 2, shape);
            let formats = [(KvFormat::F32, EXACT), (KvFormat::Bf16, EXACT)].map(|(f, t)| (isa, f, t));
            let tiles = Amx::of(isa).map(|amx| (isa, KvFormat::Tiles(amx), ROUNDED));
            for (isa, format, tolerance) in formats.into_iter().chain(tiles) {
                let got = step(isa, format, &qkv, shape);
                let qkv = if format == KvFormat::F32 { qkv.clone() } else { rounded(&qkv, shape) };
                let mut caches = [0; 3].map(|_| Reference.kv(2, shape));
                let ranges = [0..1, 1..rows + 1, rows + 1..rows + 2];
                let mut parts: Vec<_> =
                    caches.iter_mut().zip(ranges).map(|(kv, rows)| KvPart { kv, rows }).collect();
                let mut expected = Mat::zeros(rows + 2, shape.q_width());
                Reference.kv_attention(&mut parts, 1, &qkv, shape, &mut expected);
                assert_close(&got, &expected, tolerance, &format!("{shape:?}, {rows} rows, {}", isa.name()));
            }
        });
    }

    #[test]
    fn cut_anywhere_and_cut_back_it_has_the_same_bits() {
        let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 10 };
        let formats =
            Isa::available().into_iter().flat_map(|isa| [(isa, KvFormat::Bf16), (isa, KvFormat::F32)]);
        for (isa, format) in formats.chain(with_tiles()) {
            for rows in LENGTHS {
                let qkv = noise(rows, shape);
                let mut other = qkv.clone();
                other.values.iter_mut().for_each(|v| *v = 1.0 - *v);
                let mut whole = Mat::zeros(rows, shape.q_width());
                let mut kv = CpuKv::new(1, shape, format);
                causal(isa, &team(), [(&mut kv, 0..rows)].into_iter(), 0, &qkv, shape, &mut whole);
                for cut in 1..rows {
                    // What is given up is not what comes again.
                    kv.truncate(cut);
                    kv.append(&team(), 0, &other, cut..rows, shape);
                    kv.truncate(cut);
                    let mut fresh = CpuKv::new(1, shape, format);
                    for (kv, range) in [(&mut fresh, 0..cut), (&mut kv, cut..rows)] {
                        let part = Mat::from_slice(
                            range.len(),
                            qkv.cols,
                            &qkv.values[range.start * qkv.cols..range.end * qkv.cols],
                        );
                        let mut y = Mat::zeros(range.len(), shape.q_width());
                        causal(isa, &team(), [(kv, 0..range.len())].into_iter(), 0, &part, shape, &mut y);
                        let expected = &whole.values[range.start * y.cols..range.end * y.cols];
                        assert_eq!(*y.values, *expected, "{rows} rows cut at {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn pages_that_were_given_up_are_filled_again() {
        let shape = HeadShape { heads: 2, kv_heads: 1, head_dim: 8 };
        let qkv = noise(130, shape);
        let mut kv = CpuKv::new(1, shape, KvFormat::Bf16);
        kv.append(&team(), 0, &qkv, 0..130, shape);
        // 3 pages of 64 tokens: keys of 8, values of 16, 2 bytes each.
        assert_eq!(kv.bytes(), 3 * 64 * (8 + 16) * 2);
        kv.truncate(0);
        kv.append(&team(), 0, &qkv, 0..130, shape);
        assert_eq!(kv.bytes(), 3 * 64 * (8 + 16) * 2);
    }

    #[test]
    fn a_cache_for_tiles_serves_a_lower_level() {
        let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 24 };
        let qkv = noise(70, shape);
        for (best, format) in with_tiles() {
            let [expected, got] = [best, Isa::named("portable").unwrap()].map(|isa| {
                let mut y = Mat::zeros(70, shape.q_width());
                let mut kv = CpuKv::new(1, shape, format);
                causal(isa, &team(), [(&mut kv, 0..70)].into_iter(), 0, &qkv, shape, &mut y);
                y
            });
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn what_was_given_up_does_not_come_back_as_no_number() {
        let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 40 };
        let qkv = noise(70, shape);
        for (isa, format) in with_tiles() {
            let mut expected = Mat::zeros(70, shape.q_width());
            let mut kv = CpuKv::new(1, shape, format);
            causal(isa, &team(), [(&mut kv, 0..70)].into_iter(), 0, &qkv, shape, &mut expected);
            let mut broken = qkv.clone();
            broken.values.fill(f32::NAN);
            for kept in [0, 3, 64] {
                kv.truncate(kept);
                kv.append(&team(), 0, &broken, 0..70, shape);
                kv.truncate(kept);
                let rest = Mat::from_slice(70 - kept, qkv.cols, &qkv.values[kept * qkv.cols..]);
                let mut y = Mat::zeros(rest.rows, shape.q_width());
                causal(isa, &team(), [(&mut kv, 0..rest.rows)].into_iter(), 0, &rest, shape, &mut y);
                assert_eq!(*y.values, expected.values[kept * y.cols..]);
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_with_those_who_see_it() {
        let shape = HeadShape { heads: 2, kv_heads: 2, head_dim: 16 };
        for (isa, format) in with_tiles() {
            let mut qkv = noise(40, shape);
            qkv.row_mut(20)[0] = f32::NAN;
            let mut y = Mat::zeros(40, shape.q_width());
            let mut kv = CpuKv::new(1, shape, format);
            causal(isa, &team(), [(&mut kv, 0..40)].into_iter(), 0, &qkv, shape, &mut y);
            for row in 0..40 {
                assert_eq!(y.row(row)[..16].iter().all(|v| v.is_nan()), row == 20, "row {row}");
                assert!(y.row(row)[16..].iter().all(|v| v.is_finite()), "row {row}");
            }
        }
    }
}

//! Attention, and the keys and values it reads.
//!
//! Keys lie in panels of 16 tokens, `[head_dim][16]`, so that 16 scores are one vector; values lie
//! `[tokens][width]`, `width` being `head_dim` rounded up to 16. Panels sit at absolute positions, and a
//! query's scores, their sum and the mixture are accumulated over its keys in ascending order: the result
//! does not depend on how the prompt was cut.

use std::ops::Range;

use rayon::prelude::*;

use super::isa::Isa;
use super::kernels::{self, LANES};
use crate::backend::{HeadShape, Mat};

/// Queries handled together by one task: they read each key once from the cache.
const TILE: usize = 32;

/// Keys and values of one head.
#[derive(Clone, Debug, Default)]
struct HeadKv {
    /// `[panel][head_dim][16]`; unused places of the last panel are 0.
    keys: Vec<f32>,
    /// `[token][width]`
    values: Vec<f32>,
    len: usize,
}

impl HeadKv {
    fn push(&mut self, key: &[f32], value: &[f32]) {
        let (head_dim, width, lane) = (key.len(), width(key.len()), self.len % LANES);
        if lane == 0 {
            self.keys.resize(self.keys.len() + head_dim * LANES, 0.0);
        }
        let panel_start = self.len / LANES * head_dim * LANES;
        for (d, &key) in key.iter().enumerate() {
            self.keys[panel_start + d * LANES + lane] = key;
        }
        self.values.extend_from_slice(value);
        self.values.resize((self.len + 1) * width, 0.0);
        self.len += 1;
    }

    fn truncate(&mut self, len: usize, head_dim: usize) {
        if len < self.len {
            self.keys.truncate(len.div_ceil(LANES) * head_dim * LANES);
            self.values.truncate(len * width(head_dim));
            self.len = len;
        }
    }
}

fn width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Keys and values of one sequence, f32, all layers.
#[derive(Clone, Debug)]
pub struct CpuKv {
    /// `[layer][kv_head]`
    heads: Vec<HeadKv>,
    shape: HeadShape,
}

impl CpuKv {
    pub(super) fn new(layers: usize, shape: HeadShape) -> Self {
        Self { heads: vec![HeadKv::default(); layers * shape.kv_heads], shape }
    }

    pub(super) fn append(&mut self, layer: usize, qkv: &Mat, rows: Range<usize>, shape: HeadShape) {
        assert_eq!(shape, self.shape, "the cache was made for another shape");
        let heads = &mut self.heads[layer * shape.kv_heads..][..shape.kv_heads];
        for row in rows {
            let (keys, values) = qkv.row(row)[shape.q_width()..].split_at(shape.kv_width());
            let pairs = keys.chunks_exact(shape.head_dim).zip(values.chunks_exact(shape.head_dim));
            for (head, (key, value)) in heads.iter_mut().zip(pairs) {
                head.push(key, value);
            }
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        for head in &mut self.heads {
            head.truncate(len, self.shape.head_dim);
        }
    }
}

/// Queries of one task: rows of `qkv`, one key head, and how many keys each row sees.
struct Task<'a> {
    kv: &'a HeadKv,
    kv_head: usize,
    rows: Range<usize>,
    /// Keys that the first row sees, and whether each further row sees one more.
    visible_first: usize,
    causal: bool,
}

/// `[rows.len() * group, head_dim]` results of one task, row by row, the group's heads side by side.
fn attend(isa: Isa, qkv: &Mat, shape: HeadShape, task: &Task<'_>) -> Vec<f32> {
    let (head_dim, width, group) = (shape.head_dim, width(shape.head_dim), shape.group());
    let queries: Vec<f32> = task
        .rows
        .clone()
        .flat_map(|row| &qkv.row(row)[task.kv_head * group * head_dim..][..group * head_dim])
        .copied()
        .collect();
    let visible = |row: usize| task.visible_first + if task.causal { row } else { 0 };
    let keys = visible(task.rows.len() - 1);
    let stride = keys.next_multiple_of(LANES);
    let query_count = task.rows.len() * group;
    let mut scores = vec![0.0f32; query_count * stride];
    for (panel_index, panel) in task.kv.keys.chunks_exact(head_dim * LANES).take(stride / LANES).enumerate() {
        kernels::panel_scores(isa, &queries, head_dim, panel, &mut scores[panel_index * LANES..], stride);
    }
    let mut sums = vec![0.0f32; query_count];
    for (index, (row, sum)) in scores.chunks_exact_mut(stride).zip(&mut sums).enumerate() {
        kernels::softmax(isa, row, visible(index / group), shape.scale(), sum);
    }
    let mut mixed = vec![0.0f32; query_count * width];
    kernels::mix(isa, &scores, stride, &task.kv.values, width, keys, &mut mixed);
    let mut out = Vec::with_capacity(query_count * head_dim);
    for (mixed, sum) in mixed.chunks_exact(width).zip(sums) {
        out.extend(mixed[..head_dim].iter().map(|value| value / sum));
    }
    out
}

/// Runs the tasks on the current pool and writes their results into `y`, `[T, q_width]`.
fn run(isa: Isa, qkv: &Mat, shape: HeadShape, tasks: &[Task<'_>], y: &mut Mat) {
    let results: Vec<Vec<f32>> = tasks.par_iter().map(|task| attend(isa, qkv, shape, task)).collect();
    let columns = shape.group() * shape.head_dim;
    for (task, result) in tasks.iter().zip(results) {
        for (row, values) in task.rows.clone().zip(result.chunks_exact(columns)) {
            y.row_mut(row)[task.kv_head * columns..][..columns].copy_from_slice(values);
        }
    }
}

/// Full attention inside each segment.
pub(super) fn segments(isa: Isa, qkv: &Mat, shape: HeadShape, cu_seqlens: &[usize]) -> Mat {
    let segments: Vec<Range<usize>> = cu_seqlens.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let pairs: Vec<(usize, usize)> =
        (0..segments.len()).flat_map(|s| (0..shape.kv_heads).map(move |h| (s, h))).collect();
    let packed: Vec<HeadKv> = pairs
        .par_iter()
        .map(|&(segment, kv_head)| {
            let mut head = HeadKv::default();
            for row in segments[segment].clone() {
                let (keys, values) = qkv.row(row)[shape.q_width()..].split_at(shape.kv_width());
                let columns = kv_head * shape.head_dim..(kv_head + 1) * shape.head_dim;
                head.push(&keys[columns.clone()], &values[columns]);
            }
            head
        })
        .collect();
    let mut tasks = Vec::new();
    for (&(segment, kv_head), kv) in pairs.iter().zip(&packed) {
        let segment = segments[segment].clone();
        for start in segment.clone().step_by(TILE) {
            let rows = start..(start + TILE).min(segment.end);
            tasks.push(Task { kv, kv_head, rows, visible_first: segment.len(), causal: false });
        }
    }
    let mut y = Mat::zeros(qkv.rows, shape.q_width());
    run(isa, qkv, shape, &tasks, &mut y);
    y
}

/// Causal attention of the rows that were appended last.
pub(super) fn causal(
    isa: Isa,
    kv: &CpuKv,
    layer: usize,
    qkv: &Mat,
    rows: Range<usize>,
    shape: HeadShape,
    y: &mut Mat,
) {
    let heads = &kv.heads[layer * shape.kv_heads..][..shape.kv_heads];
    let mut tasks = Vec::new();
    for (kv_head, kv) in heads.iter().enumerate() {
        let before = kv.len - rows.len();
        for start in rows.clone().step_by(TILE) {
            let visible_first = before + (start - rows.start) + 1;
            let rows = start..(start + TILE).min(rows.end);
            tasks.push(Task { kv, kv_head, rows, visible_first, causal: true });
        }
    }
    run(isa, qkv, shape, &tasks, y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::KvPart;
    use crate::backend::reference::Reference;

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 4), (4, 2, 10), (6, 2, 16), (2, 2, 24), (3, 1, 72), (5, 5, 8)];
    /// Around the edges of a panel of keys and of a tile of queries.
    const LENGTHS: [usize; 8] = [1, 2, 15, 16, 17, 32, 33, 50];

    fn noise(rows: usize, shape: HeadShape) -> Mat {
        let cols = shape.qkv_width();
        let mut state = (rows * 31 + cols) as u32;
        let values = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        });
        Mat { rows, cols, values: values.collect::<Vec<f32>>().into() }
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

    fn assert_close(got: &Mat, expected: &Mat, what: &str) {
        assert_eq!((got.rows, got.cols), (expected.rows, expected.cols), "{what}");
        for (index, (got, expected)) in got.values.iter().zip(expected.values.iter()).enumerate() {
            assert!((got - expected).abs() < 1e-5, "{what}, value {index}: {got}, expected {expected}");
        }
    }

    #[test]
    fn segments_equal_the_formula() {
        check(|isa, shape, rows| {
            let qkv = noise(rows, shape);
            let cu_seqlens = [0, rows.div_ceil(3), rows.div_ceil(3), rows];
            let got = segments(isa, &qkv, shape, &cu_seqlens);
            let expected = Reference.segment_attention(&qkv, shape, &cu_seqlens);
            assert_close(&got, &expected, &format!("{shape:?}, {rows} rows, {}", isa.name()));
        });
    }

    #[test]
    fn causal_equals_the_formula_and_writes_no_other_row() {
        check(|isa, shape, rows| {
            let qkv = noise(rows + 2, shape);
            let chosen = 1..rows + 1;
            let mut kv = CpuKv::new(2, shape);
            kv.append(1, &qkv, chosen.clone(), shape);
            let mut got = Mat {
                values: vec![7.5; (rows + 2) * shape.q_width()].into(),
                ..Mat::zeros(rows + 2, shape.q_width())
            };
            causal(isa, &kv, 1, &qkv, chosen.clone(), shape, &mut got);

            let mut reference = Reference.kv(2, shape);
            let mut expected = Mat { values: vec![7.5; got.values.len()].into(), ..got };
            let mut parts = [KvPart { kv: &mut reference, rows: chosen }];
            Reference.kv_attention(&mut parts, 1, &qkv, shape, &mut expected);
            assert_close(&got, &expected, &format!("{shape:?}, {rows} rows, {}", isa.name()));
            assert!(
                got.row(0).iter().chain(got.row(rows + 1)).all(|&value| value == 7.5),
                "wrote outside its rows"
            );
        });
    }

    #[test]
    fn cut_anywhere_and_cut_back_it_has_the_same_bits() {
        let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 10 };
        for rows in LENGTHS {
            let qkv = noise(rows, shape);
            let other = Mat { values: qkv.values.iter().map(|v| 1.0 - v).collect::<Vec<f32>>().into(), ..qkv };
            let mut whole = Mat::zeros(rows, shape.q_width());
            let mut kv = CpuKv::new(1, shape);
            kv.append(0, &qkv, 0..rows, shape);
            causal(Isa::detect(), &kv, 0, &qkv, 0..rows, shape, &mut whole);
            for cut in 0..rows {
                // What is given up is not what comes again.
                kv.truncate(cut);
                kv.append(0, &other, cut..rows, shape);
                kv.truncate(cut);
                let mut parts = Mat::zeros(rows, shape.q_width());
                let mut fresh = CpuKv::new(1, shape);
                for (kv, range) in [(&mut fresh, 0..cut), (&mut kv, cut..rows)] {
                    kv.append(0, &qkv, range.clone(), shape);
                    causal(Isa::detect(), kv, 0, &qkv, range, shape, &mut parts);
                }
                assert_eq!(parts, whole, "{rows} rows cut at {cut}");
            }
        }
    }
}

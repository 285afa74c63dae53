//! Linear layers: which thread computes which block of the result, and what is done with it there.
//!
//! A block of outputs is computed into a buffer of the thread and finished (bias, residual, activation) on its
//! way into the result. What a value is made of, and in which order, depends on its own row of the input
//! and its own output only, see [`dots`](super::dots) and [`panels`](super::panels).

use std::cell::RefCell;
use std::ops::Range;

use super::activations::QuantRows;
use super::blocks::{Block, Tiling, for_each_block};
use super::dots::{self, CHUNK, Dots, Weights};
use super::isa::Isa;
use super::matrix::{CpuMatrix, Segment};
use super::panel_dots::{self, Product};
use super::panels::PANEL;
use super::team::Team;
use crate::backend::Mat;
use crate::backend::mat::Values;

/// Outputs of a block: unpacked to f32, a chunk of them takes 128 KiB, half a second-level cache of 256 KiB.
const COLUMNS: usize = 64;

/// Rows of a block: enough that unpacking its weights is a small part of the work.
const ROWS: usize = 128;

/// Up to so many rows, weights are converted in registers each time instead of once into the cache.
const FEW_ROWS: usize = 12;

/// Multiplications below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 17;

/// What a thread computes in.
#[derive(Default)]
struct Scratch {
    /// Unpacked weights.
    weights: Values,
    /// The products of a block, `[rows][COLUMNS]`.
    products: Values,
    /// Those of the second matrix of a pair.
    seconds: Values,
    /// The products with panels, `[panel][row][16]`.
    panels: Values,
}

thread_local! {
    /// Kept between operations: a steady decode step allocates nothing.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows of activations.
pub(super) struct Input<'a> {
    /// As they are.
    pub(super) x: &'a Mat,
    /// In 8 bits, if quantised weights are to be multiplied in integers.
    pub(super) quantized: Option<&'a QuantRows>,
}

/// For each row of `x` and each output of `weight`, gives the products to `finish(y, products, outputs)`:
/// some columns of a row of `y` and the products that belong there.
pub(super) fn product(
    isa: Isa,
    team: &Team,
    weight: &CpuMatrix,
    input: &Input<'_>,
    y: &mut Mat,
    finish: impl Fn(&mut [f32], &[f32], Range<usize>) + Sync,
) {
    let x = input.x;
    if x.rows == 0 {
        return;
    }
    assert_eq!((x.cols, y.cols, x.rows), (weight.cols(), weight.rows(), y.rows), "linear: shapes");
    let parallel = x.rows * x.cols * y.cols >= PARALLEL_MIN;
    for_each_block(team, y, tiling(weight, &[x.rows]), parallel, |mut block| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { weights, products, panels, .. } = scratch;
            compute(isa, weight, input, &block, weights, panels, products);
            let columns = block.place.columns.clone();
            for row in 0..block.place.rows.len() {
                finish(block.row(row), &products[row * COLUMNS..][..columns.len()], columns.clone());
            }
        });
    });
}

/// The same for two matrices of one shape, whose products are wanted together: `finish(y, first, second)`.
pub(super) fn product_of_two(
    isa: Isa,
    team: &Team,
    [first, second]: [&CpuMatrix; 2],
    input: &Input<'_>,
    y: &mut Mat,
    finish: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) {
    let x = input.x;
    if x.rows == 0 {
        return;
    }
    assert_eq!((x.cols, y.cols, x.rows), (first.cols(), first.rows(), y.rows), "linear: shapes");
    assert_eq!((first.cols(), first.borders()), (second.cols(), second.borders()), "a pair of one shape");
    let parallel = x.rows * x.cols * y.cols >= PARALLEL_MIN;
    for_each_block(team, y, tiling(first, &[x.rows]), parallel, |mut block| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { weights, products, seconds, panels } = scratch;
            compute(isa, first, input, &block, weights, panels, products);
            compute(isa, second, input, &block, weights, panels, seconds);
            let count = block.place.columns.len();
            for row in 0..block.place.rows.len() {
                let at = row * COLUMNS;
                finish(block.row(row), &products[at..][..count], &seconds[at..][..count]);
            }
        });
    });
}

fn tiling<'a>(weight: &'a CpuMatrix, row_borders: &'a [usize]) -> Tiling<'a> {
    Tiling { row_borders, borders: weight.borders(), row_block: ROWS, col_block: COLUMNS }
}

/// The products of one block, `[rows][COLUMNS]`.
fn compute(
    isa: Isa,
    weight: &CpuMatrix,
    input: &Input<'_>,
    block: &Block<'_>,
    unpacked: &mut Values,
    by_panel: &mut Values,
    products: &mut Values,
) {
    let (rows, cols) = (block.place.rows.clone(), weight.cols());
    let (segment, outputs) = weight.segment(block.place.run, block.place.columns.clone());
    products.resize(rows.len() * COLUMNS);
    let x = &input.x.values[rows.start * cols..rows.end * cols];
    let x_rows = rows.len();
    match segment {
        Segment::Stored(stored) => {
            if x_rows <= FEW_ROWS
                && let Some(w) = stored.in_place(outputs.clone(), cols)
            {
                let mut job = Dots {
                    x,
                    x_rows,
                    x_stride: cols,
                    w,
                    w_rows: outputs.len(),
                    w_stride: cols,
                    k: cols,
                    out: products,
                    out_stride: COLUMNS,
                    add: false,
                };
                dots::dots(isa, &mut job);
                return;
            }
            let mut start = 0;
            while start < cols {
                let k = CHUNK.min(cols - start);
                unpacked.resize(outputs.len() * k);
                stored.unpack(isa, outputs.clone(), start..start + k, cols, unpacked);
                let mut job = Dots {
                    x: &x[start..],
                    x_rows,
                    x_stride: cols,
                    w: Weights::F32(unpacked),
                    w_rows: outputs.len(),
                    w_stride: k,
                    k,
                    out: products,
                    out_stride: COLUMNS,
                    add: start > 0,
                };
                dots::dots(isa, &mut job);
                start += k;
            }
        }
        Segment::Panels(panels) => match input.quantized {
            Some(quantized) => {
                let wanted = outputs.start / PANEL..outputs.end.div_ceil(PANEL);
                by_panel.resize(wanted.len() * x_rows * PANEL);
                let mut job =
                    Product { weights: panels, panels: wanted.clone(), x: quantized, rows, out: by_panel };
                panel_dots::product(isa, &mut job);
                for panel in 0..wanted.len() {
                    let first = panel * PANEL;
                    let count = PANEL.min(outputs.len() - first);
                    for row in 0..x_rows {
                        let from = &by_panel[(panel * x_rows + row) * PANEL..][..count];
                        products[row * COLUMNS + first..][..count].copy_from_slice(from);
                    }
                }
            }
            // Exact activations: the weights' decoded values, as if they were stored so.
            None => {
                unpacked.resize(outputs.len() * cols);
                for (row, out) in outputs.clone().zip(unpacked.chunks_exact_mut(cols)) {
                    panels.unpack_row(row, out);
                }
                let mut job = Dots {
                    x,
                    x_rows,
                    x_stride: cols,
                    w: Weights::F32(unpacked),
                    w_rows: outputs.len(),
                    w_stride: cols,
                    k: cols,
                    out: products,
                    out_stride: COLUMNS,
                    add: false,
                };
                dots::dots(isa, &mut job);
            }
        },
    }
}

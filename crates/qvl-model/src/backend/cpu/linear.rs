//! Linear layers: which thread computes which block of the result, and what is done with it there.
//!
//! A block of outputs is computed into a buffer of the thread and finished (bias, residual, activation) on its
//! way into the result. What a value is made of, and in which order, depends on its own row of the input
//! and its own output only, see [`dots`](super::dots) and [`panels`](super::panels).

use std::cell::RefCell;
use std::ops::Range;

use smallvec::SmallVec;

use super::activations::QuantRows;
use super::amx::floats::TileProduct;
use super::amx::{self, Amx};
use super::blocks::{Block, Order, Tiling, for_each_block};
use super::dots::{self, CHUNK, Dots, Pack, PackedDots, Side, WHOLE_TILES, Weights};
use super::isa::Isa;
use super::matrix::{CpuMatrix, Segment};
use super::panel_dots::{self, Product};
use super::panels::PANEL;
use super::team::Team;
use crate::backend::Mat;
use crate::backend::mat::Values;

/// Outputs of a block: unpacked to f32, a chunk of them takes 128 KiB, half a second-level cache of 256 KiB.
const COLUMNS: usize = 64;

/// Outputs of a block of packed rows, if there are enough blocks: all activations come from memory once for
/// each block of outputs.
const PACKED_COLUMNS: usize = 4 * COLUMNS;

/// Rows of a block: enough that packing its weights is a small part of the work. Whole register tiles.
const ROWS: usize = 84 * WHOLE_TILES;

/// Outputs and rows of a block that is computed in tiles: of 2,048 inputs both take a quarter of a second-level
/// cache of 2 MiB, and what has to come from further away is little beside the products.
const TILE_COLUMNS: usize = 256;
const TILE_ROWS: usize = 256;

/// Rows so few that reading the weights is what takes the time.
const FEW_ROWS: usize = 16;

/// Rows of a block that panels are multiplied with at once: their sums with two panels take 16 KiB.
const NEAR_ROWS: usize = 128;

/// Multiplications below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 17;

/// Values below which packing them on several threads costs more than it saves.
const PACK_PARALLEL_MIN: usize = 1 << 15;

/// What a thread computes in.
#[derive(Default)]
struct Scratch {
    /// Unpacked weights.
    weights: Values,
    /// Packed weights.
    packed: Values,
    /// The products of a block, in rows of whole panels.
    products: Values,
    /// Those of the second matrix of a pair.
    seconds: Values,
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
    /// Packed by [`pack`], if that pays and weights are to be multiplied as floats.
    pub(super) packed: Option<&'a [f32]>,
    /// Rounded to bfloat16 and packed by [`round`], if weights are to be multiplied in tiles.
    pub(super) rounded: Option<(Amx, &'a [u32])>,
    /// Whether there are tiles.
    pub(super) tiles: bool,
}

impl Input<'_> {
    /// How the products with `weight` are cut into blocks.
    fn tiling<'a>(&self, team: &Team, weight: &'a CpuMatrix, row_borders: &'a [usize]) -> Tiling<'a> {
        let tiling = |row_block, col_block| {
            let (borders, order) = (weight.borders(), Order::ByColumns);
            Tiling { row_borders, borders, row_block, col_block, order }
        };
        // A few rows are a matter of memory, not of caches: small blocks are divided among threads more evenly.
        if self.tiles && self.x.rows > FEW_ROWS && (self.rounded.is_some() || self.quantized.is_some()) {
            // Longer rows are cut into chunks, and come from further away for each block.
            let columns =
                if weight.cols() <= amx::floats::CHUNK_INPUTS { TILE_COLUMNS } else { 2 * TILE_COLUMNS };
            let tiling = Tiling { order: Order::ByRows, ..tiling(TILE_ROWS, columns) };
            return match tiling.len() < 4 * team.threads() {
                true => Tiling { col_block: TILE_COLUMNS / 4, ..tiling },
                false => tiling,
            };
        }
        if self.packed.is_some() && (self.quantized.is_none() || !weight.has_panels()) {
            let wide = tiling(ROWS, PACKED_COLUMNS);
            // So many that threads that end early wait for a small part of the time.
            if wide.len() >= 4 * team.threads() {
                return wide;
            }
        }
        tiling(ROWS, COLUMNS)
    }
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
    for_each_block(team, y, input.tiling(team, weight, &[x.rows]), parallel, |mut block| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { weights, packed, products, .. } = scratch;
            let stride = compute(isa, weight, input, &block, [weights, packed], products);
            let columns = block.place.columns.clone();
            for row in 0..block.place.rows.len() {
                finish(block.row(row), &products[row * stride..][..columns.len()], columns.clone());
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
    for_each_block(team, y, input.tiling(team, first, &[x.rows]), parallel, |mut block| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { weights, packed, products, seconds } = scratch;
            let stride = compute(isa, first, input, &block, [weights, packed], products);
            compute(isa, second, input, &block, [weights, packed], seconds);
            let count = block.place.columns.len();
            for row in 0..block.place.rows.len() {
                let at = row * stride;
                finish(block.row(row), &products[at..][..count], &seconds[at..][..count]);
            }
        });
    });
}

/// The products of one block, in rows of whole panels: how many values lie between two rows is returned.
fn compute(
    isa: Isa,
    weight: &CpuMatrix,
    input: &Input<'_>,
    block: &Block<'_>,
    [unpacked, packed]: [&mut Values; 2],
    products: &mut Values,
) -> usize {
    let (rows, cols) = (block.place.rows.clone(), weight.cols());
    let (segment, outputs) = weight.segment(block.place.run, block.place.columns.clone());
    let columns = outputs.len();
    let stride = columns.next_multiple_of(PANEL);
    products.resize(rows.len() * stride);
    match segment {
        Segment::Stored(stored) => {
            if let Some((amx, x)) = input.rounded
                && let Some(w) = stored.bf16_rows(outputs.clone(), cols, unpacked)
            {
                let (x_rows, w_rows) = (input.x.rows, columns);
                let (out, out_stride, room) = (products, stride, packed);
                let mut job = TileProduct { x, x_rows, rows, w, w_rows, k: cols, out, out_stride, room };
                amx::floats::product(amx, &mut job);
                return stride;
            }
            let weights = stored.in_place(outputs.clone(), cols).unwrap_or_else(|| {
                unpacked.resize(outputs.len() * cols);
                stored.unpack(isa, outputs.clone(), cols, unpacked);
                Weights::F32(unpacked)
            });
            float_products(isa, input, rows, weights, [columns, stride], packed, products);
        }
        Segment::Panels(panels) => match input.quantized {
            Some(quantized) => {
                let wanted = outputs.start / PANEL..outputs.end.div_ceil(PANEL);
                // Sums that tiles leave in registers need not stay near.
                let near = if input.tiles { TILE_ROWS } else { NEAR_ROWS };
                let mut start = rows.start;
                let mut products = &mut products[..];
                while start < rows.end {
                    let count = match rows.end - start {
                        left @ ..=panel_dots::TILE_ROWS => left,
                        // What is not a whole tile comes last, alone.
                        left => left.min(near) / panel_dots::TILE_ROWS * panel_dots::TILE_ROWS,
                    };
                    let (here, behind) = products.split_at_mut(count * stride);
                    let (panels, weights, rows) = (wanted.clone(), panels, start..start + count);
                    let (x, out, out_stride, room) = (quantized, here, stride, &mut *packed);
                    let mut job = Product { weights, panels, x, rows, out, out_stride, room };
                    panel_dots::product(isa, &mut job);
                    (start, products) = (start + count, behind);
                }
            }
            // Exact activations: the weights' decoded values, as if they were stored so.
            None => {
                unpacked.resize(outputs.len() * cols);
                for (row, out) in outputs.clone().zip(unpacked.chunks_exact_mut(cols)) {
                    panels.unpack_row(row, out);
                }
                float_products(isa, input, rows, Weights::F32(unpacked), [columns, stride], packed, products);
            }
        },
    }
    stride
}

/// The products of some rows with `w_rows` rows of weights, in floats, in rows of `stride` values.
fn float_products(
    isa: Isa,
    input: &Input<'_>,
    rows: Range<usize>,
    weights: Weights<'_>,
    [w_rows, stride]: [usize; 2],
    packed: &mut Values,
    products: &mut [f32],
) {
    let cols = input.x.cols;
    let Some(x) = input.packed else {
        let mut job = Dots {
            x: &input.x.values[rows.start * cols..rows.end * cols],
            x_rows: rows.len(),
            x_stride: cols,
            w: weights,
            w_rows,
            w_stride: cols,
            k: cols,
            out: products,
            out_stride: stride,
        };
        dots::dots(isa, &mut job);
        return;
    };
    let x = &x[dots::packed_len(isa, Side::Activations, rows.start, cols)..];
    for start in (0..cols).step_by(CHUNK) {
        let k = CHUNK.min(cols - start);
        packed.resize(dots::packed_len(isa, Side::Weights, w_rows, k));
        let from = weights.skip_inputs(start);
        dots::pack(isa, &mut Pack { from, stride: cols, rows: w_rows, k, side: Side::Weights, out: packed });
        let mut job = PackedDots {
            x,
            x_rows: rows.len(),
            x_cols: cols,
            start,
            w: packed,
            w_rows,
            k,
            out: products,
            out_stride: stride,
        };
        dots::packed_dots(isa, &mut job);
    }
}

/// Rounds and packs rows of activations for [`Input::rounded`]; on all threads of the team if there is much of it.
pub(super) fn round(amx: Amx, team: &Team, x: &Mat, out: &mut [u32]) {
    if x.rows == 0 {
        return;
    }
    let width = amx::floats::pack_rows(x.rows);
    let part = amx::floats::packed_len(width, x.cols);
    let mut parts: SmallVec<[&mut [u32]; 64]> = out.chunks_mut(part).collect();
    let pack = |index: usize, out: &mut &mut [u32]| {
        let first = (index * width).min(x.rows);
        let rows = width.min(x.rows - first);
        amx::floats::pack(amx, &x.values[first * x.cols..], rows, x.cols, width, out);
    };
    if x.values.len() >= PACK_PARALLEL_MIN {
        team.for_each_mut(&mut parts, pack);
    } else {
        parts.iter_mut().enumerate().for_each(|(index, part)| pack(index, part));
    }
}

/// Packs rows of activations for [`Input::packed`]; on all threads of the team if there is much of it.
pub(super) fn pack(isa: Isa, team: &Team, x: &Mat, out: &mut [f32]) {
    let part = dots::packed_len(isa, Side::Activations, WHOLE_TILES, x.cols);
    let mut parts: SmallVec<[&mut [f32]; 64]> = out.chunks_mut(part).collect();
    let pack = |index: usize, out: &mut &mut [f32]| {
        let first = index * WHOLE_TILES;
        let from = Weights::F32(&x.values[first * x.cols..]);
        let rows = WHOLE_TILES.min(x.rows - first);
        let side = Side::Activations;
        dots::pack(isa, &mut Pack { from, stride: x.cols, rows, k: x.cols, side, out });
    };
    if x.values.len() >= PACK_PARALLEL_MIN {
        team.for_each_mut(&mut parts, pack);
    } else {
        parts.iter_mut().enumerate().for_each(|(index, part)| pack(index, part));
    }
}

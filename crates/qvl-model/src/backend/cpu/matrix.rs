//! Weight matrices as they lie in the checkpoint, and the product with them.
//!
//! A panel of eight output columns is unpacked to f32 in the cache and multiplied with all rows of the
//! input, so bf16, f16 and f32 weights, and both layouts, share one kernel and one order of accumulation.

use half::{bf16, f16};
use rayon::prelude::*;

use super::isa::Isa;
use super::kernels;
use crate::backend::{Layout, Mat};
use crate::checkpoint::{Dtype, TensorView};

/// Output columns unpacked at a time: with an input width of 6,144 that is 192 KiB, within a second-level
/// cache of 256 KiB.
pub(super) const PANEL: usize = 8;

/// Up to so many rows of input, weights are converted in registers instead of in the cache.
const FEW_ROWS: usize = 2;

/// A weight matrix `[rows (out), cols (in)]`: views into the checkpoint, stacked.
#[derive(Debug)]
pub struct CpuMatrix {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

#[derive(Debug)]
struct Part {
    view: TensorView,
    layout: Layout,
    first_row: usize,
    rows: usize,
}

impl CpuMatrix {
    pub(super) fn new(parts: &[TensorView], layout: Layout) -> Self {
        let mut rows = 0;
        let mut cols = 0;
        let parts = parts
            .iter()
            .map(|view| {
                let (first, rest) = (view.shape()[0], view.shape()[1..].iter().product());
                let (part_rows, part_cols) = match layout {
                    Layout::OutIn => (first, rest),
                    Layout::InOut => (rest, first),
                };
                assert!(rows == 0 || cols == part_cols, "stacked matrices have the same input width");
                let part = Part { view: view.clone(), layout, first_row: rows, rows: part_rows };
                rows += part_rows;
                cols = part_cols;
                part
            })
            .collect();
        Self { parts, rows, cols }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored bytes of `count` rows from `first` on, if they lie together as bfloat16.
    fn bf16_rows(&self, first: usize, count: usize) -> Option<&[u8]> {
        let part = &self.parts[self.parts.partition_point(|part| part.first_row + part.rows <= first)];
        let row = first - part.first_row;
        let is_plain = part.layout == Layout::OutIn && part.view.dtype() == Dtype::Bf16;
        (is_plain && row + count <= part.rows)
            .then(|| &part.view.bytes()[2 * row * self.cols..][..2 * count * self.cols])
    }

    /// Rows from `first` on as f32 into `out`, `[count, cols]`.
    pub(super) fn unpack_rows(&self, isa: Isa, first: usize, out: &mut [f32]) {
        let (mut row, mut out) = (first, out);
        while !out.is_empty() {
            let part = &self.parts[self.parts.partition_point(|part| part.first_row + part.rows <= row)];
            let count = (part.first_row + part.rows - row).min(out.len() / self.cols);
            let (these, rest) = out.split_at_mut(count * self.cols);
            part.unpack(isa, row - part.first_row, self.cols, these);
            (row, out) = (row + count, rest);
        }
    }
}

impl Part {
    /// Rows from `first` of this part on.
    fn unpack(&self, isa: Isa, first: usize, cols: usize, out: &mut [f32]) {
        let dtype = self.view.dtype();
        let size = dtype.bytes();
        match self.layout {
            Layout::OutIn => {
                let bytes = &self.view.bytes()[first * cols * size..][..out.len() * size];
                match dtype {
                    Dtype::Bf16 => kernels::unpack_bf16(isa, bytes, out),
                    Dtype::F16 | Dtype::F32 => {
                        for (index, out) in out.iter_mut().enumerate() {
                            *out = value(dtype, bytes, index);
                        }
                    }
                }
            }
            // The values of one input lie together: each cache line is read once for all rows of a panel.
            Layout::InOut => {
                let bytes = self.view.bytes();
                let count = out.len() / cols;
                for k in 0..cols {
                    for offset in 0..count {
                        out[offset * cols + k] = value(dtype, bytes, k * self.rows + first + offset);
                    }
                }
            }
        }
    }
}

/// Value `index` of a stored array.
fn value(dtype: Dtype, bytes: &[u8], index: usize) -> f32 {
    let at = index * dtype.bytes();
    match dtype {
        Dtype::Bf16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        Dtype::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        Dtype::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
    }
}

/// `x Wᵀ` by panels: `[panel][row of x][PANEL]`, the last panel padded. Runs on the current pool.
pub(super) fn panels(isa: Isa, weight: &CpuMatrix, x: &Mat) -> Vec<f32> {
    let panel_count = weight.rows.div_ceil(PANEL);
    let mut products = vec![0.0f32; panel_count * x.rows * PANEL];
    products.par_chunks_mut(x.rows * PANEL).enumerate().for_each_init(
        Vec::new,
        |unpacked, (panel_index, out)| {
            let first = panel_index * PANEL;
            let count = PANEL.min(weight.rows - first);
            if x.rows <= FEW_ROWS
                && let Some(bytes) = weight.bf16_rows(first, count)
            {
                kernels::dots_bf16(isa, &x.values, bytes, weight.cols, out, PANEL);
                return;
            }
            unpacked.resize(PANEL * weight.cols, 0.0);
            weight.unpack_rows(isa, first, &mut unpacked[..count * weight.cols]);
            kernels::dots(isa, &x.values, &unpacked[..count * weight.cols], weight.cols, out, PANEL);
        },
    );
    products
}

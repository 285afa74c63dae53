//! Weight matrices as they lie in the checkpoint, and the product with them.
//!
//! A panel of eight output columns is unpacked to f32 in the cache and multiplied with all rows of the
//! input, so bf16, f16 and f32 weights, and both layouts, share one kernel and one order of accumulation.

use half::f16;
use rayon::prelude::*;

use super::kernels::{self, Isa};
use crate::backend::{Layout, Mat};
use crate::checkpoint::{Dtype, TensorView};

/// Output columns unpacked at a time: with an input width of 6,144 that is 192 KiB, within a second-level
/// cache of 256 KiB.
pub(super) const PANEL: usize = 8;

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

    /// Row `row` as f32 into `out`, `[cols]`.
    pub(super) fn unpack_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let part_index = self.parts.partition_point(|part| part.first_row + part.rows <= row);
        let part = &self.parts[part_index];
        let row = row - part.first_row;
        let bytes = part.view.bytes();
        let size = part.view.dtype().bytes();
        match part.layout {
            Layout::OutIn => {
                let bytes = &bytes[row * self.cols * size..][..self.cols * size];
                match part.view.dtype() {
                    Dtype::Bf16 => kernels::unpack_bf16(isa, bytes, out),
                    Dtype::F16 => {
                        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                            *out = f16::from_le_bytes([b[0], b[1]]).to_f32();
                        }
                    }
                    Dtype::F32 => {
                        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                            *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                        }
                    }
                }
            }
            Layout::InOut => {
                for (k, out) in out.iter_mut().enumerate() {
                    let b = &bytes[(k * part.rows + row) * size..][..size];
                    *out = match part.view.dtype() {
                        Dtype::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
                        Dtype::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
                        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                    };
                }
            }
        }
    }
}

/// `x Wᵀ` by panels: `[panel][row of x][PANEL]`, the last panel padded. Runs on the current pool.
pub(super) fn panels(isa: Isa, weight: &CpuMatrix, x: &Mat) -> Vec<f32> {
    let panel_count = weight.rows.div_ceil(PANEL);
    let mut products = vec![0.0f32; panel_count * x.rows * PANEL];
    products.par_chunks_mut(x.rows * PANEL).enumerate().for_each_init(
        || vec![0.0f32; PANEL * weight.cols],
        |unpacked, (panel_index, out)| {
            let first = panel_index * PANEL;
            let count = PANEL.min(weight.rows - first);
            for (offset, row) in unpacked.chunks_exact_mut(weight.cols).take(count).enumerate() {
                weight.unpack_row(isa, first + offset, row);
            }
            kernels::dots(isa, &x.values, &unpacked[..count * weight.cols], weight.cols, out, PANEL);
        },
    );
    products
}

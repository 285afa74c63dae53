//! The CPU backend: f32 activations, weights read where they lie (a memory map, usually), blocked loops on
//! a pool of threads.
//!
//! How each result is accumulated is fixed by the shape of one row (see the kernels), so neither the rows
//! beside it, nor the number of threads, nor the instruction set changes a bit of it: multiplication and
//! addition stay two roundings everywhere.

mod attention;
mod isa;
mod kernels;
mod matrix;

use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::{Backend, Experts, Gelu, HeadShape, Layout, Linear, Mat, Taps};
use crate::checkpoint::TensorView;
use crate::error::{Error, Result};
use crate::moe::route;
pub use attention::CpuKv;
pub use isa::{ISA_VARIABLE, Isa};
pub use matrix::CpuMatrix;

/// Computes on this machine's cores.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    isa: Isa,
}

/// Most compute threads: more than any machine has cores, few enough to start in no time.
const THREADS_MAX: usize = 1024;

impl Cpu {
    /// A backend with `threads` compute threads; 0 takes one for each core the process may use.
    ///
    /// # Errors
    /// [`Error::Threads`] if they cannot be started; [`Error::Isa`] if `QVL_ISA` asks for what is not there.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::from_env()?)
    }

    /// A backend that uses no better instructions than `isa`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        if threads > THREADS_MAX {
            let reason = format!("at most {THREADS_MAX} can be asked for; 0 takes all cores");
            return Err(Error::Threads { threads, reason });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("qvl-compute-{index}"))
            .build()
            .map_err(|error| Error::Threads { threads, reason: error.to_string() })?;
        Ok(Self { pool, isa })
    }

    /// Compute threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Applies `f` to every row of `x`, in parallel.
    fn each_row(&self, x: &mut Mat, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
        if x.values.is_empty() {
            return;
        }
        let cols = x.cols;
        // A row of a few KiB costs less than handing it to another thread.
        let rows_min = (16_384 / cols).max(1);
        self.pool.install(|| {
            x.values
                .par_chunks_mut(cols)
                .with_min_len(rows_min)
                .enumerate()
                .for_each(|(row, values)| f(row, values));
        });
    }

    /// Writes or adds `x Wᵀ + bias` to `y`.
    fn product(&self, weight: &CpuMatrix, bias: Option<&Vec<f32>>, x: &Mat, y: &mut Mat, add: bool) {
        assert_eq!((x.cols, y.cols, x.rows), (weight.cols(), weight.rows(), y.rows), "linear: shapes");
        if x.rows == 0 {
            return;
        }
        let panels = self.pool.install(|| matrix::panels(self.isa, weight, x));
        self.each_row(y, |row, y| {
            for (panel_index, y) in y.chunks_mut(matrix::PANEL).enumerate() {
                let first = panel_index * matrix::PANEL;
                let products =
                    &panels[panel_index * x.rows * matrix::PANEL..][row * matrix::PANEL..][..y.len()];
                for (offset, (y, &product)) in y.iter_mut().zip(products).enumerate() {
                    let value = match bias {
                        Some(bias) => product + bias[first + offset],
                        None => product,
                    };
                    *y = if add { *y + value } else { value };
                }
            }
        });
    }
}

impl Backend for Cpu {
    type Buffer = Mat;
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Kv = CpuKv;

    fn matrix(&self, parts: &[TensorView], layout: Layout) -> Result<CpuMatrix> {
        Ok(CpuMatrix::new(parts, layout))
    }

    fn vector(&self, tensor: &TensorView) -> Result<Vec<f32>> {
        Ok(tensor.to_f32())
    }

    fn kv(&self, layers: usize, shape: HeadShape) -> CpuKv {
        CpuKv::new(layers, shape)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Mat {
        Mat::zeros(rows, cols)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Mat {
        Mat::from_slice(rows, cols, values)
    }

    fn download(&self, x: &Mat) -> Vec<f32> {
        x.values.clone()
    }

    fn reshape(&self, x: Mat, rows: usize, cols: usize) -> Mat {
        x.reshape(rows, cols)
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32]) -> Mat {
        let mut y = Mat::zeros(ids.len(), table.cols());
        for (row, &id) in ids.iter().enumerate() {
            table.unpack_rows(self.isa, id as usize, y.row_mut(row));
        }
        y
    }

    fn linear(&self, linear: &Linear<Self>, x: &Mat) -> Mat {
        let mut y = Mat::zeros(x.rows, linear.weight.rows());
        self.product(&linear.weight, linear.bias.as_ref(), x, &mut y, false);
        y
    }

    fn linear_add(&self, linear: &Linear<Self>, x: &Mat, y: &mut Mat) {
        self.product(&linear.weight, linear.bias.as_ref(), x, y, true);
    }

    fn rms_norm(&self, x: &Mat, weight: &Vec<f32>, eps: f32) -> Mat {
        let mut y = x.clone();
        self.each_row(&mut y, |_, row| kernels::rms_norm(self.isa, row, weight, eps));
        y
    }

    fn layer_norm(&self, x: &Mat, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32) -> Mat {
        let mut y = x.clone();
        self.each_row(&mut y, |_, row| kernels::layer_norm(self.isa, row, weight, bias, eps));
        y
    }

    fn gelu(&self, x: &mut Mat, kind: Gelu) {
        self.each_row(x, |_, row| match kind {
            Gelu::Tanh => kernels::gelu_tanh(self.isa, row),
            // Only the mergers use it, on one row a visual token.
            Gelu::Erf => {
                for v in row {
                    *v = 0.5 * *v * (1.0 + libm::erff(*v * std::f32::consts::FRAC_1_SQRT_2));
                }
            }
        });
    }

    fn swiglu(&self, gate_up: &Mat) -> Mat {
        let width = gate_up.cols / 2;
        let mut y = Mat::zeros(gate_up.rows, width);
        self.each_row(&mut y, |row, y| {
            let (gate, up) = gate_up.row(row).split_at(width);
            kernels::swiglu(self.isa, gate, up, y);
        });
        y
    }

    fn norm_rotary(
        &self,
        qkv: &mut Mat,
        shape: HeadShape,
        norms: Option<(&Vec<f32>, &Vec<f32>, f32)>,
        rotary: &Mat,
    ) {
        assert_eq!(
            (qkv.cols, rotary.cols, qkv.rows),
            (shape.qkv_width(), shape.head_dim, rotary.rows),
            "rotary"
        );
        self.each_row(qkv, |row, qkv| {
            let heads = qkv[..shape.q_width() + shape.kv_width()].chunks_mut(shape.head_dim);
            for (index, head) in heads.enumerate() {
                if let Some((q_norm, k_norm, eps)) = norms {
                    let weight = if index < shape.heads { q_norm } else { k_norm };
                    kernels::rms_norm(self.isa, head, weight, eps);
                }
                kernels::rotate(self.isa, head, rotary.row(row));
            }
        });
    }

    fn segment_attention(&self, qkv: &Mat, shape: HeadShape, cu_seqlens: &[usize]) -> Mat {
        assert_eq!((qkv.cols, cu_seqlens.last()), (shape.qkv_width(), Some(&qkv.rows)), "attention: shapes");
        self.pool.install(|| attention::segments(self.isa, qkv, shape, cu_seqlens))
    }

    fn kv_append(&self, kv: &mut CpuKv, layer: usize, qkv: &Mat, rows: Range<usize>, shape: HeadShape) {
        kv.append(layer, qkv, rows, shape);
    }

    fn kv_attention(
        &self,
        kv: &CpuKv,
        layer: usize,
        qkv: &Mat,
        rows: Range<usize>,
        shape: HeadShape,
        y: &mut Mat,
    ) {
        self.pool.install(|| attention::causal(self.isa, kv, layer, qkv, rows, shape, y));
    }

    fn kv_truncate(&self, kv: &mut CpuKv, len: usize) {
        kv.truncate(len);
    }

    fn moe_add(&self, moe: &Experts<Self>, x: &Mat, y: &mut Mat) {
        let mut logits = Mat::zeros(x.rows, moe.experts.len());
        self.product(&moe.gate, None, x, &mut logits, false);
        let routes: Vec<Vec<(usize, f32)>> =
            (0..x.rows).map(|row| route(logits.row(row), moe.top_k)).collect();
        let mut tokens_of: Vec<Vec<(usize, f32)>> = vec![Vec::new(); moe.experts.len()];
        for (row, route) in routes.iter().enumerate() {
            for &(expert, weight) in route {
                tokens_of[expert].push((row, weight));
            }
        }
        // Experts in ascending order, as transformers adds them: each row's sum has one fixed order.
        for (expert, tokens) in moe.experts.iter().zip(&tokens_of).filter(|(_, tokens)| !tokens.is_empty()) {
            let rows: Vec<usize> = tokens.iter().map(|&(row, _)| row).collect();
            let chosen = self.take_rows(x, &rows);
            let mut gate_up = Mat::zeros(rows.len(), expert.gate_up_proj.rows());
            self.product(&expert.gate_up_proj, None, &chosen, &mut gate_up, false);
            let hidden = self.swiglu(&gate_up);
            let mut out = Mat::zeros(rows.len(), expert.down_proj.rows());
            self.product(&expert.down_proj, None, &hidden, &mut out, false);
            for (index, &(row, weight)) in tokens.iter().enumerate() {
                for (y, &out) in y.row_mut(row).iter_mut().zip(out.row(index)) {
                    *y += weight * out;
                }
            }
        }
    }

    fn add_interpolated(&self, x: &mut Mat, table: &CpuMatrix, taps: &[Taps]) {
        assert_eq!((x.rows, x.cols), (taps.len(), table.cols()), "interpolation: shapes");
        let width = table.cols();
        // A few thousand learned positions: unpacked once for all patches.
        let mut unpacked = Mat::zeros(table.rows(), width);
        self.each_row(&mut unpacked, |row, values| table.unpack_rows(self.isa, row, values));
        self.each_row(x, |row, x| {
            let Taps { rows, weights } = taps[row];
            let [a, b, c, d] = rows.map(|row| unpacked.row(row as usize));
            for column in 0..width {
                x[column] += weights[0] * a[column]
                    + weights[1] * b[column]
                    + weights[2] * c[column]
                    + weights[3] * d[column];
            }
        });
    }

    fn set_rows(&self, x: &mut Mat, rows: &[usize], source: &Mat) {
        x.set_rows(rows, source);
    }

    fn add_rows(&self, x: &mut Mat, rows: &[usize], source: &Mat) {
        x.add_rows(rows, source);
    }

    fn take_rows(&self, x: &Mat, rows: &[usize]) -> Mat {
        x.take_rows(rows)
    }
}

//! The CPU backend: f32 activations, weights read where they lie (a memory map, usually), blocked loops on
//! a pool of threads.
//!
//! How each result is accumulated is fixed by the shape of one row (see the kernels), so neither the rows
//! beside it nor the number of threads change a bit of it. Instruction sets differ in rounding.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "cpu/amx_absent.rs"]
mod amx;
mod attention;
mod attention_kernels;
mod blocks;
mod dots;
mod isa;
mod kernels;
mod linear;
mod matrix;
mod options;
mod panel_dots;
mod panels;
mod team;

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::mat::Recycler;
use super::{Backend, Experts, Gelu, HeadShape, KvPart, Linear, Mat, Role, Taps, WeightPart};
use crate::checkpoint::{Dtype, TensorView};
use crate::error::{Error, Result};
use crate::moe::route;
use activations::QuantRows;
use amx::Amx;
pub use attention::CpuKv;
use attention::KvFormat;
use blocks::{Order, Tiling, for_each_block};
use dots::Side;
pub use isa::{ISA_VARIABLE, Isa};
use linear::Input;
pub use matrix::CpuMatrix;
use matrix::{Segment, Stored};
pub use options::{CpuOptions, WeightFormat};
use panels::{PackError, Panels};
use team::Team;

/// Computes on this machine's cores.
#[derive(Debug)]
pub struct Cpu {
    team: Team,
    isa: Isa,
    options: CpuOptions,
    recycler: Arc<Recycler>,
    /// Memory of quantised activations between two uses.
    quantized: Mutex<Vec<QuantRows>>,
    /// Memory of the vision tower's keys and values between two layers.
    vision_kv: Mutex<Vec<CpuKv>>,
}

/// Physical cores this process may use: a second thread on a core shares its arithmetic units and gains
/// nothing here.
fn cores() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, usable)
}

/// Values below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 15;

/// Bytes of dropped activations kept for the next ones: what a prefill of 512 tokens of the 8B shape uses.
const RECYCLED_BYTES_MAX: usize = 256 << 20;

/// Most compute threads: more than any machine has cores, few enough to start in no time.
const THREADS_MAX: usize = 1024;

impl Cpu {
    /// A backend with `threads` compute threads, everything else as by default.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn new(threads: usize) -> Result<Self> {
        Self::with(CpuOptions { threads, ..CpuOptions::default() })
    }

    /// A backend as asked for.
    ///
    /// # Errors
    /// [`Error::Threads`] if the threads cannot be started; [`Error::Isa`] if `QVL_ISA` names what is not there.
    pub fn with(options: CpuOptions) -> Result<Self> {
        let threads = options.threads;
        if threads > THREADS_MAX {
            let reason = format!("at most {THREADS_MAX} can be asked for; 0 takes all cores");
            return Err(Error::Threads { threads, reason });
        }
        let isa = match options.isa {
            Some(isa) => isa,
            None => Isa::from_env()?,
        };
        let team = Team::new(if threads == 0 { cores() } else { threads })
            .map_err(|error| Error::Threads { threads, reason: error.to_string() })?;
        Ok(Self {
            team,
            isa,
            options,
            recycler: Recycler::new(RECYCLED_BYTES_MAX),
            quantized: Mutex::new(Vec::with_capacity(4)),
            vision_kv: Mutex::new(Vec::with_capacity(4)),
        })
    }

    /// What it was asked for.
    pub fn options(&self) -> CpuOptions {
        self.options
    }

    /// Compute threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Applies `f` to every row of `x`, in parallel where that pays.
    fn each_row(&self, x: &mut Mat, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
        let cols = x.cols;
        if x.values.len() < PARALLEL_MIN {
            for row in 0..x.rows {
                f(row, x.row_mut(row));
            }
            return;
        }
        let row_block = (PARALLEL_MIN / 4 / cols).max(1);
        let (row_borders, borders, order) = (&[x.rows], &[cols], Order::ByColumns);
        let tiling = Tiling { row_borders, borders, row_block, col_block: cols, order };
        for_each_block(&self.team, x, tiling, true, |mut block| {
            for row in 0..block.place.rows.len() {
                f(block.place.rows.start + row, block.row(row));
            }
        });
    }

    /// A matrix of which every value is to be written.
    fn fresh(&self, rows: usize, cols: usize) -> Mat {
        self.recycler.mat(rows, cols)
    }

    fn copy(&self, x: &Mat) -> Mat {
        let mut y = self.fresh(x.rows, x.cols);
        y.values.copy_from_slice(&x.values);
        y
    }

    /// Gives `f` the activations in the forms that products with `weights` want.
    fn with_input<R>(&self, weights: &[&CpuMatrix], x: &Mat, f: impl FnOnce(&Input<'_>) -> R) -> R {
        let exact = self.options.exact;
        let any = |kind: fn(&CpuMatrix) -> bool| weights.iter().any(|weight| kind(weight));
        let amx = Amx::of(self.isa).filter(|_| !exact);
        let has_floats = exact || any(CpuMatrix::has_floats) || (amx.is_none() && any(CpuMatrix::has_bf16));
        let packed = (dots::packing_pays(self.isa, x.rows) && has_floats).then(|| {
            let mut packed = self.fresh(1, dots::packed_len(self.isa, Side::Activations, x.rows, x.cols));
            linear::pack(self.isa, &self.team, x, &mut packed.values);
            packed
        });
        let packed = packed.as_ref().map(|packed| &*packed.values);
        let tiles = amx.is_some();
        let rounded = amx.filter(|_| any(CpuMatrix::has_bf16)).map(|amx| {
            let mut rounded = self.fresh(1, amx::floats::packed_len(x.rows, x.cols));
            linear::round(amx, &self.team, x, bytemuck::cast_slice_mut(&mut rounded.values));
            (amx, rounded)
        });
        let rounded = rounded.as_ref().map(|(amx, rounded)| (*amx, bytemuck::cast_slice(&rounded.values)));
        if exact || !any(CpuMatrix::has_panels) || x.rows == 0 {
            return f(&Input { x, quantized: None, packed, rounded, tiles });
        }
        let mut quantized = self.quantized.lock().pop().unwrap_or_default();
        quantized.resize(x.rows, x.cols);
        quantized.quantize(self.isa, &self.team, &x.values);
        let result = f(&Input { x, quantized: Some(&quantized), packed, rounded, tiles });
        self.quantized.lock().push(quantized);
        result
    }

    /// `y = x Wᵀ`
    fn weight_product(&self, weight: &CpuMatrix, x: &Mat, y: &mut Mat) {
        self.with_input(&[weight], x, |input| {
            linear::product(self.isa, &self.team, weight, input, y, |y, products, _| {
                y.copy_from_slice(products);
            });
        });
    }

    /// `y (+)= x Wᵀ + bias`
    fn product(&self, linear: &Linear<Self>, x: &Mat, y: &mut Mat, add: bool) {
        let bias = linear.bias.as_deref();
        self.with_input(&[&linear.weight], x, |input| {
            linear::product(self.isa, &self.team, &linear.weight, input, y, |y, products, outputs| {
                kernels::finish(self.isa, y, products, bias.map(|bias| &bias[outputs]), add);
            });
        });
    }

    /// Keeps some outputs of a checkpoint's tensor as the options say.
    fn segment(&self, part: &WeightPart) -> Result<Segment> {
        let cols = part.inputs();
        let wanted = match part.role {
            Role::Vision => self.options.vision_weights,
            _ => self.options.weights,
        };
        if wanted == WeightFormat::Bf16 && part.role != Role::Table && part.tensor.dtype() != Dtype::Bf16 {
            return Err(Error::NotBf16 {
                file: part.tensor.file().to_owned(),
                tensor: part.tensor.name().to_owned(),
                got: part.tensor.dtype().to_string(),
            });
        }
        let stored = Stored::new(part);
        let has = match part.tensor.dtype() {
            Dtype::Block(format) => Some(format),
            Dtype::Bf16 | Dtype::F16 | Dtype::F32 => None,
        };
        let format = match (wanted.block(part.role, cols), has) {
            (None, None) => return Ok(Segment::Stored(stored)),
            // Blocks stay as they are, unless fewer bits are asked for: encoded again they only lose.
            (Some(wanted), Some(has)) if wanted.bits() >= has.bits() => has,
            (None, Some(format)) | (Some(format), _) => format,
        };
        let row_bytes = cols / format.block_len() * format.block_bytes();
        let quantize = |rows: Range<usize>, out: &mut [u8]| -> Result<()> {
            if let Some((has, blocks)) = stored.blocks(rows.clone(), cols)
                && has == format
            {
                out.copy_from_slice(blocks);
                return Ok(());
            }
            let mut values = self.fresh(rows.len(), cols);
            stored.unpack(self.isa, rows.clone(), cols, &mut values.values);
            for (offset, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                format.quantize(values.row(offset), out).map_err(|source| Error::Quantize {
                    file: part.tensor.file().to_owned(),
                    tensor: part.tensor.name().to_owned(),
                    row: part.outputs.start + rows.start + offset,
                    source,
                })?;
            }
            Ok(())
        };
        let packed = Panels::pack(&self.team, format, part.outputs.len(), cols, quantize);
        // The packed copy is what is used from here on.
        part.tensor.release();
        packed.map(Segment::Panels).map_err(|error| match error {
            PackError::Source(error) => error,
            PackError::Memory(source) => Error::PackMemory { tensor: part.tensor.name().to_owned(), source },
        })
    }
}

impl Backend for Cpu {
    type Buffer = Mat;
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Kv = CpuKv;

    fn matrix(&self, parts: &[WeightPart]) -> Result<CpuMatrix> {
        let cols = parts.first().map_or(0, WeightPart::inputs);
        let segments = parts.iter().map(|part| {
            assert_eq!(part.inputs(), cols, "stacked matrices have the same input width");
            Ok((self.segment(part)?, part.outputs.len()))
        });
        Ok(CpuMatrix::new(segments.collect::<Result<_>>()?, cols))
    }

    fn vector(&self, tensor: &TensorView) -> Result<Vec<f32>> {
        Ok(tensor.to_f32())
    }

    fn kv(&self, layers: usize, shape: HeadShape) -> CpuKv {
        let rounded = || KvFormat::rounded(self.isa, shape);
        CpuKv::new(layers, shape, if self.options.exact { KvFormat::F32 } else { rounded() })
    }

    fn buffer(&self, rows: usize, cols: usize) -> Mat {
        let mut y = self.fresh(rows, cols);
        y.values.fill(0.0);
        y
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Mat {
        let mut y = self.fresh(rows, cols);
        y.values.copy_from_slice(values);
        y
    }

    fn download_into(&self, x: &Mat, values: &mut Vec<f32>) {
        values.extend_from_slice(&x.values);
    }

    fn reshape(&self, x: Mat, rows: usize, cols: usize) -> Mat {
        x.reshape(rows, cols)
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32]) -> Mat {
        let mut y = self.fresh(ids.len(), table.cols());
        for (row, &id) in ids.iter().enumerate() {
            table.unpack_row(self.isa, id as usize, y.row_mut(row));
        }
        y
    }

    fn linear(&self, linear: &Linear<Self>, x: &Mat) -> Mat {
        let mut y = self.fresh(x.rows, linear.weight.rows());
        self.product(linear, x, &mut y, false);
        y
    }

    fn linear_add(&self, linear: &Linear<Self>, x: &Mat, y: &mut Mat) {
        self.product(linear, x, y, true);
    }

    fn linear_gelu(&self, linear: &Linear<Self>, x: &Mat, kind: Gelu) -> Mat {
        let mut y = self.fresh(x.rows, linear.weight.rows());
        let bias = linear.bias.as_deref();
        self.with_input(&[&linear.weight], x, |input| {
            linear::product(self.isa, &self.team, &linear.weight, input, &mut y, |y, products, outputs| {
                kernels::finish(self.isa, y, products, bias.map(|bias| &bias[outputs]), false);
                match kind {
                    Gelu::Tanh => kernels::gelu_tanh(self.isa, y),
                    // Only the mergers use it, on one row a visual token.
                    Gelu::Erf => {
                        for v in y {
                            *v = 0.5 * *v * (1.0 + libm::erff(*v * std::f32::consts::FRAC_1_SQRT_2));
                        }
                    }
                }
            });
        });
        y
    }

    fn swiglu(&self, gate: &CpuMatrix, up: &CpuMatrix, x: &Mat) -> Mat {
        let mut y = self.fresh(x.rows, gate.rows());
        self.with_input(&[gate, up], x, |input| {
            linear::product_of_two(self.isa, &self.team, [gate, up], input, &mut y, |y, gate, up| {
                kernels::swiglu(self.isa, gate, up, y);
            });
        });
        y
    }

    fn rms_norm(&self, x: &Mat, weight: &Vec<f32>, eps: f32) -> Mat {
        let mut y = self.copy(x);
        self.each_row(&mut y, |_, row| kernels::rms_norm(self.isa, row, weight, eps));
        y
    }

    fn layer_norm(&self, x: &Mat, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32) -> Mat {
        let mut y = self.copy(x);
        self.each_row(&mut y, |_, row| kernels::layer_norm(self.isa, row, weight, bias, eps));
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
        let memory = self.vision_kv.lock().pop().filter(|kv| kv.shape() == shape);
        let mut memory = memory.unwrap_or_else(|| {
            // Rounded only where that is what makes it fast.
            let format = match KvFormat::rounded(self.isa, shape) {
                tiles @ KvFormat::Tiles(_) if !self.options.exact => tiles,
                _ => KvFormat::F32,
            };
            CpuKv::new(1, shape, format)
        });
        let mut y = self.fresh(qkv.rows, shape.q_width());
        attention::segments(self.isa, &self.team, qkv, shape, cu_seqlens, &mut memory, &mut y);
        self.vision_kv.lock().push(memory);
        y
    }

    fn kv_attention(
        &self,
        parts: &mut [KvPart<'_, Self>],
        layer: usize,
        qkv: &Mat,
        shape: HeadShape,
        y: &mut Mat,
    ) {
        let parts = parts.iter_mut().map(|part| (&mut *part.kv, part.rows.clone()));
        attention::causal(self.isa, &self.team, parts, layer, qkv, shape, y);
    }

    fn kv_truncate(&self, kv: &mut CpuKv, len: usize) {
        kv.truncate(len);
    }

    fn moe_add(&self, moe: &Experts<Self>, x: &Mat, y: &mut Mat) {
        let mut logits = self.fresh(x.rows, moe.experts.len());
        self.weight_product(&moe.gate, x, &mut logits);
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
            let hidden = self.swiglu(&expert.gate_proj, &expert.up_proj, &chosen);
            let mut out = self.fresh(rows.len(), expert.down_proj.rows());
            self.weight_product(&expert.down_proj, &hidden, &mut out);
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
        let mut unpacked = self.fresh(table.rows(), width);
        self.each_row(&mut unpacked, |row, values| table.unpack_row(self.isa, row, values));
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
        let mut y = self.fresh(rows.len(), x.cols);
        for (index, &row) in rows.iter().enumerate() {
            y.row_mut(index).copy_from_slice(x.row(row));
        }
        y
    }
}

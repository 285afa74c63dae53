//! What the network needs from the machine it runs on: about twenty fused operations on row-major
//! matrices of activations.
//!
//! `vision.rs` and `decoder.rs` are written once over [`Backend`]; a backend for another device implements
//! this trait and touches neither. All operations are infallible: shapes are the network's own and were
//! checked when the weights were loaded, so a mismatch is a bug and asserted.
//!
//! **Invariant: row independence.** Each output row depends on its own input row (and, in attention, on the
//! rows it may see), and is accumulated in an order that depends on the shape of one row only. So a result
//! is the same bit for bit alone or in a batch, prefilled whole or in chunks, on any number of threads.

pub mod cpu;
mod mat;
pub mod reference;

use std::ops::Range;

pub use mat::Mat;

use crate::checkpoint::TensorView;
use crate::error::Result;

/// Where a batch of rows takes its heads from: the columns of a fused `[q | k | v]` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Columns of the queries.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of the fused matrix.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// `1 / sqrt(head_dim)`, by which scores are multiplied.
    pub fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }
}

/// How the stored bytes of a weight matrix are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`: as PyTorch's linear layers store it.
    OutIn,
    /// `[in, out]`: as published experts are stored.
    InOut,
}

/// What a matrix is for: a backend that stores weights in fewer bits decides by it how many it spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Small or looked up: the learned positions, a router. Kept as stored.
    Table,
    /// A linear layer of the vision tower.
    Vision,
    /// A linear layer of the decoder.
    Decoder,
    /// One of those whose errors cost most: the value and down projections of the first and last layers and
    /// of every third between.
    DecoderSensitive,
    /// The embeddings and the head.
    Head,
}

/// Some outputs of a linear layer, as the checkpoint stores them.
#[derive(Clone, Debug)]
pub struct WeightPart {
    /// Where they are stored.
    pub tensor: TensorView,
    /// How its bytes are to be read.
    pub layout: Layout,
    /// Which of the tensor's outputs are meant.
    pub outputs: Range<usize>,
    /// What they are for.
    pub role: Role,
}

impl WeightPart {
    /// All outputs of a tensor stored `[out, in]`.
    pub fn whole(tensor: TensorView, role: Role) -> Self {
        let outputs = 0..tensor.shape()[0];
        Self { tensor, layout: Layout::OutIn, outputs, role }
    }

    /// Inputs: the width of a row.
    pub fn inputs(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.tensor.shape()[1..].iter().product(),
            Layout::InOut => self.tensor.shape()[0],
        }
    }
}

/// A linear layer: `y = x Wᵀ + bias`.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`
    pub weight: B::Matrix,
    /// `[out]`
    pub bias: Option<B::Vector>,
}

/// One expert of a mixture.
#[derive(Debug)]
pub struct Expert<B: Backend> {
    /// `[moe_intermediate_size, hidden_size]`
    pub gate_proj: B::Matrix,
    /// `[moe_intermediate_size, hidden_size]`
    pub up_proj: B::Matrix,
    /// `[hidden_size, moe_intermediate_size]`
    pub down_proj: B::Matrix,
}

/// The mixture of experts of one layer.
#[derive(Debug)]
pub struct Experts<B: Backend> {
    /// `[num_experts, hidden_size]`: the router.
    pub gate: B::Matrix,
    /// The experts.
    pub experts: Vec<Expert<B>>,
    /// Experts a token goes through.
    pub top_k: usize,
}

/// The two ways GELU is computed in this network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`: the vision blocks.
    Tanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`: the mergers.
    Erf,
}

/// Four taps and weights per output row: bilinear interpolation in a table of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taps {
    /// Rows of the table.
    pub rows: [u32; 4],
    /// What each is multiplied by.
    pub weights: [f32; 4],
}

/// One sequence in a step.
pub struct KvPart<'a, B: Backend> {
    /// Its cache.
    pub kv: &'a mut B::Kv,
    /// Its rows of the step.
    pub rows: Range<usize>,
}

/// A machine to compute on.
///
/// Dimension legend: `T` rows (tokens or patches), `H` width, `[a, b]` a row-major matrix of f32
/// activations. `Matrix` and `Vector` are weights in whatever form the backend likes.
pub trait Backend: Send + Sync + Sized {
    /// Activations, `[rows, cols]`.
    type Buffer: Send + Sync;
    /// A weight matrix, `[out, in]`.
    type Matrix: Send + Sync + std::fmt::Debug;
    /// A weight vector: a norm's scale, a bias.
    type Vector: Send + Sync + std::fmt::Debug;
    /// Keys and values of one sequence, all layers.
    type Kv: Send;

    /// Takes a weight matrix: the parts, all of one input width, stacked along the output dimension (fused
    /// q, k, v).
    ///
    /// # Errors
    /// When the backend cannot hold it.
    fn matrix(&self, parts: &[WeightPart]) -> Result<Self::Matrix>;

    /// Takes a weight vector.
    ///
    /// # Errors
    /// When the backend cannot hold it.
    fn vector(&self, tensor: &TensorView) -> Result<Self::Vector>;

    /// An empty KV cache for one sequence.
    fn kv(&self, layers: usize, shape: HeadShape) -> Self::Kv;

    /// A buffer of zeros.
    fn buffer(&self, rows: usize, cols: usize) -> Self::Buffer;

    /// A buffer with the given values; `values` is `[rows, cols]`.
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Self::Buffer;

    /// Puts the values of a buffer behind those in `values`.
    fn download_into(&self, x: &Self::Buffer, values: &mut Vec<f32>);

    /// The values of a buffer.
    fn download(&self, x: &Self::Buffer) -> Vec<f32> {
        let mut values = Vec::new();
        self.download_into(x, &mut values);
        values
    }

    /// The same values as `[rows, cols]`; the product must not change.
    fn reshape(&self, x: Self::Buffer, rows: usize, cols: usize) -> Self::Buffer;

    /// `[ids.len(), H]`: the rows of `table` (`[V, H]`) named by `ids`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32]) -> Self::Buffer;

    /// `y = x Wᵀ + bias`. `x`: `[T, in]`; result `[T, out]`.
    fn linear(&self, linear: &Linear<Self>, x: &Self::Buffer) -> Self::Buffer;

    /// `y += x Wᵀ + bias`: a layer's way back into the residual stream.
    fn linear_add(&self, linear: &Linear<Self>, x: &Self::Buffer, y: &mut Self::Buffer);

    /// `x / sqrt(mean(x²) + eps) * weight`, row by row.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Vector, eps: f32) -> Self::Buffer;

    /// `(x - mean) / sqrt(var + eps) * weight + bias`, row by row.
    fn layer_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
    ) -> Self::Buffer;

    /// `gelu(x Wᵀ + bias)`. `x`: `[T, in]`; result `[T, out]`.
    fn linear_gelu(&self, linear: &Linear<Self>, x: &Self::Buffer, kind: Gelu) -> Self::Buffer;

    /// SwiGLU: `silu(x gateᵀ) * (x upᵀ)`. `x`: `[T, H]`, both matrices `[I, H]`; result `[T, I]`.
    fn swiglu(&self, gate: &Self::Matrix, up: &Self::Matrix, x: &Self::Buffer) -> Self::Buffer;

    /// RMSNorm of each query and key head (where weights are given), then rotation of it, in place.
    ///
    /// - `qkv`: `[T, qkv_width]`
    /// - `norms`: the weights of the query and of the key norm, `[head_dim]`, and their epsilon
    /// - `rotary`: `[T, head_dim]`, cosines of the `head_dim / 2` angles, then their sines; the pair
    ///   `(x[i], x[i + head_dim / 2])` is rotated by angle `i`
    fn norm_rotary(
        &self,
        qkv: &mut Self::Buffer,
        shape: HeadShape,
        norms: Option<(&Self::Vector, &Self::Vector, f32)>,
        rotary: &Self::Buffer,
    );

    /// Full attention inside each segment. `qkv`: `[T, qkv_width]`; `cu_seqlens`: segment borders, from 0 to
    /// `T`; result `[T, q_width]`.
    fn segment_attention(&self, qkv: &Self::Buffer, shape: HeadShape, cu_seqlens: &[usize]) -> Self::Buffer;

    /// Causal attention of a step: for each part, appends the keys and values of its rows of `qkv` to layer
    /// `layer` of its sequence's cache and lets each row see all up to itself. Writes the parts' rows of `y`,
    /// `[T, q_width]`.
    fn kv_attention(
        &self,
        parts: &mut [KvPart<'_, Self>],
        layer: usize,
        qkv: &Self::Buffer,
        shape: HeadShape,
        y: &mut Self::Buffer,
    );

    /// Forgets all cached tokens from `len` on, in every layer.
    fn kv_truncate(&self, kv: &mut Self::Kv, len: usize);

    /// Routes each row to its `top_k` experts and adds their weighted outputs to `y`.
    fn moe_add(&self, moe: &Experts<Self>, x: &Self::Buffer, y: &mut Self::Buffer);

    /// `x[i] += Σ weights_k * table[rows_k]`: the interpolated position embeddings. `taps`: one per row.
    fn add_interpolated(&self, x: &mut Self::Buffer, table: &Self::Matrix, taps: &[Taps]);

    /// `x[rows[i]] = source[i]`: visual tokens into the embedded prompt. `source`: `[rows.len(), H]`.
    fn set_rows(&self, x: &mut Self::Buffer, rows: &[usize], source: &Self::Buffer);

    /// `x[rows[i]] += source[i]`: DeepStack.
    fn add_rows(&self, x: &mut Self::Buffer, rows: &[usize], source: &Self::Buffer);

    /// `[rows.len(), H]`: copies of some rows.
    fn take_rows(&self, x: &Self::Buffer, rows: &[usize]) -> Self::Buffer;
}

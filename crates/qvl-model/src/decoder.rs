//! The decoder: token ids, positions and visual tokens in, logits out.
//!
//! Reads like docs/model.md, "Decoder". One call takes a step of any mixture: chunks of prompts and single
//! tokens of running sequences, packed row after row without padding. `T`: rows of the step, `H`: width.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::backend::{Backend, HeadShape, KvPart};
use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::mrope::{Mrope, Position};
use crate::vision::VisionOutput;
use crate::weights::{DecoderLayer, DecoderStem, LayerSource, Mlp};

/// Rows of a step up to which its own lists need no allocation.
const FEW: usize = 16;

/// Their cosines and sines, with heads of 128.
const FEW_ANGLES: usize = 128 * FEW;

/// Some tokens of one sequence, to be appended to its cache.
pub struct Chunk<'a, B: Backend> {
    /// The sequence.
    pub cache: &'a mut KvCache<B>,
    /// Its next tokens.
    pub ids: &'a [u32],
    /// Their positions, one a token.
    pub positions: &'a [Position],
    /// Which of them are visual tokens.
    pub visual: Option<VisualRows<'a, B>>,
    /// For which of them logits are wanted.
    pub logits: LogitRows,
}

/// The visual tokens of a chunk.
pub struct VisualRows<'a, B: Backend> {
    /// What the tower made.
    pub output: &'a VisionOutput<B>,
    /// Pairs of (token of the chunk, row of the output).
    pub rows: &'a [(usize, usize)],
}

/// For which tokens of a chunk logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: more of the prompt follows.
    None,
    /// The last.
    Last,
    /// Every one.
    All,
}

/// The decoder of a checkpoint.
pub struct Decoder<B: Backend> {
    config: TextConfig,
    backend: Arc<B>,
    stem: DecoderStem<B>,
    mrope: Mrope,
}

impl<B: Backend> Decoder<B> {
    /// A decoder with the given weights besides its layers.
    pub fn new(config: TextConfig, backend: Arc<B>, stem: DecoderStem<B>) -> Self {
        let mrope = Mrope::new(&config);
        Self { config, backend, stem, mrope }
    }

    /// An empty cache for a new sequence.
    pub fn kv_cache(&self) -> KvCache<B> {
        KvCache::new(Arc::clone(&self.backend), self.config.num_hidden_layers, self.heads())
    }

    fn heads(&self) -> HeadShape {
        HeadShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Appends the chunks to their caches. Returns the wanted logits, `[rows, vocab_size]` in the order of
    /// the chunks.
    ///
    /// # Errors
    /// [`Error::TokenId`], [`Error::ContextLength`]; whatever `layers` fails with. After an error in a layer
    /// the caches are as they were before.
    pub fn forward(&self, layers: &dyn LayerSource<B>, chunks: &mut [Chunk<'_, B>]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.forward_into(layers, chunks, &mut logits)?;
        Ok(logits)
    }

    /// The same with the logits in place of what is in `logits`; a vector that is used again costs no
    /// allocation.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into(
        &self,
        layers: &dyn LayerSource<B>,
        chunks: &mut [Chunk<'_, B>],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        logits.clear();
        self.check(chunks)?;
        let result = self.step(layers, chunks, logits);
        for chunk in chunks {
            match result {
                Ok(()) => chunk.cache.advance(chunk.ids.len()),
                Err(_) => chunk.cache.forget_unfinished(),
            }
        }
        result
    }

    fn step(
        &self,
        layers: &dyn LayerSource<B>,
        chunks: &mut [Chunk<'_, B>],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let ids: SmallVec<[u32; FEW]> = chunks.iter().flat_map(|chunk| chunk.ids).copied().collect();
        let positions: SmallVec<[Position; FEW]> =
            chunks.iter().flat_map(|chunk| chunk.positions).copied().collect();

        let mut x = backend.embed(&self.stem.embed_tokens.weight, &ids);
        let mut rotary: SmallVec<[f32; FEW_ANGLES]> = SmallVec::new();
        self.mrope.table_into(&positions, &mut rotary);
        let rotary = backend.upload(ids.len(), self.config.head_dim, &rotary);

        // The caches, the visual rows and the wanted rows of all chunks, each with its place in the step.
        let mut parts: SmallVec<[KvPart<'_, B>; FEW]> = SmallVec::new();
        let mut visuals: SmallVec<[(&VisualRows<'_, B>, usize); 1]> = SmallVec::new();
        let mut wanted: SmallVec<[usize; FEW]> = SmallVec::new();
        let mut start = 0;
        for chunk in chunks {
            let end = start + chunk.ids.len();
            match chunk.logits {
                LogitRows::None => {}
                LogitRows::Last => wanted.extend((end > start).then(|| end - 1)),
                LogitRows::All => wanted.extend(start..end),
            }
            visuals.extend(chunk.visual.as_ref().map(|visual| (visual, start)));
            parts.push(KvPart { kv: &mut chunk.cache.kv, rows: start..end });
            start = end;
        }

        for (visual, start) in &visuals {
            let (rows, sources) = visual.rows_from(*start);
            backend.set_rows(&mut x, &rows, &backend.take_rows(&visual.output.embeds, &sources));
        }
        for index in 0..self.config.num_hidden_layers {
            let layer = layers.decoder_layer(index)?;
            self.layer(index, &layer, &mut x, &rotary, &mut parts);
            for (visual, start) in &visuals {
                if let Some(features) = visual.output.deepstack.get(index) {
                    let (rows, sources) = visual.rows_from(*start);
                    backend.add_rows(&mut x, &rows, &backend.take_rows(features, &sources));
                }
            }
        }

        if !wanted.is_empty() {
            let last =
                backend.rms_norm(&backend.take_rows(&x, &wanted), &self.stem.norm, self.config.rms_norm_eps);
            backend.download_into(&backend.linear(self.stem.head(), &last), logits);
        }
        Ok(())
    }

    /// `x += o_proj(attention(rope(norm(qkv_proj(norm(x))))))`, then `x += mlp(norm(x))`.
    fn layer(
        &self,
        index: usize,
        layer: &DecoderLayer<B>,
        x: &mut B::Buffer,
        rotary: &B::Buffer,
        parts: &mut [KvPart<'_, B>],
    ) {
        let backend = &*self.backend;
        let eps = self.config.rms_norm_eps;
        let shape = self.heads();

        let mut qkv = backend.linear(&layer.qkv_proj, &backend.rms_norm(x, &layer.input_layernorm, eps));
        backend.norm_rotary(&mut qkv, shape, Some((&layer.q_norm, &layer.k_norm, eps)), rotary);
        let rows = parts.last().map_or(0, |part| part.rows.end);
        let mut attended = backend.buffer(rows, shape.q_width());
        backend.kv_attention(parts, index, &qkv, shape, &mut attended);
        drop(qkv);
        backend.linear_add(&layer.o_proj, &attended, x);

        let normed = backend.rms_norm(x, &layer.post_attention_layernorm, eps);
        match &layer.mlp {
            Mlp::Dense { gate_proj, up_proj, down_proj } => {
                backend.linear_add(down_proj, &backend.swiglu(gate_proj, up_proj, &normed), x);
            }
            Mlp::Experts(experts) => backend.moe_add(experts, &normed, x),
        }
    }

    fn check(&self, chunks: &[Chunk<'_, B>]) -> Result<()> {
        for chunk in chunks {
            assert_eq!(chunk.ids.len(), chunk.positions.len(), "one position for each token");
            if let Some(&id) = chunk.ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                return Err(Error::TokenId { id, vocab_size: self.config.vocab_size });
            }
            let tokens = chunk.cache.len() + chunk.ids.len();
            if tokens > self.config.max_position_embeddings {
                return Err(Error::ContextLength { tokens, limit: self.config.max_position_embeddings });
            }
        }
        Ok(())
    }
}

impl<B: Backend> VisualRows<'_, B> {
    /// Rows of the step and rows of the tower's output, for a chunk that starts at row `start`.
    fn rows_from(&self, start: usize) -> (Vec<usize>, Vec<usize>) {
        self.rows.iter().map(|&(token, source)| (start + token, source)).unzip()
    }
}

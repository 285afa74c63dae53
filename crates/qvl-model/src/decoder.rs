//! The decoder: token ids, positions and visual tokens in, logits out.
//!
//! Reads like docs/model.md, "Decoder". One call takes a step of any mixture: chunks of prompts and single
//! tokens of running sequences, packed row after row without padding. `T`: rows of the step, `H`: width.

use std::sync::Arc;

use crate::backend::{Backend, HeadShape};
use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::mrope::{Mrope, Position};
use crate::vision::VisionOutput;
use crate::weights::{DecoderLayer, DecoderStem, LayerSource, Mlp};

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
        self.check(chunks)?;
        let result = self.step(layers, chunks);
        for chunk in chunks {
            match result {
                Ok(_) => chunk.cache.advance(chunk.ids.len()),
                Err(_) => chunk.cache.forget_unfinished(),
            }
        }
        result
    }

    fn step(&self, layers: &dyn LayerSource<B>, chunks: &mut [Chunk<'_, B>]) -> Result<Vec<f32>> {
        let backend = &*self.backend;
        let ids: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.ids).copied().collect();
        let positions: Vec<Position> = chunks.iter().flat_map(|chunk| chunk.positions).copied().collect();
        let mut starts = Vec::with_capacity(chunks.len());
        let mut row = 0;
        for chunk in &*chunks {
            starts.push(row);
            row += chunk.ids.len();
        }

        let mut x = backend.embed(&self.stem.embed_tokens.weight, &ids);
        for (chunk, start) in chunks.iter().zip(&starts) {
            if let Some(visual) = &chunk.visual {
                let (rows, sources) = visual.rows_from(*start);
                backend.set_rows(&mut x, &rows, &backend.take_rows(&visual.output.embeds, &sources));
            }
        }
        let rotary = backend.upload(ids.len(), self.config.head_dim, &self.mrope.table(&positions));

        for index in 0..self.config.num_hidden_layers {
            let layer = layers.decoder_layer(index)?;
            self.layer(index, &layer, &mut x, &rotary, chunks, &starts);
            for (chunk, start) in chunks.iter().zip(&starts) {
                let Some(visual) = &chunk.visual else { continue };
                if let Some(features) = visual.output.deepstack.get(index) {
                    let (rows, sources) = visual.rows_from(*start);
                    backend.add_rows(&mut x, &rows, &backend.take_rows(features, &sources));
                }
            }
        }

        let mut wanted = Vec::new();
        for (chunk, &start) in chunks.iter().zip(&starts) {
            match chunk.logits {
                LogitRows::None => {}
                LogitRows::Last => wanted.extend(chunk.ids.len().checked_sub(1).map(|last| start + last)),
                LogitRows::All => wanted.extend(start..start + chunk.ids.len()),
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let last =
            backend.rms_norm(&backend.take_rows(&x, &wanted), &self.stem.norm, self.config.rms_norm_eps);
        Ok(backend.download(&backend.linear(self.stem.head(), &last)))
    }

    /// `x += o_proj(attention(rope(norm(qkv_proj(norm(x))))))`, then `x += mlp(norm(x))`.
    fn layer(
        &self,
        index: usize,
        layer: &DecoderLayer<B>,
        x: &mut B::Buffer,
        rotary: &B::Buffer,
        chunks: &mut [Chunk<'_, B>],
        starts: &[usize],
    ) {
        let backend = &*self.backend;
        let eps = self.config.rms_norm_eps;
        let shape = self.heads();

        let mut qkv = backend.linear(&layer.qkv_proj, &backend.rms_norm(x, &layer.input_layernorm, eps));
        backend.norm_rotary(&mut qkv, shape, Some((&layer.q_norm, &layer.k_norm, eps)), rotary);
        let rows: usize = chunks.iter().map(|chunk| chunk.ids.len()).sum();
        let mut attended = backend.buffer(rows, shape.q_width());
        for (chunk, &start) in chunks.iter_mut().zip(starts) {
            let rows = start..start + chunk.ids.len();
            backend.kv_append(&mut chunk.cache.kv, index, &qkv, rows.clone(), shape);
            backend.kv_attention(&chunk.cache.kv, index, &qkv, rows, shape, &mut attended);
        }
        drop(qkv);
        backend.linear_add(&layer.o_proj, &attended, x);

        let normed = backend.rms_norm(x, &layer.post_attention_layernorm, eps);
        match &layer.mlp {
            Mlp::Dense { gate_up_proj, down_proj } => {
                let hidden = backend.swiglu(&backend.linear(gate_up_proj, &normed));
                backend.linear_add(down_proj, &hidden, x);
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

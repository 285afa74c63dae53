//! The keys and values of one sequence, and where its next token stands.

use std::sync::Arc;

use crate::backend::{Backend, HeadShape};
use crate::mrope::Position;

/// The cache of one sequence.
///
/// A token that follows the prompt stands at `len + rope_delta` on all three axes: pictures take fewer
/// positions than tokens, so its index alone would be wrong.
pub struct KvCache<B: Backend> {
    backend: Arc<B>,
    pub(crate) kv: B::Kv,
    len: usize,
    rope_delta: i64,
}

impl<B: Backend> KvCache<B> {
    pub(crate) fn new(backend: Arc<B>, layers: usize, shape: HeadShape) -> Self {
        let kv = backend.kv(layers, shape);
        Self { backend, kv, len: 0, rope_delta: 0 }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says by how much positions differ from indices after the prompt.
    pub fn set_rope_delta(&mut self, rope_delta: i64) {
        self.rope_delta = rope_delta;
    }

    /// The position of the next text token.
    pub fn next_position(&self) -> Position {
        [(self.len as i64 + self.rope_delta) as u32; 3]
    }

    /// Keeps only the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.backend.kv_truncate(&mut self.kv, len);
            self.len = len;
        }
    }

    /// Drops what a step that failed had appended to some of the layers.
    pub(crate) fn forget_unfinished(&mut self) {
        self.backend.kv_truncate(&mut self.kv, self.len);
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

//! What a forward pass of a vision-language model of some two billion parameters allocates: 28 layers of width 2048
//! with 16 heads and 8 key-value heads of 128, an intermediate width of 6144, 151936 tokens; a tower of 24 blocks of
//! width 1024 with 16 heads and an intermediate width of 4096, whose blocks 5, 11 and 17 feed the first layers.
//!
//! Activations are bf16; scores, rotary tables and logits are f32. Each operation writes a new tensor, and a tensor
//! ends after the last operation that reads it. Attention goes over the queries in tiles.

#![allow(dead_code, reason = "the example writes what the test compares")]

use qvl_alloc::plan::{Id, Recorder};
use qvl_alloc::{Result, Trace};

/// The committed traces, by the name of their files.
pub(crate) fn traces() -> Result<Vec<(&'static str, Trace)>> {
    Ok(vec![
        ("decode_1.txt", decoder(Step { tokens: 1, context: 2048, visual_tokens: 0, logits: 1 })?),
        ("decode_16.txt", decoder(Step { tokens: 16, context: 2048, visual_tokens: 0, logits: 16 })?),
        ("prefill_512.txt", decoder(Step { tokens: 512, context: 1024, visual_tokens: 384, logits: 1 })?),
        ("vision_1024x768.txt", vision(768 / PATCH, 1024 / PATCH)?),
    ])
}

struct Step {
    /// Rows of this step.
    tokens: u64,
    /// Keys that a query sees.
    context: u64,
    /// Rows that get features of the tower's blocks.
    visual_tokens: u64,
    /// Rows whose logits are wanted.
    logits: u64,
}

/// A step of the decoder.
fn decoder(step: Step) -> Result<Trace> {
    let Step { tokens, context, visual_tokens, logits } = step;
    let mut run = Run::default();
    let positions = run.f32(3 * tokens);
    let cos = run.f32(tokens * HEAD_DIM);
    let sin = run.f32(tokens * HEAD_DIM);
    run.end([positions]);
    let mut deepstack: Vec<Id> = Vec::new();
    if visual_tokens > 0 {
        deepstack = DEEPSTACK.iter().map(|_| run.bf16(visual_tokens * HIDDEN)).collect();
    }
    let mut features = deepstack.into_iter();
    let mut hidden = run.bf16(tokens * HIDDEN);
    for _ in 0..LAYERS {
        // Attention: normalise, project, normalise the heads and rotate, attend, project, add.
        let normed = run.bf16(tokens * HIDDEN);
        let q = run.bf16(tokens * HEADS * HEAD_DIM);
        let k = run.bf16(tokens * KV_HEADS * HEAD_DIM);
        let v = run.bf16(tokens * KV_HEADS * HEAD_DIM);
        run.end([normed]);
        let q_rotated = run.bf16(tokens * HEADS * HEAD_DIM);
        run.end([q]);
        let k_rotated = run.bf16(tokens * KV_HEADS * HEAD_DIM);
        // They are in the KV cache now.
        run.end([k, k_rotated, v]);
        let attended = run.bf16(tokens * HEADS * HEAD_DIM);
        let scores = run.f32(HEADS * tokens.min(QUERY_TILE) * context);
        run.end([scores, q_rotated]);
        let projected = run.bf16(tokens * HIDDEN);
        run.end([attended]);
        let sum = run.bf16(tokens * HIDDEN);
        run.end([hidden, projected]);
        hidden = sum;

        // SwiGLU: normalise, gate and up, multiply, down, add.
        let normed = run.bf16(tokens * HIDDEN);
        let gate = run.bf16(tokens * INTERMEDIATE);
        let up = run.bf16(tokens * INTERMEDIATE);
        run.end([normed]);
        let product = run.bf16(tokens * INTERMEDIATE);
        run.end([gate, up]);
        let down = run.bf16(tokens * HIDDEN);
        run.end([product]);
        let sum = run.bf16(tokens * HIDDEN);
        run.end([hidden, down]);
        hidden = sum;
        // The first layers add the tower's features in place.
        run.end(features.next());
    }
    let last = run.bf16(logits * HIDDEN);
    run.end([hidden]);
    let normed = run.bf16(logits * HIDDEN);
    run.end([last]);
    let scores = run.f32(logits * VOCABULARY);
    run.end([normed, cos, sin]);
    let probabilities = run.f32(logits * VOCABULARY);
    run.end([scores, probabilities]);
    run.recorder.finish()
}

/// A picture of so many patches through the tower.
fn vision(height: u64, width: u64) -> Result<Trace> {
    let patches = height * width;
    let visual_tokens = patches / MERGED;
    let mut run = Run::default();
    let pixels = run.f32(patches * PATCH_VALUES);
    let embedded = run.bf16(patches * VISION_HIDDEN);
    run.end([pixels]);
    let position = run.f32(patches * VISION_HIDDEN);
    let mut hidden = run.bf16(patches * VISION_HIDDEN);
    run.end([embedded, position]);
    let cos = run.f32(patches * VISION_HEAD_DIM);
    let sin = run.f32(patches * VISION_HEAD_DIM);
    let mut features = Vec::new();
    for block in 0..VISION_BLOCKS {
        let normed = run.bf16(patches * VISION_HIDDEN);
        let qkv = run.bf16(patches * 3 * VISION_HIDDEN);
        run.end([normed]);
        let q = run.bf16(patches * VISION_HIDDEN);
        let k = run.bf16(patches * VISION_HIDDEN);
        let v = run.bf16(patches * VISION_HIDDEN);
        run.end([qkv]);
        let attended = run.bf16(patches * VISION_HIDDEN);
        let scores = run.f32(VISION_HEADS * QUERY_TILE * patches);
        run.end([scores, q, k, v]);
        let projected = run.bf16(patches * VISION_HIDDEN);
        run.end([attended]);
        let sum = run.bf16(patches * VISION_HIDDEN);
        run.end([hidden, projected]);
        hidden = sum;

        let normed = run.bf16(patches * VISION_HIDDEN);
        let wide = run.bf16(patches * VISION_INTERMEDIATE);
        run.end([normed]);
        let gelu = run.bf16(patches * VISION_INTERMEDIATE);
        run.end([wide]);
        let narrow = run.bf16(patches * VISION_HIDDEN);
        run.end([gelu]);
        let sum = run.bf16(patches * VISION_HIDDEN);
        run.end([hidden, narrow]);
        hidden = sum;
        if DEEPSTACK.contains(&block) {
            features.push(run.merge(visual_tokens, None));
        }
    }
    run.end([cos, sin]);
    let merged = run.merge(visual_tokens, Some(hidden));
    run.end(features);
    run.end([merged]);
    run.recorder.finish()
}

#[derive(Default)]
struct Run {
    recorder: Recorder,
}

impl Run {
    fn bf16(&mut self, values: u64) -> Id {
        self.recorder.begin(2 * values, ALIGN)
    }

    fn f32(&mut self, values: u64) -> Id {
        self.recorder.begin(4 * values, ALIGN)
    }

    /// Four patches become one token. What is merged ends, if nothing reads it after.
    fn merge(&mut self, visual_tokens: u64, merged: Option<Id>) -> Id {
        let normed = self.bf16(visual_tokens * MERGED * VISION_HIDDEN);
        self.end(merged);
        let wide = self.bf16(visual_tokens * MERGED * VISION_HIDDEN);
        self.end([normed]);
        let gelu = self.bf16(visual_tokens * MERGED * VISION_HIDDEN);
        self.end([wide]);
        let token = self.bf16(visual_tokens * HIDDEN);
        self.end([gelu]);
        token
    }

    fn end(&mut self, tensors: impl IntoIterator<Item = Id>) {
        for tensor in tensors {
            self.recorder.end(tensor);
        }
    }
}

const ALIGN: u64 = 64;
const HIDDEN: u64 = 2048;
const LAYERS: u64 = 28;
const HEADS: u64 = 16;
const KV_HEADS: u64 = 8;
const HEAD_DIM: u64 = 128;
const INTERMEDIATE: u64 = 6144;
const VOCABULARY: u64 = 151_936;
const QUERY_TILE: u64 = 64;
const PATCH: u64 = 16;
/// Colours, frames, height and width.
const PATCH_VALUES: u64 = 3 * 2 * PATCH * PATCH;
const MERGED: u64 = 4;
const VISION_HIDDEN: u64 = 1024;
const VISION_HEADS: u64 = 16;
const VISION_HEAD_DIM: u64 = 64;
const VISION_INTERMEDIATE: u64 = 4096;
const VISION_BLOCKS: u64 = 24;
const DEEPSTACK: [u64; 3] = [5, 11, 17];

//! The names of the tensors, as published checkpoints have them.

/// Builds tensor names. A unit struct of functions so that every name stands in one file.
#[derive(Clone, Copy, Debug)]
pub struct Names;

impl Names {
    /// Token embeddings, `[vocab_size, hidden_size]`.
    pub const EMBED_TOKENS: &'static str = "model.language_model.embed_tokens.weight";
    /// Norm before the head, `[hidden_size]`.
    pub const NORM: &'static str = "model.language_model.norm.weight";
    /// The head when it is not tied to the embeddings, `[vocab_size, hidden_size]`.
    pub const LM_HEAD: &'static str = "lm_head.weight";
    /// Patch embedding, `[hidden_size, in_channels, temporal_patch_size, patch_size, patch_size]`.
    pub const PATCH_EMBED: &'static str = "model.visual.patch_embed.proj";
    /// Learned positions, `[num_position_embeddings, hidden_size]`.
    pub const POS_EMBED: &'static str = "model.visual.pos_embed.weight";
    /// The merger behind the last vision block.
    pub const MERGER: &'static str = "model.visual.merger";

    /// `model.language_model.layers.{index}.{rest}`
    pub fn decoder_layer(index: usize, rest: &str) -> String {
        format!("model.language_model.layers.{index}.{rest}")
    }

    /// `model.visual.blocks.{index}.{rest}`
    pub fn vision_block(index: usize, rest: &str) -> String {
        format!("model.visual.blocks.{index}.{rest}")
    }

    /// `model.visual.deepstack_merger_list.{index}`
    pub fn deepstack_merger(index: usize) -> String {
        format!("model.visual.deepstack_merger_list.{index}")
    }
}

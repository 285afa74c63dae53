//! Names of tensors in GGUF files, and the names that published checkpoints give the same tensors.
//!
//! | GGUF | here |
//! |---|---|
//! | `blk.N.` | layer `N` of the decoder |
//! | `v.blk.N.` | block `N` of the vision tower |
//! | `v.deepstack.N.` | the merger that taps block `N`: numbered by block there, counted here |
//!
//! Stacks of experts hold gate and up apart, `[E, I, H]` each, where published checkpoints have them in one. They
//! stay apart: `mlp.experts.gate_proj` and `mlp.experts.up_proj` exist in GGUF files only.

use crate::checkpoint::Names;

/// What stands behind `blk.N.`, and behind the layer's name.
const DECODER: [(&str, &str); 17] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
    ("ffn_gate_inp.weight", "mlp.gate.weight"),
    ("ffn_gate_exps.weight", "mlp.experts.gate_proj"),
    ("ffn_up_exps.weight", "mlp.experts.up_proj"),
    ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
    ("ffn_down_exps.weight", "mlp.experts.down_proj"),
    // Three tensors of ours; see `pair`.
    (FUSED_QKV, FUSED_QKV),
];

/// Queries, keys and values in one, as the converter can be told to write them.
pub(super) const FUSED_QKV: &str = "attn_qkv.weight";

/// What stands behind `v.blk.N.`, and behind the block's name, without `.weight` and `.bias`.
const VISION: [(&str, &str); 6] = [
    ("ln1", "norm1"),
    ("ln2", "norm2"),
    ("attn_qkv", "attn.qkv"),
    ("attn_out", "attn.proj"),
    ("ffn_up", "mlp.linear_fc1"),
    ("ffn_down", "mlp.linear_fc2"),
];

/// What stands behind `v.deepstack.N.`, and behind the merger's name, without `.weight` and `.bias`.
const DEEPSTACK: [(&str, &str); 3] = [("norm", "norm"), ("fc1", "linear_fc1"), ("fc2", "linear_fc2")];

/// Tensors there are one of.
const SINGLE: [(&str, &str); 11] = [
    ("token_embd.weight", Names::EMBED_TOKENS),
    ("output_norm.weight", Names::NORM),
    ("output.weight", Names::LM_HEAD),
    ("v.position_embd.weight", Names::POS_EMBED),
    ("v.patch_embd.bias", "model.visual.patch_embed.proj.bias"),
    ("v.post_ln.weight", "model.visual.merger.norm.weight"),
    ("v.post_ln.bias", "model.visual.merger.norm.bias"),
    ("mm.0.weight", "model.visual.merger.linear_fc1.weight"),
    ("mm.0.bias", "model.visual.merger.linear_fc1.bias"),
    ("mm.2.weight", "model.visual.merger.linear_fc2.weight"),
    ("mm.2.bias", "model.visual.merger.linear_fc2.bias"),
];

/// The patch embedding, one tensor a frame of the patch.
pub(super) const PATCH_EMBED: [&str; 2] = ["v.patch_embd.weight", "v.patch_embd.weight.1"];

/// Our name of a GGUF file's tensor. `tapped`: the blocks tapped for DeepStack.
pub(super) fn ours(stored: &str, tapped: &[usize]) -> Option<String> {
    if let Some((_, name)) = SINGLE.iter().find(|(name, _)| *name == stored) {
        return Some((*name).to_owned());
    }
    if let Some((index, rest)) = numbered(stored, "blk.") {
        return translate(&DECODER, rest).map(|rest| Names::decoder_layer(index, rest));
    }
    if let Some((index, rest)) = numbered(stored, "v.blk.") {
        let (name, kind) = rest.rsplit_once('.')?;
        return translate(&VISION, name).map(|name| Names::vision_block(index, &format!("{name}.{kind}")));
    }
    let (block, rest) = numbered(stored, "v.deepstack.")?;
    let (name, kind) = rest.rsplit_once('.')?;
    let index = tapped.iter().position(|&tapped| tapped == block)?;
    translate(&DEEPSTACK, name).map(|name| format!("{}.{name}.{kind}", Names::deepstack_merger(index)))
}

/// The GGUF name of one of our tensors; our own name if there is none.
pub(in crate::checkpoint) fn stored(ours: &str, tapped: &[usize]) -> String {
    let back = |table: &[(&str, &'static str)], rest: &str| {
        table.iter().find(|(_, name)| *name == rest).map(|(stored, _)| (*stored).to_owned())
    };
    let found = if let Some((index, rest)) = numbered(ours, "model.language_model.layers.") {
        back(&DECODER, rest).map(|rest| format!("blk.{index}.{rest}"))
    } else if let Some((index, rest)) = numbered(ours, "model.visual.blocks.") {
        rest.rsplit_once('.')
            .and_then(|(name, kind)| back(&VISION, name).map(|name| format!("v.blk.{index}.{name}.{kind}")))
    } else if let Some((index, rest)) = numbered(ours, "model.visual.deepstack_merger_list.") {
        rest.rsplit_once('.').and_then(|(name, kind)| {
            let block = tapped.get(index)?;
            back(&DEEPSTACK, name).map(|name| format!("v.deepstack.{block}.{name}.{kind}"))
        })
    } else if ours.strip_suffix(".weight") == Some(Names::PATCH_EMBED) {
        Some(PATCH_EMBED[0].to_owned())
    } else {
        back(&SINGLE, ours)
    };
    found.unwrap_or_else(|| ours.to_owned())
}

/// `{prefix}{index}.{rest}`
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

fn translate(table: &[(&'static str, &'static str)], stored: &str) -> Option<&'static str> {
    table.iter().find(|(name, _)| *name == stored).map(|(_, ours)| *ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_back_and_forth() {
        let tapped = [5, 11, 17];
        for (stored_name, name) in [
            ("token_embd.weight", "model.language_model.embed_tokens.weight"),
            ("output_norm.weight", "model.language_model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.weight", "model.language_model.layers.12.self_attn.q_proj.weight"),
            ("blk.0.ffn_norm.weight", "model.language_model.layers.0.post_attention_layernorm.weight"),
            ("blk.3.ffn_gate_inp.weight", "model.language_model.layers.3.mlp.gate.weight"),
            ("blk.3.ffn_down_exps.weight", "model.language_model.layers.3.mlp.experts.down_proj"),
            ("v.blk.7.attn_qkv.bias", "model.visual.blocks.7.attn.qkv.bias"),
            ("v.blk.7.ln2.weight", "model.visual.blocks.7.norm2.weight"),
            ("v.deepstack.11.fc2.weight", "model.visual.deepstack_merger_list.1.linear_fc2.weight"),
            ("v.deepstack.17.norm.bias", "model.visual.deepstack_merger_list.2.norm.bias"),
            ("v.post_ln.bias", "model.visual.merger.norm.bias"),
            ("mm.2.weight", "model.visual.merger.linear_fc2.weight"),
            ("v.position_embd.weight", "model.visual.pos_embed.weight"),
        ] {
            assert_eq!(ours(stored_name, &tapped).as_deref(), Some(name));
            assert_eq!(stored(name, &tapped), stored_name);
        }
        assert_eq!(stored("model.visual.patch_embed.proj.weight", &tapped), "v.patch_embd.weight");
        for unknown in
            ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.1.other.weight", "v.deepstack.6.fc1.bias"]
        {
            assert_eq!(ours(unknown, &tapped), None, "{unknown}");
        }
        assert_eq!(stored("extra", &tapped), "extra");
    }
}

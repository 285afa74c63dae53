//! What a checkpoint is, from its configuration and the headers of its weight files alone.

use std::collections::BTreeMap;
use std::path::Path;

use qvl_model::checkpoint::{Checkpoint, Tensors};
use serde::Serialize;

use crate::adapters;
use crate::embedded::{self, EMBEDDED, EMBEDDED_NAME};
use crate::error::Result;

/// A checkpoint described.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Folder or file, or the name of the embedded checkpoint.
    pub name: String,
    /// `dense`, or `mixture of experts` with their numbers.
    pub family: String,
    /// Values in all tensors.
    pub parameters: u64,
    /// Of them in the vision tower.
    pub vision_parameters: u64,
    /// Of them in the embedding table and the head.
    pub embedding_parameters: u64,
    /// Bytes of all tensors as stored.
    pub weight_bytes: u64,
    /// Tensors by stored type; types that cannot be read say so and are in none of the sums.
    pub tensors: BTreeMap<String, usize>,
    /// Weight files.
    pub files: usize,
    /// Decoder: layers, width, query heads, KV heads, head width, MLP width.
    pub decoder: Decoder,
    /// Vision tower: blocks, width, heads, MLP width.
    pub vision: Vision,
    /// Token ids the network knows.
    pub vocab_size: usize,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Bytes of keys and values a token, held in bfloat16; in exact mode twice as many.
    pub kv_bytes_per_token: usize,
    /// Visual tokens of pictures of some sizes.
    pub image_tokens: Vec<ImageTokens>,
}

/// Dimensions of the decoder.
#[derive(Clone, Debug, Serialize)]
pub struct Decoder {
    /// Layers.
    pub layers: usize,
    /// Width.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the dense MLP, or inside one expert.
    pub mlp: usize,
    /// The head is the embedding table.
    pub tied_head: bool,
    /// Frequencies for time, height, width.
    pub mrope_section: [usize; 3],
}

/// Dimensions of the vision tower.
#[derive(Clone, Debug, Serialize)]
pub struct Vision {
    /// Blocks.
    pub blocks: usize,
    /// Width.
    pub hidden_size: usize,
    /// Heads.
    pub heads: usize,
    /// Width inside the MLP.
    pub mlp: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Tapped blocks.
    pub deepstack: Vec<usize>,
}

/// What a picture costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ImageTokens {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pixels after the resize.
    pub resized_width: u32,
    /// Pixels after the resize.
    pub resized_height: u32,
    /// Visual tokens.
    pub tokens: usize,
}

/// Describes a checkpoint, a folder or a `.gguf` file whose mmproj is beside it or given, or with `None` the
/// embedded one. `sizes`: width and height of pictures to quote.
///
/// # Errors
/// Whatever is missing or broken in the files that are looked at.
pub fn inspect(path: Option<&Path>, mmproj: Option<&Path>, sizes: &[(u32, u32)]) -> Result<Report> {
    let (name, checkpoint, processor) = match path {
        Some(path) => {
            let (checkpoint, processor) = adapters::open(path, mmproj)?;
            (path.display().to_string(), checkpoint, processor)
        }
        None => (EMBEDDED_NAME.to_owned(), Checkpoint::embedded(&EMBEDDED)?, embedded::processor()?),
    };
    let config = checkpoint.config()?;
    let text = &config.text;
    let tensors = checkpoint.tensors();
    let image_tokens = sizes
        .iter()
        .map(|&(width, height)| {
            let grid = processor.image_grid(width, height)?;
            Ok(ImageTokens {
                width,
                height,
                resized_width: grid.w * processor.image.patch_size,
                resized_height: grid.h * processor.image.patch_size,
                tokens: grid.visual_tokens(processor.image.merge_size),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Report {
        name,
        family: match &text.moe {
            None => "Qwen3-VL, dense".to_owned(),
            Some(moe) => format!(
                "Qwen3-VL, mixture of experts ({} of {} a token)",
                moe.num_experts_per_tok, moe.num_experts
            ),
        },
        parameters: tensors.parameter_count(),
        vision_parameters: count(tensors, |name| name.starts_with("model.visual.")),
        embedding_parameters: count(tensors, |name| {
            name.contains("embed_tokens") || name.starts_with("lm_head")
        }),
        weight_bytes: tensors.weight_bytes(),
        tensors: by_dtype(tensors),
        files: tensors.files().len(),
        decoder: Decoder {
            layers: text.num_hidden_layers,
            hidden_size: text.hidden_size,
            heads: text.num_attention_heads,
            kv_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            mlp: text.moe.as_ref().map_or(text.intermediate_size, |moe| moe.moe_intermediate_size),
            tied_head: config.tie_word_embeddings,
            mrope_section: text.mrope_section,
        },
        vision: Vision {
            blocks: config.vision.depth,
            hidden_size: config.vision.hidden_size,
            heads: config.vision.num_heads,
            mlp: config.vision.intermediate_size,
            patch_size: config.vision.patch_size,
            deepstack: config.vision.deepstack_visual_indexes.clone(),
        },
        vocab_size: text.vocab_size,
        context: text.max_position_embeddings,
        kv_bytes_per_token: text.num_hidden_layers
            * 2
            * text.num_key_value_heads
            * text.head_dim
            * size_of::<u16>(),
        image_tokens,
    })
}

fn count(tensors: &Tensors, of: impl Fn(&str) -> bool) -> u64 {
    let views = tensors.names().filter(|name| of(name)).filter_map(|name| tensors.find(name));
    views.map(|view| view.shape().iter().map(|&dim| dim as u64).product::<u64>()).sum()
}

fn by_dtype(tensors: &Tensors) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for view in tensors.names().filter_map(|name| tensors.find(name)) {
        *counts.entry(view.dtype().to_string()).or_default() += 1;
    }
    for (_, dtype) in tensors.unreadable() {
        *counts.entry(format!("{dtype} (cannot be read)")).or_default() += 1;
    }
    counts
}

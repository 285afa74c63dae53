//! Checkpoints of the published shapes with random weights: for measuring, since speed and memory do not
//! depend on what the weights say.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::run::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which member of the family.
    #[arg(long, value_enum)]
    shape: Shape,
    /// Where to write it; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fewer decoder layers than the shape has, for machines with less room.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    #[value(name = "2b")]
    B2,
    #[value(name = "4b")]
    B4,
    #[value(name = "8b")]
    B8,
    #[value(name = "32b")]
    B32,
    #[value(name = "30b-a3b")]
    B30A3,
    #[value(name = "235b-a22b")]
    B235A22,
}

/// What distinguishes the members; all else is common to the family.
struct Dimensions {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    mlp: usize,
    tied: bool,
    experts: Option<Experts>,
    vision: Vision,
}

struct Experts {
    count: usize,
    per_token: usize,
    mlp: usize,
}

struct Vision {
    depth: usize,
    hidden: usize,
    mlp: usize,
    deepstack: [usize; 3],
}

const HEAD_DIM: usize = 128;
const VOCAB: usize = 151_936;
/// Ordinary tokens; the special ones follow.
const ORDINARY_TOKENS: usize = 151_643;
const POSITIONS: usize = 2304;
/// Bytes of a weight file beyond which the next begins, as published checkpoints are cut.
const SHARD_BYTES: u64 = 5_000_000_000;

const SPECIAL_TOKENS: [&str; 26] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
];

impl Shape {
    /// 2B and 4B as in several public copies of their configurations; the others after the Qwen3 text models
    /// and transformers' defaults for the tower.
    fn dimensions(self) -> Dimensions {
        let small = || Vision { depth: 24, hidden: 1024, mlp: 4096, deepstack: [5, 11, 17] };
        let large = || Vision { depth: 27, hidden: 1152, mlp: 4304, deepstack: [8, 16, 24] };
        let dense = |hidden, layers, heads, mlp, tied, vision| Dimensions {
            hidden,
            layers,
            heads,
            kv_heads: 8,
            mlp,
            tied,
            experts: None,
            vision,
        };
        let sparse = |hidden, layers, heads, mlp, expert_mlp| Dimensions {
            hidden,
            layers,
            heads,
            kv_heads: 4,
            mlp,
            tied: false,
            experts: Some(Experts { count: 128, per_token: 8, mlp: expert_mlp }),
            vision: large(),
        };
        match self {
            Self::B2 => dense(2048, 28, 16, 6144, true, small()),
            Self::B4 => dense(2560, 36, 32, 9728, true, small()),
            Self::B8 => dense(4096, 36, 32, 12288, false, large()),
            Self::B32 => dense(5120, 64, 64, 25600, false, large()),
            Self::B30A3 => sparse(2048, 48, 32, 6144, 768),
            Self::B235A22 => sparse(4096, 94, 64, 12288, 1536),
        }
    }
}

/// The smallest of the published shapes, for measuring.
pub(crate) fn write_2b(dir: &Path) -> Result<()> {
    run(&Args { shape: Shape::B2, out: dir.to_owned(), layers: None, seed: 1 })
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut shape = args.shape.dimensions();
    if let Some(layers) = args.layers {
        if !(3..=shape.layers).contains(&layers) {
            bail!("--layers {layers}: this shape has {}, and DeepStack needs three", shape.layers);
        }
        shape.layers = layers;
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    write_json(&args.out.join("config.json"), &config(&shape))?;
    write_json(
        &args.out.join("generation_config.json"),
        &json!({ "bos_token_id": 151_643, "pad_token_id": 151_643, "eos_token_id": [151_645, 151_643],
                 "do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20 }),
    )?;
    for (file, least, most) in [
        ("preprocessor_config.json", 65_536, 16_777_216),
        ("video_preprocessor_config.json", 4096, 25_165_824),
    ] {
        write_json(&args.out.join(file), &processor(least, most))?;
    }
    std::fs::write(args.out.join("chat_template.jinja"), CHAT_TEMPLATE)?;
    write_json(&args.out.join("tokenizer.json"), &tokenizer())?;
    write_weights(&args.out, &tensors(&shape), args.seed)?;
    say(&format!("{} is ready: try `qvl inspect {0}`", args.out.display()));
    Ok(())
}

const CHAT_TEMPLATE: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}\
{%- if message.content is string %}{{- message.content }}{%- else %}{%- for item in message.content %}\
{%- if item.type == 'image' or 'image' in item %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}\
{%- elif item.type == 'video' or 'video' in item %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}\
{%- elif 'text' in item %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

fn config(shape: &Dimensions) -> Value {
    let is_moe = shape.experts.is_some();
    let (model, class) = if is_moe {
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration")
    } else {
        ("qwen3_vl", "Qwen3VLForConditionalGeneration")
    };
    let mut text = json!({
        "attention_bias": false, "bos_token_id": 151_643, "dtype": "bfloat16", "eos_token_id": 151_645,
        "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": shape.hidden, "intermediate_size": shape.mlp,
        "max_position_embeddings": 262_144, "model_type": format!("{model}_text"),
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6,
        "rope_scaling": { "mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default" },
        "rope_theta": 5_000_000, "tie_word_embeddings": shape.tied, "vocab_size": VOCAB,
    });
    if let Some(experts) = &shape.experts {
        text["num_experts"] = json!(experts.count);
        text["num_experts_per_tok"] = json!(experts.per_token);
        text["moe_intermediate_size"] = json!(experts.mlp);
        text["decoder_sparse_step"] = json!(1);
        text["mlp_only_layers"] = json!([]);
        text["norm_topk_prob"] = json!(true);
    }
    let vision = &shape.vision;
    json!({
        "architectures": [class], "model_type": model, "tie_word_embeddings": shape.tied, "text_config": text,
        "image_token_id": 151_655, "video_token_id": 151_656,
        "vision_start_token_id": 151_652, "vision_end_token_id": 151_653,
        "vision_config": {
            "deepstack_visual_indexes": vision.deepstack, "depth": vision.depth,
            "hidden_act": "gelu_pytorch_tanh", "hidden_size": vision.hidden, "in_channels": 3,
            "intermediate_size": vision.mlp, "model_type": model, "num_heads": 16,
            "num_position_embeddings": POSITIONS, "out_hidden_size": shape.hidden, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    })
}

fn processor(least_pixels: u64, most_pixels: u64) -> Value {
    json!({ "size": { "shortest_edge": least_pixels, "longest_edge": most_pixels }, "patch_size": 16,
            "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] })
}

/// A byte-level tokenizer that has as many tokens as the real one and the special ones at their ids. It has
/// no merges, so text is cut into bytes.
fn tokenizer() -> Value {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let alphabet: Vec<char> =
        (0x21..=0xff).filter(printable).chain(256..324).filter_map(char::from_u32).collect();
    // The bytes, then all pairs, then as many triples as are needed.
    let text = |index: usize| -> String {
        let (digits, rest) = match index {
            0..256 => (1, index),
            256..65_792 => (2, index - 256),
            _ => (3, index - 65_792),
        };
        (0..digits).rev().map(|digit| alphabet[(rest >> (8 * digit)) & 0xff]).collect()
    };
    let vocab: Map<String, Value> = (0..ORDINARY_TOKENS).map(|index| (text(index), json!(index))).collect();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(index, token)| {
            json!({ "id": ORDINARY_TOKENS + index, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": token.starts_with("<|") })
        })
        .collect();
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// Ones: norms.
    Ones,
    /// Zeros: biases.
    Zeros,
    /// Uniform noise with this standard deviation.
    Noise(f32),
}

impl Tensor {
    fn bytes(&self) -> u64 {
        2 * self.shape.iter().map(|&dim| dim as u64).product::<u64>()
    }
}

/// All tensors in the order of the network, in the published layout.
fn tensors(shape: &Dimensions) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut add =
        |name: String, shape: &[usize], fill: Fill| all.push(Tensor { name, shape: shape.to_vec(), fill });
    // 1 / sqrt(inputs) keeps activations of one size through the layers.
    let noise = |inputs: usize| Fill::Noise((inputs as f32).powf(-0.5));

    let vision = &shape.vision;
    let (width, merged) = (vision.hidden, vision.hidden * 4);
    add("model.visual.patch_embed.proj.weight".into(), &[width, 3, 2, 16, 16], noise(1536));
    add("model.visual.patch_embed.proj.bias".into(), &[width], Fill::Zeros);
    add("model.visual.pos_embed.weight".into(), &[POSITIONS, width], Fill::Noise(0.2));
    for index in 0..vision.depth {
        let name = |rest: &str| format!("model.visual.blocks.{index}.{rest}");
        for norm in ["norm1", "norm2"] {
            add(name(&format!("{norm}.weight")), &[width], Fill::Ones);
            add(name(&format!("{norm}.bias")), &[width], Fill::Zeros);
        }
        for (linear, outputs, inputs) in [
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.linear_fc1", vision.mlp, width),
            ("mlp.linear_fc2", width, vision.mlp),
        ] {
            add(name(&format!("{linear}.weight")), &[outputs, inputs], noise(inputs));
            add(name(&format!("{linear}.bias")), &[outputs], Fill::Zeros);
        }
    }
    let mergers = (0..vision.deepstack.len()).map(|i| (format!("deepstack_merger_list.{i}"), merged));
    for (merger, norm_width) in std::iter::once(("merger".to_owned(), width)).chain(mergers) {
        let name = |rest: &str| format!("model.visual.{merger}.{rest}");
        add(name("norm.weight"), &[norm_width], Fill::Ones);
        add(name("norm.bias"), &[norm_width], Fill::Zeros);
        for (linear, outputs) in [("linear_fc1", merged), ("linear_fc2", shape.hidden)] {
            add(name(&format!("{linear}.weight")), &[outputs, merged], noise(merged));
            add(name(&format!("{linear}.bias")), &[outputs], Fill::Zeros);
        }
    }

    let hidden = shape.hidden;
    let (q_width, kv_width) = (shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM);
    add("model.language_model.embed_tokens.weight".into(), &[VOCAB, hidden], Fill::Noise(0.05));
    for index in 0..shape.layers {
        let name = |rest: &str| format!("model.language_model.layers.{index}.{rest}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(name(&format!("{norm}.weight")), &[hidden], Fill::Ones);
        }
        for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
            add(name(&format!("{norm}.weight")), &[HEAD_DIM], Fill::Ones);
        }
        let mut linear = |rest: &str, outputs: usize, inputs: usize| {
            add(name(&format!("{rest}.weight")), &[outputs, inputs], noise(inputs));
        };
        linear("self_attn.q_proj", q_width, hidden);
        linear("self_attn.k_proj", kv_width, hidden);
        linear("self_attn.v_proj", kv_width, hidden);
        linear("self_attn.o_proj", hidden, q_width);
        match &shape.experts {
            None => {
                linear("mlp.gate_proj", shape.mlp, hidden);
                linear("mlp.up_proj", shape.mlp, hidden);
                linear("mlp.down_proj", hidden, shape.mlp);
            }
            Some(Experts { count, mlp, .. }) => {
                linear("mlp.gate", *count, hidden);
                add(name("mlp.experts.gate_up_proj"), &[*count, hidden, 2 * mlp], noise(hidden));
                add(name("mlp.experts.down_proj"), &[*count, *mlp, hidden], noise(*mlp));
            }
        }
    }
    add("model.language_model.norm.weight".into(), &[hidden], Fill::Ones);
    if !shape.tied {
        add("lm_head.weight".into(), &[VOCAB, hidden], noise(hidden));
    }
    all
}

fn write_weights(dir: &Path, tensors: &[Tensor], seed: u64) -> Result<()> {
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template(
        "writing {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ({eta} left)",
    )?);

    let mut shards: Vec<&[Tensor]> = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes() > SHARD_BYTES {
            shards.push(&tensors[first..index]);
            (first, bytes) = (index, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[first..]);

    let mut weight_map = Map::new();
    let mut tensor_index = 0;
    for (index, shard) in shards.iter().enumerate() {
        let file_name = if shards.len() == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len())
        };
        let path = dir.join(&file_name);
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
        let mut offset = 0;
        for tensor in *shard {
            let end = offset + tensor.bytes();
            let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end] });
            header.insert(tensor.name.clone(), entry);
            weight_map.insert(tensor.name.clone(), json!(file_name));
            offset = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        // The data starts at a multiple of 64, so that a map of the file is aligned for any load.
        header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in *shard {
            write_tensor(&mut file, tensor, seed.wrapping_add(tensor_index), &bar)?;
            tensor_index += 1;
        }
        file.flush()?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    bar.finish_and_clear();
    say(&format!("{} tensors, {total} bytes of weights in {} file(s)", tensors.len(), shards.len()));
    Ok(())
}

fn write_tensor(file: &mut impl Write, tensor: &Tensor, seed: u64, bar: &ProgressBar) -> Result<()> {
    const BLOCK: usize = 1 << 19;
    let mut block = Vec::with_capacity(2 * BLOCK);
    let mut left = tensor.bytes() as usize / 2;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while left > 0 {
        block.clear();
        for _ in 0..left.min(BLOCK) {
            let value = match tensor.fill {
                Fill::Ones => 1.0,
                Fill::Zeros => 0.0,
                Fill::Noise(deviation) => {
                    // Uniform in [-1, 1) has a standard deviation of 1 / sqrt 3.
                    (next(&mut state) >> 40) as f32 / (1 << 23) as f32 * SQRT_3 * deviation
                        - SQRT_3 * deviation
                }
            };
            // Truncation to bfloat16: the upper half.
            block.extend_from_slice(&((f32::to_bits(value) >> 16) as u16).to_le_bytes());
        }
        file.write_all(&block)?;
        bar.inc(block.len() as u64);
        left -= block.len() / 2;
    }
    Ok(())
}

const SQRT_3: f32 = 1.732_050_8;

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, serde_json::to_vec_pretty(value)?).with_context(|| path.display().to_string())
}

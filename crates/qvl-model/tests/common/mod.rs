//! Small random checkpoints in the Hugging Face layout, written to a temporary folder, and requests for them.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

pub(crate) mod gguf;

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use qvl_model::CpuOptions;
use qvl_model::backend::cpu::Isa;
use qvl_model::checkpoint::Checkpoint;
use qvl_model::{
    Content, Cpu, Error, Grid, Message, Model, Part, Prompt, Residency, VisualInput, VisualKind,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The special tokens, in the order of their ids from [`FIRST_SPECIAL`].
pub(crate) const SPECIALS: [&str; 7] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
];
/// Merged pairs, by the characters that stand for their bytes: words, and halves of characters.
pub(crate) const MERGES: [(&str, &str); 6] =
    [("t", "h"), ("th", "e"), ("Ġ", "a"), ("å", "Ľ"), ("ð", "Ł"), ("Ã", "©")];
/// 256 bytes and the merges come before.
pub(crate) const FIRST_SPECIAL: u32 = 256 + MERGES.len() as u32;
pub(crate) const IM_END: u32 = FIRST_SPECIAL + 2;
pub(crate) const IMAGE_PAD: u32 = FIRST_SPECIAL + 5;
/// Added tokens that are not special: one plain, one with a blank, one with a letter that is also a byte.
pub(crate) const ADDED: [&str; 3] = ["<tool>", "a b", "é!"];
pub(crate) const TOKENS: u32 = FIRST_SPECIAL + SPECIALS.len() as u32 + ADDED.len() as u32;
/// Networks have a few more rows than their tokenizer has tokens.
pub(crate) const VOCAB: usize = TOKENS as usize + 5;
pub(crate) const CONTEXT: usize = 400;
pub(crate) const PATCH_VALUES: usize = 3 * 2 * 16 * 16;

/// Which keys the configuration has for the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keys {
    /// `rope_scaling` beside `rope_theta`, as published.
    Published,
    /// `rope_parameters`, as newer tools write.
    Merged,
}

/// How the experts are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ExpertLayout {
    /// `[E, 2I, H]` and `[E, H, I]`.
    OutIn,
    /// `[E, H, 2I]` and `[E, I, H]`, as published.
    InOut,
}

/// A checkpoint to be written. The values of a tensor depend on its name alone, not on how it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) moe: bool,
    pub(crate) tied: bool,
    pub(crate) store: Dtype,
    pub(crate) keys: Keys,
    pub(crate) experts: ExpertLayout,
    /// 1 is a single file without an index.
    pub(crate) shards: usize,
    pub(crate) hidden: usize,
    pub(crate) head_dim: usize,
    pub(crate) mrope_section: [usize; 3],
    pub(crate) vision_heads: usize,
    pub(crate) vision_head_dim: usize,
}

pub(crate) const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const MLP: usize = 72;
pub(crate) const EXPERTS: usize = 5;
const EXPERT_MLP: usize = 20;
const BLOCKS: usize = 3;
const TAPPED: [usize; 2] = [0, 2];
const VISION_MLP: usize = 56;
const POSITIONS: usize = 36;

impl Network {
    /// Widths that are no multiples of 16, so that every kernel meets its edge.
    pub(crate) fn dense() -> Self {
        Self {
            moe: false,
            tied: true,
            store: Dtype::BF16,
            keys: Keys::Published,
            experts: ExpertLayout::InOut,
            shards: 1,
            hidden: 40,
            head_dim: 24,
            mrope_section: [5, 4, 3],
            vision_heads: 2,
            vision_head_dim: 20,
        }
    }

    pub(crate) fn moe() -> Self {
        Self { moe: true, tied: false, ..Self::dense() }
    }

    pub(crate) fn config(&self) -> Value {
        let mut text = json!({
            "vocab_size": VOCAB, "hidden_size": self.hidden, "intermediate_size": MLP,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "head_dim": self.head_dim, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "attention_bias": false, "eos_token_id": IM_END,
        });
        let mut rope = json!({
            "rope_type": "default", "mrope_interleaved": true, "mrope_section": self.mrope_section,
        });
        match self.keys {
            Keys::Published => {
                text["rope_theta"] = json!(10_000);
                text["rope_scaling"] = rope;
            }
            Keys::Merged => {
                rope["rope_theta"] = json!(10_000.0);
                text["rope_parameters"] = rope;
            }
        }
        if self.moe {
            text["num_experts"] = json!(EXPERTS);
            text["num_experts_per_tok"] = json!(2);
            text["moe_intermediate_size"] = json!(EXPERT_MLP);
            text["decoder_sparse_step"] = json!(1);
            text["norm_topk_prob"] = json!(true);
            // One dense layer among them.
            text["mlp_only_layers"] = json!([1]);
        }
        let special = |index: u32| FIRST_SPECIAL + index;
        json!({
            "model_type": if self.moe { "qwen3_vl_moe" } else { "qwen3_vl" },
            "tie_word_embeddings": self.tied,
            "vision_start_token_id": special(3), "vision_end_token_id": special(4),
            "image_token_id": special(5), "video_token_id": special(6),
            "text_config": text,
            "vision_config": {
                "depth": BLOCKS, "hidden_size": self.vision_hidden(), "intermediate_size": VISION_MLP,
                "num_heads": self.vision_heads, "out_hidden_size": self.hidden,
                "num_position_embeddings": POSITIONS, "deepstack_visual_indexes": TAPPED,
                "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "patch_size": 16,
                "temporal_patch_size": 2, "spatial_merge_size": 2,
            },
        })
    }

    fn vision_hidden(&self) -> usize {
        self.vision_heads * self.vision_head_dim
    }

    /// Every tensor: name, shape, values.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            let values = values(&name, shape);
            all.push((name, shape.to_vec(), values));
        };
        let width = self.vision_hidden();
        let mut linear = |name: String, outputs: usize, inputs: usize| {
            add(format!("{name}.weight"), &[outputs, inputs]);
            add(format!("{name}.bias"), &[outputs]);
        };
        linear("model.visual.merger.linear_fc1".to_owned(), 4 * width, 4 * width);
        linear("model.visual.merger.linear_fc2".to_owned(), self.hidden, 4 * width);
        for index in 0..TAPPED.len() {
            let name = format!("model.visual.deepstack_merger_list.{index}");
            linear(format!("{name}.linear_fc1"), 4 * width, 4 * width);
            linear(format!("{name}.linear_fc2"), self.hidden, 4 * width);
        }
        for index in 0..BLOCKS {
            let name = format!("model.visual.blocks.{index}");
            linear(format!("{name}.attn.qkv"), 3 * width, width);
            linear(format!("{name}.attn.proj"), width, width);
            linear(format!("{name}.mlp.linear_fc1"), VISION_MLP, width);
            linear(format!("{name}.mlp.linear_fc2"), width, VISION_MLP);
        }
        let mut norm = |name: String, width: usize| {
            add(format!("{name}.weight"), &[width]);
            add(format!("{name}.bias"), &[width]);
        };
        norm("model.visual.merger.norm".to_owned(), width);
        for index in 0..TAPPED.len() {
            norm(format!("model.visual.deepstack_merger_list.{index}.norm"), 4 * width);
        }
        for index in 0..BLOCKS {
            norm(format!("model.visual.blocks.{index}.norm1"), width);
            norm(format!("model.visual.blocks.{index}.norm2"), width);
        }
        add("model.visual.patch_embed.proj.weight".to_owned(), &[width, 3, 2, 16, 16]);
        add("model.visual.patch_embed.proj.bias".to_owned(), &[width]);
        add("model.visual.pos_embed.weight".to_owned(), &[POSITIONS, width]);
        let text = "model.language_model";
        add(format!("{text}.embed_tokens.weight"), &[VOCAB, self.hidden]);
        add(format!("{text}.norm.weight"), &[self.hidden]);
        if !self.tied {
            add("lm_head.weight".to_owned(), &[VOCAB, self.hidden]);
        }
        for index in 0..LAYERS {
            let name = |rest: &str| format!("{text}.layers.{index}.{rest}");
            add(name("input_layernorm.weight"), &[self.hidden]);
            add(name("post_attention_layernorm.weight"), &[self.hidden]);
            add(name("self_attn.q_proj.weight"), &[HEADS * self.head_dim, self.hidden]);
            add(name("self_attn.k_proj.weight"), &[KV_HEADS * self.head_dim, self.hidden]);
            add(name("self_attn.v_proj.weight"), &[KV_HEADS * self.head_dim, self.hidden]);
            add(name("self_attn.o_proj.weight"), &[self.hidden, HEADS * self.head_dim]);
            add(name("self_attn.q_norm.weight"), &[self.head_dim]);
            add(name("self_attn.k_norm.weight"), &[self.head_dim]);
            if self.moe && index != 1 {
                add(name("mlp.gate.weight"), &[EXPERTS, self.hidden]);
                add(name("mlp.experts.gate_up_proj"), &[EXPERTS, 2 * EXPERT_MLP, self.hidden]);
                add(name("mlp.experts.down_proj"), &[EXPERTS, self.hidden, EXPERT_MLP]);
            } else {
                add(name("mlp.gate_proj.weight"), &[MLP, self.hidden]);
                add(name("mlp.up_proj.weight"), &[MLP, self.hidden]);
                add(name("mlp.down_proj.weight"), &[self.hidden, MLP]);
            }
        }
        if self.experts == ExpertLayout::InOut {
            for (_, shape, values) in all.iter_mut().filter(|(name, ..)| name.contains(".experts.")) {
                *values = transposed(shape, values);
                shape.swap(1, 2);
            }
        }
        all
    }

    /// Writes the folder.
    pub(crate) fn write(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config().to_string()).unwrap();
        std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        std::fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
        let tensors = self.tensors();
        if self.shards == 1 {
            let stored = tensors.iter().map(|tensor| self.stored(tensor)).collect();
            write_weights(&dir.join("model.safetensors"), &stored);
            return;
        }
        let mut map = Map::new();
        for shard in 0..self.shards {
            let file = format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards);
            let mine: Vec<_> = tensors.iter().skip(shard).step_by(self.shards).collect();
            map.extend(mine.iter().map(|(name, ..)| (name.clone(), json!(file))));
            write_weights(&dir.join(&file), &mine.into_iter().map(|tensor| self.stored(tensor)).collect());
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn stored(&self, (name, shape, values): &(String, Vec<usize>, Vec<f32>)) -> (String, Stored) {
        (name.clone(), Stored::new(self.store, shape, values))
    }

    /// Writes it to a folder that lives as long as the value returned.
    pub(crate) fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        folder
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn new(dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = match dtype {
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            other => panic!("the tests store no {other:?} values"),
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

pub(crate) type Weights = BTreeMap<String, Stored>;

pub(crate) fn write_weights(path: &Path, weights: &Weights) {
    let views = weights.iter().map(|(name, stored)| {
        (name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Rewrites `model.safetensors` of a folder with a change.
pub(crate) fn change_weights(dir: &Path, change: impl FnOnce(&mut Weights)) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut weights: Weights = parsed
        .iter()
        .map(|(name, view)| {
            let stored =
                Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (name.to_owned(), stored)
        })
        .collect();
    change(&mut weights);
    write_weights(&path, &weights);
}

/// Rewrites a JSON file of a folder with a change.
pub(crate) fn change_json(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Values that bf16, f16 and f32 all hold exactly: seven bits and a power of two.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut random = Random::new(name);
    let count: usize = shape.iter().product();
    let mut small =
        |limit: i32| f32::from(i16::try_from(random.below(2 * limit as u64 + 1) as i32 - limit).unwrap());
    if shape.len() == 1 {
        let centre = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        return (0..count).map(|_| centre + small(20) / 128.0).collect();
    }
    let inputs: usize = if shape.len() == 3 { shape[2] } else { shape[1..].iter().product() };
    let spread = if name.contains("embed_tokens") || name.contains("pos_embed") {
        0.5
    } else {
        1.5 / (inputs as f32).sqrt()
    };
    // The integers have a standard deviation of 73.
    let step = (spread / 73.0).log2().round().exp2();
    (0..count).map(|_| small(127) * step).collect()
}

/// `[E, a, b]` to `[E, b, a]`.
fn transposed(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let (rows, cols) = (shape[1], shape[2]);
    values
        .chunks_exact(rows * cols)
        .flat_map(|m| (0..cols).flat_map(move |col| (0..rows).map(move |row| m[row * cols + col])))
        .collect()
}

/// A small generator: what it gives depends on the name alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

const TEMPLATE: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}\
    {%- if message.content is string %}{{- message.content }}{%- else %}{%- for item in message.content %}\
    {%- if item.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}\
    {%- elif item.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}\
    {%- else %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// The character that byte-level BPE writes for a byte.
pub(crate) fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

/// `tokenizer.json`: 256 bytes, a few merges, the special tokens, a few added ones.
pub(crate) fn tokenizer() -> Value {
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), json!(byte));
    }
    for (index, (first, second)) in MERGES.iter().enumerate() {
        vocab.insert(format!("{first}{second}"), json!(256 + index));
    }
    let added: Vec<Value> = SPECIALS
        .iter()
        .chain(&ADDED)
        .zip(FIRST_SPECIAL..)
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": SPECIALS.contains(content),
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": MERGES,
        },
    })
}

/// The checkpoint of a folder on the CPU backend.
pub(crate) fn open_with(dir: &Path, options: CpuOptions, residency: Residency) -> Model<Cpu> {
    Model::load(Checkpoint::open(dir).unwrap(), Cpu::with(options).unwrap(), residency).unwrap()
}

pub(crate) fn open_on(dir: &Path, threads: usize, isa: Isa, residency: Residency) -> Model<Cpu> {
    open_with(dir, CpuOptions { threads, isa: Some(isa), ..CpuOptions::default() }, residency)
}

/// On two threads, with the best instructions.
pub(crate) fn open(dir: &Path) -> Model<Cpu> {
    open_on(dir, 2, Isa::detect(), Residency::Resident)
}

/// The error of a folder that cannot be opened, with its text. The text is one line.
pub(crate) fn failure(dir: &Path) -> (Error, String) {
    let error = match Model::open(dir, Cpu::new(1).unwrap()) {
        Ok(_) => panic!("a broken checkpoint was accepted"),
        Err(error) => error,
    };
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    (error, message)
}

/// A still of noise, `h` x `w` patches.
pub(crate) fn still(name: &str, h: u32, w: u32) -> VisualInput {
    let grid = Grid { t: 1, h, w };
    VisualInput { kind: VisualKind::Image, grid, pixel_values: pixels(name, grid) }
}

/// A video of noise, two frames a second.
pub(crate) fn video(name: &str, t: u32, h: u32, w: u32) -> VisualInput {
    let grid = Grid { t, h, w };
    let timestamps = (0..t).map(|index| f64::from(index) + 0.25).collect();
    VisualInput { kind: VisualKind::Video { timestamps }, grid, pixel_values: pixels(name, grid) }
}

fn pixels(name: &str, grid: Grid) -> Vec<f32> {
    let mut random = Random::new(name);
    (0..grid.patches() * PATCH_VALUES).map(|_| random.below(256) as f32 / 127.5 - 1.0).collect()
}

/// A prompt of two turns with stills of different shapes, a video, and text between them: 96 tokens or so.
pub(crate) fn long_prompt(model: &Model<Cpu>) -> Prompt {
    let messages = [
        Message::system("You see."),
        Message::user([
            Part::Image,
            Part::text("and this thé"),
            Part::Image,
            Part::Video,
            Part::text(" a what?"),
        ]),
    ];
    let inputs = vec![still("first", 4, 6), still("second", 2, 8), video("third", 2, 4, 4)];
    model.prompt(&messages, inputs).unwrap()
}

/// A prompt of one user turn.
pub(crate) fn short_prompt(model: &Model<Cpu>, text: &str, inputs: Vec<VisualInput>) -> Prompt {
    let parts: Vec<Part> = inputs.iter().map(|_| Part::Image).chain([Part::text(text)]).collect();
    model.prompt(&[Message { role: "user".to_owned(), content: Content::Parts(parts) }], inputs).unwrap()
}

/// Fails at the first value whose bits differ.
pub(crate) fn assert_same_bits(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let first = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(index) = first {
        panic!("{what}: value {index} of {} is {:e}, expected {:e}", got.len(), got[index], expected[index]);
    }
}

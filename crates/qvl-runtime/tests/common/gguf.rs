//! GGUF files written byte by byte, and checkpoint folders turned into pairs of them in the layout of llama.cpp's
//! converter. Written from the format's description, apart from the reader it tests.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use qvl_model::quant::BlockFormat;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A metadata value.
#[derive(Clone, Debug)]
pub(crate) enum Meta {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    /// The type and the bytes, whatever they are.
    Raw(u32, Vec<u8>),
}

impl Meta {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut array = |element: u32, count: usize, bytes: Vec<u8>| {
            out.extend(9u32.to_le_bytes());
            out.extend(element.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::I32s(values) => {
                return array(5, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect());
            }
            Self::F32s(values) => {
                return array(6, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect());
            }
            Self::Bools(values) => return array(7, values.len(), values.iter().map(|&v| v.into()).collect()),
            Self::Texts(values) => {
                return array(8, values.len(), values.iter().flat_map(|v| string(v.as_bytes())).collect());
            }
            _ => {}
        }
        let (kind, bytes) = match self {
            Self::U32(value) => (4, value.to_le_bytes().to_vec()),
            Self::I32(value) => (5, value.to_le_bytes().to_vec()),
            Self::F32(value) => (6, value.to_le_bytes().to_vec()),
            Self::Bool(value) => (7, vec![u8::from(*value)]),
            Self::Text(text) => (8, string(text.as_bytes())),
            Self::U64(value) => (10, value.to_le_bytes().to_vec()),
            Self::Raw(kind, bytes) => (*kind, bytes.clone()),
            _ => unreachable!(),
        };
        out.extend(u32::to_le_bytes(kind));
        out.extend(bytes);
    }
}

/// A string as the format writes it.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Store {
    F32,
    F16,
    Bf16,
    Block(BlockFormat),
}

impl Store {
    fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
            Self::Block(BlockFormat::Q4_0) => 2,
            Self::Block(BlockFormat::Q8_0) => 8,
            Self::Block(BlockFormat::Q4K) => 12,
            Self::Block(BlockFormat::Q5K) => 13,
            Self::Block(BlockFormat::Q6K) => 14,
        }
    }

    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Self::Block(format) => {
                let mut bytes = vec![0; format.bytes_of(values.len()).unwrap()];
                format.quantize(values, &mut bytes).unwrap();
                bytes
            }
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Slowest first.
    pub(crate) shape: Vec<u64>,
    pub(crate) type_id: u32,
    pub(crate) bytes: Vec<u8>,
    /// Where the header says it begins; where it does begin if `None`.
    pub(crate) offset: Option<u64>,
}

impl Tensor {
    pub(crate) fn new(name: &str, store: Store, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let shape = shape.iter().map(|&dim| dim as u64).collect();
        Self { name: name.to_owned(), shape, type_id: store.id(), bytes: store.encode(values), offset: None }
    }
}

/// A file to be written.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) metadata: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    /// What the header says there is, where that is not true.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) metadata_count: Option<u64>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            tensor_count: None,
            metadata_count: None,
        }
    }
}

impl File {
    /// Adds a metadata entry, or changes the one that is there.
    pub(crate) fn set(&mut self, key: &str, value: Meta) {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Removes a metadata entry, which must be there.
    pub(crate) fn remove(&mut self, key: &str) {
        let before = self.metadata.len();
        self.metadata.retain(|(known, _)| known != key);
        assert_eq!(self.metadata.len(), before - 1, "{key}");
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key.as_bytes()));
            value.write(&mut out);
        }
        let padded = |bytes: usize| bytes.next_multiple_of(self.alignment);
        let mut next = 0;
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            out.extend(tensor.shape.iter().rev().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next as u64).to_le_bytes());
            next += padded(tensor.bytes.len());
        }
        for tensor in &self.tensors {
            out.resize(padded(out.len()), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

/// A language model and its vision tower.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) model: File,
    pub(crate) mmproj: File,
}

impl Pair {
    /// Converts a folder with a single weight file. Matrices are stored as `store`, where their rows are whole blocks
    /// of it, and as F32 otherwise; vectors, positions, the patch embedding and routers are F32.
    pub(crate) fn convert(folder: &Path, store: Store) -> Self {
        Self::convert_with(folder, |_, row| match store {
            Store::Block(format) if !row.is_multiple_of(format.block_len()) => Store::F32,
            store => store,
        })
    }

    /// Converts a folder. `store` chooses by a matrix's name in GGUF and the length of its rows.
    pub(crate) fn convert_with(folder: &Path, store: impl Fn(&str, usize) -> Store) -> Self {
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
        let json = |file: &str| read(file).map(|text| serde_json::from_str::<Value>(&text).unwrap());
        let config = json("config.json").unwrap();
        let mut model = text_metadata(&config);
        vocabulary(&mut model, &json("tokenizer.json").unwrap(), &config);
        if let Some(template) = read("chat_template.jinja") {
            model.set("tokenizer.chat_template", Meta::Text(template));
        }
        let mut mmproj = vision_metadata(&config, json("preprocessor_config.json").as_ref());

        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let weights = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<_> = weights.names();
        names.sort_unstable();
        // One layout for all stacks; only this one is never square.
        let width = config["text_config"]["hidden_size"].as_u64().unwrap() as usize;
        let is_out_in = names
            .iter()
            .find(|name| name.ends_with("mlp.experts.down_proj"))
            .is_none_or(|name| weights.tensor(name).unwrap().shape()[1] == width);
        for name in names {
            let view = weights.tensor(name).unwrap();
            let values = floats(view.dtype(), view.data());
            for (name, shape, values) in converted(name, view.shape(), values, &config, is_out_in) {
                let is_f32 = shape.len() == 1
                    || ["norm.weight", "position_embd", "patch_embd", "gate_inp"]
                        .iter()
                        .any(|part| name.contains(part));
                let chosen = if is_f32 { Store::F32 } else { store(&name, *shape.last().unwrap()) };
                let file =
                    if name.starts_with("v.") || name.starts_with("mm.") { &mut mmproj } else { &mut model };
                file.tensors.push(Tensor::new(&name, chosen, &shape, &values));
            }
        }
        Self { model, mmproj }
    }

    /// Writes `model.gguf` and `mmproj-model.gguf`; returns their paths.
    pub(crate) fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let (model, mmproj) = (folder.join("model.gguf"), folder.join("mmproj-model.gguf"));
        std::fs::write(&model, self.model.bytes()).unwrap();
        std::fs::write(&mmproj, self.mmproj.bytes()).unwrap();
        (model, mmproj)
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("no test converts {other:?}"),
    }
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap_or_else(|| panic!("{value}"))).unwrap()
}

fn text_metadata(config: &Value) -> File {
    let text = &config["text_config"];
    let is_moe = config["model_type"] == "qwen3_vl_moe";
    let architecture = if is_moe { "qwen3vlmoe" } else { "qwen3vl" };
    let mut file = File::default();
    file.set("general.architecture", Meta::text(architecture));
    file.set("general.type", Meta::text("model"));
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("expert_count", "num_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        if is_moe || !key.starts_with("expert") {
            file.set(&format!("{architecture}.{key}"), Meta::U32(number(&text[field])));
        }
    }
    let rope = text.get("rope_scaling").unwrap_or(&text["rope_parameters"]);
    let theta = text.get("rope_theta").unwrap_or(&rope["rope_theta"]).as_f64().unwrap();
    let mut sections: Vec<i32> =
        rope["mrope_section"].as_array().unwrap().iter().map(|part| number(part) as i32).collect();
    sections.push(0);
    file.set(&format!("{architecture}.rope.dimension_sections"), Meta::I32s(sections));
    file.set(&format!("{architecture}.rope.freq_base"), Meta::F32(theta as f32));
    let eps = text["rms_norm_eps"].as_f64().unwrap() as f32;
    file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Meta::F32(eps));
    let tapped = config["vision_config"]["deepstack_visual_indexes"].as_array().unwrap().len();
    file.set(&format!("{architecture}.n_deepstack_layers"), Meta::U32(tapped as u32));
    file
}

fn vocabulary(file: &mut File, tokenizer: &Value, config: &Value) {
    let size = config["text_config"]["vocab_size"].as_u64().unwrap();
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![5; tokens.len()];
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens[number(id) as usize] = token.clone();
        types[number(id) as usize] = 1;
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let (id, token) = (number(&added["id"]) as usize, added["content"].as_str().unwrap());
        let is_special = added["special"] == true || (token.starts_with("<|") && token.ends_with("|>"));
        tokens[id] = token.to_owned();
        types[id] = if is_special { 3 } else { 4 };
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges =
        merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    file.set("tokenizer.ggml.model", Meta::text("gpt2"));
    file.set("tokenizer.ggml.pre", Meta::text("qwen2"));
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Meta::I32s(types));
    file.set("tokenizer.ggml.merges", Meta::Texts(merges.collect()));
    let eos = number(&config["text_config"]["eos_token_id"]);
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(eos));
}

fn vision_metadata(config: &Value, processor: Option<&Value>) -> File {
    let vision = &config["vision_config"];
    let mut file = File::default();
    file.set("general.architecture", Meta::text("clip"));
    file.set("general.type", Meta::text("mmproj"));
    file.set("clip.has_vision_encoder", Meta::Bool(true));
    file.set("clip.projector_type", Meta::text("qwen3vl_merger"));
    file.set("clip.use_gelu", Meta::Bool(true));
    for (key, field) in [
        ("projection_dim", "out_hidden_size"),
        ("patch_size", "patch_size"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("block_count", "depth"),
        ("attention.head_count", "num_heads"),
        ("spatial_merge_size", "spatial_merge_size"),
    ] {
        file.set(&format!("clip.vision.{key}"), Meta::U32(number(&vision[field])));
    }
    let side = number(&vision["num_position_embeddings"]).isqrt() * number(&vision["patch_size"]);
    file.set("clip.vision.image_size", Meta::U32(side));
    file.set("clip.vision.attention.layer_norm_epsilon", Meta::F32(1e-6));
    let mut tapped = vec![false; number(&vision["depth"]) as usize];
    for block in vision["deepstack_visual_indexes"].as_array().unwrap() {
        tapped[number(block) as usize] = true;
    }
    file.set("clip.vision.is_deepstack_layers", Meta::Bools(tapped));
    for (key, field) in [("image_mean", "image_mean"), ("image_std", "image_std")] {
        let channels = processor.map_or(vec![0.5; 3], |processor| {
            processor[field].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
        });
        file.set(&format!("clip.vision.{key}"), Meta::F32s(channels));
    }
    if let Some(size) = processor.and_then(|processor| processor.get("size")) {
        file.set("clip.vision.image_min_pixels", Meta::U32(number(&size["shortest_edge"])));
        file.set("clip.vision.image_max_pixels", Meta::U32(number(&size["longest_edge"])));
    }
    file
}

type Named = (String, Vec<usize>, Vec<f32>);

/// What becomes of a published checkpoint's tensor.
fn converted(name: &str, shape: &[usize], values: Vec<f32>, config: &Value, is_out_in: bool) -> Vec<Named> {
    let one = |name: String| vec![(name, shape.to_vec(), values.clone())];
    let replaced = |name: &str, table: &[(&str, &str)]| {
        let found = table.iter().find_map(|(ours, theirs)| {
            name.strip_prefix(ours).filter(|rest| rest.starts_with('.')).map(|rest| format!("{theirs}{rest}"))
        });
        found.unwrap_or_else(|| panic!("no name for {name}"))
    };
    if let Some(rest) = name.strip_prefix("model.language_model.layers.") {
        let (layer, rest) = rest.split_once('.').unwrap();
        match rest {
            "mlp.experts.down_proj" => {
                let (shape, values) = out_in(shape, values, is_out_in);
                return vec![(format!("blk.{layer}.ffn_down_exps.weight"), shape, values)];
            }
            "mlp.experts.gate_up_proj" => {
                let (shape, values) = out_in(shape, values, is_out_in);
                let [experts, both, width] = shape[..] else { panic!("{shape:?}") };
                let half = both / 2 * width;
                let part = |start: usize| -> Vec<f32> {
                    let experts = values.chunks_exact(2 * half);
                    experts.flat_map(|expert| &expert[start..start + half]).copied().collect()
                };
                let shape = vec![experts, both / 2, width];
                return vec![
                    (format!("blk.{layer}.ffn_gate_exps.weight"), shape.clone(), part(0)),
                    (format!("blk.{layer}.ffn_up_exps.weight"), shape, part(half)),
                ];
            }
            _ => {}
        }
        let table = [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("mlp.gate", "ffn_gate_inp"),
        ];
        return one(format!("blk.{layer}.{}", replaced(rest, &table)));
    }
    if let Some(rest) = name.strip_prefix("model.visual.blocks.") {
        let (block, rest) = rest.split_once('.').unwrap();
        let table = [
            ("norm1", "ln1"),
            ("norm2", "ln2"),
            ("attn.qkv", "attn_qkv"),
            ("attn.proj", "attn_out"),
            ("mlp.linear_fc1", "ffn_up"),
            ("mlp.linear_fc2", "ffn_down"),
        ];
        return one(format!("v.blk.{block}.{}", replaced(rest, &table)));
    }
    if let Some(rest) = name.strip_prefix("model.visual.deepstack_merger_list.") {
        let (index, rest) = rest.split_once('.').unwrap();
        let index: usize = index.parse().unwrap();
        let block = &config["vision_config"]["deepstack_visual_indexes"][index];
        let table = [("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2")];
        return one(format!("v.deepstack.{block}.{}", replaced(rest, &table)));
    }
    if name == "model.visual.patch_embed.proj.weight" {
        let [outputs, channels, frames, height, width] = shape[..] else { panic!("{shape:?}") };
        let plane = height * width;
        return ["v.patch_embd.weight", "v.patch_embd.weight.1"]
            .into_iter()
            .take(frames)
            .enumerate()
            .map(|(frame, name)| {
                let planes = values.chunks_exact(plane).skip(frame).step_by(frames);
                (name.to_owned(), vec![outputs, channels, height, width], planes.flatten().copied().collect())
            })
            .collect();
    }
    one(replaced(
        name,
        &[
            ("model.language_model.embed_tokens", "token_embd"),
            ("model.language_model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.visual.patch_embed.proj", "v.patch_embd"),
            ("model.visual.pos_embed", "v.position_embd"),
            ("model.visual.merger.norm", "v.post_ln"),
            ("model.visual.merger.linear_fc1", "mm.0"),
            ("model.visual.merger.linear_fc2", "mm.2"),
        ],
    ))
}

/// A stack of matrices as linear layers are, `[E, out, in]`.
fn out_in(shape: &[usize], values: Vec<f32>, is_already: bool) -> (Vec<usize>, Vec<f32>) {
    if is_already {
        return (shape.to_vec(), values);
    }
    let (rows, cols) = (shape[1], shape[2]);
    let turned = values
        .chunks_exact(rows * cols)
        .flat_map(|m| (0..cols).flat_map(move |col| (0..rows).map(move |row| m[row * cols + col])))
        .collect();
    (vec![shape[0], cols, rows], turned)
}

//! A Qwen3-VL in two GGUF files, as llama.cpp's converter writes it: the language model, and the vision tower
//! with its mergers, the mmproj.
//!
//! Tensors keep the type they are stored in and stay where they are, but for the patch embedding, whose two
//! frames are two tensors in the file and one in the network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names;
use super::{GgufFile, MAGIC};
use crate::checkpoint::storage::Storage;
use crate::checkpoint::tensor::TensorView;
use crate::checkpoint::{ImageSettings, Kind, Names, Tensors, TextFile};
use crate::config::{self, Config, GenerationConfig, RawRope, RawText, RawVision, SpecialTokens};
use crate::error::{Error, Result};

/// The files of a model, and what they say about it.
#[derive(Debug)]
pub(in crate::checkpoint) struct Pair {
    model: GgufFile,
    config: Config,
    image: ImageSettings,
}

/// What the file of a language model must be.
const ARCHITECTURES: [&str; 2] = ["qwen3vl", "qwen3vlmoe"];
/// What the vision tower of a Qwen3-VL calls itself.
const PROJECTOR: &str = "qwen3vl_merger";
/// What the network adds to the variance in every LayerNorm of the vision tower.
const LAYER_NORM_EPS: f32 = 1e-6;

/// Whether a path is to be read as GGUF: by its name, or by the first bytes of the file.
pub(in crate::checkpoint) fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    path.is_file()
        && (path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
            || std::fs::File::open(path)
                .is_ok_and(|mut file| file.read_exact(&mut magic).is_ok() && magic == *MAGIC))
}

/// The one `mmproj*.gguf` beside a language model.
pub(in crate::checkpoint) fn mmproj_beside(model: &Path) -> Result<PathBuf> {
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with("mmproj") && name.ends_with(".gguf") {
            found.push(path);
        }
    }
    found.sort_unstable();
    match &found[..] {
        [only] => Ok(only.clone()),
        others => Err(Error::Mmproj { model: model.to_owned(), found: others.to_vec() }),
    }
}

impl Pair {
    /// Checks that a file is the language model of a Qwen3-VL; returns its architecture.
    pub(in crate::checkpoint) fn check_model(file: &GgufFile) -> Result<&'static str> {
        check_model(file)
    }

    /// Checks that two files belong together.
    pub(in crate::checkpoint) fn open(model: GgufFile, mmproj: &GgufFile) -> Result<(Self, Tensors)> {
        let architecture = check_model(&model)?;
        check_mmproj(mmproj)?;
        let (text, vision) = (Keys::of_text(&model, architecture), Keys::of_vision(mmproj));
        let width = text.dimension("embedding_length")?;
        let projection = vision.dimension("projection_dim")?;
        if projection != width {
            return Err(mmproj.wrong(
                "clip.vision.projection_dim",
                projection.to_string(),
                format!(
                    "{width}, the {architecture}.embedding_length of {}; this mmproj belongs to another model",
                    model.name()
                ),
            ));
        }
        let tapped: Vec<usize> = mmproj
            .booleans("clip.vision.is_deepstack_layers")?
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .filter_map(|(block, is_tapped)| is_tapped.then_some(block))
            .collect();
        if let Some(layers) = text.optional_dimension("n_deepstack_layers")?
            && layers != tapped.len()
        {
            return Err(mmproj.wrong(
                "clip.vision.is_deepstack_layers",
                format!("{} blocks", tapped.len()),
                format!(
                    "{layers}, the {architecture}.n_deepstack_layers of {}; this mmproj belongs to another model",
                    model.name()
                ),
            ));
        }
        let config = read_config(&text, &vision, &tapped, architecture == ARCHITECTURES[1])?;
        let image = read_image_settings(&vision)?;
        let tensors = read_tensors(&model, mmproj, &config)?;
        Ok((Self { model, config, image }, tensors))
    }

    pub(in crate::checkpoint) fn config(&self) -> &Config {
        &self.config
    }

    pub(in crate::checkpoint) fn image_settings(&self) -> &ImageSettings {
        &self.image
    }

    /// End tokens: the one the file names, and as in llama.cpp those of Qwen's that end a text wherever they are
    /// in the vocabulary.
    pub(in crate::checkpoint) fn generation_config(&self) -> Result<GenerationConfig> {
        const EOS: &str = "tokenizer.ggml.eos_token_id";
        let file = &self.model;
        let named = file.required(EOS, file.unsigned(EOS)?, "the id of <|im_end|>")?;
        let named = u32::try_from(named).unwrap_or(u32::MAX);
        let vocab_size = self.config.text.vocab_size;
        if named as usize >= vocab_size {
            return Err(file.wrong(EOS, named.to_string(), format!("an id below {vocab_size}")));
        }
        let mut eos_token_ids = vec![named];
        for id in file.control_tokens(["<|im_end|>", "<|endoftext|>"])?.into_iter().flatten() {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
        Ok(GenerationConfig {
            eos_token_ids,
            temperature: file.float("general.sampling.temp")?.map(|value| value as f32),
            top_k: file.unsigned("general.sampling.top_k")?.map(|value| value as usize),
            top_p: file.float("general.sampling.top_p")?.map(|value| value as f32),
        })
    }

    pub(in crate::checkpoint) fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        self.model.tokenizer()
    }

    /// Name of the file with the tokenizer.
    pub(in crate::checkpoint) fn name(&self) -> &str {
        self.model.name()
    }

    pub(in crate::checkpoint) fn chat_template(&self) -> Result<Option<TextFile>> {
        const TEMPLATE: &str = "tokenizer.chat_template";
        Ok(self.model.text(TEMPLATE)?.map(|text| TextFile {
            name: format!("{} ({TEMPLATE})", self.model.name()),
            text: text.to_owned(),
        }))
    }
}

fn check_model(file: &GgufFile) -> Result<&'static str> {
    const ARCHITECTURE: &str = "general.architecture";
    let expected = "\"qwen3vl\" or \"qwen3vlmoe\"";
    let got = file.required(ARCHITECTURE, file.text(ARCHITECTURE)?, expected)?;
    if let Some(split) = file.unsigned("split.count")?.filter(|&count| count > 1) {
        return Err(file.wrong(
            "split.count",
            split.to_string(),
            "one file; join the parts with llama-gguf-split --merge",
        ));
    }
    match ARCHITECTURES.into_iter().find(|known| *known == got) {
        Some(known) => Ok(known),
        None if got == "clip" => Err(file.wrong(
            ARCHITECTURE,
            "\"clip\"",
            format!("{expected}: this is an mmproj; give the language model, and this file with --mmproj"),
        )),
        None => Err(file.wrong(ARCHITECTURE, format!("{got:?}"), expected)),
    }
}

fn check_mmproj(file: &GgufFile) -> Result<()> {
    const ARCHITECTURE: &str = "general.architecture";
    let got = file.required(ARCHITECTURE, file.text(ARCHITECTURE)?, "\"clip\"")?;
    if ARCHITECTURES.contains(&got) {
        let expected = "\"clip\": this is a language model; give its mmproj with --mmproj";
        return Err(file.wrong(ARCHITECTURE, format!("{got:?}"), expected));
    }
    if got != "clip" {
        return Err(file.wrong(ARCHITECTURE, format!("{got:?}"), "\"clip\""));
    }
    // The second is where files with more than one tower say it.
    const PROJECTORS: [&str; 2] = ["clip.projector_type", "clip.vision.projector_type"];
    let expected = format!("{PROJECTOR:?}, the vision tower of a Qwen3-VL");
    let key = if file.text(PROJECTORS[0])?.is_some() { PROJECTORS[0] } else { PROJECTORS[1] };
    match file.text(key)? {
        Some(PROJECTOR) => {}
        Some(other) => return Err(file.wrong(key, format!("{other:?}"), expected)),
        None => return Err(file.wrong(PROJECTORS[0], "absent", expected)),
    }
    match file.boolean("clip.use_gelu")? {
        Some(false) => Err(file.wrong("clip.use_gelu", "false", "true")),
        _ => Ok(()),
    }
}

/// The keys of one part of the network.
struct Keys<'a> {
    file: &'a GgufFile,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    fn of_text(file: &'a GgufFile, prefix: &'a str) -> Self {
        Self { file, prefix }
    }

    fn of_vision(file: &'a GgufFile) -> Self {
        Self { file, prefix: "clip.vision" }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn optional_dimension(&self, name: &str) -> Result<Option<usize>> {
        // Beyond any dimension there is, and refused as such later.
        Ok(self.file.unsigned(&self.key(name))?.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    }

    fn dimension(&self, name: &str) -> Result<usize> {
        let value = self.optional_dimension(name)?;
        self.file.required(&self.key(name), value, "a number")
    }

    fn float(&self, name: &str) -> Result<f64> {
        let key = self.key(name);
        self.file.required(&key, self.file.float(&key)?, "a number")
    }

    /// Rows of a matrix, as the dimension that no key gives.
    fn rows(&self, tensor: &str) -> Result<usize> {
        match self.file.get(tensor).map(|view| view.shape().to_vec()) {
            Some(shape) if shape.len() == 2 => Ok(shape[0]),
            Some(shape) => {
                Err(self.file.wrong(&format!("shape of {tensor}"), format!("{shape:?}"), "two dimensions"))
            }
            None => Err(missing(self.file, tensor)),
        }
    }
}

/// The error for a tensor that must be there when the file is opened.
fn missing(file: &GgufFile, tensor: &str) -> Error {
    match file.unreadable.get(tensor) {
        Some(stored) => Error::TensorDtype {
            file: file.name().to_owned(),
            tensor: tensor.to_owned(),
            got: stored.clone(),
            expected: READABLE,
        },
        None => Error::MissingTensor {
            file: file.name().to_owned(),
            tensor: tensor.to_owned(),
            hint: "the file is not complete".to_owned(),
        },
    }
}

/// Types of tensors that are read.
pub(in crate::checkpoint) const READABLE: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K";

fn read_config(text: &Keys<'_>, vision: &Keys<'_>, tapped: &[usize], is_moe: bool) -> Result<Config> {
    let sections = "rope.dimension_sections";
    let mut mrope_section = text.file.required(
        &text.key(sections),
        text.file.unsigneds(&text.key(sections))?,
        "three numbers",
    )?;
    // A fourth axis is written and unused.
    if mrope_section.len() == 4 && mrope_section[3] == 0 {
        mrope_section.pop();
    }
    for (key, fixed) in [("rope.scaling.type", "none")] {
        if let Some(value) = text.file.text(&text.key(key))?.filter(|value| *value != fixed) {
            return Err(text.file.wrong(
                &text.key(key),
                format!("{value:?}"),
                format!("absent or {fixed:?}"),
            ));
        }
    }
    let key_length = text.optional_dimension("attention.key_length")?;
    if let Some(value_length) = text.optional_dimension("attention.value_length")?
        && Some(value_length) != key_length
    {
        let expected = format!("attention.key_length {key_length:?}");
        return Err(text.file.wrong(&text.key("attention.value_length"), value_length.to_string(), expected));
    }
    let (width, heads) = (text.dimension("embedding_length")?, text.dimension("attention.head_count")?);
    let raw_text = RawText {
        vocab_size: text.rows("token_embd.weight")?,
        hidden_size: width,
        intermediate_size: text.dimension("feed_forward_length")?,
        num_hidden_layers: text.dimension("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: text.optional_dimension("attention.head_count_kv")?,
        // What llama.cpp assumes where the key is absent.
        head_dim: Some(key_length.unwrap_or(width / heads.max(1))),
        max_position_embeddings: text.dimension("context_length")?,
        rms_norm_eps: text.float("attention.layer_norm_rms_epsilon")? as f32,
        rope_parameters: Some(RawRope {
            rope_theta: Some(text.float("rope.freq_base")?),
            mrope_section: Some(
                mrope_section.into_iter().map(|part| usize::try_from(part).unwrap_or(usize::MAX)).collect(),
            ),
            ..RawRope::default()
        }),
        num_experts: text.optional_dimension("expert_count")?,
        num_experts_per_tok: text.optional_dimension("expert_used_count")?,
        moe_intermediate_size: text.optional_dimension("expert_feed_forward_length")?,
        mlp_only_layers: Some(dense_layers(text.file)),
        ..RawText::default()
    };

    let patch_size = vision.dimension("patch_size")?;
    let positions = vision.rows("v.position_embd.weight")?;
    let image_size = vision.dimension("image_size")?;
    if image_size.checked_div(patch_size).and_then(|side| side.checked_mul(side)) != Some(positions) {
        return Err(vision.file.wrong(
            &vision.key("image_size"),
            image_size.to_string(),
            format!("patch_size {patch_size} times the root of the {positions} positions in v.position_embd.weight"),
        ));
    }
    if let Some(eps) = vision.file.float(&vision.key("attention.layer_norm_epsilon"))?
        && eps as f32 != LAYER_NORM_EPS
    {
        let key = vision.key("attention.layer_norm_epsilon");
        return Err(vision.file.wrong(&key, eps.to_string(), format!("{LAYER_NORM_EPS}")));
    }
    let raw_vision = RawVision {
        depth: vision.dimension("block_count")?,
        hidden_size: vision.dimension("embedding_length")?,
        intermediate_size: vision.dimension("feed_forward_length")?,
        num_heads: vision.dimension("attention.head_count")?,
        out_hidden_size: vision.dimension("projection_dim")?,
        num_position_embeddings: positions,
        deepstack_visual_indexes: tapped.to_vec(),
        patch_size: Some(patch_size),
        temporal_patch_size: Some(names::PATCH_EMBED.len()),
        spatial_merge_size: vision.optional_dimension("spatial_merge_size")?,
        ..RawVision::default()
    };

    let specials = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"];
    let ids = text.file.control_tokens(specials)?;
    let id = |index: usize| -> Result<u32> {
        ids[index].ok_or_else(|| {
            let got = format!("without {}", specials[index]);
            text.file.wrong("tokenizer.ggml.tokens", got, "the vocabulary of a Qwen3-VL")
        })
    };
    let tokens = SpecialTokens { image: id(0)?, video: id(1)?, vision_start: id(2)?, vision_end: id(3)? };
    let tied =
        text.file.get("output.weight").is_none() && !text.file.unreadable.contains_key("output.weight");

    let text_keys = TEXT_KEYS.map(|(field, name)| (field, text.key(name)));
    let vision_keys = VISION_KEYS.map(|(field, name)| (field, vision.key(name)));
    config::resolve(
        (&raw_text, &config::Check { file: text.file.name(), keys: &text_keys }),
        (&raw_vision, &config::Check { file: vision.file.name(), keys: &vision_keys }),
        &tokens,
        tied,
        is_moe,
    )
}

/// Layers with a dense MLP, which no key names: the tensors do.
fn dense_layers(file: &GgufFile) -> Vec<usize> {
    let layer = |name: &str| name.strip_prefix("blk.")?.strip_suffix(".ffn_gate.weight")?.parse().ok();
    let mut layers: Vec<usize> =
        file.names().chain(file.unreadable().map(|(name, _)| name)).filter_map(layer).collect();
    layers.sort_unstable();
    layers
}

/// Fields of `config.json`, and the keys that say the same behind the architecture's name.
const TEXT_KEYS: [(&str, &str); 14] = [
    ("text_config.vocab_size", "vocab_size (the rows of token_embd.weight)"),
    ("text_config.hidden_size", "embedding_length"),
    ("text_config.intermediate_size", "feed_forward_length"),
    ("text_config.num_hidden_layers", "block_count"),
    ("text_config.num_attention_heads", "attention.head_count"),
    ("text_config.num_key_value_heads", "attention.head_count_kv"),
    ("text_config.head_dim", "attention.key_length"),
    ("text_config.max_position_embeddings", "context_length"),
    ("text_config.rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("text_config.rope_theta", "rope.freq_base"),
    ("text_config.rope_scaling.mrope_section", "rope.dimension_sections"),
    ("text_config.num_experts", "expert_count"),
    ("text_config.num_experts_per_tok", "expert_used_count"),
    ("text_config.moe_intermediate_size", "expert_feed_forward_length"),
];

/// The same behind `clip.vision`.
const VISION_KEYS: [(&str, &str); 9] = [
    ("vision_config.depth", "block_count"),
    ("vision_config.hidden_size", "embedding_length"),
    ("vision_config.intermediate_size", "feed_forward_length"),
    ("vision_config.num_heads", "attention.head_count"),
    ("vision_config.patch_size", "patch_size"),
    ("vision_config.spatial_merge_size", "spatial_merge_size"),
    ("vision_config.out_hidden_size", "projection_dim"),
    ("vision_config.num_position_embeddings", "image_size"),
    ("vision_config.deepstack_visual_indexes", "is_deepstack_layers"),
];

fn read_image_settings(vision: &Keys<'_>) -> Result<ImageSettings> {
    let channels = |name: &str| -> Result<[f64; 3]> {
        let key = vision.key(name);
        let values = vision.file.required(&key, vision.file.floats(&key)?, "three numbers")?;
        <[f64; 3]>::try_from(values)
            .map_err(|values| vision.file.wrong(&key, format!("{values:?}"), "three numbers"))
    };
    Ok(ImageSettings {
        file: vision.file.name().to_owned(),
        mean: channels("image_mean")?,
        std: channels("image_std")?,
        min_pixels: vision.file.unsigned(&vision.key("image_min_pixels"))?,
        max_pixels: vision.file.unsigned(&vision.key("image_max_pixels"))?,
    })
}

fn read_tensors(model: &GgufFile, mmproj: &GgufFile, config: &Config) -> Result<Tensors> {
    let tapped = &config.vision.deepstack_visual_indexes;
    let mut tensors = Tensors {
        source: model.name().to_owned(),
        files: vec![model.name().to_owned(), mmproj.name().to_owned()],
        kind: Kind::Gguf { tapped: tapped.clone() },
        ..Tensors::default()
    };
    let text = &config.text;
    let (q_width, kv_width) =
        (text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim);
    for file in [model, mmproj] {
        for view in file.names().filter_map(|name| file.get(name)) {
            let stored = view.name();
            if names::PATCH_EMBED.contains(&stored) {
                continue;
            }
            match names::ours(stored, tapped) {
                None => {
                    tensors.by_name.insert(stored.to_owned(), view);
                }
                Some(name) => match name.strip_suffix(names::FUSED_QKV) {
                    None => {
                        tensors.by_name.insert(name, view);
                    }
                    Some(layer) => {
                        let mut first = 0;
                        for (part, width) in [("q", q_width), ("k", kv_width), ("v", kv_width)] {
                            let Some(rows) = view.entries(first, width) else {
                                return Err(Error::TensorShape {
                                    file: file.name().to_owned(),
                                    tensor: stored.to_owned(),
                                    got: view.shape().to_vec(),
                                    expected: vec![q_width + 2 * kv_width, text.hidden_size],
                                });
                            };
                            tensors.by_name.insert(format!("{layer}self_attn.{part}_proj.weight"), rows);
                            first += width;
                        }
                    }
                },
            }
        }
        for (stored, dtype) in file.unreadable() {
            let name = names::ours(stored, tapped).unwrap_or_else(|| stored.to_owned());
            tensors.unreadable.insert(name, (file.name().to_owned(), dtype.to_owned()));
        }
    }
    tensors.by_name.insert(format!("{}.weight", Names::PATCH_EMBED), patch_embedding(mmproj)?);
    Ok(tensors)
}

/// The two frames of the patch embedding, `[D, C, P, P]` each, as `[D, C, 2, P, P]`.
fn patch_embedding(mmproj: &GgufFile) -> Result<TensorView> {
    let [first, second] =
        names::PATCH_EMBED.map(|name| mmproj.get(name).ok_or_else(|| missing(mmproj, name)));
    let (first, second) = (first?, second?);
    let wrong = |view: &TensorView, expected: Vec<usize>| Error::TensorShape {
        file: mmproj.name().to_owned(),
        tensor: view.name().to_owned(),
        got: view.shape().to_vec(),
        expected,
    };
    let &[outputs, channels, height, width] = first.shape() else {
        return Err(wrong(&first, vec![0, 3, 0, 0]));
    };
    if second.shape() != first.shape() {
        return Err(wrong(&second, first.shape().to_vec()));
    }
    if second.dtype() != first.dtype() {
        return Err(Error::TensorDtype {
            file: mmproj.name().to_owned(),
            tensor: second.name().to_owned(),
            got: second.dtype().to_string(),
            expected: "the type of v.patch_embd.weight",
        });
    }
    // Rows are whole blocks in every type, so planes are.
    let plane_bytes = (first.bytes().len() / (outputs * channels).max(1)).max(1);
    let planes = first.bytes().chunks_exact(plane_bytes).zip(second.bytes().chunks_exact(plane_bytes));
    let bytes: Arc<[u8]> = planes.flat_map(|(first, second)| [first, second]).flatten().copied().collect();
    let range = 0..bytes.len();
    let shape = [outputs, channels, 2, height, width];
    let file: Arc<str> = mmproj.name().into();
    Ok(TensorView::new(&file, first.name(), first.dtype(), &shape, &Storage::Owned(bytes), range))
}

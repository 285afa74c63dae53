//! The network's dimensions: `config.json` and `generation_config.json` in both key styles, and the checks that
//! every other source of them goes through too.
//!
//! Published checkpoints write `rope_theta` beside `rope_scaling`; newer tools write one `rope_parameters`.
//! A value that would change the answer and that this implementation does not honour is refused here by
//! name, never ignored.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::TextFile;
use crate::error::{Error, Result};

/// Dimensions and constants of one Qwen3-VL checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The vision tower.
    pub vision: VisionConfig,
    /// The decoder.
    pub text: TextConfig,
    /// Id of `<|image_pad|>`.
    pub image_token_id: u32,
    /// Id of `<|video_pad|>`.
    pub video_token_id: u32,
    /// Id of `<|vision_start|>`.
    pub vision_start_token_id: u32,
    /// Id of `<|vision_end|>`.
    pub vision_end_token_id: u32,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// Dimensions of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side of the square of patches that becomes one visual token.
    pub spatial_merge_size: usize,
    /// Width of a visual token: the decoder's width.
    pub out_hidden_size: usize,
    /// Learned positions: a square number.
    pub num_position_embeddings: usize,
    /// Blocks whose output is tapped for DeepStack.
    pub deepstack_visual_indexes: Vec<usize>,
    /// Base of the two-axis rotary frequencies.
    pub rope_theta: f64,
}

impl VisionConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Values of one patch: channels x frames x side x side.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that become one visual token.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Side of the square of learned positions.
    pub fn positions_per_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }
}

/// Dimensions of the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Token ids the network knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the dense MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Most tokens of a sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Frequencies for time, height, width; their sum is `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Experts, where the checkpoint has them.
    pub moe: Option<MoeConfig>,
}

/// The mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Experts in a layer.
    pub num_experts: usize,
    /// Experts a token goes through.
    pub num_experts_per_tok: usize,
    /// Width inside one expert.
    pub moe_intermediate_size: usize,
    /// Layer `i` has experts if `(i + 1) % decoder_sparse_step == 0`.
    pub decoder_sparse_step: usize,
    /// Layers that have a dense MLP all the same.
    pub mlp_only_layers: Vec<usize>,
}

impl TextConfig {
    /// The experts of layer `index`, or `None` if its MLP is dense.
    pub fn experts_of(&self, index: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| {
            !moe.mlp_only_layers.contains(&index) && (index + 1).is_multiple_of(moe.decoder_sparse_step)
        })
    }
}

impl Config {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// [`Error::Json`] for broken JSON and absent keys, [`Error::Config`] for a value that cannot be honoured.
    pub fn parse(file: &TextFile) -> Result<Self> {
        let probe: ModelType = parse_json(file)?;
        let check = Check { file: &file.name, keys: &[] };
        match probe.model_type.as_deref() {
            Some("qwen3_vl" | "qwen3_vl_moe") => {}
            other => {
                let got = other.map_or("absent".to_owned(), |name| format!("{name:?}"));
                return Err(check.fail("model_type", got, "\"qwen3_vl\" or \"qwen3_vl_moe\""));
            }
        }
        let raw: RawConfig = parse_json(file)?;
        let is_moe = probe.model_type.as_deref() == Some("qwen3_vl_moe");
        let tie = raw.tie_word_embeddings.or(raw.text_config.tie_word_embeddings).unwrap_or(false);
        let tokens = SpecialTokens {
            image: raw.image_token_id,
            video: raw.video_token_id,
            vision_start: raw.vision_start_token_id,
            vision_end: raw.vision_end_token_id,
        };
        resolve((&raw.text_config, &check), (&raw.vision_config, &check), &tokens, tie, is_moe)
    }
}

/// Ids of the tokens around and in place of pictures.
pub(crate) struct SpecialTokens {
    pub(crate) image: u32,
    pub(crate) video: u32,
    pub(crate) vision_start: u32,
    pub(crate) vision_end: u32,
}

/// Checks what a file says, field by field, and makes the configuration of it.
///
/// # Errors
/// [`Error::Config`] for the first value that cannot be honoured.
pub(crate) fn resolve(
    (text, text_check): (&RawText, &Check<'_>),
    (vision, vision_check): (&RawVision, &Check<'_>),
    tokens: &SpecialTokens,
    tie_word_embeddings: bool,
    is_moe: bool,
) -> Result<Config> {
    let text = text.resolve(text_check, is_moe)?;
    let vision = vision.resolve(vision_check, &text)?;
    for (field, id) in [
        ("image_token_id", tokens.image),
        ("video_token_id", tokens.video),
        ("vision_start_token_id", tokens.vision_start),
        ("vision_end_token_id", tokens.vision_end),
    ] {
        text_check.holds(
            (id as usize) < text.vocab_size,
            field,
            id,
            format_args!("an id below vocab_size {}", text.vocab_size),
        )?;
    }
    Ok(Config {
        vision,
        text,
        image_token_id: tokens.image,
        video_token_id: tokens.video,
        vision_start_token_id: tokens.vision_start,
        vision_end_token_id: tokens.vision_end,
        tie_word_embeddings,
    })
}

/// What `generation_config.json` says about ending and choosing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Recommended temperature, if sampling is recommended.
    pub temperature: Option<f32>,
    /// Recommended top-k.
    pub top_k: Option<usize>,
    /// Recommended top-p.
    pub top_p: Option<f32>,
}

impl GenerationConfig {
    /// Parses `generation_config.json`; without one the end token is taken from `config.json`.
    ///
    /// # Errors
    /// [`Error::Json`]; [`Error::Config`] if neither file names an end token, or one outside the vocabulary.
    pub fn parse(file: Option<&TextFile>, config: &TextFile, vocab_size: usize) -> Result<Self> {
        let raw: RawGeneration = file.map(parse_json).transpose()?.unwrap_or_default();
        let eos = match raw.eos_token_id {
            Some(ids) => Some(ids),
            None => parse_json::<RawEos>(config)?.text_config.eos_token_id,
        };
        let Some(eos) = eos.map(Vec::from).filter(|ids| !ids.is_empty()) else {
            return Err(Error::Config {
                file: file.unwrap_or(config).name.clone(),
                field: "eos_token_id".to_owned(),
                got: "absent or empty".to_owned(),
                expected: "the id of <|im_end|>".to_owned(),
            });
        };
        if let Some(id) = eos.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Config {
                file: file.unwrap_or(config).name.clone(),
                field: "eos_token_id".to_owned(),
                got: id.to_string(),
                expected: format!("an id below vocab_size {vocab_size}"),
            });
        }
        let sampled = raw.do_sample.unwrap_or(false);
        Ok(Self {
            eos_token_ids: eos,
            temperature: raw.temperature.filter(|_| sampled),
            top_k: raw.top_k.filter(|_| sampled),
            top_p: raw.top_p.filter(|_| sampled),
        })
    }
}

/// Parses JSON; the error names the file, line and column.
pub(crate) fn parse_json<T: DeserializeOwned>(file: &TextFile) -> Result<T> {
    serde_json::from_str(&file.text).map_err(|error| {
        let reason =
            if file.text.trim().is_empty() { "the file is empty".to_owned() } else { error.to_string() };
        Error::Json { file: file.name.clone(), reason }
    })
}

#[derive(Deserialize)]
struct ModelType {
    model_type: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    text_config: RawText,
    vision_config: RawVision,
    image_token_id: u32,
    video_token_id: u32,
    vision_start_token_id: u32,
    vision_end_token_id: u32,
    tie_word_embeddings: Option<bool>,
}

#[derive(Default, Deserialize)]
pub(crate) struct RawText {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: Option<usize>,
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    #[serde(default = "rms_norm_eps")]
    pub(crate) rms_norm_eps: f32,
    pub(crate) hidden_act: Option<String>,
    pub(crate) attention_bias: Option<bool>,
    pub(crate) use_sliding_window: Option<bool>,
    pub(crate) tie_word_embeddings: Option<bool>,
    pub(crate) rope_parameters: Option<RawRope>,
    pub(crate) rope_scaling: Option<RawRope>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) num_experts: Option<usize>,
    /// The newer name of the same.
    pub(crate) num_local_experts: Option<usize>,
    pub(crate) num_experts_per_tok: Option<usize>,
    pub(crate) moe_intermediate_size: Option<usize>,
    pub(crate) decoder_sparse_step: Option<usize>,
    pub(crate) mlp_only_layers: Option<Vec<usize>>,
    pub(crate) norm_topk_prob: Option<bool>,
}

#[derive(Default, Deserialize)]
pub(crate) struct RawRope {
    pub(crate) rope_type: Option<String>,
    /// The older name of the same.
    pub(crate) r#type: Option<String>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) mrope_section: Option<Vec<usize>>,
    pub(crate) mrope_interleaved: Option<bool>,
}

#[derive(Default, Deserialize)]
pub(crate) struct RawVision {
    pub(crate) depth: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_heads: usize,
    pub(crate) out_hidden_size: usize,
    pub(crate) num_position_embeddings: usize,
    pub(crate) deepstack_visual_indexes: Vec<usize>,
    pub(crate) in_channels: Option<usize>,
    pub(crate) patch_size: Option<usize>,
    pub(crate) temporal_patch_size: Option<usize>,
    pub(crate) spatial_merge_size: Option<usize>,
    pub(crate) hidden_act: Option<String>,
    pub(crate) rope_parameters: Option<RawRope>,
}

#[derive(Default, Deserialize)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
}

#[derive(Deserialize)]
struct RawEos {
    text_config: RawTextEos,
}

#[derive(Deserialize)]
struct RawTextEos {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id must be an id or a list of ids")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl From<OneOrMany> for Vec<u32> {
    fn from(ids: OneOrMany) -> Self {
        match ids {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

/// What transformers assumes where `head_dim` is absent.
const HEAD_DIM: usize = 128;

fn rms_norm_eps() -> f32 {
    1e-6
}

/// Largest dimension accepted: keeps every product of two dimensions in range on a 64-bit machine.
const DIMENSION_MAX: usize = 1 << 24;

/// Where a value stands, for messages.
pub(crate) struct Check<'a> {
    pub(crate) file: &'a str,
    /// What the file calls the fields of `config.json`, where it has other names.
    pub(crate) keys: &'a [(&'static str, String)],
}

impl Check<'_> {
    fn fail(&self, field: &str, got: impl ToString, expected: impl ToString) -> Error {
        Error::Config {
            file: self.file.to_owned(),
            field: self
                .keys
                .iter()
                .find(|(known, _)| *known == field)
                .map_or_else(|| field.to_owned(), |(_, key)| key.clone()),
            got: got.to_string(),
            expected: expected.to_string(),
        }
    }

    fn holds(&self, ok: bool, field: &str, got: impl ToString, expected: impl ToString) -> Result<()> {
        if ok { Ok(()) } else { Err(self.fail(field, got, expected)) }
    }

    fn dimension(&self, field: &str, value: usize) -> Result<()> {
        self.holds((1..=DIMENSION_MAX).contains(&value), field, value, format_args!("1 to {DIMENSION_MAX}"))
    }

    /// An optional switch that must be absent or have one value.
    fn fixed<T: PartialEq + std::fmt::Debug>(
        &self,
        field: &str,
        got: Option<&T>,
        expected: &T,
    ) -> Result<()> {
        match got {
            Some(value) if value != expected => {
                Err(self.fail(field, format!("{value:?}"), format_args!("{expected:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl RawText {
    fn resolve(&self, check: &Check<'_>, is_moe: bool) -> Result<TextConfig> {
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        for (field, value) in [
            ("text_config.vocab_size", self.vocab_size),
            ("text_config.hidden_size", self.hidden_size),
            ("text_config.intermediate_size", self.intermediate_size),
            ("text_config.num_hidden_layers", self.num_hidden_layers),
            ("text_config.num_attention_heads", heads),
            ("text_config.num_key_value_heads", kv_heads),
            ("text_config.max_position_embeddings", self.max_position_embeddings),
        ] {
            check.dimension(field, value)?;
        }
        let head_dim = self.head_dim.unwrap_or(HEAD_DIM);
        check.dimension("text_config.head_dim", head_dim)?;
        check.holds(head_dim.is_multiple_of(2), "text_config.head_dim", head_dim, "an even number")?;
        check.holds(
            heads.is_multiple_of(kv_heads),
            "text_config.num_key_value_heads",
            kv_heads,
            format_args!("a divisor of num_attention_heads {heads}"),
        )?;
        check.holds(
            self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0,
            "text_config.rms_norm_eps",
            self.rms_norm_eps,
            "a small positive number",
        )?;
        check.fixed("text_config.hidden_act", self.hidden_act.as_ref(), &"silu".to_owned())?;
        check.fixed("text_config.attention_bias", self.attention_bias.as_ref(), &false)?;
        check.fixed("text_config.use_sliding_window", self.use_sliding_window.as_ref(), &false)?;

        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let Some(rope) = rope else {
            return Err(check.fail(
                "text_config.rope_scaling",
                "absent",
                "rope_parameters, or rope_scaling with rope_theta",
            ));
        };
        let rope_type = rope.rope_type.as_ref().or(rope.r#type.as_ref());
        check.fixed("text_config.rope_scaling.rope_type", rope_type, &"default".to_owned())?;
        check.fixed("text_config.rope_scaling.mrope_interleaved", rope.mrope_interleaved.as_ref(), &true)?;
        let Some(rope_theta) = rope.rope_theta.or(self.rope_theta) else {
            return Err(check.fail("text_config.rope_theta", "absent", "the base of the rotary frequencies"));
        };
        check.holds(rope_theta > 0.0, "text_config.rope_theta", rope_theta, "a positive number")?;
        let section = rope.mrope_section.clone().unwrap_or_default();
        let mrope_section: [usize; 3] = section.clone().try_into().map_err(|_| {
            check.fail("text_config.rope_scaling.mrope_section", format!("{section:?}"), "three numbers")
        })?;
        check.holds(
            section.iter().copied().try_fold(0usize, usize::checked_add) == Some(head_dim / 2),
            "text_config.rope_scaling.mrope_section",
            format!("{section:?}"),
            format_args!("three numbers with sum head_dim / 2 = {}", head_dim / 2),
        )?;
        Ok(TextConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            mrope_section,
            moe: if is_moe { Some(self.resolve_moe(check)?) } else { None },
        })
    }

    fn resolve_moe(&self, check: &Check<'_>) -> Result<MoeConfig> {
        let need = |field: &str, value: Option<usize>| -> Result<usize> {
            let Some(value) = value else {
                return Err(check.fail(field, "absent", "a number (model_type is moe)"));
            };
            check.dimension(field, value)?;
            Ok(value)
        };
        let moe = MoeConfig {
            num_experts: need("text_config.num_experts", self.num_experts.or(self.num_local_experts))?,
            num_experts_per_tok: need("text_config.num_experts_per_tok", self.num_experts_per_tok)?,
            moe_intermediate_size: need("text_config.moe_intermediate_size", self.moe_intermediate_size)?,
            decoder_sparse_step: need(
                "text_config.decoder_sparse_step",
                Some(self.decoder_sparse_step.unwrap_or(1)),
            )?,
            mlp_only_layers: self.mlp_only_layers.clone().unwrap_or_default(),
        };
        check.holds(
            moe.num_experts_per_tok <= moe.num_experts,
            "text_config.num_experts_per_tok",
            moe.num_experts_per_tok,
            format_args!("at most num_experts {}", moe.num_experts),
        )?;
        // The reference renormalises the chosen experts' weights whatever this says; a checkpoint that asks for
        // something else was made for another program.
        check.fixed("text_config.norm_topk_prob", self.norm_topk_prob.as_ref(), &true)?;
        Ok(moe)
    }
}

impl RawVision {
    fn resolve(&self, check: &Check<'_>, text: &TextConfig) -> Result<VisionConfig> {
        let vision = VisionConfig {
            depth: self.depth,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            in_channels: self.in_channels.unwrap_or(3),
            patch_size: self.patch_size.unwrap_or(16),
            temporal_patch_size: self.temporal_patch_size.unwrap_or(2),
            spatial_merge_size: self.spatial_merge_size.unwrap_or(2),
            out_hidden_size: self.out_hidden_size,
            num_position_embeddings: self.num_position_embeddings,
            deepstack_visual_indexes: self.deepstack_visual_indexes.clone(),
            rope_theta: self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).unwrap_or(10_000.0),
        };
        for (field, value) in [
            ("vision_config.depth", vision.depth),
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.num_heads", vision.num_heads),
            ("vision_config.in_channels", vision.in_channels),
            ("vision_config.patch_size", vision.patch_size),
            ("vision_config.temporal_patch_size", vision.temporal_patch_size),
            ("vision_config.spatial_merge_size", vision.spatial_merge_size),
            ("vision_config.num_position_embeddings", vision.num_position_embeddings),
        ] {
            check.dimension(field, value)?;
        }
        check.holds(
            vision.patch_size <= 256 && vision.temporal_patch_size <= 16 && vision.spatial_merge_size <= 16,
            "vision_config.patch_size, temporal_patch_size, spatial_merge_size",
            format!("{}, {}, {}", vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size),
            "at most 256, 16, 16",
        )?;
        check.holds(vision.in_channels == 3, "vision_config.in_channels", vision.in_channels, 3)?;
        check.holds(
            vision.hidden_size.is_multiple_of(vision.num_heads) && vision.head_dim().is_multiple_of(4),
            "vision_config.hidden_size",
            vision.hidden_size,
            format_args!("num_heads {} times a multiple of 4", vision.num_heads),
        )?;
        check.holds(
            vision.out_hidden_size == text.hidden_size,
            "vision_config.out_hidden_size",
            vision.out_hidden_size,
            format_args!("text_config.hidden_size {}", text.hidden_size),
        )?;
        check.holds(
            vision.positions_per_side().pow(2) == vision.num_position_embeddings,
            "vision_config.num_position_embeddings",
            vision.num_position_embeddings,
            "a square number",
        )?;
        check.holds(
            vision.deepstack_visual_indexes.iter().all(|&index| index < vision.depth)
                && vision.deepstack_visual_indexes.is_sorted_by(|a, b| a < b)
                && vision.deepstack_visual_indexes.len() <= text.num_hidden_layers,
            "vision_config.deepstack_visual_indexes",
            format!("{:?}", vision.deepstack_visual_indexes),
            format_args!("ascending block numbers below depth {}, no more than decoder layers", vision.depth),
        )?;
        let act = "gelu_pytorch_tanh".to_owned();
        check.fixed("vision_config.hidden_act", self.hidden_act.as_ref(), &act)?;
        Ok(vision)
    }
}

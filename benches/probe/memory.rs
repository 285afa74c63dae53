//! Peak resident memory of one request with a picture, and what it is made of.

use anyhow::{Context, Result};
use qvl_dataload::vision::ProcessorConfig;
use qvl_model::config::Config;
use qvl_model::decoder::{Chunk, LogitRows, VisualRows};
use qvl_model::{Grid, Prompt, VisualInput, VisualKind};
use serde_json::json;

use crate::backend::Network;
use crate::{ModelArgs, emit, picture, text, vision};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Width and height of the picture.
    #[arg(long, value_name = "PIXELS", default_value_t = 448)]
    side: u32,
    /// Tokens of text after the picture.
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let network = Network::open(&args.model)?;
    let config = &network.config;
    let processor = ProcessorConfig::from_dir(&args.model.model)?;
    let patches = vision::process(&processor, &picture::jpeg(args.side)?)?;
    let grid = Grid { t: patches.grid.t, h: patches.grid.h, w: patches.grid.w };
    let input = VisualInput { kind: VisualKind::Image, grid, pixel_values: patches.pixel_values };
    let prompt = Prompt::new(QUESTION, vec![input], &network.tokenizer, config)?;
    let pixel_values = &prompt.inputs[0].pixel_values;
    let output = network.vision.forward(&network.layers, pixel_values, &[grid])?;
    let mut cache = network.kv_cache();
    let chunk = Chunk {
        cache: &mut cache,
        ids: &prompt.ids,
        positions: &prompt.positions,
        visual: Some(VisualRows { output: &output, rows: &prompt.visual_rows(0..prompt.len()) }),
        logits: LogitRows::Last,
    };
    network.forward(&mut [chunk])?;
    cache.set_rope_delta(prompt.rope_delta);
    let vocab_size = config.text.vocab_size;
    let mut append = |ids: &[u32]| text::append(&mut cache, ids, |chunk| network.forward(chunk));
    append(&text::fresh_ids(vocab_size, 0, args.tokens))?;
    for id in text::fresh_ids(vocab_size, 1, ANSWER_TOKENS) {
        append(&[id])?;
    }

    let weight_bytes = network.bytes.all as u64;
    let rows = prompt.len().max(args.tokens);
    let scratch_bytes = scratch_bytes(config, rows, grid.patches());
    let kv_bytes = kv_bytes(config, cache.len());
    emit(&json!({
        "metric": "memory",
        "weights": args.model.weights.name(),
        "vision_weights": args.model.vision_weights.name(),
        "isa": network.isa,
        "threads": network.threads,
        "peak_resident_bytes": peak_resident_bytes()?,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "scratch_bytes": scratch_bytes,
        "stated_bytes": weight_bytes + kv_bytes + scratch_bytes,
    }))
}

/// A picture and a question, as a template renders them.
const QUESTION: &str = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n\
                        <|im_start|>assistant\n";

/// Tokens decoded at the end.
const ANSWER_TOKENS: usize = 4;

/// bf16 keys and values of `tokens` tokens, in whole pages.
fn kv_bytes(config: &Config, tokens: usize) -> u64 {
    let text = &config.text;
    let tokens = tokens.next_multiple_of(PAGE_TOKENS);
    (2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * 2) as u64
}

/// Tokens of a page of keys and values.
const PAGE_TOKENS: usize = 64;

/// f32 activations that live at once in the widest moment of a step: the residual stream, its normed copy and
/// an MLP's inside. Of tower and decoder the larger counts, since one ends before the other begins; the
/// tower's results stay beside the decoder.
fn scratch_bytes(config: &Config, rows: usize, patches: usize) -> u64 {
    let (text, vision) = (&config.text, &config.vision);
    let decoder = rows * (2 * text.hidden_size + 3 * text.intermediate_size) + text.vocab_size;
    let tower = patches * (vision.patch_values() + 2 * vision.hidden_size + vision.intermediate_size);
    let features = 1 + vision.deepstack_visual_indexes.len();
    let results = patches / vision.merge_unit() * features * vision.out_hidden_size;
    ((decoder.max(tower) + results) * 4) as u64
}

/// The most memory this process has held so far.
fn peak_resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("peak memory is read from /proc, which only Linux has")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

//! Peak resident memory of one request with a picture, and what it is made of.

use anyhow::{Context, Result};
use qvl_dataload::vision::ProcessorConfig;
use qvl_model::config::Config;
use qvl_model::decoder::LogitRows;
use qvl_model::{Grid, Message, Part, VisualInput, VisualKind};
use serde_json::json;

use crate::{ModelArgs, backend, emit, picture, text, vision};

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
    let (model, info) = backend::open(&args.model)?;
    let processor = ProcessorConfig::from_dir(&args.model.model)?;
    let patches = vision::process(&processor, &picture::jpeg(args.side)?)?;
    let grid = Grid { t: patches.grid.t, h: patches.grid.h, w: patches.grid.w };
    let input = VisualInput { kind: VisualKind::Image, grid, pixel_values: patches.pixel_values };
    let message = Message::user([Part::Image, Part::text("Describe the image.")]);
    let prompt = model.prompt(&[message], vec![input])?;
    let visual = model.encode(&prompt)?;
    let mut cache = model.kv_cache();
    model.prefill(&mut cache, &prompt, visual.as_ref(), 0, LogitRows::Last)?;
    text::append(&model, &mut cache, &text::fresh_ids(&model, 0, args.tokens))?;
    for id in text::fresh_ids(&model, 1, 4) {
        text::append(&model, &mut cache, &[id])?;
    }

    let config = model.config();
    let rows = prompt.len().max(args.tokens);
    let scratch_bytes = scratch_bytes(config, rows, grid.patches());
    let kv_bytes = kv_bytes(config, cache.len());
    emit(&json!({
        "metric": "memory",
        "weights": args.model.weights.name(),
        "vision_weights": args.model.vision_weights.name(),
        "isa": info.isa,
        "threads": info.threads,
        "peak_resident_bytes": peak_resident_bytes()?,
        "weight_bytes": info.weight_bytes,
        "stored_bytes": info.stored_bytes,
        "kv_bytes": kv_bytes,
        "scratch_bytes": scratch_bytes,
        "stated_bytes": info.weight_bytes + kv_bytes + scratch_bytes,
    }))
}

/// f32 keys and values of `tokens` tokens.
fn kv_bytes(config: &Config, tokens: usize) -> u64 {
    let text = &config.text;
    (2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * 4) as u64
}

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

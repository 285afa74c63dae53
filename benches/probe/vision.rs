//! One picture: image processing from the JPEG's bytes to patches, and the vision tower alone.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use qvl_dataload::vision::{DecodeLimits, Patches, ProcessorConfig, Still};
use qvl_model::Grid;
use serde_json::json;

use crate::backend::Network;
use crate::{ModelArgs, emit, picture};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Width and height of a picture drawn for this.
    #[arg(long, value_name = "PIXELS", default_value_t = 448)]
    side: u32,
    /// A picture file instead.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Timed runs. A small picture goes first, untimed: it touches every page of the weights.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repetitions: usize,
}

/// Side of the picture that goes first.
const WARM_UP_SIDE: u32 = 448;

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.repetitions > 0, "--repetitions 0: nothing to measure");
    let network = Network::open(&args.model)?;
    let processor = ProcessorConfig::from_dir(&args.model.model)?;
    let jpeg = match &args.picture {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => picture::jpeg(args.side)?,
    };
    let encode = |patches: &Patches| {
        let grid = Grid { t: patches.grid.t, h: patches.grid.h, w: patches.grid.w };
        let start = Instant::now();
        let output = network.vision.forward(&network.layers, &patches.pixel_values, &[grid])?;
        anyhow::Ok((start.elapsed().as_secs_f64(), output.tokens))
    };
    encode(&process(&processor, &picture::jpeg(WARM_UP_SIDE)?)?)?;
    for _ in 0..args.repetitions {
        let start = Instant::now();
        let patches = process(&processor, &jpeg)?;
        let processing = start.elapsed().as_secs_f64();
        let (tower, tokens) = encode(&patches)?;
        emit(&json!({
            "metric": "vision",
            "vision_weights": args.model.vision_weights.name(),
            "isa": network.isa,
            "threads": network.threads,
            "visual_tokens": tokens,
            "processing_seconds": processing,
            "tower_seconds": tower,
            "seconds": processing + tower,
        }))?;
    }
    Ok(())
}

/// Decode, resize, cut.
pub(crate) fn process(processor: &ProcessorConfig, jpeg: &[u8]) -> Result<Patches> {
    let still = Still::decode(jpeg, "picture", &DecodeLimits::default())?;
    Ok(processor.image(&still)?)
}

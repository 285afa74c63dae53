//! What each stage of image processing makes of picture files, as SHA-256: to find where two programs part.

use std::path::PathBuf;

use anyhow::{Context, Result};
use qvl_dataload::vision::{DecodeLimits, Format, ProcessorConfig, certificate};
use serde_json::json;

use crate::emit;
use crate::preprocess::{PUBLISHED_MAX_PIXELS, hex, settings};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Picture files.
    #[arg(value_name = "PICTURE", required = true)]
    pictures: Vec<PathBuf>,
    /// Folder with the settings of image processing [default: as published].
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = match &args.checkpoint {
        Some(dir) => ProcessorConfig::from_dir(dir)?,
        None => settings(PUBLISHED_MAX_PIXELS),
    };
    let limits = DecodeLimits::default();
    for path in &args.pictures {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| name.clone())?;
        let made = certificate(&config, &bytes, &name, &limits)?;
        emit(&json!({
            "metric": "certificate",
            "picture": name,
            "is_jpeg": matches!(Format::of(&bytes), Some(Format::Jpeg)),
            "size": [made.decoded_size.0, made.decoded_size.1],
            "resized": [made.resized_size.0, made.resized_size.1],
            "grid": [made.grid.t, made.grid.h, made.grid.w],
            "decode": hex(made.decoded),
            "resize": hex(made.resized),
            "patchify": hex(made.pixel_values),
        }))?;
    }
    Ok(())
}

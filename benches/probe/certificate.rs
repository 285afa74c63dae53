//! What each stage of image processing makes of picture files, as SHA-256: to find where two programs part.

use std::path::PathBuf;

use anyhow::{Context, Result};
use qvl_dataload::vision::{DecodeLimits, Format, ProcessorConfig, Still};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::emit;
use crate::preprocess::{PUBLISHED_MAX_PIXELS, digest, hex, settings};

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
    for path in &args.pictures {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| name.clone())?;
        let still = Still::decode(&bytes, &name, &DecodeLimits::default())?;
        let (resized, patches) = (config.resized_image(&still)?, config.image(&still)?);
        emit(&json!({
            "metric": "certificate",
            "picture": name,
            "is_jpeg": matches!(Format::of(&bytes), Some(Format::Jpeg)),
            "size": [still.width(), still.height()],
            "resized": [resized.width(), resized.height()],
            "grid": [patches.grid.t, patches.grid.h, patches.grid.w],
            "decode": hex(Sha256::new_with_prefix(still.rgb())),
            "resize": hex(Sha256::new_with_prefix(resized.rgb())),
            "patchify": hex(digest(Sha256::new(), &patches.pixel_values)),
        }))?;
    }
    Ok(())
}

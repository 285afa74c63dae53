//! Prints what Qwen3-VL sees of a picture: its grid, its visual tokens, and a hash after each stage.
//!
//! ```text
//! cargo run -p qvl-dataload --example patchify -- PICTURE [CHECKPOINT_FOLDER]
//! ```
//!
//! The hashes are SHA-256 of the decoded RGB, the resized RGB and the little-endian f32 of `pixel_values`: where two
//! programs disagree, the first that differs tells the stage.

#![allow(clippy::print_stdout, reason = "printing is what this example does")]

use std::error::Error;
use std::path::Path;

use qvl_dataload::vision::{DecodeLimits, ProcessorConfig, certificate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let picture = arguments.next().ok_or("usage: patchify PICTURE [CHECKPOINT_FOLDER]")?;
    let config = match arguments.next() {
        Some(folder) => ProcessorConfig::from_dir(Path::new(&folder))?,
        None => ProcessorConfig::default(),
    };
    let name = picture.to_string_lossy();
    let certificate = certificate(&config, &std::fs::read(&picture)?, &name, &DecodeLimits::default())?;
    println!("{certificate}");
    println!("visual tokens {}", certificate.grid.visual_tokens(config.image.merge_size));
    Ok(())
}

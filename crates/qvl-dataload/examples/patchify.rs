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

use qvl_dataload::vision::{DecodeLimits, ProcessorConfig, Still};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let picture = arguments.next().ok_or("usage: patchify PICTURE [CHECKPOINT_FOLDER]")?;
    let config = match arguments.next() {
        Some(folder) => ProcessorConfig::from_dir(Path::new(&folder))?,
        None => ProcessorConfig::default(),
    };
    let still = Still::open(&picture, &DecodeLimits::default())?;
    let grid = config.image_grid(still.width(), still.height())?;
    let resized = config.resized_image(&still)?;
    let patches = config.image(&still)?;
    let values: Vec<u8> = patches.pixel_values.iter().flat_map(|v| v.to_le_bytes()).collect();

    println!("picture        {}x{}", still.width(), still.height());
    println!("resized        {}x{}", resized.width(), resized.height());
    println!("grid (t, h, w) {}, {}, {}", grid.t, grid.h, grid.w);
    println!("visual tokens  {}", grid.visual_tokens(config.image.merge_size));
    println!("decoded        {}", hash(still.rgb()));
    println!("resized        {}", hash(resized.rgb()));
    println!("pixel_values   {}", hash(&values));
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

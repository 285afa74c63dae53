//! Reads tensors of a safetensors checkpoint through a read-only cold tier: nothing is copied or converted first.
//!
//! ```text
//! cargo run --example checkpoint_tier --features safetensors -- model.safetensors
//! cargo run --example checkpoint_tier --features safetensors -- folder-with-an-index/
//! ```
//!
//! Without a path it makes a small file and reads that.

#![allow(clippy::print_stdout, reason = "a program that shows what it read")]

use std::error::Error;
use std::path::{Path, PathBuf};

use qvl_cache::cold::Cold;
use qvl_cache::cold::ranges::Ranges;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => small_checkpoint(folder.path())?,
    };
    let tier = Ranges::safetensors(&path)?;
    let mut keys: Vec<_> = tier.keys().map(|(key, bytes)| (key.to_vec(), bytes)).collect();
    keys.sort();
    println!("{}: {} tensors, {} bytes", tier.name(), keys.len(), tier.stats().bytes);
    for (key, bytes) in keys.iter().take(10) {
        let name = String::from_utf8_lossy(key);
        let value = tier.get(key)?.ok_or_else(|| format!("{name} changed while it was read"))?;
        println!("{name}: {bytes} bytes, beginning with {:02x?}", &value[..value.len().min(8)]);
    }
    println!("{:?}", tier.stats());
    Ok(())
}

/// A checkpoint of two tensors.
fn small_checkpoint(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut header = br#"{"embed.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"#.to_vec();
    header.extend(br#""norm.weight":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([0.5_f32, 1.5, 2.5, 3.5].iter().flat_map(|value| value.to_le_bytes()));
    file.extend([0x80, 0x3f, 0x00, 0x40]);
    let path = folder.join("model.safetensors");
    std::fs::write(&path, file)?;
    Ok(path)
}

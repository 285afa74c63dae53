//! A drawn picture of any size: waves and grain, so that a JPEG of it is as hard to decode as a photograph.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde_json::json;

use crate::emit;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Width and height.
    #[arg(long, value_name = "PIXELS", default_value_t = 448)]
    side: u32,
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What cameras and messengers use.
const QUALITY: u8 = 85;

pub(crate) fn run(args: &Args) -> Result<()> {
    let bytes = jpeg(args.side)?;
    std::fs::write(&args.out, &bytes).with_context(|| args.out.display().to_string())?;
    emit(&json!({ "metric": "picture", "side": args.side, "bytes": bytes.len() }))
}

/// The picture as a 4:2:0 JPEG.
pub(crate) fn jpeg(side: u32) -> Result<Vec<u8>> {
    ensure!((1..=8192).contains(&side), "a side of {side} pixels, expected 1 to 8192");
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&rgb(side), side as u16, side as u16, ColorType::Rgb)?;
    Ok(bytes)
}

fn rgb(side: u32) -> Vec<u8> {
    let mut grain = 1u32;
    let mut pixels = Vec::with_capacity(3 * (side * side) as usize);
    for y in 0..side {
        for x in 0..side {
            let (x, y) = (x as f32 / side as f32, y as f32 / side as f32);
            grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (grain >> 24) as f32 / 16.0;
            for (channel, wave) in [7.0, 11.0, 17.0].into_iter().enumerate() {
                let value = (x * wave).sin() + (y * (wave + 2.0) + channel as f32).cos();
                pixels.push((120.0 + 50.0 * value + noise) as u8);
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use qvl_dataload::vision::{DecodeLimits, Still};

    use super::*;

    #[test]
    fn the_picture_is_a_jpeg_of_its_size() {
        let still =
            Still::decode(&jpeg(64).expect("encodes"), "drawn", &DecodeLimits::default()).expect("decodes");
        assert_eq!((still.width(), still.height()), (64, 64));
    }
}

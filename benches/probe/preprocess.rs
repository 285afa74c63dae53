//! Image processing alone, on one thread: a picture's bytes to patches, and the resize by itself.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use qvl_dataload::vision::{DecodeLimits, ImageConfig, ProcessorConfig, Still, Workspace, resize_bicubic};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::emit;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A picture file.
    #[arg(long, value_name = "FILE")]
    picture: PathBuf,
    /// Pixels after resizing, at most; the other settings are as published.
    #[arg(long, value_name = "N", default_value_t = PUBLISHED_MAX_PIXELS)]
    max_pixels: u64,
    /// Timed runs, of which the median is given; one goes first, untimed.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
}

#[derive(clap::Args)]
pub(crate) struct ResizeArgs {
    /// Interleaved RGB bytes.
    #[arg(long, value_name = "FILE")]
    rgb: PathBuf,
    /// Their width and height.
    #[arg(long, value_name = "WxH")]
    from: Size,
    /// Width and height wanted.
    #[arg(long, value_name = "WxH")]
    to: Size,
    /// Where the result is written, after the clock has stopped.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Timed runs, of which the median is given; one goes first, untimed.
    #[arg(long, value_name = "N", default_value_t = 9)]
    repetitions: usize,
}

/// Of the published image processor: 16,384 visual tokens.
pub(crate) const PUBLISHED_MAX_PIXELS: u64 = 16_777_216;
const PUBLISHED_MIN_PIXELS: u64 = 65_536;

/// The published settings, but for the largest size.
pub(crate) fn settings(max_pixels: u64) -> ProcessorConfig {
    let image = ImageConfig { min_pixels: PUBLISHED_MIN_PIXELS, max_pixels, ..ImageConfig::default() };
    ProcessorConfig { image, ..ProcessorConfig::default() }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = settings(args.max_pixels);
    let name = args.picture.display().to_string();
    let (mut out, mut workspace) = (Vec::<f32>::new(), Workspace::new());
    let limits = DecodeLimits::default();
    // As a loader works: the file is read, and everything else lies in memory that was there before.
    let (seconds, grid) = median(args.repetitions, || {
        let bytes = std::fs::read(&args.picture).with_context(|| name.clone())?;
        let grid = config.encoded_grid(&bytes, &name, &limits)?;
        out.resize(grid.patches() * config.image.patch_values(), 0.0);
        Ok(config.encoded_into(&bytes, &name, &limits, &mut workspace, &mut out)?)
    })?;
    emit(&json!({
        "metric": "preprocess",
        "max_pixels": args.max_pixels,
        "grid": [grid.t, grid.h, grid.w],
        "seconds": seconds,
        "sha256": hex(digest(Sha256::new(), &out).finalize()),
    }))
}

pub(crate) fn resize(args: &ResizeArgs) -> Result<()> {
    let rgb = std::fs::read(&args.rgb).with_context(|| args.rgb.display().to_string())?;
    let still = Still::from_rgb(args.from.0, args.from.1, rgb)?;
    let (seconds, resized) = median(args.repetitions, || Ok(resize_bicubic(&still, args.to.0, args.to.1)?))?;
    std::fs::write(&args.out, resized.rgb()).with_context(|| args.out.display().to_string())?;
    emit(&json!({ "metric": "resize", "seconds": seconds }))
}

/// The middle of so many times, and the last result.
fn median<T>(repetitions: usize, mut work: impl FnMut() -> Result<T>) -> Result<(f64, T)> {
    ensure!(repetitions > 0, "--repetitions 0: nothing to measure");
    let mut result = work()?;
    let mut seconds = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        result = work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[repetitions / 2], result))
}

/// Takes in values as little-endian bytes: the memory of a tensor on nearly all machines.
pub(crate) fn digest(mut hash: Sha256, values: &[f32]) -> Sha256 {
    let mut block = Vec::with_capacity(4 * DIGEST_VALUES);
    for values in values.chunks(DIGEST_VALUES) {
        block.clear();
        block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hash.update(&block);
    }
    hash
}

const DIGEST_VALUES: usize = 1 << 14;

pub(crate) fn hex(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Width and height, as `4032x3024`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u32, u32);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').and_then(|(w, h)| Some(Self(w.parse().ok()?, h.parse().ok()?)));
        sides.ok_or_else(|| format!("{text:?} is not a size like 4032x3024"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("4032x3024".parse(), Ok(Size(4032, 3024)));
        for broken in ["", "x", "12", "12x", "12x-3", "1x2x3"] {
            assert!(broken.parse::<Size>().is_err(), "{broken}");
        }
    }

    #[test]
    fn a_digest_is_of_the_bytes_of_all_values() {
        let values: Vec<f32> = (0..DIGEST_VALUES + 3).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let whole = Sha256::digest(&bytes);
        assert_eq!(digest(Sha256::new(), &values).finalize(), whole);
        let (first, rest) = values.split_at(5);
        assert_eq!(digest(digest(Sha256::new(), first), rest).finalize(), whole);
        assert_eq!(hex([0, 0xaf]), "00af");
    }

    #[test]
    fn the_middle_of_the_times_is_taken_and_one_goes_first() {
        let mut calls = 0;
        let (seconds, last) = median(3, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis([200, 1, 20, 50][calls - 1]));
            Ok(calls)
        })
        .expect("nothing fails");
        assert_eq!(last, 4);
        assert!(seconds >= 0.02, "{seconds}");
        assert!(median(0, || Ok(())).is_err());
    }
}

//! Folders of drawn photographs: what a loader is measured on. The probe of qvl-benches draws them, since it is built
//! for speed and this program is not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench;
use crate::run::{output, say};

#[derive(clap::Args)]
#[command(
    after_help = "JPEG of 640 x 480 to 4032 x 3024, 3 megapixels and 600 kB on average, as cameras and \
messengers make them; one of 12 megapixels beside them; manifest.json says what each is. 2,000 take a minute or two and \
1.2 GB. A second call with the same seed writes only what is missing."
)]
pub(crate) struct Args {
    /// Where to write; made if it is not there.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Photographs.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    count: u64,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
}

/// Of the photographs that are measured.
pub(crate) const SEED: u64 = 1;

pub(crate) fn run(args: &Args) -> Result<()> {
    // The decoder is not used.
    let probe = bench::probe::build(false)?;
    write(&probe, &args.dir, args.count, args.seed)
}

/// Draws what is missing and says what is there.
pub(crate) fn write(probe: &Path, dir: &Path, count: u64, seed: u64) -> Result<()> {
    let mut command = Command::new(probe);
    command.arg("pictures").arg("--out").arg(dir);
    command.args(["--count", &count.to_string(), "--seed", &seed.to_string()]);
    let line: Value = serde_json::from_str(output(&mut command)?.trim()).context("the probe drew nothing")?;
    let figure = |name: &str| line[name].as_f64().with_context(|| format!("the probe gave no {name}"));
    say(&format!(
        "{count} photographs, {} of them new: {:.2} megapixels and {:.2} MB each, {:.2} bytes a pixel",
        figure("written")?,
        figure("pixels")? / count as f64 / 1e6,
        figure("bytes")? / count as f64 / 1e6,
        figure("bytes_per_pixel")?,
    ));
    Ok(())
}

//! `qvl show`: a picture in the terminal, so that a question can be checked by eye.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use anstyle::{Reset, RgbColor};
use qvl_runtime::qvl_dataload::vision::{DecodeLimits, Still, resize_bicubic};

use crate::output::Failure;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pictures.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Characters across.
    #[arg(long, value_name = "N", default_value_t = 56, value_parser = clap::value_parser!(u32).range(1..=1000))]
    columns: u32,
}

/// Dark to light, for output without colours.
const RAMP: &[u8] = b"@%#*+=-:. ";

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let has_colours = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    for path in &args.images {
        let still = Still::open(path, &DecodeLimits::default())?;
        let width = args.columns.min(still.width());
        let rows = (u64::from(width) * u64::from(still.height()) / u64::from(still.width()) / 2).clamp(1, 200)
            as u32;
        let text = if has_colours {
            blocks(&resize_bicubic(&still, width, 2 * rows)?)
        } else {
            letters(&resize_bicubic(&still, width, rows)?)
        };
        write!(out, "{text}")?;
    }
    Ok(())
}

/// Two pixels a character: the upper half block in one colour on the other.
fn blocks(still: &Still) -> String {
    let width = still.width() as usize * 3;
    let mut text = String::new();
    for pair in still.rgb().chunks_exact(2 * width) {
        let (upper, lower) = pair.split_at(width);
        for (upper, lower) in upper.chunks_exact(3).zip(lower.chunks_exact(3)) {
            let style = RgbColor(upper[0], upper[1], upper[2]).on(RgbColor(lower[0], lower[1], lower[2]));
            let _ = write!(text, "{style}▀");
        }
        let _ = writeln!(text, "{Reset}");
    }
    text
}

fn letters(still: &Still) -> String {
    let mut text = String::new();
    for row in still.rgb().chunks_exact(still.width() as usize * 3) {
        for pixel in row.chunks_exact(3) {
            // Rec. 601 luma, in 1/1000.
            let luma = 299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2]);
            text.push(RAMP[luma as usize * (RAMP.len() - 1) / 255_000] as char);
        }
        text.push('\n');
    }
    text
}

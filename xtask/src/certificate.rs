//! `cargo xtask certificate`: where our image processing and transformers' part, stage by stage, for given pictures.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::bench::{probe, process};
use crate::run::{root, say};

#[derive(clap::Args)]
#[command(
    after_help = "Hashes are SHA-256: after decode and resize of interleaved RGB bytes, after patchify of \
pixel_values as little-endian f32. Exit code 1 if a picture differs at any stage.\n\nJPEG differ at decode unless \
--libjpeg-turbo is given: two correct decoders round differently, by 4 of 255 levels at most on the files of our tests."
)]
pub(crate) struct Args {
    /// Picture files.
    #[arg(value_name = "PICTURE", required = true)]
    pictures: Vec<PathBuf>,
    /// A Python that has torch, transformers and Pillow 12; without it only our hashes are printed.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Folder with the settings of image processing [default: as published].
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Build with the feature libjpeg-turbo of qvl-dataload, which decodes JPEG as Pillow does; needs CMake and NASM.
    #[arg(long)]
    libjpeg_turbo: bool,
}

/// In their order: all after the first that differs differ for that reason.
const STAGES: [&str; 3] = ["decode", "resize", "patchify"];
/// Pictures of many megapixels take a second each on either side.
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = probe::build(args.libjpeg_turbo)?;
    let ours = hashes(args, Command::new(program).arg("certificate"))?;
    let theirs = match &args.python {
        None => None,
        Some(python) => {
            let script = root().join("xtask/python/certificate.py");
            Some(hashes(args, Command::new(python).arg(script).env("PYTHONDONTWRITEBYTECODE", "1"))?)
        }
    };
    let mut differing = 0;
    for (index, ours) in ours.iter().enumerate() {
        let theirs = theirs.as_ref().map(|all| &all[index]);
        lines(ours, theirs, args.libjpeg_turbo).iter().for_each(|line| say(line));
        differing += u32::from(theirs.is_some_and(|theirs| first_difference(ours, theirs).is_some()));
    }
    if differing > 0 {
        bail!("{differing} of {} pictures differ", ours.len());
    }
    Ok(())
}

/// One line of hashes for each picture.
fn hashes(args: &Args, command: &mut Command) -> Result<Vec<Value>> {
    command.args(&args.pictures);
    if let Some(dir) = &args.checkpoint {
        command.arg("--checkpoint").arg(dir);
    }
    let done = process::run(command, LIMIT)?;
    if done.timed_out() {
        bail!("it did not end within {} s", LIMIT.as_secs());
    }
    let lines = done.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> = lines.filter(|line| line["metric"] == "certificate").collect();
    if lines.len() != args.pictures.len() {
        bail!("{} lines of hashes for {} pictures", lines.len(), args.pictures.len());
    }
    Ok(lines)
}

/// The first stage whose result is not the same.
fn first_difference(ours: &Value, theirs: &Value) -> Option<&'static str> {
    STAGES.into_iter().find(|&stage| ours[stage] != theirs[stage] || !ours[stage].is_string())
}

/// What is said of a picture.
fn lines(ours: &Value, theirs: Option<&Value>, libjpeg_turbo: bool) -> Vec<String> {
    let sides = |name: &str| {
        let sides: Vec<String> = ours[name].as_array().into_iter().flatten().map(Value::to_string).collect();
        sides.join(" x ")
    };
    let mut lines = vec![format!(
        "{}: {} pixels, resized to {}, patches {}",
        ours["picture"].as_str().unwrap_or_default(),
        sides("size"),
        sides("resized"),
        sides("grid")
    )];
    let difference = theirs.and_then(|theirs| first_difference(ours, theirs));
    for stage in STAGES {
        let hash = |line: &Value| line[stage].as_str().unwrap_or("none").to_owned();
        lines.push(format!("  {stage:8}  {}", hash(ours)));
        if let Some(theirs) = theirs.filter(|theirs| hash(ours) != hash(theirs)) {
            lines.push(format!("  {:8}  {}  transformers", "", hash(theirs)));
        }
    }
    match (difference, theirs) {
        (None, None) => {}
        (None, Some(_)) => lines.push("  the same as transformers".to_owned()),
        (Some("decode"), _) if ours["is_jpeg"] == true && !libjpeg_turbo => lines.push(
            "  first difference: decode. This JPEG was decoded by the decoder in Rust, which rounds differently from \
             Pillow's:\n  build with the feature libjpeg-turbo of qvl-dataload (here: --libjpeg-turbo) for the same \
             bits"
                .to_owned(),
        ),
        (Some(stage), _) => lines.push(format!("  first difference: {stage}")),
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture(decode: &str, resize: &str, patchify: &str) -> Value {
        json!({ "picture": "photo", "is_jpeg": true, "size": [640, 480], "resized": [640, 480], "grid": [1, 30, 40],
                "decode": decode, "resize": resize, "patchify": patchify })
    }

    #[test]
    fn the_first_stage_that_differs_is_named() {
        let ours = picture("a", "b", "c");
        assert_eq!(first_difference(&ours, &ours), None);
        assert_eq!(first_difference(&ours, &picture("x", "y", "z")), Some("decode"));
        assert_eq!(first_difference(&ours, &picture("a", "y", "z")), Some("resize"));
        assert_eq!(first_difference(&ours, &picture("a", "b", "z")), Some("patchify"));
        // What is missing on both sides is not the same.
        assert_eq!(first_difference(&json!({}), &json!({})), Some("decode"));
    }

    #[test]
    fn a_jpeg_of_another_decoder_says_what_to_do() {
        let (ours, theirs) = (picture("a", "b", "c"), picture("x", "y", "z"));
        let text = |libjpeg_turbo| lines(&ours, Some(&theirs), libjpeg_turbo).join("\n");
        assert!(text(false).contains("--libjpeg-turbo") && text(false).contains("first difference: decode"));
        assert!(!text(true).contains("--libjpeg-turbo") && text(true).ends_with("first difference: decode"));
        assert!(text(true).contains("x  transformers"));
        assert!(lines(&ours, Some(&ours), false).join("\n").ends_with("the same as transformers"));
        let alone = lines(&ours, None, false);
        assert_eq!(alone[0], "photo: 640 x 480 pixels, resized to 640 x 480, patches 1 x 30 x 40");
        assert_eq!((alone.len(), alone[3].as_str()), (4, "  patchify  c"));
    }
}

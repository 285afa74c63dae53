//! The program at work: the sample pictures, the held-out set, and reference cases of the user's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::run::{cargo, output, root, say, succeed};

/// A line of a manifest.
#[derive(Deserialize)]
struct Question {
    images: Vec<PathBuf>,
    prompt: String,
    answer: String,
}

/// What `qvl describe --json` says.
#[derive(Deserialize)]
struct Answer {
    answer: String,
    prompt_tokens: usize,
    visual_tokens: usize,
    load_seconds: f64,
    prepare_seconds: f64,
    prefill_seconds: f64,
    decode_tokens_per_second: f64,
}

pub(crate) fn run() -> Result<()> {
    let qvl = build_qvl()?;
    let assets = root().join("crates/qvl-runtime/assets");
    let samples = assets.join("samples");
    let manifest = samples.join("samples.jsonl");
    let text = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let question: Question =
            serde_json::from_str(line).with_context(|| manifest.display().to_string())?;
        let pictures: Vec<PathBuf> = question.images.iter().map(|image| samples.join(image)).collect();
        for (picture, name) in pictures.iter().zip(&question.images) {
            say(&format!("\n{}", name.display()));
            succeed(Command::new(&qvl).arg("show").arg(picture))?;
        }
        let mut describe = Command::new(&qvl);
        describe.arg("describe").args(&pictures).args(["--prompt", &question.prompt, "--json"]);
        let answer: Answer = serde_json::from_str(&output(&mut describe)?)?;
        say(&format!("  question  {}", question.prompt));
        say(&format!("  answer    {}", answer.answer));
        if answer.answer != question.answer {
            say(&format!("  drawn as  {}", question.answer));
        }
        say(&format!(
            "  took      load {:.1} ms, decode and patchify {:.1} ms, {} prompt tokens ({} visual) in {:.1} ms, \
             then {:.0} tokens/s",
            answer.load_seconds * 1e3,
            answer.prepare_seconds * 1e3,
            answer.prompt_tokens,
            answer.visual_tokens,
            answer.prefill_seconds * 1e3,
            answer.decode_tokens_per_second,
        ));
    }
    say("\nThe held-out set: pictures the network has never seen, exact match");
    let heldout = assets.join("heldout");
    succeed(
        Command::new(&qvl)
            .arg("eval")
            .arg("--manifest")
            .arg(heldout.join("manifest.jsonl"))
            .arg("--reference")
            .arg(heldout.join("reference.jsonl")),
    )?;
    say(&format!(
        "\nNow try your own: {} describe PICTURE --prompt \"How many shapes are there?\"",
        qvl.strip_prefix(root()).unwrap_or(&qvl).display()
    ));
    Ok(())
}

pub(crate) fn parity(dir: &Path, more: &[String]) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let qvl = build_qvl()?;
    succeed(Command::new(qvl).arg("parity").arg(dir).args(more))
}

/// Builds the program optimised and says where it is.
fn build_qvl() -> Result<PathBuf> {
    succeed(&mut cargo(&["build", "--release", "--package", "qvl-runtime"]))?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let name = format!("qvl{}", std::env::consts::EXE_SUFFIX);
    Ok(metadata.target_directory.into_std_path_buf().join("release").join(name))
}

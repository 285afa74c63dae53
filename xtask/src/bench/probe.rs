//! Our side: the program `probe` of the package qvl-benches, or for the suite cache `cache-probe` of benches/cache,
//! built and called.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Args, Suite, process};
use crate::run::{cargo, output, say, succeed};
use crate::{pictures, setup, synth};

/// What every measurement needs.
pub(crate) struct Setup {
    probe: PathBuf,
    /// Checkpoint folder; empty for a suite that needs none.
    model: PathBuf,
    /// Compute threads of every engine.
    pub(crate) threads: usize,
    /// Where pictures lie.
    folder: PathBuf,
    pub(crate) quick: bool,
    /// Whether the probe decodes JPEG as Pillow does; only the suite dataload asks for it.
    pub(crate) libjpeg_turbo: bool,
}

/// Width and height of the pictures that are measured.
pub(crate) const PICTURE_SIDES: [u32; 2] = [448, 1024];
/// No single measurement of ours takes so long unless something is wrong.
const LIMIT: Duration = Duration::from_secs(600);

impl Setup {
    /// Builds the probe and writes, once, what the suite reads: a checkpoint if none is given, or photographs.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let libjpeg_turbo = args.suite == Suite::Dataload && setup::libjpeg_turbo();
        let probe = if args.suite == Suite::Cache { build_cache()? } else { build(libjpeg_turbo)? };
        let folder = target()?.join("bench");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let setup = Self {
            probe,
            model: match (&args.model, args.suite) {
                (_, Suite::Limits | Suite::Dataload | Suite::Cache | Suite::Transfer | Suite::Alloc) => {
                    PathBuf::new()
                }
                (Some(dir), Suite::Model) => std::path::absolute(dir)?,
                (None, Suite::Model) => synthetic(&folder)?,
            },
            threads: match args.threads {
                0 => std::thread::available_parallelism()?.get(),
                threads => threads,
            },
            folder,
            quick: args.quick,
            libjpeg_turbo,
        };
        if args.suite == Suite::Dataload {
            let count = super::dataload::files(args);
            let (folder, seed) = (setup.pictures(), pictures::SEED);
            pictures::write(&setup.probe, &folder, count, seed)?;
        }
        if args.suite == Suite::Model {
            for side in PICTURE_SIDES {
                setup.draw(side)?;
            }
        }
        Ok(setup)
    }

    /// A call of the probe on so many threads.
    pub(crate) fn probe(&self, command: &str, threads: usize) -> Call {
        self.plain_probe(command).with("--threads", threads)
    }

    /// A call of the probe that has threads of its own choice.
    pub(crate) fn plain_probe(&self, command: &str) -> Call {
        let mut call = Command::new(&self.probe);
        call.arg(command).env_remove("QVL_ISA");
        Call(call)
    }

    /// A call that opens the checkpoint with these formats.
    pub(crate) fn on_model(&self, command: &str, weights: &str, vision_weights: &str) -> Call {
        let mut call = self.probe(command, self.threads);
        call.0.arg("--model").arg(&self.model);
        call.0.args(["--weights", weights, "--vision-weights", vision_weights]);
        call
    }

    /// Where the picture of this size lies.
    pub(crate) fn picture(&self, side: u32) -> PathBuf {
        self.folder.join(format!("picture-{side}.jpg"))
    }

    /// The folder of drawn photographs.
    pub(crate) fn pictures(&self) -> PathBuf {
        self.folder.join("pictures")
    }

    /// A file for what a measurement writes.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn draw(&self, side: u32) -> Result<()> {
        let mut command = Command::new(&self.probe);
        command.args(["picture", "--side", &side.to_string(), "--out"]).arg(self.picture(side));
        output(&mut command).map(drop)
    }
}

/// Builds the probe; where it lies.
pub(crate) fn build(libjpeg_turbo: bool) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--release", "--package", "qvl-benches", "--bin", "probe"]);
    if libjpeg_turbo {
        command.args(["--features", "libjpeg-turbo"]);
    }
    succeed(&mut command)?;
    Ok(target()?.join("release").join(format!("probe{}", std::env::consts::EXE_SUFFIX)))
}

/// Builds the probe of the suite cache, which is no member of the workspace; where it lies.
fn build_cache() -> Result<PathBuf> {
    // A folder of its own, as its dependencies are locked apart from the workspace's.
    let folder = target()?.join("cache-bench");
    let manifest = "benches/cache/Cargo.toml";
    let mut command = cargo(&["build", "--release", "--manifest-path", manifest, "--bin", "cache-probe"]);
    succeed(command.env("CARGO_TARGET_DIR", &folder))?;
    Ok(folder.join("release").join(format!("cache-probe{}", std::env::consts::EXE_SUFFIX)))
}

/// The target folder of the workspace.
pub(crate) fn target() -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(crate::run::root()).no_deps().exec()?;
    Ok(metadata.target_directory.into_std_path_buf())
}

#[cfg(test)]
impl Setup {
    /// A setup to make plans with, not to run them.
    pub(crate) fn nowhere(quick: bool) -> Self {
        let [probe, model, folder] = ["probe", "model", "bench"].map(PathBuf::from);
        Self { probe, model, threads: 2, folder, quick, libjpeg_turbo: true }
    }
}

/// A call of the probe.
pub(crate) struct Call(Command);

impl Call {
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.args([name, &value.to_string()]);
        self
    }

    /// With a switch that has no value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.0.arg(name);
        self
    }

    /// Uses no better instructions than these.
    pub(crate) fn isa(mut self, isa: &str) -> Self {
        self.0.env("QVL_ISA", isa);
        self
    }

    /// Its measurements, and the time to the first of them.
    pub(crate) fn run(mut self) -> Result<(Vec<Value>, Duration)> {
        let done = process::run(&mut self.0, LIMIT)?;
        if done.timed_out() {
            bail!("the probe did not end within {} s", LIMIT.as_secs());
        }
        let lines = done.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok((lines, done.first_output.unwrap_or_default()))
    }

    /// Its one measurement.
    pub(crate) fn one(self) -> Result<Value> {
        self.run()?.0.into_iter().next().context("the probe gave no measurement")
    }
}

/// A figure of a measurement.
pub(crate) fn figure(measurement: &Value, name: &str) -> Result<f64> {
    measurement[name].as_f64().with_context(|| format!("the probe gave no {name}: {measurement}"))
}

/// The 2B shape with random weights, written once.
fn synthetic(folder: &Path) -> Result<PathBuf> {
    let dir = folder.join("2b");
    // Written last, so an interrupted run is not taken for a whole one.
    let done = dir.join("complete");
    if !done.is_file() {
        say("writing a checkpoint of the 2B shape with random weights (4.3 GB, once)");
        synth::write_2b(&dir)?;
        std::fs::write(&done, "")?;
    }
    Ok(dir)
}

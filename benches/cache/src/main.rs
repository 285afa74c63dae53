//! `cache-probe`: measures a cache in a fresh process and prints one JSON line per measurement.
//!
//! `cargo xtask bench cache` runs it in turn for each side of a comparison. Each command is useful alone:
//!
//!     cargo run --release --manifest-path benches/cache/Cargo.toml -- mixed --side foyer --folder DIR

mod foyer_side;
mod hot;
mod mixed;
mod process;
#[cfg(feature = "qvl")]
mod qvl_side;
mod requests;
mod warm;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;

/// Measures a cache; one JSON line per measurement on stdout.
#[derive(Parser)]
#[command(name = "cache-probe", after_help = "Use a release build.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Nanoseconds of a hit in memory with all entries resident.
    HotHit(hot::HitArgs),
    /// Bytes held at most while large values come in one after the other, as a share of the budget.
    Overshoot(hot::OvershootArgs),
    /// Requests a second and their times: reads and inserts of values of 4 KiB to 4 MiB, memory and drive.
    Mixed(mixed::Args),
    /// Bytes a second of reading large values from the drive.
    Read(warm::ReadArgs),
    /// Share of hits when the same keys are asked for in a circle.
    #[cfg(feature = "qvl")]
    Scan(qvl_side::ScanArgs),
    /// Fills a cache, asks for every key and closes it, for `restart-open`.
    #[cfg(feature = "qvl")]
    RestartFill(qvl_side::RestartArgs),
    /// Seconds from opening the cache that `restart-fill` left to the first value served, and the share of hits.
    #[cfg(feature = "qvl")]
    RestartOpen(qvl_side::RestartArgs),
    /// Hits of the default policy on a recorded trace, beside LRU and the best that is possible.
    #[cfg(feature = "qvl")]
    Replay(qvl_side::ReplayArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::HotHit(args) => hot::hit(&args),
        Command::Overshoot(args) => hot::overshoot(&args),
        Command::Mixed(args) => mixed::run(&args),
        Command::Read(args) => warm::read(&args),
        #[cfg(feature = "qvl")]
        Command::Scan(args) => qvl_side::scan(&args),
        #[cfg(feature = "qvl")]
        Command::RestartFill(args) => qvl_side::restart_fill(&args),
        #[cfg(feature = "qvl")]
        Command::RestartOpen(args) => qvl_side::restart_open(&args),
        #[cfg(feature = "qvl")]
        Command::Replay(args) => qvl_side::replay(&args),
    };
    match result.and_then(|measurement| emit(&measurement)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            // A stderr that is gone leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn emit(measurement: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{measurement}")?;
    out.flush()?;
    Ok(())
}

/// A folder that is empty at the beginning and gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: &Path) -> Result<Self> {
        clear(folder)?;
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is removed by the next run.
        let _ = clear(&self.0);
    }
}

/// Removes a folder with all it holds; fine if there is none.
fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}

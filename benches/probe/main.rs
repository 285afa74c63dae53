//! `probe`: measures qvl and the machine in a fresh process and prints one JSON line per measurement.
//!
//! `cargo xtask bench` runs it in turn with other engines. Each command is useful alone:
//!
//!     cargo run --release --package qvl-benches --bin probe -- decode --model DIR --weights bf16

mod alloc;
mod backend;
mod certificate;
mod drawing;
mod group;
mod kernels;
mod limits;
mod loader;
mod memory;
mod picture;
mod pictures;
mod preprocess;
mod text;
mod transfer;
mod vision;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use qvl_model::WeightFormat;
use serde_json::Value;

/// Measures qvl and the machine; one JSON line per measurement on stdout.
#[derive(Parser)]
#[command(name = "probe", after_help = "Use a release build. QVL_ISA=avx2 limits the instruction set.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What the machine can do: memory read and copy, f32 and int8 arithmetic.
    Limits(limits::Args),
    /// Tokens a second of sequences decoded together from a short fresh prompt.
    Decode(text::DecodeArgs),
    /// Tokens a second of a fresh prompt.
    Prefill(text::PrefillArgs),
    /// Seconds for one picture: image processing, and the vision tower alone.
    Vision(vision::Args),
    /// Loads, answers with one token, says so at once: for a clock that started with the process.
    FirstToken(text::FirstTokenArgs),
    /// Peak resident memory beside what weights, keys, values and activations take.
    Memory(memory::Args),
    /// Writes the picture that `vision` uses, for programs that read files.
    Picture(picture::Args),
    /// Writes a folder of drawn photographs, for `cargo xtask bench dataload`.
    Pictures(pictures::Args),
    /// Seconds of a picture file's way to patches, on one thread, and the SHA-256 of the patches.
    Preprocess(preprocess::Args),
    /// Seconds of the bicubic resize alone, on one thread.
    Resize(preprocess::ResizeArgs),
    /// Photographs a second through the loader, the consumer's waits and the loader's peak.
    Loader(loader::Args),
    /// Seconds a photograph in a loop on one thread.
    PlainLoop(loader::FileArgs),
    /// Microseconds an item that needs no work.
    LoaderOverhead(loader::OverheadArgs),
    /// Writes the file that the commands below read, once.
    TransferFile(transfer::WriteArgs),
    /// Bytes a second of a plain loop of direct reads.
    DriveRead(transfer::ReadArgs),
    /// Bytes a second of the same file through a stream of segments.
    DriveStream(transfer::StreamArgs),
    /// Reading and as much computing, one after the other or at once.
    DriveOverlap(transfer::OverlapArgs),
    /// A file summed up in a circle under a limit of memory, mapped or streamed.
    DriveWalk(transfer::WalkArgs),
    /// Bytes a second over a link of a set speed.
    LinkRate(transfer::LinkArgs),
    /// Microseconds a chunk that needs no work.
    ChunkOverhead(transfer::OverheadArgs),
    /// Nanoseconds of an allocation and its end.
    AllocPair(alloc::PairArgs),
    /// Traces of tensors a second, by allocator.
    AllocTrace(alloc::TraceArgs),
    /// Fragmentation and peak after millions of operations.
    AllocLong(alloc::LongArgs),
    /// Resident bytes over live ones, after trim.
    AllocTrim(alloc::TrimArgs),
    /// Milliseconds from the crossing of a level of pressure to the call back.
    PressureReaction(alloc::ReactionArgs),
    /// The share of a core that watching takes while nothing happens.
    WatchShare(alloc::WatchArgs),
    /// SHA-256 of what each stage of image processing makes of pictures.
    Certificate(certificate::Args),
}

/// Which network, in which form, on how many threads.
#[derive(clap::Args)]
struct ModelArgs {
    /// Checkpoint folder in the Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the decoder's matrices are held: stored, bf16, q8 or q4.
    #[arg(long, value_name = "FORMAT", default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// How the vision tower's matrices are held.
    #[arg(long, value_name = "FORMAT", default_value_t = WeightFormat::Stored)]
    vision_weights: WeightFormat,
    /// Compute threads; 0 takes all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Limits(args) => limits::run(&args),
        Command::Decode(args) => text::decode(&args),
        Command::Prefill(args) => text::prefill(&args),
        Command::Vision(args) => vision::run(&args),
        Command::FirstToken(args) => text::first_token(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::Pictures(args) => pictures::run(&args),
        Command::Preprocess(args) => preprocess::run(&args),
        Command::Resize(args) => preprocess::resize(&args),
        Command::Loader(args) => loader::run(&args),
        Command::PlainLoop(args) => loader::plain(&args),
        Command::LoaderOverhead(args) => loader::overhead(&args),
        Command::TransferFile(args) => transfer::write(&args),
        Command::DriveRead(args) => transfer::read(&args),
        Command::DriveStream(args) => transfer::stream(&args),
        Command::DriveOverlap(args) => transfer::overlap(&args),
        Command::DriveWalk(args) => transfer::walk(&args),
        Command::LinkRate(args) => transfer::link(&args),
        Command::ChunkOverhead(args) => transfer::overhead(&args),
        Command::AllocPair(args) => alloc::pair(&args),
        Command::AllocTrace(args) => alloc::trace(&args),
        Command::AllocLong(args) => alloc::long(&args),
        Command::AllocTrim(args) => alloc::trim(&args),
        Command::PressureReaction(args) => alloc::reaction(&args),
        Command::WatchShare(args) => alloc::watch(&args),
        Command::Certificate(args) => certificate::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            // A stderr that is gone leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

/// One measurement, on a line of its own and at once.
fn emit(measurement: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{measurement}")?;
    out.flush()?;
    Ok(())
}

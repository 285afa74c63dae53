//! Everything that is done to this repository rather than with it: `cargo xtask COMMAND`.

mod bench;
mod certificate;
mod counts;
mod cuda;
mod demo;
mod pictures;
mod run;
mod setup;
mod synth;
mod test;
mod validate;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Demo, tests, checks and tools of the qvl workspace.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "New here? `cargo xtask demo` shows what it does, \
`cargo xtask test` checks what must pass before a commit;\nCI also runs `validate`. `test` installs what is missing \
on this machine, or prints the command that does."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look for what building and testing needs; install it, or print the command that does.
    Setup,
    /// Describe the sample pictures with the embedded checkpoint, then the held-out set.
    Demo,
    /// Format, clippy, tests, doc tests, docs: what must pass before a commit.
    Test(test::Args),
    /// Compare with transformers on reference cases, tensor by tensor; exit code 1 when out of tolerance.
    Parity {
        /// Folder of cases: model/, request.json, expected.safetensors each.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Passed on to `qvl parity`: --backend reference, --threads N, --json.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Measure: what the machine can do, how much of it qvl uses, how other engines compare.
    Bench(Box<bench::Args>),
    /// Count the instructions of the hot kernels under valgrind; exit code 1 if over 3 % more than committed.
    Counts(counts::Args),
    /// Compare image processing with transformers on pictures, stage by stage; exit code 1 at a difference.
    Certificate(certificate::Args),
    /// Write a checkpoint of a published shape with random weights.
    Synth(synth::Args),
    /// Write a folder of drawn photographs, the same for the same seed.
    SynthPictures(pictures::Args),
    /// Leaves depend on no sibling, every crate can be packaged and built from its package, READMEs compile,
    /// unsafe code only where it is announced.
    Validate,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::Demo => demo::run(),
        Command::Test(args) => test::run(&args),
        Command::Parity { dir, more } => demo::parity(&dir, &more),
        Command::Bench(args) => bench::run(&args),
        Command::Counts(args) => counts::run(&args),
        Command::Certificate(args) => certificate::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::SynthPictures(args) => pictures::run(&args),
        Command::Validate => validate::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

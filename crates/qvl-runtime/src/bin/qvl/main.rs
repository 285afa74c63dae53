//! The `qvl` program.

mod describe;
mod distance;
mod eval;
mod inspect;
mod output;
mod parity;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use qvl_model::{CpuOptions, Sampling, WeightFormat};
use qvl_runtime::Engine;

use crate::output::Failure;

/// Qwen3-VL on the machine you have.
///
/// Answers questions about pictures and videos, on the CPU, with a downloaded checkpoint or with the tiny
/// one inside the program.
#[derive(Parser)]
#[command(name = "qvl", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  qvl describe digits.png --prompt \"Read the number.\"
  qvl describe photo.jpg --model ~/models/Qwen3-VL-2B-Instruct --prompt \"What is on the sign?\"
  qvl describe --video f1.png f2.png f3.png --fps 2 --model DIR --prompt \"What happens?\"
  qvl describe photo.jpg --model DIR --weights q4 --vision-weights q8
  qvl describe photo.jpg --model Qwen3-VL-2B-Instruct-Q4_K_M.gguf --mmproj mmproj-F16.gguf
  qvl eval --manifest questions.jsonl --model DIR
  qvl distance --manifest questions.jsonl --model DIR --weights q4
  qvl inspect DIR --size 1280x720

The embedded checkpoint knows three questions: \"Read the number.\" (a row of one to four handwritten digits), \
\"Describe the image.\" (two drawn shapes) and \"How many shapes are there?\". For anything else download a Qwen3-VL \
checkpoint and give its folder with --model.

Exit codes: 0 done; 1 an error (one line on stderr says which) or, for parity, out of tolerance; 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Ask a question about pictures or a video; the answer streams to the terminal.
    Describe(describe::Args),
    /// Exact-match accuracy on a file of questions with answers.
    Eval(eval::Args),
    /// How far a faster way of computing is from the exact one: divergence and agreement of what they predict.
    Distance(distance::Args),
    /// What a checkpoint is and what a picture costs, without loading its weights.
    Inspect(inspect::Args),
    /// Compare with transformers, tensor by tensor, on reference cases.
    Parity(parity::Args),
    /// Draw pictures in the terminal.
    Show(show::Args),
}

/// Which network, on how many threads.
#[derive(Args)]
struct ModelArgs {
    /// Checkpoint folder in the Hugging Face layout, or the .gguf file of a language model [default: the
    /// embedded checkpoint].
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: Option<PathBuf>,
    /// The vision tower of a .gguf file [default: the one mmproj*.gguf beside it].
    #[arg(long, value_name = "FILE.gguf", requires = "model")]
    mmproj: Option<PathBuf>,
    /// Compute threads; 0 takes all physical cores. The answer does not depend on it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How the decoder's weights are kept in memory: stored (as the checkpoint has them, in place, nothing to wait
    /// for), bf16 (the same, and an error if they are stored otherwise), q8 (8 bits: half the memory of bf16, next
    /// to no loss), q4 (4 bits, 6 for what is most sensitive: a third of the memory, the fastest answers). q8 and
    /// q4 are made while loading.
    #[arg(long, value_name = "FORMAT", default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// How the vision tower's weights are kept: stored, bf16 or q8. q8 reads pictures faster.
    #[arg(long, value_name = "FORMAT", default_value_t = WeightFormat::Stored, value_parser = vision_format)]
    vision_weights: WeightFormat,
    /// Activations, keys and values in f32 throughout: the mode of the parity tests; slower. Without it, activations
    /// meet q8 and q4 weights in 8 bits, and keys and values are kept in bfloat16.
    #[arg(long)]
    exact: bool,
}

/// The tower loses more by 4 bits than it gains: what is asked for is what is done, or it is refused.
fn vision_format(name: &str) -> Result<WeightFormat, String> {
    match name.parse() {
        Ok(WeightFormat::Q4) => Err("the vision tower takes stored, bf16 or q8".to_owned()),
        Ok(format) => Ok(format),
        Err(error) => Err(error.to_string()),
    }
}

impl ModelArgs {
    /// Opens the network, with a bar on a terminal while weights are quantised.
    fn open(&self) -> anyhow::Result<Engine> {
        let options = CpuOptions {
            threads: self.threads,
            isa: None,
            weights: self.weights,
            vision_weights: self.vision_weights,
            exact: self.exact,
        };
        let quantises = |format| matches!(format, WeightFormat::Q8 | WeightFormat::Q4);
        let bar = if quantises(self.weights) || quantises(self.vision_weights) {
            Some(output::bar(0, "quantising")?)
        } else {
            None
        };
        let progress = |done: usize, all: usize| {
            if let Some(bar) = &bar {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            }
        };
        let engine = Engine::open_with(self.model.as_deref(), self.mmproj.as_deref(), options, &progress);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(engine?)
    }

    /// The same network with weights as stored and everything in f32.
    fn open_exact(&self) -> anyhow::Result<Engine> {
        let options = CpuOptions { threads: self.threads, exact: true, ..CpuOptions::default() };
        Ok(Engine::open_with(self.model.as_deref(), self.mmproj.as_deref(), options, &|_, _| {})?)
    }

    fn name(&self) -> String {
        self.model.as_ref().map_or(qvl_runtime::EMBEDDED_NAME.to_owned(), |dir| dir.display().to_string())
    }
}

/// How tokens are chosen.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// 0 always takes the most probable token (the answer is then always the same); higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the K most probable tokens only; 0 is no limit.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the most probable tokens whose probabilities sum to P.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among tokens at least P times as probable as the most probable.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Make tokens seen before less probable; 1 is off.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Subtract from the logits of tokens of the answer so far; 0 is off.
    #[arg(long, value_name = "R", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Same seed, same answer.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Describe(args) => describe::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Distance(args) => distance::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Show(args) => show::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::OutOfTolerance) => ExitCode::FAILURE,
        // Nobody reads any more: nothing to complain about.
        Err(Failure::Error(error)) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Error(error)) => {
            output::report(&error);
            ExitCode::FAILURE
        }
    }
}

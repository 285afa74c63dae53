//! `counts`: runs one kernel of qvl-model once, for a program that counts instructions.
//!
//! `cargo xtask counts` runs it under valgrind. It counts only what happens inside [`measured_kernel_call`]: that
//! function's name is what it looks for.

use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use qvl_benches::{DECODER_HEADS, noise, tensor};
use qvl_model::backend::cpu::Isa;
use qvl_model::backend::{Backend, KvPart, Linear, Role, WeightPart};
use qvl_model::{Cpu, CpuOptions, WeightFormat};

/// Runs one kernel of qvl-model once, for a program that counts instructions.
#[derive(Parser)]
#[command(name = "counts", after_help = "Use a release build. `cargo xtask counts` does the counting.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One JSON line for each kernel: its name, what it is counted per, and how many of those it has.
    List,
    /// Runs a kernel twice: the first call takes its memory, the second is the one to count.
    Run {
        /// Its name, as `list` has it.
        kernel: String,
        /// portable or avx2: valgrind has no AVX-512.
        #[arg(long, value_name = "NAME")]
        isa: String,
    },
}

/// Outputs and inputs of the matrices: few, since what comes before the counted call runs under valgrind too.
const OUTPUTS: usize = 256;
const INPUTS: usize = 1024;
/// Values of the norm: the width of the 2B shape.
const WIDTH: usize = 2048;
/// What the new row sees, itself included.
const CONTEXT: usize = 256;

#[derive(Clone, Copy)]
enum Kernel {
    Linear { format: &'static str, weights: WeightFormat, role: Role, rows: usize },
    SwiGlu,
    Attention,
    RmsNorm,
}

impl Kernel {
    fn all() -> Vec<Self> {
        let formats = [
            ("bf16", WeightFormat::Bf16, Role::Decoder),
            ("q8", WeightFormat::Q8, Role::Decoder),
            ("q4", WeightFormat::Q4, Role::Decoder),
            ("q6", WeightFormat::Q4, Role::DecoderSensitive),
        ];
        // One row, a few, and so many that rows are packed.
        let linear = formats.into_iter().flat_map(|(format, weights, role)| {
            [1, 12, 48].map(|rows| Self::Linear { format, weights, role, rows })
        });
        linear.chain([Self::SwiGlu, Self::Attention, Self::RmsNorm]).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Linear { format, rows, .. } => format!("linear_{format}_rows{rows}"),
            Self::SwiGlu => "swiglu_bf16_rows1".to_owned(),
            Self::Attention => format!("attention_context{CONTEXT}"),
            Self::RmsNorm => "rms_norm".to_owned(),
        }
    }

    /// What its instructions are counted per, and how many of those there are.
    fn work(self) -> (&'static str, usize) {
        match self {
            Self::Linear { rows, .. } => ("multiply-add", rows * OUTPUTS * INPUTS),
            Self::SwiGlu => ("multiply-add", 2 * OUTPUTS * INPUTS),
            Self::Attention => ("multiply-add", 2 * CONTEXT * DECODER_HEADS.q_width()),
            Self::RmsNorm => ("value", WIDTH),
        }
    }

    fn run(self, isa: Isa) -> Result<()> {
        let weights = match self {
            Self::Linear { weights, .. } => weights,
            Self::SwiGlu | Self::Attention | Self::RmsNorm => WeightFormat::Bf16,
        };
        let cpu = Cpu::with(CpuOptions { threads: 1, isa: Some(isa), weights, ..CpuOptions::default() })?;
        let matrix =
            |role| -> Result<_> { Ok(cpu.matrix(&[WeightPart::whole(tensor(OUTPUTS, INPUTS)?, role)])?) };
        match self {
            Self::Linear { role, rows, .. } => {
                let layer = Linear { weight: matrix(role)?, bias: None };
                let x = cpu.upload(rows, INPUTS, &noise(rows * INPUTS));
                warm_then_measured(&mut || drop(black_box(cpu.linear(&layer, &x))));
            }
            Self::SwiGlu => {
                let (gate, up) = (matrix(Role::Decoder)?, matrix(Role::Decoder)?);
                let x = cpu.upload(1, INPUTS, &noise(INPUTS));
                warm_then_measured(&mut || drop(black_box(cpu.swiglu(&gate, &up, &x))));
            }
            Self::Attention => {
                let shape = DECODER_HEADS;
                let mut kv = cpu.kv(1, shape);
                let qkv = cpu.upload(CONTEXT, shape.qkv_width(), &noise(CONTEXT * shape.qkv_width()));
                let mut y = cpu.buffer(CONTEXT, shape.q_width());
                cpu.kv_attention(&mut [KvPart { kv: &mut kv, rows: 0..CONTEXT }], 0, &qkv, shape, &mut y);
                let qkv = cpu.take_rows(&qkv, &[0]);
                let mut y = cpu.buffer(1, shape.q_width());
                // Forgetting a row is a handful of instructions.
                warm_then_measured(&mut || {
                    cpu.kv_truncate(&mut kv, CONTEXT - 1);
                    cpu.kv_attention(&mut [KvPart { kv: &mut kv, rows: 0..1 }], 0, &qkv, shape, &mut y);
                });
            }
            Self::RmsNorm => {
                let (x, weight) = (cpu.upload(1, WIDTH, &noise(WIDTH)), noise(WIDTH));
                warm_then_measured(&mut || drop(black_box(cpu.rms_norm(&x, &weight, 1e-6))));
            }
        }
        Ok(())
    }
}

fn warm_then_measured(kernel: &mut dyn FnMut()) {
    kernel();
    measured_kernel_call(kernel);
}

/// Has a name in the program, whatever the optimiser thinks of it.
#[inline(never)]
fn measured_kernel_call(kernel: &mut dyn FnMut()) {
    black_box(kernel)();
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::List => {
            let mut out = std::io::stdout().lock();
            for kernel in Kernel::all() {
                let (per, amount) = kernel.work();
                writeln!(
                    out,
                    "{}",
                    serde_json::json!({"kernel": kernel.name(), "per": per, "amount": amount})
                )?;
            }
            Ok(())
        }
        Command::Run { kernel: name, isa } => {
            let kernel = Kernel::all().into_iter().find(|kernel| kernel.name() == *name);
            let kernel =
                kernel.with_context(|| format!("there is no kernel {name}; `counts list` has them"))?;
            kernel.run(Isa::named(isa)?)
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A stderr that is gone leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

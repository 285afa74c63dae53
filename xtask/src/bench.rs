//! `cargo xtask bench`: what the machine can do, how much of it qvl uses, and how other engines compare.
//!
//! Method in docs/benchmarks.md. Every measurement is a process of its own; both sides of a ratio run in turn,
//! round after round, so that a change of the machine's speed meets both.

mod alloc;
mod busy;
mod cache;
mod dataload;
mod evidence;
mod limits;
mod machine;
mod model;
mod peers;
mod plan;
pub(crate) mod probe;
pub(crate) mod process;
mod report;
mod stats;
mod transfer;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::run::say;
use evidence::Evidence;
use machine::Machine;
use peers::Versions;
use plan::{Metric, Plan};
use report::{Report, Row};

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What is measured.
    #[arg(value_enum)]
    suite: Suite,
    /// Fewer rounds and no long measurements: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Write the result to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only metrics whose names begin so; several may be given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Print the metrics with their targets and measure nothing.
    #[arg(long)]
    list: bool,
    /// Rounds, in place of what each measurement has by itself.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Compute threads of every engine; 0 takes all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Checkpoint folder [default: the 2B shape with random weights, written to the target folder once].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    llama: LlamaArgs,
    #[command(flatten)]
    openvino: OpenVinoArgs,
    #[command(flatten)]
    dataload: DataloadArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "llama.cpp (docs/benchmarks.md says how to build it and make its files)")]
struct LlamaArgs {
    /// Its program llama-bench, built for this machine. The other programs are looked for beside it.
    #[arg(long, value_name = "PATH")]
    llama_bench: Option<PathBuf>,
    /// Its program llama-mtmd-cli.
    #[arg(long, value_name = "PATH")]
    llama_mtmd: Option<PathBuf>,
    /// Its program llama-completion.
    #[arg(long, value_name = "PATH")]
    llama_completion: Option<PathBuf>,
    /// llama-bench of a build without AVX-512.
    #[arg(long, value_name = "PATH")]
    llama_bench_avx2: Option<PathBuf>,
    /// llama-mtmd-cli of a build without AVX-512.
    #[arg(long, value_name = "PATH")]
    llama_mtmd_avx2: Option<PathBuf>,
    /// Folder of the same checkpoint as *bf16.gguf, *Q8_0.gguf, *Q4_K_M.gguf and mmproj*f16.gguf.
    #[arg(long, value_name = "DIR")]
    llama_models: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "OpenVINO")]
struct OpenVinoArgs {
    /// A Python that has openvino-genai and Pillow.
    #[arg(long, value_name = "PATH")]
    openvino_python: Option<PathBuf>,
    /// The same checkpoint, exported with 4-bit weights.
    #[arg(long, value_name = "DIR")]
    openvino_model: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "The suite dataload (docs/benchmarks.md says how to prepare the two Pythons)")]
struct DataloadArgs {
    /// A Python that has torch, transformers and Pillow 12.
    #[arg(long, value_name = "PATH")]
    transformers_python: Option<PathBuf>,
    /// A Python that has Pillow-SIMD.
    #[arg(long, value_name = "PATH")]
    pillow_simd_python: Option<PathBuf>,
    /// llama.cpp's resize as a program; xtask/python/build_llama_resize.py makes it of its sources.
    #[arg(long, value_name = "PATH")]
    llama_resize: Option<PathBuf>,
    /// Photographs the loaders read, drawn once [default: 512, with --quick 96].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(8..=100_000))]
    files: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench limits
  cargo xtask bench model --quick
  cargo xtask bench model --list
  cargo xtask bench model --only decode_q4 --llama-bench PATH --llama-models DIR
  cargo xtask bench model --json result.json --llama-bench build/bin/llama-bench \\
      --llama-bench-avx2 build-avx2/bin/llama-bench --llama-models gguf \\
      --openvino-python venv/bin/python --openvino-model ov-int4
  cargo xtask bench dataload --transformers-python venv/bin/python \\
      --pillow-simd-python venv-simd/bin/python --llama-resize llama-resize
  cargo xtask bench cache --quick
  cargo xtask bench transfer --json result.json
  cargo xtask bench alloc --quick

What a peer is needed for and not given is \"not run\", with the flag that is missing. Close other programs first: \
the load average is printed and recorded. The suite model takes 25 minutes, dataload 25, cache 20, transfer 10, alloc 5, with --quick 5, 3, 5, 2 and 1.
Exit code 0 also when a target is missed: figures are a result, not a failure.";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Memory bandwidth, copying and arithmetic of this machine; shown, not judged.
    Limits,
    /// qvl against the machine and against other engines; each metric has a target.
    Model,
    /// Picture files to batches of patches against transformers, torch's DataLoader and other resizers.
    Dataload,
    /// The tiered cache against moka, foyer and plain reads; builds RocksDB and foyer once.
    Cache,
    /// Streaming from a drive against plain reads and a mapped file; overlap, links, overhead.
    Transfer,
    /// Pools against other allocators; fragmentation, trim, and what watching the machine costs.
    Alloc,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let metrics: Vec<Metric> = match args.suite {
        Suite::Limits => limits::metrics(),
        Suite::Model => model::metrics(),
        Suite::Dataload => dataload::metrics(),
        Suite::Cache => cache::metrics(),
        Suite::Transfer => transfer::metrics(),
        Suite::Alloc => alloc::metrics(),
    };
    let wanted = |metric: &Metric| {
        args.only.is_empty() || args.only.iter().any(|start| metric.name.starts_with(start.as_str()))
    };
    let metrics: Vec<Metric> = metrics.into_iter().filter(wanted).collect();
    if metrics.is_empty() {
        bail!("--only {}: no metric has such a name, see --list", args.only.join(","));
    }
    if args.list {
        list(&metrics);
        return Ok(());
    }
    let machine = Machine::read();
    if let Some(load) = machine.load_average.filter(|&load| load > 0.5) {
        say(&format!(
            "note: the load average is {load}: other programs are running, and figures will say less"
        ));
    }
    let setup = probe::Setup::new(args)?;
    let evidence = Evidence::default();
    let plan: Plan<'_> = match args.suite {
        Suite::Limits => limits::plan(&setup),
        Suite::Model => model::plan(args, &setup),
        Suite::Dataload => dataload::plan(args, &setup, &evidence),
        Suite::Cache => cache::plan(&setup, &evidence),
        Suite::Transfer => {
            transfer::prepare(&setup)?;
            transfer::plan(&setup, &evidence)
        }
        Suite::Alloc => alloc::plan(&setup, &evidence),
    };
    let samples = plan.run(&metrics, args.rounds)?;
    let versions = Versions::read(args);
    let row = |metric: &Metric| {
        let row = metric.row(&samples);
        let reference_name = evidence.complete(&versions.complete(&row.reference_name));
        Row { reference_name, ..row }
    };
    let report = Report {
        machine,
        commit: machine::commit()?,
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        results: metrics.iter().map(row).collect(),
    };
    report.print();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
        say(&format!("written to {}", path.display()));
    }
    Ok(())
}

fn list(metrics: &[Metric]) {
    let width = metrics.iter().map(|metric| metric.name.len()).max().unwrap_or(0);
    for metric in metrics {
        let target = match (metric.target, metric.better) {
            (None, _) => "shown".to_owned(),
            (Some(target), stats::Better::Higher) => format!("≥ {target}"),
            (Some(target), stats::Better::Lower) => format!("≤ {target}"),
        };
        say(&format!("{:width$}  {target:>6}  {}", metric.name, metric.what));
    }
}

//! `qvl parity`

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use qvl_model::{Cpu, CpuOptions, Reference};
use qvl_runtime::parity::{self, CaseReport, TOLERANCE, TensorReport};

use crate::output::{self, BAD, BOLD, Failure, GOOD};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of reference cases, or one case: model/, request.json, expected.safetensors.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What computes.
    #[arg(long, value_enum, default_value_t = On::Cpu)]
    backend: On,
    /// Compute threads; 0 takes all physical cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Keys and values in bfloat16, as answers are computed by default, instead of f32 throughout.
    #[arg(long)]
    fast: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum On {
    /// The kernels.
    Cpu,
    /// The naive oracle, with sums in double precision; slow.
    Reference,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let cases = parity::cases(&args.dir)?;
    let options = CpuOptions { threads: args.threads, exact: !args.fast, ..CpuOptions::default() };
    let computed_by = match args.backend {
        On::Cpu => Cpu::with(options)?.isa().name(),
        On::Reference => "reference",
    };
    let bar = output::bar(cases.len(), "comparing")?;
    let mut reports = Vec::with_capacity(cases.len());
    for case in &cases {
        reports.push(match args.backend {
            On::Cpu => parity::run_case(case, Cpu::with(options)?)?,
            On::Reference => parity::run_case(case, Reference)?,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();

    if args.json {
        let exact = !args.fast || matches!(args.backend, On::Reference);
        output::json(&serde_json::json!({
            "tolerance": TOLERANCE,
            "instruction_set": computed_by,
            "exact": exact,
            "cases": reports,
        }))?;
    } else {
        let mut out = anstream::stdout().lock();
        for report in &reports {
            writeln!(out, "{BOLD}{}{BOLD:#}", report.case)?;
            for tensor in &report.tensors {
                let (style, verdict) = if tensor.holds { (GOOD, "holds") } else { (BAD, "FAILS") };
                writeln!(out, "  {style}{verdict}{style:#} {:<16} {}", tensor.tensor, findings(tensor))?;
            }
        }
        let held = reports.iter().filter(|report| report.holds()).count();
        writeln!(
            out,
            "{held} of {} cases within tolerance ({TOLERANCE:e} relative), instructions: {computed_by}",
            reports.len()
        )?;
    }
    if reports.iter().all(CaseReport::holds) { Ok(()) } else { Err(Failure::OutOfTolerance) }
}

fn findings(tensor: &TensorReport) -> String {
    let mut findings = Vec::new();
    if tensor.equal {
        findings.push("equal".to_owned());
    } else if let Some(error) = tensor.relative_error {
        findings.push(format!("largest relative error {error:.2e}"));
    }
    findings.extend(tensor.difference.iter().map(|difference| format!("first difference {difference}")));
    findings.extend(tensor.note.clone());
    findings.join(", ")
}

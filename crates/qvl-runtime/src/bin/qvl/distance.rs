//! `qvl distance`

use std::io::Write;
use std::path::PathBuf;

use qvl_model::backend::cpu::Isa;
use qvl_runtime::distance::{self, Scores};
use qvl_runtime::evaluate;

use crate::ModelArgs;
use crate::output::{self, BOLD, Failure};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Questions as `qvl eval` reads them.
    #[arg(long, value_name = "FILE.jsonl")]
    manifest: PathBuf,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let questions = evaluate::read_manifest(&args.manifest)?;
    let exact = args.model.open_exact()?;
    let other = args.model.open()?;
    let bar = output::bar(questions.len(), "comparing")?;
    let found = distance::distance(&exact, &other, &questions, args.max_tokens, || bar.inc(1));
    bar.finish_and_clear();
    let found = found?;
    if args.json {
        output::json(&serde_json::json!({
            "model": args.model.name(),
            "manifest": args.manifest,
            "weights": args.model.weights.name(),
            "vision_weights": args.model.vision_weights.name(),
            "exact": args.model.exact,
            "questions": questions.len(),
            "instruction_set": Isa::from_env()?.name(),
            "distance": found.distance,
            "tasks": found.tasks,
            "all": found.all,
        }))?;
        return Ok(());
    }
    let mut out = anstream::stdout().lock();
    let distance = found.distance;
    writeln!(
        out,
        "positions            {BOLD}{}{BOLD:#} of {} answers",
        distance.positions,
        questions.len()
    )?;
    writeln!(out, "mean KL divergence   {BOLD}{:.2e}{BOLD:#} nats", distance.mean_kl_divergence)?;
    writeln!(out, "largest              {:.2e} nats", distance.max_kl_divergence)?;
    writeln!(out, "same top token       {BOLD}{:.2} %{BOLD:#}", distance.top1_percent())?;
    writeln!(out, "right answers")?;
    let all = ("all".to_owned(), found.all);
    for (task, Scores { exact, other }) in found.tasks.into_iter().chain([all]) {
        let (right, asked) = (other.right, other.asked);
        writeln!(out, "  {task:<12} {right:>4} of {asked:>4}, exact {:>4}", exact.right)?;
    }
    Ok(())
}

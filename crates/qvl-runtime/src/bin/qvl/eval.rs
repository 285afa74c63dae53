//! `qvl eval`

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use qvl_model::GenerateOptions;
use qvl_runtime::evaluate::{self, Outcome, Score};

use crate::ModelArgs;
use crate::output::{self, BAD, BOLD, DIM, Failure};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line: {"images": [...], "prompt": "...", "answer": "...", "task": "..."}; paths are
    /// relative to the file; {"video": [frames...], "fps": N} for a video.
    #[arg(long, value_name = "FILE.jsonl")]
    manifest: PathBuf,
    /// What another implementation answered, line for line: {"text": "...", "ids": [...]}. Counts equal
    /// answers, token by token.
    #[arg(long, value_name = "FILE.jsonl")]
    reference: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Also list the wrong answers.
    #[arg(long)]
    wrong: bool,
    /// All outcomes as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let questions = evaluate::read_manifest(&args.manifest)?;
    let reference = args.reference.as_ref().map(|path| evaluate::read_reference(path, questions.len()));
    let reference = reference.transpose()?;
    let engine = args.model.open()?;
    let options = GenerateOptions { max_new_tokens: args.max_tokens, ..GenerateOptions::default() };

    let bar = output::bar(questions.len(), "asking")?;
    let start = Instant::now();
    let mut right = 0;
    let outcomes = evaluate::evaluate(&engine, &questions, &options, |outcome| {
        right += usize::from(outcome.right);
        bar.inc(1);
        bar.set_message(format!("{right} right"));
    });
    bar.finish_and_clear();
    let outcomes = outcomes?;
    let seconds = start.elapsed().as_secs_f64();
    let (by_task, all) = evaluate::scores(&outcomes);
    let same = reference.as_ref().map(|reference| {
        let equal = outcomes.iter().zip(reference).filter(|(outcome, ids)| outcome.ids == **ids).count();
        Score { right: equal, asked: outcomes.len() }
    });

    if args.json {
        output::json(&serde_json::json!({
            "model": args.model.name(),
            "manifest": args.manifest,
            "tasks": by_task,
            "all": all,
            "equal_to_reference": same,
            "seconds": seconds,
            "outcomes": outcomes,
        }))?;
        return Ok(());
    }
    let mut out = anstream::stdout().lock();
    if args.wrong {
        for Outcome { place, expected, got, .. } in outcomes.iter().filter(|outcome| !outcome.right) {
            writeln!(out, "{BAD}wrong{BAD:#} {place}: {got:?}, expected {expected:?}")?;
        }
    }
    for (task, score) in &by_task {
        writeln!(out, "{task:<12} {:>4} of {:>4}  {:>6.2} %", score.right, score.asked, score.percent())?;
    }
    writeln!(
        out,
        "{BOLD}{:<12} {:>4} of {:>4}  {:>6.2} %{BOLD:#}",
        "all",
        all.right,
        all.asked,
        all.percent()
    )?;
    if let Some(same) = same {
        writeln!(out, "equal to the reference, token by token: {} of {}", same.right, same.asked)?;
    }
    let rate = outcomes.len() as f64 / seconds;
    writeln!(anstream::stderr(), "{DIM}{seconds:.1} s, {rate:.1} questions/s{DIM:#}")?;
    Ok(())
}

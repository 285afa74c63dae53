//! `qvl describe`

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use qvl_model::{FinishReason, GenerateOptions};
use qvl_runtime::{Conversation, Turn, TurnContent, TurnPart};

use crate::output::{self, DIM, Failure};
use crate::{ModelArgs, SamplingArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pictures: JPEG, PNG, WebP, GIF or BMP, in the order the question speaks of them.
    #[arg(value_name = "IMAGE", required_unless_present_any = ["video", "text_only"])]
    images: Vec<PathBuf>,
    /// What to ask.
    #[arg(long, short, value_name = "TEXT", default_value = "Describe the image.")]
    prompt: String,
    /// What the model is told first about how to behave.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Frames of one video, in order; taken as they are, none left out.
    #[arg(long, value_name = "FRAME", num_args = 1.., requires = "fps")]
    video: Vec<PathBuf>,
    /// Frames a second of --video.
    #[arg(long, value_name = "N", requires = "video")]
    fps: Option<f64>,
    /// Ask without any picture.
    #[arg(long, conflicts_with_all = ["images", "video"])]
    text_only: bool,
    /// Most tokens of the answer.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Tokens of the prompt processed at once; 0 is all. Less needs less memory; the answer is the same.
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefill_chunk: usize,
    /// One JSON object with the answer, its tokens and timings, instead of streamed text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let options = GenerateOptions {
        max_new_tokens: args.max_tokens,
        sampling: args.sampling.sampling(),
        prefill_chunk: args.prefill_chunk,
        ignore_eos: false,
    };
    options.sampling.check()?;

    let start = Instant::now();
    let engine = args.model.open()?;
    let load = start.elapsed();

    let start = Instant::now();
    let prompt = engine.prepare(&conversation(args))?;
    let prepare = start.elapsed();

    let mut out = std::io::stdout().lock();
    let is_terminal = out.is_terminal();
    let (mut broken, mut begun) = (None, false);
    let answer = engine.answer_prompt(&prompt, &options, prepare, |piece| {
        begun = true;
        if !args.json {
            let shown = if is_terminal { output::printable(piece) } else { piece.into() };
            broken = write!(out, "{shown}").and_then(|()| out.flush()).err();
        }
        if broken.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    // The line ends after an answer, and after what there is of one; without any, stdout stays empty.
    if !args.json && broken.is_none() && (begun || answer.is_ok()) {
        broken = writeln!(out).err();
    }
    drop(out);
    let answer = answer.context("the answer was not finished")?;
    if let Some(error) = broken {
        return Err(error.into());
    }

    let timings = answer.timings;
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    // The first token comes out of the prefill; the decode steps make the others.
    let steps = match answer.finish {
        // The end token took a step of its own.
        FinishReason::Stop => answer.ids.len(),
        FinishReason::Length | FinishReason::Cancelled => answer.ids.len().saturating_sub(1),
    };
    let decode_rate = rate(steps, timings.decode.as_secs_f64());
    let finish = match answer.finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    };
    if args.json {
        output::json(&serde_json::json!({
            "model": args.model.name(),
            "answer": answer.text,
            "finish_reason": finish,
            "tokens": answer.ids,
            "prompt_tokens": prompt.len(),
            "visual_tokens": prompt.visual_tokens.len(),
            "load_seconds": load.as_secs_f64(),
            "prepare_seconds": timings.prepare.as_secs_f64(),
            "prefill_seconds": timings.prefill.as_secs_f64(),
            "decode_seconds": timings.decode.as_secs_f64(),
            "prefill_tokens_per_second": rate(prompt.len(), timings.prefill.as_secs_f64()),
            "decode_tokens_per_second": decode_rate,
            "peak_resident_bytes": output::peak_resident_bytes(),
        }))?;
    } else {
        let cut = if answer.finish == FinishReason::Length { "; cut off, see --max-tokens" } else { "" };
        writeln!(
            anstream::stderr(),
            "{DIM}{} prompt tokens ({} visual), {} answered{cut} · load {}, prepare {}, first token {}, then \
             {decode_rate:.1} tokens/s{DIM:#}",
            prompt.len(),
            prompt.visual_tokens.len(),
            answer.ids.len(),
            output::seconds(load),
            output::seconds(timings.prepare),
            output::seconds(timings.prefill),
        )?;
    }
    Ok(())
}

fn conversation(args: &Args) -> Conversation {
    let mut parts: Vec<TurnPart> = args.images.iter().cloned().map(TurnPart::Image).collect();
    if let (false, Some(fps)) = (args.video.is_empty(), args.fps) {
        parts.push(TurnPart::Video { frames: args.video.clone(), fps });
    }
    parts.push(TurnPart::Text(args.prompt.clone()));
    let system = args
        .system
        .iter()
        .map(|text| Turn { role: "system".to_owned(), content: TurnContent::Text(text.clone()) });
    let user = Turn { role: "user".to_owned(), content: TurnContent::Parts(parts) };
    Conversation { turns: system.chain([user]).collect() }
}

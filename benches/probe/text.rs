//! Decode, prefill, first token.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use qvl_model::decoder::{Chunk, LogitRows};
use qvl_model::kv::KvCache;
use qvl_model::mrope::Position;
use qvl_model::{Cpu, GenerateOptions, Message, Part};
use serde_json::json;

use crate::backend::{self, Network};
use crate::{ModelArgs, emit};

/// Tokens of the fresh prompt in front of a decode.
const PROMPT_TOKENS: usize = 8;
/// Steps that are not timed: the first touches every page of the weights.
const WARM_UP_STEPS: usize = 3;

#[derive(clap::Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences decoded together; several numbers are measured one after the other.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,
    /// Tokens of each sequence.
    #[arg(long, value_name = "T", default_value_t = 32)]
    tokens: usize,
    /// Stop after so many seconds, with the tokens there are by then; 0 has no limit.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    limit: f64,
    /// Then also the prefill of a prompt of so many tokens; 0 is none. Saves loading the weights again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefill: usize,
}

#[derive(clap::Args)]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// Timed runs, each with another prompt; one more is not timed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repetitions: usize,
}

#[derive(clap::Args)]
pub(crate) struct FirstTokenArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What to ask.
    #[arg(long, value_name = "TEXT", default_value = "What is the capital of France?")]
    prompt: String,
}

pub(crate) fn decode(args: &DecodeArgs) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens 0: nothing to measure");
    let network = Network::open(&args.model)?;
    for &count in &args.sequences {
        ensure!(count > 0, "--sequences 0: nothing to decode");
        let mut batch = Batch::start(&network, count)?;
        for _ in 0..WARM_UP_STEPS {
            batch.step()?;
        }
        let start = Instant::now();
        let mut steps = Vec::with_capacity(args.tokens);
        while steps.len() < args.tokens
            && (args.limit == 0.0 || start.elapsed().as_secs_f64() < args.limit || steps.is_empty())
        {
            let step = Instant::now();
            batch.step()?;
            steps.push(step.elapsed().as_secs_f64());
        }
        let seconds = start.elapsed().as_secs_f64();
        let decoded = steps.len();
        steps.sort_by(f64::total_cmp);
        emit(&json!({
            "metric": "decode",
            "weights": args.model.weights.name(),
            "isa": network.isa,
            "threads": network.threads,
            "sequences": count,
            "tokens": decoded,
            "tokens_per_second": (count * decoded) as f64 / seconds,
            "step_seconds_median": steps[decoded / 2],
            "weight_bytes_per_token": network.bytes.per_token,
        }))?;
    }
    if args.prefill > 0 {
        prefill_on(&network, &args.model, args.prefill, 1)?;
    }
    Ok(())
}

pub(crate) fn prefill(args: &PrefillArgs) -> Result<()> {
    ensure!(args.tokens > 0 && args.repetitions > 0, "nothing to measure");
    prefill_on(&Network::open(&args.model)?, &args.model, args.tokens, args.repetitions)
}

fn prefill_on(network: &Network, model: &ModelArgs, tokens: usize, repetitions: usize) -> Result<()> {
    for repetition in 0..=repetitions {
        let start = Instant::now();
        let mut cache = network.kv_cache();
        let ids = fresh_ids(network.config.text.vocab_size, repetition, tokens);
        append(&mut cache, &ids, |chunk| network.forward(chunk))?;
        let seconds = start.elapsed().as_secs_f64();
        // The first run finds the buffers for the others.
        if repetition > 0 {
            emit(&json!({
                "metric": "prefill",
                "weights": model.weights.name(),
                "isa": network.isa,
                "threads": network.threads,
                "tokens": tokens,
                "tokens_per_second": tokens as f64 / seconds,
            }))?;
        }
    }
    Ok(())
}

pub(crate) fn first_token(args: &FirstTokenArgs) -> Result<()> {
    let start = Instant::now();
    let model = backend::open_model(&args.model)?;
    let load = start.elapsed().as_secs_f64();
    let prompt = model.prompt(&[Message::user([Part::text(&args.prompt)])], Vec::new())?;
    let options = GenerateOptions { max_new_tokens: 1, ignore_eos: true, ..GenerateOptions::default() };
    let token = model.generate(&prompt, &options)?.next().context("no token")??;
    emit(&json!({
        "metric": "first_token",
        "weights": args.model.weights.name(),
        "prompt_tokens": prompt.len(),
        "load_seconds": load,
        "seconds": start.elapsed().as_secs_f64(),
        "token": token.id,
    }))
}

/// Sequences that are decoded together, greedily.
struct Batch<'n> {
    network: &'n Network,
    caches: Vec<KvCache<Cpu>>,
    last: Vec<u32>,
}

impl<'n> Batch<'n> {
    /// Prefills `count` different prompts.
    fn start(network: &'n Network, count: usize) -> Result<Self> {
        let mut batch = Self { network, caches: Vec::new(), last: Vec::new() };
        for sequence in 0..count {
            let mut cache = network.kv_cache();
            let ids = fresh_ids(network.config.text.vocab_size, sequence, PROMPT_TOKENS);
            let logits = append(&mut cache, &ids, |chunk| network.forward(chunk))?;
            batch.caches.push(cache);
            batch.last.push(most_probable(&logits));
        }
        Ok(batch)
    }

    /// One more token for every sequence, in one step of the decoder.
    fn step(&mut self) -> Result<()> {
        let positions: Vec<[Position; 1]> = self.caches.iter().map(|cache| [cache.next_position()]).collect();
        let mut chunks: Vec<Chunk<'_, Cpu>> = self
            .caches
            .iter_mut()
            .zip(self.last.chunks(1))
            .zip(&positions)
            .map(|((cache, ids), positions)| Chunk {
                cache,
                ids,
                positions,
                visual: None,
                logits: LogitRows::Last,
            })
            .collect();
        let logits = self.network.forward(&mut chunks)?;
        drop(chunks);
        for (last, row) in self.last.iter_mut().zip(logits.chunks(self.network.config.text.vocab_size)) {
            *last = most_probable(row);
        }
        Ok(())
    }
}

/// Appends tokens to a sequence; the logits of the last.
pub(crate) fn append(
    cache: &mut KvCache<Cpu>,
    ids: &[u32],
    forward: impl FnOnce(&mut [Chunk<'_, Cpu>]) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let first = cache.next_position()[0];
    let positions: Vec<Position> = (0..ids.len()).map(|index| [first + index as u32; 3]).collect();
    forward(&mut [Chunk { cache, ids, positions: &positions, visual: None, logits: LogitRows::Last }])
}

/// Ids of ordinary tokens that look like no other call's: nothing computed before can be used again.
pub(crate) fn fresh_ids(vocab_size: usize, seed: usize, count: usize) -> Vec<u32> {
    // The special tokens stand at the end of the vocabulary.
    let ordinary = (vocab_size as u32 / 2).max(1);
    let mut state = (seed as u32).wrapping_mul(0x9e37_79b9).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % ordinary
        })
        .collect()
}

fn most_probable(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

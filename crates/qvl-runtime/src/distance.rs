//! How far a faster way of computing is from the exact one, on the same inputs.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use qvl_model::backend::Backend;
use qvl_model::decoder::{Chunk, LogitRows};
use qvl_model::{FinishReason, GenerateOptions, Prompt};
use serde::Serialize;

use crate::engine::Engine;
use crate::error::Result;
use crate::evaluate::{Question, Score};

/// The distance of one way of computing from another, over the positions of some answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distance {
    /// Tokens that were predicted by both.
    pub positions: usize,
    /// `mean Σ p ln(p / q)` in nats, `p` the probabilities of the exact one.
    pub mean_kl_divergence: f64,
    /// The largest of those sums.
    pub max_kl_divergence: f64,
    /// Positions at which both find the same token the most probable.
    pub top1_agreement: usize,
}

impl Distance {
    /// Share of positions with the same most probable token, in per cent; 0 if there are none.
    pub fn top1_percent(&self) -> f64 {
        if self.positions == 0 { 0.0 } else { 100.0 * self.top1_agreement as f64 / self.positions as f64 }
    }

    fn add(&mut self, exact: &[f32], other: &[f32]) {
        let kl = kl_divergence(exact, other);
        self.mean_kl_divergence =
            (self.mean_kl_divergence * self.positions as f64 + kl) / (self.positions + 1) as f64;
        self.max_kl_divergence = self.max_kl_divergence.max(kl);
        self.positions += 1;
        self.top1_agreement += usize::from(most_probable(exact) == most_probable(other));
    }
}

/// Two ways of computing on the same questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// How far apart their predictions are, both given the answers of the exact one.
    pub distance: Distance,
    /// Right answers by task, each way answering for itself.
    pub tasks: BTreeMap<String, Scores>,
    /// Right answers in all.
    pub all: Scores,
}

/// Right answers of two ways of computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scores {
    /// Of the exact one.
    pub exact: Score,
    /// Of the other.
    pub other: Score,
}

/// Lets `exact` answer each question greedily, gives `other` the same tokens, and compares what both predict at
/// each of them and at the answer's end. Then `other` answers too. `progress` is called after each question.
///
/// # Errors
/// What either fails with.
pub fn distance<A: Backend, B: Backend>(
    exact: &Engine<A>,
    other: &Engine<B>,
    questions: &[Question],
    max_new_tokens: usize,
    mut progress: impl FnMut(),
) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    for question in questions {
        let prompt = exact.prepare(&question.conversation)?;
        let mut generation = exact.model().generate(&prompt, &options)?;
        let (mut ids, mut text, mut expected) = (Vec::new(), String::new(), Vec::new());
        while let Some(token) = generation.next() {
            let token = token?;
            ids.push(token.id);
            text.push_str(&token.text);
            expected.push(generation.logits().to_vec());
        }
        text.push_str(&generation.rest());
        // Where to end is predicted like any token.
        if generation.finish_reason() == Some(FinishReason::Stop) {
            expected.push(generation.logits().to_vec());
        }
        let got = predictions(other, &prompt, &ids, expected.len())?;
        for (exact, other) in expected.iter().zip(got.chunks_exact(exact.model().config().text.vocab_size)) {
            comparison.distance.add(exact, other);
        }
        let answer = other.answer_prompt(&prompt, &options, Duration::ZERO, |_| ControlFlow::Continue(()))?;
        let task = comparison.tasks.entry(question.task.clone()).or_default();
        for scores in [task, &mut comparison.all] {
            scores.exact.count(question.is_right(&text));
            scores.other.count(question.is_right(&answer.text));
        }
        progress();
    }
    Ok(comparison)
}

/// Logits of the first `positions` predictions after the prompt, each given those of `ids` before it,
/// `[positions, vocab_size]`; there is at most one more than ids.
fn predictions<B: Backend>(
    engine: &Engine<B>,
    prompt: &Prompt,
    ids: &[u32],
    positions: usize,
) -> Result<Vec<f32>> {
    if positions == 0 {
        return Ok(Vec::new());
    }
    let model = engine.model();
    let visual = model.encode(prompt)?;
    let mut cache = model.kv_cache();
    let mut logits = model.prefill(&mut cache, prompt, visual.as_ref(), 0, LogitRows::Last)?;
    let given = &ids[..positions - 1];
    if !given.is_empty() {
        let [first, ..] = cache.next_position();
        let positions: Vec<[u32; 3]> = (first..).take(given.len()).map(|position| [position; 3]).collect();
        let chunk = Chunk {
            cache: &mut cache,
            ids: given,
            positions: &positions,
            visual: None,
            logits: LogitRows::All,
        };
        logits.extend(model.forward(&mut [chunk])?);
    }
    Ok(logits)
}

/// `Σ p ln(p / q)` in nats of the distributions with these logits.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        f64::from(max) + sum.ln()
    };
    let (of_p, of_q) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let log_p = f64::from(p) - of_p;
        log_p.exp() * (log_p - (f64::from(q) - of_q))
    });
    // Rounding may leave it a little below zero.
    terms.sum::<f64>().max(0.0)
}

fn most_probable(logits: &[f32]) -> Option<usize> {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_formula() {
        assert_eq!(kl_divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]), 0.0);
        // p = (3/4, 1/4), q = (1/2, 1/2)
        let got = kl_divergence(&[3f32.ln(), 0.0], &[0.0, 0.0]);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((got - expected).abs() < 1e-7, "{got} {expected}");
    }

    #[test]
    fn positions_are_counted_and_averaged() {
        let mut distance = Distance::default();
        distance.add(&[0.0, 1.0], &[0.0, 1.0]);
        distance.add(&[3f32.ln(), 0.0], &[0.0, 0.1]);
        assert_eq!((distance.positions, distance.top1_agreement), (2, 1));
        assert!((distance.top1_percent() - 50.0).abs() < 1e-12);
        assert!((distance.mean_kl_divergence * 2.0 - distance.max_kl_divergence).abs() < 1e-12);
    }
}

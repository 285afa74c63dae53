//! From logits to the next token.

use std::collections::HashSet;

use crate::error::{Error, Result};

/// How the next token is chosen. The default is greedy: the largest logit, the lower id on a tie.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are eligible; 0 is no limit.
    pub top_k: usize,
    /// Only the most probable tokens whose probabilities first reach this sum; 1 is no limit.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable; 0 is no limit.
    pub min_p: f32,
    /// Logits of tokens seen in the prompt or the answer are divided (positive) or multiplied (negative) by
    /// it; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the answer; 0 is off.
    pub presence_penalty: f32,
    /// The same seed gives the same answer, alone or in a batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the option.
    pub fn check(&self) -> Result<()> {
        let range = |option, value: f32, ok: bool, expected| {
            if ok { Ok(()) } else { Err(Error::Sampling { option, got: value.to_string(), expected }) }
        };
        let t = self.temperature;
        range("temperature", t, t.is_finite() && t >= 0.0, "0 or more")?;
        range("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1")?;
        range("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1")?;
        let r = self.repetition_penalty;
        range("repetition_penalty", r, r.is_finite() && r > 0.0, "above 0")?;
        range("presence_penalty", self.presence_penalty, self.presence_penalty.is_finite(), "a number")
    }
}

/// Chooses the tokens of one answer.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    seen_in_prompt: HashSet<u32>,
    seen_in_answer: HashSet<u32>,
    step: u64,
}

impl Sampler {
    /// A sampler for an answer to the given prompt.
    ///
    /// # Errors
    /// [`Error::Sampling`] if an option is out of range.
    pub fn new(options: Sampling, prompt: &[u32]) -> Result<Self> {
        options.check()?;
        Ok(Self {
            options,
            seen_in_prompt: prompt.iter().copied().collect(),
            seen_in_answer: HashSet::new(),
            step: 0,
        })
    }

    /// The next token. `logits`: `[vocab_size]`, changed in place by the penalties.
    ///
    /// Order: repetition penalty, presence penalty, temperature, top-k, top-p, min-p: that of transformers, which
    /// has no presence penalty. Of equal logits at the edge of top-k the lower id stays.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or infinite.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::NotFinite { place: format!("logits of answer token {}", self.step), row: 0 });
        }
        self.penalise(logits);
        let chosen = if self.options.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        self.seen_in_answer.insert(chosen);
        self.step += 1;
        Ok(chosen)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, .. } = self.options;
        if repetition_penalty != 1.0 {
            for &id in self.seen_in_prompt.union(&self.seen_in_answer) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit =
                        if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
                }
            }
        }
        if presence_penalty != 0.0 {
            for &id in &self.seen_in_answer {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -= presence_penalty;
                }
            }
        }
    }

    fn draw(&self, logits: &[f32]) -> u32 {
        let options = &self.options;
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, &logit)| (id as u32, f64::from(logit) / f64::from(options.temperature)))
            .collect();
        let by_value = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if options.top_k > 0 && options.top_k < candidates.len() {
            candidates.select_nth_unstable_by(options.top_k - 1, by_value);
            candidates.truncate(options.top_k);
        }
        candidates.sort_unstable_by(by_value);

        let max = candidates[0].1;
        for (_, value) in &mut candidates {
            *value = (*value - max).exp();
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut before = 0.0;
        let kept = candidates
            .iter()
            .take_while(|(_, weight)| {
                let eligible =
                    before < f64::from(options.top_p) * total && *weight >= f64::from(options.min_p);
                before += weight;
                eligible
            })
            .count()
            .max(1);
        candidates.truncate(kept);

        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = uniform(options.seed, self.step) * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        candidates[candidates.len() - 1].0
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// A number in [0, 1) that depends on seed and step alone, so that an answer does not depend on what else
/// was sampled: SplitMix64's finaliser over `mix(seed) + (step + 1) * golden ratio`.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), figure 17.
fn uniform(seed: u64, step: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let z = mix(mix(seed).wrapping_add(step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(options: &Sampling, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0u32; logits.len()];
        for seed in 0..draws {
            let mut sampler = Sampler::new(Sampling { seed, ..options.clone() }, &[]).unwrap();
            counts[sampler.choose(&mut logits.to_vec()).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / draws as f64).collect()
    }

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 0.0];
    /// softmax of `LOGITS`
    const PROBABILITIES: [f64; 4] = [0.0871, 0.6439, 0.2369, 0.0321];

    #[test]
    fn greedy_takes_the_largest_and_the_lower_id_on_a_tie() {
        let mut sampler = Sampler::new(Sampling::default(), &[]).unwrap();
        assert_eq!(sampler.choose(&mut [0.0, 5.0, 5.0]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let seen = frequencies(&Sampling { temperature: 1.0, ..Sampling::default() }, &LOGITS, 20_000);
        for (seen, expected) in seen.iter().zip(PROBABILITIES) {
            assert!((seen - expected).abs() < 0.015, "{seen} {expected}");
        }
    }

    #[test]
    fn limits_cut_the_tail() {
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(frequencies(&Sampling { top_k: 2, ..warm.clone() }, &LOGITS, 2_000)[0], 0.0);
        // 0.6439 < 0.7: the second token is needed to reach the sum, the third is not.
        let top_p = frequencies(&Sampling { top_p: 0.7, ..warm.clone() }, &LOGITS, 2_000);
        assert!(top_p[2] > 0.0 && top_p[0] == 0.0 && top_p[3] == 0.0, "{top_p:?}");
        // 0.2369 / 0.6439 = 0.368, 0.0871 / 0.6439 = 0.135
        let min_p = frequencies(&Sampling { min_p: 0.3, ..warm.clone() }, &LOGITS, 2_000);
        assert!(min_p[2] > 0.0 && min_p[0] == 0.0, "{min_p:?}");
        let cold = frequencies(&Sampling { temperature: 0.01, ..warm }, &LOGITS, 200);
        assert_eq!(cold[1], 1.0);
    }

    #[test]
    fn penalties_hit_what_was_seen() {
        let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(repetition, &[1]).unwrap();
        assert_eq!(sampler.choose(&mut LOGITS.to_vec()).unwrap(), 2);
        let mut negative = [-1.0, -0.8];
        Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }, &[1])
            .unwrap()
            .choose(&mut negative)
            .unwrap();
        assert_eq!(negative, [-1.0, -1.6]);
        let presence = Sampling { presence_penalty: 1.5, ..Sampling::default() };
        let mut sampler = Sampler::new(presence, &[1]).unwrap();
        assert_eq!(sampler.choose(&mut LOGITS.to_vec()).unwrap(), 1, "the prompt does not count");
        assert_eq!(sampler.choose(&mut LOGITS.to_vec()).unwrap(), 2, "the answer does");
    }

    #[test]
    fn one_seed_one_answer() {
        let options = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let answer = || {
            let mut sampler = Sampler::new(options.clone(), &[]).unwrap();
            (0..32).map(|_| sampler.choose(&mut [0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(answer(), answer());
        assert!(answer().iter().collect::<HashSet<_>>().len() > 10);
    }

    #[test]
    fn bad_options_and_broken_logits_are_errors() {
        for options in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ] {
            assert!(matches!(Sampler::new(options, &[]), Err(Error::Sampling { .. })));
        }
        let mut sampler = Sampler::new(Sampling::default(), &[]).unwrap();
        assert!(matches!(sampler.choose(&mut [0.0, f32::NAN]), Err(Error::NotFinite { .. })));
    }
}

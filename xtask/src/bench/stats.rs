//! Medians, a bootstrap interval, the noise floor, and what follows from them. No clock, no I/O.

use serde::Serialize;

/// In which direction a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What a measurement says about a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    #[serde(rename = "holds")]
    Holds,
    #[serde(rename = "falls short")]
    FallsShort,
    #[serde(rename = "inconclusive")]
    Inconclusive,
    #[serde(rename = "not run")]
    NotRun,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::FallsShort => "falls short",
            Self::Inconclusive => "inconclusive",
            Self::NotRun => "not run",
        }
    }
}

/// A ratio of medians with its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Resamples a ratio is estimated from: the ends of the interval then move by less than they are shown with.
const RESAMPLES: usize = 4000;
/// The same figures give the same interval.
const SEED: u64 = 0x71_76_6c;

/// The middle value, or the mean of the two in the middle. `NaN` of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        (_, middle) => sorted[middle],
    }
}

/// `median(over) / median(under)`. Sides with equally many runs were interleaved: a round is drawn as a whole,
/// so a drift that both sides share cancels. Otherwise each side is drawn for itself.
pub(crate) fn ratio(over: &[f64], under: &[f64]) -> Ratio {
    let value = median(over) / median(under);
    let mut random = SplitMix(SEED);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let over_drawn: Vec<usize> = over.iter().map(|_| random.below(over.len())).collect();
            let under_drawn = if over.len() == under.len() {
                over_drawn.clone()
            } else {
                under.iter().map(|_| random.below(under.len())).collect()
            };
            let drawn = |values: &[f64], indices: &[usize]| {
                median(&indices.iter().map(|&index| values[index]).collect::<Vec<_>>())
            };
            drawn(over, &over_drawn) / drawn(under, &under_drawn)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
    Ratio { value, low: at(0.025), high: at(0.975) }
}

/// The reference against itself: its runs are split into halves in every possible way, and the mean distance
/// of the halves' ratio from 1 is what counts as no difference. 0 of fewer than two runs.
pub(crate) fn noise(reference: &[f64]) -> f64 {
    let count = reference.len();
    if count < 2 {
        return 0.0;
    }
    // Twenty runs have more halves than are needed; the first sixteen say enough.
    let count = count.min(16);
    let half = count / 2;
    let distances: Vec<f64> = (1u32..1 << count)
        .filter(|set| set.count_ones() as usize == half)
        .map(|set| {
            let (a, b): (Vec<usize>, Vec<usize>) = (0..count).partition(|&run| set >> run & 1 == 1);
            let median_of =
                |runs: &[usize]| median(&runs.iter().map(|&run| reference[run]).collect::<Vec<_>>());
            let (a, b) = (median_of(&a), median_of(&b));
            // Also of nothing and nothing.
            if a == b { 0.0 } else { (a / b - 1.0).abs() }
        })
        .collect();
    distances.iter().sum::<f64>() / distances.len() as f64
}

/// The verdict on a ratio of `runs` runs a side, and why. Without a target nothing is judged.
pub(crate) fn judge(
    ratio: Ratio,
    noise: f64,
    runs: usize,
    target: Option<f64>,
    better: Better,
) -> (Verdict, String) {
    let Some(target) = target else {
        return (Verdict::Inconclusive, "shown, not judged: it has no target".to_owned());
    };
    let Ratio { value, low, high } = ratio;
    if !(value.is_finite() && low.is_finite() && high.is_finite()) {
        return (Verdict::Inconclusive, format!("the ratio is {value}"));
    }
    if runs < 2 {
        return (Verdict::Inconclusive, "one run has no spread".to_owned());
    }
    let distance = (value / target - 1.0).abs();
    if distance < noise {
        let why = format!(
            "{:.1} % from the target, while the reference differs from itself by {:.1} %",
            100.0 * distance,
            100.0 * noise
        );
        return (Verdict::Inconclusive, why);
    }
    let (holds, fails) = match better {
        Better::Higher => (low >= target, high < target),
        Better::Lower => (high <= target, low > target),
    };
    match (holds, fails) {
        (true, _) => (Verdict::Holds, String::new()),
        (_, true) => (Verdict::FallsShort, format!("{} the target {target}", side(value, target))),
        _ => (Verdict::Inconclusive, format!("{low:.3} to {high:.3} contains the target {target}")),
    }
}

fn side(value: f64, target: f64) -> &'static str {
    if value < target { "below" } else { "above" }
}

/// Random numbers that are the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_interval_holds_the_ratio_and_repeats() {
        let ours = [20.0, 21.0, 19.5, 20.5, 20.2];
        let reference = [10.0, 10.4, 9.9, 10.1, 10.2];
        let first = ratio(&ours, &reference);
        assert_eq!(first, ratio(&ours, &reference));
        assert_eq!(first.value, 2.0);
        assert!(first.low <= 2.0 && 2.0 <= first.high, "{first:?}");
        assert!(first.low > 1.85 && first.high < 2.1, "{first:?}");
    }

    #[test]
    fn a_drift_that_both_sides_share_cancels() {
        // Both sides lose speed from round to round, the ratio stays.
        let reference = [10.0, 9.0, 8.0, 7.0, 6.0];
        let ours = reference.map(|rate| 1.5 * rate);
        let paired = ratio(&ours, &reference);
        assert!((paired.low - 1.5).abs() < 1e-12 && (paired.high - 1.5).abs() < 1e-12, "{paired:?}");
        // With another number of runs the rounds cannot be matched.
        assert!(ratio(&ours[..4], &reference).high > 1.6);
    }

    #[test]
    fn sides_without_spread_have_a_point_for_an_interval() {
        assert_eq!(ratio(&[3.0; 4], &[2.0; 4]), Ratio { value: 1.5, low: 1.5, high: 1.5 });
    }

    #[test]
    fn noise_is_the_reference_against_itself() {
        assert_eq!(noise(&[5.0; 5]), 0.0);
        assert_eq!(noise(&[0.0; 5]), 0.0);
        assert_eq!(noise(&[5.0]), 0.0);
        // Two runs, two ways to take one of them: 11/10 - 1 and 1 - 10/11.
        assert!((noise(&[10.0, 11.0]) - (0.1 + 1.0 / 11.0) / 2.0).abs() < 1e-12);
        assert!(noise(&[10.0, 12.0, 9.0, 13.0]) > noise(&[10.0, 10.2, 9.9, 10.1]));
        assert!(noise(&[10.0; 40]) == 0.0);
    }

    fn check(value: [f64; 3], noise: f64, target: f64, better: Better, expected: Verdict) {
        let [low, value, high] = value;
        let (verdict, why) = judge(Ratio { value, low, high }, noise, 5, Some(target), better);
        assert_eq!(verdict, expected, "{low} {value} {high}, noise {noise}, target {target}: {why}");
        assert_eq!(why.is_empty(), verdict == Verdict::Holds, "{why}");
    }

    #[test]
    fn an_interval_beyond_the_target_decides() {
        check([1.1, 1.2, 1.3], 0.01, 1.0, Better::Higher, Verdict::Holds);
        check([1.0, 1.2, 1.3], 0.01, 1.0, Better::Higher, Verdict::Holds);
        check([0.7, 0.8, 0.9], 0.01, 1.0, Better::Higher, Verdict::FallsShort);
        check([0.9, 1.1, 1.3], 0.01, 1.0, Better::Higher, Verdict::Inconclusive);
    }

    #[test]
    fn where_lower_is_better_the_sides_change() {
        check([0.3, 0.4, 0.45], 0.01, 0.5, Better::Lower, Verdict::Holds);
        check([0.6, 0.7, 0.8], 0.01, 0.5, Better::Lower, Verdict::FallsShort);
        check([0.4, 0.45, 0.6], 0.01, 0.5, Better::Lower, Verdict::Inconclusive);
    }

    #[test]
    fn a_difference_within_the_noise_decides_nothing() {
        check([1.01, 1.02, 1.03], 0.05, 1.0, Better::Higher, Verdict::Inconclusive);
        check([0.97, 0.98, 0.99], 0.05, 1.0, Better::Higher, Verdict::Inconclusive);
        check([1.05, 1.06, 1.07], 0.05, 1.0, Better::Higher, Verdict::Holds);
    }

    #[test]
    fn nothing_is_judged_without_target_spread_or_number() {
        let ratio = Ratio { value: 2.0, low: 2.0, high: 2.0 };
        assert_eq!(judge(ratio, 0.0, 5, None, Better::Higher).0, Verdict::Inconclusive);
        assert_eq!(judge(ratio, 0.0, 1, Some(1.0), Better::Higher).0, Verdict::Inconclusive);
        let ratio = Ratio { value: f64::NAN, ..ratio };
        assert_eq!(judge(ratio, 0.0, 5, Some(1.0), Better::Higher).0, Verdict::Inconclusive);
    }
}

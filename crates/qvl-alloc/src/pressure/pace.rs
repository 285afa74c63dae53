//! How long to sleep between two looks: pure, time is passed in.

use std::time::Duration;

/// From how fast memory went, when to look next.
///
/// ```text
/// rate = max(what went since the last look, rate before, halved every 10 s)
/// next = half of available / rate, between fast and slow; fast where memory is low
/// ```
///
/// Half: so that there is one more look before the limit. The rate fades, since a start that loaded a model should
/// not have the machine looked at twenty times a second for the rest of the day.
#[derive(Clone, Debug)]
pub struct Pace {
    fast: Duration,
    slow: Duration,
    /// From this share on it is always fast.
    fast_share: f64,
    rate_bytes_per_s: f64,
    available_bytes: Option<u64>,
}

impl Pace {
    /// Looks between `fast` and `slow`, and always fast from `fast_share` of [`Reading::share`] on.
    ///
    /// [`Reading::share`]: super::Reading::share
    pub fn new(fast: Duration, slow: Duration, fast_share: f64) -> Self {
        Self { fast, slow: slow.max(fast), fast_share, rate_bytes_per_s: RATE_ASSUMED, available_bytes: None }
    }

    /// The fastest that memory went, in bytes a second, older rates counting less.
    pub fn rate_bytes_per_s(&self) -> f64 {
        self.rate_bytes_per_s
    }

    /// How long to sleep after what was seen `elapsed` after the look before.
    pub fn next(&mut self, available_bytes: Option<u64>, share: Option<f64>, elapsed: Duration) -> Duration {
        let elapsed_s = elapsed.as_secs_f64().max(ELAPSED_S_MIN);
        let faded = self.rate_bytes_per_s * 0.5_f64.powf(elapsed_s / HALF_LIFE_S);
        let went = match (self.available_bytes, available_bytes) {
            (Some(before), Some(now)) => before.saturating_sub(now) as f64 / elapsed_s,
            _ => 0.0,
        };
        self.rate_bytes_per_s = faded.max(went);
        self.available_bytes = available_bytes.or(self.available_bytes);
        if share.is_some_and(|share| share >= self.fast_share) {
            return self.fast;
        }
        let Some(available) = available_bytes else { return self.slow };
        let left_s = available as f64 / self.rate_bytes_per_s.max(1.0) / 2.0;
        Duration::try_from_secs_f64(left_s).unwrap_or(self.slow).clamp(self.fast, self.slow)
    }
}

/// Before anything was seen: what a thread that writes to new pages takes.
const RATE_ASSUMED: f64 = 1e9;
const HALF_LIFE_S: f64 = 10.0;
/// Two looks right after each other say nothing about a rate.
const ELAPSED_S_MIN: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn pace() -> Pace {
        Pace::new(Duration::from_millis(25), Duration::from_secs(1), 0.4)
    }

    #[test]
    fn plenty_is_slow_and_little_is_fast() {
        let mut pace = pace();
        assert_eq!(pace.next(Some(20 * GIB), Some(0.0), Duration::ZERO), Duration::from_secs(1));
        assert_eq!(pace.next(Some(20 * GIB), Some(0.4), Duration::from_secs(1)), Duration::from_millis(25));
        assert_eq!(pace.next(None, None, Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[test]
    fn a_fast_fall_is_looked_at_before_it_could_be_over() {
        let mut pace = pace();
        pace.next(Some(10 * GIB), Some(0.0), Duration::ZERO);
        // 4 GiB a second, 6 GiB left: over after 1.5 s, so again after 0.75 s.
        assert_eq!(pace.next(Some(6 * GIB), Some(0.0), Duration::from_secs(1)), Duration::from_millis(750));
        // It fades: after ten half-lives nothing of it is left.
        assert_eq!(pace.next(Some(6 * GIB), Some(0.0), Duration::from_secs(300)), Duration::from_secs(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// At the fastest rate seen in the last step, half of what is there is still there at the next look, or the
        /// look is as soon as looks can be.
        #[test]
        fn the_limit_is_not_reached_between_two_looks(
            steps in prop::collection::vec((0_u64..64 * GIB, 1_u64..5000), 2..50),
        ) {
            let mut pace = pace();
            let mut before = None;
            for (available, ms) in steps {
                let elapsed = Duration::from_millis(ms);
                let next = pace.next(Some(available), Some(0.0), elapsed);
                prop_assert!(next >= Duration::from_millis(25) && next <= Duration::from_secs(1));
                let rate = before.map_or(0.0, |before: u64| {
                    before.saturating_sub(available) as f64 / elapsed.as_secs_f64()
                });
                let gone = rate * next.as_secs_f64();
                prop_assert!(
                    gone <= available as f64 * 0.5 + 1e4 || next == Duration::from_millis(25),
                    "{gone} of {available}"
                );
                before = Some(available);
            }
        }
    }
}

//! Whether a tier that failed is worth asking: a state machine without clocks.
//!
//! A store that does not answer costs its time-out on every call, and a drive that is full fails every write. After
//! some failures in a row calls are therefore not tried until a back-off has passed; then one is, as a probe, and what becomes of it decides.
//!
//! ```text
//! Well ──failures_max failures in a row──► Down(until) ──until has passed, one call goes──► Probing
//!   ▲                                         ▲                                              │  │
//!   │                                         └────────────failed: back-off doubles──────────┘  │
//!   └───────────────────────────────────succeeded───────────────────────────────────────────────┘
//! ```
//!
//! Times are [`Duration`]s since any fixed moment, as the caller counts them.

use std::time::Duration;

/// When a tier is held to be down, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// Failures in a row after which calls are not tried; at least 1 is taken.
    pub failures_max: u32,
    /// The first back-off.
    pub backoff_min: Duration,
    /// Back-offs double up to this.
    pub backoff_max: Duration,
}

impl Default for HealthSettings {
    /// 3 failures, 1 second to 1 minute.
    fn default() -> Self {
        Self { failures_max: 3, backoff_min: Duration::from_secs(1), backoff_max: Duration::from_secs(60) }
    }
}

/// What to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Try it, and say what became of it with [`Health::succeeded`] or [`Health::failed`].
    Go,
    /// The same: it is the one try after a back-off, so repair first what can be repaired.
    Probe,
    /// Do not: the next call is tried in this time.
    Skip {
        /// From now.
        retry_in: Duration,
    },
}

/// The state of one tier.
#[derive(Clone, Debug)]
pub struct Health {
    settings: HealthSettings,
    failures: u32,
    backoff: Duration,
    /// Calls are not tried before this; `None` while all is well.
    down_until: Option<Duration>,
    /// A call was let through while down, and nothing was heard of it.
    probing: bool,
}

impl Health {
    /// Well.
    pub fn new(settings: HealthSettings) -> Self {
        Self { settings, failures: 0, backoff: settings.backoff_min, down_until: None, probing: false }
    }

    /// A call wants to be made.
    ///
    /// A probe holds the others off for one more back-off, so that one that never reports does not block for good.
    pub fn ask(&mut self, now: Duration) -> Gate {
        match self.down_until {
            None => Gate::Go,
            // Further away than a back-off: the clock went backwards.
            Some(until) if now >= until || until - now > self.backoff => {
                self.probing = true;
                self.down_until = Some(now.saturating_add(self.backoff));
                Gate::Probe
            }
            Some(until) => Gate::Skip { retry_in: until - now },
        }
    }

    /// A call was answered. Not having a value is an answer.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.backoff = self.settings.backoff_min;
        self.down_until = None;
        self.probing = false;
    }

    /// A call failed, or was not answered in time. Returns whether the tier is down now and was not before.
    pub fn failed(&mut self, now: Duration) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.settings.failures_max {
            return false;
        }
        let was_down = self.down_until.is_some();
        if was_down {
            if !std::mem::take(&mut self.probing) {
                // One of several that were under way when the tier went down: it says nothing new.
                return false;
            }
            self.backoff = self.backoff.saturating_mul(2).min(self.settings.backoff_max);
        }
        self.down_until = Some(now.saturating_add(self.backoff));
        !was_down
    }

    /// Whether calls are being skipped.
    pub fn down(&self) -> bool {
        self.down_until.is_some()
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn health() -> Health {
        Health::new(HealthSettings { failures_max: 3, backoff_min: s(1), backoff_max: s(5) })
    }

    fn skip(seconds: u64) -> Gate {
        Gate::Skip { retry_in: s(seconds) }
    }

    #[test]
    fn calls_are_tried_until_three_in_a_row_failed() {
        let mut health = health();
        for _ in 0..5 {
            assert_eq!((health.failed(s(0)), health.failed(s(0))), (false, false));
            assert_eq!(health.ask(s(0)), Gate::Go);
            health.succeeded();
        }
        assert_eq!([health.failed(s(0)), health.failed(s(0)), health.failed(s(0))], [false, false, true]);
        assert_eq!(health.ask(s(0)), skip(1));
        assert!(health.down());
    }

    #[test]
    fn one_probe_goes_and_its_success_lets_all_go() {
        let mut health = health();
        (0..3).for_each(|_| _ = health.failed(s(10)));
        assert_eq!(health.ask(s(11)), Gate::Probe);
        assert_eq!(health.ask(s(11)), skip(1), "the probe is under way");
        health.succeeded();
        assert_eq!(health.ask(s(11)), Gate::Go);
        assert_eq!(health.failures(), 0);
        assert!(!health.failed(s(11)), "counted from the start");
    }

    #[test]
    fn the_backoff_doubles_up_to_its_bound() {
        let mut health = health();
        (0..3).for_each(|_| _ = health.failed(s(0)));
        let mut now = s(0);
        for backoff in [1, 2, 4, 5, 5] {
            assert_eq!(health.ask(now), skip(backoff));
            now += s(backoff);
            assert_eq!(health.ask(now), Gate::Probe);
            assert!(!health.failed(now), "it was down before");
        }
    }

    #[test]
    fn calls_that_were_under_way_when_it_went_down_do_not_lengthen_the_backoff() {
        let mut health = health();
        (0..20).for_each(|_| _ = health.failed(s(0)));
        assert_eq!(health.ask(s(0)), skip(1));
        assert_eq!(health.ask(s(1)), Gate::Probe);
        health.failed(s(1));
        assert_eq!(health.ask(s(1)), skip(2));
    }

    #[test]
    fn a_probe_that_never_reports_does_not_block_for_good() {
        let mut health = health();
        (0..3).for_each(|_| _ = health.failed(s(0)));
        assert_eq!(health.ask(s(1)), Gate::Probe);
        assert_eq!(health.ask(s(2)), Gate::Probe);
    }

    #[test]
    fn a_clock_that_went_back_does_not_make_a_backoff_longer() {
        let mut health = health();
        (0..3).for_each(|_| _ = health.failed(s(10_000)));
        assert_eq!(health.ask(s(5)), Gate::Probe);
        assert_eq!(health.ask(s(5)), skip(1));
    }
}

//! Whether the drive can be written, and what is said of it: pure. Time is passed in.

use std::time::Duration;

use crate::health::{self, HealthSettings};

/// Working until a write fails, then degraded until one succeeds again. While it is degraded writes are refused, except
/// one try after each wait.
#[derive(Debug)]
pub(crate) struct Health {
    waits: health::Health,
    degraded: Option<Degraded>,
    /// Times it went from working to degraded.
    pub(crate) degraded_count: u64,
}

/// Since when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Degraded {
    pub(crate) since: Duration,
    pub(crate) reason: String,
}

/// What to do with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Write it.
    Open,
    /// Write it: it is the one try after the wait, so repair first what can be repaired.
    Probe,
    /// Refuse it.
    Shut(String),
}

impl Default for Health {
    /// One failure is enough: a drive that is full is full for the next write too.
    fn default() -> Self {
        let settings = HealthSettings { failures_max: 1, ..HealthSettings::default() };
        Self { waits: health::Health::new(settings), degraded: None, degraded_count: 0 }
    }
}

impl Health {
    /// Whether a write may be tried now.
    pub(crate) fn gate(&mut self, now: Duration) -> Gate {
        match self.waits.ask(now) {
            health::Gate::Go => Gate::Open,
            health::Gate::Probe => Gate::Probe,
            health::Gate::Skip { .. } => Gate::Shut(
                self.degraded.as_ref().map_or_else(String::new, |degraded| degraded.reason.clone()),
            ),
        }
    }

    /// A write failed.
    pub(crate) fn failed(&mut self, now: Duration, reason: String) {
        if self.waits.failed(now) {
            self.degraded_count += 1;
            self.degraded = Some(Degraded { since: now, reason });
        } else if let Some(degraded) = &mut self.degraded {
            degraded.reason = reason;
        }
    }

    /// A write succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.waits.succeeded();
        self.degraded = None;
    }

    /// `None` while it works.
    pub(crate) fn degraded(&self) -> Option<&Degraded> {
        self.degraded.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_says_why_until_it_works_again() {
        let mut health = Health::default();
        assert_eq!(health.gate(at(0)), Gate::Open);
        health.failed(at(10), "full".into());
        assert_eq!(health.gate(at(10)), Gate::Shut("full".into()));
        assert_eq!(health.gate(at(11)), Gate::Probe);
        assert_eq!(health.gate(at(11)), Gate::Shut("full".into()), "one try at a time");
        health.failed(at(11), "read-only".into());
        assert_eq!(health.gate(at(12)), Gate::Shut("read-only".into()));
        assert_eq!(health.gate(at(13)), Gate::Probe);
        assert_eq!(health.degraded().unwrap().since, at(10));
        health.succeeded();
        assert_eq!((health.gate(at(13)), health.degraded()), (Gate::Open, None));
        assert_eq!(health.degraded_count, 1);
    }
}

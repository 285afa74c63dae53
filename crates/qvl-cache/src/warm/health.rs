//! Whether the drive can be written: a state machine, pure. Time is passed in.

use std::time::Duration;

/// Wait after the first failure; doubled with each that follows, up to [`BACK_OFF_MAX`].
const BACK_OFF: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const BACK_OFF_MAX: Duration = Duration::from_secs(64);

/// Working until a write fails, then degraded until one succeeds again. While it is degraded writes are refused, except
/// one try after each wait.
#[derive(Debug, Default)]
pub(crate) struct Health {
    degraded: Option<Degraded>,
    /// Times it went from working to degraded.
    pub(crate) degraded_count: u64,
    /// Times it came back.
    pub(crate) recovered_count: u64,
}

/// Since when, why, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Degraded {
    pub(crate) since: Duration,
    pub(crate) reason: String,
    pub(crate) retry_at: Duration,
    back_off: Duration,
    probing: bool,
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

impl Health {
    /// Whether a write may be tried now.
    pub(crate) fn gate(&mut self, now: Duration) -> Gate {
        match &mut self.degraded {
            None => Gate::Open,
            Some(degraded) if now >= degraded.retry_at => {
                // Others are refused until this try reports, or until another wait has passed.
                degraded.retry_at = now.saturating_add(degraded.back_off);
                degraded.probing = true;
                Gate::Probe
            }
            Some(degraded) => Gate::Shut(degraded.reason.clone()),
        }
    }

    /// A write failed.
    pub(crate) fn failed(&mut self, now: Duration, reason: String) {
        match &mut self.degraded {
            None => {
                self.degraded_count += 1;
                let retry_at = now.saturating_add(BACK_OFF);
                self.degraded =
                    Some(Degraded { since: now, reason, retry_at, back_off: BACK_OFF, probing: false });
            }
            // Writes that were under way when the first one failed say nothing new.
            Some(degraded) if !degraded.probing => {}
            Some(degraded) => {
                degraded.probing = false;
                degraded.back_off = (degraded.back_off * 2).min(BACK_OFF_MAX);
                degraded.retry_at = now.saturating_add(degraded.back_off);
                degraded.reason = reason;
            }
        }
    }

    /// A write succeeded.
    pub(crate) fn succeeded(&mut self) {
        if self.degraded.take().is_some() {
            self.recovered_count += 1;
        }
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
    fn it_is_tried_again_after_waits_that_double_and_comes_back() {
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
        assert_eq!(health.gate(at(13)), Gate::Open);
        assert_eq!((health.degraded_count, health.recovered_count), (1, 1));
    }

    #[test]
    fn a_try_that_never_reports_does_not_shut_it_for_ever() {
        let mut health = Health::default();
        health.failed(at(0), "gone".into());
        assert_eq!(health.gate(at(1)), Gate::Probe);
        assert_eq!(health.gate(at(2)), Gate::Probe);
    }

    #[test]
    fn waits_are_bounded() {
        let mut health = Health::default();
        health.failed(at(0), "gone".into());
        let mut now = at(0);
        for _ in 0..20 {
            now = health.degraded().unwrap().retry_at;
            assert_eq!(health.gate(now), Gate::Probe);
            health.failed(now, "gone".into());
        }
        assert_eq!(health.degraded().unwrap().retry_at - now, BACK_OFF_MAX);
    }
}

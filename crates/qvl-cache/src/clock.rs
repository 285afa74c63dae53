//! Time, passed in: the machine's, or one that a test moves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A source of time since some moment. Going backwards is survived: differences are cut at zero.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The machine's monotonic clock.
    pub fn system() -> Self {
        let begin = Instant::now();
        Self(Arc::new(move || begin.elapsed()))
    }

    /// A clock that stands still until the [`ManualClock`] moves it.
    pub fn manual() -> (Self, ManualClock) {
        let hand = ManualClock(Arc::new(AtomicU64::new(0)));
        let read = hand.clone();
        (Self(Arc::new(move || Duration::from_nanos(read.0.load(Ordering::SeqCst)))), hand)
    }

    /// Any other.
    pub fn from_fn(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// Moves a [`Clock::manual`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Forward by so much.
    pub fn advance(&self, by: Duration) {
        self.set(Duration::from_nanos(self.0.load(Ordering::SeqCst)).saturating_add(by));
    }

    /// To this time, which may lie before the present one.
    pub fn set(&self, to: Duration) {
        self.0.store(u64::try_from(to.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

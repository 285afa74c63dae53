//! When values move between tiers, and how fast: pure.
//!
//! What moves up is what was asked for, if the hot tier's policy keeps it. What moves down is what leaves the hot tier,
//! is stored nowhere else, and is worth its bytes there: it takes longer to get again than to read back. The tiers
//! below keep their copy of what moved up, so that moving down again costs nothing: that, and the factor between the
//! two in [`ReadTime::is_worth_storing`], is the hysteresis that keeps a value from going back and forth.

use std::time::Duration;

/// How much longer getting a value again must take than reading it back, for it to be written to the faster tier.
const FACTOR: f64 = 2.0;
/// How long a write waits for a read of the caller before it looks again.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// How full the queue of writes may be while they wait for reads.
const FILL_MAX: f64 = 0.5;

/// What reading from a tier takes, learned from reads: a part for each, and a part for each byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ReadTime {
    seconds_each: f64,
    seconds_a_byte: f64,
}

/// Reads up to this size tell of the part for each, larger ones of the part for each byte.
const SMALL_BYTES: u64 = 64 << 10;
/// How much longer than expected a read may take for all of it to count.
const OUTLIER: f64 = 4.0;
/// What one new reading counts.
const WEIGHT: f64 = 1.0 / 16.0;

impl Default for ReadTime {
    /// An NVMe drive through the page cache, before anything was measured.
    fn default() -> Self {
        Self { seconds_each: 100e-6, seconds_a_byte: 1.0 / 1.5e9 }
    }
}

impl ReadTime {
    /// A read of so many bytes took so long. One that took much longer than expected met something else than the drive,
    /// and counts as one that took [`OUTLIER`] times as long.
    pub(crate) fn learn(&mut self, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64().min(OUTLIER * self.seconds(bytes));
        if bytes <= SMALL_BYTES {
            self.seconds_each += (seconds - self.seconds_each) * WEIGHT;
        } else {
            let a_byte = (seconds - self.seconds_each).max(0.0) / bytes as f64;
            self.seconds_a_byte += (a_byte - self.seconds_a_byte) * WEIGHT;
        }
    }

    /// What a read of so many bytes takes, in seconds.
    pub(crate) fn seconds(&self, bytes: u64) -> f64 {
        self.seconds_each + self.seconds_a_byte * bytes as f64
    }

    /// Whether a value that takes `cost` seconds to get again should be kept where this is the time to read it.
    pub(crate) fn is_worth_storing(&self, bytes: u64, cost: f64) -> bool {
        cost >= FACTOR * self.seconds(bytes)
    }
}

/// How fast values move down: within a limit, and after the caller's reads.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// Bytes that may be written now; negative while a large one is paid off.
    credit: f64,
    told: Duration,
}

impl Pace {
    /// With a limit, or without.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, credit: 0.0, told: Duration::ZERO }
    }

    /// How long a write waits now, with `reads` of callers going on below and a queue so full; zero: go.
    pub(crate) fn wait(&mut self, now: Duration, reads: usize, fill: f64) -> Duration {
        if let Some(rate) = self.bytes_per_second {
            let rate = rate.max(1) as f64;
            let since = now.saturating_sub(self.told).as_secs_f64();
            // At most one second's worth is saved up.
            self.credit = (self.credit + since * rate).min(rate);
            self.told = now;
            if self.credit < 0.0 {
                return Duration::try_from_secs_f64(-self.credit / rate).unwrap_or(Duration::MAX);
            }
        }
        if reads > 0 && fill < FILL_MAX { LOOK_AGAIN } else { Duration::ZERO }
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        if self.bytes_per_second.is_some() {
            self.credit -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheaper_to_make_again_is_not_stored() {
        let read = ReadTime::default();
        assert!(!read.is_worth_storing(1 << 20, 1e-6));
        assert!(read.is_worth_storing(1 << 20, 1.0));
    }

    #[test]
    fn the_time_of_a_read_is_learned() {
        let mut read = ReadTime::default();
        for _ in 0..200 {
            read.learn(4096, Duration::from_micros(20));
            read.learn(10_000_000, Duration::from_micros(10_020));
        }
        assert!((read.seconds(10_000_000) / 0.01002 - 1.0).abs() < 0.01, "{read:?}");
        assert!((read.seconds(4096) / 24e-6 - 1.0).abs() < 0.05, "{read:?}");
    }

    #[test]
    fn one_read_that_stalled_does_not_make_everything_cheaper_to_make() {
        let mut read = ReadTime::default();
        read.learn(1 << 20, Duration::from_secs(60));
        assert!(read.is_worth_storing(1 << 20, 0.01), "{read:?}");
    }

    #[test]
    fn writes_keep_to_their_rate_over_any_second() {
        let mut pace = Pace::new(Some(1_000_000));
        let (mut now, mut written) = (Duration::ZERO, 0u64);
        while now < Duration::from_secs(10) {
            let wait = pace.wait(now, 0, 0.0);
            if wait.is_zero() {
                pace.wrote(300_000);
                written += 300_000;
            }
            now += wait.max(Duration::from_micros(1));
        }
        assert!((9_700_000..=11_300_000).contains(&written), "{written}");
    }

    #[test]
    fn a_clock_that_jumps_back_neither_blocks_nor_gives_credit() {
        let mut pace = Pace::new(Some(1_000_000));
        assert!(pace.wait(Duration::from_secs(100), 0, 0.0).is_zero());
        pace.wrote(2_000_000);
        let before = pace.wait(Duration::from_secs(50), 0, 0.0);
        assert!(before > Duration::ZERO && before <= Duration::from_secs(1), "{before:?}");
        assert!(pace.wait(Duration::from_secs(52), 0, 0.0).is_zero());
    }

    #[test]
    fn writes_wait_for_reads_until_their_queue_fills() {
        let mut pace = Pace::new(None);
        assert!(!pace.wait(Duration::ZERO, 1, 0.1).is_zero());
        assert!(pace.wait(Duration::ZERO, 0, 0.1).is_zero());
        assert!(pace.wait(Duration::ZERO, 1, 0.6).is_zero());
    }
}

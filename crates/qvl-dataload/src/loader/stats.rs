//! What a loader has done and what it waited for.

use std::fmt;
use std::time::Duration;

/// A snapshot; counted since the loader was built. Durations of workers are summed over them.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Time since the loader was built.
    pub elapsed: Duration,
    /// Items the consumer has got.
    pub items: u64,
    /// Batches the consumer has got.
    pub batches: u64,
    /// Items that were made, also those that wait.
    pub items_made: u64,
    /// Bytes of the items that were made.
    pub bytes_made: u64,
    /// Samples left out under the policy that skips.
    pub skipped: u64,
    /// The first of them with the reasons, [`Stats::SKIPS_KEPT`] at most.
    pub skips: Vec<Skip>,
    /// Reading samples, as seen by workers.
    pub read: Duration,
    /// Transforming them.
    pub transform: Duration,
    /// The longest time one item took to read and transform.
    pub longest_item: Duration,
    /// The consumer waited for items.
    pub consumer_wait: Duration,
    /// Workers waited for room: the consumer was slower than they.
    pub worker_wait: Duration,
    /// Bytes reserved now for what waits and what is being made.
    pub used_bytes: usize,
    /// The most that ever was; never above `bytes_bound`.
    pub peak_bytes: usize,
    /// The bound of bytes.
    pub bytes_bound: usize,
    /// The most by which outputs of a transform that does not say their size went beyond what was reserved for them,
    /// before room was made. Zero for transforms that do.
    pub undeclared_bytes: usize,
    /// Unused buffers that are kept for the next items: what the bound leaves, at most.
    pub idle_bytes: usize,
    /// The most items that were begun and not taken.
    pub peak_items: usize,
    /// The bound of items now.
    pub prefetch_items: usize,
    /// Threads there are.
    pub workers: usize,
    /// Threads that load now.
    pub workers_active: usize,
    /// Changes that the tuning made, the last [`Stats::DECISIONS_KEPT`].
    pub decisions: Vec<Decision>,
}

impl Stats {
    /// Reasons kept in `skips`.
    pub const SKIPS_KEPT: usize = 100;
    /// Changes kept in `decisions`.
    pub const DECISIONS_KEPT: usize = 16;

    /// Items a second.
    pub fn items_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.items as f64 / seconds } else { 0.0 }
    }

    /// The share of the time that the consumer waited, 0 to 1.
    pub fn consumer_wait_share(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.consumer_wait.as_secs_f64() / seconds } else { 0.0 }
    }
}

/// A sample that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skip {
    /// Its index in the source.
    pub index: usize,
    /// Its epoch.
    pub epoch: u64,
    /// Why, with its name and all causes.
    pub reason: String,
}

/// A change of the number of workers or of items ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// Time since the loader was built.
    pub at: Duration,
    /// Workers from then on.
    pub workers: usize,
    /// Items ahead from then on.
    pub prefetch_items: usize,
    /// The figures that led to it, in words.
    pub why: String,
}

impl fmt::Display for Stats {
    /// A few lines for a log or a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| time.as_secs_f64();
        writeln!(
            f,
            "{} items in {} batches, {:.2} s, {:.1} items/s; {} skipped",
            self.items,
            self.batches,
            seconds(self.elapsed),
            self.items_per_second(),
            self.skipped
        )?;
        writeln!(
            f,
            "workers {} of {}: read {:.2} s, transform {:.2} s, waited for room {:.2} s",
            self.workers_active,
            self.workers,
            seconds(self.read),
            seconds(self.transform),
            seconds(self.worker_wait)
        )?;
        writeln!(
            f,
            "consumer waited {:.2} s ({:.1} %)",
            seconds(self.consumer_wait),
            100.0 * self.consumer_wait_share()
        )?;
        write!(
            f,
            "ahead: {} items at most, {} of {} bytes at most",
            self.peak_items, self.peak_bytes, self.bytes_bound
        )?;
        for skip in &self.skips {
            write!(f, "\nskipped {} of epoch {}: {}", skip.index, skip.epoch, skip.reason)?;
        }
        for decision in &self.decisions {
            write!(f, "\nat {:.2} s: {}", seconds(decision.at), decision.why)?;
        }
        Ok(())
    }
}

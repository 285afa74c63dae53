//! What a cache counted, as plain structs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cold::ColdStats;

/// A snapshot of a cache. Counters run since it was built; what is held is of now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// The hot tier.
    pub hot: HotStats,
    /// Bytes on their way down, in memory beside the hot tier's.
    pub transit_bytes: u64,
    /// Values on their way down.
    pub transit_entries: u64,
    /// The warm tier, if there is one.
    pub warm: Option<WarmStats>,
    /// The cold tiers, in the order in which they are asked.
    pub cold: Vec<ColdTierStats>,
    /// Searches under way.
    pub flights: u64,
    /// Requests that found their value on its way down.
    pub transit_hits: u64,
    /// Requests that found their value in a cold tier.
    pub cold_hits: u64,
    /// Requests that found nothing in any tier.
    pub misses: u64,
    /// Values made by a loader.
    pub loads: u64,
    /// Loaders that failed.
    pub load_errors: u64,
    /// Values inserted.
    pub inserted: u64,
    /// Keys removed.
    pub removed: u64,
    /// Values that came up into the hot tier.
    pub promoted: u64,
    /// Values that were found below and not brought up, since the drive could not keep up with what leaves.
    pub promotions_skipped: u64,
    /// Values written to a tier below.
    pub demoted: u64,
    /// Values that no tier below wanted.
    pub not_stored: u64,
    /// Of these, values that are faster made again than read back.
    pub cheaper_to_make: u64,
    /// Values that should have gone down and could not, since a tier failed.
    pub lost: u64,
    /// Values that the codec did not understand.
    pub undecodable: u64,
    /// Calls to cold tiers that failed.
    pub cold_errors: u64,
    /// Operations that failed in the background.
    pub late_errors: u64,
    /// Hints taken.
    pub hints: u64,
    /// Hints dropped, since too many were waiting.
    pub hints_dropped: u64,
    /// Values brought up by hints.
    pub prefetched: u64,
    /// Nanoseconds that insertions waited for the drive.
    pub waited_nanos: u64,
}

/// The hot tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotStats {
    /// Its policy.
    pub policy: &'static str,
    /// Values held.
    pub entries: u64,
    /// Bytes held, with keys and bookkeeping: never more than the budget.
    pub bytes: u64,
    /// The most bytes that were ever held.
    pub bytes_high: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Of the bytes held, those of pinned values.
    pub pinned_bytes: u64,
    /// Requests answered.
    pub hits: u64,
    /// Values that came in.
    pub inserted: u64,
    /// Values that were too large, or that the policy refused.
    pub refused: u64,
    /// Values that left for want of room.
    pub evicted: u64,
    /// Uses of which the policy was not told, since too many came between two insertions.
    pub uses_forgotten: u64,
}

/// What a warm tier did since it was opened, and what it holds.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct WarmStats {
    /// Values that are there.
    pub entries: u64,
    /// Bytes that count: values with their keys and footers, files rounded up to 4 KiB, 512 bytes an entry.
    pub bytes: u64,
    /// What `bytes` is kept under.
    pub budget_bytes: u64,
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none, damaged ones included.
    pub misses: u64,
    /// Values that were not what was put, or whose file was missing: each is gone and was a miss.
    pub damaged: u64,
    /// Bytes of values and footers that were read.
    pub bytes_read: u64,
    /// Values that were stored.
    pub puts: u64,
    /// Bytes of those values alone.
    pub bytes_stored: u64,
    /// Bytes of files that were written, footers included.
    pub file_bytes_written: u64,
    /// Bytes that RocksDB wrote: log, tables, blobs and their rewriting.
    pub index_bytes_written: u64,
    /// Bytes of RocksDB's tables and blobs on the drive now; with its log (64 MiB at most) what the folder holds beside
    /// files. Values in it count by themselves in `bytes`; what was replaced and not yet compacted does not.
    pub index_bytes: u64,
    /// Values that left for want of room.
    pub evicted: u64,
    /// Values that were not stored.
    pub refused: u64,
    /// Files from before that nothing named.
    pub orphans_removed: u64,
    /// Errors of the drive, in reading, writing and removing.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<String>,
    /// Why values are not written at the moment; `None` while they are.
    pub degraded: Option<String>,
    /// Seconds for which this has been so.
    pub degraded_seconds: f64,
    /// How often it began.
    pub degraded_count: u64,
    /// Why the index was made again from the files at opening, if it was.
    pub index_rebuilt: Option<String>,
    /// Bytes of memory that are kept for the next reads, beside those that values which are held are in.
    pub buffer_bytes: u64,
    /// How values are read, and why.
    pub read_mode: String,
}

impl WarmStats {
    /// Bytes written to the drive for each byte of a value that was stored; 0 before the first.
    pub fn write_amplification(&self) -> f64 {
        if self.bytes_stored == 0 {
            return 0.0;
        }
        (self.file_bytes_written + self.index_bytes_written) as f64 / self.bytes_stored as f64
    }
}

/// A cold tier.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ColdTierStats {
    /// Its folder or URL.
    pub name: String,
    /// Its counters.
    pub stats: ColdStats,
}

impl Stats {
    /// Requests answered by any tier.
    pub fn hits(&self) -> u64 {
        self.hot.hits + self.transit_hits + self.cold_hits + self.warm.as_ref().map_or(0, |warm| warm.hits)
    }

    /// Share of requests that a tier answered; 0 before the first.
    pub fn hit_share(&self) -> f64 {
        let hits = self.hits();
        if hits == 0 { 0.0 } else { hits as f64 / (hits + self.misses) as f64 }
    }
}

/// Counters that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) transit_hits: AtomicU64,
    pub(crate) cold_hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) loads: AtomicU64,
    pub(crate) load_errors: AtomicU64,
    pub(crate) inserted: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) promoted: AtomicU64,
    pub(crate) promotions_skipped: AtomicU64,
    pub(crate) demoted: AtomicU64,
    pub(crate) not_stored: AtomicU64,
    pub(crate) cheaper_to_make: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) undecodable: AtomicU64,
    pub(crate) cold_errors: AtomicU64,
    pub(crate) late_errors: AtomicU64,
    pub(crate) hints: AtomicU64,
    pub(crate) hints_dropped: AtomicU64,
    pub(crate) prefetched: AtomicU64,
    pub(crate) waited_nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// The part of [`Stats`] that is counted here.
    pub(crate) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            transit_hits: read(&self.transit_hits),
            cold_hits: read(&self.cold_hits),
            misses: read(&self.misses),
            loads: read(&self.loads),
            load_errors: read(&self.load_errors),
            inserted: read(&self.inserted),
            removed: read(&self.removed),
            promoted: read(&self.promoted),
            promotions_skipped: read(&self.promotions_skipped),
            demoted: read(&self.demoted),
            not_stored: read(&self.not_stored),
            cheaper_to_make: read(&self.cheaper_to_make),
            lost: read(&self.lost),
            undecodable: read(&self.undecodable),
            cold_errors: read(&self.cold_errors),
            late_errors: read(&self.late_errors),
            hints: read(&self.hints),
            hints_dropped: read(&self.hints_dropped),
            prefetched: read(&self.prefetched),
            waited_nanos: read(&self.waited_nanos),
            ..Stats::default()
        }
    }
}

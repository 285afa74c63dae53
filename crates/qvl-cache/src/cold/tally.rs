//! The counters of a cold tier, for many threads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::ColdStats;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    puts: AtomicU64,
    refused: AtomicU64,
    evicted: AtomicU64,
    read_bytes: AtomicU64,
    put_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    errors: AtomicU64,
    timeouts: AtomicU64,
    skipped: AtomicU64,
    known_absent: AtomicU64,
}

impl Tally {
    pub(crate) fn hit(&self, bytes: u64) {
        self.hits.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    pub(crate) fn damaged(&self) {
        self.damaged.fetch_add(1, Relaxed);
    }

    pub(crate) fn put(&self, bytes: u64, stored_bytes: u64) {
        self.puts.fetch_add(1, Relaxed);
        self.put_bytes.fetch_add(bytes, Relaxed);
        self.stored_bytes.fetch_add(stored_bytes, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn evicted(&self, values: u64) {
        self.evicted.fetch_add(values, Relaxed);
    }

    pub(crate) fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    #[cfg(feature = "object-store")]
    pub(crate) fn timeout(&self) {
        self.timeouts.fetch_add(1, Relaxed);
    }

    #[cfg(feature = "object-store")]
    pub(crate) fn skipped(&self) {
        self.skipped.fetch_add(1, Relaxed);
    }

    #[cfg(feature = "object-store")]
    pub(crate) fn known_absent(&self) {
        self.known_absent.fetch_add(1, Relaxed);
    }

    /// The counters; what the tier holds is for the tier to fill in.
    pub(crate) fn snapshot(&self) -> ColdStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        ColdStats {
            values: 0,
            bytes: 0,
            budget_bytes: None,
            hits: of(&self.hits),
            misses: of(&self.misses),
            damaged: of(&self.damaged),
            puts: of(&self.puts),
            refused: of(&self.refused),
            evicted: of(&self.evicted),
            read_bytes: of(&self.read_bytes),
            put_bytes: of(&self.put_bytes),
            stored_bytes: of(&self.stored_bytes),
            errors: of(&self.errors),
            timeouts: of(&self.timeouts),
            skipped: of(&self.skipped),
            known_absent: of(&self.known_absent),
        }
    }
}

//! The single flight and the transit of qvl-cache under loom: every interleaving of a few threads, up to three
//! preemptions.
//!
//! [`Tiers`] puts the two files together as `cache/shared.rs` does, with a map in place of the hot tier and one in place
//! of the tier below.

#![allow(dead_code, missing_docs, reason = "the files are included whole")]

#[path = "../../src/flight.rs"]
mod flight;
#[path = "../../src/transit.rs"]
mod transit;

/// What the files lock with, by loom.
mod sync {
    pub(crate) use loom::sync::{Arc, Condvar, MutexGuard};

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of the model panics with the lock")
        }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).expect("no thread of the model panics with the lock")
    }

    pub(crate) fn wait_for<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        wait(condvar, guard)
    }
}

use std::collections::HashMap;

use flight::{Flights, Joined};
use sync::Mutex;
use transit::{Begun, Finished, Lookup, Pending, Transit};

/// One key's worth of a cache: versions are values, and a larger one is later.
pub struct Tiers {
    flights: Flights<u8, u64, String>,
    transit: Transit<u8, u64>,
    hot: Mutex<HashMap<u8, Hot>>,
    below: Mutex<HashMap<u8, u64>>,
    versions: Mutex<u64>,
}

#[derive(Clone, Copy)]
struct Hot {
    value: u64,
    version: u64,
    stored: bool,
}

impl Default for Tiers {
    fn default() -> Self {
        Self {
            flights: Flights::new(1),
            transit: Transit::new(1 << 20),
            hot: Mutex::new(HashMap::new()),
            below: Mutex::new(HashMap::new()),
            versions: Mutex::new(1),
        }
    }
}

const KEY: u8 = 1;

impl Tiers {
    fn next_version(&self) -> u64 {
        let mut versions = self.versions.lock();
        *versions += 1;
        *versions
    }

    /// As `Shared::insert`.
    pub fn insert(&self, value: u64) {
        let version = self.next_version();
        self.flights.supersede(&KEY, 0, || {
            {
                let mut hot = self.hot.lock();
                self.transit.supersede_and_hold(&KEY);
                hot.insert(KEY, Hot { value, version, stored: false });
            }
            self.below.lock().remove(&KEY);
            self.transit.release(&KEY);
        });
    }

    /// As `Shared::remove`.
    pub fn remove(&self) {
        self.next_version();
        self.flights.supersede(&KEY, 0, || {
            {
                let mut hot = self.hot.lock();
                self.transit.supersede_and_hold(&KEY);
                hot.remove(&KEY);
            }
            self.below.lock().remove(&KEY);
            self.transit.release(&KEY);
        });
    }

    /// The policy gives it up: as `Hot::insert` of another key does, under its lock.
    pub fn evict(&self) {
        let mut hot = self.hot.lock();
        let Some(&Hot { value, version, stored }) = hot.get(&KEY) else { return };
        if !stored {
            self.transit.push(&KEY, Pending { value, version, bytes: 1, cost: 1.0 });
        }
        hot.remove(&KEY);
    }

    /// As `Shared::store`, for what is queued.
    pub fn write_one(&self) -> bool {
        let Some((key, pending)) = self.transit.begin() else { return false };
        self.write(key, pending);
        true
    }

    /// As `Shared::write_behind_since`.
    pub fn write_behind(&self) {
        let found = self.hot.lock().get(&KEY).copied().filter(|hot| !hot.stored);
        let Some(Hot { value, version, .. }) = found else { return };
        let pending = Pending { value, version, bytes: 1, cost: 1.0 };
        if self.transit.begin_behind(&KEY, &pending) != Begun::Now {
            return;
        }
        let there = self.hot.lock().get(&KEY).is_some_and(|hot| hot.version == version);
        if there || self.transit.has_left(&KEY) {
            self.write(KEY, pending);
        } else {
            self.finish(KEY);
        }
    }

    fn write(&self, key: u8, pending: Pending<u64>) {
        // As a cold tier does: what lies there stays.
        self.below.lock().entry(key).or_insert(pending.value);
        if let Some(hot) = self.hot.lock().get_mut(&key).filter(|hot| hot.version == pending.version) {
            hot.stored = true;
        }
        self.finish(key);
    }

    fn finish(&self, key: u8) {
        if self.transit.finish(&key) == Finished::Superseded {
            self.below.lock().remove(&key);
            self.transit.settle(&key);
        }
    }

    /// As `Shared::search`.
    pub fn get(&self) -> Option<u64> {
        self.search(|| None)
    }

    /// As `Shared::search_or_load`, with a loader that finds this.
    pub fn get_or_load(&self, made: u64) -> u64 {
        loop {
            if let Some(value) = self.search(|| Some(made)) {
                return value;
            }
        }
    }

    fn search(&self, load: impl Fn() -> Option<u64>) -> Option<u64> {
        loop {
            if let Some(hot) = self.hot.lock().get(&KEY) {
                return Some(hot.value);
            }
            let lead = match self.flights.join(&KEY, 0) {
                Joined::Landed(found) => return found.expect("no loader of the model fails"),
                Joined::Lead(lead) => lead,
            };
            let here = self.hot.lock().get(&KEY).map(|hot| hot.value);
            if let Some(value) = here {
                lead.land(Ok(Some(value)), || {});
                return Some(value);
            }
            // Value, version, stored below.
            let found = match self.transit.get(&KEY) {
                Lookup::Here(pending) => Some((pending.value, pending.version, false)),
                Lookup::Gone => None,
                Lookup::Unknown => {
                    let version = self.next_version();
                    self.below.lock().get(&KEY).map(|&value| (value, version, true))
                }
            };
            let found = found.or_else(|| load().map(|value| (value, self.next_version(), false)));
            let landed = lead.land(Ok(found.map(|(value, ..)| value)), || {
                let Some((value, version, stored)) = found else { return };
                let back = if stored { None } else { self.transit.take_back(&KEY, version) };
                let written = !stored && back.is_none() && matches!(self.transit.get(&KEY), Lookup::Here(_));
                self.hot.lock().entry(KEY).or_insert(Hot { value, version, stored: stored || written });
            });
            if landed {
                return found.map(|(value, ..)| value);
            }
        }
    }

    /// Nothing is left on its way, and nobody flies.
    pub fn is_quiet(&self) -> bool {
        self.flights.len() == 0 && self.transit.load() == (0, 0)
    }
}

//! What happens in the background, or, without threads, before a call returns: values go down, hints come up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;

use crate::cache::LateErrors;
use crate::cache::shared::{Purpose, Shared};
use crate::cold::{Kept, Refusal};
use crate::error::{Error, Result};
use crate::key::{Key, KeyId};
use crate::stats::Counters;
use crate::transit::{Begun, Finished, Pending};

/// What became of a value that was to be stored below.
enum Stored {
    /// A tier has it.
    Yes,
    /// No tier wants it.
    Refused,
    /// A tier that should take it does not work.
    Failed(Error),
}

/// What became of one that was to be written while it is in the hot tier.
enum Behind {
    /// It is stored, or refused, or on its way, or gone.
    Done,
    /// An older version is in the way.
    Busy,
    /// A tier that should take it does not work.
    Failed(Error),
}

impl<K: Key, V: Clone + Send + Sync + 'static> Shared<K, V> {
    /// Wakes the writer if it sleeps until something happens.
    pub(super) fn wake(&self) {
        if self.sleeping.load(Ordering::Acquire) {
            self.transit.nudge();
        }
    }

    /// Does everything that waits, when there are no threads for it.
    pub(super) fn work_if_alone(&self) {
        if self.threads > 0 {
            return;
        }
        while let Some((key, pending)) = self.transit.begin() {
            self.store_and_note(&key, pending);
        }
        if self.write_behind.is_some() {
            while self.write_one_behind() {}
        }
    }

    /// Brings up what was named, when there is no thread for it.
    pub(super) fn bring_up_if_alone(&self) {
        if let Some(hinted) = &self.hinted {
            while let Ok(key) = hinted.try_recv() {
                self.bring_up(&key);
            }
        }
    }

    /// After an insertion: waits while too much is on its way down.
    pub(super) fn make_room(&self) {
        self.work_if_alone();
        if self.threads > 0 && !self.transit.has_room(0) {
            let begun = self.clock.now();
            self.transit.wait_for_room();
            let waited = self.clock.now().saturating_sub(begun);
            Counters::add(&self.counters.waited_nanos, u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// The thread that writes.
    pub(super) fn write_until_closed(&self) {
        loop {
            if let Some((key, pending)) = self.transit.begin() {
                self.keep_pace();
                let bytes = pending.bytes;
                self.survive(|| self.store_and_note(&key, pending));
                self.pace.lock().wrote(bytes);
                continue;
            }
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            if self.survive(|| self.write_one_behind()).unwrap_or(true) {
                continue;
            }
            if self.stale_len.load(Ordering::Acquire) > 0 && self.clear_some_stale() {
                continue;
            }
            let due = self.write_behind.zip(self.hot.oldest_unstored());
            let sleep = due.map(|(delay, came)| {
                let at = came.saturating_add(delay);
                at.saturating_sub(self.clock.now()).max(Duration::from_millis(1))
            });
            self.sleeping.store(sleep.is_none(), Ordering::Release);
            self.transit.wait_for_work(sleep);
            self.sleeping.store(false, Ordering::Release);
        }
    }

    /// The thread that brings up what will be wanted.
    pub(super) fn bring_up_until_closed(&self, hinted: &Receiver<K>) {
        while let Ok(key) = hinted.recv() {
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            self.survive(|| self.bring_up(&key));
        }
    }

    /// A codec, or a tier of the user's, that panics is an error of one value and not the end of a thread that all need.
    fn survive<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let done = catch_unwind(AssertUnwindSafe(work));
        if done.is_err() {
            let source = "the codec or a tier panicked".into();
            self.late(Error::Tier { tier: "the background".to_owned(), operation: "moving a value", source });
        }
        done.ok()
    }

    fn bring_up(&self, key: &K) {
        let hash = self.hot.hash(key);
        if !self.hot.contains(key, hash) && matches!(self.search(key, hash, Purpose::Prefetch), Ok(Some(_))) {
            Counters::add(&self.counters.prefetched, 1);
        }
    }

    /// Waits as the rate, and the reads of callers, ask for.
    fn keep_pace(&self) {
        loop {
            let reads = self.reads.load(Ordering::Relaxed);
            let wait = self.pace.lock().wait(self.clock.now(), reads, self.transit.fill());
            if wait.is_zero() || self.closed.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(wait.min(Duration::from_millis(50)));
        }
    }

    /// Writes one value that has been in the hot tier for a while and is stored nowhere. `false` if there is none.
    fn write_one_behind(&self) -> bool {
        let Some(delay) = self.write_behind else { return false };
        let Some(since) = self.clock.now().checked_sub(delay) else { return false };
        match self.write_behind_since(since, true) {
            None | Some(Behind::Busy) => false,
            Some(Behind::Done) => true,
            Some(Behind::Failed(error)) => {
                self.late(error);
                true
            }
        }
    }

    fn write_behind_since(&self, since: Duration, paced: bool) -> Option<Behind> {
        if !self.stores() {
            return None;
        }
        let (key, pending) = self.hot.next_unstored(since)?;
        let (hash, version) = (self.hot.hash(&key), pending.version);
        match self.transit.begin_behind(&key, &pending) {
            Begun::Now => {}
            Begun::Already => return Some(Behind::Done),
            Begun::Busy => {
                // It is named again when the other is out of the way.
                self.hot.mark_stored(&key, hash, version, false, self.clock.now());
                return Some(Behind::Busy);
            }
        }
        if !self.hot.has_version(&key, hash, version) && !self.transit.has_left(&key) {
            self.finish(&key, &key.bytes(), version);
            return Some(Behind::Done);
        }
        if paced {
            self.keep_pace();
        }
        let bytes = pending.bytes;
        let stored = self.store(&key, pending);
        self.pace.lock().wrote(bytes);
        Some(match stored {
            Stored::Yes | Stored::Refused => Behind::Done,
            Stored::Failed(error) => Behind::Failed(error),
        })
    }

    fn store_and_note(&self, key: &K, pending: Pending<V>) {
        if let Stored::Failed(error) = self.store(key, pending) {
            self.late(error);
        }
    }

    /// Stores what was begun, and finishes it.
    fn store(&self, key: &K, pending: Pending<V>) -> Stored {
        let bytes = key.bytes();
        let id = KeyId::of(&bytes);
        let finish = Finish { shared: self, key, key_bytes: &bytes, version: pending.version };
        let stored = match self.encode(&bytes, &pending.value) {
            Ok(value) => self.store_below(&bytes, id, &value, pending.cost),
            Err(error) => {
                self.late(error);
                Stored::Refused
            }
        };
        let hash = self.hot.hash(key);
        let now = self.clock.now();
        match &stored {
            // Refused: nothing is gained by offering it again.
            Stored::Yes | Stored::Refused => self.hot.mark_stored(key, hash, pending.version, true, now),
            Stored::Failed(_) => self.hot.mark_stored(key, hash, pending.version, false, now),
        }
        match &stored {
            Stored::Yes => {
                Counters::add(&self.counters.demoted, 1);
                if self.failing.swap(false, Ordering::Relaxed) {
                    self.notice(|| "values can be stored below memory again".to_owned());
                }
            }
            Stored::Refused => Counters::add(&self.counters.not_stored, 1),
            Stored::Failed(error) => {
                // What is still in memory is tried again.
                let lost = !self.hot.has_version(key, hash, pending.version);
                Counters::add(&self.counters.lost, u64::from(lost));
                if !self.failing.swap(true, Ordering::Relaxed) {
                    self.notice(|| format!("values are kept in memory only: {}", with_cause(error)));
                }
            }
        }
        drop(finish);
        stored
    }

    /// Ends what was begun. What was superseded meanwhile is removed below before anything later is begun.
    fn finish(&self, key: &K, key_bytes: &[u8], version: u64) {
        if self.transit.finish(key) == Finished::Superseded {
            self.outdate(key_bytes, KeyId::of(key_bytes), version.saturating_add(1));
            self.transit.settle(key);
        }
    }

    fn store_below(&self, key: &[u8], id: KeyId, value: &Bytes, cost: f32) -> Stored {
        let mut failed = None;
        if let Some(warm) = &self.warm {
            if !self.read_time.lock().is_worth_storing(value.len() as u64, f64::from(cost)) {
                Counters::add(&self.counters.cheaper_to_make, 1);
                return Stored::Refused;
            }
            match warm.put(key, id, value, cost) {
                Ok(Kept::Stored | Kept::AlreadyThere) => return Stored::Yes,
                Ok(Kept::Refused(Refusal::TooLarge | Refusal::ReadOnly | Refusal::NotWorthIt)) => {}
                Err(error) => failed = Some(error),
            }
        }
        for tier in self.cold.iter().filter(|tier| tier.writable()) {
            if let Err(error) = self.clear_stale(Some(id)) {
                failed.get_or_insert(error);
                continue;
            }
            let _writing = self.cold_writes.lock();
            match tier.put(key, value, cost) {
                Ok(Kept::Stored | Kept::AlreadyThere) => return Stored::Yes,
                Ok(Kept::Refused(_)) => {}
                Err(error) => {
                    Counters::add(&self.counters.cold_errors, 1);
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Stored::Refused, Stored::Failed)
    }

    /// Removes from the cold tiers what is out of date: of one key, or of some. An error leaves it hidden.
    pub(super) fn clear_stale(&self, only: Option<KeyId>) -> Result<()> {
        let _writing = self.cold_writes.lock();
        let mut ids: Vec<KeyId> = match only {
            Some(id) => vec![id],
            None => self.stale.lock().iter().filter(|(_, s)| !s.for_good).map(|(&id, _)| id).collect(),
        };
        let mut failed = None;
        while let Some(id) = ids.pop() {
            let Some((key, version)) = self.stale.lock().get(&id).map(|s| (s.key.clone(), s.version)) else {
                continue;
            };
            let (mut removed, mut for_good) = (true, false);
            for tier in &self.cold {
                if !tier.writable() {
                    for_good |= tier.contains(&key).unwrap_or(true);
                } else if let Err(error) = tier.remove(&key) {
                    Counters::add(&self.counters.cold_errors, 1);
                    failed.get_or_insert(error);
                    removed = false;
                }
            }
            let mut stale = self.stale.lock();
            if removed && for_good {
                if let Some(entry) = stale.get_mut(&id) {
                    entry.for_good = true;
                }
            } else if removed && stale.get(&id).is_some_and(|entry| entry.version == version) {
                stale.remove(&id);
            }
            self.stale_len.store(stale.len(), Ordering::Release);
        }
        failed.map_or(Ok(()), Err)
    }

    /// A part of the background's work; `false` if there was nothing to do, or it does not work now.
    fn clear_some_stale(&self) -> bool {
        let next = self.stale.lock().iter().find(|(_, stale)| !stale.for_good).map(|(&id, _)| id);
        match next.map(|id| self.clear_stale(Some(id))) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.late(error);
                false
            }
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.check_open()?;
        self.flush_open()
    }

    fn flush_open(&self) -> Result<()> {
        let version = self.versions.load(Ordering::Acquire);
        let mut failed = None;
        loop {
            let mut busy = false;
            // As many as there are now: those that fail, and those in whose way another is, come back to the end.
            for _ in 0..self.hot.counts().entries.saturating_mul(2).saturating_add(1) {
                match self.write_behind_since(Duration::MAX, false) {
                    None => break,
                    Some(Behind::Done) => {}
                    Some(Behind::Busy) => busy = true,
                    Some(Behind::Failed(error)) => {
                        failed.get_or_insert(error);
                        break;
                    }
                }
            }
            while let Some((key, pending)) = self.transit.begin() {
                if let Stored::Failed(error) = self.store(&key, pending) {
                    failed.get_or_insert(error);
                }
            }
            self.transit.wait_until_stored(version);
            if !busy || failed.is_some() {
                break;
            }
        }
        if let Err(error) = self.clear_stale(None) {
            failed.get_or_insert(error);
        }
        if let Some(Err(error)) = self.warm.as_ref().map(|warm| warm.flush()) {
            failed.get_or_insert(error);
        }
        for tier in self.cold.iter().filter(|tier| tier.writable()) {
            if let Err(error) = tier.flush() {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn close(self: &Arc<Self>, threads: &mut Vec<JoinHandle<()>>) -> LateErrors {
        let hints = self.hints.lock().take();
        if hints.is_none() {
            return LateErrors { errors: Vec::new(), more: 0 };
        }
        drop(hints);
        if let Err(error) = self.flush_open() {
            self.late(error);
        }
        self.closed.store(true, Ordering::Release);
        self.transit.close();
        for thread in threads.drain(..) {
            // A panic in it was printed by the hook, and is not this caller's.
            let _ = thread.join();
        }
        // What came in while this one flushed.
        while let Some((key, pending)) = self.transit.begin() {
            self.store_and_note(&key, pending);
        }
        if let Some(Err(error)) = self.warm.as_ref().map(|warm| warm.close()) {
            self.late(error);
        }
        for tier in &self.cold {
            if let Err(error) = tier.close() {
                self.late(error);
            }
        }
        let errors = std::mem::take(&mut *self.late.lock());
        let count = self.counters.late_errors.load(Ordering::Relaxed);
        LateErrors { more: count.saturating_sub(errors.len() as u64), errors }
    }
}

/// An error with what caused it, in a line.
fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Finishes a write that was begun, also when it panics: nothing may wait for it for ever.
struct Finish<'a, K: Key, V: Clone + Send + Sync + 'static> {
    shared: &'a Shared<K, V>,
    key: &'a K,
    key_bytes: &'a [u8],
    version: u64,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Finish<'_, K, V> {
    fn drop(&mut self) {
        self.shared.finish(self.key, self.key_bytes, self.version);
    }
}

//! What all threads of a cache share: the search through the tiers, and every change to what they hold.
//!
//! Order of locks: the flight of a key, the hot tier's policy, a shard of its map, the values in transit. The tiers
//! below are called with none of them held.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::buffers::PAGE_BYTES;
use crate::cache::{Budgets, Placed};
use crate::clock::Clock;
use crate::codec::Codec;
use crate::cold::{Cold, Refusal};
use crate::error::{Error, Result, SharedCause};
use crate::flight::{Flights, Joined};
use crate::hot::{ENTRY_BYTES, Hot, Incoming, Inserted, Outgoing};
use crate::key::{Key, KeyId, shown};
use crate::middle::{Fetched, Middle};
use crate::movement::{Pace, ReadTime};
use crate::stats::{ColdTierStats, Counters, HotStats, Stats};
use crate::transit::{Lookup, Pending, Transit};

/// Why a key is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for the value.
    Get,
    /// Somebody will.
    Prefetch,
}

/// What a background thread is told of a cost by nobody: until something is measured.
const COST_DEFAULT_SECONDS: f32 = 0.1;
/// Late errors that are kept whole.
pub(super) const LATE_ERRORS_MAX: usize = 16;

/// What `cost` a value has, by its key and itself.
pub(super) type CostHint<K, V> = Box<dyn Fn(&K, &V) -> Duration + Send + Sync>;
/// Who is told of what happens to the tiers.
pub(super) type OnNotice = Box<dyn Fn(&str) + Send + Sync>;

pub(super) struct Shared<K: Key, V: Clone + Send + Sync + 'static> {
    pub(super) hot: Hot<K, V>,
    pub(super) flights: Flights<K, V, SharedCause>,
    pub(super) transit: Transit<K, V>,
    pub(super) codec: Arc<dyn Codec<V>>,
    pub(super) warm: Option<Box<dyn Middle>>,
    pub(super) cold: Vec<Arc<dyn Cold>>,
    /// Keys of which the cold tiers have something out of date, with the version that made it so.
    pub(super) stale: Mutex<HashMap<KeyId, Stale>>,
    /// How many there are, to look without the lock.
    pub(super) stale_len: AtomicUsize,
    /// Held while cold tiers are written to or cleaned, so that no removal meets a later value.
    pub(super) cold_writes: Mutex<()>,
    pub(super) clock: Clock,
    pub(super) cost: Option<CostHint<K, V>>,
    pub(super) on_notice: Option<OnNotice>,
    pub(super) versions: AtomicU64,
    pub(super) counters: Counters,
    pub(super) read_time: Mutex<ReadTime>,
    /// Reads of callers that go on below.
    pub(super) reads: AtomicUsize,
    pub(super) pace: Mutex<Pace>,
    pub(super) write_behind: Option<Duration>,
    /// Whether the writer sleeps until something is queued.
    pub(super) sleeping: AtomicBool,
    /// Hints to the prefetching threads; `None` once closed.
    pub(super) hints: Mutex<Option<Sender<K>>>,
    /// Without a thread for them, the other end: the caller does what it would.
    pub(super) hinted: Option<Receiver<K>>,
    pub(super) threads: usize,
    pub(super) closed: AtomicBool,
    /// Whether the last value that was to be stored below could not be.
    pub(super) failing: AtomicBool,
    /// Of each cold tier, whether the last question to it failed.
    pub(super) cold_failing: Box<[AtomicBool]>,
    pub(super) late: Mutex<Vec<Error>>,
    /// Seconds a value took to make, on average; bits of an `f32`.
    pub(super) usual_cost: AtomicU64,
}

/// A key whose copies in cold tiers are out of date.
pub(super) struct Stale {
    pub(super) key: Vec<u8>,
    pub(super) version: u64,
    /// A tier that cannot be written to has it: it stays hidden.
    pub(super) for_good: bool,
}

/// Which cold tiers have something out of date of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Staleness {
    None,
    /// Those that cannot be written to.
    ReadOnly,
    All,
}

impl Staleness {
    pub(super) fn hides(self, tier: &dyn Cold) -> bool {
        match self {
            Self::None => false,
            Self::ReadOnly => !tier.writable(),
            Self::All => true,
        }
    }
}

/// A value found, and how it goes into the hot tier.
struct Found<V> {
    value: V,
    version: u64,
    stored: bool,
    /// Seconds to make it again.
    origin_cost: f32,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Shared<K, V> {
    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn weight(&self, key: &[u8], value: &V) -> u64 {
        self.codec.bytes(value).saturating_add(key.len() as u64).saturating_add(ENTRY_BYTES)
    }

    pub(super) fn has_tiers_below(&self) -> bool {
        self.warm.is_some() || !self.cold.is_empty()
    }

    /// Whether a tier below takes values.
    pub(super) fn stores(&self) -> bool {
        self.warm.is_some() || self.cold.iter().any(|tier| tier.writable())
    }

    /// Looks for a key that the hot tier did not have.
    pub(super) fn search(&self, key: &K, hash: u64, purpose: Purpose) -> Result<Option<V>> {
        loop {
            self.check_open()?;
            let lead = match self.flights.join(key, hash) {
                Joined::Landed(Ok(found)) => return Ok(found),
                // Somebody else's loader failed: for who only asks, there is nothing.
                Joined::Landed(Err(_)) => return Ok(None),
                Joined::Lead(lead) => lead,
            };
            // It may have come between the look and the lead.
            if let Some(value) = self.hot.get(key, hash) {
                lead.land(Ok(Some(value.clone())), || {});
                return Ok(Some(value));
            }
            let found = self.below(key, purpose);
            let value = found.as_ref().map(|found| found.value.clone());
            if !lead.land(Ok(value.clone()), || self.promote(key, found)) {
                continue;
            }
            if value.is_none() {
                self.missed(key);
            }
            self.work_if_alone();
            return Ok(value);
        }
    }

    /// The same, and makes the value if it is nowhere.
    pub(super) fn search_or_load(
        &self,
        key: &K,
        hash: u64,
        load: impl FnOnce() -> Result<V, SharedCause>,
    ) -> Result<V> {
        loop {
            self.check_open()?;
            let lead = match self.flights.join(key, hash) {
                Joined::Landed(Ok(Some(value))) => return Ok(value),
                // The leader had nothing to load with.
                Joined::Landed(Ok(None)) => continue,
                Joined::Landed(Err(source)) => return Err(Error::Load { key: shown(&key.bytes()), source }),
                Joined::Lead(lead) => lead,
            };
            if let Some(value) = self.hot.get(key, hash) {
                lead.land(Ok(Some(value.clone())), || {});
                return Ok(value);
            }
            if let Some(found) = self.below(key, Purpose::Get) {
                let value = found.value.clone();
                lead.land(Ok(Some(value.clone())), || self.promote(key, Some(found)));
                self.work_if_alone();
                return Ok(value);
            }
            Counters::add(&self.counters.misses, 1);
            let begun = self.clock.now();
            let made = load();
            let seconds = self.clock.now().saturating_sub(begun).as_secs_f32();
            let value = match made {
                Ok(value) => value,
                Err(source) => {
                    Counters::add(&self.counters.load_errors, 1);
                    lead.land(Err(Arc::clone(&source)), || {});
                    return Err(Error::Load { key: shown(&key.bytes()), source });
                }
            };
            Counters::add(&self.counters.loads, 1);
            self.learn_cost(seconds);
            let origin_cost = self.cost.as_ref().map_or(seconds, |hint| hint(key, &value).as_secs_f32());
            let found = Found {
                value: value.clone(),
                version: self.next_version(),
                stored: !self.stores(),
                origin_cost,
            };
            lead.land(Ok(Some(value.clone())), || self.promote(key, Some(found)));
            self.make_room();
            return Ok(value);
        }
    }

    /// No tier has it, and nobody makes it.
    fn missed(&self, key: &K) {
        Counters::add(&self.counters.misses, 1);
        let id = KeyId::of(&key.bytes());
        self.hot.miss(id);
        if let Some(warm) = &self.warm {
            warm.missed(id);
        }
    }

    /// What the tiers below the hot one have.
    fn below(&self, key: &K, purpose: Purpose) -> Option<Found<V>> {
        match self.transit.get(key) {
            Lookup::Here(pending) => {
                Counters::add(&self.counters.transit_hits, 1);
                let Pending { value, version, cost, .. } = pending;
                return Some(Found { value, version, stored: false, origin_cost: cost });
            }
            Lookup::Gone => return None,
            Lookup::Unknown => {}
        }
        if !self.has_tiers_below() {
            return None;
        }
        let bytes = key.bytes();
        let id = KeyId::of(&bytes);
        let _reading = (purpose == Purpose::Get).then(|| Reading::begin(&self.reads));
        self.search_warm(&bytes, id).or_else(|| self.search_cold(&bytes, id))
    }

    fn search_warm(&self, key: &[u8], id: KeyId) -> Option<Found<V>> {
        let warm = self.warm.as_ref()?;
        // Before the read: whatever is written meanwhile is later.
        let version = self.next_version();
        let begun = self.clock.now();
        match warm.get(key, id) {
            Fetched::Found { value, cost } => {
                let took = self.clock.now().saturating_sub(begun);
                self.read_time.lock().learn(value.len() as u64, took);
                match self.codec.decode(value) {
                    Ok(value) => Some(Found { value, version, stored: true, origin_cost: cost }),
                    Err(_) => {
                        // Another program's, or another version's: of no use to this one.
                        Counters::add(&self.counters.undecodable, 1);
                        warm.remove(id);
                        None
                    }
                }
            }
            Fetched::Damaged(what) => {
                self.notice(|| format!("warm tier: the value of {} is removed: {what}", shown(key)));
                None
            }
            Fetched::Absent => None,
        }
    }

    fn search_cold(&self, key: &[u8], id: KeyId) -> Option<Found<V>> {
        if self.cold.is_empty() {
            return None;
        }
        let staleness = self.staleness(id);
        for (tier, failing) in self.cold.iter().zip(&self.cold_failing) {
            if staleness.hides(&**tier) {
                continue;
            }
            let version = self.next_version();
            let begun = self.clock.now();
            let value = match tier.get(key) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(error) => {
                    Counters::add(&self.counters.cold_errors, 1);
                    if !failing.swap(true, Ordering::Relaxed) {
                        self.notice(|| format!("a cold tier is gone without for now: {error}"));
                    }
                    self.late(error);
                    continue;
                }
            };
            if failing.swap(false, Ordering::Relaxed) {
                self.notice(|| format!("{} answers again", tier.name()));
            }
            let seconds = self.clock.now().saturating_sub(begun).as_secs_f64();
            let bytes = value.len() as u64;
            // A part of a page would keep all of it, which no budget counts.
            let value = if value.len() < PAGE_BYTES { Bytes::copy_from_slice(&value) } else { value };
            match self.codec.decode(value) {
                Ok(value) => {
                    Counters::add(&self.counters.cold_hits, 1);
                    // It goes to the warm tier when it leaves the hot one, if it is faster there by a clear factor.
                    let faster =
                        self.warm.is_some() && self.read_time.lock().is_worth_storing(bytes, seconds);
                    return Some(Found { value, version, stored: !faster, origin_cost: seconds as f32 });
                }
                Err(_) => {
                    Counters::add(&self.counters.undecodable, 1);
                }
            }
        }
        None
    }

    /// Puts what was found below, or made, into the hot tier. Called under the lock of its flight.
    fn promote(&self, key: &K, found: Option<Found<V>>) {
        let Some(found) = found else { return };
        let id = KeyId::of(&key.bytes());
        let bytes = self.weight(&key.bytes(), &found.value);
        if found.stored && !self.transit.has_room(0) {
            // Making room could mean more to write than the drive keeps up with: not for the sake of a read.
            Counters::add(&self.counters.promotions_skipped, 1);
            return;
        }
        let back = if found.stored { None } else { self.transit.take_back(key, found.version) };
        let written = !found.stored && back.is_none() && matches!(self.transit.get(key), Lookup::Here(_));
        let stored = found.stored || written;
        let incoming = Incoming {
            key: key.clone(),
            id,
            value: found.value.clone(),
            bytes,
            cost: self.hot_cost(bytes, found.origin_cost),
            version: found.version,
            stored,
            origin_cost: found.origin_cost,
        };
        match self.hot.insert(incoming, self.clock.now(), None, |out| self.leaves(out)) {
            Inserted::Kept => Counters::add(&self.counters.promoted, 1),
            Inserted::Present => {}
            // It stays where it is, or goes on its way again.
            Inserted::Refused if !found.stored && !written => {
                let Found { value, version, origin_cost, .. } = found;
                self.transit.push(key, Pending { value, version, bytes, cost: origin_cost });
            }
            Inserted::Refused => {}
        }
        if !stored {
            self.wake();
        }
    }

    /// A value leaves the hot tier: if no tier below has it, it is on its way there now.
    fn leaves(&self, out: Outgoing<'_, K, V>) {
        // The warm tier learns that it was used up here. What it gave up meanwhile is stored nowhere again.
        let kept =
            out.stored && self.warm.as_ref().is_none_or(|warm| warm.touch(KeyId::of(&out.key.bytes())));
        if kept || !self.stores() {
            return;
        }
        let Outgoing { key, value, bytes, version, origin_cost, .. } = out;
        self.transit.push(key, Pending { value, version, bytes, cost: origin_cost });
    }

    /// What it costs to get a value again that the hot tier gives up, in seconds.
    fn hot_cost(&self, bytes: u64, origin_cost: f32) -> f32 {
        if self.warm.is_none() {
            return origin_cost;
        }
        (self.read_time.lock().seconds(bytes) as f32).min(origin_cost)
    }

    fn learn_cost(&self, seconds: f32) {
        let usual = f32::from_bits(self.usual_cost.load(Ordering::Relaxed) as u32);
        let usual = if usual == 0.0 { seconds } else { usual + (seconds - usual) / 16.0 };
        self.usual_cost.store(u64::from(usual.to_bits()), Ordering::Relaxed);
    }

    /// What a value costs of which nobody said.
    fn cost_of(&self, key: &K, value: &V, told: Option<Duration>) -> f32 {
        if let Some(told) = told {
            return told.as_secs_f32();
        }
        if let Some(hint) = &self.cost {
            return hint(key, value).as_secs_f32();
        }
        let usual = f32::from_bits(self.usual_cost.load(Ordering::Relaxed) as u32);
        // It was worth inserting: what is not known is never a reason not to store it.
        let read = self.read_time.lock().seconds(self.codec.bytes(value)) as f32;
        usual.max(COST_DEFAULT_SECONDS).max(4.0 * read)
    }

    pub(super) fn insert(&self, key: K, value: V, told: Option<Duration>) -> Result<Placed> {
        self.check_open()?;
        let key_bytes = key.bytes().into_owned();
        let id = KeyId::of(&key_bytes);
        let hash = self.hot.hash(&key);
        let bytes = self.weight(&key_bytes, &value);
        let origin_cost = self.cost_of(&key, &value, told);
        let stores = self.stores();
        let version = self.next_version();
        let incoming = Incoming {
            key: key.clone(),
            id,
            value: value.clone(),
            bytes,
            cost: self.hot_cost(bytes, origin_cost),
            version,
            stored: !stores,
            origin_cost,
        };
        let placed = self.flights.supersede(&key, hash, || {
            let mut hold = || self.transit.supersede_and_hold(&key);
            let inserted =
                self.hot.insert(incoming, self.clock.now(), Some(&mut hold), |out| self.leaves(out));
            self.outdate(&key_bytes, id, version);
            let placed = match inserted {
                Inserted::Kept | Inserted::Present => Placed::Hot,
                Inserted::Refused if stores => {
                    self.transit.push(&key, Pending { value, version, bytes, cost: origin_cost });
                    Placed::Below
                }
                Inserted::Refused if bytes > self.hot.budget() => Placed::Refused(Refusal::TooLarge),
                Inserted::Refused => Placed::Refused(Refusal::NotWorthIt),
            };
            self.transit.release(&key);
            placed
        });
        Counters::add(&self.counters.inserted, 1);
        self.wake();
        self.make_room();
        Ok(placed)
    }

    /// What the tiers below have of a key is older than this version: it must not be found again. In memory and in the
    /// warm tier's index at once; from the cold tiers it is removed in the background.
    pub(super) fn outdate(&self, key: &[u8], id: KeyId, version: u64) {
        if let Some(warm) = &self.warm {
            warm.remove(id);
        }
        if !self.cold.is_empty() {
            let mut stale = self.stale.lock();
            stale.insert(id, Stale { key: key.to_vec(), version, for_good: false });
            self.stale_len.store(stale.len(), Ordering::Release);
        }
    }

    /// Whether what the cold tiers have of a key is out of date; `for_good`: only in those that cannot be written to.
    pub(super) fn staleness(&self, id: KeyId) -> Staleness {
        if self.stale_len.load(Ordering::Acquire) == 0 {
            return Staleness::None;
        }
        match self.stale.lock().get(&id) {
            None => Staleness::None,
            Some(stale) if stale.for_good => Staleness::ReadOnly,
            Some(_) => Staleness::All,
        }
    }

    pub(super) fn remove(&self, key: &K) -> Result<()> {
        self.check_open()?;
        let hash = self.hot.hash(key);
        let key_bytes = key.bytes().into_owned();
        let id = KeyId::of(&key_bytes);
        let version = self.next_version();
        self.flights.supersede(key, hash, || {
            self.hot.remove(key, hash, || self.transit.supersede_and_hold(key));
            self.outdate(&key_bytes, id, version);
            self.transit.release(key);
        });
        Counters::add(&self.counters.removed, 1);
        self.clear_stale(Some(id))
    }

    pub(super) fn contains(&self, key: &K) -> Result<bool> {
        self.check_open()?;
        if self.hot.contains(key, self.hot.hash(key)) {
            return Ok(true);
        }
        match self.transit.get(key) {
            Lookup::Here(_) => return Ok(true),
            Lookup::Gone => return Ok(false),
            Lookup::Unknown => {}
        }
        let bytes = key.bytes();
        let id = KeyId::of(&bytes);
        if self.warm.as_ref().is_some_and(|warm| warm.contains(id)) {
            return Ok(true);
        }
        // A tier that fails is a tier without the value.
        let staleness = self.staleness(id);
        let mut tiers = self.cold.iter().filter(|tier| !staleness.hides(&***tier));
        Ok(tiers.any(|tier| tier.contains(&bytes).unwrap_or(false)))
    }

    pub(super) fn pin(&self, key: &K) -> Result<bool> {
        let hash = self.hot.hash(key);
        // Between the search and the pin it may leave again; with every try it is used, so that is rare.
        for _ in 0..4 {
            self.check_open()?;
            if self.hot.pin(key, hash) {
                return Ok(true);
            }
            if self.search(key, hash, Purpose::Get)?.is_none() {
                return Ok(false);
            }
        }
        Ok(self.hot.pin(key, hash))
    }

    pub(super) fn unpin(&self, key: &K) -> bool {
        let unpinned = self.hot.unpin(key, self.hot.hash(key), |out| self.leaves(out));
        self.wake();
        self.work_if_alone();
        unpinned
    }

    pub(super) fn prefetch(&self, keys: impl IntoIterator<Item = K>) -> Result<usize> {
        self.check_open()?;
        if !self.has_tiers_below() {
            return Ok(0);
        }
        let mut taken = 0;
        {
            let hints = self.hints.lock();
            let Some(hints) = &*hints else { return Err(Error::Closed) };
            for key in keys {
                match hints.try_send(key) {
                    Ok(()) => taken += 1,
                    Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                        Counters::add(&self.counters.hints_dropped, 1);
                    }
                }
            }
        }
        Counters::add(&self.counters.hints, taken as u64);
        self.bring_up_if_alone();
        self.work_if_alone();
        Ok(taken)
    }

    pub(super) fn resize(&self, budgets: Budgets) -> Result<()> {
        self.check_open()?;
        if let Some(bytes) = budgets.hot_bytes {
            self.hot.set_budget(bytes, |out| self.leaves(out));
            self.wake();
            self.make_room();
        }
        if let (Some(bytes), Some(warm)) = (budgets.warm_bytes, &self.warm) {
            warm.resize(bytes)?;
        }
        if let Some(bytes) = budgets.cold_bytes {
            for tier in &self.cold {
                tier.resize(bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn stats(&self) -> Stats {
        let hot = self.hot.counts();
        let (transit_bytes, transit_entries) = self.transit.load();
        let cold = |tier: &Arc<dyn Cold>| ColdTierStats { name: tier.name(), stats: tier.stats() };
        Stats {
            hot: HotStats {
                policy: self.hot.policy(),
                entries: hot.entries,
                bytes: hot.bytes,
                bytes_high: hot.bytes_high,
                budget_bytes: self.hot.budget(),
                pinned_bytes: hot.pinned_bytes,
                hits: hot.hits,
                inserted: hot.inserted,
                refused: hot.refused,
                evicted: hot.evicted,
                uses_forgotten: hot.uses_forgotten,
            },
            transit_bytes,
            transit_entries: transit_entries as u64,
            warm: self.warm.as_ref().map(|warm| warm.stats()),
            cold: self.cold.iter().map(cold).collect(),
            flights: self.flights.len() as u64,
            ..self.counters.read()
        }
    }

    /// Says what happened, to whoever wants to know.
    pub(super) fn notice(&self, text: impl FnOnce() -> String) {
        if let Some(tell) = &self.on_notice {
            tell(&text());
        }
    }

    /// Keeps an error for `close`: each kind once.
    pub(super) fn late(&self, error: Error) {
        Counters::add(&self.counters.late_errors, 1);
        let mut late = self.late.lock();
        let text = error.to_string();
        if late.len() < LATE_ERRORS_MAX && late.iter().all(|before| before.to_string() != text) {
            late.push(error);
        }
    }

    /// Encodes a value; one that cannot be stays in memory.
    pub(super) fn encode(&self, key: &[u8], value: &V) -> Result<Bytes> {
        let fail = |source| Error::Codec { key: shown(key), operation: "encoded", source };
        self.codec.encode(value).map_err(fail)
    }
}

/// A read of a caller that goes on.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn begin(reads: &'a AtomicUsize) -> Self {
        reads.fetch_add(1, Ordering::Relaxed);
        Self(reads)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

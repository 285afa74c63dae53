//! The hot tier: values in memory under a budget of bytes, found without waiting.
//!
//! A hit takes a shared lock of one of many shards, clones the value (a reference count) and notes the use in a ring of
//! the thread's own; it never takes the lock of the policy. Everything that changes who is resident takes that lock:
//! it first tells the policy of the uses that were noted, then inserts, then evicts until the budget holds. What is
//! seen from outside is never over the budget.
//!
//! A ring that is full forgets its oldest uses, as the caches after BP-Wrapper (Ding, Jiang and Zhang 2009) do: the
//! policy then knows a little less, and nobody waited.

use std::cell::Cell;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{Mutex, RwLock};

use crate::key::KeyId;
use crate::policy::{Item, Leave, Policy, Slot};

/// Locks of the map: many more than threads, so that two rarely want the same.
const SHARDS: usize = 64;
/// Rings of uses: threads beyond this share.
const RINGS: usize = 16;
/// Uses a ring remembers.
const RING_USES: usize = 4096;
/// Uses told to the policy before one insertion, so that no insertion is long.
const USES_PER_INSERT: usize = 512;

/// What an entry takes beside its key's and its value's bytes: places in the map, the policy and the table of slots. Up to
/// 260 bytes were measured with the default policy, 280 with the others, 400 with the cyclic one.
pub(crate) const ENTRY_BYTES: u64 = 400;

/// A value that comes in.
pub(crate) struct Incoming<K, V> {
    pub(crate) key: K,
    pub(crate) id: KeyId,
    pub(crate) value: V,
    /// What it takes of the budget.
    pub(crate) bytes: u64,
    /// Seconds to get it again from below.
    pub(crate) cost: f32,
    /// A larger one is later.
    pub(crate) version: u64,
    /// Whether a tier below has it.
    pub(crate) stored: bool,
    /// Seconds to make it again when no tier has it.
    pub(crate) origin_cost: f32,
}

/// A value that leaves for want of room.
#[derive(Debug)]
pub(crate) struct Outgoing<'a, K, V> {
    pub(crate) key: &'a K,
    pub(crate) value: V,
    pub(crate) bytes: u64,
    pub(crate) version: u64,
    pub(crate) stored: bool,
    pub(crate) origin_cost: f32,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It is resident.
    Kept,
    /// Something of that key is resident already and stays.
    Present,
    /// The policy, or the budget, has no room for it.
    Refused,
}

/// What is known of a resident.
pub(crate) struct Resident {
    pub(crate) bytes: u64,
    pub(crate) stored: bool,
    pub(crate) pins: u32,
    pub(crate) uses: u32,
    pub(crate) worth: f64,
    pub(crate) why: String,
}

/// Figures of the tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_high: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) hits: u64,
    pub(crate) uses_forgotten: u64,
    pub(crate) inserted: u64,
    pub(crate) refused: u64,
    pub(crate) evicted: u64,
}

/// The tier.
pub(crate) struct Hot<K, V> {
    hasher: DefaultHashBuilder,
    shards: Box<[Shard<K, V>]>,
    uses: Uses,
    core: Mutex<Core>,
    budget: AtomicU64,
    /// Tell the policy of a use when it happens: exact, and slower.
    exact: bool,
}

type Shard<K, V> = RwLock<HashTable<Entry<K, V>>>;

struct Entry<K, V> {
    key: K,
    value: V,
    token: Token,
    version: u64,
    bytes: u64,
    origin_cost: f32,
    stored: bool,
}

/// A slot and its generation, so that a use noted for one who left is not counted for who came after.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Token(u64);

impl Token {
    fn new(slot: Slot, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot.0))
    }

    fn slot(self) -> Slot {
        Slot(self.0 as u32)
    }
}

struct Core {
    policy: Box<dyn Policy>,
    /// By slot.
    residents: Vec<Place>,
    /// How far each ring was told to the policy.
    told: Vec<u64>,
    /// What is not stored below, oldest first, with when it came.
    unstored: std::collections::VecDeque<(Duration, Token)>,
    counts: Counts,
}

struct Place {
    generation: u32,
    resident: Option<Held>,
}

struct Held {
    hash: u64,
    bytes: u64,
    pins: u32,
}

impl<K: Clone + Eq + Hash, V: Clone> Hot<K, V> {
    pub(crate) fn new(budget: u64, mut policy: Box<dyn Policy>, exact: bool) -> Self {
        policy.set_budget(budget);
        let core = Core {
            policy,
            residents: Vec::new(),
            told: vec![0; RINGS],
            unstored: Default::default(),
            counts: Counts::default(),
        };
        Self {
            hasher: DefaultHashBuilder::default(),
            shards: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
            uses: Uses::new(),
            core: Mutex::new(core),
            budget: AtomicU64::new(budget),
            exact,
        }
    }

    /// The hash that this tier and the flights go by.
    #[inline]
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard<K, V> {
        // The table takes its tag from the highest bits and its place from the lowest: these are neither.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// The value, if it is resident. Counts as a use.
    #[inline]
    pub(crate) fn get(&self, key: &K, hash: u64) -> Option<V> {
        let (value, token) = {
            let shard = self.shard(hash).read();
            let entry = shard.find(hash, |entry| entry.key == *key)?;
            (entry.value.clone(), entry.token)
        };
        self.uses.note(token);
        if self.exact {
            self.tell();
        }
        Some(value)
    }

    /// Whether it is resident. No use.
    pub(crate) fn contains(&self, key: &K, hash: u64) -> bool {
        self.shard(hash).read().find(hash, |entry| entry.key == *key).is_some()
    }

    /// Puts a value in; `leaving` is told of each that makes room, while it can still be found here.
    ///
    /// With `replace`, a resident of that key gets this value, and `replace` is done before anything else, while nothing
    /// can leave; else the resident stays as it is.
    pub(crate) fn insert(
        &self,
        incoming: Incoming<K, V>,
        now: Duration,
        replace: Option<&mut dyn FnMut()>,
        mut leaving: impl FnMut(Outgoing<'_, K, V>),
    ) -> Inserted {
        let hash = self.hash(&incoming.key);
        let budget = self.budget.load(Ordering::Relaxed);
        let mut dropped = Vec::new();
        let replaces = replace.is_some();
        let mut core = self.core.lock();
        let core = &mut *core;
        if let Some(first) = replace {
            first();
        }
        core.tell(&self.uses, USES_PER_INSERT);
        let resident =
            self.shard(hash).read().find(hash, |entry| entry.key == incoming.key).map(|entry| entry.token);
        if let Some(token) = resident {
            if !replaces {
                core.policy.hit(token.slot());
                return Inserted::Present;
            }
            return self.replace(core, incoming, hash, token, budget, now, &mut leaving, &mut dropped);
        }
        if incoming.bytes > budget {
            core.policy.miss(incoming.id);
            core.counts.refused += 1;
            return Inserted::Refused;
        }
        let item = Item { id: incoming.id, bytes: incoming.bytes.max(1), cost: incoming.cost, uses: 0 };
        let slot = core.policy.insert(item);
        let token = core.place(slot, Held { hash, bytes: incoming.bytes, pins: 0 });
        core.counts.bytes += incoming.bytes;
        if !self.evict(core, budget, Some(slot), &mut leaving, &mut dropped) {
            core.counts.refused += 1;
            return Inserted::Refused;
        }
        if !incoming.stored {
            core.unstored.push_back((now, token));
        }
        core.counts.entries += 1;
        core.counts.inserted += 1;
        core.counts.bytes_high = core.counts.bytes_high.max(core.counts.bytes);
        let Incoming { key, value, bytes, version, stored, origin_cost, .. } = incoming;
        let entry = Entry { key, value, token, version, bytes, origin_cost, stored };
        self.shard(hash).write().insert_unique(hash, entry, |entry| self.hasher.hash_one(&entry.key));
        Inserted::Kept
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of `insert`")]
    fn replace(
        &self,
        core: &mut Core,
        incoming: Incoming<K, V>,
        hash: u64,
        token: Token,
        budget: u64,
        now: Duration,
        leaving: &mut impl FnMut(Outgoing<'_, K, V>),
        dropped: &mut Vec<V>,
    ) -> Inserted {
        if incoming.bytes > budget {
            core.policy.miss(incoming.id);
            core.counts.refused += 1;
            dropped.extend(self.take_out(core, token, Leave::Removed).map(|entry| entry.value));
            return Inserted::Refused;
        }
        let slot = token.slot();
        core.policy.hit(slot);
        core.policy.update(slot, incoming.bytes.max(1), incoming.cost);
        let Some(held) = core.residents.get_mut(slot.0 as usize).and_then(|place| place.resident.as_mut())
        else {
            return Inserted::Refused;
        };
        let before = held.bytes;
        held.bytes = incoming.bytes;
        if held.pins > 0 {
            core.counts.pinned_bytes = core.counts.pinned_bytes + incoming.bytes - before;
        }
        core.counts.bytes = core.counts.bytes + incoming.bytes - before;
        if !incoming.stored {
            core.unstored.push_back((now, token));
        }
        {
            let mut shard = self.shard(hash).write();
            if let Some(entry) = shard.find_mut(hash, |entry| entry.token == token) {
                dropped.push(std::mem::replace(&mut entry.value, incoming.value));
                entry.version = incoming.version;
                entry.bytes = incoming.bytes;
                entry.origin_cost = incoming.origin_cost;
                entry.stored = incoming.stored;
            }
        }
        core.counts.inserted += 1;
        let kept = self.evict(core, budget, None, leaving, dropped) && core.resident(token).is_some();
        core.counts.bytes_high = core.counts.bytes_high.max(core.counts.bytes.min(budget));
        if kept { Inserted::Kept } else { Inserted::Refused }
    }

    /// Evicts until the budget holds. `false` if `newcomer`, which is not in the map yet, was refused.
    fn evict(
        &self,
        core: &mut Core,
        budget: u64,
        newcomer: Option<Slot>,
        leaving: &mut impl FnMut(Outgoing<'_, K, V>),
        dropped: &mut Vec<V>,
    ) -> bool {
        while core.counts.bytes > budget {
            // All are pinned: the one that is not there yet is the one to go.
            let Some(victim) = core.policy.victim().or(newcomer) else { return false };
            if Some(victim) == newcomer {
                core.policy.leave(victim, Leave::Evicted);
                core.vacate(victim);
                return false;
            }
            let Some(token) = core.token(victim) else { return false };
            self.tell_of(core, token, leaving);
            if let Some(entry) = self.take_out(core, token, Leave::Evicted) {
                core.counts.evicted += 1;
                dropped.push(entry.value);
            }
        }
        true
    }

    /// Tells of a resident that is about to leave.
    fn tell_of(&self, core: &Core, token: Token, leaving: &mut impl FnMut(Outgoing<'_, K, V>)) {
        let Some(held) = core.resident(token) else { return };
        let shard = self.shard(held.hash).read();
        if let Some(entry) = shard.find(held.hash, |entry| entry.token == token) {
            leaving(Outgoing {
                key: &entry.key,
                value: entry.value.clone(),
                bytes: entry.bytes,
                version: entry.version,
                stored: entry.stored,
                origin_cost: entry.origin_cost,
            });
        }
    }

    /// Removes a resident from the policy, the table of slots and the map.
    fn take_out(&self, core: &mut Core, token: Token, why: Leave) -> Option<Entry<K, V>> {
        core.resident(token)?;
        core.policy.leave(token.slot(), why);
        let held = core.vacate(token.slot())?;
        core.counts.entries -= 1;
        let mut shard = self.shard(held.hash).write();
        let found = shard.find_entry(held.hash, |entry| entry.token == token).ok()?;
        Some(found.remove().0)
    }

    /// Removes a key; whether it was resident. `first` is done before, while nothing can leave.
    pub(crate) fn remove(&self, key: &K, hash: u64, first: impl FnOnce()) -> bool {
        let mut core = self.core.lock();
        first();
        let token = self.shard(hash).read().find(hash, |entry| entry.key == *key).map(|entry| entry.token);
        let taken = token.and_then(|token| self.take_out(&mut core, token, Leave::Removed));
        drop(core);
        taken.is_some()
    }

    /// The policy's view of a request for something that is nowhere.
    pub(crate) fn miss(&self, id: KeyId) {
        let mut core = self.core.lock();
        core.tell(&self.uses, USES_PER_INSERT);
        core.policy.miss(id);
    }

    /// Keeps a resident whatever the policy says, until as many [`unpin`](Self::unpin). `false` if it is not resident.
    pub(crate) fn pin(&self, key: &K, hash: u64) -> bool {
        self.change_pins(key, hash, |core, slot, pins, bytes| {
            if pins == 0 {
                core.policy.pin(slot);
                core.counts.pinned_bytes += bytes;
            }
            pins.checked_add(1)
        })
    }

    /// Takes one pin away; `false` if there is none. What was over the budget by it leaves now.
    pub(crate) fn unpin(&self, key: &K, hash: u64, mut leaving: impl FnMut(Outgoing<'_, K, V>)) -> bool {
        let unpinned = self.change_pins(key, hash, |core, slot, pins, bytes| {
            if pins == 1 {
                core.policy.unpin(slot);
                core.counts.pinned_bytes -= bytes;
            }
            pins.checked_sub(1)
        });
        let mut dropped = Vec::new();
        let mut core = self.core.lock();
        self.evict(&mut core, self.budget(), None, &mut leaving, &mut dropped);
        unpinned
    }

    fn change_pins(
        &self,
        key: &K,
        hash: u64,
        change: impl FnOnce(&mut Core, Slot, u32, u64) -> Option<u32>,
    ) -> bool {
        let mut core = self.core.lock();
        let token = self.shard(hash).read().find(hash, |entry| entry.key == *key).map(|entry| entry.token);
        let Some(token) = token else { return false };
        let Some((pins, bytes)) = core.resident(token).map(|held| (held.pins, held.bytes)) else {
            return false;
        };
        let Some(pins) = change(&mut core, token.slot(), pins, bytes) else { return false };
        if let Some(held) = core.residents[token.slot().0 as usize].resident.as_mut() {
            held.pins = pins;
        }
        true
    }

    /// Whether it is resident in this version.
    pub(crate) fn has_version(&self, key: &K, hash: u64, version: u64) -> bool {
        self.shard(hash).read().find(hash, |entry| entry.key == *key && entry.version == version).is_some()
    }

    /// A tier below has this version now.
    pub(crate) fn mark_stored(&self, key: &K, hash: u64, version: u64, stored: bool, now: Duration) {
        let mut core = self.core.lock();
        let mut shard = self.shard(hash).write();
        let Some(entry) = shard.find_mut(hash, |entry| entry.key == *key && entry.version == version) else {
            return;
        };
        entry.stored = stored;
        if !stored {
            core.unstored.push_back((now, entry.token));
        }
    }

    /// The next value that came before `since` and is stored nowhere else. It is not named again unless it changes.
    pub(crate) fn next_unstored(&self, since: Duration) -> Option<(K, crate::transit::Pending<V>)> {
        let mut core = self.core.lock();
        while let Some(&(came, token)) = core.unstored.front() {
            if came > since {
                return None;
            }
            core.unstored.pop_front();
            let Some(held) = core.resident(token) else { continue };
            let shard = self.shard(held.hash).read();
            let Some(entry) = shard.find(held.hash, |entry| entry.token == token && !entry.stored) else {
                continue;
            };
            let pending = crate::transit::Pending {
                value: entry.value.clone(),
                version: entry.version,
                bytes: entry.bytes,
                cost: entry.origin_cost,
            };
            return Some((entry.key.clone(), pending));
        }
        None
    }

    /// When the oldest value that is stored nowhere else came.
    pub(crate) fn oldest_unstored(&self) -> Option<Duration> {
        self.core.lock().unstored.front().map(|&(came, _)| came)
    }

    /// Tells the policy of all uses that were noted.
    pub(crate) fn tell(&self) {
        self.core.lock().tell(&self.uses, usize::MAX);
    }

    /// Another budget; what is over it leaves.
    pub(crate) fn set_budget(&self, budget: u64, mut leaving: impl FnMut(Outgoing<'_, K, V>)) {
        let mut dropped = Vec::new();
        let mut core = self.core.lock();
        let core = &mut *core;
        self.budget.store(budget, Ordering::Relaxed);
        core.policy.set_budget(budget);
        core.tell(&self.uses, usize::MAX);
        self.evict(core, budget, None, &mut leaving, &mut dropped);
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// What is known of a key, if it is resident.
    pub(crate) fn explain(&self, key: &K, hash: u64) -> Option<Resident> {
        let mut core = self.core.lock();
        core.tell(&self.uses, usize::MAX);
        let shard = self.shard(hash).read();
        let entry = shard.find(hash, |entry| entry.key == *key)?;
        let slot = entry.token.slot();
        Some(Resident {
            bytes: entry.bytes,
            stored: entry.stored,
            pins: core.resident(entry.token).map_or(0, |held| held.pins),
            uses: core.policy.uses(slot),
            worth: core.policy.worth(slot),
            why: core.policy.why(slot),
        })
    }

    /// The policy's name.
    pub(crate) fn policy(&self) -> &'static str {
        self.core.lock().policy.name()
    }

    pub(crate) fn counts(&self) -> Counts {
        let core = self.core.lock();
        Counts { hits: self.uses.noted(), ..core.counts }
    }
}

impl Core {
    /// Tells the policy of at most `uses_max` uses a ring, the oldest first.
    fn tell(&mut self, uses: &Uses, uses_max: usize) {
        for (ring, told) in uses.rings.iter().zip(&mut self.told) {
            let noted = ring.noted.load(Ordering::Acquire);
            let kept = noted.saturating_sub(RING_USES as u64);
            if *told < kept {
                self.counts.uses_forgotten += kept - *told;
                *told = kept;
            }
            let until = noted.min(told.saturating_add(uses_max as u64));
            for at in *told..until {
                let token = Token(ring.tokens[at as usize % RING_USES].load(Ordering::Relaxed));
                let place = self.residents.get(token.slot().0 as usize);
                // Else it left meanwhile.
                if place.is_some_and(|place| place.resident.is_some() && place.token(token.slot()) == token) {
                    self.policy.hit(token.slot());
                }
            }
            *told = until;
        }
    }

    fn place(&mut self, slot: Slot, held: Held) -> Token {
        let at = slot.0 as usize;
        if self.residents.len() <= at {
            self.residents.resize_with(at + 1, || Place { generation: 0, resident: None });
        }
        let place = &mut self.residents[at];
        place.resident = Some(held);
        place.token(slot)
    }

    fn vacate(&mut self, slot: Slot) -> Option<Held> {
        let place = self.residents.get_mut(slot.0 as usize)?;
        let held = place.resident.take()?;
        // The first generation is 1, so that no token is that of an unwritten place of a ring.
        place.generation = place.generation.wrapping_add(1);
        self.counts.bytes -= held.bytes;
        if held.pins > 0 {
            self.counts.pinned_bytes -= held.bytes;
        }
        Some(held)
    }

    fn token(&self, slot: Slot) -> Option<Token> {
        let place = self.residents.get(slot.0 as usize)?;
        place.resident.as_ref().map(|_| place.token(slot))
    }

    fn resident(&self, token: Token) -> Option<&Held> {
        let place = self.residents.get(token.slot().0 as usize)?;
        place.resident.as_ref().filter(|_| place.token(token.slot()) == token)
    }
}

impl Place {
    fn token(&self, slot: Slot) -> Token {
        Token::new(slot, self.generation.wrapping_add(1))
    }
}

/// Uses that were noted and not yet told to the policy: a ring a thread.
struct Uses {
    rings: Box<[Ring]>,
}

/// On cache lines of its own.
#[repr(align(128))]
struct Ring {
    noted: AtomicU64,
    tokens: Box<[AtomicU64]>,
}

impl Uses {
    fn new() -> Self {
        let ring =
            || Ring { noted: AtomicU64::new(0), tokens: (0..RING_USES).map(|_| AtomicU64::new(0)).collect() };
        Self { rings: (0..RINGS).map(|_| ring()).collect() }
    }

    #[inline]
    fn note(&self, token: Token) {
        let ring = &self.rings[thread_number() % RINGS];
        let at = ring.noted.fetch_add(1, Ordering::Release);
        ring.tokens[at as usize % RING_USES].store(token.0, Ordering::Relaxed);
    }

    fn noted(&self) -> u64 {
        self.rings.iter().map(|ring| ring.noted.load(Ordering::Relaxed)).sum()
    }
}

/// Threads in the order in which they first asked.
#[inline]
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

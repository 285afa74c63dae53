//! What lies in a tier with a budget, and who leaves: the bookkeeping of the folder and the object tier, without I/O.

use hashbrown::HashMap;

use crate::key::KeyId;
use crate::policy::{Item, Leave, Policy, Slot};

/// A value that the tier holds, or is writing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    slot: Slot,
    /// Bytes of its file.
    pub(crate) bytes: u64,
    /// Different for every value that was ever put: tells whether it is still the same one.
    pub(crate) generation: u64,
    /// Whether it can be read.
    pub(crate) written: bool,
    pinned: bool,
}

/// What came of asking for room.
#[derive(Debug, PartialEq)]
pub(crate) enum Room {
    /// There is room, and it is taken: write, then [`Ledger::commit`] or [`Ledger::forget`]. These left for it; remove
    /// their files first, and the budget holds on the drive too.
    Taken { generation: u64, leaving: Vec<KeyId> },
    /// A value of this key is there, or being written.
    AlreadyThere,
    /// It is larger than the budget.
    TooLarge,
    /// The policy prefers what is there. What left before it decided so is gone.
    NotWorthIt { leaving: Vec<KeyId> },
}

/// The values of a tier under a budget in bytes.
pub(crate) struct Ledger {
    policy: Box<dyn Policy>,
    budget_bytes: u64,
    bytes: u64,
    entries: HashMap<KeyId, Entry>,
    by_slot: HashMap<Slot, KeyId>,
    generation: u64,
}

impl Ledger {
    pub(crate) fn new(mut policy: Box<dyn Policy>, budget_bytes: u64) -> Self {
        policy.set_budget(budget_bytes);
        Self {
            policy,
            budget_bytes,
            bytes: 0,
            entries: HashMap::new(),
            by_slot: HashMap::new(),
            generation: 0,
        }
    }

    /// Takes in what was found at opening, the oldest first; returns what does not fit.
    pub(crate) fn load(&mut self, found: impl IntoIterator<Item = (KeyId, u64, f32)>) -> Vec<KeyId> {
        for (id, bytes, cost) in found {
            self.insert(id, bytes, cost, true);
        }
        self.shrink(None)
    }

    /// Asks for room for a value of `bytes` bytes in its file.
    pub(crate) fn make_room(&mut self, id: KeyId, bytes: u64, cost: f32) -> Room {
        if self.entries.contains_key(&id) {
            return Room::AlreadyThere;
        }
        if bytes > self.budget_bytes {
            self.policy.miss(id);
            return Room::TooLarge;
        }
        let generation = self.insert(id, bytes, cost, false);
        let leaving = self.shrink(None);
        if !self.entries.contains_key(&id) {
            return Room::NotWorthIt { leaving: leaving.into_iter().filter(|&left| left != id).collect() };
        }
        if self.bytes > self.budget_bytes {
            // All that are left are being written by others.
            self.leave(id, Leave::Evicted);
            return Room::NotWorthIt { leaving };
        }
        // What is being written must not be named as a victim: it has no file yet that could be removed.
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pinned = true;
            self.policy.pin(entry.slot);
        }
        Room::Taken { generation, leaving }
    }

    /// The value is written and can be read. Returns who leaves now, where the budget became smaller meanwhile (this
    /// value could not leave then); `None` if it was forgotten in the meantime: its file is nobody's.
    #[must_use]
    pub(crate) fn commit(&mut self, id: KeyId, generation: u64) -> Option<Vec<KeyId>> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.generation == generation)?;
        entry.written = true;
        if std::mem::take(&mut entry.pinned) {
            self.policy.unpin(entry.slot);
        }
        Some(self.shrink(None))
    }

    /// A value is asked for: its entry if it can be read.
    pub(crate) fn ask(&mut self, id: KeyId) -> Option<Entry> {
        match self.entries.get(&id) {
            Some(entry) if entry.written => {
                self.policy.hit(entry.slot);
                Some(*entry)
            }
            Some(_) => None,
            None => {
                self.policy.miss(id);
                None
            }
        }
    }

    /// The cost of a value is known now.
    pub(crate) fn learn(&mut self, id: KeyId, generation: u64, cost: f32) {
        if let Some(entry) = self.entries.get(&id)
            && entry.generation == generation
        {
            self.policy.update(entry.slot, entry.bytes.max(1), sane(cost));
        }
    }

    /// Whether a value can be read; no request.
    pub(crate) fn contains(&self, id: KeyId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.written)
    }

    /// Takes a value out, if it is still the one of this generation (any, with `None`). Returns whether it was.
    pub(crate) fn forget(&mut self, id: KeyId, generation: Option<u64>) -> bool {
        let found = self
            .entries
            .get(&id)
            .is_some_and(|entry| generation.is_none_or(|generation| entry.generation == generation));
        if found {
            self.leave(id, Leave::Removed);
        }
        found
    }

    /// Evicts until the budget, or another one, holds; returns who left.
    pub(crate) fn shrink(&mut self, budget_bytes: Option<u64>) -> Vec<KeyId> {
        if let Some(bytes) = budget_bytes {
            self.budget_bytes = bytes;
            self.policy.set_budget(bytes);
        }
        let mut leaving = Vec::new();
        while self.bytes > self.budget_bytes {
            let Some(id) = self.policy.victim().and_then(|slot| self.by_slot.get(&slot).copied()) else {
                break;
            };
            self.leave(id, Leave::Evicted);
            leaving.push(id);
        }
        leaving
    }

    /// Values, those being written among them.
    pub(crate) fn values(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Bytes of their files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    fn insert(&mut self, id: KeyId, bytes: u64, cost: f32, written: bool) -> u64 {
        let slot = self.policy.insert(Item { id, bytes: bytes.max(1), cost: sane(cost), uses: 0 });
        self.generation += 1;
        let entry = Entry { slot, bytes, generation: self.generation, written, pinned: false };
        self.by_slot.insert(slot, id);
        self.entries.insert(id, entry);
        self.bytes = self.bytes.saturating_add(bytes);
        self.generation
    }

    fn leave(&mut self, id: KeyId, why: Leave) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if entry.pinned {
            self.policy.unpin(entry.slot);
        }
        self.policy.leave(entry.slot, why);
        self.by_slot.remove(&entry.slot);
        self.bytes = self.bytes.saturating_sub(entry.bytes);
    }
}

/// A cost that a policy can count with.
fn sane(cost: f32) -> f32 {
    if cost.is_finite() { cost.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_being_written_when_the_budget_became_smaller_leaves_when_it_is_written() {
        let mut ledger = Ledger::new(crate::PolicyName::Lru.build(), 1000);
        let (other, id) = (KeyId::of(b"other"), KeyId::of(b"key"));
        for (id, bytes) in [(other, 100), (id, 800)] {
            assert!(matches!(ledger.make_room(id, bytes, 1.0), Room::Taken { .. }));
        }
        assert_eq!(ledger.commit(other, 1), Some(Vec::new()));
        assert_eq!(ledger.shrink(Some(500)), [other]);
        assert_eq!(ledger.bytes(), 800);
        assert_eq!(ledger.commit(id, 2), Some(vec![id]));
        assert_eq!((ledger.bytes(), ledger.commit(id, 2)), (0, None));
    }
}

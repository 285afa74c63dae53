//! What the tier holds, in memory: entries, their policy, and the bytes that count. Pure: no I/O, no clock.
//!
//! Bytes count from before a value is written until after its file is removed, so that the budget holds on the drive
//! at any moment.

use hashbrown::HashMap;

use super::format::{Place, Record};
use crate::key::KeyId;
use crate::policy::{Item, Leave, Policy, Slot};

/// A value that is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// `None` while it leaves: it is still read, and whoever evicts it removes its bytes.
    pub(crate) slot: Option<Slot>,
    pub(crate) record: Record,
    /// What it takes of the budget.
    pub(crate) charge: u64,
    /// Whether its file is on the drive for sure.
    pub(crate) synced: bool,
}

/// A file or small value that was replaced, and is kept until its successor is on the drive for sure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Superseded {
    pub(crate) id: KeyId,
    pub(crate) place: Place,
    pub(crate) generation: u64,
    pub(crate) charge: u64,
}

struct Writing {
    slot: Slot,
    charge: u64,
    cancelled: bool,
}

#[derive(Clone, Copy)]
struct Held {
    id: KeyId,
    pins: u32,
}

pub(crate) struct Table {
    entries: HashMap<KeyId, Entry>,
    writing: HashMap<KeyId, Writing>,
    /// By slot.
    held: Vec<Held>,
    policy: Box<dyn Policy>,
    budget: u64,
    bytes: u64,
    /// How often something that counts without being an entry settled: became one, or went.
    settled: u64,
    /// Files put since the last flush.
    pub(crate) dirty: Vec<(KeyId, u64)>,
    pub(crate) superseded: Vec<Superseded>,
    /// Uses and arrivals since the order was saved.
    pub(crate) unsaved_uses: u64,
}

/// Why a write does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Another write of this key is under way.
    Busy,
    /// The policy would give up this one first.
    NotWorth,
    /// All that is there is pinned.
    Pinned,
}

/// What must happen before there is room.
pub(crate) enum Step {
    /// There is, and it is reserved.
    Reserved,
    /// This one leaves first.
    Evict(KeyId, Entry),
    /// Superseded files are in the way: flush, and they can go.
    Flush,
    /// There will be none.
    No(NoRoom),
}

impl Table {
    pub(crate) fn new(mut policy: Box<dyn Policy>, budget: u64) -> Self {
        policy.set_budget(budget);
        Self {
            entries: HashMap::new(),
            writing: HashMap::new(),
            held: Vec::new(),
            policy,
            budget,
            bytes: 0,
            settled: 0,
            dirty: Vec::new(),
            superseded: Vec::new(),
            unsaved_uses: 0,
        }
    }

    /// An entry that was there before a restart.
    pub(crate) fn restore(&mut self, id: KeyId, record: Record, charge: u64, uses: u32) {
        let slot = self.policy.insert(Item { id, bytes: charge, cost: record.cost, uses });
        self.hold(slot, id);
        self.bytes += charge;
        self.entries.insert(id, Entry { slot: Some(slot), record, charge, synced: true });
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<Entry> {
        self.entries.get(&id).copied()
    }

    /// The entry, whose use is told to the policy.
    pub(crate) fn hit(&mut self, id: KeyId) -> Option<Entry> {
        let entry = *self.entries.get(&id)?;
        if let Some(slot) = entry.slot {
            self.policy.hit(slot);
            self.unsaved_uses += 1;
        }
        Some(entry)
    }

    pub(crate) fn miss(&mut self, id: KeyId) {
        self.policy.miss(id);
    }

    /// Begins a write: the key's item is in the policy from here on, and not given up until the write ends.
    pub(crate) fn begin(&mut self, id: KeyId, charge: u64, cost: f32) -> Result<(), NoRoom> {
        if self.writing.contains_key(&id) {
            return Err(NoRoom::Busy);
        }
        let slot = match self.entries.get(&id).and_then(|entry| entry.slot) {
            Some(slot) => {
                self.policy.update(slot, charge, cost);
                slot
            }
            None => {
                let slot = self.policy.insert(Item { id, bytes: charge, cost, uses: 0 });
                self.hold(slot, id);
                slot
            }
        };
        self.unsaved_uses += 1;
        self.writing.insert(id, Writing { slot, charge, cancelled: false });
        Ok(())
    }

    /// The next step towards room for a write that began, or for nothing (`None`: until the budget holds). One caller
    /// at a time.
    pub(crate) fn make_room(&mut self, writing: Option<KeyId>) -> Step {
        let (own, charge) = match writing.and_then(|id| self.writing.get(&id)) {
            Some(writing) => (Some(writing.slot), writing.charge),
            None => (None, 0),
        };
        if self.bytes.saturating_add(charge) <= self.budget {
            self.bytes += charge;
            if let Some(slot) = own {
                self.pin_slot(slot);
            }
            return Step::Reserved;
        }
        if !self.superseded.is_empty() {
            return Step::Flush;
        }
        let Some(victim) = self.policy.victim() else { return Step::No(NoRoom::Pinned) };
        if Some(victim) == own {
            return Step::No(NoRoom::NotWorth);
        }
        let Some(id) = self.held.get(victim.0 as usize).map(|held| held.id) else {
            return Step::No(NoRoom::Pinned);
        };
        self.policy.leave(victim, Leave::Evicted);
        match self.entries.get_mut(&id) {
            Some(entry) => {
                entry.slot = None;
                Step::Evict(id, *entry)
            }
            // Not resident: the policy and the table disagree, which only a wrong policy brings about.
            None => Step::No(NoRoom::NotWorth),
        }
    }

    /// Ends a write that got no room or failed. `reserved` tells whether [`make_room`](Self::make_room) reserved it.
    /// The key's older value is not worth more than this: it goes as well, and is returned to be removed.
    pub(crate) fn abort(&mut self, id: KeyId, reserved: bool, why: Leave) -> Option<Entry> {
        let writing = self.writing.remove(&id)?;
        self.settle();
        if reserved {
            self.bytes -= writing.charge;
        }
        let older = self.entries.remove(&id);
        self.leave(writing.slot, why);
        older
    }

    /// Whether the key was removed while it was written.
    pub(crate) fn cancelled(&self, id: KeyId) -> bool {
        self.writing.get(&id).is_none_or(|writing| writing.cancelled)
    }

    /// What the new value's record says of the one that it replaces.
    pub(crate) fn before(&self, id: KeyId, place: Place) -> Option<(Place, u64)> {
        let old = self.entries.get(&id)?.record;
        let synced = self.entries.get(&id)?.synced;
        match (old.place, place) {
            // Both change in one step: nothing to fall back on is needed.
            (Place::Inline, Place::Inline) => None,
            (Place::Inline, _) => Some((Place::Inline, old.generation)),
            (old_place, _) if synced => Some((old_place, old.generation)),
            // A new small value takes the place of the older one, if that was small.
            (..) => old.before.filter(|before| before.0 != Place::Inline || place != Place::Inline),
        }
    }

    /// Ends a write that succeeded. Returns what can be removed now.
    pub(crate) fn publish(&mut self, id: KeyId, record: Record) -> Option<Superseded> {
        let writing = self.writing.remove(&id)?;
        self.settle();
        self.unpin_slot(writing.slot);
        let synced = record.place == Place::Inline;
        if !synced {
            self.dirty.push((id, record.generation));
        }
        let entry = Entry { slot: Some(writing.slot), record, charge: writing.charge, synced };
        let old = self.entries.insert(id, entry)?;
        let (Record { place, generation, .. }, charge) = (old.record, old.charge);
        let superseded = Superseded { id, place, generation, charge };
        match (place, record.place) {
            (Place::Inline, Place::Inline) => self.bytes -= charge,
            (Place::Inline, _) => self.superseded.push(superseded),
            (..) if !old.synced => return Some(superseded),
            (..) => self.superseded.push(superseded),
        }
        None
    }

    /// Takes an entry out, if it is this generation (or any). What it holds of the budget is given back by
    /// [`release`](Self::release) when its file is gone, or at once if it has none; if it is leaving, whoever evicts it
    /// does so.
    pub(crate) fn take(&mut self, id: KeyId, generation: Option<u64>) -> Option<Entry> {
        if generation.is_none()
            && let Some(writing) = self.writing.get_mut(&id)
        {
            writing.cancelled = true;
        }
        let entry = *self.entries.get(&id)?;
        if generation.is_some_and(|generation| entry.record.generation != generation) {
            return None;
        }
        self.entries.remove(&id);
        if let Some(slot) = entry.slot
            && !self.writing.contains_key(&id)
        {
            self.leave(slot, Leave::Removed);
        }
        Some(entry)
    }

    /// Bytes that are no longer on the drive.
    pub(crate) fn release(&mut self, charge: u64) {
        self.bytes = self.bytes.saturating_sub(charge);
        self.settle();
    }

    /// What was being written or removed is so no longer.
    pub(crate) fn settle(&mut self) {
        self.settled += 1;
    }

    /// A number that changes with every write that ends and every file that is gone.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// A file was synchronised: its record without what it replaced, to be written, if it had something.
    pub(crate) fn synced(&mut self, id: KeyId, generation: u64) -> Option<Record> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.record.generation == generation)?;
        entry.synced = true;
        entry.record.before.take().map(|_| entry.record)
    }

    /// Whether something that was replaced is not needed any more: its successor is on the drive, or gone.
    pub(crate) fn unneeded(&self, superseded: &Superseded) -> bool {
        self.entries.get(&superseded.id).is_none_or(|entry| entry.synced)
    }

    pub(crate) fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
        self.policy.set_budget(budget);
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (KeyId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// Keys with their uses, those that would leave first coming first.
    pub(crate) fn order(&self) -> Vec<(KeyId, u32)> {
        let slots = self.policy.order();
        let known = slots.into_iter().filter_map(|slot| {
            let id = self.held.get(slot.0 as usize)?.id;
            let resident = self.entries.get(&id)?.slot == Some(slot);
            resident.then(|| (id, self.policy.uses(slot)))
        });
        known.collect()
    }

    fn hold(&mut self, slot: Slot, id: KeyId) {
        let index = slot.0 as usize;
        if self.held.len() <= index {
            self.held.resize(index + 1, Held { id, pins: 0 });
        }
        self.held[index] = Held { id, pins: 0 };
    }

    fn leave(&mut self, slot: Slot, why: Leave) {
        if let Some(held) = self.held.get_mut(slot.0 as usize)
            && std::mem::take(&mut held.pins) > 0
        {
            self.policy.unpin(slot);
        }
        self.policy.leave(slot, why);
    }

    fn pin_slot(&mut self, slot: Slot) {
        if let Some(held) = self.held.get_mut(slot.0 as usize) {
            held.pins += 1;
            if held.pins == 1 {
                self.policy.pin(slot);
            }
        }
    }

    fn unpin_slot(&mut self, slot: Slot) {
        if let Some(held) = self.held.get_mut(slot.0 as usize)
            && held.pins > 0
        {
            held.pins -= 1;
            if held.pins == 0 {
                self.policy.unpin(slot);
            }
        }
    }
}

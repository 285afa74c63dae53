//! Least recently used: who was not used for longest goes.
//!
//! The policy everyone knows, and the one others are measured against. On a loop over more than fits it has no hit at
//! all. 40 bytes an item; every operation is O(1), and [`Policy::order`] O(n).

use super::slab::{Lists, Slab};
use super::{Item, Leave, Policy, Slot, saved_per_byte};
use crate::key::KeyId;

/// In use order, most recent first.
const USED: usize = 0;
const PINNED: usize = 1;

/// Least recently used.
#[derive(Debug)]
pub struct Lru {
    items: Slab<Entry>,
    lists: Lists<2>,
    now: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    last: u64,
    cost: f32,
    uses: u32,
}

impl Lru {
    /// An empty one.
    pub const fn new() -> Self {
        Self { items: Slab::new(), lists: Lists::new(), now: 0 }
    }
}

impl Default for Lru {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn set_budget(&mut self, _bytes: u64) {}

    fn insert(&mut self, item: Item) -> Slot {
        self.now += 1;
        let uses = item.uses.saturating_add(1);
        let slot = self.items.insert(Entry { bytes: item.bytes, last: self.now, cost: item.cost, uses });
        self.lists.push_front(USED, slot);
        slot
    }

    fn hit(&mut self, slot: Slot) {
        self.now += 1;
        let Some(entry) = self.items.get_mut(slot) else { return };
        entry.uses = entry.uses.saturating_add(1);
        entry.last = self.now;
        if self.lists.list_of(slot) == Some(USED) {
            self.lists.push_front(USED, slot);
        }
    }

    fn miss(&mut self, _id: KeyId) {
        self.now += 1;
    }

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        if let Some(entry) = self.items.get_mut(slot) {
            (entry.bytes, entry.cost) = (bytes, cost);
        }
    }

    fn pin(&mut self, slot: Slot) {
        if self.items.get(slot).is_some() {
            self.lists.push_front(PINNED, slot);
        }
    }

    /// Counts as the most recent in the order: it was in use until now.
    fn unpin(&mut self, slot: Slot) {
        if self.lists.list_of(slot) == Some(PINNED) {
            self.lists.push_front(USED, slot);
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.lists.back(USED)
    }

    fn leave(&mut self, slot: Slot, _why: Leave) {
        if self.items.remove(slot).is_some() {
            self.lists.remove(slot);
        }
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.items.get(slot).map_or(0.0, |entry| {
            saved_per_byte(entry.cost, entry.bytes) / (self.now.saturating_sub(entry.last) + 1) as f64
        })
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.items.get(slot).map_or(0, |entry| entry.uses)
    }

    fn order(&self) -> Vec<Slot> {
        self.lists.backward(USED).chain(self.lists.backward(PINNED)).collect()
    }

    fn why(&self, slot: Slot) -> String {
        let Some(entry) = self.items.get(slot) else { return String::new() };
        format!("used {} times, last {} requests ago", entry.uses, self.now.saturating_sub(entry.last))
    }
}

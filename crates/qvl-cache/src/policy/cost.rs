//! Cost-aware: what is dear to get again, small and often used stays.
//!
//! GreedyDual-Size-Frequency, from L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
//! Caching Policy", HP Labs HPL-98-69R1, 1998, after P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms",
//! USITS 1997:
//!
//! ```text
//! priority = clock + uses × cost ÷ bytes     set when an item comes in and when it is used
//! victim   = the smallest priority           clock becomes the priority of who was evicted
//! ```
//!
//! The clock is what ages: an item that was used often long ago falls behind those that come in later. With one cost
//! and one size this is least frequently used with that ageing, and of two that are equal the older goes. 80 bytes an
//! item; O(log n).

use super::heap::{Heap, OUT, ordered};
use super::slab::Slab;
use super::{Item, Leave, Policy, Slot, saved_per_byte};
use crate::key::KeyId;

/// GreedyDual-Size-Frequency.
#[derive(Debug)]
pub struct CostAware {
    items: Slab<Entry>,
    /// The smallest priority on top, the older first where they are equal: both are stored inverted.
    heap: Heap<(u64, u64)>,
    places: Vec<u32>,
    clock: f64,
    now: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    last: u64,
    /// The clock when it was last used.
    clock: f64,
    cost: f32,
    uses: u32,
    pinned: bool,
}

impl Entry {
    fn priority(&self) -> f64 {
        self.clock + f64::from(self.uses) * saved_per_byte(self.cost, self.bytes)
    }

    fn key(&self) -> (u64, u64) {
        (!ordered(self.priority()), !self.last)
    }
}

impl CostAware {
    /// An empty one.
    pub const fn new() -> Self {
        Self { items: Slab::new(), heap: Heap::new(), places: Vec::new(), clock: 0.0, now: 0 }
    }

    fn reorder(&mut self, slot: Slot) {
        let Some(entry) = self.items.get(slot) else { return };
        let inside = self.places.get(slot.0 as usize).is_some_and(|place| *place != OUT);
        match (inside, entry.pinned) {
            (true, true) => self.heap.remove(&mut self.places, slot.0),
            (true, false) => self.heap.change(&mut self.places, entry.key(), slot.0),
            (false, false) => self.heap.push(&mut self.places, entry.key(), slot.0),
            (false, true) => {}
        }
    }
}

impl Default for CostAware {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for CostAware {
    fn name(&self) -> &'static str {
        "cost-aware"
    }

    fn set_budget(&mut self, _bytes: u64) {}

    fn insert(&mut self, item: Item) -> Slot {
        self.now += 1;
        let slot = self.items.insert(Entry {
            bytes: item.bytes,
            last: self.now,
            clock: self.clock,
            cost: item.cost,
            uses: item.uses.saturating_add(1),
            pinned: false,
        });
        self.reorder(slot);
        slot
    }

    fn hit(&mut self, slot: Slot) {
        self.now += 1;
        let Some(entry) = self.items.get_mut(slot) else { return };
        entry.uses = entry.uses.saturating_add(1);
        (entry.last, entry.clock) = (self.now, self.clock);
        self.reorder(slot);
    }

    fn miss(&mut self, _id: KeyId) {
        self.now += 1;
    }

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        if let Some(entry) = self.items.get_mut(slot) {
            (entry.bytes, entry.cost) = (bytes, cost);
            self.reorder(slot);
        }
    }

    fn pin(&mut self, slot: Slot) {
        if let Some(entry) = self.items.get_mut(slot) {
            entry.pinned = true;
            self.reorder(slot);
        }
    }

    fn unpin(&mut self, slot: Slot) {
        if let Some(entry) = self.items.get_mut(slot) {
            entry.pinned = false;
            self.reorder(slot);
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.heap.top().map(|(_, slot)| Slot(slot))
    }

    fn leave(&mut self, slot: Slot, why: Leave) {
        let Some(entry) = self.items.remove(slot) else { return };
        if !entry.pinned {
            self.heap.remove(&mut self.places, slot.0);
        }
        if why == Leave::Evicted {
            self.clock = self.clock.max(entry.priority());
        }
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.items.get(slot).map_or(0.0, |entry| {
            f64::from(entry.uses) * saved_per_byte(entry.cost, entry.bytes) / (self.now + 1) as f64
        })
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.items.get(slot).map_or(0, |entry| entry.uses)
    }

    fn order(&self) -> Vec<Slot> {
        let mut order: Vec<_> = self.items.iter().collect();
        order.sort_by_key(|(_, entry)| (entry.pinned, std::cmp::Reverse(entry.key())));
        order.into_iter().map(|(slot, _)| slot).collect()
    }

    fn why(&self, slot: Slot) -> String {
        let Some(entry) = self.items.get(slot) else { return String::new() };
        format!("used {} times, {:.4} s and {} bytes to get again", entry.uses, entry.cost, entry.bytes)
    }
}

//! The smallest policy there is, for tests of tiers: the least recently used leaves, without any cleverness.

#![allow(clippy::expect_used, reason = "a failed expectation is a failed test")]

use qvl_cache::KeyId;
use qvl_cache::policy::{Item, Leave, Policy, Slot};

/// Residents in a plain list, the least recently used first.
#[derive(Default)]
pub(crate) struct Lru {
    order: Vec<(Slot, u64, f32, bool)>,
    next: u32,
}

impl Lru {
    pub(crate) fn boxed() -> Box<dyn Policy> {
        Box::<Self>::default()
    }

    fn at(&self, slot: Slot) -> usize {
        self.order.iter().position(|item| item.0 == slot).unwrap()
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru for tests"
    }

    fn set_budget(&mut self, _bytes: u64) {}

    fn insert(&mut self, item: Item) -> Slot {
        assert!(item.bytes > 0);
        let slot = Slot(self.next);
        self.next += 1;
        self.order.push((slot, item.bytes, item.cost, false));
        slot
    }

    fn hit(&mut self, slot: Slot) {
        let at = self.at(slot);
        let item = self.order.remove(at);
        self.order.push(item);
    }

    fn miss(&mut self, _id: KeyId) {}

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        let at = self.at(slot);
        self.order[at].1 = bytes;
        self.order[at].2 = cost;
    }

    fn pin(&mut self, slot: Slot) {
        let at = self.at(slot);
        assert!(!std::mem::replace(&mut self.order[at].3, true), "pinned twice");
    }

    fn unpin(&mut self, slot: Slot) {
        let at = self.at(slot);
        assert!(std::mem::replace(&mut self.order[at].3, false), "not pinned");
    }

    fn victim(&mut self) -> Option<Slot> {
        self.order.iter().find(|item| !item.3).map(|item| item.0)
    }

    fn leave(&mut self, slot: Slot, _why: Leave) {
        let at = self.at(slot);
        self.order.remove(at);
    }

    fn worth(&self, slot: Slot) -> f64 {
        let (_, bytes, cost, _) = self.order[self.at(slot)];
        f64::from(cost) / bytes as f64
    }

    fn uses(&self, _slot: Slot) -> u32 {
        0
    }

    fn order(&self) -> Vec<Slot> {
        self.order.iter().map(|item| item.0).collect()
    }
}

/// Never lets anything in: the newest is the victim.
#[derive(Default)]
pub(crate) struct FirstStays(Lru);

impl Policy for FirstStays {
    fn name(&self) -> &'static str {
        "first stays, for tests"
    }

    fn set_budget(&mut self, _bytes: u64) {}

    fn insert(&mut self, item: Item) -> Slot {
        self.0.insert(item)
    }

    fn hit(&mut self, _slot: Slot) {}

    fn miss(&mut self, _id: KeyId) {}

    fn update(&mut self, _slot: Slot, _bytes: u64, _cost: f32) {}

    fn pin(&mut self, slot: Slot) {
        self.0.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.0.unpin(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        self.0.order.iter().rev().find(|item| !item.3).map(|item| item.0)
    }

    fn leave(&mut self, slot: Slot, why: Leave) {
        self.0.leave(slot, why);
    }

    fn worth(&self, _slot: Slot) -> f64 {
        0.0
    }

    fn uses(&self, _slot: Slot) -> u32 {
        0
    }

    fn order(&self) -> Vec<Slot> {
        self.0.order()
    }
}

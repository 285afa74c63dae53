//! A policy that refuses every newcomer, for tests of tiers.

use qvl_cache::KeyId;
use qvl_cache::policy::{Item, Leave, Policy, PolicyName, Slot};

/// Never lets anything in once it is full: the newest is the victim.
pub(crate) struct FirstStays(Box<dyn Policy>);

impl FirstStays {
    pub(crate) fn boxed() -> Box<dyn Policy> {
        Box::new(Self(PolicyName::Lru.build()))
    }
}

impl Policy for FirstStays {
    fn name(&self) -> &'static str {
        "first stays, for tests"
    }

    fn set_budget(&mut self, bytes: u64) {
        self.0.set_budget(bytes);
    }

    fn insert(&mut self, item: Item) -> Slot {
        self.0.insert(item)
    }

    fn hit(&mut self, _: Slot) {}

    fn miss(&mut self, _: KeyId) {}

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        self.0.update(slot, bytes, cost);
    }

    fn pin(&mut self, slot: Slot) {
        self.0.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.0.unpin(slot);
    }

    fn victim(&mut self) -> Option<Slot> {
        // The tiers below memory pin nothing.
        self.0.order().last().copied()
    }

    fn leave(&mut self, slot: Slot, why: Leave) {
        self.0.leave(slot, why);
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.0.worth(slot)
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.0.uses(slot)
    }

    fn order(&self) -> Vec<Slot> {
        self.0.order()
    }
}

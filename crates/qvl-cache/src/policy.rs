//! Who stays and who goes: policies, pure.
//!
//! A policy is a state machine without threads, clocks or I/O. It is told what happens in one tier, in order, and asked
//! who goes next. Time is what it was told: each [`hit`](Policy::hit), [`insert`](Policy::insert) and
//! [`miss`](Policy::miss) is one request. The same policy therefore runs in a tier, in a property test and in a replay
//! of a recorded trace.

use crate::key::KeyId;

/// The place of a resident item in its policy's tables; given by [`Policy::insert`], used again after the item left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// What a policy is told of an item that comes in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// Its key.
    pub id: KeyId,
    /// What it takes of the budget, in bytes; never 0.
    pub bytes: u64,
    /// What it takes to get it again from where it would come, in seconds.
    pub cost: f32,
    /// Uses that are known from before, when a tier is filled again after a restart; else 0.
    pub uses: u32,
}

/// Why an item leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// There was no room: remember what was learned of it, it may come back.
    Evicted,
    /// It was removed or replaced: forget it.
    Removed,
}

/// Decides who leaves a tier of a given size.
///
/// The caller inserts first and evicts after: while the tier holds more than its budget it asks for the
/// [`victim`](Self::victim) and lets it [`leave`](Self::leave). The victim may be the item that just came: that is how
/// a policy refuses one.
pub trait Policy: Send {
    /// The name by which it is chosen.
    fn name(&self) -> &'static str;

    /// The budget of the tier in bytes: told before anything else, and whenever it changes.
    fn set_budget(&mut self, bytes: u64);

    /// An item came in; this is a request for it too. It is not resident yet.
    fn insert(&mut self, item: Item) -> Slot;

    /// A resident item was used.
    fn hit(&mut self, slot: Slot);

    /// An item that is not resident was asked for and did not come in (it is unknown everywhere, or too large).
    fn miss(&mut self, id: KeyId);

    /// A resident item has other bytes or another cost now; no request.
    fn update(&mut self, slot: Slot, bytes: u64, cost: f32);

    /// A resident item must not be named by [`victim`](Self::victim) until it is unpinned. Does not count.
    fn pin(&mut self, slot: Slot);

    /// The reverse of [`pin`](Self::pin).
    fn unpin(&mut self, slot: Slot);

    /// The item to give up next, or `None` when all that are left are pinned. It stays until it leaves.
    fn victim(&mut self) -> Option<Slot>;

    /// A resident item is gone; its slot may be given to another.
    fn leave(&mut self, slot: Slot, why: Leave);

    /// What a resident item is worth, in seconds saved a byte and request, as far as this policy knows; larger is
    /// kept longer. For `explain`, and to compare items of one tier.
    fn worth(&self, slot: Slot) -> f64;

    /// How often a resident item was used, as far as this policy remembers; handed to [`Item::uses`] after a restart.
    fn uses(&self, slot: Slot) -> u32;

    /// The residents, those that would leave first coming first, for a restart that inserts them in this order.
    fn order(&self) -> Vec<Slot>;
}

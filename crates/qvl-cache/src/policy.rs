//! Who stays and who goes: policies, pure.
//!
//! A policy is a state machine without threads, clocks or I/O. It is told what happens in one tier, in order, and asked
//! who goes next. Time is what it was told: each [`hit`](Policy::hit), [`insert`](Policy::insert) and
//! [`miss`](Policy::miss) is one request. The same policy therefore runs in a tier, in a property test and in a replay
//! of a recorded trace.

pub mod auto;
pub mod belady;
pub mod cost;
pub mod cyclic;
mod heap;
pub mod lru;
mod slab;
pub mod tinylfu;

use std::fmt;
use std::str::FromStr;

pub use auto::Auto;
pub use cost::CostAware;
pub use cyclic::Cyclic;
pub use lru::Lru;
pub use tinylfu::TinyLfu;

use crate::error::{Error, Result};
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

    /// What this policy knows of a resident item, as a line for a person; empty for none. For `explain`.
    fn why(&self, slot: Slot) -> String {
        match self.uses(slot) {
            1 => "used once".to_owned(),
            uses => format!("used {uses} times"),
        }
    }
}

/// The policies by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// [`Lru`]: who was not used for longest goes.
    Lru,
    /// [`TinyLfu`]: who is asked for seldom does not come in.
    TinyLfu,
    /// [`CostAware`]: what is dear, small and often used stays.
    CostAware,
    /// [`Cyclic`]: part of a loop stays.
    Cyclic,
    /// [`Auto`]: what the requests show decides. The default.
    #[default]
    Auto,
}

impl PolicyName {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lru, Self::TinyLfu, Self::CostAware, Self::Cyclic, Self::Auto];

    /// The name in settings and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::TinyLfu => "tinylfu",
            Self::CostAware => "cost-aware",
            Self::Cyclic => "cyclic",
            Self::Auto => "auto",
        }
    }

    /// A new policy of this name. It has no budget yet.
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new()),
            Self::TinyLfu => Box::new(TinyLfu::new()),
            Self::CostAware => Box::new(CostAware::new()),
            Self::Cyclic => Box::new(Cyclic::new()),
            Self::Auto => Box::new(Auto::new()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| Error::Setting {
            name: "policy",
            value: name.to_owned(),
            reason: format!("there is no such policy; known are {}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}

/// Seconds saved by one hit, a byte. Never 0, so that what costs nothing is still ordered by its size.
fn saved_per_byte(cost: f32, bytes: u64) -> f64 {
    /// The least cost that counts: a hundredth of a microsecond. Also what a cost that is no number counts as.
    const COST_MIN: f64 = 1e-8;
    let cost = f64::from(cost);
    (if cost.is_finite() { cost.max(COST_MIN) } else { COST_MIN }) / bytes.max(1) as f64
}

/// 64 bits of an id, for what only estimates. Ids below 2^64 keep their value.
fn short(id: KeyId) -> u64 {
    (id.0 as u64) ^ ((id.0 >> 64) as u64)
}

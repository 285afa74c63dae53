//! Cyclic: part of a loop stays, the rest passes by.
//!
//! On a loop over more than fits, least recently used evicts each item just before it is wanted again: no hit at all.
//! What can be had is budget ÷ loop, and one has it by keeping *some* part and letting the newcomer go: evicting the most
//! recently used (H.-T. Chou and D. DeWitt, "An Evaluation of Buffer Management Strategies for Relational Database
//! Systems", VLDB 1985). Two things are added so that it also lets go:
//!
//! - A kept item that was not wanted for one and a half laps is stale, and goes first. The lap is the longest gap seen
//!   between two uses lately; while stale items go that were never used it grows, so a longer loop is found too.
//! - Where the requests are no loop, plain recency is better. Both ways run beside each other on ids alone, with this
//!   budget, and the one with more hits lately rules ("set dueling": M. Qureshi and others, "Adaptive Insertion Policies
//!   for High Performance Caching", ISCA 2007).
//!
//! 48 bytes an item, and some 70 for each that either way holds: 200 bytes an item; O(1).

use hashbrown::HashMap;

use super::slab::{Lists, Slab};
use super::{Item, Leave, Policy, Slot, saved_per_byte, short};
use crate::key::KeyId;

/// Keeps part of a loop.
#[derive(Debug)]
pub struct Cyclic {
    kept: Directory,
    budget: u64,
    now: u64,
    by_recency: Shadow,
    by_loop: Shadow,
    rule: Rule,
}

/// Who goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The least recently used.
    Recency,
    /// A stale one, else the most recently used.
    Loop,
}

impl Cyclic {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            kept: Directory::new(),
            budget: u64::MAX,
            now: 0,
            by_recency: Shadow::new(Rule::Recency),
            by_loop: Shadow::new(Rule::Loop),
            rule: Rule::Loop,
        }
    }

    /// One request, to both ways.
    fn observe(&mut self, id: u64, bytes: u64) {
        for shadow in [&mut self.by_recency, &mut self.by_loop] {
            shadow.request(id, bytes, self.budget, self.now);
        }
        let (recency, by_loop) = (self.by_recency.hits, self.by_loop.hits);
        // A twentieth and some more, so that chance does not change the rule to and fro.
        let better = |this: f64, other: f64| this > other * 1.05 + 4.0;
        match self.rule {
            Rule::Loop if better(recency, by_loop) => self.rule = Rule::Recency,
            Rule::Recency if better(by_loop, recency) => self.rule = Rule::Loop,
            _ => {}
        }
    }
}

impl Default for Cyclic {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Cyclic {
    fn name(&self) -> &'static str {
        "cyclic"
    }

    fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    fn insert(&mut self, item: Item) -> Slot {
        self.now += 1;
        let id = short(item.id);
        self.observe(id, item.bytes);
        let uses = item.uses.saturating_add(1);
        self.kept.insert(Entry { id, bytes: item.bytes, last: self.now, cost: item.cost, uses, fresh: true })
    }

    fn hit(&mut self, slot: Slot) {
        self.now += 1;
        let Some(entry) = self.kept.items.get(slot) else { return };
        let (id, bytes) = (entry.id, entry.bytes);
        self.observe(id, bytes);
        self.kept.hit(slot, self.now);
    }

    fn miss(&mut self, _id: KeyId) {
        self.now += 1;
    }

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        if let Some(entry) = self.kept.items.get_mut(slot) {
            (entry.bytes, entry.cost) = (bytes, cost);
        }
    }

    fn pin(&mut self, slot: Slot) {
        if self.kept.items.get(slot).is_some() {
            self.kept.lists.push_front(PINNED, slot);
        }
    }

    fn unpin(&mut self, slot: Slot) {
        if self.kept.lists.list_of(slot) == Some(PINNED) {
            self.kept.lists.push_front(USED, slot);
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.kept.victim(self.rule, self.by_loop.directory.lap, self.now)
    }

    fn leave(&mut self, slot: Slot, _why: Leave) {
        self.kept.leave(slot);
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.kept.items.get(slot).map_or(0.0, |entry| {
            let lap = match self.rule {
                Rule::Loop => self.by_loop.directory.lap,
                Rule::Recency => (self.now.saturating_sub(entry.last) + 1) as f64,
            };
            saved_per_byte(entry.cost, entry.bytes) / lap.max(1.0)
        })
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.kept.items.get(slot).map_or(0, |entry| entry.uses)
    }

    fn order(&self) -> Vec<Slot> {
        let mut order: Vec<_> = self.kept.lists.backward(USED).collect();
        if self.rule == Rule::Loop {
            order.reverse();
        }
        order.extend(self.kept.lists.backward(PINNED));
        order
    }

    fn why(&self, slot: Slot) -> String {
        let Some(entry) = self.kept.items.get(slot) else { return String::new() };
        let ago = self.now.saturating_sub(entry.last);
        match self.rule {
            Rule::Loop => {
                format!("loop of about {:.0} requests, last used {ago} ago", self.by_loop.directory.lap)
            }
            Rule::Recency => format!("no loop: used {} times, last {ago} requests ago", entry.uses),
        }
    }
}

const USED: usize = 0;
const PINNED: usize = 1;

#[derive(Debug)]
struct Entry {
    id: u64,
    bytes: u64,
    last: u64,
    cost: f32,
    uses: u32,
    /// Not used since it came in.
    fresh: bool,
}

/// Items in the order of their use.
#[derive(Debug)]
struct Directory {
    items: Slab<Entry>,
    lists: Lists<2>,
    /// The longest gap between two uses lately, in requests; 0 before there was one.
    lap: f64,
}

impl Directory {
    const fn new() -> Self {
        Self { items: Slab::new(), lists: Lists::new(), lap: 0.0 }
    }

    fn insert(&mut self, entry: Entry) -> Slot {
        let slot = self.items.insert(entry);
        self.lists.push_front(USED, slot);
        slot
    }

    fn hit(&mut self, slot: Slot, now: u64) {
        /// A longer gap is forgotten within some hundred shorter ones.
        const KEPT: f64 = 1.0 - 1.0 / 64.0;
        let Some(entry) = self.items.get_mut(slot) else { return };
        self.lap = (self.lap * KEPT).max((now - entry.last) as f64);
        entry.uses = entry.uses.saturating_add(1);
        (entry.last, entry.fresh) = (now, false);
        if self.lists.list_of(slot) == Some(USED) {
            self.lists.push_front(USED, slot);
        }
    }

    fn is_stale(&self, slot: Slot, lap: f64, now: u64) -> bool {
        /// While no lap is known, it may be this many times what is held.
        const LAP_MAX: f64 = 64.0;
        let lap = if lap > 0.0 { 1.5 * lap } else { LAP_MAX * self.items.len() as f64 };
        self.items.get(slot).is_some_and(|entry| (now - entry.last) as f64 > lap)
    }

    fn victim(&self, rule: Rule, lap: f64, now: u64) -> Option<Slot> {
        let oldest = self.lists.back(USED)?;
        match rule {
            Rule::Loop if !self.is_stale(oldest, lap, now) => self.lists.front(USED),
            _ => Some(oldest),
        }
    }

    fn leave(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.items.remove(slot)?;
        self.lists.remove(slot);
        Some(entry)
    }
}

/// What a rule would hold, by id.
#[derive(Debug)]
struct Shadow {
    rule: Rule,
    directory: Directory,
    slots: HashMap<u64, Slot>,
    bytes: u64,
    /// Hits, with a memory of some times what is held.
    hits: f64,
}

impl Shadow {
    fn new(rule: Rule) -> Self {
        Self { rule, directory: Directory::new(), slots: HashMap::new(), bytes: 0, hits: 0.0 }
    }

    fn request(&mut self, id: u64, bytes: u64, budget: u64, now: u64) {
        let memory = (8 * self.slots.len()).max(1024) as f64;
        self.hits *= 1.0 - 1.0 / memory;
        if let Some(slot) = self.slots.get(&id).copied() {
            self.hits += 1.0;
            self.directory.hit(slot, now);
        } else {
            let slot = self.directory.insert(Entry { id, bytes, last: now, cost: 0.0, uses: 1, fresh: true });
            self.slots.insert(id, slot);
            self.bytes = self.bytes.saturating_add(bytes);
        }
        while self.bytes > budget {
            let Some(victim) = self.directory.victim(self.rule, self.directory.lap, now) else { return };
            let stale = self.directory.is_stale(victim, self.directory.lap, now);
            let held = self.slots.len() as f64;
            let Some(entry) = self.directory.leave(victim) else { return };
            self.slots.remove(&entry.id);
            self.bytes -= entry.bytes;
            if stale && entry.fresh && self.rule == Rule::Loop {
                // It was given up unused: perhaps the lap is longer. A whole budget of such grows it sevenfold.
                self.directory.lap *= 1.0 + 2.0 / held;
            }
        }
    }
}

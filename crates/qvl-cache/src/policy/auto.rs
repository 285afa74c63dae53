//! Auto, the default: it watches the requests and keeps what they say will be wanted soonest.
//!
//! Belady's rule evicts what is wanted last. Auto estimates that from what was seen, and evicts the largest
//!
//! ```text
//! (requests until it is wanted again, as expected now) × bytes ÷ cost      the newcomer among the others
//! ```
//!
//! What is expected of an item that was last asked for `age` requests ago:
//!
//! - Its gaps are alike, or those of all that came with it are (a loop): gap − age. Of a loop over more than fits that
//!   keeps a part, and lets the rest pass by. Late by an eighth, the loop has ended: age.
//! - Its gaps are not alike: mean gap + age ÷ n, with `n` gaps in the faded mean. That is the mean of the next gap if
//!   the gaps are Poisson's at a rate that is known only from these gaps. After a gap as long as one in 400 it is no more
//!   what it was: age.
//! - It was asked for once: (half the gap after which such items come back + age) × how many come for one that comes
//!   back; learned for items of a like bytes ÷ cost together.
//!
//! How fast a mean fades, and whether anything but recency counts, is what differs between workloads. There are seven
//! such models, from least recently used to nearly all of the past. Two of them have a limit: of what was asked for
//! within so many requests the gaps count, and all that is older goes before it, the oldest first. A large tier is then
//! least recently used, where it is hard to do better when the favourites change, and a small one is not. The models run
//! in miniature beside each other on a sample of the ids, and the one that does well at all sizes is used (`trial.rs`).
//! It begins as least recently used, and one without a limit is left as soon as it loses to that.
//!
//! # More budget is never fewer hits
//!
//! With values of one size the larger of two tiers holds all that the smaller holds, at every step. This is the
//! inclusion property of stack algorithms: R. Mattson, J. Gecsei, D. Slutz, I. Traiger, "Evaluation Techniques for
//! Storage Hierarchies", IBM Systems Journal 9(2), 1970. A policy has it if its victim is the largest by an order that
//! does not depend on the budget. So here:
//!
//! - the order depends on the requests alone: hits, insertions and misses are one and the same event to what is learned,
//!   ids are remembered and forgotten by that event alone, and no size in this file depends on the budget;
//! - the victim is exactly the largest, with no sampling, and ties are broken by id (`order.rs`).
//!
//! With mixed sizes no such order helps: a larger budget lets a large value in for which a smaller has no room, and it
//! pushes out several small ones. Over budgets that differ by 1/512 of the footprint, one pair in eight saved less with
//! more budget, at most 0.4 % (`tests/auto_gives_more_hits_for_more_budget.rs`). Pins and removals are outside of it too.
//!
//! # Cost
//!
//! A hit writes a history and notes the slot, in O(1); who was used since is put in order when a victim is asked for,
//! O(log n) each, or all anew where they are many. A resident takes 150 to 200 bytes. Ids that are not resident are
//! remembered for the next 458,752 different ids at least and 917,504 at most: 60 bytes each as they come, 60 MB at
//! most. The miniatures take 350 KiB, and some ten microseconds for each sampled request that is no hit in all of them;
//! of 100,000 ids one in 256 is sampled, which is 0.1 µs for each request.

mod history;
mod order;
mod trial;

use hashbrown::HashMap;

use super::slab::Slab;
use super::{Item, Leave, Policy, Slot, saved_per_byte, short};
use crate::key::KeyId;
use history::{Clock, EPOCH_IDS, History, Model};
use order::Order;
use trial::{Size, Trial};

/// Watches the requests and decides by them.
#[derive(Debug)]
pub struct Auto {
    items: Slab<Entry>,
    clock: Clock,
    model: Model,
    trial: Trial,
    /// The model is another than the order was made by.
    changed: bool,
    order: Order,
    /// Used since they were last put in order.
    dirty: Vec<Slot>,
    ghosts: Ghosts,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    history: History,
    bytes: u64,
    cost: f32,
    uses: u32,
    dirty: bool,
    pinned: bool,
}

impl Entry {
    /// Bytes a second saved: the price of keeping it for one request.
    fn weight(&self) -> f64 {
        size(self.bytes, self.cost).weight
    }
}

fn size(bytes: u64, cost: f32) -> Size {
    Size { bytes, weight: 1.0 / saved_per_byte(cost, bytes) }
}

/// Histories of those that are not resident, by when they were last asked for: this epoch and the one before.
#[derive(Debug, Default)]
struct Ghosts {
    epoch: u64,
    current: HashMap<u64, Ghost>,
    previous: HashMap<u64, Ghost>,
}

#[derive(Debug)]
struct Ghost {
    history: History,
    uses: u32,
}

impl Ghosts {
    /// Follows the clock into its epoch.
    fn turn(&mut self, epoch: u64) {
        while self.epoch < epoch {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.clear();
            self.epoch += 1;
        }
    }

    fn take(&mut self, id: u64) -> Option<Ghost> {
        self.current.remove(&id).or_else(|| self.previous.remove(&id))
    }

    fn put(&mut self, id: u64, ghost: Ghost) {
        match self.epoch - ghost.history.epoch.min(self.epoch) {
            0 => self.current.insert(id, ghost),
            1 => self.previous.insert(id, ghost),
            _ => None,
        };
    }
}

impl Auto {
    /// An empty one.
    pub fn new() -> Self {
        Self::remembering(EPOCH_IDS)
    }

    /// Of ids that are not resident those among the last so many different ones, up to twice as many.
    fn remembering(ids: u32) -> Self {
        Self {
            items: Slab::new(),
            clock: Clock::new(ids),
            model: Model::ALL[0],
            trial: Trial::new(),
            changed: false,
            order: Order::new(),
            dirty: Vec::new(),
            ghosts: Ghosts::default(),
        }
    }

    /// One request, whatever came of it: the only place that learns.
    fn request(&mut self, id: u64, known: Option<History>, size: Option<Size>) -> History {
        let history = self.clock.request(known, size.map(|size| size.weight));
        if self.ghosts.epoch != self.clock.epoch() {
            self.ghosts.turn(self.clock.epoch());
            self.trial.turn(self.clock.epoch());
        }
        if self.trial.samples(id)
            && let Some(size) = size
            && let Some(model) = self.trial.request(id, &history, size, &self.clock.newcomers)
        {
            self.model = model;
            self.changed = true;
        }
        history
    }

    fn mark(&mut self, slot: Slot) {
        if let Some(entry) = self.items.get_mut(slot).filter(|entry| !entry.dirty) {
            entry.dirty = true;
            self.dirty.push(slot);
        }
        // Who left or was pinned may still be in it.
        if self.dirty.len() > 2 * self.items.len() + 64 {
            self.tidy();
        }
    }

    /// Puts all that were used in order.
    fn tidy(&mut self) {
        // From this share on it is faster to build the order anew: 100,000 in 10 ms, not 45.
        const REBUILT: usize = 8;
        if std::mem::take(&mut self.changed) || self.dirty.len() > self.items.len() / REBUILT + 64 {
            self.order.clear();
            self.dirty.clear();
            for at in 0..self.items.end() {
                self.settle(Slot(at));
            }
        }
        while let Some(slot) = self.dirty.pop() {
            if self.items.get(slot).is_some_and(|entry| entry.dirty) {
                self.settle(slot);
            }
        }
    }

    /// Puts an item where it belongs now.
    fn settle(&mut self, slot: Slot) {
        let Some(entry) = self.items.get_mut(slot) else { return };
        entry.dirty = false;
        if entry.pinned {
            self.order.remove(slot);
        } else {
            let line = self.model.line(&entry.history, entry.weight(), self.clock.now);
            self.order.put(slot, entry.id, line);
        }
    }
}

impl Default for Auto {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn set_budget(&mut self, _bytes: u64) {}

    fn insert(&mut self, item: Item) -> Slot {
        let id = short(item.id);
        let ghost = self.ghosts.take(id);
        let (known, uses) = match ghost {
            Some(ghost) => (Some(ghost.history), ghost.uses),
            None => (None, item.uses),
        };
        let history = self.request(id, known, Some(size(item.bytes, item.cost)));
        let uses = uses.saturating_add(1);
        let entry =
            Entry { id, history, bytes: item.bytes, cost: item.cost, uses, dirty: false, pinned: false };
        let slot = self.items.insert(entry);
        self.mark(slot);
        slot
    }

    fn hit(&mut self, slot: Slot) {
        let Some(entry) = self.items.get(slot) else { return };
        let history = self.request(entry.id, Some(entry.history), Some(size(entry.bytes, entry.cost)));
        if let Some(entry) = self.items.get_mut(slot) {
            entry.history = history;
            entry.uses = entry.uses.saturating_add(1);
            if !entry.dirty {
                entry.dirty = true;
                self.dirty.push(slot);
            }
        }
    }

    fn miss(&mut self, id: KeyId) {
        let id = short(id);
        let ghost = self.ghosts.take(id);
        let uses = ghost.as_ref().map_or(0, |ghost| ghost.uses);
        let history = self.request(id, ghost.map(|ghost| ghost.history), None);
        self.ghosts.put(id, Ghost { history, uses });
    }

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        if let Some(entry) = self.items.get_mut(slot) {
            (entry.bytes, entry.cost) = (bytes, cost);
            self.mark(slot);
        }
    }

    fn pin(&mut self, slot: Slot) {
        if let Some(entry) = self.items.get_mut(slot) {
            entry.pinned = true;
            self.order.remove(slot);
        }
    }

    fn unpin(&mut self, slot: Slot) {
        if let Some(entry) = self.items.get_mut(slot).filter(|entry| entry.pinned) {
            entry.pinned = false;
            self.mark(slot);
        }
    }

    fn victim(&mut self) -> Option<Slot> {
        self.tidy();
        while let Some(slot) = self.order.overdue(self.clock.now) {
            self.settle(slot);
        }
        self.order.worst(self.clock.now, &self.clock.newcomers)
    }

    fn leave(&mut self, slot: Slot, why: Leave) {
        let Some(entry) = self.items.remove(slot) else { return };
        self.order.remove(slot);
        if why == Leave::Evicted {
            self.ghosts.put(entry.id, Ghost { history: entry.history, uses: entry.uses });
        }
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.items.get(slot).map_or(0.0, |entry| {
            let line = self.model.line(&entry.history, entry.weight(), self.clock.now);
            1.0 / line.value(self.clock.now, &self.clock.newcomers).max(entry.weight())
        })
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.items.get(slot).map_or(0, |entry| entry.uses)
    }

    fn order(&self) -> Vec<Slot> {
        let (now, newcomer) = (self.clock.now, &self.clock.newcomers);
        let mut order: Vec<_> = self
            .items
            .iter()
            .map(|(slot, entry)| {
                let line = self.model.line(&entry.history, entry.weight(), now);
                (entry.pinned, line.value(now, newcomer), entry.id, slot)
            })
            .collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(b.2.cmp(&a.2)));
        order.into_iter().map(|(_, _, _, slot)| slot).collect()
    }

    fn why(&self, slot: Slot) -> String {
        let Some(entry) = self.items.get(slot) else { return String::new() };
        self.model.why(&entry.history, entry.uses, self.clock.now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::trace::{SplitMix, Trace};

    fn item(id: u64) -> Item {
        Item { id: KeyId(u128::from(id)), bytes: 1, cost: 1.0, uses: 0 }
    }

    /// One request of a tier that holds `room` values.
    fn ask(policy: &mut Auto, held: &mut BTreeMap<u64, Slot>, room: usize, id: u64) {
        if let Some(slot) = held.get(&id) {
            policy.hit(*slot);
            return;
        }
        held.insert(id, policy.insert(item(id)));
        if held.len() > room {
            let victim = policy.victim().unwrap();
            policy.leave(victim, Leave::Evicted);
            held.retain(|_, slot| *slot != victim);
        }
    }

    #[test]
    fn what_is_forgotten_is_forgotten_at_every_budget() {
        // So little is remembered here that even residents are forgotten before they are asked for again.
        let parts =
            [Trace::zipf(1, 300, 0.7, 4000), Trace::cycle(150, 2000), Trace::recency(2, 200, 1.0, 3000)];
        for remembered in [1, 16, 50, 120] {
            let rooms = [5, 40, 90, 160];
            let mut tiers = rooms.map(|room| (room, Auto::remembering(remembered), BTreeMap::new()));
            for id in parts.iter().flat_map(|trace| &trace.requests).map(|request| request.id) {
                for (room, policy, held) in &mut tiers {
                    ask(policy, held, *room, id);
                }
                for pair in tiers.windows(2) {
                    assert!(pair[0].2.keys().all(|id| pair[1].2.contains_key(id)));
                }
                for (_, policy, _) in &tiers {
                    let ghosts = policy.ghosts.current.len() + policy.ghosts.previous.len();
                    assert!(ghosts <= 2 * remembered as usize, "{ghosts} of {remembered}");
                }
            }
        }
    }

    #[test]
    fn a_miss_and_an_insertion_teach_the_same() {
        // One tier takes nothing in, the other all: what they know of each id is the same.
        let (mut empty, mut full) = (Auto::new(), Auto::new());
        let mut held = BTreeMap::new();
        let mut random = SplitMix::new(5);
        for _ in 0..2000 {
            let id = random.below(60);
            empty.miss(KeyId(u128::from(id)));
            ask(&mut full, &mut held, 60, id);
        }
        for (id, slot) in held {
            let ghost = empty.ghosts.take(id).unwrap().history;
            let entry = full.items.get(slot).unwrap().history;
            assert_eq!((ghost.last, ghost.count), (entry.last, entry.count));
        }
    }

    #[test]
    fn it_says_what_it_knows() {
        let mut policy = Auto::new();
        let mut held = BTreeMap::new();
        for id in (0..1200).map(|at| at % 100) {
            ask(&mut policy, &mut held, 50, id);
        }
        // The last request was for 99; 0 is the next.
        assert_eq!(held.len(), 50);
        for (id, slot) in held {
            assert_eq!(policy.why(slot), format!("loop of about 100 requests, wanted in {}", id + 1));
        }
        let mut policy = Auto::new();
        let slot = policy.insert(item(1));
        policy.miss(KeyId(2));
        assert_eq!(policy.why(slot), "used once, 1 requests ago");
        for gap in [1, 40, 3, 90] {
            (0..gap).for_each(|id| policy.miss(KeyId(100 + id)));
            policy.hit(slot);
        }
        assert!(policy.why(slot).starts_with("used 5 times, about every "), "{}", policy.why(slot));
    }
}

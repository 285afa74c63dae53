//! Auto, the default: it watches the requests and keeps what they say will be wanted soonest.

mod history;
mod order;
mod trial;

use hashbrown::HashMap;

use super::slab::Slab;
use super::{Item, Leave, Policy, Slot, saved_per_byte, short};
use crate::key::KeyId;
use history::{Clock, History, Model};
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
        Self {
            items: Slab::new(),
            clock: Clock::new(),
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
        if std::mem::take(&mut self.changed) {
            let slots: Vec<_> = self.items.iter().map(|(slot, _)| slot).collect();
            slots.into_iter().for_each(|slot| self.settle(slot));
        }
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

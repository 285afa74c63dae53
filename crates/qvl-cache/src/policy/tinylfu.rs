//! W-TinyLFU: a small window for what is new, and a large main part that one enters by having been asked for more often
//! than those who would go for it.
//!
//! G. Einziger, R. Friedman, B. Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM Transactions on
//! Storage 13(4), 2017. The window has 1 % of the budget; the main part is a segmented LRU (80 % protected). How often
//! a key was asked for, resident or not, is estimated with a count-min sketch of 4-bit counters that are halved after
//! ten requests a word of them. By size as in the same authors' "Lightweight Robust Size Aware Cache Management"
//! (2022, "aggregated victims"): a candidate must have been asked for more often than all together who would go for it.
//!
//! 60 bytes an item, and 8 bytes of sketch an item, 8 MiB at most; O(1) but for the victims looked at together.

use std::collections::VecDeque;

use super::slab::{Lists, Slab};
use super::{Item, Leave, Policy, Slot, saved_per_byte, short};
use crate::key::KeyId;

const WINDOW: usize = 0;
const PROBATION: usize = 1;
const PROTECTED: usize = 2;
const PINNED: usize = 3;

/// One part in so many of the budget is the window.
const WINDOW_PART: u64 = 100;

/// W-TinyLFU, by bytes.
#[derive(Debug)]
pub struct TinyLfu {
    items: Slab<Entry>,
    lists: Lists<4>,
    /// Bytes of each list.
    bytes: [u64; 4],
    budget: u64,
    /// Who left the window with the last insertion, and has to stand against the main part.
    candidates: VecDeque<Slot>,
    sketch: Sketch,
    now: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    bytes: u64,
    cost: f32,
    uses: u32,
    /// The list it is in, or comes back to when it is unpinned.
    list: u8,
}

impl TinyLfu {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            items: Slab::new(),
            lists: Lists::new(),
            bytes: [0; 4],
            budget: u64::MAX,
            candidates: VecDeque::new(),
            sketch: Sketch::new(0),
            now: 0,
        }
    }

    /// Moves an item to the front of a list. A pinned one only changes where it will come back to.
    fn place(&mut self, slot: Slot, list: usize) {
        let Some(entry) = self.items.get_mut(slot) else { return };
        let bytes = entry.bytes;
        if list != PINNED {
            entry.list = list as u8;
            if self.lists.list_of(slot) == Some(PINNED) {
                return;
            }
        }
        if let Some(from) = self.lists.remove(slot) {
            self.bytes[from] -= bytes;
        }
        self.bytes[list] += bytes;
        self.lists.push_front(list, slot);
    }

    fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// How often an item was asked for lately.
    fn frequency(&self, slot: Slot) -> u32 {
        self.items.get(slot).map_or(0, |entry| self.sketch.count(entry.id))
    }

    /// Whether a candidate was asked for more often than all who would go for it.
    fn wins(&self, candidate: Slot) -> bool {
        let mut missing = self.total().saturating_sub(self.budget).max(1);
        let own = self.frequency(candidate);
        let mut others = 0;
        let main = self.lists.backward(PROBATION).chain(self.lists.backward(PROTECTED));
        for slot in main.filter(|slot| *slot != candidate) {
            others += self.frequency(slot);
            if others >= own {
                return false;
            }
            missing = missing.saturating_sub(self.items.get(slot).map_or(0, |entry| entry.bytes));
            if missing == 0 {
                return true;
            }
        }
        // All of them together would not make room for it.
        false
    }
}

impl Default for TinyLfu {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for TinyLfu {
    fn name(&self) -> &'static str {
        "tinylfu"
    }

    fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    fn insert(&mut self, item: Item) -> Slot {
        self.now += 1;
        let id = short(item.id);
        self.sketch.fit(self.items.len() + 1);
        self.sketch.add(id);
        for _ in 0..item.uses.min(u32::from(COUNT_MAX)) {
            self.sketch.add(id);
        }
        let uses = item.uses.saturating_add(1);
        let entry = Entry { id, bytes: item.bytes, cost: item.cost, uses, list: WINDOW as u8 };
        let slot = self.items.insert(entry);
        self.place(slot, WINDOW);
        // Those of before stood their trial.
        self.candidates.clear();
        while self.bytes[WINDOW] > self.budget / WINDOW_PART {
            let Some(out) = self.lists.back(WINDOW) else { break };
            self.place(out, PROBATION);
            self.candidates.push_back(out);
        }
        slot
    }

    fn hit(&mut self, slot: Slot) {
        self.now += 1;
        let Some(entry) = self.items.get_mut(slot) else { return };
        entry.uses = entry.uses.saturating_add(1);
        let (id, list) = (entry.id, usize::from(entry.list));
        self.sketch.add(id);
        self.place(slot, if list == WINDOW { WINDOW } else { PROTECTED });
        let protected_max = (self.budget - self.budget / WINDOW_PART) / 10 * 8;
        while self.bytes[PROTECTED] > protected_max {
            let Some(out) = self.lists.back(PROTECTED) else { break };
            self.place(out, PROBATION);
        }
    }

    fn miss(&mut self, id: KeyId) {
        self.now += 1;
        self.sketch.add(short(id));
    }

    fn update(&mut self, slot: Slot, bytes: u64, cost: f32) {
        let list = self.lists.list_of(slot);
        if let (Some(entry), Some(list)) = (self.items.get_mut(slot), list) {
            self.bytes[list] = self.bytes[list] - entry.bytes + bytes;
            (entry.bytes, entry.cost) = (bytes, cost);
        }
    }

    fn pin(&mut self, slot: Slot) {
        self.place(slot, PINNED);
    }

    fn unpin(&mut self, slot: Slot) {
        if self.lists.list_of(slot) != Some(PINNED) {
            return;
        }
        let Some(entry) = self.items.get(slot) else { return };
        let (bytes, list) = (entry.bytes, usize::from(entry.list));
        self.lists.remove(slot);
        self.bytes[PINNED] -= bytes;
        self.place(slot, list);
    }

    fn victim(&mut self) -> Option<Slot> {
        while let Some(candidate) = self.candidates.front().copied() {
            if self.lists.list_of(candidate) != Some(PROBATION) {
                self.candidates.pop_front();
                continue;
            }
            if !self.wins(candidate) {
                return Some(candidate);
            }
            let main = self.lists.backward(PROBATION).chain(self.lists.backward(PROTECTED));
            return main.into_iter().find(|slot| *slot != candidate);
        }
        [PROBATION, PROTECTED, WINDOW].into_iter().find_map(|list| self.lists.back(list))
    }

    fn leave(&mut self, slot: Slot, _why: Leave) {
        let Some(entry) = self.items.remove(slot) else { return };
        if let Some(list) = self.lists.remove(slot) {
            self.bytes[list] -= entry.bytes;
        }
        self.candidates.retain(|candidate| *candidate != slot);
    }

    fn worth(&self, slot: Slot) -> f64 {
        self.items.get(slot).map_or(0.0, |entry| {
            let rate = f64::from(self.sketch.count(entry.id)) / self.sketch.period as f64;
            saved_per_byte(entry.cost, entry.bytes) * rate
        })
    }

    fn uses(&self, slot: Slot) -> u32 {
        self.items.get(slot).map_or(0, |entry| entry.uses)
    }

    fn order(&self) -> Vec<Slot> {
        [PROBATION, PROTECTED, WINDOW, PINNED]
            .into_iter()
            .flat_map(|list| self.lists.backward(list))
            .collect()
    }

    fn why(&self, slot: Slot) -> String {
        let Some(entry) = self.items.get(slot) else { return String::new() };
        let part = match usize::from(entry.list) {
            WINDOW => "new",
            PROBATION => "on probation",
            _ => "protected",
        };
        format!("{part}, asked for about {} times lately, used {} times", self.frequency(slot), entry.uses)
    }
}

/// The most a counter holds.
const COUNT_MAX: u8 = 15;

/// Words of 16 counters; 8 MiB.
const WORDS_MAX: usize = 1 << 20;

/// A count-min sketch: four counters a key, the smallest of which is never less than the true count since the last
/// halving.
#[derive(Debug)]
struct Sketch {
    words: Vec<u64>,
    additions: u64,
    /// Halved after so many additions.
    period: u64,
}

impl Sketch {
    fn new(items: usize) -> Self {
        let words = items.next_power_of_two().clamp(64, WORDS_MAX);
        Self { words: vec![0; words], additions: 0, period: 10 * words as u64 }
    }

    /// Makes it large enough, and loses nothing by it.
    fn fit(&mut self, items: usize) {
        if items > self.words.len() && self.words.len() < WORDS_MAX {
            // A key's words gain a bit of index: with the table copied into its new half every count is kept.
            while self.words.len() < items.min(WORDS_MAX) {
                self.words.extend_from_within(..);
            }
            self.period = 10 * self.words.len() as u64;
        }
    }

    /// The four counters of a key: word and shift.
    fn places(&self, id: u64) -> [(usize, u32); 4] {
        let mask = self.words.len() as u64 - 1;
        let mut hash = id;
        [0_u32; 4].map(|_| {
            hash =
                (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e59b_d9b4_e019);
            (((hash >> 20) & mask) as usize, ((hash >> 60) as u32) * 4)
        })
    }

    fn count(&self, id: u64) -> u32 {
        let counts = self.places(id).map(|(word, shift)| (self.words[word] >> shift) & 15);
        counts.into_iter().min().unwrap_or(0) as u32
    }

    fn add(&mut self, id: u64) {
        let places = self.places(id);
        let least = u64::from(self.count(id));
        if least < u64::from(COUNT_MAX) {
            // Only the smallest are raised ("conservative update"): the others count someone else too.
            for (at, (word, shift)) in places.into_iter().enumerate() {
                if !places[..at].contains(&(word, shift)) && (self.words[word] >> shift) & 15 == least {
                    self.words[word] += 1 << shift;
                }
            }
        }
        self.additions += 1;
        if self.additions >= self.period {
            self.additions /= 2;
            for word in &mut self.words {
                *word = (*word >> 1) & 0x7777_7777_7777_7777;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_never_counts_too_few_and_keeps_its_counts_when_it_grows() {
        let mut sketch = Sketch::new(64);
        for id in 0..20 {
            for _ in 0..id {
                sketch.add(id);
            }
        }
        sketch.fit(1000);
        for id in 0..20 {
            assert!(sketch.count(id) >= id.min(15) as u32);
        }
        assert_eq!(sketch.words.len(), 1024);
    }

    #[test]
    fn counts_are_halved() {
        let mut sketch = Sketch::new(64);
        (0..640).for_each(|_| sketch.add(7));
        assert_eq!(sketch.count(7), 7);
    }
}

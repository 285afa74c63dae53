//! The exact largest of priorities that all change with time, in O(log n).
//!
//! Each priority is a line over time. Lines of one slope keep their order, so there is a heap for each slope, and only
//! the tops are compared. Slopes are rounded to quarter octaves, which makes them few.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Slot;
use super::history::Newcomers;
use crate::policy::heap::{Heap, OUT, ordered, unordered};

/// How a priority changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Grows with its slope.
    Rising,
    /// Falls with its slope, until a deadline.
    Falling,
    /// As learned of newcomers, times its slope.
    Once,
}

/// A priority over time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    kind: Kind,
    /// Quarter octaves.
    quarters: i16,
    slope: f64,
    /// Where it is 0, but for newcomers: when it was last used.
    zero: f64,
    /// After this request the line is another.
    pub(super) deadline: u64,
}

impl Line {
    /// `weight × start` at `last`, and growing with `slope`.
    pub(super) fn rising(last: f64, start: f64, weight: f64, slope: f64, deadline: u64) -> Self {
        let quarters = quarter_octaves(slope);
        let slope = slope_of(quarters);
        Self { kind: Kind::Rising, quarters, slope, zero: last - start * weight / slope, deadline }
    }

    /// What is expected of newcomers.
    pub(super) fn once(last: f64, weight: f64) -> Self {
        let quarters = quarter_octaves(weight);
        Self { kind: Kind::Once, quarters, slope: slope_of(quarters), zero: last, deadline: u64::MAX }
    }

    /// `weight × start` at `last`, and falling with `weight`.
    pub(super) fn falling(last: f64, start: f64, weight: f64, deadline: u64) -> Self {
        let quarters = quarter_octaves(weight);
        let slope = slope_of(quarters);
        Self { kind: Kind::Falling, quarters, slope, zero: last + start * weight / slope, deadline }
    }

    pub(super) fn value(&self, now: u64, newcomers: &Newcomers) -> f64 {
        value(self.kind, self.quarters, self.slope, self.zero, now, newcomers)
    }

    /// Larger goes first within its kind and slope.
    fn key(&self) -> u64 {
        ordered(if self.kind == Kind::Falling { self.zero } else { -self.zero })
    }
}

fn value(kind: Kind, quarters: i16, slope: f64, zero: f64, now: u64, newcomers: &Newcomers) -> f64 {
    let now = now as f64;
    slope
        * match kind {
            Kind::Rising => now - zero,
            Kind::Falling => zero - now,
            Kind::Once => newcomers.of(quarters).expected(now - zero),
        }
}

/// The largest and smallest exponents of slopes, in quarter octaves: 2^±128.
const QUARTERS_MAX: i16 = 512;

fn quarter_octaves(slope: f64) -> i16 {
    let max = f64::from(QUARTERS_MAX);
    (slope.log2() * 4.0).round().clamp(-max, max) as i16
}

fn slope_of(quarters: i16) -> f64 {
    /// 2^(0, 1/4, 1/2, 3/4).
    const ROOTS: [f64; 4] = [1.0, 1.189_207_115_002_721, std::f64::consts::SQRT_2, 1.681_792_830_507_429];
    let octave = f64::from_bits((1023 + i64::from(quarters.div_euclid(4))) as u64 * (1 << 52));
    octave * ROOTS[quarters.rem_euclid(4) as usize]
}

/// All that can go, so that the one of the largest priority is found.
#[derive(Debug)]
pub(super) struct Order {
    classes: Vec<Class>,
    /// The class of each kind and slope; `OUT` where there is none yet.
    by_slope: Vec<u32>,
    /// The class of each slot, and its places in that class's heaps.
    class_of: Vec<u32>,
    places: [Vec<u32>; 2],
    deadlines: BinaryHeap<Reverse<(u64, u32)>>,
    deadline_of: Vec<u64>,
    len: usize,
}

#[derive(Debug)]
struct Class {
    kind: Kind,
    quarters: i16,
    slope: f64,
    /// By key, then by id: the same at every budget.
    heap: Heap<(u64, u64)>,
    /// The same in reverse, for newcomers: either end may be the worst.
    reverse: Heap<(u64, u64)>,
}

/// Value, kind, slope, key and id, slot.
type Candidate = (u64, Kind, i16, (u64, u64), u32);

impl Class {
    fn push(&mut self, places: &mut [Vec<u32>; 2], (key, id): (u64, u64), slot: u32) {
        self.heap.push(&mut places[0], (key, id), slot);
        if self.kind == Kind::Once {
            self.reverse.push(&mut places[1], (!key, id), slot);
        }
    }

    fn change(&mut self, places: &mut [Vec<u32>; 2], (key, id): (u64, u64), slot: u32) {
        self.heap.change(&mut places[0], (key, id), slot);
        if self.kind == Kind::Once {
            self.reverse.change(&mut places[1], (!key, id), slot);
        }
    }

    fn remove(&mut self, places: &mut [Vec<u32>; 2], slot: u32) {
        self.heap.remove(&mut places[0], slot);
        if self.kind == Kind::Once {
            self.reverse.remove(&mut places[1], slot);
        }
    }
}

impl Order {
    pub(super) fn new() -> Self {
        Self {
            classes: Vec::new(),
            by_slope: vec![OUT; 3 * SLOPES],
            class_of: Vec::new(),
            places: [Vec::new(), Vec::new()],
            deadlines: BinaryHeap::new(),
            deadline_of: Vec::new(),
            len: 0,
        }
    }

    /// Puts a slot where its line belongs.
    pub(super) fn put(&mut self, slot: Slot, id: u64, line: Line) {
        let at = slot.0 as usize;
        let class = self.class(line.kind, line.quarters);
        if self.places[0].len() <= at {
            self.places[0].resize(at + 1, OUT);
            self.class_of.resize(at + 1, 0);
            self.deadline_of.resize(at + 1, u64::MAX);
        }
        let key = (line.key(), id);
        if self.places[0][at] != OUT && self.class_of[at] == class {
            self.classes[class as usize].change(&mut self.places, key, slot.0);
        } else {
            self.remove(slot);
            self.class_of[at] = class;
            self.classes[class as usize].push(&mut self.places, key, slot.0);
            self.len += 1;
        }
        self.deadline_of[at] = line.deadline;
        if line.deadline != u64::MAX {
            self.deadlines.push(Reverse((line.deadline, slot.0)));
            // Most are out of date when there are so many.
            if self.deadlines.len() > 4 * self.len + 64 {
                let deadline_of = &self.deadline_of;
                self.deadlines.retain(|Reverse((deadline, slot))| deadline_of[*slot as usize] == *deadline);
            }
        }
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        for class in &mut self.classes {
            class.heap.clear();
            class.reverse.clear();
        }
        self.places.iter_mut().for_each(|places| places.fill(OUT));
        self.deadline_of.fill(u64::MAX);
        self.deadlines.clear();
        self.len = 0;
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let at = slot.0 as usize;
        if self.places[0].get(at).is_some_and(|place| *place != OUT) {
            self.classes[self.class_of[at] as usize].remove(&mut self.places, slot.0);
            self.deadline_of[at] = u64::MAX;
            self.len -= 1;
        }
    }

    /// A slot whose deadline has passed: its line is another now.
    pub(super) fn overdue(&mut self, now: u64) -> Option<Slot> {
        while let Some(Reverse((deadline, slot))) = self.deadlines.peek().copied() {
            if deadline >= now {
                return None;
            }
            self.deadlines.pop();
            if self.deadline_of[slot as usize] == deadline {
                return Some(Slot(slot));
            }
        }
        None
    }

    /// The slot of the largest priority now.
    ///
    /// Where two are equal the kind and the slope decide, then the key, then the id: nothing that depends on who else is
    /// here, or on the order in which they came.
    pub(super) fn worst(&self, now: u64, newcomers: &Newcomers) -> Option<Slot> {
        let mut worst: Option<Candidate> = None;
        for class in &self.classes {
            let reverse = class.reverse.top().map(|((key, id), slot)| ((!key, id), slot));
            for ((key, id), slot) in class.heap.top().into_iter().chain(reverse) {
                let zero = if class.kind == Kind::Falling { unordered(key) } else { -unordered(key) };
                let value = value(class.kind, class.quarters, class.slope, zero, now, newcomers);
                worst = worst.max(Some((ordered(value), class.kind, class.quarters, (key, id), slot)));
            }
        }
        worst.map(|(.., slot)| Slot(slot))
    }

    fn class(&mut self, kind: Kind, quarters: i16) -> u32 {
        let known = &mut self.by_slope[kind as usize * SLOPES + (quarters + QUARTERS_MAX) as usize];
        if *known == OUT {
            *known = self.classes.len() as u32;
            let (heap, reverse) = (Heap::new(), Heap::new());
            self.classes.push(Class { kind, quarters, slope: slope_of(quarters), heap, reverse });
        }
        *known
    }
}

/// How many slopes there are.
const SLOPES: usize = 2 * QUARTERS_MAX as usize + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_powers_of_two_by_quarters() {
        for quarters in [-512, -5, -1, 0, 1, 2, 3, 4, 511] {
            let expected = (f64::from(quarters) / 4.0).exp2();
            assert!((slope_of(quarters) / expected - 1.0).abs() < 1e-14);
            assert_eq!(quarter_octaves(slope_of(quarters)), quarters);
        }
        assert_eq!(quarter_octaves(0.0), -512);
        assert_eq!(quarter_octaves(f64::INFINITY), 512);
    }
}

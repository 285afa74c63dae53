//! Where the allocations of a trace lie so that the whole is small (pure).
//!
//! Finding the smallest packing is NP-hard, so several orders are tried, and the best is improved for a bounded number
//! of steps:
//!
//! ```text
//! orders: by size, life, their product, by the most that lives meanwhile, by birth, as a skyline is filled
//! for each order, for each rule (lowest gap, tightest gap):
//!     place one after the other in a gap between those that live at the same time
//! while there are steps, and the peak is above the lower bound:
//!     move one that reaches the peak to the front of the order, or two to random places
//!     place all again, each in the lowest gap; keep the order if the peak did not rise
//! ```
//!
//! Up to six allocations all orders are tried. One of them gives the smallest packing there is: the order of the
//! offsets of such a packing, where the lowest gap is never above the offset.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::trace::{Allocation, Trace};
use crate::{Error, Result};

/// How long [`pack_with`] looks for a better packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// At most so many attempts to improve the best packing.
    pub attempts: u32,
    /// At most so many comparisons of two allocations in all attempts; some 2·10^8 of them take a second.
    pub comparisons: u64,
}

impl Default for Effort {
    /// Attempts for some two seconds at the most; the orders of the first round come before, and cost O(n²).
    fn default() -> Self {
        Self { attempts: 4000, comparisons: 400_000_000 }
    }
}

/// An offset for each allocation of a trace, such that no two overlap while both live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    trace: Trace,
    offsets: Vec<u64>,
    peak_bytes: u64,
    lower_bound_bytes: u64,
}

impl Packing {
    /// A packing with these offsets, in the order of the trace's allocations: one that was stored, or made by another.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn new(trace: Trace, offsets: Vec<u64>) -> Result<Self> {
        let unit = unit(&trace);
        let ends =
            trace.allocations().iter().zip(&offsets).map(|(one, offset)| offset.saturating_add(one.bytes));
        let peak_bytes = ends.max().unwrap_or(0);
        let peak_bytes = peak_bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        let packing = Self { lower_bound_bytes: lower_bound(&trace), trace, offsets, peak_bytes };
        packing.check()?;
        Ok(packing)
    }

    /// Checks every offset, in O(n log n) and with none of the code that chose it.
    ///
    /// # Errors
    /// [`Error::Setting`] names the allocation whose offset is no multiple of its alignment, the two that overlap, or
    /// the numbers of allocations and offsets.
    pub fn check(&self) -> Result<()> {
        let wrong = |got: String, expected: String| Error::Setting { name: "packing", got, expected };
        let allocations = self.trace.allocations();
        if allocations.len() != self.offsets.len() {
            let got = format!("of {} offsets", self.offsets.len());
            return Err(wrong(got, format!("the trace has {} allocations", allocations.len())));
        }
        // Those that live, by offset. Deaths come before births, since a space is free when its owner dies.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * allocations.len());
        for (index, allocation) in allocations.iter().enumerate() {
            events.push((allocation.birth, true, index));
            events.push((allocation.death, false, index));
        }
        events.sort_unstable();
        let mut living: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        for (_, begins, index) in events {
            let Allocation { id, bytes, align, .. } = allocations[index];
            let offset = self.offsets[index];
            if !begins {
                living.remove(&offset);
                continue;
            }
            let end = offset.checked_add(bytes).filter(|&end| end <= self.peak_bytes);
            let Some(end) = end.filter(|_| offset.is_multiple_of(align)) else {
                let got = format!("allocation {id} at offset {offset}");
                return Err(wrong(got, format!("a multiple of {align}, {bytes} before the end")));
            };
            let below = living.range(..end).next_back();
            if let Some((&other, &(_, other_id))) = below.filter(|(_, (other_end, _))| *other_end > offset) {
                let got = format!("allocation {id} at {offset} to {end} while {other_id} lives at {other}");
                return Err(wrong(got, "what lives at the same time must not overlap".to_owned()));
            }
            living.insert(offset, (end, id));
        }
        Ok(())
    }

    /// What is packed.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Where each allocation begins, in bytes, in the order of the trace.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// What the whole needs, rounded up to the smallest alignment of the trace.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// What no packing can be below: the most bytes that live at a time, each rounded up to the smallest alignment.
    pub fn lower_bound_bytes(&self) -> u64 {
        self.lower_bound_bytes
    }

    /// How far the peak is above the lower bound, as a share of the bound: 0 is the best there can be.
    pub fn gap(&self) -> f64 {
        if self.lower_bound_bytes == 0 {
            return 0.0;
        }
        (self.peak_bytes - self.lower_bound_bytes) as f64 / self.lower_bound_bytes as f64
    }

    /// Which alignment the whole needs.
    pub fn align(&self) -> u64 {
        self.trace.allocations().iter().map(|allocation| allocation.align).max().unwrap_or(1)
    }

    /// The bytes that live from each time on at which that changes, in order of time.
    pub fn live_bytes(&self) -> Vec<(u64, u64)> {
        live(&self.trace)
    }
}

/// Packs a trace with the default [`Effort`]. The same trace gives the same packing on every machine.
///
/// It costs O(n²) comparisons for each order that is tried. The 360 to 460 allocations of a forward pass in `traces/`
/// take some milliseconds and are packed to the lower bound; 10,000 of random sizes and lives take some five seconds,
/// on a shared machine and hardly optimised, and are packed to 7.4 % above it.
pub fn pack(trace: &Trace) -> Packing {
    pack_with(trace, Effort::default())
}

/// Packs a trace and stops looking where `effort` says. The orders of the first round are always tried.
pub fn pack_with(trace: &Trace, effort: Effort) -> Packing {
    let allocations = trace.allocations();
    let unit = unit(trace);
    let lower_bound_bytes = lower_bound(trace);
    // The peak is not known before the first placing, and greater than all until then.
    let round = |bytes: u64| bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
    let mut placer = Placer::new(allocations);
    let mut best = Best { peak: u64::MAX, order: Vec::new(), offsets: vec![0; allocations.len()] };

    if allocations.len() <= ALL_ORDERS_MAX {
        let mut order: Vec<usize> = (0..allocations.len()).collect();
        loop {
            placer.offer(&order, Rule::Lowest, &mut best);
            if round(best.peak) <= lower_bound_bytes || !next_permutation(&mut order) {
                break;
            }
        }
    } else {
        for order in orders(trace) {
            for rule in [Rule::Lowest, Rule::Tightest] {
                if round(best.peak) > lower_bound_bytes {
                    placer.offer(&order, rule, &mut best);
                }
            }
        }
        improve(&mut placer, &mut best, effort, |peak| round(peak) <= lower_bound_bytes);
    }
    let peak_bytes = if allocations.is_empty() { 0 } else { round(best.peak) };
    Packing { trace: trace.clone(), offsets: best.offsets, peak_bytes, lower_bound_bytes }
}

/// The best packing so far, and the order it is from.
struct Best {
    peak: u64,
    order: Vec<usize>,
    offsets: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Lowest,
    Tightest,
}

/// One that has its place.
#[derive(Clone, Copy)]
struct Placed {
    offset: u64,
    end: u64,
    birth: u64,
    death: u64,
}

struct Placer<'a> {
    allocations: &'a [Allocation],
    /// By offset.
    placed: Vec<Placed>,
    offsets: Vec<u64>,
    comparisons: u64,
}

impl<'a> Placer<'a> {
    fn new(allocations: &'a [Allocation]) -> Self {
        let offsets = vec![0; allocations.len()];
        Self { allocations, placed: Vec::with_capacity(allocations.len()), offsets, comparisons: 0 }
    }

    /// Places all in this order and keeps what is better than the best.
    fn offer(&mut self, order: &[usize], rule: Rule, best: &mut Best) {
        if let Some(peak) = self.place(order, rule, best.peak.saturating_sub(1)) {
            best.peak = peak;
            best.order = order.to_vec();
            best.offsets.clone_from(&self.offsets);
        }
    }

    /// Places all in this order; `None` as soon as one ends above `most`.
    fn place(&mut self, order: &[usize], rule: Rule, most: u64) -> Option<u64> {
        self.placed.clear();
        let mut peak = 0;
        for &index in order {
            let allocation = &self.allocations[index];
            let offset = self.gap(allocation, rule);
            let end = offset + allocation.bytes;
            if end > most {
                return None;
            }
            peak = peak.max(end);
            self.offsets[index] = offset;
            let at = self.placed.partition_point(|placed| placed.offset < offset);
            let Allocation { birth, death, .. } = *allocation;
            self.placed.insert(at, Placed { offset, end, birth, death });
        }
        Some(peak)
    }

    /// Where it fits among what is placed and lives at the same time.
    fn gap(&mut self, allocation: &Allocation, rule: Rule) -> u64 {
        let Allocation { bytes, align, birth, death, .. } = *allocation;
        let mut free_from = 0;
        let mut tightest: Option<(u64, u64)> = None;
        for (number, placed) in self.placed.iter().enumerate() {
            if placed.birth >= death || birth >= placed.death {
                continue;
            }
            let start = align_up(free_from, align);
            if start + bytes <= placed.offset {
                if rule == Rule::Lowest {
                    self.comparisons += number as u64 + 1;
                    return start;
                }
                let left = placed.offset - start - bytes;
                if tightest.is_none_or(|(least, _)| left < least) {
                    tightest = Some((left, start));
                }
            }
            free_from = free_from.max(placed.end);
        }
        self.comparisons += self.placed.len() as u64 + 1;
        tightest.map_or_else(|| align_up(free_from, align), |(_, start)| start)
    }
}

/// The orders of the first round.
fn orders(trace: &Trace) -> Vec<Vec<usize>> {
    let allocations = trace.allocations();
    let contention = contention(trace);
    let bytes = |index: usize| allocations[index].bytes;
    let life = |index: usize| allocations[index].death - allocations[index].birth;
    let area = |index: usize| u128::from(bytes(index)) * u128::from(life(index));
    let by = |key: &dyn Fn(usize) -> (u128, u128)| {
        let mut order: Vec<usize> = (0..allocations.len()).collect();
        // The sort is stable, so that equals stay in the order of their births.
        order.sort_by_key(|&index| Reverse(key(index)));
        order
    };
    // The skylines first: they are mostly the best, and of the others a placing ends where it is above the best.
    vec![
        skyline(allocations, &|index| (area(index), u128::from(life(index)))),
        skyline(allocations, &|index| (u128::from(life(index)), u128::from(bytes(index)))),
        by(&|index| (u128::from(bytes(index)), u128::from(life(index)))),
        by(&|index| (area(index), u128::from(bytes(index)))),
        by(&|index| (u128::from(life(index)), u128::from(bytes(index)))),
        by(&|index| (u128::from(contention[index]), u128::from(bytes(index)))),
        by(&|index| (u128::from(contention[index]), area(index))),
        by(&|index| (u128::from(contention[index]), u128::from(life(index)))),
        (0..allocations.len()).collect(),
        (0..allocations.len()).rev().collect(),
    ]
}

/// A run of times at which what is placed so far ends at the same height.
struct Segment {
    from: u64,
    to: u64,
    height: u64,
}

/// The order in which a skyline over time is filled from below: in the lowest segment goes what lives within it and has
/// the greatest key; where nothing does, the segment is raised to its lower neighbour. O(n²) comparisons.
fn skyline(allocations: &[Allocation], key: &dyn Fn(usize) -> (u128, u128)) -> Vec<usize> {
    let from = allocations.first().map_or(0, |first| first.birth);
    let to = allocations.iter().map(|allocation| allocation.death).max().unwrap_or(0);
    let mut segments = vec![Segment { from, to, height: 0 }];
    let mut waiting: Vec<usize> = (0..allocations.len()).collect();
    waiting.sort_by_key(|&index| Reverse(key(index)));
    let mut order = Vec::with_capacity(allocations.len());
    while let Some(lowest) = (0..segments.len()).min_by_key(|&at| segments[at].height) {
        let Segment { from, to, height } = segments[lowest];
        let within = |&index: &usize| allocations[index].birth >= from && allocations[index].death <= to;
        if let Some(at) = waiting.iter().position(within) {
            let index = waiting.remove(at);
            order.push(index);
            let Allocation { bytes, align, birth, death, .. } = allocations[index];
            let parts = [
                Segment { from, to: birth, height },
                Segment { from: birth, to: death, height: align_up(height, align) + bytes },
                Segment { from: death, to, height },
            ];
            segments.splice(lowest..=lowest, parts.into_iter().filter(|part| part.from < part.to));
        } else {
            let before = lowest.checked_sub(1).and_then(|at| segments.get(at));
            let neighbours = [before, segments.get(lowest + 1)].into_iter().flatten();
            // One segment alone is all of the time, and what does not live within it there is none.
            let Some(lower) = neighbours.map(|segment| segment.height).min() else { break };
            segments[lowest].height = lower;
        }
        segments.dedup_by(|next, one| {
            let same = next.height == one.height;
            if same {
                one.to = next.to;
            }
            same
        });
    }
    order
}

/// For each allocation, the most that lives at a time while it does.
fn contention(trace: &Trace) -> Vec<u64> {
    let live = live(trace);
    // A table of maxima over runs of 2^k times, so that a long life costs no more than a short one.
    let mut maxima: Vec<Vec<u64>> = vec![live.iter().map(|&(_, bytes)| bytes).collect()];
    while let Some(last) = maxima.last().filter(|last| last.len() > 1 << (maxima.len() - 1)) {
        let step = 1 << (maxima.len() - 1);
        let next = last.iter().zip(&last[step..]).map(|(one, other)| *one.max(other)).collect();
        maxima.push(next);
    }
    let most = |allocation: &Allocation| {
        let first = live.partition_point(|&(time, _)| time < allocation.birth);
        let end = live.partition_point(|&(time, _)| time < allocation.death);
        let level = (end - first).max(1).ilog2() as usize;
        let row = &maxima[level];
        row[first].max(row[end - (1 << level)])
    };
    trace.allocations().iter().map(most).collect()
}

/// Moves what reaches the peak to the front of the order, and keeps what is not worse.
fn improve(placer: &mut Placer<'_>, best: &mut Best, effort: Effort, done: impl Fn(u64) -> bool) {
    let count = placer.allocations.len();
    let mut random = SplitMix(SEED);
    let mut current = best.order.clone();
    // The best may be from the other rule: the walk begins from what the lowest gap makes of its order.
    placer.comparisons = 0;
    let Some(mut peak) = placer.place(&current, Rule::Lowest, u64::MAX) else { return };
    let mut offsets = placer.offsets.clone();
    for _ in 0..effort.attempts {
        if done(best.peak) || placer.comparisons > effort.comparisons {
            return;
        }
        let mut order = current.clone();
        let ends = |index: usize| offsets[index] + placer.allocations[index].bytes;
        let reaching: Vec<usize> = (0..count).filter(|&at| ends(order[at]) == peak).collect();
        let from =
            if random.below(4) == 0 { random.below(count) } else { reaching[random.below(reaching.len())] };
        let to = if random.below(3) == 0 { 0 } else { random.below(from + 1) };
        let moved = order.remove(from);
        order.insert(to, moved);
        if random.below(2) == 0 {
            order.swap(random.below(count), random.below(count));
        }
        if let Some(reached) = placer.place(&order, Rule::Lowest, peak) {
            peak = reached;
            current = order;
            offsets.clone_from(&placer.offsets);
            if peak < best.peak {
                best.peak = peak;
                best.order.clone_from(&current);
                best.offsets.clone_from(&offsets);
            }
        }
    }
}

/// The live bytes, each rounded up to the unit, from each time on at which something begins or ends.
fn live(trace: &Trace) -> Vec<(u64, u64)> {
    let unit = unit(trace);
    let mut changes: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for allocation in trace.allocations() {
        let bytes = allocation.bytes.next_multiple_of(unit);
        changes.entry(allocation.birth).or_default().0 += bytes;
        changes.entry(allocation.death).or_default().1 += bytes;
    }
    let mut bytes = 0;
    let sum = |(time, (more, less)): (u64, (u64, u64))| {
        bytes = bytes + more - less;
        (time, bytes)
    };
    changes.into_iter().map(sum).collect()
}

fn lower_bound(trace: &Trace) -> u64 {
    live(trace).into_iter().map(|(_, bytes)| bytes).max().unwrap_or(0)
}

/// The smallest alignment. Every offset is a multiple of it, so each allocation takes a multiple of it but the last,
/// and with the peak rounded up that one too.
fn unit(trace: &Trace) -> u64 {
    trace.allocations().iter().map(|allocation| allocation.align).min().unwrap_or(1)
}

/// `align` is a power of two, and the sums are bounded by what a trace may have.
fn align_up(offset: u64, align: u64) -> u64 {
    (offset + align - 1) & !(align - 1)
}

/// The next order in the order of words; `false` after the last.
fn next_permutation(order: &mut [usize]) -> bool {
    let Some(first) = (1..order.len()).rev().find(|&at| order[at - 1] < order[at]) else { return false };
    let pivot = order[first - 1];
    if let Some(other) = (first..order.len()).rev().find(|&at| order[at] > pivot) {
        order.swap(first - 1, other);
    }
    order[first..].reverse();
    true
}

/// Random numbers that are the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

const SEED: u64 = 0x71766c;
/// 720 orders.
const ALL_ORDERS_MAX: usize = 6;

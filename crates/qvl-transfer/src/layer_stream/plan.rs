//! Which segments of a cyclic walk stay in memory, and how far ahead the others are read. Pure.
//!
//! A model's layers are walked in the same order for every token. Under a budget smaller than the model, memory has two
//! uses that compete: a *resident* segment is never read again, and the *window* holds the segments that are read ahead
//! of the consumer. Residents make the link's work less; the window lets link and consumer work at once.
//!
//! # The model of execution
//! Times are seconds; segment `i` takes `read_s[i]` of the link, `compute_s[i]` of the consumer, and `bytes[i]` of
//! memory.
//!
//! - The streamed segments, those that are not resident, are read one after another, in the order of the walk, turn
//!   after turn.
//! - A read begins as soon as the one before has ended and its segment has room in the window: the bytes of segments
//!   whose reads have begun and that are not freed, with its own, are no more than `window_bytes`.
//! - The consumer computes one segment after another, each when it has arrived; residents are always there. When it has
//!   finished with a streamed segment, that segment is freed at once.
//!
//! So, with `R` the end of a read and `F` the end of computing,
//!
//! ```text
//! R[i] = max(R[streamed before i], F[last that must be freed for i]) + read_s[i]      streamed only
//! F[i] = max(F[i - 1], R[i]) + compute_s[i]                                           residents: without R[i]
//! ```
//!
//! which is periodic after some turns. [`simulate`] follows these two lines until it is.
//!
//! # The choice
//! The steady cycle is never shorter than all the computing, nor than the reading of all streamed segments. Candidates
//! for the set of residents are tried in the order of that bound, and the rest of the budget is the window. They depend
//! on the segments alone, not on the budget: so a larger budget has all candidates of a smaller one and a window that is
//! no smaller, and its cycle is never longer. Up to twelve segments, every set is a candidate. Of more, sets that are
//! spread evenly along the walk (evenly, because a window smooths over few neighbours only), by number and by bytes, from
//! several beginnings, with and without the largest and the smallest always in them.
//!
//! Among candidates with the same cycle the one with fewer bytes is taken, with the smallest window that gives it.

use std::cmp::Ordering;
use std::fmt::Write as _;

use crate::{Error, Result};

/// A segment, as the planner sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// What it takes of the budget while it is in memory.
    pub bytes: u64,
    /// Seconds that the link takes to bring it, with its latency.
    pub read_s: f64,
    /// Seconds that the consumer computes with it.
    pub compute_s: f64,
}

/// What brings the segments: a drive, a link to a device, or the slower of both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes a second within a segment.
    pub bytes_per_s: f64,
    /// Seconds before each segment that nothing else is read in.
    pub latency_s: f64,
}

impl Segment {
    /// A segment of `bytes` bytes over `link`.
    ///
    /// Where the computing was not measured yet it is assumed to take an eighth of the reading: computing that looks at
    /// each weight once goes at the speed of memory, and links are several times slower. A plan by this assumption
    /// keeps nearly all of the budget resident and a window for the rest; make another one when the computing was
    /// measured.
    pub fn new(bytes: u64, link: &Link, compute_s: Option<f64>) -> Self {
        let read_s = link.latency_s + bytes as f64 / link.bytes_per_s;
        Self { bytes, read_s, compute_s: compute_s.unwrap_or(read_s / 8.0) }
    }
}

/// What stays, and how far ahead the rest is read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Of each segment, whether it stays in memory.
    pub resident: Vec<bool>,
    /// Bytes of the residents.
    pub resident_bytes: u64,
    /// Bytes of the window. With those of the residents, no more than the budget.
    pub window_bytes: u64,
    /// The most segments that fit into the window at once, the one that is computed among them. With 1, nothing is read
    /// while a streamed segment is computed.
    pub ahead_segments: usize,
    /// The steady state that the plan is expected to have.
    pub cycle: Cycle,
    /// Why this plan, in a sentence.
    pub why: String,
}

/// One turn of the walk in its steady state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Cycle {
    /// Seconds of a turn; the mean, where turns alternate.
    pub cycle_s: f64,
    /// Of these, seconds in which the consumer waits.
    pub stall_s: f64,
    /// Seconds in which it computes.
    pub compute_s: f64,
    /// Seconds in which the link reads.
    pub read_s: f64,
    /// Bytes that are read, as charged.
    pub read_bytes: u64,
}

/// The least budget that these segments can be walked under, in bytes: the largest one must fit.
pub fn budget_bytes_min(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.bytes).max().unwrap_or(0)
}

/// Plans a walk over `segments`, in their order and from the beginning again, under a budget.
///
/// Takes 0.1 ms for 36 equal segments, up to some milliseconds for a hundred unequal ones.
///
/// # Errors
/// [`Error::OutOfMemory`] with the bytes that are needed if the largest segment does not fit; [`Error::Setting`] if a
/// time is negative or not finite.
pub fn plan(segments: &[Segment], budget_bytes: u64) -> Result<Plan> {
    check(segments)?;
    let needed = budget_bytes_min(segments);
    if needed > budget_bytes {
        return Err(Error::OutOfMemory {
            what: "the plan of a layer stream".to_owned(),
            bytes: needed,
            in_use_bytes: 0,
            budget_bytes,
            remedy: "The largest segment must fit; twice that, and it is read while the one before is computed",
        });
    }
    if total(segments) <= u128::from(budget_bytes) {
        return Ok(finish(segments, vec![true; segments.len()], 0, budget_bytes));
    }
    // The even spreads come first: of sets that are as good, the first is taken.
    let mut candidates = even_sets(segments);
    if segments.len() <= EVERY_SET_SEGMENTS_MAX {
        candidates.extend(every_set(segments));
    }
    let (resident, window_bytes) = choose(segments, budget_bytes, candidates);
    Ok(finish(segments, resident, window_bytes, budget_bytes))
}

/// The steady state of a walk with these residents and this window.
///
/// # Errors
/// [`Error::OutOfMemory`] if a streamed segment does not fit into the window; [`Error::Setting`] if `resident` has
/// another length than `segments`, or a time is negative or not finite.
pub fn simulate(segments: &[Segment], resident: &[bool], window_bytes: u64) -> Result<Cycle> {
    check(segments)?;
    if resident.len() != segments.len() {
        return Err(Error::Setting {
            name: "resident",
            got: format!("{} segments", resident.len()),
            expected: format!("one for each of {} segments is needed", segments.len()),
        });
    }
    let largest = streamed(segments, resident).map(|segment| segment.bytes).max().unwrap_or(0);
    if largest > window_bytes {
        return Err(Error::OutOfMemory {
            what: "the window of a layer stream".to_owned(),
            bytes: largest,
            in_use_bytes: 0,
            budget_bytes: window_bytes,
            remedy: "Keep the segment resident, or give the window more",
        });
    }
    let cycle_s = Simulation::default().cycle_s(segments, resident, window_bytes);
    Ok(cycle(segments, resident, cycle_s))
}

fn check(segments: &[Segment]) -> Result<()> {
    for (i, segment) in segments.iter().enumerate() {
        for (name, time) in [("read_s", segment.read_s), ("compute_s", segment.compute_s)] {
            if !(time.is_finite() && time >= 0.0) {
                return Err(Error::Setting {
                    name,
                    got: format!("{time} s for segment {i}"),
                    expected: "a time that is finite and not negative is needed".to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn streamed<'a>(segments: &'a [Segment], resident: &'a [bool]) -> impl Iterator<Item = &'a Segment> {
    segments.iter().zip(resident).filter(|(_, stays)| !**stays).map(|(segment, _)| segment)
}

fn total(segments: &[Segment]) -> u128 {
    segments.iter().map(|segment| u128::from(segment.bytes)).sum()
}

fn cycle(segments: &[Segment], resident: &[bool], cycle_s: f64) -> Cycle {
    let compute_s: f64 = segments.iter().map(|segment| segment.compute_s).sum();
    Cycle {
        cycle_s,
        stall_s: (cycle_s - compute_s).max(0.0),
        compute_s,
        read_s: streamed(segments, resident).map(|segment| segment.read_s).sum(),
        read_bytes: streamed(segments, resident).map(|segment| segment.bytes).fold(0, u64::saturating_add),
    }
}

/// The steady state, turn by turn. Its buffers are used again.
#[derive(Default)]
struct Simulation {
    streamed: Vec<usize>,
    /// For the read of each streamed segment, how many before it, itself included, may be in the window.
    depth: Vec<usize>,
    /// When the consumer finished with each streamed segment, this turn and the last.
    freed: Vec<f64>,
    freed_before: Vec<f64>,
    /// The state some turns ago, to recognise it by.
    mark: Vec<f64>,
}

impl Simulation {
    /// Seconds of a turn. Every streamed segment fits into the window.
    fn cycle_s(&mut self, segments: &[Segment], resident: &[bool], window_bytes: u64) -> f64 {
        let Self { streamed, depth, freed, freed_before, mark } = self;
        streamed.clear();
        streamed.extend((0..segments.len()).filter(|&i| !resident[i]));
        let count = streamed.len();
        let compute_s: f64 = segments.iter().map(|segment| segment.compute_s).sum();
        if count == 0 {
            return compute_s;
        }
        window_depths(segments, streamed, window_bytes, depth);
        for times in [&mut *freed, &mut *freed_before] {
            times.clear();
            times.resize(count, 0.0);
        }
        mark.clear();
        // The end of the last read, and of the last computing.
        let (mut read, mut computed) = (0.0_f64, 0.0_f64);
        let (mut mark_turn, mut mark_computed) = (0, 0.0);
        for turn in 1..=TURNS_MAX {
            std::mem::swap(freed, freed_before);
            let mut next = 0;
            for (i, segment) in segments.iter().enumerate() {
                if streamed.get(next) == Some(&i) {
                    let reach = depth[next];
                    let room =
                        if next >= reach { freed[next - reach] } else { freed_before[next + count - reach] };
                    read = read.max(room) + segment.read_s;
                    computed = computed.max(read) + segment.compute_s;
                    freed[next] = computed;
                    next += 1;
                } else {
                    computed += segment.compute_s;
                }
            }
            // All times of the state, counted back from the end of the turn. The same again is the steady state, and the
            // turns between are its period. As Brent finds cycles: the state to compare with is taken at powers of 2.
            let state = freed.iter().map(|&freed| computed - freed).chain([computed - read]);
            let close = SAME * computed / f64::from(turn);
            if mark.len() == count + 1
                && state.clone().zip(mark.iter()).all(|(now, then)| (now - then).abs() <= close)
            {
                return (computed - mark_computed) / f64::from(turn - mark_turn);
            }
            if turn.is_power_of_two() && turn < TURNS_MAX {
                mark.clear();
                mark.extend(state);
                (mark_turn, mark_computed) = (turn, computed);
            }
        }
        (computed - mark_computed) / f64::from(TURNS_MAX - mark_turn)
    }
}

/// How many segments up to each may be in the window at once, in the cyclic order. At most all: none is there twice.
fn window_depths(segments: &[Segment], streamed: &[usize], window_bytes: u64, depth: &mut Vec<usize>) {
    depth.clear();
    let count = streamed.len();
    let bytes = |k: usize| segments[streamed[k % count]].bytes;
    // Two ends that go round: `first..=last` are in the window.
    let (mut first, mut held) = (0_usize, 0_u64);
    for last in 0..2 * count {
        held = held.saturating_add(bytes(last));
        while held > window_bytes || last - first >= count {
            held -= bytes(first);
            first += 1;
        }
        if last >= count {
            depth.push(last - first + 1);
        }
    }
}

/// A set of residents, and what is known of it without a simulation.
struct Candidate {
    resident: Set,
    resident_bytes: u64,
    /// The largest that is streamed.
    largest_bytes: u64,
    /// No cycle with these residents is shorter.
    bound_s: f64,
}

/// A bit for each segment.
type Set = Box<[u64]>;

fn has(set: &[u64], i: usize) -> bool {
    set[i / 64] >> (i % 64) & 1 == 1
}

impl Candidate {
    /// `None` if the residents have more bytes than can be counted.
    fn new(segments: &[Segment], set: &[u64]) -> Option<Self> {
        let (mut resident_bytes, mut largest_bytes, mut read_s, mut compute_s) = (0_u64, 0, 0.0, 0.0);
        for (i, segment) in segments.iter().enumerate() {
            compute_s += segment.compute_s;
            if has(set, i) {
                resident_bytes = resident_bytes.checked_add(segment.bytes)?;
            } else {
                largest_bytes = largest_bytes.max(segment.bytes);
                read_s += segment.read_s;
            }
        }
        let bound_s = f64::max(compute_s, read_s);
        Some(Self { resident: set.into(), resident_bytes, largest_bytes, bound_s })
    }
}

/// Every set there is.
fn every_set(segments: &[Segment]) -> Vec<Candidate> {
    (0..1_u64 << segments.len()).filter_map(|set| Candidate::new(segments, &[set])).collect()
}

/// Sets that are spread evenly along the walk.
fn even_sets(segments: &[Segment]) -> Vec<Candidate> {
    let count = segments.len();
    let mut by_bytes: Vec<usize> = (0..count).collect();
    by_bytes.sort_by_key(|&i| segments[i].bytes);
    // From so many places an even spread begins: the fewer segments, the more it matters which.
    let beginnings = (160 / count.max(1)).clamp(2, 16) as u32;
    let mut candidates = Vec::new();
    let mut set = vec![0; count.div_ceil(64)];
    // The largest may be in every set, since the window must be as large as what is streamed; the small ones, since
    // latency makes them dear to read.
    let mean = total(segments) / count.max(1) as u128;
    let small = by_bytes.iter().filter(|&&i| u128::from(segments[i].bytes) < mean / 4).count().max(1);
    let are_equal =
        |some: &[usize]| some.windows(2).all(|two| segments[two[0]].bytes == segments[two[1]].bytes);
    // Of equal ones, all families are the first one.
    let families = [(0, 0), (0, 1), (0, 2), (small, 0), (small, 1)];
    for &(smallest, largest) in &families[..if are_equal(&by_bytes) { 1 } else { families.len() }] {
        if smallest + largest >= count {
            continue;
        }
        let always = [&by_bytes[..smallest], &by_bytes[count - largest..]].concat();
        let free: Vec<usize> = (0..count).filter(|i| !always.contains(i)).collect();
        for by_number in &[true, false][..if are_equal(&free) { 1 } else { 2 }] {
            // Where each ends, as a part of the whole.
            let weight = |&i: &usize| if *by_number { 1.0 } else { segments[i].bytes as f64 };
            let whole: f64 = free.iter().map(weight).sum();
            let ends: Vec<f64> = free
                .iter()
                .scan(0.0, |end, i| {
                    *end += weight(i);
                    Some(*end / whole)
                })
                .collect();
            for residents in 0..=free.len() {
                for beginning in 0..beginnings {
                    set.fill(0);
                    let mut put = |i: usize| set[i / 64] |= 1 << (i % 64);
                    always.iter().for_each(|&i| put(i));
                    // A segment is in the set if it passes the next of `residents` marks at equal distances. What is
                    // added keeps ends that lie on a mark from falling to either side of it.
                    let before = f64::from(beginning) / f64::from(beginnings) + 1e-9;
                    let mut marks = 0;
                    for (&i, end) in free.iter().zip(&ends) {
                        let passed = (end * residents as f64 + before) as u64;
                        if passed > marks {
                            put(i);
                        }
                        marks = passed;
                    }
                    candidates.extend(Candidate::new(segments, &set));
                }
            }
        }
    }
    candidates
}

/// The best of the candidates under a budget that is less than all segments and fits the largest, and its window.
fn choose(segments: &[Segment], budget_bytes: u64, mut candidates: Vec<Candidate>) -> (Vec<bool>, u64) {
    candidates.retain(|candidate| {
        candidate
            .resident_bytes
            .checked_add(candidate.largest_bytes)
            .is_some_and(|least| least <= budget_bytes)
    });
    let by_bytes = |a: &Candidate, b: &Candidate| a.resident_bytes.cmp(&b.resident_bytes);
    candidates.sort_by(|a, b| a.bound_s.total_cmp(&b.bound_s).then_with(|| by_bytes(a, b)));
    candidates.dedup_by(|a, b| a.resident == b.resident);
    let mut simulation = Simulation::default();
    let mut resident = vec![false; segments.len()];
    let mut cycle_s = |candidate: &Candidate, window_bytes: u64| {
        resident.iter_mut().enumerate().for_each(|(i, stays)| *stays = has(&candidate.resident, i));
        simulation.cycle_s(segments, &resident, window_bytes)
    };
    let mut best_s = f64::INFINITY;
    for candidate in &candidates {
        if candidate.bound_s >= best_s {
            break;
        }
        best_s = best_s.min(cycle_s(candidate, budget_bytes - candidate.resident_bytes));
    }
    // Of those that are as good, the one with the fewest bytes.
    let good_s = best_s * (1.0 + TIE);
    candidates.retain(|candidate| candidate.bound_s <= good_s);
    candidates.sort_by(by_bytes);
    let mut best: Option<(&Candidate, u64)> = None;
    for candidate in &candidates {
        let room = best.map_or(budget_bytes, |(best, window)| best.resident_bytes + window - 1);
        let Some(window) = room.checked_sub(candidate.resident_bytes) else { break };
        if window < candidate.largest_bytes || cycle_s(candidate, window) > good_s {
            continue;
        }
        // The smallest window that is as good: more is never worse.
        let (mut low, mut high) = (candidate.largest_bytes, window);
        while low < high {
            let middle = low + (high - low) / 2;
            if cycle_s(candidate, middle) <= good_s { high = middle } else { low = middle + 1 }
        }
        best = Some((candidate, high));
    }
    match best {
        Some((best, window)) => ((0..segments.len()).map(|i| has(&best.resident, i)).collect(), window),
        // Nothing resident is among the candidates, and fits.
        None => (vec![false; segments.len()], budget_bytes),
    }
}

fn finish(segments: &[Segment], resident: Vec<bool>, window_bytes: u64, budget_bytes: u64) -> Plan {
    let mut simulation = Simulation::default();
    let cycle = cycle(segments, &resident, simulation.cycle_s(segments, &resident, window_bytes));
    let ahead_segments = simulation.depth.iter().copied().max().unwrap_or(0);
    let kept = segments.iter().zip(&resident).filter(|(_, stays)| **stays);
    let resident_bytes = kept.map(|(segment, _)| segment.bytes).fold(0, u64::saturating_add);
    let why = why(&resident, ahead_segments, &cycle, resident_bytes + window_bytes, budget_bytes);
    Plan { resident, resident_bytes, window_bytes, ahead_segments, cycle, why }
}

fn why(resident: &[bool], ahead_segments: usize, cycle: &Cycle, bytes: u64, budget_bytes: u64) -> String {
    let count = resident.len();
    let residents = resident.iter().filter(|stays| **stays).count();
    if residents == count {
        return format!("all {count} segments stay: they take {bytes} bytes of {budget_bytes}");
    }
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let mut why = format!(
        "{residents} of {count} segments stay, the others are streamed through a window of {ahead_segments}: \
         {bytes} bytes of {budget_bytes}; a turn takes {}, ",
        ms(cycle.cycle_s)
    );
    let bound = |of_s: f64| cycle.cycle_s <= of_s * (1.0 + 1e-6);
    let cause = match cycle.read_s.total_cmp(&cycle.compute_s) {
        Ordering::Greater if bound(cycle.read_s) => "as long as the link reads",
        _ if bound(cycle.compute_s) => "as long as the consumer computes",
        _ if ahead_segments == 1 => "since there is room for one streamed segment at a time",
        _ => "since the window does not even out segments that differ",
    };
    // Writing to a string does not fail.
    let _ = write!(why, "{cause} (reading {}, computing {})", ms(cycle.read_s), ms(cycle.compute_s));
    why
}

/// Turns after which a simulation that did not become periodic takes the mean of the second half.
const TURNS_MAX: u32 = 128;
/// States that differ by this share of a turn are the same.
const SAME: f64 = 1e-10;
/// Cycles that differ by this share are as good.
const TIE: f64 = 1e-9;
/// Up to so many segments every set is tried: 4096.
const EVERY_SET_SEGMENTS_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;

    fn any_segments(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Segment>> {
        let one = (1_u64..60, 0_u32..8, 0_u32..80).prop_map(|(bytes, latency, compute)| Segment {
            bytes,
            read_s: bytes as f64 + f64::from(latency),
            compute_s: f64::from(compute),
        });
        prop::collection::vec(one, count)
    }

    fn equal(count: usize, read_s: f64, compute_s: f64) -> Vec<Segment> {
        vec![Segment { bytes: 100, read_s, compute_s }; count]
    }

    fn close(a: f64, b: f64, share: f64) -> bool {
        (a - b).abs() <= share * a.abs().max(b.abs()) + 1e-9
    }

    /// A turn as a walk in small steps of events: the bytes in the window are counted, nothing is precomputed.
    fn walk(segments: &[Segment], resident: &[bool], window_bytes: u64) -> f64 {
        let streamed: Vec<usize> = (0..segments.len()).filter(|&i| !resident[i]).collect();
        // Freed at, bytes; in the order of the walk.
        let mut window: std::collections::VecDeque<(f64, u64)> = Default::default();
        let (mut link, mut computed) = (0.0_f64, 0.0_f64);
        let mut ends = Vec::new();
        for _ in 0..=960 {
            for (i, segment) in segments.iter().enumerate() {
                if !resident[i] {
                    let mut begin = link;
                    while window.iter().map(|&(_, bytes)| bytes).sum::<u64>() + segment.bytes > window_bytes
                        || window.len() >= streamed.len()
                    {
                        begin = begin.max(window.pop_front().unwrap().0);
                    }
                    link = begin + segment.read_s;
                    computed = computed.max(link);
                    window.push_back((computed + segment.compute_s, segment.bytes));
                }
                computed += segment.compute_s;
            }
            ends.push(computed);
        }
        // 840 turns are whole periods for every period up to 8.
        (ends[960] - ends[120]) / 840.0
    }

    /// The shortest cycle that any set of residents has under a budget.
    fn shortest(segments: &[Segment], budget_bytes: u64) -> f64 {
        let mut best_s = f64::INFINITY;
        for set in 0..1_u32 << segments.len() {
            let resident: Vec<bool> = (0..segments.len()).map(|i| set >> i & 1 == 1).collect();
            let kept: u64 = segments.iter().zip(&resident).filter(|(_, r)| **r).map(|(s, _)| s.bytes).sum();
            let Some(window) = budget_bytes.checked_sub(kept) else { continue };
            if let Ok(cycle) = simulate(segments, &resident, window) {
                best_s = best_s.min(cycle.cycle_s);
            }
        }
        best_s
    }

    fn budget(segments: &[Segment], part: f64) -> u64 {
        let (least, all) = (budget_bytes_min(segments), total(segments) as u64);
        least + ((all - least) as f64 * part) as u64
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_simulated_turn_takes_as_long_as_a_walk(
            segments in any_segments(1..=7),
            set in 0_u32..128,
            part in 0.0..1.2,
        ) {
            let resident: Vec<bool> = (0..segments.len()).map(|i| set >> i & 1 == 1).collect();
            let window = budget(&segments, part);
            let cycle = simulate(&segments, &resident, window).unwrap();
            let expected = walk(&segments, &resident, window);
            prop_assert!(close(cycle.cycle_s, expected, 1e-6), "{} s, {expected} s in the walk", cycle.cycle_s);
            prop_assert!(cycle.cycle_s >= cycle.read_s.max(cycle.compute_s) * (1.0 - 1e-9));
            prop_assert!(close(cycle.cycle_s - cycle.stall_s, cycle.compute_s, 1e-6));
        }

        #[test]
        fn few_segments_have_the_shortest_cycle_there_is(segments in any_segments(1..=7), part in 0.0..1.1) {
            let budget = budget(&segments, part);
            let plan = plan(&segments, budget).unwrap();
            prop_assert!(close(plan.cycle.cycle_s, shortest(&segments, budget), 1e-8));
        }

        #[test]
        fn equal_segments_have_the_shortest_cycle_from_even_spreads(
            count in 2_usize..=9,
            read_s in 1_u32..40,
            compute_s in 0_u32..40,
            part in 0.0..1.0,
        ) {
            let segments = equal(count, f64::from(read_s), f64::from(compute_s));
            let budget_bytes = budget(&segments, part);
            let (resident, window_bytes) = choose(&segments, budget_bytes, even_sets(&segments));
            let cycle = simulate(&segments, &resident, window_bytes).unwrap();
            prop_assert!(close(cycle.cycle_s, shortest(&segments, budget_bytes), 1e-8));
        }

        #[test]
        fn a_plan_is_within_its_budget_and_does_as_it_says(
            segments in any_segments(1..=40),
            part in 0.0..1.1,
        ) {
            let budget = budget(&segments, part);
            let plan = plan(&segments, budget).unwrap();
            let kept = segments.iter().zip(&plan.resident).filter(|(_, stays)| **stays);
            prop_assert_eq!(plan.resident_bytes, kept.map(|(segment, _)| segment.bytes).sum::<u64>());
            prop_assert!(plan.resident_bytes + plan.window_bytes <= budget);
            prop_assert_eq!(simulate(&segments, &plan.resident, plan.window_bytes).unwrap(), plan.cycle);
            let streams = plan.resident.contains(&false);
            prop_assert_eq!(streams, plan.ahead_segments > 0);
            prop_assert_eq!(!streams, total(&segments) <= u128::from(budget));
        }

        #[test]
        fn more_budget_never_makes_a_longer_cycle(segments in any_segments(1..=24), parts in [0.0..1.1, 0.0..1.1]) {
            let budgets = parts.map(|part| budget(&segments, part));
            let [a, b] = budgets.map(|budget| plan(&segments, budget).unwrap().cycle.cycle_s);
            let (less, more) = if budgets[0] <= budgets[1] { (a, b) } else { (b, a) };
            prop_assert!(more <= less * (1.0 + 1e-8), "{more} s with more, {less} s");
        }

        #[test]
        fn equal_segments_stay_evenly_spread(count in 2_usize..120, part in 0.0..1.0, compute_s in 0.0..2.0) {
            let segments = equal(count, 1.0, compute_s);
            let plan = plan(&segments, budget(&segments, part)).unwrap();
            let at: Vec<usize> = (0..count).filter(|&i| plan.resident[i]).collect();
            let gaps = (0..at.len()).map(|k| (at[(k + 1) % at.len()] + count - at[k]) % count);
            let gaps: Vec<usize> = gaps.map(|gap| if gap == 0 { count } else { gap }).collect();
            if let (Some(least), Some(most)) = (gaps.iter().min(), gaps.iter().max()) {
                prop_assert!(most - least <= 1, "{gaps:?}");
            }
        }
    }

    /// How far even spreads are from the best set of all, for segments whose sizes differ up to sixtyfold. Always the
    /// same cases.
    #[test]
    fn unequal_segments_have_nearly_the_shortest_cycle_from_even_spreads() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut gaps = Vec::new();
        for _ in 0..150 {
            let segments = any_segments(8..=9).new_tree(&mut runner).unwrap().current();
            for part in [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9] {
                let budget_bytes = budget(&segments, part);
                let (resident, window_bytes) = choose(&segments, budget_bytes, even_sets(&segments));
                let cycle = simulate(&segments, &resident, window_bytes).unwrap();
                gaps.push(cycle.cycle_s / shortest(&segments, budget_bytes) - 1.0);
            }
        }
        gaps.sort_by(f64::total_cmp);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let most_of_99 = gaps[gaps.len() * 99 / 100];
        assert!(
            mean < 0.001 && most_of_99 < 0.02 && gaps[gaps.len() - 1] < 0.08,
            "{mean} {most_of_99} {gaps:?}"
        );
    }

    #[test]
    fn a_link_that_is_the_slower_side_gets_two_buffers_and_the_rest_stays() {
        // Ten slots: eight residents, two to read into and to compute from by turns.
        let plan = plan(&equal(36, 1.0, 0.1), 1000).unwrap();
        assert_eq!((plan.resident_bytes, plan.window_bytes, plan.ahead_segments), (800, 200, 2));
        assert!(close(plan.cycle.cycle_s, 28.0, 1e-9) && close(plan.cycle.stall_s, 28.0 - 3.6, 1e-9));
        assert_eq!(plan.cycle.read_bytes, 2800);
        assert!(
            plan.why.contains("8 of 36") && plan.why.contains("as long as the link reads"),
            "{}",
            plan.why
        );
    }

    #[test]
    fn a_consumer_that_is_the_slower_side_gets_no_more_than_it_needs() {
        let plan = plan(&equal(36, 1.0, 1.5), 3000).unwrap();
        assert_eq!((plan.resident_bytes, plan.window_bytes), (0, 200));
        assert!(close(plan.cycle.cycle_s, 54.0, 1e-9) && plan.cycle.stall_s < 1e-9);
        assert!(plan.why.contains("as long as the consumer computes"), "{}", plan.why);
    }

    #[test]
    fn one_buffer_reads_and_computes_by_turns() {
        let plan = plan(&equal(4, 1.0, 0.5), 199).unwrap();
        assert_eq!((plan.resident_bytes, plan.window_bytes, plan.ahead_segments), (0, 100, 1));
        assert!(close(plan.cycle.cycle_s, 6.0, 1e-9));
        assert!(plan.why.contains("room for one"), "{}", plan.why);
    }

    #[test]
    fn latency_makes_small_segments_worth_keeping() {
        let link = Link { bytes_per_s: 1e9, latency_s: 1e-3 };
        let segment =
            |i: usize| Segment::new(if i.is_multiple_of(5) { 1_000 } else { 1_000_000 }, &link, None);
        let segments: Vec<Segment> = (0..40).map(segment).collect();
        let plan = plan(&segments, 2_000_000 + 8_000).unwrap();
        assert_eq!(plan.resident.iter().filter(|stays| **stays).count(), 8, "{plan:?}");
        assert!((0..40).all(|i| plan.resident[i] == i.is_multiple_of(5)), "{plan:?}");
    }

    #[test]
    fn a_budget_below_the_largest_names_what_is_needed() {
        let mut segments = equal(3, 1.0, 1.0);
        segments[1].bytes = 150;
        assert_eq!(budget_bytes_min(&segments), 150);
        let error = plan(&segments, 149).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { bytes: 150, budget_bytes: 149, .. }), "{error}");
        let error = simulate(&segments, &[true, false, true], 149).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { bytes: 150, budget_bytes: 149, .. }), "{error}");
        assert!(simulate(&segments, &[true, false], 150).is_err());
        segments[2].read_s = f64::NAN;
        let error = plan(&segments, 150).unwrap_err();
        assert!(error.to_string().contains("NaN s for segment 2"), "{error}");
    }

    #[test]
    fn nothing_and_extremes_have_plans() {
        let none = plan(&[], 0).unwrap();
        assert_eq!((none.cycle, none.window_bytes), (Cycle::default(), 0));
        let huge = vec![Segment { bytes: u64::MAX, read_s: 1.0, compute_s: 0.0 }; 20];
        let plan_of_huge = plan(&huge, u64::MAX).unwrap();
        assert_eq!(plan_of_huge.window_bytes, u64::MAX);
        let no_bytes = vec![Segment { bytes: 0, read_s: 1.0, compute_s: 2.0 }; 20];
        assert!(plan(&no_bytes, 0).unwrap().resident.iter().all(|stays| *stays));
    }
}

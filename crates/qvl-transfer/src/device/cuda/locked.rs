//! Which ranges of memory are page-locked, and which are unlocked for others: the policy, which locks nothing.
//!
//! A driver locks whole pages, refuses a range that overlaps one it has locked, and unlocks a range only as a whole.
//! So a request is rounded to pages, what of it is locked already is shared, and each gap is locked as a range of its
//! own. A range is *used* while somebody holds it; one that nobody uses stays locked until its bytes are needed for
//! others, the one not used for longest first.
//!
//! Locking takes a while, and is done by the caller without a lock on this: a range is *busy* meanwhile, and whoever
//! needs it waits.

use std::collections::BTreeMap;
use std::ops::Range;

/// The locked ranges, in addresses. Each keeps a `K` for as long as it exists.
pub(crate) struct Locked<K> {
    page_bytes: usize,
    budget_bytes: usize,
    /// Of all entries, also of those that are being locked or unlocked.
    bytes: usize,
    high_water_bytes: usize,
    /// Counts uses, for their order.
    tick: u64,
    /// By their first byte.
    entries: BTreeMap<usize, Entry<K>>,
}

struct Entry<K> {
    end: usize,
    state: State,
    uses: usize,
    last_used: u64,
    owner: u64,
    /// To be unlocked when nobody uses it any more.
    doomed: bool,
    keeper: K,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Locking,
    Locked,
    Unlocking,
}

/// What is to be done for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquire {
    /// Part of it is busy, or room is being made: ask again after a change.
    Wait,
    /// Unlock these, then lock these, and say so. The request is held already.
    Go {
        unlock: Vec<Range<usize>>,
        lock: Vec<Range<usize>>,
        /// What is to be let go of in the end.
        held: Held,
    },
    /// Unlock these, say so, and ask again.
    Clear { unlock: Vec<Range<usize>> },
    /// The budget has no room even if everything that nobody uses is unlocked.
    NoRoom {
        /// What the request would lock then, in bytes.
        bytes: usize,
        /// What is used, in bytes.
        used_bytes: usize,
    },
}

/// Ranges that somebody holds, by their first bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held(Vec<usize>);

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Both are let go of together.
    pub(crate) fn append(&mut self, other: Self) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else {
            self.0.extend(other.0);
        }
    }
}

impl<K: Clone> Locked<K> {
    /// `page_bytes` is a power of two.
    pub(crate) fn new(page_bytes: usize, budget_bytes: usize) -> Self {
        Self { page_bytes, budget_bytes, bytes: 0, high_water_bytes: 0, tick: 0, entries: BTreeMap::new() }
    }

    /// Asks for a range, which is not empty, to be locked and held. `keeper` is kept by what is locked for it.
    pub(crate) fn acquire(&mut self, range: &Range<usize>, owner: u64, keeper: &K) -> Acquire {
        let range = self.pages(range);
        if self.overlapping(&range).any(|(_, entry)| entry.state != State::Locked) {
            return Acquire::Wait;
        }
        let gaps = self.gaps(&range);
        let needed: usize = gaps.iter().map(Range::len).sum();
        let mut unlock = Vec::new();
        if self.bytes + needed > self.budget_bytes {
            let (mut victims, in_the_way) = self.idle_around(&range);
            let mut bytes = self.bytes;
            victims.sort_unstable();
            for (_, start) in victims {
                if bytes + needed <= self.budget_bytes {
                    break;
                }
                let victim = start..self.entries[&start].end;
                bytes -= victim.len();
                unlock.push(victim);
            }
            if bytes + needed > self.budget_bytes {
                let (bytes, used_bytes) = self.at_least(&range);
                if bytes + used_bytes > self.budget_bytes {
                    return Acquire::NoRoom { bytes, used_bytes };
                }
                // What reaches beyond the request goes as well; what of it is requested is then locked anew.
                unlock.extend(in_the_way);
                // If there is nothing, somebody is making room just now.
                if unlock.is_empty() {
                    return Acquire::Wait;
                }
                for victim in &unlock {
                    self.set(victim.start, State::Unlocking);
                }
                return Acquire::Clear { unlock };
            }
        }
        for victim in &unlock {
            self.set(victim.start, State::Unlocking);
        }
        for gap in &gaps {
            let entry = Entry {
                end: gap.end,
                state: State::Locking,
                uses: 0,
                last_used: 0,
                owner,
                doomed: false,
                keeper: keeper.clone(),
            };
            self.entries.insert(gap.start, entry);
            self.bytes += gap.len();
        }
        let freed: usize = unlock.iter().map(Range::len).sum();
        self.high_water_bytes = self.high_water_bytes.max(self.bytes - freed);
        let held = self.take(&range);
        Acquire::Go { unlock, lock: gaps, held }
    }

    /// Holds what of a range is locked, and returns the parts that it is to be used in: each is inside one locked
    /// range or outside of all. `None` while part of it is busy.
    pub(crate) fn hold(&mut self, range: &Range<usize>) -> Option<(Vec<Range<usize>>, Held)> {
        if self.overlapping(range).any(|(_, entry)| entry.state != State::Locked) {
            return None;
        }
        let mut parts = Vec::with_capacity(1);
        let mut at = range.start;
        for (start, entry) in self.overlapping(range) {
            if at < start {
                parts.push(at..start);
            }
            let part = at.max(start)..entry.end.min(range.end);
            at = part.end;
            parts.push(part);
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        Some((parts, self.take(range)))
    }

    /// Lets go; returns what is to be unlocked now.
    pub(crate) fn release(&mut self, held: Held) -> Vec<Range<usize>> {
        let mut unlock = Vec::new();
        self.tick += 1;
        for start in held.0 {
            // An entry that is held stays.
            let Some(entry) = self.entries.get_mut(&start) else { continue };
            entry.uses -= 1;
            entry.last_used = self.tick;
            if entry.uses == 0 && entry.doomed && entry.state == State::Locked {
                entry.state = State::Unlocking;
                unlock.push(start..entry.end);
            }
        }
        unlock
    }

    /// Forgets what was locked for an owner; returns what is to be unlocked now. What is used is unlocked when nobody
    /// uses it any more.
    pub(crate) fn retire(&mut self, owner: u64) -> Vec<Range<usize>> {
        let mut unlock = Vec::new();
        for (&start, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.owner == owner) {
            entry.doomed = true;
            if entry.uses == 0 && entry.state == State::Locked {
                entry.state = State::Unlocking;
                unlock.push(start..entry.end);
            }
        }
        unlock
    }

    /// A range that was to be locked is.
    pub(crate) fn locked(&mut self, start: usize) {
        self.set(start, State::Locked);
    }

    /// A range that was to be unlocked is, or one that was to be locked could not be; `held` no longer has it. Returns
    /// what it kept.
    pub(crate) fn gone(&mut self, start: usize, held: Option<&mut Held>) -> Option<K> {
        if let Some(held) = held {
            held.0.retain(|&other| other != start);
        }
        let entry = self.entries.remove(&start)?;
        self.bytes -= entry.end - start;
        Some(entry.keeper)
    }

    /// Whether all of a range is locked now. An empty one is not.
    pub(crate) fn covers(&self, range: &Range<usize>) -> bool {
        let mut at = range.start;
        for (start, entry) in self.overlapping(range) {
            if start > at || entry.state != State::Locked {
                return false;
            }
            at = entry.end;
        }
        !range.is_empty() && at >= range.end
    }

    /// The budget, what is used, what is locked beside that, and the most that was locked at once, in bytes.
    pub(crate) fn usage(&self) -> [usize; 4] {
        let used = self.entries.iter().filter(|(_, entry)| entry.uses > 0);
        let used = used.map(|(start, entry)| entry.end - start).sum();
        [self.budget_bytes, used, self.bytes - used, self.high_water_bytes]
    }

    /// Gives up all that nobody uses: it is to be unlocked now.
    pub(crate) fn idle(&mut self) -> Vec<Range<usize>> {
        let idle = |entry: &Entry<K>| entry.uses == 0 && entry.state == State::Locked;
        let idle = self.entries.iter_mut().filter(|(_, entry)| idle(entry));
        idle.map(|(&start, entry)| {
            entry.state = State::Unlocking;
            start..entry.end
        })
        .collect()
    }

    /// What nobody uses: beside a range, with when it was used last, and reaching over an edge of it.
    fn idle_around(&self, range: &Range<usize>) -> (Vec<(u64, usize)>, Vec<Range<usize>>) {
        let (mut beside, mut over) = (Vec::new(), Vec::new());
        for (&start, entry) in &self.entries {
            if entry.state != State::Locked || entry.uses > 0 {
                continue;
            }
            if entry.end <= range.start || start >= range.end {
                beside.push((entry.last_used, start));
            } else if start < range.start || entry.end > range.end {
                over.push(start..entry.end);
            }
        }
        (beside, over)
    }

    /// What a request would lock if only what is used were locked, and what is used, in bytes.
    fn at_least(&self, range: &Range<usize>) -> (usize, usize) {
        let used = self.entries.iter().filter(|(_, entry)| entry.uses > 0);
        let (mut needed, mut used_bytes) = (range.len(), 0);
        for (&start, entry) in used {
            used_bytes += entry.end - start;
            needed -= entry.end.min(range.end).saturating_sub(start.max(range.start));
        }
        (needed, used_bytes)
    }

    fn set(&mut self, start: usize, state: State) {
        if let Some(entry) = self.entries.get_mut(&start) {
            entry.state = state;
        }
    }

    /// Counts a use of each entry that a range overlaps.
    fn take(&mut self, range: &Range<usize>) -> Held {
        let held: Vec<usize> = self.overlapping(range).map(|(start, _)| start).collect();
        self.tick += 1;
        for start in &held {
            if let Some(entry) = self.entries.get_mut(start) {
                entry.uses += 1;
                entry.last_used = self.tick;
            }
        }
        Held(held)
    }

    /// A range in whole pages.
    fn pages(&self, range: &Range<usize>) -> Range<usize> {
        let mask = self.page_bytes - 1;
        range.start & !mask..range.end.saturating_add(mask) & !mask
    }

    fn overlapping(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, &Entry<K>)> {
        // Entries do not overlap, so at most one that begins before the range reaches into it.
        let first =
            self.entries.range(..range.start).next_back().filter(|(_, entry)| entry.end > range.start);
        let first = first.map_or(range.start, |(&start, _)| start);
        // The bounds of `range` must be in order; an empty range overlaps nothing.
        let end = if range.is_empty() { first } else { range.end };
        self.entries.range(first..end).map(|(&start, entry)| (start, entry))
    }

    /// What of a range is not locked.
    fn gaps(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (start, entry) in self.overlapping(range) {
            if at < start {
                gaps.push(at..start);
            }
            at = entry.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::test_runner::Config;

    use super::*;

    const PAGE: usize = 16;

    /// Who pretends to be the driver: the pages it has locked, and by which range.
    #[derive(Default)]
    struct Driver {
        ranges: BTreeMap<usize, usize>,
        refuse: bool,
    }

    impl Driver {
        fn lock(&mut self, range: &Range<usize>) -> bool {
            let pages = [range.start, range.end].iter().all(|at| at.is_multiple_of(PAGE));
            assert!(pages && !range.is_empty());
            let overlaps = self.ranges.iter().any(|(&start, &end)| start < range.end && range.start < end);
            assert!(!overlaps, "{range:?} overlaps what is locked");
            if self.refuse {
                return false;
            }
            self.ranges.insert(range.start, range.end);
            true
        }

        fn unlock(&mut self, range: &Range<usize>) {
            assert_eq!(self.ranges.remove(&range.start), Some(range.end), "{range:?} was locked as a whole");
        }

        fn bytes(&self) -> usize {
            self.ranges.iter().map(|(start, end)| end - start).sum()
        }

        fn has(&self, byte: usize) -> bool {
            self.ranges.iter().any(|(&start, &end)| start <= byte && byte < end)
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Acquire { start: usize, len: usize, owner: u64, refused: bool },
        Copy { start: usize, len: usize },
        Release(usize),
        Retire(u64),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let range = || (0usize..600, 1usize..120);
        let operation = prop_oneof![
            4 => (range(), 0u64..4, prop::bool::weighted(0.1)).prop_map(|((start, len), owner, refused)| {
                Operation::Acquire { start, len, owner, refused }
            }),
            2 => range().prop_map(|(start, len)| Operation::Copy { start, len }),
            4 => any::<usize>().prop_map(Operation::Release),
            1 => (0u64..4).prop_map(Operation::Retire),
        ];
        prop::collection::vec(operation, 1..80)
    }

    proptest! {
        #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

        #[test]
        fn the_budget_holds_and_what_is_used_stays_locked(operations in operations(), pages in 4usize..20) {
            let budget = pages * PAGE;
            let mut locked = Locked::new(PAGE, budget);
            let mut driver = Driver::default();
            // What somebody holds: which bytes must stay locked for it.
            let mut holders: Vec<(BTreeSet<usize>, Held)> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Acquire { start, len, owner, refused } => {
                        let range = start..start + len;
                        let asked = loop {
                            match locked.acquire(&range, owner, &()) {
                                Acquire::Clear { unlock } => {
                                    prop_assert!(!unlock.is_empty());
                                    for range in unlock {
                                        driver.unlock(&range);
                                        locked.gone(range.start, None);
                                    }
                                }
                                asked => break asked,
                            }
                        };
                        match asked {
                            Acquire::Wait => prop_assert!(false, "nothing is ever busy between operations"),
                            Acquire::Clear { .. } => unreachable!("asked again above"),
                            Acquire::NoRoom { bytes, used_bytes } => {
                                // The model: what somebody holds stays, and the rest of the request is beside that.
                                let round = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
                                let holds = |start: usize| {
                                    holders.iter().any(|(_, held)| held.0.contains(&start))
                                };
                                let stay: BTreeSet<usize> = driver
                                    .ranges
                                    .iter()
                                    .filter(|&(&start, _)| holds(start))
                                    .flat_map(|(&start, &end)| start..end)
                                    .collect();
                                let missing = round.filter(|byte| !stay.contains(byte)).count();
                                prop_assert_eq!((bytes, used_bytes), (missing, stay.len()));
                                prop_assert!(missing + stay.len() > budget);
                            }
                            Acquire::Go { unlock, lock, mut held } => {
                                for range in &unlock {
                                    driver.unlock(range);
                                    locked.gone(range.start, None);
                                }
                                driver.refuse = refused;
                                let mut whole = true;
                                for range in &lock {
                                    if driver.lock(range) {
                                        locked.locked(range.start);
                                    } else {
                                        whole = false;
                                        locked.gone(range.start, Some(&mut held));
                                    }
                                    prop_assert!(driver.bytes() <= budget);
                                }
                                if whole {
                                    prop_assert!(range.clone().all(|byte| driver.has(byte)));
                                    prop_assert!(locked.covers(&range));
                                    holders.push((range.collect(), held));
                                } else {
                                    for range in locked.release(held) {
                                        driver.unlock(&range);
                                        locked.gone(range.start, None);
                                    }
                                }
                            }
                        }
                    }
                    Operation::Copy { start, len } => {
                        let range = start..start + len;
                        let (parts, held) = locked.hold(&range).expect("nothing is busy");
                        let mut at = range.start;
                        for part in &parts {
                            prop_assert!(part.start == at && !part.is_empty());
                            at = part.end;
                            let inside: Vec<bool> = part.clone().map(|byte| driver.has(byte)).collect();
                            prop_assert!(inside.iter().all(|&locked| locked == inside[0]));
                        }
                        prop_assert_eq!(at, range.end);
                        prop_assert_eq!(locked.covers(&range), range.clone().all(|byte| driver.has(byte)));
                        holders.push((range.filter(|&byte| driver.has(byte)).collect(), held));
                    }
                    Operation::Release(which) => {
                        if !holders.is_empty() {
                            let (_, held) = holders.swap_remove(which % holders.len());
                            for range in locked.release(held) {
                                driver.unlock(&range);
                                locked.gone(range.start, None);
                            }
                        }
                    }
                    Operation::Retire(owner) => {
                        for range in locked.retire(owner) {
                            driver.unlock(&range);
                            locked.gone(range.start, None);
                        }
                    }
                }
                prop_assert!(driver.bytes() <= budget);
                let [_, used, idle, most] = locked.usage();
                prop_assert_eq!(used + idle, driver.bytes());
                prop_assert!(most <= budget && most >= driver.bytes());
                for (bytes, _) in &holders {
                    prop_assert!(bytes.iter().all(|&byte| driver.has(byte)), "a range in use was unlocked");
                }
            }
            for (_, held) in holders {
                for range in locked.release(held) {
                    driver.unlock(&range);
                    locked.gone(range.start, None);
                }
            }
            for owner in 0..4 {
                for range in locked.retire(owner) {
                    driver.unlock(&range);
                    locked.gone(range.start, None);
                }
            }
            prop_assert_eq!(driver.bytes(), 0);
            prop_assert_eq!(locked.usage()[1] + locked.usage()[2], 0);
        }
    }

    fn go(locked: &mut Locked<()>, range: Range<usize>) -> (Vec<Range<usize>>, Vec<Range<usize>>, Held) {
        match locked.acquire(&range, 0, &()) {
            Acquire::Go { unlock, lock, held } => (unlock, lock, held),
            other => panic!("{range:?}: {other:?}"),
        }
    }

    #[test]
    fn what_was_not_used_for_longest_is_unlocked_first() {
        let mut locked = Locked::new(PAGE, 3 * PAGE);
        let mut held = Vec::new();
        for page in 0..3 {
            let (_, lock, of) = go(&mut locked, page * PAGE..page * PAGE + 1);
            locked.locked(lock[0].start);
            held.push(of);
        }
        // The last to be let go of was used last; the second is still used.
        let second = held.remove(1);
        for of in held.into_iter().rev() {
            assert!(locked.release(of).is_empty());
        }
        let (unlock, lock, _) = go(&mut locked, 10 * PAGE..10 * PAGE + 1);
        assert_eq!((unlock, lock), (vec![2 * PAGE..3 * PAGE], vec![10 * PAGE..11 * PAGE]));
        drop(second);
    }

    #[test]
    fn who_needs_what_is_busy_waits() {
        let mut locked = Locked::new(PAGE, 2 * PAGE);
        let (_, lock, first) = go(&mut locked, 0..PAGE);
        assert_eq!(locked.acquire(&(0..1), 1, &()), Acquire::Wait);
        assert_eq!(locked.hold(&(3..5)), None);
        assert!(!locked.covers(&(0..1)));
        locked.locked(lock[0].start);
        assert!(locked.covers(&(0..PAGE)) && !locked.covers(&(0..PAGE + 1)));
        locked.release(first);
        assert_eq!(locked.retire(0), vec![0..PAGE]);
        // Room is being made already, but not there yet.
        assert_eq!(locked.acquire(&(5 * PAGE..7 * PAGE), 1, &()), Acquire::Wait);
        locked.gone(0, None);
        let (unlock, lock, held) = go(&mut locked, 5 * PAGE..7 * PAGE);
        assert!(unlock.is_empty());
        locked.locked(lock[0].start);
        let no_room = Acquire::NoRoom { bytes: PAGE, used_bytes: 2 * PAGE };
        assert_eq!(locked.acquire(&(20 * PAGE..21 * PAGE), 1, &()), no_room);
        // Half of what is locked is in the way of a request, and not used any more.
        locked.release(held);
        assert_eq!(
            locked.acquire(&(6 * PAGE..8 * PAGE), 1, &()),
            Acquire::Clear { unlock: vec![5 * PAGE..7 * PAGE] }
        );
        assert_eq!(locked.acquire(&(6 * PAGE..8 * PAGE), 1, &()), Acquire::Wait);
    }
}

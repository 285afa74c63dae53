//! Values on their way from the hot tier to those below.
//!
//! A value that leaves the hot tier and is stored nowhere yet waits here, is found here, and is written by whoever
//! [`begin`](Transit::begin)s it. One write of a key at a time; a later version, or a removal, supersedes what is
//! queued at once and what is being written when it [`finish`](Transit::finish)es, and holds the key until the tiers
//! below have let go of what is older. So they never keep something older than what the caller was last told.
//!
//! ```text
//!            push                 begin               finish(stored)
//!   hot ─────────────► queued ─────────────► writing ────────────────► stored below
//!                        │ take, supersede      │ supersede
//!                        ▼                      ▼
//!                    back to hot, gone      superseded ──finish──► to be removed below
//! ```

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, wait, wait_for};

/// A value to be stored below.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pending<V> {
    /// The value.
    pub(crate) value: V,
    /// Its version: a larger one is later.
    pub(crate) version: u64,
    /// What it takes of the budget here.
    pub(crate) bytes: u64,
    /// Seconds to get it again.
    pub(crate) cost: f32,
}

/// What is known of a key here.
#[derive(Debug, PartialEq)]
pub(crate) enum Lookup<V> {
    /// The value, not yet stored below, or being written.
    Here(Pending<V>),
    /// Superseded while it is being written: what the tiers below have is not to be used.
    Gone,
    /// Nothing: ask the tiers below.
    Unknown,
}

/// What [`Transit::begin_behind`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It is being written from now on; it must be finished.
    Now,
    /// It is queued or being written already.
    Already,
    /// Another version of the key is in the way.
    Busy,
}

/// What [`Transit::finish`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// It is as it was begun.
    Current,
    /// Meanwhile it was superseded: remove it below, then call [`Transit::settle`].
    Superseded,
}

/// The values on their way, under a bound of bytes.
pub(crate) struct Transit<K, V> {
    state: Mutex<State<K, V>>,
    /// Something was queued, or is no longer wanted.
    queued: Condvar,
    /// There is room, or nothing left.
    room: Condvar,
}

struct State<K, V> {
    slots: HashMap<K, Slot<V>>,
    queue: VecDeque<K>,
    bytes: u64,
    bytes_max: u64,
    writing: usize,
    nudged: bool,
    closed: bool,
}

struct Slot<V> {
    writing: Option<Pending<V>>,
    /// What is being written is out of date.
    superseded: bool,
    /// What is being written has left the tier above since it was begun.
    left: bool,
    /// What the tiers below have is out of date and about to be removed: nothing is begun meanwhile.
    held: bool,
    queued: Option<Pending<V>>,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self { writing: None, superseded: false, left: false, held: false, queued: None }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Transit<K, V> {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let state = State {
            slots: HashMap::new(),
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
            writing: 0,
            nudged: false,
            closed: false,
        };
        Self { state: Mutex::new(state), queued: Condvar::new(), room: Condvar::new() }
    }

    /// Queues a value, whatever the bound: it left its tier already. An older queued one of the key is replaced.
    pub(crate) fn push(&self, key: &K, pending: Pending<V>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slot = state.slots.entry(key.clone()).or_default();
        let being_written = slot.writing.as_ref().is_some_and(|w| w.version >= pending.version);
        if being_written && !slot.superseded {
            slot.left = true;
            return;
        }
        if slot.writing.is_some() {
            slot.superseded = true;
        }
        let waits = slot.writing.is_some() || slot.held;
        state.bytes += pending.bytes;
        match slot.queued.replace(pending) {
            Some(older) => state.bytes -= older.bytes,
            // What waits for another write of the key, or a removal, is queued when that is finished.
            None if !waits => state.queue.push_back(key.clone()),
            None => {}
        }
        self.queued.notify_one();
    }

    /// Whether `bytes` more are within the bound; one value is always.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let state = self.state.lock();
        state.bytes == 0 || state.bytes.saturating_add(bytes) <= state.bytes_max
    }

    /// Waits until what is here is within the bound.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        while state.bytes > state.bytes_max && state.slots.len() > 1 && !state.closed {
            state = wait(&self.room, state);
        }
    }

    /// What is known of a key.
    pub(crate) fn get(&self, key: &K) -> Lookup<V> {
        let state = self.state.lock();
        match state.slots.get(key) {
            None => Lookup::Unknown,
            Some(Slot { queued: Some(pending), .. }) => Lookup::Here(pending.clone()),
            Some(Slot { writing: Some(pending), superseded: false, .. }) => Lookup::Here(pending.clone()),
            Some(_) => Lookup::Gone,
        }
    }

    /// Takes a queued value back, for the tier it came from; `None` if it is not queued, or another version.
    pub(crate) fn take_back(&self, key: &K, version: u64) -> Option<Pending<V>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slot = state.slots.get_mut(key)?;
        if slot.queued.as_ref()?.version != version {
            return None;
        }
        let pending = slot.queued.take()?;
        state.bytes -= pending.bytes;
        if slot.writing.is_none() && !slot.held {
            // Its place in the queue is skipped when its turn comes.
            state.slots.remove(key);
        }
        self.room.notify_all();
        Some(pending)
    }

    /// The key is being written or removed above: what is here, and below, is out of date. Until
    /// [`release`](Self::release) nothing of the key is begun, so that what is older can be removed below.
    ///
    /// To be called under the lock that values are pushed under, at the moment when the change above happens: whatever
    /// is pushed after it is later.
    pub(crate) fn supersede_and_hold(&self, key: &K) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slot = state.slots.entry(key.clone()).or_default();
        if let Some(older) = slot.queued.take() {
            state.bytes -= older.bytes;
        }
        slot.superseded |= slot.writing.is_some();
        slot.held = true;
        self.room.notify_all();
    }

    /// The tiers below have nothing older any more, but for what is being written.
    pub(crate) fn release(&self, key: &K) {
        let mut state = self.state.lock();
        let Some(slot) = state.slots.get_mut(key) else { return };
        slot.held = false;
        self.go_on(&mut state, key);
    }

    /// Nothing more is to be waited for, or it is: the slot's next step.
    fn go_on(&self, state: &mut State<K, V>, key: &K) {
        let Some(slot) = state.slots.get_mut(key) else { return };
        if slot.writing.is_some() || slot.held {
            return;
        }
        if slot.queued.is_some() {
            state.queue.push_back(key.clone());
            self.queued.notify_one();
        } else {
            state.slots.remove(key);
        }
        self.room.notify_all();
    }

    /// The next value to be stored, if there is one. Whoever gets it must [`finish`](Self::finish) it.
    pub(crate) fn begin(&self) -> Option<(K, Pending<V>)> {
        self.state.lock().begin()
    }

    /// Begins to write a value that has not left its tier. The caller must look, after this, whether it is still there
    /// in this version; if not, and it has not [`left`](Self::has_left), it was replaced or removed before, and must be
    /// [`finish`](Self::finish)ed and not written.
    pub(crate) fn begin_behind(&self, key: &K, pending: &Pending<V>) -> Begun {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.get(key) {
            let here = slot.queued.as_ref().or(slot.writing.as_ref().filter(|_| !slot.superseded));
            let already = here.is_some_and(|here| here.version == pending.version);
            return if already { Begun::Already } else { Begun::Busy };
        }
        state.bytes += pending.bytes;
        state.writing += 1;
        state.slots.insert(key.clone(), Slot { writing: Some(pending.clone()), ..Slot::default() });
        Begun::Now
    }

    /// Whether what is being written of a key left its tier since it was begun: nobody else has it then.
    pub(crate) fn has_left(&self, key: &K) -> bool {
        self.state.lock().slots.get(key).is_some_and(|slot| slot.left)
    }

    /// The write of `key` is done, or failed. [`Finished::Superseded`]: it must be removed below before
    /// [`settle`](Self::settle), so that no later version's write comes between.
    pub(crate) fn finish(&self, key: &K) -> Finished {
        let mut state = self.state.lock();
        match state.slots.get(key) {
            Some(slot) if slot.superseded => Finished::Superseded,
            _ => {
                self.end_write(&mut state, key);
                Finished::Current
            }
        }
    }

    /// What was superseded is removed below: a later version may be written now.
    pub(crate) fn settle(&self, key: &K) {
        let mut state = self.state.lock();
        self.end_write(&mut state, key);
    }

    fn end_write(&self, state: &mut State<K, V>, key: &K) {
        let Some(slot) = state.slots.get_mut(key) else { return };
        if let Some(written) = slot.writing.take() {
            state.bytes -= written.bytes;
            state.writing -= 1;
        }
        slot.superseded = false;
        slot.left = false;
        self.room.notify_all();
        self.go_on(state, key);
    }

    /// Waits until nothing up to this version is queued or being written.
    pub(crate) fn wait_until_stored(&self, version: u64) {
        let mut state = self.state.lock();
        while state.slots.values().any(|slot| slot.oldest().is_some_and(|oldest| oldest <= version)) {
            state = wait(&self.room, state);
        }
    }

    /// Waits until something is queued, for at most so long, or somebody [`nudge`](Self::nudge)s. `false` when it was
    /// closed and nothing is queued.
    pub(crate) fn wait_for_work(&self, at_most: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.closed && !state.nudged {
            match at_most {
                Some(at_most) => {
                    state = wait_for(&self.queued, state, at_most);
                    break;
                }
                None => state = wait(&self.queued, state),
            }
        }
        state.nudged = false;
        !state.closed || !state.queue.is_empty()
    }

    /// Ends a [`wait_for_work`](Self::wait_for_work): there is something else to do.
    pub(crate) fn nudge(&self) {
        self.state.lock().nudged = true;
        self.queued.notify_all();
    }

    /// Lets everyone who waits go on; what is queued can still be begun.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.queued.notify_all();
        self.room.notify_all();
    }

    /// Bytes here, and how many values.
    pub(crate) fn load(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.bytes, state.slots.len())
    }

    /// How full it is: 1 at the bound.
    pub(crate) fn fill(&self) -> f64 {
        let state = self.state.lock();
        state.bytes as f64 / state.bytes_max.max(1) as f64
    }
}

impl<V> Slot<V> {
    /// The oldest version that is not stored yet, or being removed.
    fn oldest(&self) -> Option<u64> {
        let writing = self.writing.as_ref().map(|pending| pending.version);
        writing.or(self.queued.as_ref().map(|pending| pending.version))
    }
}

impl<K: Clone + Eq + Hash, V: Clone> State<K, V> {
    fn begin(&mut self) -> Option<(K, Pending<V>)> {
        while let Some(key) = self.queue.pop_front() {
            // Else it was taken back or superseded.
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            if slot.writing.is_some() || slot.held {
                continue;
            }
            let Some(pending) = slot.queued.take() else { continue };
            slot.writing = Some(pending.clone());
            slot.superseded = false;
            self.writing += 1;
            return Some((key, pending));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(version: u64) -> Pending<u64> {
        Pending { value: version * 10, version, bytes: 100, cost: 1.0 }
    }

    #[test]
    fn a_value_is_found_until_it_is_stored() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        assert_eq!(transit.get(&1), Lookup::Here(pending(1)));
        let (key, begun) = transit.begin().expect("one is queued");
        assert_eq!((key, begun), (1, pending(1)));
        assert_eq!(transit.get(&1), Lookup::Here(pending(1)));
        assert_eq!(transit.finish(&1), Finished::Current);
        assert_eq!((transit.get(&1), transit.load()), (Lookup::Unknown, (0, 0)));
    }

    #[test]
    fn a_removal_while_it_is_written_is_not_undone() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        transit.begin().expect("one is queued");
        transit.supersede_and_hold(&1);
        assert_eq!(transit.get(&1), Lookup::Gone);
        transit.release(&1);
        assert_eq!(transit.get(&1), Lookup::Gone);
        assert_eq!(transit.finish(&1), Finished::Superseded);
        transit.settle(&1);
        assert_eq!((transit.get(&1), transit.load()), (Lookup::Unknown, (0, 0)));
    }

    #[test]
    fn a_later_version_waits_for_the_write_of_an_earlier_one() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        transit.begin().expect("one is queued");
        transit.push(&1, pending(2));
        assert_eq!(transit.get(&1), Lookup::Here(pending(2)));
        assert_eq!(transit.begin(), None, "one write of a key at a time");
        assert_eq!(transit.finish(&1), Finished::Superseded);
        transit.settle(&1);
        assert_eq!(transit.begin(), Some((1, pending(2))));
        assert_eq!(transit.finish(&1), Finished::Current);
        assert_eq!(transit.load(), (0, 0));
    }

    #[test]
    fn what_is_taken_back_is_not_written() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        transit.push(&2, pending(2));
        assert_eq!(transit.take_back(&1, 7), None, "another version");
        assert_eq!(transit.take_back(&1, 1), Some(pending(1)));
        assert_eq!(transit.begin(), Some((2, pending(2))));
        assert_eq!(transit.begin(), None);
        assert_eq!(transit.finish(&2), Finished::Current);
        assert_eq!(transit.load(), (0, 0));
    }

    #[test]
    fn evicted_while_it_is_written_behind_it_is_written_once() {
        let transit = Transit::new(1000);
        assert_eq!(transit.begin_behind(&1, &pending(1)), Begun::Now);
        transit.push(&1, pending(1));
        assert_eq!(transit.begin_behind(&1, &pending(1)), Begun::Already);
        assert_eq!(transit.begin_behind(&1, &pending(2)), Begun::Busy);
        assert_eq!(transit.load(), (100, 1));
        assert_eq!(transit.finish(&1), Finished::Current);
        assert_eq!(transit.begin(), None);
    }

    #[test]
    fn removed_and_inserted_again_while_written_the_last_one_stays() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        transit.begin().expect("one is queued");
        transit.supersede_and_hold(&1);
        transit.push(&1, pending(3));
        transit.release(&1);
        assert_eq!(transit.get(&1), Lookup::Here(pending(3)));
        assert_eq!(transit.finish(&1), Finished::Superseded);
        transit.settle(&1);
        assert_eq!(transit.begin(), Some((1, pending(3))));
    }

    #[test]
    fn one_value_always_has_room() {
        let transit = Transit::new(10);
        assert!(transit.has_room(1 << 40));
        transit.push(&1, pending(1));
        assert!(!transit.has_room(1));
        transit.wait_for_room();
        transit.push(&2, pending(2));
        transit.supersede_and_hold(&1);
        transit.release(&1);
        transit.wait_for_room();
        assert_eq!(transit.load(), (100, 1));
    }

    #[test]
    fn nothing_is_begun_while_what_is_older_is_removed_below() {
        let transit = Transit::new(1000);
        transit.push(&1, pending(1));
        transit.supersede_and_hold(&1);
        assert_eq!(transit.get(&1), Lookup::Gone);
        transit.push(&1, pending(2));
        assert_eq!((transit.get(&1), transit.begin()), (Lookup::Here(pending(2)), None));
        assert_eq!(transit.begin_behind(&1, &pending(3)), Begun::Busy);
        transit.release(&1);
        assert_eq!(transit.begin(), Some((1, pending(2))));
        assert_eq!(transit.finish(&1), Finished::Current);
        assert_eq!(transit.load(), (0, 0));
    }
}

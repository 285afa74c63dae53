//! The window behind a lock: where workers, the reader ahead and the consumer meet.
//!
//! One lock and three conditions, each with one kind of waiter. Somebody is told only if somebody waits, so items
//! that take microseconds cost no system call each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::sync::{Condvar, Mutex, MutexGuard, wait};
use super::window::{Bounds, Grant, Window};

/// `F`: what was fetched for an item. `T`: what was made of it.
pub(crate) struct Queue<F, T> {
    state: Mutex<State<F, T>>,
    /// Workers and the reader ahead: there is room, something to claim, or an end.
    room: Condvar,
    /// The consumer: the next item is ready.
    ready: Condvar,
    /// What the bound of bytes leaves, for buffers that wait to be used again.
    free: Arc<AtomicUsize>,
    bound_bytes: usize,
}

struct State<F, T> {
    window: Window<F, T>,
    stopped: bool,
    /// Workers with a lower number may claim.
    active: usize,
    /// Whether items are fetched before workers claim them.
    fetching: bool,
    waiting_for_room: usize,
    consumer_waits: bool,
    /// The next item cannot be made while the consumer keeps what it has taken.
    head_needs_kept: bool,
    waits: Waits,
}

/// Time spent waiting, over all threads of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    /// The consumer, for an item.
    pub(crate) consumer: Duration,
    /// Workers, for room in the window or for bytes.
    pub(crate) room: Duration,
}

/// An item on its way into the queue.
pub(crate) struct Finished<T> {
    pub(crate) number: u64,
    pub(crate) bytes: usize,
    pub(crate) value: T,
}

/// What a worker is to do next.
pub(crate) enum Claim<F> {
    /// These items, from the first number on.
    Run { first: u64, count: usize },
    /// This item, for which something was fetched.
    Fetched { number: u64, fetched: F },
}

/// Why an item cannot have its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The loader is being dropped, or everything has been begun.
    Stopped,
    /// It would be larger than an item may be.
    TooLarge,
}

/// What the window looks like from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) bounds: Bounds,
    pub(crate) used_bytes: usize,
    pub(crate) peak_bytes: usize,
    pub(crate) peak_items: usize,
    pub(crate) active: usize,
    pub(crate) waits: Waits,
}

impl<F, T> Queue<F, T> {
    /// `bound_bytes`: the window's bound of bytes, and what is kept free beside it for buffers that wait.
    pub(crate) fn new(window: Window<F, T>, active: usize, fetching: bool, bound_bytes: usize) -> Self {
        let state = State {
            window,
            stopped: false,
            active,
            fetching,
            waiting_for_room: 0,
            consumer_waits: false,
            head_needs_kept: false,
            waits: Waits::default(),
        };
        let free = Arc::new(AtomicUsize::new(bound_bytes));
        Self { state: Mutex::new(state), room: Condvar::new(), ready: Condvar::new(), free, bound_bytes }
    }

    /// Bytes of the bound that are not reserved, kept up to date.
    pub(crate) fn free_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.free)
    }

    /// Work for worker number `worker`: up to `most` items. Waits for it; `None` if there will be none.
    pub(crate) fn claim(&self, worker: usize, most: usize) -> Option<Claim<F>> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let is_active = worker < state.active;
            if is_active && let Some(claim) = state.claim(most) {
                return Some(claim);
            }
            if state.window.is_claimed() {
                // Those that wait have nothing to wait for either.
                self.tell_room(&state);
                return None;
            }
            state = self.wait_for_room(state, is_active);
        }
    }

    /// The same without waiting, and for anybody.
    pub(crate) fn try_claim(&self, most: usize) -> Option<Claim<F>> {
        let mut state = self.state.lock();
        if state.stopped { None } else { state.claim(most) }
    }

    /// Begins an item to fetch for, with its bytes; the caller has asked `bytes_of` for them.
    ///
    /// `Ok(None)`: not now. With `wait` it waits instead, until there is one or the queue stops.
    pub(crate) fn begin(&self, wait: bool) -> Result<Option<u64>, Refused> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Err(Refused::Stopped);
            }
            if let Some(number) = state.window.begin() {
                return Ok(Some(number));
            }
            if state.window.is_begun() {
                return Err(Refused::Stopped);
            }
            if !wait {
                return Ok(None);
            }
            // The reader ahead is not a worker that is kept waiting.
            state = self.wait_for_room(state, false);
        }
    }

    /// What was read for an item.
    pub(crate) fn fetched(&self, number: u64, fetched: F) {
        let mut state = self.state.lock();
        state.window.fetched(number, fetched);
        self.tell_room(&state);
    }

    /// Reserves bytes for an item. If it has to wait, what is `pending` is handed in first: others may wait for it.
    pub(crate) fn reserve(
        &self,
        number: u64,
        bytes: usize,
        pending: &mut Vec<Finished<T>>,
    ) -> Result<(), Refused> {
        if bytes == 0 {
            return Ok(());
        }
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Err(Refused::Stopped);
            }
            match state.window.reserve(number, bytes) {
                Grant::Granted => {
                    self.account(&state);
                    return Ok(());
                }
                Grant::TooLarge => return Err(Refused::TooLarge),
                Grant::Wait if !pending.is_empty() => self.hand_in(&mut state, pending),
                Grant::Wait => {
                    if state.window.kept_bytes() > 0 && state.window.is_head(number) {
                        state.head_needs_kept = true;
                        self.tell_consumer(&state);
                    }
                    state = self.wait_for_room(state, true);
                }
            }
        }
    }

    /// The same without waiting: `Ok(false)` means not now.
    pub(crate) fn try_reserve(&self, number: u64, bytes: usize) -> Result<bool, Refused> {
        let mut state = self.state.lock();
        match state.window.reserve(number, bytes) {
            _ if state.stopped => Err(Refused::Stopped),
            Grant::Granted => {
                self.account(&state);
                Ok(true)
            }
            Grant::Wait => Ok(false),
            Grant::TooLarge => Err(Refused::TooLarge),
        }
    }

    /// Items are done.
    pub(crate) fn publish(&self, pending: &mut Vec<Finished<T>>) {
        if !pending.is_empty() {
            self.hand_in(&mut self.state.lock(), pending);
        }
    }

    /// Moves up to `most` items that are ready to `into`, without waiting. `true` if everything has been taken.
    ///
    /// With `keep` their bytes stay counted until [`Self::release`].
    pub(crate) fn take(&self, most: usize, keep: bool, into: &mut Vec<T>) -> bool {
        let mut state = self.state.lock();
        self.take_ready(&mut state, most, keep, into);
        state.window.is_over()
    }

    /// The same; waits until there is at least one, or no more. `None`: the queue was stopped.
    pub(crate) fn take_waiting(&self, most: usize, keep: bool, into: &mut Vec<T>) -> Option<bool> {
        let mut state = self.state.lock();
        let mut since = None;
        loop {
            if state.stopped {
                return None;
            }
            let taken = self.take_ready(&mut state, most, keep, into);
            if taken > 0 || state.window.is_over() {
                if let Some(since) = since {
                    state.waits.consumer += Instant::elapsed(&since);
                }
                return Some(state.window.is_over());
            }
            since.get_or_insert_with(Instant::now);
            // A batch that is larger than the bound lets go of its first items for the sake of the others.
            if std::mem::take(&mut state.head_needs_kept) {
                state.window.release();
                self.account(&state);
                self.tell_room(&state);
                continue;
            }
            state.consumer_waits = true;
            state = wait(&self.ready, state);
            state.consumer_waits = false;
        }
    }

    /// What was taken with `keep` is the consumer's now.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        state.head_needs_kept = false;
        if state.window.kept_bytes() > 0 {
            state.window.release();
            self.account(&state);
            self.tell_room(&state);
        }
    }

    /// Lets everybody stop who waits, and who would.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.room.notify_all();
        self.ready.notify_all();
    }

    /// Sets how many workers may claim and how many items may be begun.
    pub(crate) fn tune(&self, active: usize, items: usize) {
        let mut state = self.state.lock();
        state.active = active;
        state.window.set_items(items);
        self.tell_room(&state);
    }

    pub(crate) fn view(&self) -> View {
        let state = self.state.lock();
        View {
            bounds: state.window.bounds(),
            used_bytes: state.window.used_bytes(),
            peak_bytes: state.window.peak_bytes(),
            peak_items: state.window.peak_items(),
            active: state.active,
            waits: state.waits,
        }
    }

    fn take_ready(&self, state: &mut State<F, T>, most: usize, keep: bool, into: &mut Vec<T>) -> usize {
        let mut taken = 0;
        while taken < most
            && let Some(value) = state.window.take(keep)
        {
            into.push(value);
            taken += 1;
        }
        if taken > 0 {
            self.account(state);
            self.tell_room(state);
        }
        taken
    }

    fn hand_in(&self, state: &mut State<F, T>, pending: &mut Vec<Finished<T>>) {
        for Finished { number, bytes, value } in pending.drain(..) {
            state.window.finish(number, bytes, value);
        }
        self.account(state);
        self.tell_room(state);
        if state.window.ready() > 0 {
            self.tell_consumer(state);
        }
    }

    /// `counts`: whether it is a worker that could go on.
    fn wait_for_room<'a>(
        &self,
        mut state: MutexGuard<'a, State<F, T>>,
        counts: bool,
    ) -> MutexGuard<'a, State<F, T>> {
        let since = counts.then(Instant::now);
        state.waiting_for_room += 1;
        state = wait(&self.room, state);
        state.waiting_for_room -= 1;
        state.waits.room += since.map_or(Duration::ZERO, |since| since.elapsed());
        state
    }

    /// Under the lock, so that the last one to write is the last one to change.
    fn account(&self, state: &State<F, T>) {
        let free = self.bound_bytes.saturating_sub(state.window.used_bytes());
        self.free.store(free, Ordering::Relaxed);
    }

    fn tell_room(&self, state: &State<F, T>) {
        if state.waiting_for_room > 0 {
            self.room.notify_all();
        }
    }

    fn tell_consumer(&self, state: &State<F, T>) {
        if state.consumer_waits {
            self.ready.notify_one();
        }
    }
}

impl<F, T> State<F, T> {
    fn claim(&mut self, most: usize) -> Option<Claim<F>> {
        if self.fetching {
            let (number, fetched) = self.window.claim_fetched()?;
            return Some(Claim::Fetched { number, fetched });
        }
        let (first, count) = self.window.claim(most)?;
        Some(Claim::Run { first, count })
    }
}

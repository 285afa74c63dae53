//! The threads that compute, and how work is divided among them.
//!
//! A decode step forks and joins more than a hundred times, with work of some tenths of a millisecond
//! between. So a thread without work looks for the next for some 50 microseconds, then for a millisecond in which
//! it offers its core to others between looks, before it sleeps; and the caller wakes only those that sleep.
//! Nobody waits for a thread that has not begun: on a machine whose cores are busy with something else, those
//! that run take all the work, and a thread that comes late finds none. No core that another program wants is
//! held longer than the first search.

#![expect(unsafe_code, reason = "work on the caller's stack is lent to threads that outlive it")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// How often a thread looks for work before it offers its core to others between looks: some 50 microseconds.
const LOOKS: u32 = 1_000;

/// How often it then looks, and offers its core, before it sleeps: about a millisecond on a core that nobody
/// else wants. Longer than any gap between two pieces of work of one step.
const OFFERS: u32 = 1_000;

/// How often the caller looks whether the others have finished before it gives its core away meanwhile.
const LOOKS_AT_END: u32 = 10_000;

/// Work that is being done: what to call for each index.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Twice the number of the work at hand, plus 1 while it may be joined.
    state: AtomicU64,
    /// Threads that have joined.
    active: AtomicUsize,
    /// The indices that are left for each thread.
    left: Box<[Left]>,
    work: Mutex<Option<Lent>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Threads that sleep.
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// A range of indices: the first in the low half, the end in the high one. On a cache line of its own, since its
/// thread takes from it all the time.
#[derive(Default)]
#[repr(align(64))]
struct Left(AtomicU64);

impl Left {
    fn set(&self, first: usize, end: usize) {
        self.0.store((end as u64) << 32 | first as u64, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        let range = self.0.load(Ordering::Relaxed);
        (range >> 32).saturating_sub(range & u64::from(u32::MAX))
    }

    /// Takes the first index, or the last.
    fn take(&self, last: bool) -> Option<usize> {
        let mut range = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = (range & u64::from(u32::MAX), range >> 32);
            if first >= end {
                return None;
            }
            let (index, rest) =
                if last { (end - 1, (end - 1) << 32 | first) } else { (first, end << 32 | (first + 1)) };
            match self.0.compare_exchange_weak(range, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(index as usize),
                Err(now) => range = now,
            }
        }
    }
}

/// The work at hand with its lifetime forgotten.
#[derive(Clone, Copy)]
struct Lent {
    work: *const Work<'static>,
}

// SAFETY: the work is `Sync`; who may call it when is said at `Team::for_each`.
unsafe impl Send for Lent {}

/// Threads that do work together with whoever brings it.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One piece of work at a time.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team of {}", self.threads())
    }
}

thread_local! {
    /// Whether this thread is inside a piece of work: what it starts there it does alone.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

impl Team {
    /// A team of `threads`, the caller's counted.
    ///
    /// # Errors
    /// What the system says if a thread cannot be started.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            left: (0..threads.max(1)).map(|_| Left::default()).collect(),
            work: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Built first, so that threads already started end when a later one cannot be.
        let mut team = Self { shared, helpers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("qvl-compute-{index}"));
            team.helpers.push(thread.spawn(move || help(&shared, index))?);
        }
        Ok(team)
    }

    /// Threads, the caller's counted.
    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each index below `count`, on all threads, and returns when all calls have. Which
    /// thread gets which index is not fixed, but mostly they get runs: what lies behind one piece of work is
    /// what the same thread reads next. A panic in `work` becomes one here.
    pub(super) fn for_each(&self, count: usize, work: &Work<'_>) {
        if count <= 1 || self.helpers.is_empty() || WORKING.get() {
            (0..count).for_each(work);
            return;
        }
        assert!(u32::try_from(count).is_ok(), "{count} pieces of work");
        let turn = self.turn.lock();
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Helpers call the work only between joining (`active`) and
        // leaving, they join only while the state is open, and below this function closes the state and
        // waits until all that joined have left before it returns. So no call outlives `work`.
        let lent: *const Work<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        *shared.work.lock() = Some(Lent { work: lent });
        let threads = self.threads();
        for (thread, left) in shared.left.iter().enumerate() {
            left.set(count * thread / threads, count * (thread + 1) / threads);
        }
        let open = shared.state.load(Ordering::Relaxed) + 3;
        shared.state.store(open, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            // A thread between its last look and its sleep holds this lock: it is waited for, then woken.
            drop(shared.sleep.lock());
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| take(shared, 0, work)));
        // Closed, then looked who is inside; a helper says that it is inside, then looks whether it is open.
        shared.state.store(open - 1, Ordering::SeqCst);
        let mut looks = 0;
        while shared.active.load(Ordering::SeqCst) != 0 {
            looks += 1;
            if looks < LOOKS_AT_END { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        drop(turn);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!panicked, "a compute thread panicked; its message is above");
    }

    /// Calls `work` once for each item, on all threads.
    pub(super) fn for_each_mut<T: Send>(&self, items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        let first = Items(items.as_mut_ptr());
        let count = items.len();
        self.for_each(count, &|index| {
            let first = &first;
            // SAFETY: `for_each` gives each index below the number of items once, so no two calls have the same
            // item, and `items` is borrowed until all have returned.
            work(index, unsafe { &mut *first.0.add(index) });
        });
    }
}

/// A pointer to items of which each thread takes others.
struct Items<T>(*mut T);

// SAFETY: the items may be sent, and each is given to one thread only.
unsafe impl<T: Send> Sync for Items<T> {}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleep.lock());
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches what its work panics with.
            helper.join().ok();
        }
    }
}

/// Does the work of thread `thread`, then what is left of the others' from its end, until there is none.
fn take(shared: &Shared, thread: usize, work: &Work<'_>) {
    let before = WORKING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        while let Some(index) = shared.left[thread].take(false) {
            work(index);
        }
        while let Some(most) = shared.left.iter().max_by_key(|left| left.count()) {
            match most.take(true) {
                Some(index) => work(index),
                None if shared.left.iter().all(|left| left.count() == 0) => break,
                None => {}
            }
        }
    }));
    WORKING.set(before);
    if let Err(payload) = result {
        // The others need not go on.
        shared.left.iter().for_each(|left| left.set(0, 0));
        resume_unwind(payload);
    }
}

/// What a helper does all its life.
fn help(shared: &Shared, thread: usize) {
    let mut done = 0;
    loop {
        let state = find(shared, done);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        done = state;
        shared.active.fetch_add(1, Ordering::SeqCst);
        if shared.state.load(Ordering::SeqCst) == state
            && let Some(Lent { work }) = *shared.work.lock()
        {
            // SAFETY: this thread has joined while the work was open, so it lives until this thread leaves.
            let work = unsafe { &*work };
            if catch_unwind(AssertUnwindSafe(|| take(shared, thread, work))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for open work other than `done`.
fn find(shared: &Shared, done: u64) -> u64 {
    let look = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state % 2 == 1 && state != done || shared.stop.load(Ordering::SeqCst)).then_some(state)
    };
    for looked in 0..LOOKS + OFFERS {
        if let Some(state) = look() {
            return state;
        }
        if looked < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    let mut sleep = shared.sleep.lock();
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    let state = loop {
        // Looked again now that whoever brings work knows of this sleeper.
        if let Some(state) = look() {
            break state;
        }
        shared.wake.wait(&mut sleep);
    };
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
    state
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_index_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for round in 0..300 {
                let count = round % 70;
                let mut counts = vec![0u32; count];
                team.for_each_mut(&mut counts, |index, count| *count += 1 + index as u32);
                let expected: Vec<u32> = (1..=count as u32).collect();
                assert_eq!(counts, expected);
                if round % 50 == 0 {
                    // Long enough that the helpers sleep.
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
        }
    }

    #[test]
    fn several_callers_take_turns() {
        let team = Team::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.for_each(10, &|index| {
                            sum.fetch_add(index, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 45);
    }

    #[test]
    fn work_inside_work_is_done_alone() {
        let team = Team::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        team.for_each(4, &|_| {
            team.for_each(5, &|index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 40);
    }

    #[test]
    fn a_panic_is_the_callers_and_the_team_goes_on() {
        for threads in [1, 2, 4] {
            let team = Team::new(threads).unwrap();
            for _ in 0..20 {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    team.for_each(100, &|index| assert!(index != 57, "on purpose"));
                }));
                assert!(result.is_err());
                let sum = AtomicUsize::new(0);
                team.for_each(100, &|index| {
                    sum.fetch_add(index, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 4950);
            }
        }
    }
}

//! The board of chunks under loom: every interleaving of a few threads, up to three preemptions.

#![allow(dead_code, missing_docs, reason = "the file is included whole")]

#[path = "../../src/queue.rs"]
mod queue;

/// What the file locks with, by loom.
mod sync {
    pub(crate) use loom::sync::{Condvar, MutexGuard};

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of the model panics with the lock")
        }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).expect("no thread of the model panics with the lock")
    }
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use queue::{Board, Lane, Priority, Serves, Shape, Slot, Task};

/// A board whose jobs are numbers, with a count of the chunks that ended and of the buffers in somebody's hands.
pub struct Model {
    board: Board<u64, usize>,
    ended: AtomicUsize,
    lent: AtomicUsize,
    slots_max: usize,
}

impl Model {
    pub fn new(slots_max: usize) -> Arc<Self> {
        let (ended, lent) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { board: Board::new(slots_max), ended, lent, slots_max })
    }

    /// Puts a job on the board; its chunks count as ended if the board is closed.
    pub fn push(&self, id: u64, chunks: u64, staged: bool) {
        let shape = Shape { id, priority: Priority::Normal, chunks, lane: Lane::Thread, staged };
        if self.board.push(id, shape).is_err() {
            self.ended.fetch_add(chunks as usize, Ordering::SeqCst);
        }
    }

    /// What a worker does until the board is closed.
    pub fn serve(&self) {
        while let Some(task) = self.board.take(Serves::All) {
            self.run(task);
        }
    }

    /// What a worker does with one chunk. The first buffer that is to be made cannot be, if `fails`.
    pub fn serve_one(&self, fails: bool) {
        if let Some(task) = self.board.take(Serves::All) {
            if fails && matches!(task.slot, Slot::ToMake) {
                self.board.lost();
                self.ended.fetch_add(1, Ordering::SeqCst);
            } else {
                self.run(task);
            }
        }
    }

    fn run(&self, task: Task<u64, usize>) {
        let slot = match task.slot {
            Slot::None => None,
            Slot::Given(slot) => Some(slot),
            Slot::ToMake => Some(7),
        };
        if slot.is_some() {
            let lent = self.lent.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(lent <= self.slots_max, "{lent} buffers of {}", self.slots_max);
        }
        loom::thread::yield_now();
        if let Some(slot) = slot {
            self.lent.fetch_sub(1, Ordering::SeqCst);
            self.board.give_back(slot);
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub fn abandon(&self, id: u64) {
        self.ended.fetch_add(self.board.abandon(id) as usize, Ordering::SeqCst);
    }

    pub fn close(&self) {
        for (_, untaken) in self.board.close() {
            self.ended.fetch_add(untaken as usize, Ordering::SeqCst);
        }
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    /// Buffers that exist, and those that are free.
    pub fn slots(&self) -> (usize, usize) {
        self.board.slots()
    }
}

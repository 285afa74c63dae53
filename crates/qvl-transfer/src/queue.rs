//! The board of chunks: what is to be done next, and the ring of staging buffers that it is done with.
//!
//! A worker takes the next chunk of the most urgent job, with a staging buffer if the job needs one. While none is
//! free, chunks of other jobs that need none are taken. Nothing is allocated for a chunk.

use crate::sync::{Condvar, Mutex, MutexGuard, wait};

/// How urgent a job is; among equals, who came first is served first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// When nothing else is to be done.
    Background,
    /// In the order of arrival.
    #[default]
    Normal,
    /// Before all others: somebody waits for it.
    Urgent,
}

/// Who takes the chunks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Reads of files: by the ring of the kernel where there is one.
    Drive,
    /// All else: by threads.
    Thread,
}

/// Which lanes a worker serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    All,
    Only(Lane),
}

impl Serves {
    fn has(self, lane: Lane) -> bool {
        match self {
            Self::All => true,
            Self::Only(own) => own == lane,
        }
    }
}

/// What is known of a job when it is put on the board.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) id: u64,
    pub(crate) priority: Priority,
    pub(crate) chunks: u64,
    pub(crate) lane: Lane,
    pub(crate) staged: bool,
}

/// A chunk that a worker has taken.
pub(crate) struct Task<J, S> {
    pub(crate) job: J,
    pub(crate) index: u64,
    pub(crate) slot: Slot<S>,
}

/// The staging buffer of a chunk.
pub(crate) enum Slot<S> {
    /// It needs none.
    None,
    /// This one, to be given back.
    Given(S),
    /// One that is to be made now: it is counted already.
    ToMake,
}

pub(crate) struct Board<J, S> {
    state: Mutex<State<J, S>>,
    work: Condvar,
    slots_max: usize,
}

struct State<J, S> {
    /// The most urgent first, then the first to come.
    entries: Vec<Entry<J>>,
    free: Vec<S>,
    /// Buffers that exist or are being made.
    slots: usize,
    closed: bool,
}

struct Entry<J> {
    job: J,
    shape: Shape,
    /// The next chunk.
    next: u64,
}

impl<J: Clone, S> Board<J, S> {
    /// With at most `slots_max` staging buffers.
    pub(crate) fn new(slots_max: usize) -> Self {
        let state = State {
            entries: Vec::with_capacity(64),
            free: Vec::with_capacity(slots_max),
            slots: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), slots_max }
    }

    /// Puts a job with at least one chunk on the board; gives it back if the board is closed.
    pub(crate) fn push(&self, job: J, shape: Shape) -> Result<(), J> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        let place = state.entries.partition_point(|entry| entry.shape.priority >= shape.priority);
        state.entries.insert(place, Entry { job, shape, next: 0 });
        drop(state);
        self.work.notify_all();
        Ok(())
    }

    /// The next chunk; waits for one. `None` when the board is closed.
    pub(crate) fn take(&self, serves: Serves) -> Option<Task<J, S>> {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = self.next(&mut state, serves) {
                return Some(task);
            }
            if state.closed {
                return None;
            }
            state = wait(&self.work, state);
        }
    }

    /// The next chunk, if there is one now.
    pub(crate) fn try_take(&self, serves: Serves) -> Option<Task<J, S>> {
        self.next(&mut self.state.lock(), serves)
    }

    fn next(&self, state: &mut MutexGuard<'_, State<J, S>>, serves: Serves) -> Option<Task<J, S>> {
        let no_slot = state.free.is_empty() && state.slots >= self.slots_max;
        let place = state
            .entries
            .iter()
            .position(|entry| serves.has(entry.shape.lane) && !(entry.shape.staged && no_slot))?;
        let entry = &mut state.entries[place];
        let index = entry.next;
        entry.next += 1;
        let (staged, last) = (entry.shape.staged, entry.next == entry.shape.chunks);
        let job = if last { state.entries.remove(place).job } else { entry.job.clone() };
        let slot = if !staged {
            Slot::None
        } else if let Some(slot) = state.free.pop() {
            Slot::Given(slot)
        } else {
            state.slots += 1;
            Slot::ToMake
        };
        Some(Task { job, index, slot })
    }

    /// A staging buffer that is free again.
    pub(crate) fn give_back(&self, slot: S) {
        self.state.lock().free.push(slot);
        self.work.notify_all();
    }

    /// A staging buffer that could not be made, or is gone.
    pub(crate) fn lost(&self) {
        self.state.lock().slots -= 1;
        self.work.notify_all();
    }

    /// Takes a job from the board; returns how many of its chunks nobody has taken.
    pub(crate) fn abandon(&self, id: u64) -> u64 {
        let mut state = self.state.lock();
        let Some(place) = state.entries.iter().position(|entry| entry.shape.id == id) else { return 0 };
        let entry = state.entries.remove(place);
        drop(state);
        entry.shape.chunks - entry.next
    }

    /// Takes nothing more; returns what is on the board, with how many of its chunks nobody has taken.
    pub(crate) fn close(&self) -> Vec<(J, u64)> {
        let mut state = self.state.lock();
        state.closed = true;
        let left =
            state.entries.drain(..).map(|entry| (entry.job, entry.shape.chunks - entry.next)).collect();
        drop(state);
        self.work.notify_all();
        left
    }

    /// Takes the free staging buffers out.
    pub(crate) fn drain(&self) -> Vec<S> {
        let mut state = self.state.lock();
        state.slots -= state.free.len();
        std::mem::take(&mut state.free)
    }

    /// Buffers that exist, and of these, those that are free.
    pub(crate) fn slots(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.slots, state.free.len())
    }
}

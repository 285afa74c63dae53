//! The locks of the board of chunks, so that a model checker can put its own in their place (see `loom/` beside
//! `src/`).

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

/// Waits until told, or spuriously less; gives the guard back.
pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(&mut guard);
    guard
}

//! The locks of the single flight and of the values in transit, so that a model checker can put its own in their place
//! (see `loom/` beside `src/`).

pub(crate) use std::sync::Arc;

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

/// Waits until told, or spuriously less; gives the guard back.
pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(&mut guard);
    guard
}

/// As [`wait`], for at most so long.
pub(crate) fn wait_for<'a, T>(
    condvar: &Condvar,
    mut guard: MutexGuard<'a, T>,
    at_most: std::time::Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_for(&mut guard, at_most);
    guard
}

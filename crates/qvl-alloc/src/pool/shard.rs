//! Something behind a lock that is tried, and rarely waited for.
//!
//! Freeing the lock is a plain store, so taking something from a shard costs one atomic compare-and-exchange. A lock that puts
//! threads to sleep needs a second one to see whether any does. Who finds a shard busy goes to another.

#![expect(unsafe_code, reason = "a lock, and what is behind it")]

use super::sync::{AtomicBool, Cell, Ordering, pause};

/// A value that one thread at a time has. On lines of its own, since its neighbours are other threads'.
#[repr(align(128))]
pub(crate) struct Shard<T> {
    is_taken: AtomicBool,
    value: Cell<T>,
}

impl<T> Shard<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { is_taken: AtomicBool::new(false), value: Cell::new(value) }
    }

    /// Calls with the value, unless somebody has it. Never waits.
    #[inline]
    pub(crate) fn try_with<R>(&self, then: impl FnOnce(&mut T) -> R) -> Option<R> {
        // Not a swap: who fails writes nothing.
        self.is_taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let _release = Release(&self.is_taken);
        // SAFETY: `is_taken` was false and is now true, so this thread alone has the value until `_release` is dropped,
        // which is after `then`.
        Some(self.value.with_mut(|value| then(unsafe { &mut *value })))
    }

    /// Calls with the value, when nobody has it. What is done with a shard is short, so waiting is too.
    pub(crate) fn with<R>(&self, then: impl FnOnce(&mut T) -> R) -> R {
        let mut then = Some(then);
        loop {
            let result = self.try_with(|value| then.take().map(|then| then(value)));
            if let Some(Some(result)) = result {
                return result;
            }
            pause();
        }
    }
}

/// Frees the lock, also when a panic passes.
struct Release<'a>(&'a AtomicBool);

impl Drop for Release<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_has_it() {
        let shard = Shard::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| shard.with(|count| *count += 1)));
            }
        });
        assert_eq!(shard.with(|count| *count), 4000);
        shard.with(|_| assert!(shard.try_with(|_| ()).is_none(), "it is taken"));
        assert!(shard.try_with(|_| ()).is_some());
    }
}

//! What a shard locks with, so that a model checker can put its own in its place (see `loom/` beside `src/`).

#![expect(unsafe_code, reason = "a cell that is shared by who holds a lock")]

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};

/// Something that only one thread at a time may have; which, the caller knows.
pub(crate) struct Cell<T>(std::cell::UnsafeCell<T>);

// SAFETY: it gives a pointer only, and who uses it says why he may.
unsafe impl<T: Send> Sync for Cell<T> {}

impl<T> Cell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, then: impl FnOnce(*mut T) -> R) -> R {
        then(self.0.get())
    }
}

/// Lets others run, while one waits for them.
pub(crate) fn pause() {
    std::thread::yield_now();
}

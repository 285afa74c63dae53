//! A shard under loom: every interleaving of a few threads.

#![allow(dead_code, missing_docs, reason = "the file is included whole")]

#[path = "../../src/pool/shard.rs"]
pub mod shard;

/// What the file locks with, by loom.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::thread::yield_now as pause;

    /// Loom says when two threads are in it at once.
    pub(crate) struct Cell<T>(loom::cell::UnsafeCell<T>);

    // SAFETY: as in the crate; and loom checks it.
    unsafe impl<T: Send> Sync for Cell<T> {}

    impl<T> Cell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with_mut<R>(&self, then: impl FnOnce(*mut T) -> R) -> R {
            self.0.with_mut(then)
        }
    }
}

pub struct Stack(shard::Shard<Vec<u32>>);

impl Stack {
    pub fn new(blocks: Vec<u32>) -> Self {
        Self(shard::Shard::new(blocks))
    }

    /// A block, if there is one and nobody else is at it.
    pub fn pop(&self) -> Option<u32> {
        self.0.try_with(Vec::pop).flatten()
    }

    /// Whether it was kept.
    pub fn push(&self, block: u32) -> bool {
        self.0.try_with(|blocks| blocks.push(block)).is_some()
    }

    /// All of them, if nobody else is at it: loom does not follow who waits in a loop.
    pub fn try_drain(&self) -> Vec<u32> {
        self.0.try_with(std::mem::take).unwrap_or_default()
    }

    /// All of them, when nobody else is there any more.
    pub fn drain(&self) -> Vec<u32> {
        self.0.with(std::mem::take)
    }
}

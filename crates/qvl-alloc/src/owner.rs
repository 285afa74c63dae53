//! Who has how much, and may have.
//!
//! What an owner has and how many refer to it are one number, so that an allocation counts both with one atomic
//! operation: a buffer keeps its owner, and through it the pool, at no further cost.

#![expect(unsafe_code, reason = "counts by itself who refers to an owner")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::backing::Backing;
use crate::pool::classes::GRAIN_BYTES;
use crate::pool::inner::Inner;
use crate::{Error, OwnerUse, Result};

/// Somebody who allocates: a cache, a model, a request. Cheap to clone; all clones are the same owner.
///
/// It counts what was asked for, in steps of 64 bytes, and not what the classes of the pool waste.
pub struct Owner<B: Backing> {
    shared: NonNull<Shared<B>>,
}

/// One for each owner, freed with the last handle or buffer that refers to it.
pub(crate) struct Shared<B: Backing> {
    pool: Arc<Inner<B>>,
    tally: Arc<Tally>,
}

/// What an owner has; the pool knows all of them for its reports.
pub(crate) struct Tally {
    name: String,
    /// Grains in use above [`REFERENCES_BITS`], handles and buffers below.
    state: AtomicU64,
    peak_grains: AtomicU64,
    /// `u64::MAX`: as much as there is.
    quota_bytes: AtomicU64,
}

/// Why an allocation cannot be counted.
pub(crate) enum Refused {
    /// The quota in bytes.
    Quota(u64),
    TooMany,
}

// SAFETY: what is shared is atomic numbers, a name and an `Arc` of a pool, which is `Send` and `Sync`.
unsafe impl<B: Backing> Send for Owner<B> {}
// SAFETY: as above.
unsafe impl<B: Backing> Sync for Owner<B> {}

impl<B: Backing> Owner<B> {
    pub(crate) fn new(pool: Arc<Inner<B>>, name: String, quota_bytes: Option<u64>) -> Self {
        let tally = Arc::new(Tally {
            name,
            state: AtomicU64::new(1),
            peak_grains: AtomicU64::new(0),
            quota_bytes: AtomicU64::new(quota_bytes.unwrap_or(u64::MAX)),
        });
        pool.know(&tally);
        Self { shared: NonNull::from(Box::leak(Box::new(Shared { pool, tally }))) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.tally().name
    }

    /// Bytes that it has now, in steps of 64.
    pub fn in_use_bytes(&self) -> u64 {
        self.tally().in_use_bytes()
    }

    /// The most bytes that it had at once.
    pub fn peak_bytes(&self) -> u64 {
        self.tally().usage().peak_bytes
    }

    /// The most bytes that it may have.
    pub fn quota_bytes(&self) -> Option<u64> {
        self.tally().usage().quota_bytes
    }

    /// Changes what it may have, from the next allocation on. Less than it has takes nothing away and refuses all
    /// further allocations until it has less.
    pub fn set_quota(&self, quota_bytes: Option<u64>) {
        self.tally().quota_bytes.store(quota_bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn pool(&self) -> &Arc<Inner<B>> {
        &self.shared().pool
    }

    #[inline]
    pub(crate) fn tally(&self) -> &Tally {
        &self.shared().tally
    }

    #[inline]
    fn shared(&self) -> &Shared<B> {
        // SAFETY: this handle is one of the references that keep it, from `new`, `clone` or `charge` on.
        unsafe { self.shared.as_ref() }
    }

    /// Counts grains and a handle that stands for them, which [`Self::discharge`] ends.
    #[inline]
    pub(crate) fn charge(&self, grains: u64) -> Result<Self, Refused> {
        self.tally().charge(grains)?;
        Ok(Self { shared: self.shared })
    }

    /// Ends a handle from [`Self::charge`], with its grains.
    #[inline]
    pub(crate) fn discharge(self, grains: u64) {
        self.release(grains);
        std::mem::forget(self);
    }

    /// Takes a reference and grains off; frees the owner with the last.
    #[inline]
    fn release(&self, grains: u64) {
        let taken = (grains << REFERENCES_BITS) + 1;
        let before = self.tally().state.fetch_sub(taken, Ordering::Release);
        if before & REFERENCES_MAX == 1 {
            self.free();
        }
    }

    #[cold]
    fn free(&self) {
        // What others did with it before they let go happened before.
        fence(Ordering::Acquire);
        // SAFETY: from `Box::leak` in `new`, and no handle and no buffer refers to it any more.
        let shared = unsafe { Box::from_raw(self.shared.as_ptr()) };
        shared.pool.forget(&shared.tally);
    }
}

impl Tally {
    #[inline]
    fn charge(&self, grains: u64) -> Result<(), Refused> {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        let allowed = (quota / GRAIN_BYTES as u64).min(GRAINS_MAX);
        let mut state = self.state.load(Ordering::Relaxed);
        // A loop, and not an addition that is taken back: so no other allocation is refused for one that failed.
        loop {
            let in_use = (state >> REFERENCES_BITS) + grains;
            if grains > 0 && in_use > allowed {
                return Err(Refused::Quota(quota));
            }
            if state & REFERENCES_MAX >= BUFFERS_MAX {
                return Err(Refused::TooMany);
            }
            let next = state + (grains << REFERENCES_BITS) + 1;
            match self.state.compare_exchange_weak(state, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    if in_use > self.peak_grains.load(Ordering::Relaxed) {
                        self.peak_grains.fetch_max(in_use, Ordering::Relaxed);
                    }
                    return Ok(());
                }
                Err(now) => state = now,
            }
        }
    }

    pub(crate) fn in_use_bytes(&self) -> u64 {
        (self.state.load(Ordering::Relaxed) >> REFERENCES_BITS) * GRAIN_BYTES as u64
    }

    /// What the quota leaves, in whole grains.
    pub(crate) fn room_bytes(&self) -> u64 {
        let grain = GRAIN_BYTES as u64;
        let allowed = (self.quota_bytes.load(Ordering::Relaxed) / grain).min(GRAINS_MAX) * grain;
        allowed.saturating_sub(self.in_use_bytes())
    }

    pub(crate) fn usage(&self) -> OwnerUse {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        OwnerUse {
            name: self.name.clone(),
            in_use_bytes: self.in_use_bytes(),
            peak_bytes: self.peak_grains.load(Ordering::Relaxed) * GRAIN_BYTES as u64,
            quota_bytes: (quota != u64::MAX).then_some(quota),
        }
    }
}

impl Refused {
    /// The error of an owner with too many buffers.
    pub(crate) fn too_many() -> Error {
        Error::Setting {
            name: "buffers of an owner",
            got: format!("{BUFFERS_MAX}"),
            expected: "this is the most there can be: make another owner for more".to_owned(),
        }
    }
}

impl<B: Backing> Clone for Owner<B> {
    fn clone(&self) -> Self {
        let before = self.tally().state.fetch_add(1, Ordering::Relaxed);
        if before & REFERENCES_MAX >= REFERENCES_MAX - 1 {
            // One more, and the references would count as memory. As with `Arc`, only leaks come here.
            std::process::abort();
        }
        Self { shared: self.shared }
    }
}

impl<B: Backing> Drop for Owner<B> {
    fn drop(&mut self) {
        self.release(0);
    }
}

impl<B: Backing> fmt::Debug for Owner<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owner").field(&self.tally().usage()).finish()
    }
}

const REFERENCES_BITS: u32 = 28;
const REFERENCES_MAX: u64 = (1 << REFERENCES_BITS) - 1;
/// Room is left for handles.
const BUFFERS_MAX: u64 = REFERENCES_MAX - (1 << 20);
const GRAINS_MAX: u64 = (1 << (64 - REFERENCES_BITS)) - 1;

/// The most that an owner, and so a pool, can have: 4 TiB.
pub(crate) const BYTES_MAX: u64 = GRAINS_MAX * GRAIN_BYTES as u64;

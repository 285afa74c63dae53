//! The cache: three tiers behind one door.

mod builder;
#[cfg(feature = "rocksdb")]
mod drive;
mod explain;
mod shared;
mod work;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::{Codec, Raw};
use crate::cold::Refusal;
use crate::error::{Cause, Error, Result, SharedCause};
use crate::key::Key;
use crate::stats::Stats;

pub use builder::Builder;
#[cfg(feature = "rocksdb")]
pub use drive::WarmOptions;
pub use explain::{Explanation, Place};

use shared::{Purpose, Shared};

/// Where an inserted value went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in the hot tier, and goes down in the background.
    Hot,
    /// The hot tier has no room for it, or better use of it; it is on its way to a tier below and is found meanwhile.
    Below,
    /// No tier takes it: it is not in the cache, and neither is an older value of that key.
    Refused(Refusal),
}

/// Budgets to change while the cache runs; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes of the hot tier.
    pub hot_bytes: Option<u64>,
    /// Bytes of the warm tier.
    pub warm_bytes: Option<u64>,
    /// Bytes of every cold tier that has a budget.
    pub cold_bytes: Option<u64>,
}

/// What went wrong in the background and could not be returned by the call that caused it.
#[derive(Debug)]
pub struct LateErrors {
    errors: Vec<Error>,
    more: u64,
}

impl LateErrors {
    /// The first of them, at most 16.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.errors.len() as u64 + self.more
    }
}

impl std::fmt::Display for LateErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations failed in the background", self.count())
    }
}

impl std::error::Error for LateErrors {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.errors.first().map(|error| error as _)
    }
}

/// A cache of large values that are dear to make: hot in memory, warm on a drive, cold on something slower.
///
/// A value is looked for in the hot tier, among those on their way down, in the warm tier, in the cold ones in their
/// order; what is found moves up if it is worth it there. What leaves a tier for want of room moves down if getting it
/// again takes longer than reading it back. All methods may be called from any thread; none needs a runtime.
///
/// `V` is cloned for every hit, so it should be cheap to clone: [`Bytes`], an `Arc`. Dropping the cache
/// [`close`](Self::close)s it, but has nowhere to say what failed.
pub struct TieredCache<K: Key, V: Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K, V>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<K: Key> TieredCache<K, Bytes> {
    /// A cache of bytes.
    pub fn builder() -> Builder<K, Bytes> {
        Builder::new(Arc::new(Raw))
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> TieredCache<K, V> {
    /// A cache of any values, which `codec` turns into bytes for the tiers below memory.
    pub fn builder_with(codec: impl Codec<V>) -> Builder<K, V> {
        Builder::new(Arc::new(codec))
    }

    /// The value of a key, from wherever it is; `None` if no tier has it whole.
    ///
    /// A hit in the hot tier takes well under a microsecond and allocates nothing. Below it the caller's thread reads;
    /// others who ask for the same key meanwhile wait for that one read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]. A tier that fails is a tier without the value: it is counted in [`stats`](Self::stats), and
    /// said once to the builder's [`on_notice`](Builder::on_notice).
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let hash = self.shared.hot.hash(key);
        match self.shared.hot.get(key, hash) {
            Some(value) => Ok(Some(value)),
            None => self.shared.search(key, hash, Purpose::Get),
        }
    }

    /// The value, if the hot tier has it.
    #[cfg(feature = "async")]
    pub(crate) fn get_hot(&self, key: &K) -> Option<V> {
        self.shared.check_open().ok()?;
        self.shared.hot.get(key, self.shared.hot.hash(key))
    }

    /// The value of a key, from wherever it is, or made by `load` and kept.
    ///
    /// One `load` a key at a time, however many ask: the others wait for it and get the same value or the same error.
    /// If it panics, the panic goes to its own caller, and one of those who wait loads in its place. The time it takes
    /// is what the value is held to cost.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] with what `load` returned, [`Error::Closed`].
    pub fn get_or_load<E: Into<Cause>>(&self, key: &K, load: impl FnOnce() -> Result<V, E>) -> Result<V> {
        let hash = self.shared.hot.hash(key);
        match self.shared.hot.get(key, hash) {
            Some(value) => Ok(value),
            None => self
                .shared
                .search_or_load(key, hash, || load().map_err(|cause| SharedCause::from(cause.into()))),
        }
    }

    /// Puts a value in, in place of an older one of that key, which is gone from every tier when this returns.
    ///
    /// The value is written below in the background; [`flush`](Self::flush) waits for that. When more is on its way
    /// down than the builder's [`transit_bytes`](Builder::transit_bytes), this waits for the drive.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]. A value that no tier takes is [`Placed::Refused`].
    pub fn insert(&self, key: K, value: V) -> Result<Placed> {
        self.shared.insert(key, value, None)
    }

    /// As [`insert`](Self::insert), with what it takes to make the value again, in place of the builder's
    /// [`cost`](Builder::cost).
    ///
    /// # Errors
    ///
    /// As for `insert`.
    pub fn insert_with_cost(&self, key: K, value: V, cost: Duration) -> Result<Placed> {
        self.shared.insert(key, value, Some(cost))
    }

    /// Removes a key from every tier that can be written to; from a read-only one it is hidden as long as the cache is
    /// open.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], or that of the first cold tier that could not remove it: it is not found again here, but may
    /// be after a restart.
    pub fn remove(&self, key: &K) -> Result<()> {
        self.shared.remove(key)
    }

    /// Whether a tier has the key, without reading the value: a damaged one counts as there until it is read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn contains(&self, key: &K) -> Result<bool> {
        self.shared.contains(key)
    }

    /// Brings a key into the hot tier and keeps it there until it is [`unpin`](Self::unpin)ned as often. `false` if no
    /// tier has it, or what is pinned already leaves no room.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn pin(&self, key: &K) -> Result<bool> {
        self.shared.pin(key)
    }

    /// Takes one pin away. `false` if there was none.
    pub fn unpin(&self, key: &K) -> bool {
        self.shared.unpin(key)
    }

    /// Says that these keys will be wanted soon: they are brought up in the background, in this order. Returns how
    /// many hints were taken, none with memory alone; beyond the builder's [`prefetch_keys`](Builder::prefetch_keys) they are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn prefetch(&self, keys: impl IntoIterator<Item = K>) -> Result<usize> {
        self.shared.prefetch(keys)
    }

    /// Returns when every value that was inserted before is in a tier below and on the medium: after a loss of power
    /// it is there. What every tier refuses (too large, cheaper to make again) stays in memory only.
    ///
    /// # Errors
    ///
    /// The first of what could not be written.
    pub fn flush(&self) -> Result<()> {
        self.shared.flush()
    }

    /// Changes budgets while the cache runs. What is over a smaller one moves down, or out. The budgets of the hot and the
    /// warm tier hold when this returns; a cold one when the writes that were under way have ended.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], or that of a tier.
    pub fn resize(&self, budgets: Budgets) -> Result<()> {
        self.shared.resize(budgets)
    }

    /// The counters, and what the tiers hold.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Where a key is, why, and what it is worth there. Reads no value, changes nothing.
    pub fn explain(&self, key: &K) -> Explanation {
        self.shared.explain(key)
    }

    /// Flushes, ends the threads and gives up the folders. Every later call is [`Error::Closed`], but for this one,
    /// which does nothing then.
    ///
    /// # Errors
    ///
    /// What went wrong now, and what went wrong in the background since the cache was built.
    pub fn close(&self) -> Result<(), LateErrors> {
        let errors = self.shared.close(&mut self.threads.lock());
        if errors.errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for TieredCache<K, V> {
    fn drop(&mut self) {
        let late = self.shared.close(&mut self.threads.lock());
        drop(late);
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> std::fmt::Debug for TieredCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TieredCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

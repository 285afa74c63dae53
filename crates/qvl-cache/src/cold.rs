//! Cold tiers: what lies below the drive of the warm tier, or beside it. A folder, an object store, files that exist
//! already; or a tier of the user's own.

#[cfg(feature = "compression")]
pub mod compress;
pub mod folder;
pub mod format;
mod ledger;
#[cfg(feature = "object-store")]
pub mod object;
pub mod ranges;
mod tally;

use bytes::Bytes;

use crate::error::Result;

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The value is in the tier now.
    Stored,
    /// The tier held a value under this key already; nothing was written.
    ///
    /// Values are taken to be functions of their keys: two values of one key are the same value. Who changes a value
    /// removes the old one first.
    AlreadyThere,
    /// The tier does not take it, and that is no error.
    Refused(Refusal),
}

/// Why a tier does not take a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The tier is read-only.
    ReadOnly,
    /// The value, or its key, is larger than this tier takes.
    TooLarge,
    /// The policy of the tier holds what is in it to be worth more.
    NotWorthIt,
}

/// A slow tier: a place for bytes under keys that are bytes.
///
/// The cache calls it from several threads at once, and calls may take as long as the medium does; it never calls
/// while it holds a lock of its own. What a tier must keep to:
///
/// - A value comes back as it was put, byte for byte, or not at all. A tier checks what it reads; damage is a miss,
///   counted in [`ColdStats::damaged`], and what is damaged is removed where the tier can.
/// - Losing a value is allowed at any time, an error is for what the user should know of: a drive that fails, a store
///   that cannot be reached. After an error the cache goes on without the tier, so errors should come fast once they
///   are known to come.
/// - A [`put`](Self::put) that returned [`Kept::Stored`] is seen by the calls that begin after it.
pub trait Cold: Send + Sync {
    /// The tier for messages: its folder or URL, without credentials.
    fn name(&self) -> String;

    /// The value of a key, or `None` if there is none that is whole.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) or [`Error::Tier`](crate::Error::Tier) if the medium refuses.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// Stores a value. `cost` is what it takes to make it again, in seconds: what it is worth keeping it.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get). Nothing half written is ever read back.
    fn put(&self, key: &[u8], value: &Bytes, cost: f32) -> Result<Kept>;

    /// Removes a key; not an error if it is not there.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    fn remove(&self, key: &[u8]) -> Result<()>;

    /// Whether [`put`](Self::put) can do anything but refuse.
    fn writable(&self) -> bool;

    /// Whether a value lies under the key, as cheaply as that can be said: the value is not read, so it may turn out
    /// to be damaged, or of another key with the same [`KeyId`](crate::KeyId), when it is.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    fn contains(&self, key: &[u8]) -> Result<bool>;

    /// Returns when all that was put is as safe as the medium makes it: on the drive, in the store.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Gives the tier another budget in bytes; what is over it is evicted before this returns. A tier without a
    /// budget ignores it.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    fn resize(&self, budget_bytes: u64) -> Result<()> {
        let _ = budget_bytes;
        Ok(())
    }

    /// The counters, since the tier was opened.
    fn stats(&self) -> ColdStats;

    /// Ends the tier: what was put is flushed, threads end, locks are given up. Calls after it are
    /// [`Error::Closed`](crate::Error::Closed). Dropping does the same, but has nowhere to say what failed.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    fn close(&self) -> Result<()> {
        self.flush()
    }
}

/// Counters of a cold tier since it was opened, and what it holds now.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColdStats {
    /// Values held, where the tier knows; else 0.
    pub values: u64,
    /// Bytes held, with headers and keys, compressed: what counts against the budget. 0 where the tier does not know.
    pub bytes: u64,
    /// The budget in bytes; `None` where none is enforced.
    pub budget_bytes: Option<u64>,
    /// Reads that found their value.
    pub hits: u64,
    /// Reads that did not, the damaged ones among them.
    pub misses: u64,
    /// Reads that found something else than what was put: a wrong checksum, another key, a file that was changed.
    pub damaged: u64,
    /// Values written.
    pub puts: u64,
    /// Values refused.
    pub refused: u64,
    /// Values given up for room.
    pub evicted: u64,
    /// Bytes of the values that were read, as the caller got them.
    pub read_bytes: u64,
    /// Bytes of the values that were written, as the caller gave them.
    pub put_bytes: u64,
    /// Bytes that these took in the tier, with headers and keys: the ratio is what compression gained.
    pub stored_bytes: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Of these, calls that got no answer in time.
    pub timeouts: u64,
    /// Calls that were not tried, since the tier had failed a moment before.
    pub skipped: u64,
    /// Misses that were known without asking.
    pub known_absent: u64,
}

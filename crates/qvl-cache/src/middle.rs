//! What the cache needs of the tier between memory and the cold ones.

use bytes::Bytes;

use crate::cold::Kept;
use crate::error::Result;
use crate::key::KeyId;
use crate::stats::WarmStats;

/// What reading found.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// The value, whole, and the seconds it takes to make it again.
    Found {
        /// The value.
        value: Bytes,
        /// Seconds to make it again.
        cost: f32,
    },
    /// There is none.
    Absent,
    /// There was something else than what was stored: what. It is gone now.
    Damaged(String),
}

/// What is known of a value without reading it.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    /// What it takes of the budget.
    pub(crate) bytes: u64,
    /// Seconds to make it again.
    pub(crate) cost: f32,
    /// Uses.
    pub(crate) uses: u32,
    /// Its policy's word.
    pub(crate) why: String,
}

/// The warm tier.
pub(crate) trait Middle: Send + Sync {
    /// Reads a value.
    fn get(&self, key: &[u8], id: KeyId) -> Fetched;
    /// A request that no tier could answer.
    fn missed(&self, id: KeyId);
    /// The value leaves the tier above, where it was used: whether this one has it.
    fn touch(&self, id: KeyId) -> bool;
    /// Stores a value.
    fn put(&self, key: &[u8], id: KeyId, value: &Bytes, cost: f32) -> Result<Kept>;
    /// Removes a value, also one that is being written.
    fn remove(&self, id: KeyId);
    /// Whether it holds a value, without reading it.
    fn contains(&self, id: KeyId) -> bool;
    /// The same, with what is known.
    fn explain(&self, id: KeyId) -> Option<Below>;
    /// Puts all that was stored on the drive.
    fn flush(&self) -> Result<()>;
    /// Another budget.
    fn resize(&self, bytes: u64) -> Result<()>;
    /// Saves what a restart needs; nothing works after it.
    fn close(&self) -> Result<()>;
    /// Figures.
    fn stats(&self) -> WarmStats;
}

//! What a warm tier is opened with, what its operations say, and what it counts.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::format::{self, Place};
use crate::buffers::Buffers;
use crate::policy::Policy;
use crate::storage::Storage;

/// Time since anything, never going back.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Takes what leaves a tier to the one below.
pub(crate) trait Spill: Send + Sync {
    /// Called before the value is deleted, without locks that readers need. Room for the next value waits for it, so
    /// it should be quick; it must not write to the tier that calls it.
    fn spill(&self, key: &[u8], value: Bytes, cost: f32);
}

/// How values' files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadMode {
    /// Through the page cache: values that were read or written lately come from memory.
    Buffered,
    /// Past the page cache (`O_DIRECT`): spares a copy and leaves the cache to others, and what is read again comes from
    /// the drive again. Where the file system offers none, values are read through the cache; the statistics say so.
    Direct,
    /// Through the page cache: it is the faster one whenever a value is still there, and within some per cent of the
    /// other when it is not.
    #[default]
    Auto,
}

/// What a warm tier is opened with.
pub(crate) struct WarmSettings {
    pub(crate) folder: PathBuf,
    /// Bytes on the drive, at most; what counts is said at [`charge_of`].
    pub(crate) budget_bytes: u64,
    /// What the values belong to: a folder filled for something else is not opened.
    pub(crate) fingerprint: String,
    /// Rather clear such a folder.
    pub(crate) clear_other_fingerprint: bool,
    /// Values up to this many bytes are stored in RocksDB, longer ones in files.
    pub(crate) small_max: usize,
    /// Of those, values from this many bytes on have a file of their own, and their footers a second one.
    pub(crate) alone_min: usize,
    pub(crate) read_mode: ReadMode,
    /// Threads that read one large value together, at most; past the page cache at least 2.
    pub(crate) read_threads: usize,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) spill: Option<Arc<dyn Spill>>,
    pub(crate) buffers: Buffers,
    pub(crate) clock: Clock,
}

impl WarmSettings {
    /// The default of `small_max`. Up to here RocksDB stores and reads a value in less time than a file takes (at 16 KiB
    /// 50 + 18 µs against 200 + 28 µs, and a synchronisation for all instead of one each); from 32 KiB on reading a
    /// file is several times faster, and it is written once instead of 2.4 times.
    pub(crate) const SMALL_MAX: usize = 16 << 10;

    /// The default of `alone_min`. Below this a second file costs more (a creation, a synchronisation, 4 KiB of the
    /// drive) than reading one block more does.
    pub(crate) const ALONE_MIN: usize = 256 << 10;
}

/// What a [`Warm::get`] finds.
#[derive(Debug)]
pub(crate) enum Found {
    Hit {
        value: Bytes,
        /// Seconds, as it was put with.
        cost: f32,
    },
    Miss,
    /// It was there, but not what was put. It is not there any more.
    Damaged {
        what: String,
    },
}

/// What becomes of a [`Warm::put`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Stored,
    Refused(Refusal),
}

/// Why a value is not stored. An older value of the key is gone too (except with `Busy`): it is not known to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It takes more than the whole budget.
    TooLarge { bytes: u64, budget_bytes: u64 },
    /// The policy would give it up before anything that is there and not pinned.
    NotWorth,
    /// Another write of this key is under way.
    Busy,
    /// The key was removed while it was written.
    Removed,
    /// The drive failed before and is not tried again yet.
    Degraded { reason: String },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, budget_bytes } => {
                write!(f, "it takes {bytes} bytes, the tier has {budget_bytes}")
            }
            Self::NotWorth => f.write_str("what is there is worth more, or pinned"),
            Self::Busy => f.write_str("another write of this key is under way"),
            Self::Removed => f.write_str("it was removed while it was written"),
            Self::Degraded { reason } => f.write_str(reason),
        }
    }
}

/// What is known of a value without reading it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Info {
    /// Of the value alone.
    pub(crate) value_bytes: u64,
    /// Of the budget.
    pub(crate) charge_bytes: u64,
    pub(crate) cost: f32,
    /// What the policy holds it worth, in seconds a byte and request.
    pub(crate) worth: f64,
    pub(crate) uses: u32,
    /// In RocksDB rather than in a file of its own.
    pub(crate) inline: bool,
    /// The policy's reason.
    pub(crate) why: String,
}

/// What a value takes of the budget: files are rounded up to the file system's blocks, and an entry has its record, its
/// place in memory, and an inode a file.
pub(crate) fn charge_of(place: Place, value_bytes: u64, key_bytes: u32) -> u64 {
    const BLOCK_BYTES: u64 = 4096;
    const ENTRY_BYTES: u64 = 512;
    let in_blocks = |bytes: u64| bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
    let footer_bytes = format::footer_bytes(key_bytes);
    let stored_bytes = value_bytes.saturating_add(footer_bytes);
    let bytes = match place {
        Place::Inline => stored_bytes,
        Place::File => in_blocks(stored_bytes),
        Place::Alone => {
            in_blocks(value_bytes).saturating_add(in_blocks(footer_bytes)).saturating_add(ENTRY_BYTES)
        }
    };
    bytes.saturating_add(ENTRY_BYTES)
}

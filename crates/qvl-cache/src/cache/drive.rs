//! The warm tier as a cache has it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::buffers::Buffers;
use crate::clock::Clock;
use crate::cold::{Cold, Kept, Refusal};
use crate::error::{Error, Result};
use crate::key::KeyId;
use crate::middle::{Below, Fetched, Middle};
use crate::policy::PolicyName;
use crate::stats::WarmStats;
use crate::storage::recycling::Recycling;
use crate::storage::{Disk, Storage};
use crate::warm::{self, Found, Put, ReadMode, Spill, Warm, WarmSettings};

/// The settings of a warm tier.
#[derive(Clone)]
#[must_use = "options do nothing until a builder gets them"]
pub struct WarmOptions {
    folder: PathBuf,
    bytes: u64,
    fingerprint: String,
    clear_other: bool,
    small_max: usize,
    read_mode: ReadMode,
    read_threads: usize,
    policy: Option<PolicyName>,
    storage: Arc<dyn Storage>,
}

impl WarmOptions {
    /// A tier in this folder, which is created if it is not there, under a budget of bytes on the drive: values with
    /// their keys and footers, files rounded up to 4 KiB, and 512 bytes an entry.
    pub fn new(folder: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            folder: folder.into(),
            bytes,
            fingerprint: String::new(),
            clear_other: false,
            small_max: WarmSettings::SMALL_MAX,
            read_mode: ReadMode::Auto,
            read_threads: 1,
            policy: None,
            storage: Arc::new(Disk),
        }
    }

    /// What the values belong to: a model and its settings, a version of the program that makes them. A folder filled
    /// for something else is [`Error::Fingerprint`] [default: empty].
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = fingerprint.into();
        self
    }

    /// A folder that was filled for another fingerprint is cleared instead.
    pub fn clear_other_fingerprint(mut self, clear: bool) -> Self {
        self.clear_other = clear;
        self
    }

    /// Values up to so many bytes are stored in RocksDB, longer ones in a file each [default: 16 KiB].
    pub fn small_max(mut self, bytes: usize) -> Self {
        self.small_max = bytes;
        self
    }

    /// How files are read [default: [`ReadMode::Auto`]].
    pub fn read_mode(mut self, mode: ReadMode) -> Self {
        self.read_mode = mode;
        self
    }

    /// Threads that read one large value together, at most [default: 1; past the page cache at least 2].
    pub fn read_threads(mut self, threads: usize) -> Self {
        self.read_threads = threads;
        self
    }

    /// The policy of this tier [default: that of the builder].
    pub fn policy(mut self, policy: PolicyName) -> Self {
        self.policy = Some(policy);
        self
    }

    /// File operations other than the machine's own: for tests of what a failing drive does.
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = storage;
        self
    }

    /// Opens it. `buffers` is where values are read to; what leaves goes to the first of the cold tiers that takes it.
    pub(super) fn open(
        self,
        policy: PolicyName,
        buffers: Buffers,
        cold: &[Arc<dyn Cold>],
        clock: &Clock,
    ) -> Result<Drive> {
        let below: Vec<_> = cold.iter().filter(|tier| tier.writable()).cloned().collect();
        let clock = clock.clone();
        let name = self.folder.display().to_string();
        let spare = self.folder.join("values").join("spare");
        let files = Arc::new(Recycling::new(self.storage, spare.clone(), spare_bytes(self.bytes)));
        let settings = WarmSettings {
            folder: self.folder,
            budget_bytes: self.bytes - spare_bytes(self.bytes),
            fingerprint: self.fingerprint,
            clear_other_fingerprint: self.clear_other,
            small_max: self.small_max,
            read_mode: self.read_mode,
            alone_min: WarmSettings::ALONE_MIN,
            read_threads: self.read_threads,
            policy: self.policy.unwrap_or(policy).build(),
            storage: Arc::clone(&files) as _,
            spill: (!below.is_empty()).then(|| Arc::new(ToCold(below)) as _),
            buffers,
            clock: Arc::new(move || clock.now()),
        };
        let warm = Warm::open(settings)?;
        // Only now it is sure that the folder is this one's.
        let begun = files.begin();
        begun.map_err(|source| Error::Io { path: spare, operation: "remove", source })?;
        Ok(Drive { name, files, warm: RwLock::new(Some(warm)) })
    }
}

/// Of a budget, what may be files that were removed and wait to be written again: a sixteenth, and enough at most for
/// some minutes of replacing.
fn spare_bytes(budget_bytes: u64) -> u64 {
    (budget_bytes / 16).min(128 << 20)
}

/// The first cold tier that takes a value gets it.
struct ToCold(Vec<Arc<dyn Cold>>);

impl Spill for ToCold {
    fn spill(&self, key: &[u8], value: Bytes, cost: f32) {
        // A failure is counted by the tier; the value is then lost, as it would be without a tier below.
        let takes = |tier: &Arc<dyn Cold>| {
            matches!(tier.put(key, &value, cost), Ok(Kept::Stored | Kept::AlreadyThere))
        };
        let _ = self.0.iter().any(takes);
    }
}

/// An open warm tier, until it is closed.
pub(super) struct Drive {
    name: String,
    files: Arc<Recycling>,
    warm: RwLock<Option<Warm>>,
}

impl Drive {
    fn with<R>(&self, closed: R, work: impl FnOnce(&Warm) -> R) -> R {
        self.warm.read().as_ref().map_or(closed, work)
    }
}

impl Middle for Drive {
    fn get(&self, key: &[u8], id: KeyId) -> Fetched {
        self.with(Fetched::Absent, |warm| match warm.get(key, id) {
            Found::Hit { value, cost } => Fetched::Found { value, cost },
            Found::Miss => Fetched::Absent,
            Found::Damaged { what } => Fetched::Damaged(what),
        })
    }

    fn missed(&self, id: KeyId) {
        self.with((), |warm| warm.missed(id));
    }

    fn touch(&self, id: KeyId) -> bool {
        self.with(false, |warm| warm.touch(id))
    }

    fn put(&self, key: &[u8], id: KeyId, value: &Bytes, cost: f32) -> Result<Kept> {
        let Some(put) = self.with(None, |warm| Some(warm.put(key, id, value, cost))) else {
            return Err(Error::Closed);
        };
        match put? {
            Put::Stored => Ok(Kept::Stored),
            Put::Refused(warm::Refusal::TooLarge { .. }) => Ok(Kept::Refused(Refusal::TooLarge)),
            Put::Refused(warm::Refusal::NotWorth | warm::Refusal::Removed) => {
                Ok(Kept::Refused(Refusal::NotWorthIt))
            }
            Put::Refused(why @ (warm::Refusal::Busy | warm::Refusal::Degraded { .. })) => {
                let source = why.to_string().into();
                Err(Error::Tier { tier: self.name.clone(), operation: "writing a value", source })
            }
        }
    }

    fn remove(&self, id: KeyId) {
        self.with((), |warm| _ = warm.remove(id));
    }

    fn contains(&self, id: KeyId) -> bool {
        self.with(false, |warm| warm.has(id))
    }

    fn explain(&self, id: KeyId) -> Option<Below> {
        let info = self.with(None, |warm| warm.contains(id))?;
        let place = if info.inline { "in the index" } else { "in a file of its own" };
        Some(Below {
            bytes: info.charge_bytes,
            cost: info.cost,
            uses: info.uses,
            why: format!("{place}; {}", info.why),
        })
    }

    fn flush(&self) -> Result<()> {
        self.with(Ok(()), Warm::flush)
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        self.files.set_max(spare_bytes(bytes));
        self.with(Err(Error::Closed), |warm| warm.resize(bytes - spare_bytes(bytes)))
    }

    fn close(&self) -> Result<()> {
        match self.warm.write().take() {
            Some(warm) => warm.close(),
            None => Ok(()),
        }
    }

    fn stats(&self) -> WarmStats {
        let stats = self.with(WarmStats::default(), Warm::stats);
        let bytes = stats.bytes + self.files.bytes();
        // The part for files that wait is beside the tier's own budget.
        let budget_bytes = stats.budget_bytes + self.files.bytes_max();
        WarmStats { bytes, budget_bytes, ..stats }
    }
}

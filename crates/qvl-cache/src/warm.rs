//! The warm tier: values on a drive under a byte budget, with an index in RocksDB.
//!
//! - `format.rs` the bytes on the drive; `folder.rs` the folder; `index.rs` RocksDB
//! - `table.rs` what is there and who leaves (pure); `health.rs` whether the drive works (pure)
//! - `read.rs` reading a file; `recover.rs` opening; `write.rs` in which order things reach the drive
//! - `types.rs` settings, outcomes, statistics; this file: the operations, and what is counted
//!
//! Locks, in the order in which they are taken: `room` (who makes room), `flushing`, `writer` (the order of index
//! changes is that of the table's), `table`. Only `table` is held for reading, never during I/O.
//!
//! What holds after a power loss: a value put before a [`Warm::flush`] that returned is there. Of a flushed value that
//! was replaced later, the old or the new one is there. A file is not named by the index again once it was removed; a
//! name is never used twice. Whatever else is found is noticed by its checksum and is a miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashSet;
use parking_lot::{Condvar, Mutex};

use crate::buffers::Buffers;
use crate::key::{self, KeyId};
use crate::stats::WarmStats;
use crate::storage::Storage;
use crate::{Error, Result};

mod folder;
pub(crate) mod format;
mod health;
mod index;
mod read;
mod recover;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod write;

use folder::{Folder, io_error};
use format::Place;
use health::Health;
use index::Index;
use read::{ReadError, Reader};
use table::Table;

pub use types::ReadMode;
pub(crate) use types::{Clock, Found, Info, Put, Refusal, Spill, WarmSettings, charge_of};

/// A warm tier that is open. Dropping it closes it; [`close`](Self::close) says what went wrong then.
pub(crate) struct Warm {
    shared: Arc<Shared>,
    sweeper: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    folder: Folder,
    index: Index,
    storage: Arc<dyn Storage>,
    reader: Reader,
    small_max: usize,
    alone_min: usize,
    spill: Option<Arc<dyn Spill>>,
    clock: Clock,
    room: Mutex<()>,
    flushing: Mutex<()>,
    writer: Mutex<()>,
    table: Mutex<Table>,
    /// Told when a write ended or a file is gone.
    settled: Condvar,
    health: Mutex<Health>,
    /// Deletions that the index refused, for the next change.
    owed: Mutex<HashSet<KeyId>>,
    generation: AtomicU64,
    stop: AtomicBool,
    count: Counts,
    last_error: Mutex<Option<String>>,
    read_mode: String,
    index_rebuilt: Option<String>,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    bytes_read: AtomicU64,
    puts: AtomicU64,
    bytes_stored: AtomicU64,
    file_bytes_written: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    orphans_removed: AtomicU64,
    errors: AtomicU64,
}

impl Warm {
    /// Opens or creates the tier of a folder, with what is there.
    pub(crate) fn open(settings: WarmSettings) -> Result<Self> {
        let WarmSettings { storage, policy, budget_bytes, small_max, alone_min, .. } = settings;
        if small_max > SMALL_LIMIT {
            let reason = format!("values in RocksDB are written at least twice; at most {SMALL_LIMIT}");
            return Err(Error::Setting { name: "small_max", value: small_max.to_string(), reason });
        }
        let folder = Folder::open(
            &settings.folder,
            &settings.fingerprint,
            settings.clear_other_fingerprint,
            &*storage,
        )?;
        let (direct, read_mode) = read_mode(settings.read_mode, &*storage, &folder);
        let reader = Reader::new(settings.buffers, direct, settings.read_threads);
        let recovered = recover::recover(&folder, small_max, &*storage, &reader)?;
        let mut table = Table::new(policy, budget_bytes);
        for (id, record, uses) in recovered.records {
            table.restore(id, record, recover::charge_of_record(&record), uses);
        }
        let shared = Arc::new(Shared {
            folder,
            index: recovered.index,
            storage,
            reader,
            small_max,
            alone_min,
            spill: settings.spill,
            clock: settings.clock,
            room: Mutex::new(()),
            flushing: Mutex::new(()),
            writer: Mutex::new(()),
            table: Mutex::new(table),
            settled: Condvar::new(),
            health: Mutex::default(),
            owed: Mutex::default(),
            generation: AtomicU64::new(recovered.next_generation),
            stop: AtomicBool::new(false),
            count: Counts { damaged: AtomicU64::new(recovered.damaged), ..Counts::default() },
            last_error: Mutex::default(),
            read_mode,
            index_rebuilt: recovered.rebuilt,
        });
        shared.make_room(None)?;
        let sweeping = shared.clone();
        let sweeper = std::thread::Builder::new()
            .name("qvl-cache-sweep".to_owned())
            .spawn(move || recover::sweep(&sweeping))
            .map_err(|source| io_error(&settings.folder, "start a thread for", source))?;
        Ok(Self { shared, sweeper: Some(sweeper) })
    }

    /// The value of a key. The use is told to the policy; a miss is not (see [`missed`](Self::missed)).
    pub(crate) fn get(&self, key: &[u8], id: KeyId) -> Found {
        let shared = &*self.shared;
        let mut entry = shared.table.lock().hit(id);
        // It may be replaced again and again while it is read; a value that is replaced that often is a miss.
        for _ in 0..4 {
            let Some(found) = entry else { break };
            if found.record.short_key().is_some_and(|known| known != key) {
                // Another key with the same id.
                break;
            }
            match shared.read(id, &found.record) {
                Ok(read) if *read.key == *key => {
                    add(&shared.count.hits, 1);
                    return Found::Hit { value: read.value, cost: read.cost };
                }
                // Another key with the same id.
                Ok(_) => break,
                Err(ReadError::Unavailable(error)) => {
                    shared.failed(format!("reading {}: {error}", key::shown(key)));
                    break;
                }
                Err(error) => {
                    let now = shared.table.lock().get(id);
                    if now.is_none_or(|now| now.record.generation != found.record.generation) {
                        entry = now;
                        continue;
                    }
                    let what = match error {
                        ReadError::Damaged(what) => what,
                        ReadError::Missing | ReadError::Unavailable(_) => "its file is missing".to_owned(),
                    };
                    if !shared.forget(id, Some(found.record.generation)) {
                        entry = shared.table.lock().get(id);
                        continue;
                    }
                    add(&shared.count.damaged, 1);
                    add(&shared.count.misses, 1);
                    return Found::Damaged { what };
                }
            }
        }
        add(&shared.count.misses, 1);
        Found::Miss
    }

    /// Tells the policy of a request for something that is not here and will not be put.
    pub(crate) fn missed(&self, id: KeyId) {
        self.shared.table.lock().miss(id);
    }

    /// Tells the policy of a use that was served above. Returns whether it is here.
    pub(crate) fn touch(&self, id: KeyId) -> bool {
        self.shared.table.lock().hit(id).is_some()
    }

    /// Whether there is a value of this id.
    pub(crate) fn has(&self, id: KeyId) -> bool {
        self.shared.table.lock().get(id).is_some()
    }

    /// Whether there is a value of this id, and what is known of it.
    pub(crate) fn contains(&self, id: KeyId) -> Option<Info> {
        let table = self.shared.table.lock();
        let entry = table.get(id)?;
        let policy = table.policy();
        Some(Info {
            value_bytes: entry.record.value_bytes,
            charge_bytes: entry.charge,
            cost: entry.record.cost,
            worth: entry.slot.map_or(0.0, |slot| policy.worth(slot)),
            uses: entry.slot.map_or(0, |slot| policy.uses(slot)),
            inline: entry.record.place == Place::Inline,
            why: entry.slot.map_or_else(String::new, |slot| policy.why(slot)),
        })
    }

    /// Stores a value, making room for it first. In the page cache when this returns, on the drive after
    /// [`flush`](Self::flush). `id` is that of `key`; `cost` is what it takes to get the value again, in seconds.
    pub(crate) fn put(&self, key: &[u8], id: KeyId, value: &[u8], cost: f32) -> Result<Put> {
        let put = self.shared.put(key, id, value, cost);
        match &put {
            Ok(Put::Stored) => {
                add(&self.shared.count.puts, 1);
                add(&self.shared.count.bytes_stored, value.len() as u64);
            }
            Ok(Put::Refused(_)) | Err(_) => add(&self.shared.count.refused, 1),
        }
        put
    }

    /// Removes a value; one that is being written is not stored. Returns whether there was one.
    pub(crate) fn remove(&self, id: KeyId) -> bool {
        self.shared.forget(id, None)
    }

    /// Changes the budget, and evicts until it holds before this returns. Waits for values that are being written and
    /// would be too much.
    pub(crate) fn resize(&self, budget_bytes: u64) -> Result<()> {
        self.shared.table.lock().set_budget(budget_bytes);
        self.shared.shrink()
    }

    /// Puts everything that was stored before on the drive, with one synchronisation for all of it.
    pub(crate) fn flush(&self) -> Result<()> {
        self.shared.flush()?;
        let entries = self.shared.table.lock().len() as u64;
        self.shared.save_order((entries / 4).max(SAVED_USES_MIN))
    }

    /// Flushes, saves what the policy knows, and closes everything.
    pub(crate) fn close(mut self) -> Result<()> {
        self.finish()
    }

    /// Waits until what was found at opening is settled: orphans are removed.
    #[cfg(test)]
    pub(crate) fn wait_for_sweep(&mut self) {
        if let Some(sweeper) = self.sweeper.take() {
            let _ = sweeper.join();
        }
    }

    pub(crate) fn stats(&self) -> WarmStats {
        let shared = &*self.shared;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (entries, bytes, budget_bytes) = {
            let table = shared.table.lock();
            (table.len() as u64, table.bytes(), table.budget())
        };
        let now = (shared.clock)();
        let health = shared.health.lock();
        let degraded = health.degraded();
        let count = &shared.count;
        WarmStats {
            entries,
            bytes,
            budget_bytes,
            hits: read(&count.hits),
            misses: read(&count.misses),
            damaged: read(&count.damaged),
            bytes_read: read(&count.bytes_read),
            puts: read(&count.puts),
            bytes_stored: read(&count.bytes_stored),
            file_bytes_written: read(&count.file_bytes_written),
            index_bytes_written: shared.index.bytes_written(),
            index_bytes: shared.index.bytes_on_drive(),
            evicted: read(&count.evicted),
            refused: read(&count.refused),
            orphans_removed: read(&count.orphans_removed),
            errors: read(&count.errors),
            last_error: shared.last_error.lock().clone(),
            degraded: degraded.map(|degraded| degraded.reason.clone()),
            degraded_seconds: degraded
                .map_or(0.0, |degraded| now.saturating_sub(degraded.since).as_secs_f64()),
            degraded_count: health.degraded_count,
            index_rebuilt: shared.index_rebuilt.clone(),
            buffer_bytes: shared.reader.buffers.free_bytes() as u64,
            read_mode: shared.read_mode.clone(),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(sweeper) = self.sweeper.take() {
            let _ = sweeper.join();
        }
        let flushed = self.shared.flush();
        let saved = self.shared.save_order(1);
        self.shared.index.close();
        flushed.and(saved)
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // `close` has done it already if it was called: then there is nothing to flush.
        if self.sweeper.is_some() || !self.shared.stop.load(Ordering::Relaxed) {
            let _ = self.finish();
        }
    }
}

/// What was asked for, or what the file system offers, with the reason.
fn read_mode(asked: ReadMode, storage: &dyn Storage, folder: &Folder) -> (bool, String) {
    match asked {
        ReadMode::Buffered => (false, "buffered, as set".to_owned()),
        ReadMode::Auto => (false, "buffered, the default".to_owned()),
        ReadMode::Direct => {
            let mut page = Buffers::new(0).take(1);
            let read = storage.open(&folder.marker(), true);
            match read.and_then(|file| file.read_at(0, page.bytes_mut())) {
                Ok(_) => (true, "direct, as set".to_owned()),
                Err(error) => (false, format!("buffered: direct reads were set, and refused ({error})")),
            }
        }
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

/// The most that [`WarmSettings::small_max`] can be.
const SMALL_LIMIT: usize = 1 << 20;

/// A flush saves the order after as many uses, or a quarter of the entries.
const SAVED_USES_MIN: u64 = 1 << 10;

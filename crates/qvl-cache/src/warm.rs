//! The warm tier: values on a drive under a byte budget, with an index in RocksDB.
//!
//! - `format.rs` the bytes on the drive; `folder.rs` the folder; `index.rs` RocksDB
//! - `table.rs` what is there and who leaves (pure); `health.rs` whether the drive works (pure)
//! - `read.rs` reading a file; `recover.rs` opening
//! - this file: the operations, in which order things reach the drive, and what is counted
//!
//! Locks, in the order in which they are taken: `room` (who makes room), `flushing`, `writer` (the order of index
//! changes is that of the table's), `table`. Only `table` is held for reading, never during I/O.
//!
//! What holds after a power loss: a value put before a [`Warm::flush`] that returned is there. Of a flushed value that
//! was replaced later, the old or the new one is there. A file is not named by the index again once it was removed; a
//! name is never used twice. Whatever else is found is noticed by its checksum and is a miss.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::buffers::Buffers;
use crate::key::{self, KeyId};
use crate::policy::{Leave, Policy};
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

use folder::{Folder, io_error};
use format::{Place, Record};
use health::{Gate, Health};
use index::{Changes, Index};
use read::{ReadError, Reader, Value};
use table::{Entry, NoRoom, Step, Superseded, Table};

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
    pub(crate) read_mode: ReadMode,
    /// Threads that read one large value together, at most.
    pub(crate) read_threads: usize,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) spill: Option<Arc<dyn Spill>>,
    pub(crate) buffers: Buffers,
    pub(crate) clock: Clock,
}

/// The default of [`WarmSettings::small_max`].
pub(crate) const SMALL_MAX: usize = 16 << 10;

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
    /// The policy would give it up before anything that is there.
    NotWorth,
    /// All that is there is pinned.
    Pinned,
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
            Self::NotWorth => f.write_str("what is there is worth more"),
            Self::Pinned => f.write_str("all that is there is pinned"),
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

/// What a stored value of this many bytes takes of the budget: files are rounded up to the file system's blocks, and
/// an entry has its record, its inode and its place in memory.
pub(crate) fn charge_of(place: Place, stored_bytes: u64) -> u64 {
    const BLOCK_BYTES: u64 = 4096;
    const ENTRY_BYTES: u64 = 512;
    let bytes = match place {
        Place::Inline => stored_bytes,
        Place::File => stored_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES),
    };
    bytes.saturating_add(ENTRY_BYTES)
}

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
    spill: Option<Arc<dyn Spill>>,
    clock: Clock,
    room: Mutex<()>,
    flushing: Mutex<()>,
    writer: Mutex<()>,
    table: Mutex<Table>,
    health: Mutex<Health>,
    /// Deletions that the index refused, for the next change.
    owed: Mutex<HashSet<KeyId>>,
    generation: AtomicU64,
    stop: AtomicBool,
    count: Counts,
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
        let WarmSettings { storage, policy, budget_bytes, small_max, .. } = settings;
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
            spill: settings.spill,
            clock: settings.clock,
            room: Mutex::new(()),
            flushing: Mutex::new(()),
            writer: Mutex::new(()),
            table: Mutex::new(table),
            health: Mutex::default(),
            owed: Mutex::default(),
            generation: AtomicU64::new(recovered.next_generation),
            stop: AtomicBool::new(false),
            count: Counts { damaged: AtomicU64::new(recovered.damaged), ..Counts::default() },
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
            match shared.read(id, &found.record) {
                Ok(read) if *read.key == *key => {
                    add(&shared.count.hits, 1);
                    return Found::Hit { value: read.value, cost: read.cost };
                }
                // Another key with the same id.
                Ok(_) => break,
                Err(ReadError::Unavailable(_)) => {
                    add(&shared.count.errors, 1);
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

    /// Keeps a value from being evicted until as many [`unpin`](Self::unpin). Returns whether it is here.
    pub(crate) fn pin(&self, id: KeyId) -> bool {
        self.shared.table.lock().pin(id)
    }

    /// The reverse of one [`pin`](Self::pin).
    pub(crate) fn unpin(&self, id: KeyId) {
        self.shared.table.lock().unpin(id);
    }

    /// Changes the budget, and evicts until it holds before this returns (pinned values stay).
    pub(crate) fn resize(&self, budget_bytes: u64) -> Result<()> {
        self.shared.table.lock().set_budget(budget_bytes);
        self.shared.make_room(None).map(|_| ())
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

impl Shared {
    fn put(&self, key: &[u8], id: KeyId, value: &[u8], cost: f32) -> Result<Put> {
        let place = if value.len() <= self.small_max { Place::Inline } else { Place::File };
        let key_bytes = u32::try_from(key.len()).unwrap_or(u32::MAX);
        let stored_bytes = format::stored_bytes(value.len() as u64, key_bytes).unwrap_or(u64::MAX);
        let (charge, budget_bytes) = (charge_of(place, stored_bytes), self.table.lock().budget());
        if charge > budget_bytes {
            return Ok(self.refuse(id, Refusal::TooLarge { bytes: charge, budget_bytes }));
        }
        let gate = self.health.lock().gate((self.clock)());
        match gate {
            Gate::Open => {}
            Gate::Probe => self.repair()?,
            Gate::Shut(reason) => return Ok(self.refuse(id, Refusal::Degraded { reason })),
        }
        match self.make_room(Some((id, charge, cost)))? {
            None => {}
            Some(NoRoom::Busy) => return Ok(Put::Refused(Refusal::Busy)),
            Some(NoRoom::NotWorth) => return Ok(Put::Refused(Refusal::NotWorth)),
            Some(NoRoom::Pinned) => return Ok(Put::Refused(Refusal::Pinned)),
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let written = self.write(key, id, value, cost, place, generation);
        match written {
            Ok(true) => {
                self.health.lock().succeeded();
                Ok(Put::Stored)
            }
            Ok(false) => {
                self.abort(id, Some(generation).filter(|_| place == Place::File), Leave::Removed);
                Ok(Put::Refused(Refusal::Removed))
            }
            Err(error) => {
                self.abort(id, Some(generation).filter(|_| place == Place::File), Leave::Evicted);
                self.write_failed(&error);
                Err(error)
            }
        }
    }

    /// `false` if the key was removed meanwhile.
    fn write(
        &self,
        key: &[u8],
        id: KeyId,
        value: &[u8],
        cost: f32,
        place: Place,
        generation: u64,
    ) -> Result<bool> {
        let too_long = || Error::Setting {
            name: "key",
            value: key::shown(key),
            reason: "a key has at most 4 GiB".to_owned(),
        };
        let footer = format::encode_footer(key, value, generation, cost).ok_or_else(too_long)?;
        let mut changes = Changes::default();
        match place {
            Place::Inline => changes.small(id, [value, &footer].concat()),
            Place::File => {
                let path = self.folder.value(generation);
                let written = self.storage.write_new(&path, &[value, &footer]);
                written.map_err(|source| io_error(&path, "write", source))?;
                add(&self.count.file_bytes_written, (value.len() + footer.len()) as u64);
            }
        }
        let removable = {
            let _writer = self.writer.lock();
            let before = {
                let table = self.table.lock();
                if table.cancelled(id) {
                    return Ok(false);
                }
                table.before(id, place)
            };
            let (key_bytes, value_bytes) = (key.len() as u32, value.len() as u64);
            let record = Record { place, key_bytes, value_bytes, generation, cost, before };
            changes.record(id, record);
            self.pay_owed(&mut changes, Some(id));
            self.index.write(changes).map_err(|what| self.index_error("writing the index", what))?;
            self.table.lock().publish(id, record)
        };
        if let Some((generation, charge)) = removable {
            self.discard(Place::File, generation, charge);
        }
        Ok(true)
    }

    /// Ends a write that came to nothing, with its file and the key's older value.
    fn abort(&self, id: KeyId, generation: Option<u64>, why: Leave) {
        if let Some(generation) = generation {
            self.remove_file(generation);
        }
        let older = {
            let _writer = self.writer.lock();
            let older = self.table.lock().abort(id, true, why);
            self.forget_in_index(id);
            older
        };
        self.discard_entry(older);
    }

    /// Refuses a value that was not begun. An older value of the key would be wrong now.
    fn refuse(&self, id: KeyId, refusal: Refusal) -> Put {
        self.forget(id, None);
        Put::Refused(refusal)
    }

    /// Makes room for a value, or until the budget holds. `None` is success.
    fn make_room(&self, begin: Option<(KeyId, u64, f32)>) -> Result<Option<NoRoom>> {
        let _room = self.room.lock();
        if let Some((id, charge, cost)) = begin
            && let Err(no) = self.table.lock().begin(id, charge, cost)
        {
            return Ok(Some(no));
        }
        let writing = begin.map(|(id, ..)| id);
        let give_up = |why| {
            if let Some(id) = writing {
                let older = {
                    let _writer = self.writer.lock();
                    let older = self.table.lock().abort(id, false, why);
                    if older.is_some() {
                        self.forget_in_index(id);
                    }
                    older
                };
                self.discard_entry(older);
            }
        };
        loop {
            let step = self.table.lock().make_room(writing);
            match step {
                Step::Reserved => return Ok(None),
                Step::Evict(id, entry) => self.evict(id, &entry),
                Step::Flush => {
                    if let Err(error) = self.flush() {
                        give_up(Leave::Removed);
                        return Err(error);
                    }
                }
                Step::No(no) => {
                    give_up(Leave::Evicted);
                    return Ok(Some(no));
                }
            }
        }
    }

    fn evict(&self, id: KeyId, entry: &Entry) {
        if let Some(spill) = &self.spill {
            match self.read(id, &entry.record) {
                Ok(read) => spill.spill(&read.key, read.value, read.cost),
                Err(ReadError::Unavailable(_)) => add(&self.count.errors, 1),
                Err(ReadError::Damaged(_) | ReadError::Missing) => add(&self.count.damaged, 1),
            }
        }
        {
            let _writer = self.writer.lock();
            if self.table.lock().take(id, Some(entry.record.generation)).is_some() {
                self.forget_in_index(id);
            }
        }
        self.discard(entry.record.place, entry.record.generation, entry.charge);
        add(&self.count.evicted, 1);
    }

    /// Removes an entry, if it is this generation (or any). Returns whether it was there.
    fn forget(&self, id: KeyId, generation: Option<u64>) -> bool {
        let entry = {
            let _writer = self.writer.lock();
            let entry = self.table.lock().take(id, generation);
            if entry.is_some() {
                self.forget_in_index(id);
            }
            entry
        };
        self.discard_entry(entry);
        entry.is_some()
    }

    /// With `writer` held.
    fn forget_in_index(&self, id: KeyId) {
        let mut changes = Changes::default();
        changes.forget(id);
        if let Err(what) = self.index.write(changes) {
            self.owed.lock().insert(id);
            self.write_failed(&self.index_error("writing the index", what));
        }
    }

    /// Adds deletions that failed before, except of a key that is written now.
    fn pay_owed(&self, changes: &mut Changes, writing: Option<KeyId>) {
        let mut owed = self.owed.lock();
        if owed.is_empty() {
            return;
        }
        let table = self.table.lock();
        for id in owed.drain() {
            if Some(id) != writing && table.get(id).is_none() {
                changes.forget(id);
            }
        }
    }

    /// Removes what an entry holds, unless it is leaving: then whoever evicts it does.
    fn discard_entry(&self, entry: Option<Entry>) {
        if let Some(entry) = entry.filter(|entry| entry.slot.is_some()) {
            self.discard(entry.record.place, entry.record.generation, entry.charge);
        }
    }

    fn discard(&self, place: Place, generation: u64, charge: u64) {
        if place == Place::File {
            self.remove_file(generation);
        }
        self.table.lock().release(charge);
    }

    /// One that cannot be removed is an orphan, and tried again at the next opening.
    fn remove_file(&self, generation: u64) {
        if self.storage.remove(&self.folder.value(generation)).is_err() {
            add(&self.count.errors, 1);
        }
    }

    fn read(&self, id: KeyId, record: &Record) -> Result<Value, ReadError> {
        let value = match record.place {
            Place::File => {
                let path = self.folder.value(record.generation);
                self.reader.read(&*self.storage, &path, record)?
            }
            Place::Inline => {
                let stored = self.index.small(id)?.ok_or(ReadError::Missing)?;
                // Of any generation: it may have been replaced since the table was asked.
                let decoded = format::decode_stored(&stored);
                let (value, key, tail) = decoded.map_err(|wrong| ReadError::Damaged(wrong.to_string()))?;
                Value { value: stored.slice_ref(value), key: stored.slice_ref(key), cost: tail.cost }
            }
        };
        add(&self.count.bytes_read, (value.value.len() + value.key.len() + format::TAIL_BYTES) as u64);
        Ok(value)
    }

    fn flush(&self) -> Result<()> {
        let flushed = self.flush_all();
        if let Err(error) = &flushed {
            self.write_failed(error);
        }
        flushed
    }

    fn flush_all(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        let (dirty, superseded) = {
            let mut table = self.table.lock();
            (std::mem::take(&mut table.dirty), std::mem::take(&mut table.superseded))
        };
        match self.flush_these(&dirty, &superseded) {
            Ok((unneeded, needed)) => {
                self.table.lock().superseded.extend(needed);
                for old in unneeded {
                    self.discard(old.place, old.generation, old.charge);
                }
                Ok(())
            }
            Err(error) => {
                // Synchronised again with the next flush; those that are gone by then are passed over.
                let mut table = self.table.lock();
                table.dirty.extend(dirty);
                table.superseded.extend(superseded);
                Err(error)
            }
        }
    }

    /// Returns what was superseded and is not needed any more, and what still is.
    fn flush_these(
        &self,
        dirty: &[(KeyId, u64)],
        superseded: &[Superseded],
    ) -> Result<(Vec<Superseded>, Vec<Superseded>)> {
        let mut folders = HashSet::new();
        for (id, generation) in dirty {
            if !self.is_current(*id, *generation) {
                continue;
            }
            let path = self.folder.value(*generation);
            match self.storage.sync(&path) {
                Ok(()) => _ = folders.insert(self.folder.value_folder(*generation)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if self.is_current(*id, *generation) && self.forget(*id, Some(*generation)) {
                        add(&self.count.damaged, 1);
                    }
                }
                Err(source) => {
                    // What the drive holds of it now is not known, and a second try would not say.
                    if self.forget(*id, Some(*generation)) {
                        add(&self.count.damaged, 1);
                    }
                    return Err(io_error(&path, "synchronise", source));
                }
            }
        }
        for folder in folders {
            self.storage.sync_folder(&folder).map_err(|source| io_error(&folder, "synchronise", source))?;
        }
        let (unneeded, needed) = {
            let _writer = self.writer.lock();
            let mut changes = Changes::default();
            let (unneeded, needed) = {
                let mut table = self.table.lock();
                for (id, generation) in dirty {
                    if let Some(record) = table.synced(*id, *generation) {
                        changes.record(*id, record);
                    }
                }
                let (unneeded, needed): (Vec<_>, Vec<_>) =
                    superseded.iter().copied().partition(|old| table.unneeded(old));
                for old in unneeded.iter().filter(|old| old.place == Place::Inline) {
                    if table.get(old.id).is_none_or(|entry| entry.record.place == Place::File) {
                        changes.forget_small(old.id);
                    }
                }
                (unneeded, needed)
            };
            self.pay_owed(&mut changes, None);
            self.index.write(changes).map_err(|what| self.index_error("writing the index", what))?;
            (unneeded, needed)
        };
        self.index.sync().map_err(|what| self.index_error("synchronising the index", what))?;
        Ok((unneeded, needed))
    }

    fn is_current(&self, id: KeyId, generation: u64) -> bool {
        self.table.lock().get(id).is_some_and(|entry| entry.record.generation == generation)
    }

    /// Saves the order if there were as many uses since it was.
    fn save_order(&self, uses_min: u64) -> Result<()> {
        let order = {
            let mut table = self.table.lock();
            if table.unsaved_uses < uses_min {
                return Ok(());
            }
            table.unsaved_uses = 0;
            table.order()
        };
        let path = self.folder.order();
        let saved = self.folder.replace(&path, &format::encode_order(&order), &*self.storage);
        let bytes = saved.map_err(|source| io_error(&path, "write", source))?;
        add(&self.count.file_bytes_written, bytes);
        Ok(())
    }

    /// Before the first write after a failure: RocksDB leaves its read-only state only when it is opened again, and
    /// folders may have gone with a drive that came back.
    fn repair(&self) -> Result<()> {
        let repaired = if self.folder.marker().is_file() {
            let folders = self.folder.create_value_folders(&*self.storage);
            folders.map_err(|source| io_error(self.folder.path(), "create the folders in", source)).and_then(
                |()| {
                    let _writer = self.writer.lock();
                    self.index
                        .reopen()
                        .map_err(|error| self.index_error("opening the index", format!("{error:?}")))
                },
            )
        } else {
            Err(io_error(self.folder.path(), "find the folder's marker in", io::ErrorKind::NotFound.into()))
        };
        if let Err(error) = &repaired {
            self.write_failed(error);
        }
        repaired
    }

    fn write_failed(&self, error: &Error) {
        add(&self.count.errors, 1);
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        self.health.lock().failed((self.clock)(), format!("{error}{source}"));
    }

    fn index_error(&self, operation: &'static str, what: String) -> Error {
        Error::Tier { tier: self.folder.index().display().to_string(), operation, source: what.into() }
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

//! How values come in, leave and reach the drive: in which order files, index and table change.

use std::io;
use std::sync::atomic::Ordering;

use hashbrown::HashSet;

use super::folder::{Content, fan_of, io_error};
use super::format::{self, Place, Record, Tail};
use super::health::Gate;
use super::index::Changes;
use super::read::{ReadError, Value};
use super::table::{Entry, NoRoom, Step, Superseded};
use super::{Put, Refusal, Shared, add, charge_of};
use crate::key::{self, KeyId};
use crate::policy::Leave;
use crate::{Error, Result};

impl Shared {
    pub(super) fn put(&self, key: &[u8], id: KeyId, value: &[u8], cost: f32) -> Result<Put> {
        let place = match value.len() {
            small if small <= self.small_max => Place::Inline,
            large if large >= self.alone_min => Place::Alone,
            _ => Place::File,
        };
        let key_bytes = u32::try_from(key.len()).unwrap_or(u32::MAX);
        let charge = charge_of(place, value.len() as u64, key_bytes);
        let budget_bytes = self.table.lock().budget();
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
            Some(NoRoom::NotWorth | NoRoom::Pinned) => return Ok(Put::Refused(Refusal::NotWorth)),
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let written = self.write(key, id, value, cost, place, generation);
        match written {
            Ok(true) => {
                self.health.lock().succeeded();
                Ok(Put::Stored)
            }
            Ok(false) => {
                self.abort(id, place, generation, Leave::Removed);
                Ok(Put::Refused(Refusal::Removed))
            }
            Err(error) => {
                self.abort(id, place, generation, Leave::Evicted);
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
        let tail = Tail::of(key, value, generation, cost).ok_or_else(too_long)?;
        let footer = format::encode_footer(key, &tail);
        let mut changes = Changes::default();
        match place {
            Place::Inline => changes.small(id, [value, &footer].concat()),
            Place::File => self.write_file(Content::Whole, generation, &[value, &footer])?,
            Place::Alone => {
                self.write_file(Content::Value, generation, &[value])?;
                self.write_file(Content::Footer, generation, &[&footer])?;
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
            let record = Record { before, ..Record::of(place, key, &tail) };
            changes.record(id, record);
            self.pay_owed(&mut changes, Some(id));
            self.index.write(changes).map_err(|what| self.index_error("writing the index", what))?;
            self.table.lock().publish(id, record)
        };
        self.settled.notify_all();
        if let Some(old) = removable {
            self.discard(old.place, old.generation, old.charge);
        }
        Ok(true)
    }

    fn write_file(&self, content: Content, generation: u64, parts: &[&[u8]]) -> Result<()> {
        let path = self.folder.file(content, generation);
        self.storage.write_new(&path, parts).map_err(|source| io_error(&path, "write", source))?;
        add(&self.count.file_bytes_written, parts.iter().map(|part| part.len() as u64).sum());
        Ok(())
    }

    /// Ends a write that came to nothing, with its files and the key's older value.
    fn abort(&self, id: KeyId, place: Place, generation: u64, why: Leave) {
        self.remove_files(place, generation);
        let older = {
            let _writer = self.writer.lock();
            let older = self.table.lock().abort(id, true, why);
            self.forget_in_index(id);
            older
        };
        self.settled.notify_all();
        self.discard_entry(older);
    }

    /// Refuses a value that was not begun. An older value of the key would be wrong now.
    fn refuse(&self, id: KeyId, refusal: Refusal) -> Put {
        self.forget(id, None);
        Put::Refused(refusal)
    }

    /// Makes room for a value, or until the budget holds. `None` is success.
    pub(super) fn make_room(&self, begin: Option<(KeyId, u64, f32)>) -> Result<Option<NoRoom>> {
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

    /// Evicts until the budget holds. What others are writing cannot be evicted, and what they are removing counts until
    /// it is gone: this waits for both.
    pub(super) fn shrink(&self) -> Result<()> {
        loop {
            let seen = self.table.lock().settled();
            self.make_room(None)?;
            let mut table = self.table.lock();
            while table.bytes() > table.budget() && table.settled() == seen {
                self.settled.wait(&mut table);
            }
            if table.bytes() <= table.budget() {
                return Ok(());
            }
        }
    }

    fn evict(&self, id: KeyId, entry: &Entry) {
        if let Some(spill) = &self.spill {
            match self.read(id, &entry.record) {
                Ok(read) => spill.spill(&read.key, read.value, read.cost),
                Err(ReadError::Unavailable(error)) => {
                    self.failed(format!("reading what is evicted: {error}"));
                }
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
    pub(super) fn forget(&self, id: KeyId, generation: Option<u64>) -> bool {
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
        self.remove_files(place, generation);
        self.table.lock().release(charge);
        self.settled.notify_all();
    }

    /// One that cannot be removed is an orphan, and tried again at the next opening.
    fn remove_files(&self, place: Place, generation: u64) {
        for path in self.folder.files(place, generation) {
            if let Err(error) = self.storage.remove(&path) {
                self.failed(format!("{}: cannot remove: {error}", path.display()));
            }
        }
    }

    pub(super) fn read(&self, id: KeyId, record: &Record) -> Result<Value, ReadError> {
        let value = match record.place {
            Place::File | Place::Alone => self.reader.read(&*self.storage, &self.folder, record)?,
            Place::Inline => {
                let stored = self.index.small(id)?.ok_or(ReadError::Missing)?;
                // Of any generation: it may have been replaced since the table was asked.
                let decoded = format::decode_stored(&stored);
                let (value, key, tail) = decoded.map_err(|wrong| ReadError::Damaged(wrong.to_string()))?;
                let (value, key) = (stored.slice_ref(value), stored.slice_ref(key));
                Value { value, key, cost: tail.cost, bytes_read: stored.len() as u64 }
            }
        };
        add(&self.count.bytes_read, value.bytes_read);
        Ok(value)
    }

    pub(super) fn flush(&self) -> Result<()> {
        let flushed = self.flush_all();
        if let Err(error) = &flushed {
            self.write_failed(error);
        }
        flushed
    }

    fn flush_all(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        let flushed = self.flush_what_is_dirty();
        // What it took away from the table, to remove it, is back there or gone.
        self.table.lock().settle();
        self.settled.notify_all();
        flushed
    }

    fn flush_what_is_dirty(&self) -> Result<()> {
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
            let Some(place) = self.place_of(*id, *generation) else { continue };
            for path in self.folder.files(place, *generation) {
                match self.storage.sync(&path) {
                    Ok(()) => _ = folders.insert(self.folder.value_folder(fan_of(*generation))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        if self.forget(*id, Some(*generation)) {
                            add(&self.count.damaged, 1);
                        }
                        break;
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
                    if table.get(old.id).is_none_or(|entry| entry.record.place != Place::Inline) {
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

    /// Where a generation is, if it is still the key's.
    fn place_of(&self, id: KeyId, generation: u64) -> Option<Place> {
        let record = self.table.lock().get(id)?.record;
        (record.generation == generation).then_some(record.place)
    }

    /// Saves the order if there were as many uses since it was.
    pub(super) fn save_order(&self, uses_min: u64) -> Result<()> {
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
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let reason = format!("{error}{source}");
        self.failed(reason.clone());
        self.health.lock().failed((self.clock)(), reason);
    }

    /// Counts an error and keeps what it says.
    pub(super) fn failed(&self, what: String) {
        add(&self.count.errors, 1);
        *self.last_error.lock() = Some(what);
    }

    fn index_error(&self, operation: &'static str, what: String) -> Error {
        Error::Tier { tier: self.folder.index().display().to_string(), operation, source: what.into() }
    }
}

//! Opening: the records are read, what a power loss left half done is settled, and what nobody names is removed.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use hashbrown::{HashMap, HashSet};

use super::folder::{self, Content, FAN_OUT, Folder, fan_of, io_error};
use super::format::{self, Place, Record, TAIL_BYTES, Tail};
use super::index::{Changes, Index, OpenError};
use super::read::{self, Reader};
use super::{Shared, charge_of};
use crate::key::KeyId;
use crate::storage::Storage;
use crate::{Error, Result};

/// What was found at opening.
pub(crate) struct Recovered {
    pub(crate) index: Index,
    /// Those that would leave first coming first, each with its uses.
    pub(crate) records: Vec<(KeyId, Record, u32)>,
    pub(crate) damaged: u64,
    /// Why the index was made again from the files.
    pub(crate) rebuilt: Option<String>,
    pub(crate) next_generation: u64,
}

/// Bits of a generation that count within one opening.
const COUNTER_BITS: u32 = 40;

pub(crate) fn recover(
    folder: &Folder,
    small_max: usize,
    storage: &dyn Storage,
    reader: &Reader,
) -> Result<Recovered> {
    let mut damaged = 0;
    let path = folder.index();
    let (index, mut records, rebuilt) = match open_index(folder, small_max, &mut damaged) {
        Ok((index, records)) => (index, records, None),
        Err(OpenError::InUse) => return Err(Error::InUse { path: folder.path().to_owned() }),
        Err(OpenError::Refused(source)) => {
            let (tier, source) = (path.display().to_string(), Box::new(source));
            return Err(Error::Tier { tier, operation: "opening the index", source });
        }
        Err(OpenError::Damaged(what)) => {
            damaged = 0;
            set_aside(folder, storage)?;
            let records = rebuild(folder, storage)?;
            let reopened = Index::open(&path, small_max).map_err(|error| again(folder, &error))?;
            let mut changes = Changes::default();
            for (id, record) in &records {
                changes.record(*id, *record);
            }
            reopened
                .write(changes)
                .and_then(|()| reopened.sync())
                .map_err(|what| tier_error(folder, what))?;
            (reopened, records, Some(what))
        }
    };
    settle(folder, storage, reader, &index, &mut records, &mut damaged)
        .map_err(|what| tier_error(folder, what))?;
    let records = in_order(records, read_order(folder, storage));
    Ok(Recovered {
        index,
        records,
        damaged,
        rebuilt,
        next_generation: u64::from(folder.opened) << COUNTER_BITS,
    })
}

fn open_index(
    folder: &Folder,
    small_max: usize,
    damaged: &mut u64,
) -> Result<(Index, Vec<(KeyId, Record)>), OpenError> {
    let path = folder.index();
    let there = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
    if there && !path.join("CURRENT").is_file() {
        if !was_begun_only(&path) {
            // RocksDB would begin a new one beside the remains.
            return Err(OpenError::Damaged("the file CURRENT is missing".to_owned()));
        }
        let removed = std::fs::remove_dir_all(&path);
        removed.map_err(|error| OpenError::Damaged(format!("its beginning cannot be removed: {error}")))?;
    }
    if !there && !folder.fresh && has_values(folder) {
        return Err(OpenError::Damaged("the index is missing".to_owned()));
    }
    let index = Index::open(&path, small_max)?;
    let mut records = Vec::new();
    let mut bad = Vec::new();
    let read = index.records(|id, record| match record {
        Some(record) => records.push((id, record)),
        None => bad.push(id),
    });
    read.map_err(OpenError::Damaged)?;
    *damaged += bad.len() as u64;
    let mut changes = Changes::default();
    for id in bad {
        changes.forget(id);
    }
    index.write(changes).map_err(OpenError::Damaged)?;
    Ok((index, records))
}

fn has_values(folder: &Folder) -> bool {
    (0..FAN_OUT).any(|fan| {
        std::fs::read_dir(folder.value_folder(fan)).is_ok_and(|mut entries| entries.next().is_some())
    })
}

/// Renames a damaged index, for whoever wants to look at it; one from before makes room.
fn set_aside(folder: &Folder, storage: &dyn Storage) -> Result<()> {
    let aside = |n: u32| folder.path().join(format!("index.damaged-{n}"));
    let n = (1..u32::MAX).find(|n| !aside(*n).exists()).unwrap_or(u32::MAX);
    if n > 1 {
        let older = aside(n - 1);
        storage.remove_folder(&older).map_err(|source| io_error(&older, "remove", source))?;
    }
    if folder.index().exists() {
        let renamed = storage.rename(&folder.index(), &aside(n));
        renamed.map_err(|source| io_error(&folder.index(), "set aside", source))?;
    }
    Ok(())
}

/// Every value's files say which key's value it is; of several of one key the youngest counts. Values are checked when
/// they are read.
fn rebuild(folder: &Folder, storage: &dyn Storage) -> Result<Vec<(KeyId, Record)>> {
    let mut found: HashMap<KeyId, Record> = HashMap::new();
    for fan in 0..FAN_OUT {
        let path = folder.value_folder(fan);
        let files = storage.list(&path).map_err(|source| io_error(&path, "read the folder", source))?;
        let files: HashMap<PathBuf, u64> = files.into_iter().collect();
        for path in files.keys() {
            let (place, generation) = match folder::named(path) {
                Some((Content::Whole, generation)) => (Place::File, generation),
                Some((Content::Value, generation)) => (Place::Alone, generation),
                Some((Content::Footer, _)) | None => continue,
            };
            let described = describe(folder, place, generation, &files, storage);
            let Some((id, record)) = described else { continue };
            let known = found.entry(id).or_insert(record);
            if known.generation < record.generation {
                *known = record;
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// What a value's files say of themselves, if that is whole. `files` are those of its folder with their lengths.
fn describe(
    folder: &Folder,
    place: Place,
    generation: u64,
    files: &HashMap<PathBuf, u64>,
    storage: &dyn Storage,
) -> Option<(KeyId, Record)> {
    let value_bytes = *files.get(&folder.value(place, generation))?;
    let path = folder.files(place, generation).last()?;
    let bytes = *files.get(&path)?;
    let (key, tail) = read_footer(&path, bytes, storage)?;
    let record = Record::of(place, &key, &tail);
    // With a footer behind it a value's file is the only one, and its length is that of all.
    let all_bytes = tail.stored_bytes()?;
    let lengths_fit = match place {
        Place::Inline => false,
        Place::File => bytes == all_bytes,
        Place::Alone => value_bytes.checked_add(bytes) == Some(all_bytes) && value_bytes == tail.value_bytes,
    };
    (lengths_fit && tail.generation == generation).then(|| (KeyId::of(&key), record))
}

/// Key and tail from the end of a file.
fn read_footer(path: &Path, bytes: u64, storage: &dyn Storage) -> Option<(Vec<u8>, Tail)> {
    let mut tail = [0; TAIL_BYTES];
    storage.read_at(path, bytes.checked_sub(TAIL_BYTES as u64)?, &mut tail).ok()?;
    let footer_bytes = format::footer_bytes(format::peek_tail(&tail).ok()?.key_bytes);
    let start = bytes.checked_sub(footer_bytes)?;
    let mut footer = vec![0; usize::try_from(footer_bytes).ok()?];
    storage.read_at(path, start, &mut footer).ok()?;
    let (key, tail) = format::decode_footer(&footer).ok()?;
    Some((key.to_vec(), tail))
}

/// Whether somebody was stopped while they created the index: it never held anything.
fn was_begun_only(index: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(index) else { return false };
    entries.all(|entry| {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let holds_data = [".sst", ".blob"].iter().any(|end| name.ends_with(end))
            || name.ends_with(".log") && entry.metadata().map_or(true, |metadata| metadata.len() > 0);
        !holds_data
    })
}

/// Values that replaced another and were not known to be on the drive: each is read, and the older one takes its place
/// if it is not whole.
fn settle(
    folder: &Folder,
    storage: &dyn Storage,
    reader: &Reader,
    index: &Index,
    records: &mut Vec<(KeyId, Record)>,
    damaged: &mut u64,
) -> Result<(), String> {
    let mut changes = Changes::default();
    records.retain_mut(|(id, record)| {
        let Some((place, generation)) = record.before.take() else { return true };
        let whole = match record.place {
            // Synchronised before what it replaced is let go of.
            Place::File | Place::Alone => {
                is_whole(folder, storage, reader, record) && is_synced(folder, storage, record)
            }
            Place::Inline => true,
        };
        if whole {
            if record.place != Place::Inline {
                changes.forget_small(*id);
            }
            changes.record(*id, *record);
            return true;
        }
        *damaged += 1;
        let older = match place {
            Place::File | Place::Alone => older_file(folder, place, generation, storage, reader, *id),
            Place::Inline => older_small(index, *id, generation),
        };
        match older {
            Some(older) => {
                *record = older;
                changes.record(*id, older);
                true
            }
            None => {
                changes.forget(*id);
                false
            }
        }
    });
    index.write(changes)
}

/// All of its files, what a read does not look at too.
fn is_whole(folder: &Folder, storage: &dyn Storage, reader: &Reader, record: &Record) -> bool {
    let footer_is_whole = || match record.short_key() {
        // Others were compared when it was read.
        Some(_) => read::footer_key(storage, folder, record).is_ok(),
        None => true,
    };
    reader.read(storage, folder, record).is_ok() && footer_is_whole()
}

/// Puts its files and their names on the drive.
fn is_synced(folder: &Folder, storage: &dyn Storage, record: &Record) -> bool {
    folder.files(record.place, record.generation).all(|path| storage.sync(&path).is_ok())
        && storage.sync_folder(&folder.value_folder(fan_of(record.generation))).is_ok()
}

fn older_file(
    folder: &Folder,
    place: Place,
    generation: u64,
    storage: &dyn Storage,
    reader: &Reader,
    id: KeyId,
) -> Option<Record> {
    let files = storage.list(&folder.value_folder(fan_of(generation))).ok()?.into_iter().collect();
    let (found, record) = describe(folder, place, generation, &files, storage)?;
    let whole = found == id && reader.read(storage, folder, &record).is_ok();
    whole.then_some(record)
}

fn older_small(index: &Index, id: KeyId, generation: u64) -> Option<Record> {
    let stored = index.small(id).ok()??;
    let (_, key, tail) = format::decode_stored(&stored).ok()?;
    let matches = KeyId::of(key) == id && tail.generation == generation;
    matches.then(|| Record::of(Place::Inline, key, &tail))
}

fn read_order(folder: &Folder, storage: &dyn Storage) -> Vec<(KeyId, u32)> {
    let read = || {
        let path = folder.order();
        let bytes = std::fs::metadata(&path).ok()?.len();
        let mut contents = vec![0; usize::try_from(bytes).ok().filter(|bytes| *bytes < 1 << 32)?];
        storage.read_at(&path, 0, &mut contents).ok()?;
        format::decode_order(&contents)
    };
    read().unwrap_or_default()
}

/// By the saved order; what came after it was saved is younger, by generation.
fn in_order(records: Vec<(KeyId, Record)>, order: Vec<(KeyId, u32)>) -> Vec<(KeyId, Record, u32)> {
    let known: HashMap<KeyId, (usize, u32)> =
        order.into_iter().enumerate().map(|(rank, (id, uses))| (id, (rank, uses))).collect();
    let mut ranked: Vec<_> = records
        .into_iter()
        .map(|(id, record)| {
            let (rank, uses) = known.get(&id).copied().unwrap_or((usize::MAX, 0));
            ((rank, record.generation), (id, record, uses))
        })
        .collect();
    ranked.sort_unstable_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, record)| record).collect()
}

fn again(folder: &Folder, error: &OpenError) -> Error {
    tier_error(folder, format!("{error:?}"))
}

fn tier_error(folder: &Folder, what: String) -> Error {
    let tier = folder.index().display().to_string();
    Error::Tier { tier, operation: "reading the index", source: what.into() }
}

/// In the background, once after opening: removes files of earlier openings that no entry names, and drops entries
/// of which a file is missing or of another length.
pub(crate) fn sweep(shared: &Shared) {
    let current = u64::from(shared.folder.opened) << COUNTER_BITS;
    let mut expected: HashMap<(Content, u64), (KeyId, u64)> = HashMap::new();
    let kept: HashSet<u64> = {
        let table = shared.table.lock();
        for (id, entry) in table.entries() {
            let record = entry.record;
            if record.generation >= current {
                continue;
            }
            for content in folder::contents(record.place) {
                let bytes = match content {
                    Content::Whole | Content::Value => record.file_bytes().unwrap_or(0),
                    Content::Footer => format::footer_bytes(record.key_bytes),
                };
                expected.insert((*content, record.generation), (id, bytes));
            }
        }
        // Replaced since the opening; what does so later is among the expected.
        table.superseded.iter().map(|old| old.generation).collect()
    };
    for fan in 0..FAN_OUT {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let path = shared.folder.value_folder(fan);
        let files = match shared.storage.list(&path) {
            Ok(files) => files,
            Err(error) => {
                // Nothing is known of these: they stay, and are found when they are read.
                expected.retain(|&(_, generation), _| fan_of(generation) != fan);
                shared.failed(format!("{}: cannot read the folder: {error}", path.display()));
                continue;
            }
        };
        for (path, bytes) in files {
            let named = folder::named(&path).filter(|(_, generation)| *generation < current);
            let Some((content, generation)) = named else { continue };
            match expected.get(&(content, generation)) {
                Some((_, expected_bytes)) if *expected_bytes == bytes => {
                    expected.remove(&(content, generation));
                }
                Some(_) => {}
                None if kept.contains(&generation) => {}
                None => match shared.storage.remove(&path) {
                    Ok(()) => _ = shared.count.orphans_removed.fetch_add(1, Ordering::Relaxed),
                    Err(error) => shared.failed(format!("{}: cannot remove: {error}", path.display())),
                },
            }
        }
    }
    for ((_, generation), (id, _)) in expected {
        if shared.forget(id, Some(generation)) {
            shared.count.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What records of an opening take of the budget.
pub(crate) fn charge_of_record(record: &Record) -> u64 {
    charge_of(record.place, record.value_bytes, record.key_bytes)
}

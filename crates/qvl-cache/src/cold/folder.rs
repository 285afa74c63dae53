//! A folder as a cold tier: one file a value, a byte budget, a policy that says who leaves.
//!
//! ```text
//! FOLDER/qvl-cold        the marker: version and fingerprint
//! FOLDER/qvl-cold-lock   locked while a process has the tier open
//! FOLDER/qvl-cold-tmp/   values being written; emptied at opening
//! FOLDER/values/a/b/ID   the values; ID has 32 hexadecimal digits, a and b are its first two
//! ```

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use super::format::{self, Compression, Damage, Header};
use super::ledger::{Entry, Ledger, Room};
use super::tally::Tally;
use super::{Cold, ColdStats, Kept, Refusal};
use crate::buffers::Buffers;
use crate::error::{Error, Result};
use crate::key::KeyId;
use crate::policy::Policy;
use crate::storage::{Disk, Storage};

/// The version of the folder's layout.
pub const FOLDER_VERSION: u32 = 1;

const MARKER: &str = "qvl-cold";
const MARKER_HEAD: &str = "qvl-cache cold tier, version ";
/// A marker is some lines; what is longer is none.
const MARKER_BYTES_MAX: u64 = 1 << 20;
const LOCK: &str = "qvl-cold-lock";
const TEMPORARY: &str = "qvl-cold-tmp";
/// After this many values they are synchronised without a `flush`, so that the list of them stays short.
const UNSYNCED_MAX: usize = 1024;

/// Settings of a [`FolderTier`].
#[non_exhaustive]
#[derive(Clone)]
pub struct FolderSettings {
    /// Bytes that all files of values may have together, with headers and keys. The file system's own overhead (blocks,
    /// names) is not counted.
    pub budget_bytes: u64,
    /// What the values are of: model, settings. A folder filled for something else is not opened. Empty by default.
    pub fingerprint: String,
    /// Opens a folder that was filled for another fingerprint, after removing all values in it. Off by default.
    pub clear_if_other: bool,
    /// Larger values are refused, and not read. 1 GiB by default.
    pub value_bytes_max: u64,
    /// Bytes of buffers that are kept for the next read. 64 MiB by default.
    pub buffer_bytes_max: usize,
    /// What compression is decided by; `None` stores all values as they are. [`Link::DRIVE`](super::compress::Link) by
    /// default.
    #[cfg(feature = "compression")]
    pub link: Option<super::compress::Link>,
    /// A value that is read is marked as used by its file's time, if the last mark is older than this: that is the order
    /// after a restart. 60 seconds by default.
    pub touch_after: Duration,
    /// What the files are written and read with.
    pub storage: Arc<dyn Storage>,
}

impl FolderSettings {
    /// The defaults, and this budget.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            fingerprint: String::new(),
            clear_if_other: false,
            value_bytes_max: 1 << 30,
            buffer_bytes_max: 64 << 20,
            #[cfg(feature = "compression")]
            link: Some(super::compress::Link::DRIVE),
            touch_after: Duration::from_secs(60),
            storage: Arc::new(Disk),
        }
    }
}

/// A cold tier in a folder.
///
/// Opening lists the folder, which takes some milliseconds for each thousand values. Reads and writes of different
/// values run beside each other; a value is written under another name and renamed, so a process that is killed leaves
/// no half value. Files are not synchronised before [`flush`](Cold::flush) (or every 1,024 values): after a loss of power
/// those written last may be found damaged, and are misses.
pub struct FolderTier {
    path: PathBuf,
    settings: FolderSettings,
    ledger: Mutex<Ledger>,
    buffers: Buffers,
    unsynced: Mutex<Vec<KeyId>>,
    temporary: AtomicU64,
    tally: Tally,
    /// Dropping the file gives up the lock.
    lock: Mutex<Option<File>>,
    closed: AtomicBool,
}

impl FolderTier {
    /// Opens the folder, or makes it.
    ///
    /// `policy` decides who leaves. The values found are given to it in the order of their files' times, each with a
    /// cost of 0 until it is read for the first time, since the cost lies in the file.
    ///
    /// # Errors
    ///
    /// [`Error::NotAFolder`], [`Error::InUse`], [`Error::Foreign`], [`Error::Version`], [`Error::Fingerprint`] as they
    /// say; [`Error::Malformed`] for a marker that is none; [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>, settings: FolderSettings, policy: Box<dyn Policy>) -> Result<Self> {
        let path = path.into();
        let storage = &*settings.storage;
        if std::fs::metadata(&path).is_ok_and(|found| !found.is_dir()) {
            return Err(Error::NotAFolder { path });
        }
        storage.create_folder(&path).map_err(|source| failed(&path, "create the folder", source))?;
        // Before the lock, since a folder that is not ours is not touched; and again under it, since another process may
        // just have made this one.
        if marker(storage, &path)?.is_none() {
            refuse_foreign(&path)?;
        }
        let lock = take_lock(&path)?;
        let other = marker(storage, &path)?.filter(|found| *found != settings.fingerprint);
        let clear = other.is_some();
        if let Some(found) = other.filter(|_| !settings.clear_if_other) {
            return Err(Error::Fingerprint { path, found, expected: settings.fingerprint });
        }
        let temporary = path.join(TEMPORARY);
        storage
            .create_folder(&temporary)
            .map_err(|source| failed(&temporary, "create the folder", source))?;
        for (file, _) in
            storage.list(&temporary).map_err(|source| failed(&temporary, "list the folder", source))?
        {
            storage.remove(&file).map_err(|source| failed(&file, "remove", source))?;
        }
        let values = list_values(storage, &path)?;
        let mut ledger = Ledger::new(policy, settings.budget_bytes);
        let leaving = if clear {
            // The marker is written after: a process killed here finds the old fingerprint, and clears again.
            values.iter().map(|value| value.0).collect()
        } else {
            ledger.load(values.iter().map(|&(id, bytes, _)| (id, bytes, 0.0)))
        };
        for id in &leaving {
            let file = value_path(&path, *id);
            storage.remove(&file).map_err(|source| failed(&file, "remove", source))?;
        }
        write_marker(storage, &path, &settings.fingerprint)?;
        let tally = Tally::default();
        if !clear {
            tally.evicted(leaving.len() as u64);
        }
        Ok(Self {
            buffers: Buffers::new(settings.buffer_bytes_max),
            path,
            settings,
            ledger: Mutex::new(ledger),
            unsynced: Mutex::new(Vec::new()),
            temporary: AtomicU64::new(0),
            tally,
            lock: Mutex::new(Some(lock)),
            closed: AtomicBool::new(false),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn value_path(&self, id: KeyId) -> PathBuf {
        value_path(&self.path, id)
    }

    /// The error of a file, counted.
    fn failed(&self, path: &Path, operation: &'static str, source: io::Error) -> Error {
        self.tally.error();
        failed(path, operation, source)
    }

    /// Reads the file of an entry, of which only the length is known to be right.
    fn read(&self, path: &Path, key: &[u8], entry: Entry) -> io::Result<Result<(Bytes, f32), Damage>> {
        let lead_max = (format::HEADER_BYTES + key.len()).next_multiple_of(format::ALIGN_BYTES) as u64;
        if entry.bytes > self.settings.value_bytes_max.saturating_add(lead_max) {
            return Ok(Err(Damage::TooLarge));
        }
        let Ok(len) = usize::try_from(entry.bytes) else { return Ok(Err(Damage::TooLarge)) };
        let mut buffer = self.buffers.take(len);
        match self.settings.storage.read_at(path, 0, &mut buffer.bytes_mut()[..len]) {
            Ok(()) => {
                let file = buffer.share(0..len);
                Ok(format::open(&file, key, self.settings.value_bytes_max, &self.buffers))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Damage::Length)),
            Err(error) => Err(error),
        }
    }

    /// Removes the files of values that left. The first failure is returned after all were tried.
    fn remove_files(&self, leaving: &[KeyId]) -> Result<()> {
        self.tally.evicted(leaving.len() as u64);
        let mut first = Ok(());
        for &id in leaving {
            let path = self.value_path(id);
            if let Err(source) = self.settings.storage.remove(&path) {
                let error = self.failed(&path, "remove", source);
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Writes parts as the file of `id`, at once as a whole.
    fn write(&self, id: KeyId, parts: &[&[u8]]) -> Result<()> {
        let storage = &*self.settings.storage;
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path.join(TEMPORARY).join(format!("{id}.{number}"));
        let path = self.value_path(id);
        let written = storage.write_new(&temporary, parts).map_err(|source| (&temporary, "write", source));
        let renamed = written.and_then(|()| match storage.rename(&temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(&self.path);
                storage
                    .create_folder(folder)
                    .and_then(|()| storage.rename(&temporary, &path))
                    .map_err(|source| (&path, "write", source))
            }
            other => other.map_err(|source| (&path, "write", source)),
        });
        renamed.map_err(|(at, operation, source)| {
            // Fails where the write failed, perhaps; opening removes what is left.
            let _ = storage.remove(&temporary);
            self.failed(at, operation, source)
        })
    }

    fn sync(&self) -> Result<()> {
        let ids = std::mem::take(&mut *self.unsynced.lock());
        let storage = &*self.settings.storage;
        let mut folders = std::collections::BTreeSet::new();
        for (at, &id) in ids.iter().enumerate() {
            let path = self.value_path(id);
            match storage.sync(&path) {
                Ok(()) => {
                    folders.extend(path.parent().map(Path::to_path_buf));
                }
                // It left since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    self.unsynced.lock().extend_from_slice(&ids[at..]);
                    return Err(self.failed(&path, "synchronise", source));
                }
            }
        }
        for folder in folders {
            storage.sync_folder(&folder).map_err(|source| self.failed(&folder, "synchronise", source))?;
        }
        Ok(())
    }

    /// Marks a value as used, for the order after a restart. What fails here costs that order only.
    fn touch(&self, path: &Path) {
        let now = SystemTime::now();
        let marked = std::fs::metadata(path).and_then(|found| found.modified());
        if marked
            .is_ok_and(|marked| now.duration_since(marked).is_ok_and(|age| age >= self.settings.touch_after))
            && let Ok(file) = File::options().write(true).open(path)
        {
            let _ = file.set_modified(now);
        }
    }

    #[cfg(feature = "compression")]
    fn compress(&self, value: &[u8]) -> Option<(Compression, Vec<u8>)> {
        super::compress::compress_if_it_pays(value, Default::default(), self.settings.link?)
    }

    #[cfg(not(feature = "compression"))]
    fn compress(&self, _: &[u8]) -> Option<(Compression, Vec<u8>)> {
        None
    }

    fn refused(&self, why: Refusal) -> Result<Kept> {
        self.tally.refused();
        Ok(Kept::Refused(why))
    }
}

impl Cold for FolderTier {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check_open()?;
        let id = KeyId::of(key);
        let Some(entry) = self.ledger.lock().ask(id) else {
            self.tally.miss();
            return Ok(None);
        };
        let path = self.value_path(id);
        match self.read(&path, key, entry) {
            Ok(Ok((value, cost))) => {
                self.ledger.lock().learn(id, entry.generation, cost);
                self.touch(&path);
                self.tally.hit(value.len() as u64);
                Ok(Some(value))
            }
            Ok(Err(_damage)) => {
                self.tally.miss();
                // Else it is not damage: the value was replaced while it was read.
                if self.ledger.lock().forget(id, Some(entry.generation)) {
                    self.tally.damaged();
                    // A file that cannot be removed is written over by the next put.
                    if self.settings.storage.remove(&path).is_err() {
                        self.tally.error();
                    }
                }
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.ledger.lock().forget(id, Some(entry.generation));
                self.tally.miss();
                Ok(None)
            }
            Err(source) => Err(self.failed(&path, "read", source)),
        }
    }

    fn put(&self, key: &[u8], value: &Bytes, cost: f32) -> Result<Kept> {
        self.check_open()?;
        let id = KeyId::of(key);
        let value_bytes = value.len() as u64;
        if value_bytes > self.settings.value_bytes_max {
            return self.refused(Refusal::TooLarge);
        }
        if self.ledger.lock().contains(id) {
            return Ok(Kept::AlreadyThere);
        }
        let compressed = self.compress(value);
        let (compression, stored) = match &compressed {
            Some((compression, stored)) => (*compression, &stored[..]),
            None => (Compression::None, &value[..]),
        };
        let Some(header) = Header::new(key, compression, stored, value_bytes, cost) else {
            return self.refused(Refusal::TooLarge);
        };
        let room = self.ledger.lock().make_room(id, header.file_bytes(), cost);
        let (generation, leaving) = match room {
            Room::Taken { generation, leaving } => (generation, leaving),
            Room::AlreadyThere => return Ok(Kept::AlreadyThere),
            Room::TooLarge => return self.refused(Refusal::TooLarge),
            Room::NotWorthIt { leaving } => {
                self.remove_files(&leaving)?;
                return self.refused(Refusal::NotWorthIt);
            }
        };
        let written =
            self.remove_files(&leaving).and_then(|()| self.write(id, &[&header.encode(key), stored]));
        if let Err(error) = written {
            self.ledger.lock().forget(id, Some(generation));
            return Err(error);
        }
        let Some(leaving) = self.ledger.lock().commit(id, generation) else {
            // Removed while it was written: by its key, so the file goes too.
            let path = self.value_path(id);
            self.settings.storage.remove(&path).map_err(|source| self.failed(&path, "remove", source))?;
            return Ok(Kept::Stored);
        };
        self.remove_files(&leaving)?;
        self.tally.put(value_bytes, header.file_bytes());
        let full = {
            let mut unsynced = self.unsynced.lock();
            unsynced.push(id);
            unsynced.len() >= UNSYNCED_MAX
        };
        if full {
            self.sync()?;
        }
        Ok(Kept::Stored)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.check_open()?;
        let id = KeyId::of(key);
        if self.ledger.lock().forget(id, None) {
            let path = self.value_path(id);
            self.settings.storage.remove(&path).map_err(|source| self.failed(&path, "remove", source))?;
        }
        Ok(())
    }

    fn writable(&self) -> bool {
        true
    }

    fn contains(&self, key: &[u8]) -> Result<bool> {
        self.check_open()?;
        Ok(self.ledger.lock().contains(KeyId::of(key)))
    }

    fn flush(&self) -> Result<()> {
        self.check_open()?;
        self.sync()
    }

    fn resize(&self, budget_bytes: u64) -> Result<()> {
        self.check_open()?;
        let leaving = self.ledger.lock().shrink(Some(budget_bytes));
        self.remove_files(&leaving)
    }

    fn stats(&self) -> ColdStats {
        let ledger = self.ledger.lock();
        ColdStats {
            values: ledger.values(),
            bytes: ledger.bytes(),
            budget_bytes: Some(ledger.budget_bytes()),
            ..self.tally.snapshot()
        }
    }

    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = self.sync();
        *self.lock.lock() = None;
        synced
    }
}

impl Drop for FolderTier {
    fn drop(&mut self) {
        // Who wants to know what failed calls `close`.
        let _ = self.close();
    }
}

fn failed(path: &Path, operation: &'static str, source: io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), operation, source }
}

fn value_path(folder: &Path, id: KeyId) -> PathBuf {
    let name = id.to_string();
    folder.join("values").join(&name[..1]).join(&name[1..2]).join(name)
}

/// The values in a folder, those written or used the longest ago first.
fn list_values(storage: &dyn Storage, folder: &Path) -> Result<Vec<(KeyId, u64, SystemTime)>> {
    let mut values = Vec::new();
    for place in 0..256u32 {
        let at = folder.join("values").join(format!("{:x}", place >> 4)).join(format!("{:x}", place & 15));
        let files = match storage.list(&at) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(&at, "list the folder", source)),
        };
        for (path, bytes) in files {
            // Whatever has another name is somebody else's, and stays.
            let Some(id) = path.file_name().and_then(|name| id_of(name.to_str()?)) else { continue };
            if value_path(folder, id) != path {
                continue;
            }
            let used = std::fs::metadata(&path).and_then(|found| found.modified());
            values.push((id, bytes, used.unwrap_or(SystemTime::UNIX_EPOCH)));
        }
    }
    values.sort_by_key(|&(id, _, used)| (used, id));
    Ok(values)
}

/// The id that a file's name says.
pub(crate) fn id_of(name: &str) -> Option<KeyId> {
    let id = KeyId(u128::from_str_radix(name, 16).ok()?);
    (id.to_string() == name).then_some(id)
}

/// The fingerprint in the folder's marker, or `None` if there is no marker.
fn marker(storage: &dyn Storage, folder: &Path) -> Result<Option<String>> {
    let path = folder.join(MARKER);
    let files = storage.list(folder).map_err(|source| failed(folder, "list the folder", source))?;
    let Some((_, bytes)) = files.into_iter().find(|(found, _)| *found == path) else { return Ok(None) };
    let malformed = |what: String| Error::Malformed {
        path: path.clone(),
        what: format!("is no marker of a cold tier: {what}"),
    };
    if bytes > MARKER_BYTES_MAX {
        return Err(malformed(format!("{bytes} bytes, at most {MARKER_BYTES_MAX} expected")));
    }
    let mut text = vec![0; bytes as usize];
    storage.read_at(&path, 0, &mut text).map_err(|source| failed(&path, "read", source))?;
    let text = String::from_utf8(text).map_err(|_| malformed("it is not text".into()))?;
    let lines = text.strip_prefix(MARKER_HEAD).and_then(|rest| rest.split_once('\n'));
    let Some((version, fingerprint)) = lines else {
        return Err(malformed(format!("it does not begin with {MARKER_HEAD:?}")));
    };
    let found = version.parse().map_err(|_| malformed(format!("version {version:?}")))?;
    if found != FOLDER_VERSION {
        return Err(Error::Version { path: folder.to_path_buf(), found, expected: FOLDER_VERSION });
    }
    Ok(Some(fingerprint.to_owned()))
}

fn write_marker(storage: &dyn Storage, folder: &Path, fingerprint: &str) -> Result<()> {
    let temporary = folder.join(TEMPORARY).join(MARKER);
    let path = folder.join(MARKER);
    let text = format!("{MARKER_HEAD}{FOLDER_VERSION}\n{fingerprint}");
    storage
        .write_new(&temporary, &[text.as_bytes()])
        .and_then(|()| storage.sync(&temporary))
        .and_then(|()| storage.rename(&temporary, &path))
        .and_then(|()| storage.sync_folder(folder))
        .map_err(|source| failed(&path, "write", source))
}

/// A folder without a marker must be empty, but for what a process that was killed while it made one leaves.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let list = |source| failed(folder, "list the folder", source);
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        if name != LOCK && name != TEMPORARY {
            let found = name.to_string_lossy().into_owned();
            return Err(Error::Foreign { path: folder.to_path_buf(), found });
        }
    }
    Ok(())
}

fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| failed(&path, "open the lock", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: folder.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(failed(&path, "lock", source)),
    }
}

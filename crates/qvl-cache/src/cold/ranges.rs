//! Ranges of files that exist already, as a read-only cold tier: nothing is copied.
//!
//! Such files carry no checksums of ours. So the length and the time of every file are taken when the tier is built, and
//! the XXH3 of every range when it is first read; what is read after must agree with both, or it is a miss that is
//! counted as damaged. With [`sums`](RangesBuilder::sums) the checksums are kept in a file, and hold from one run to the
//! next.

#[cfg(feature = "safetensors")]
mod safetensors;
mod sums;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use self::sums::{Place, Sums};
use super::tally::Tally;
use super::{Cold, ColdStats, Kept, Refusal};
use crate::buffers::Buffers;
use crate::error::{Error, Result};
use crate::key::shown;
use crate::storage::{Disk, Storage};

/// Bytes of buffers that are kept for the next read, if nothing else is said.
const BUFFER_BYTES_MAX: usize = 256 << 20;

/// A read-only cold tier over ranges of files.
///
/// Every read is of the whole range, into page-aligned memory that is used again. Values are not evicted: there is no
/// budget, and [`put`](Cold::put) refuses. [`remove`](Cold::remove) does nothing, so a key removed from the cache is
/// found here again.
///
/// ```
/// use qvl_cache::cold::Cold;
/// use qvl_cache::cold::ranges::Ranges;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("weights.bin");
/// std::fs::write(&path, b"....the weights")?;
/// let tier = Ranges::builder().range(b"layer 0", &path, 4, 11).build()?;
/// assert_eq!(tier.get(b"layer 0")?.as_deref(), Some(&b"the weights"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ranges {
    files: Vec<SourceFile>,
    ranges: HashMap<Vec<u8>, Range>,
    sums: Option<Mutex<Sums>>,
    storage: Arc<dyn Storage>,
    buffers: Buffers,
    tally: Tally,
    bytes: u64,
    closed: AtomicBool,
}

/// A file, and what it was when the tier was built.
struct SourceFile {
    path: PathBuf,
    found: Found,
}

/// What tells that a file is still the same one, as far as that can be told without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Found {
    fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

struct Range {
    file: usize,
    offset: u64,
    bytes: usize,
    /// XXH3-64 of what was read first, or what the file of sums says.
    sum: Mutex<Option<u64>>,
}

impl Ranges {
    /// No ranges yet.
    pub fn builder() -> RangesBuilder {
        RangesBuilder {
            ranges: Vec::new(),
            sums: None,
            storage: Arc::new(Disk),
            buffer_bytes_max: BUFFER_BYTES_MAX,
        }
    }

    /// All tensors of a checkpoint: a safetensors file, or a folder with `model.safetensors` or
    /// `model.safetensors.index.json`. The keys are the tensors' names.
    ///
    /// # Errors
    ///
    /// As for [`RangesBuilder::safetensors`] and [`RangesBuilder::build`].
    #[cfg(feature = "safetensors")]
    pub fn safetensors(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().safetensors(path, "")?.build()
    }

    /// The keys with the bytes of their values, in no order.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.ranges.iter().map(|(key, range)| (&key[..], range.bytes as u64))
    }

    /// The value of a range, or `None` if it is not what it was.
    fn read(&self, range: &Range) -> Result<Option<Bytes>> {
        let file = &self.files[range.file];
        let failed = |source| {
            self.tally.error();
            Error::Io { path: file.path.clone(), operation: "read", source }
        };
        let same = |()| Ok(Found::of(&file.path)? == file.found);
        if !same(()).map_err(failed)? {
            return Ok(None);
        }
        let mut buffer = self.buffers.take(range.bytes);
        match self.storage.read_at(&file.path, range.offset, &mut buffer.bytes_mut()[..range.bytes]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => return Err(failed(source)),
        }
        // Again, since it may have changed while it was read, and a first read has no checksum to be held against.
        if !same(()).map_err(failed)? {
            return Ok(None);
        }
        let value = buffer.share(0..range.bytes);
        let sum = twox_hash::XxHash3_64::oneshot(&value);
        let expected = *range.sum.lock().get_or_insert(sum);
        if sum != expected {
            return Ok(None);
        }
        if let Some(sums) = &self.sums {
            let place = Place::new(&file.path, file.found.bytes, range.offset, range.bytes as u64);
            sums.lock().learn(place, sum);
        }
        Ok(Some(value))
    }
}

impl Cold for Ranges {
    /// The first file, and how many others there are.
    fn name(&self) -> String {
        match &self.files[..] {
            [] => "no files".to_owned(),
            [file] => file.path.display().to_string(),
            [file, others @ ..] => format!("{} and {} other files", file.path.display(), others.len()),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let Some(range) = self.ranges.get(key) else {
            self.tally.miss();
            return Ok(None);
        };
        let value = self.read(range)?;
        match &value {
            Some(value) => self.tally.hit(value.len() as u64),
            None => {
                self.tally.miss();
                self.tally.damaged();
            }
        }
        Ok(value)
    }

    fn put(&self, key: &[u8], _value: &Bytes, _cost: f32) -> Result<Kept> {
        if self.contains(key)? {
            return Ok(Kept::AlreadyThere);
        }
        self.tally.refused();
        Ok(Kept::Refused(Refusal::ReadOnly))
    }

    fn remove(&self, _key: &[u8]) -> Result<()> {
        Ok(())
    }

    fn writable(&self) -> bool {
        false
    }

    fn contains(&self, key: &[u8]) -> Result<bool> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(self.ranges.contains_key(key))
    }

    /// Writes the file of sums, if there is one and something was learned.
    fn flush(&self) -> Result<()> {
        match &self.sums {
            Some(sums) => sums.lock().save(&*self.storage),
            None => Ok(()),
        }
    }

    fn stats(&self) -> ColdStats {
        ColdStats { values: self.ranges.len() as u64, bytes: self.bytes, ..self.tally.snapshot() }
    }

    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) { Ok(()) } else { self.flush() }
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        // Who wants to know what failed calls `close`.
        let _ = self.close();
    }
}

/// Collects ranges; see [`Ranges::builder`].
pub struct RangesBuilder {
    ranges: Vec<(Vec<u8>, PathBuf, u64, u64)>,
    sums: Option<PathBuf>,
    storage: Arc<dyn Storage>,
    buffer_bytes_max: usize,
}

impl RangesBuilder {
    /// A key, and where its value lies: `bytes` bytes at `offset` of a file.
    #[must_use]
    pub fn range(mut self, key: impl AsRef<[u8]>, path: impl AsRef<Path>, offset: u64, bytes: u64) -> Self {
        self.ranges.push((key.as_ref().to_vec(), path.as_ref().to_path_buf(), offset, bytes));
        self
    }

    /// All tensors of a checkpoint, as in [`Ranges::safetensors`]; the keys are the tensors' names behind `prefix`.
    ///
    /// Reads the headers. Of a sharded checkpoint only the tensors that the index names are taken.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read; [`Error::Malformed`], with the file and the tensor, for a header
    /// that does not fit its file, and for an index that does not fit the headers.
    #[cfg(feature = "safetensors")]
    pub fn safetensors(mut self, path: impl AsRef<Path>, prefix: &str) -> Result<Self> {
        for tensor in safetensors::tensors(path.as_ref())? {
            self.ranges.push((
                [prefix.as_bytes(), tensor.name.as_bytes()].concat(),
                tensor.path,
                tensor.offset,
                tensor.bytes,
            ));
        }
        Ok(self)
    }

    /// A file that keeps the checksums of the ranges from one run to the next. It is made if it is not there, and
    /// written at [`flush`](Cold::flush) and [`close`](Cold::close). One file for one tier.
    #[must_use]
    pub fn sums(mut self, path: impl Into<PathBuf>) -> Self {
        self.sums = Some(path.into());
        self
    }

    /// Bytes of buffers that are kept for the next read; 256 MiB by default.
    #[must_use]
    pub fn buffer_bytes_max(mut self, bytes: usize) -> Self {
        self.buffer_bytes_max = bytes;
        self
    }

    /// What files are read with.
    #[must_use]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = storage;
        self
    }

    /// The tier. Looks at every file, reads none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that is not there; [`Error::Malformed`] for a range that is not within its file, for
    /// one key with two ranges, and for a file of sums that is none or was made when a file had another length.
    pub fn build(self) -> Result<Ranges> {
        let sums = self.sums.map(|path| Sums::open(path, &*self.storage)).transpose()?;
        let mut files: Vec<SourceFile> = Vec::new();
        let mut by_path: HashMap<PathBuf, usize> = HashMap::new();
        let mut ranges: HashMap<Vec<u8>, Range> = HashMap::with_capacity(self.ranges.len());
        let mut bytes_all = 0u64;
        for (key, path, offset, bytes) in self.ranges {
            let file = match by_path.get(&path) {
                Some(&file) => file,
                None => {
                    let found = Found::of(&path).map_err(|source| Error::Io {
                        path: path.clone(),
                        operation: "open",
                        source,
                    })?;
                    files.push(SourceFile { path: path.clone(), found });
                    by_path.insert(path, files.len() - 1);
                    files.len() - 1
                }
            };
            let SourceFile { path, found } = &files[file];
            let malformed = |what: String| Error::Malformed { path: path.clone(), what };
            if offset.checked_add(bytes).is_none_or(|end| end > found.bytes) {
                let (key, all) = (shown(&key), found.bytes);
                return Err(malformed(format!(
                    "{key} is {bytes} bytes at {offset}, but the file has {all} bytes"
                )));
            }
            let Ok(len) = usize::try_from(bytes) else {
                return Err(malformed(format!(
                    "{} is {bytes} bytes, more than this machine can address",
                    shown(&key)
                )));
            };
            let sum = match &sums {
                Some(sums) => sums.get(&Place::new(path, found.bytes, offset, bytes))?,
                None => None,
            };
            bytes_all = bytes_all.saturating_add(bytes);
            let range = Range { file, offset, bytes: len, sum: Mutex::new(sum) };
            if let Some(other) = ranges.insert(key.clone(), range) {
                let other = &files[other.file].path;
                return Err(malformed(format!("{} is also in {}", shown(&key), other.display())));
            }
        }
        Ok(Ranges {
            files,
            ranges,
            sums: sums.map(Mutex::new),
            storage: self.storage,
            buffers: Buffers::new(self.buffer_bytes_max),
            tally: Tally::default(),
            bytes: bytes_all,
            closed: AtomicBool::new(false),
        })
    }
}

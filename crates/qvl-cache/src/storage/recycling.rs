//! A storage that writes into files which were removed, in place of new ones.
//!
//! A new file's pages must be found by the page cache, and its blocks by the file system; a file that was removed has
//! both. Writing 1 MiB into one took 0.2 ms where a new file took 0.5 ms and removing the old one another 0.05 ms (ext4,
//! a virtual machine). What was in it is overwritten before it has its new name's length, and whoever still reads it
//! under its old name finds something else than what was stored, as after any removal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Opened, Storage};

/// Smaller files are not worth two changes of a name.
const FILE_BYTES_MIN: u64 = 64 << 10;

/// Wraps a storage. Files that are removed below one folder are kept, up to a bound of bytes, for the next that are
/// written.
pub(crate) struct Recycling {
    inner: Arc<dyn Storage>,
    /// Where files lie that were removed.
    folder: PathBuf,
    spares: Mutex<Spares>,
    next: AtomicU64,
    /// Whether the folder is known to be this one's, and empty.
    ready: AtomicBool,
}

#[derive(Default)]
struct Spares {
    /// Length and name, the oldest first.
    files: std::collections::VecDeque<(u64, PathBuf)>,
    bytes: u64,
    bytes_max: u64,
}

impl Recycling {
    /// Over `inner`, with `folder` for files that were removed. It is made when it is first needed.
    pub(crate) fn new(inner: Arc<dyn Storage>, folder: PathBuf, bytes_max: u64) -> Self {
        let spares = Mutex::new(Spares { bytes_max, ..Spares::default() });
        Self { inner, folder, spares, next: AtomicU64::new(0), ready: AtomicBool::new(false) }
    }

    /// Removes what was left by one who was killed, and begins to keep files. To be called by nobody who does not own the
    /// folder.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.inner.remove_folder(&self.folder)?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Another bound; what is over it is removed for good.
    pub(crate) fn set_max(&self, bytes_max: u64) {
        self.spares.lock().bytes_max = bytes_max;
        self.trim();
    }

    /// The bound.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.spares.lock().bytes_max
    }

    /// Bytes of files that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.spares.lock().bytes
    }

    /// Removes what is over the bound. One that cannot be removed is with the next opening.
    fn trim(&self) {
        let over = {
            let mut spares = self.spares.lock();
            let mut over = Vec::new();
            while spares.bytes > spares.bytes_max {
                let Some((len, path)) = spares.files.pop_front() else { break };
                spares.bytes -= len;
                over.push(path);
            }
            over
        };
        for path in over {
            let _ = self.inner.remove(&path);
        }
    }

    /// Keeps a file that is no longer wanted; `false` if it is to be removed.
    fn keep(&self, path: &Path) -> bool {
        if !self.ready.load(Ordering::Acquire) {
            return false;
        }
        let Ok(len) = self.inner.file_bytes(path) else { return false };
        if len < FILE_BYTES_MIN || len > self.spares.lock().bytes_max {
            return false;
        }
        let spare = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let moved = self.inner.rename(path, &spare).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.inner.create_folder(&self.folder).and_then(|()| self.inner.rename(path, &spare))
            }
            _ => Err(error),
        });
        if moved.is_err() {
            return false;
        }
        {
            let mut spares = self.spares.lock();
            spares.bytes += len;
            spares.files.push_back((len, spare));
        }
        self.trim();
        true
    }

    /// The file that fits best: the shortest that is long enough and not twice that, else the longest of at least half.
    fn take(&self, bytes: u64) -> Option<PathBuf> {
        let mut spares = self.spares.lock();
        let lens = spares.files.iter().map(|(len, _)| *len).enumerate();
        let long_enough =
            lens.clone().filter(|(_, len)| *len >= bytes && *len / 2 <= bytes).min_by_key(|(_, len)| *len);
        let shorter =
            || lens.clone().filter(|(_, len)| *len < bytes && *len >= bytes / 2).max_by_key(|(_, len)| *len);
        let (at, _) = long_enough.or_else(shorter)?;
        let (len, path) = spares.files.remove(at)?;
        spares.bytes -= len;
        Some(path)
    }
}

impl Storage for Recycling {
    fn open(&self, path: &Path, direct: bool) -> io::Result<Box<dyn Opened>> {
        self.inner.open(path, direct)
    }

    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(path, offset, into)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        if bytes < FILE_BYTES_MIN {
            return self.inner.write_new(path, parts);
        }
        match self.take(bytes) {
            // The name of a new file is nobody's, so nothing is replaced.
            Some(spare) if self.inner.rename(&spare, path).is_ok() => {
                self.inner.write_over(path, parts).inspect_err(|_| drop(self.inner.remove(path)))
            }
            _ => self.inner.write_new(path, parts),
        }
    }

    fn write_over(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.write_over(path, parts)
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.file_bytes(path)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.inner.sync(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_folder(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.keep(path) { Ok(()) } else { self.inner.remove(path) }
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_folder(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.create_folder(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.inner.list(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Disk, Fault, Faulty, Operation, What};

    fn recycling(folder: &Path, inner: Arc<dyn Storage>) -> Recycling {
        let storage = Recycling::new(inner, folder.join("spare"), 1 << 20);
        storage.begin().unwrap();
        storage
    }

    fn inode(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
    }

    #[test]
    fn a_file_that_was_removed_is_written_again_with_its_new_length() {
        let dir = tempfile::tempdir().unwrap();
        let storage = recycling(dir.path(), Arc::new(Disk));
        let (first, second, third) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
        storage.write_new(&first, &[&[1; 200_000]]).unwrap();
        let was = inode(&first);
        storage.remove(&first).unwrap();
        assert!(!first.exists() && storage.bytes() == 200_000);
        storage.write_new(&second, &[&[2; 100_000], &[3; 50_000]]).unwrap();
        assert_eq!((inode(&second), storage.bytes()), (was, 0));
        assert_eq!(std::fs::read(&second).unwrap(), [vec![2; 100_000], vec![3; 50_000]].concat());
        storage.remove(&second).unwrap();
        storage.write_new(&third, &[&[4; 250_000]]).unwrap();
        assert_eq!((inode(&third), std::fs::read(&third).unwrap()), (was, vec![4; 250_000]));
    }

    #[test]
    fn small_ones_and_those_over_the_bound_go_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let storage = recycling(dir.path(), Arc::new(Disk));
        let path = |n: usize| dir.path().join(n.to_string());
        for (n, bytes) in [(0, 1000), (1, 2 << 20), (2, 600_000), (3, 500_000)] {
            storage.write_new(&path(n), &[&vec![0; bytes]]).unwrap();
        }
        (0..4).for_each(|n| storage.remove(&path(n)).unwrap());
        assert_eq!(storage.bytes(), 500_000);
        assert_eq!(std::fs::read_dir(dir.path().join("spare")).unwrap().count(), 1);
        storage.set_max(0);
        assert_eq!((storage.bytes(), std::fs::read_dir(dir.path().join("spare")).unwrap().count()), (0, 0));
        storage.remove(&path(7)).unwrap();
    }

    #[test]
    fn one_that_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let faulty = Faulty::new(Arc::new(Disk));
        let storage = recycling(dir.path(), Arc::new(faulty.clone()));
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        storage.write_new(&first, &[&[1; 200_000]]).unwrap();
        storage.remove(&first).unwrap();
        faulty.fail(Fault::new(Operation::WriteNew, What::Half));
        assert!(storage.write_new(&second, &[&[2; 200_000]]).is_err());
        assert!(!second.exists());
    }

    #[test]
    fn what_lay_there_before_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("spare")).unwrap();
        std::fs::write(dir.path().join("spare/9"), "left by one that was killed").unwrap();
        recycling(dir.path(), Arc::new(Disk));
        assert!(!dir.path().join("spare/9").exists());
    }
}

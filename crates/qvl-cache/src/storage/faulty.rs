//! A storage that fails by a script: for the tests of this crate and of those who use it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Opened, Storage};

/// Wraps another [`Storage`] and lets operations fail as a script says. Deterministic: the same calls in the same order
/// fail in the same way.
///
/// ```
/// use std::sync::Arc;
/// use qvl_cache::storage::{Disk, Fault, Faulty, Operation, Storage, What};
///
/// let storage = Faulty::new(Arc::new(Disk));
/// // The second file that is written meets a full drive.
/// storage.fail(Fault { skip: 1, times: 1, ..Fault::new(Operation::WriteNew, What::Errno(28)) });
/// # let folder = tempfile::tempdir()?;
/// storage.write_new(&folder.path().join("a"), &[b"one"])?;
/// assert_eq!(storage.write_new(&folder.path().join("b"), &[b"two"]).unwrap_err().raw_os_error(), Some(28));
/// storage.write_new(&folder.path().join("c"), &[b"three"])?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    faults: Vec<Fault>,
    met: u64,
}

/// What can be made to fail: the methods of [`Storage`], and the reads of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`Storage::open`].
    Open,
    /// [`Storage::read_at`] and [`Opened::read_at`].
    Read,
    /// [`Storage::write_new`] and [`Storage::write_over`].
    WriteNew,
    /// [`Storage::sync`].
    Sync,
    /// [`Storage::sync_folder`].
    SyncFolder,
    /// [`Storage::rename`], by its first path.
    Rename,
    /// [`Storage::remove`] and [`Storage::remove_folder`].
    Remove,
    /// [`Storage::create_folder`].
    CreateFolder,
    /// [`Storage::list`].
    List,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// With this error of the operating system (28 is a full drive, 30 a read-only one, 5 a broken one), nothing done.
    Errno(i32),
    /// Half of it: a read ends in the middle as if the file did, a file that is written keeps its first half and the
    /// call says that the drive is full. Others fail with "interrupted".
    Half,
    /// A read gives this bit (counted from the first of this call's bytes, modulo their number) flipped. A file that
    /// is written gets it flipped, and the call says that all went well. Others are not changed.
    Flip(u64),
}

/// One line of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// Only where the path, as text, contains this; empty is everywhere.
    pub path_contains: String,
    /// So many matching calls go well before.
    pub skip: u64,
    /// So many fail then; `u64::MAX` is all of them.
    pub times: u64,
    /// How.
    pub what: What,
}

impl Fault {
    /// A fault of every such operation, from the next on.
    pub fn new(operation: Operation, what: What) -> Self {
        Self { operation, path_contains: String::new(), skip: 0, times: u64::MAX, what }
    }
}

impl Faulty {
    /// A storage that does what `inner` does until [`fail`](Self::fail) is called.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, script: Arc::default() }
    }

    /// Adds a line to the script. The first line that matches a call decides.
    pub fn fail(&self, fault: Fault) {
        self.script.lock().faults.push(fault);
    }

    /// Forgets the script: all goes well again.
    pub fn heal(&self) {
        self.script.lock().faults.clear();
    }

    /// Calls that failed so far.
    pub fn met(&self) -> u64 {
        self.script.lock().met
    }

    fn write(
        &self,
        path: &Path,
        parts: &[&[u8]],
        write: impl FnOnce(&[&[u8]]) -> io::Result<()>,
    ) -> io::Result<()> {
        const NO_SPACE: i32 = 28;
        match self.next(Operation::WriteNew, path) {
            Some(What::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(What::Half) => {
                let whole = parts.concat();
                write(&[&whole[..whole.len() / 2]])?;
                Err(io::Error::from_raw_os_error(NO_SPACE))
            }
            Some(What::Flip(bit)) => {
                let mut whole = parts.concat();
                flip(&mut whole, bit);
                write(&[&whole])
            }
            None => write(parts),
        }
    }

    fn next(&self, operation: Operation, path: &Path) -> Option<What> {
        let mut script = self.script.lock();
        let shown = path.to_string_lossy();
        for fault in &mut script.faults {
            if fault.operation != operation
                || !shown.contains(fault.path_contains.as_str())
                || fault.times == 0
            {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if fault.times != u64::MAX {
                fault.times -= 1;
            }
            let what = fault.what;
            script.met += 1;
            return Some(what);
        }
        None
    }

    /// For operations that are done or not.
    fn plain(&self, operation: Operation, path: &Path) -> io::Result<()> {
        match self.next(operation, path) {
            Some(What::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(What::Half) => Err(io::ErrorKind::Interrupted.into()),
            Some(What::Flip(_)) | None => Ok(()),
        }
    }
}

impl Storage for Faulty {
    fn open(&self, path: &Path, direct: bool) -> io::Result<Box<dyn Opened>> {
        self.plain(Operation::Open, path)?;
        let inner = self.inner.open(path, direct)?;
        Ok(Box::new(FaultyFile { inner, path: path.to_owned(), storage: self.clone() }))
    }

    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self.next(Operation::Read, path) {
            Some(What::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(What::Half) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(What::Flip(bit)) => {
                self.inner.read_at(path, offset, into)?;
                flip(into, bit);
                Ok(())
            }
            None => self.inner.read_at(path, offset, into),
        }
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.write(path, parts, |parts| self.inner.write_new(path, parts))
    }

    fn write_over(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.write(path, parts, |parts| self.inner.write_over(path, parts))
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.file_bytes(path)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.plain(Operation::Sync, path)?;
        self.inner.sync(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.plain(Operation::SyncFolder, path)?;
        self.inner.sync_folder(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plain(Operation::Rename, from)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.plain(Operation::Remove, path)?;
        self.inner.remove(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.plain(Operation::Remove, path)?;
        self.inner.remove_folder(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.plain(Operation::CreateFolder, path)?;
        self.inner.create_folder(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.plain(Operation::List, path)?;
        self.inner.list(path)
    }
}

struct FaultyFile {
    inner: Box<dyn Opened>,
    path: PathBuf,
    storage: Faulty,
}

impl Opened for FaultyFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.storage.next(Operation::Read, &self.path) {
            Some(What::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(What::Half) => Ok(self.inner.read_at(offset, into)? / 2),
            Some(What::Flip(bit)) => {
                let bytes = self.inner.read_at(offset, into)?;
                flip(&mut into[..bytes], bit);
                Ok(bytes)
            }
            None => self.inner.read_at(offset, into),
        }
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let bits = bytes.len() as u64 * 8;
    if bits > 0 {
        let bit = bit % bits;
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn a_script_is_followed_line_by_line_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        let storage = Faulty::new(Arc::new(Disk));
        storage.write_new(&path, &[b"abcd", b"efgh"]).unwrap();
        storage.fail(Fault { skip: 1, times: 1, ..Fault::new(Operation::Read, What::Flip(8)) });
        storage.fail(Fault { skip: 1, times: 1, ..Fault::new(Operation::Read, What::Half) });
        let file = storage.open(&path, false).unwrap();
        let read = || {
            let mut into = [0; 8];
            let bytes = file.read_at(0, &mut into).unwrap();
            String::from_utf8_lossy(&into[..bytes]).into_owned()
        };
        assert_eq!([read(), read(), read(), read()], ["abcdefgh", "accdefgh", "abcd", "abcdefgh"]);
        assert_eq!(storage.met(), 2);
        storage.fail(Fault { path_contains: "val".into(), ..Fault::new(Operation::Remove, What::Errno(5)) });
        assert_eq!(storage.remove(&path).unwrap_err().raw_os_error(), Some(5));
        storage.heal();
        storage.remove(&path).unwrap();
    }
}

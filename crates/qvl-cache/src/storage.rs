//! What this crate does with files, behind one trait, so that a drive that fails can be tried.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// File operations of the warm and the cold tier (not RocksDB's own). [`Disk`] is the real one.
///
/// Implementations must be what their documentation says also after an error: nothing half done is read back as
/// whole, since every value carries a checksum.
pub trait Storage: Send + Sync {
    /// Reads `into.len()` bytes at `offset`; an error of the kind `UnexpectedEof` if there are fewer.
    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes a new file of these parts, one behind the other. Not synchronised.
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()>;

    /// Puts a file's bytes on the drive.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Puts a folder's names on the drive.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name in the same file system, replacing what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; not an error if it is gone.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder and those above it.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Names and lengths of the files directly in a folder.
    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>>;
}

/// The files of this machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct Disk;

impl Storage for Disk {
    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()> {
        read_exact_at(&File::open(path)?, offset, into)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        use io::Write;
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_data()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                files.push((entry.path(), metadata.len()));
            }
        }
        Ok(files)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

#[cfg(not(unix))]
fn read_exact_at(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    use io::{Read, Seek};
    let mut file = file;
    file.seek(io::SeekFrom::Start(offset))?;
    file.read_exact(into)
}

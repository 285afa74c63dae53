//! What this crate does with files, behind one trait, so that a drive that fails can be tried.
//!
//! [`Disk`] is the real one; [`Faulty`] wraps another and fails by a script.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

mod faulty;
#[cfg(feature = "rocksdb")]
pub(crate) mod recycling;

pub use faulty::{Fault, Faulty, Operation, What};

/// File operations of the warm and the cold tier (not RocksDB's own). [`Disk`] is the real one.
///
/// Implementations must be what their documentation says also after an error: nothing half done is read back as
/// whole, since every value carries a checksum.
pub trait Storage: Send + Sync {
    /// Opens a file for several reads. It stays readable when its name is removed.
    ///
    /// `direct` asks for reads past the page cache: offsets, lengths and memory are then multiples of 4096 bytes. An
    /// error of the kind `InvalidInput` or `Unsupported` says that the file system offers none.
    fn open(&self, path: &Path, direct: bool) -> io::Result<Box<dyn Opened>>;

    /// Reads `into.len()` bytes at `offset`; an error of the kind `UnexpectedEof` if there are fewer.
    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes a new file of these parts, one behind the other. Not synchronised.
    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()>;

    /// Writes these parts over what a file has, and gives it their length. Not synchronised.
    fn write_over(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.remove(path)?;
        self.write_new(path, parts)
    }

    /// The length of a file.
    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        std::fs::metadata(path).map(|metadata| metadata.len())
    }

    /// Puts a file's bytes on the drive.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Puts a folder's names on the drive.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or a folder another name in the same file system, replacing a file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; not an error if it is gone.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that is in it; not an error if it is gone.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder and those above it.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Names and lengths of the files directly in a folder.
    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>>;
}

/// An open file of a [`Storage`].
pub trait Opened: Send + Sync {
    /// Reads at `offset` up to `into.len()` bytes and says how many; fewer than asked for only at the file's end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
}

/// The files of this machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct Disk;

impl Storage for Disk {
    fn open(&self, path: &Path, direct: bool) -> io::Result<Box<dyn Opened>> {
        Ok(Box::new(if direct { open_direct(path)? } else { File::open(path)? }))
    }

    fn read_at(&self, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match File::open(path)?.read_some(offset, into)? {
            bytes if bytes == into.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        use io::Write;
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        Ok(())
    }

    fn write_over(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        use io::Write;
        let mut file = OpenOptions::new().write(true).open(path)?;
        let mut bytes = 0;
        for part in parts {
            file.write_all(part)?;
            bytes += part.len() as u64;
        }
        file.set_len(bytes)
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
        gone_is_fine(std::fs::remove_file(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        gone_is_fine(std::fs::remove_dir_all(path))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_file() {
                files.push((entry.path(), metadata.len()));
            }
        }
        Ok(files)
    }
}

impl Opened for File {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.read_some(offset, into)
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads until `into` is full or the file ends.
trait ReadSome {
    fn read_some(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadSome for File {
    fn read_some(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match read_once(self, offset + filled as u64, &mut into[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A direct read that ended within a page ended at the file's end: going on there is not aligned.
                Err(error) if filled > 0 && error.kind() == io::ErrorKind::InvalidInput => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

#[cfg(unix)]
fn read_once(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, offset)
}

#[cfg(windows)]
fn read_once(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, offset)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

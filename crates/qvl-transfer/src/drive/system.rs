//! What systems do differently about files: opening without side effects, one read, and reading past the page cache.

use std::fs::File;
use std::io;
use std::path::Path;

/// Opens for reading. Does not wait for a writer if it is a pipe.
#[cfg(target_os = "linux")]
pub(super) fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What it is, if it is not a file with bytes at offsets.
pub(super) fn not_a_file(kind: std::fs::FileType) -> Option<&'static str> {
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_block_device() || kind.is_char_device() {
            return Some("a device");
        }
    }
    Some("neither a file nor a folder")
}

/// One read, which may give fewer bytes.
#[cfg(unix)]
pub(super) fn read_once(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, offset)
}

/// One read, which may give fewer bytes. Moves the file's own position, which nobody uses.
#[cfg(windows)]
pub(super) fn read_once(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, offset)
}

/// Has the file read past the page cache from here on, or through it. The same descriptor is used, so that it cannot
/// become another file in between.
#[cfg(target_os = "linux")]
pub(super) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let mut flags = fcntl_getfl(file)?;
    // It was for the opening alone.
    flags.remove(OFlags::NONBLOCK);
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set_direct(_: &File, direct: bool) -> io::Result<()> {
    let why = "qvl-transfer has it for Linux only";
    if direct { Err(io::Error::new(io::ErrorKind::Unsupported, why)) } else { Ok(()) }
}

/// Whether this is how a system says that it does not read this past the page cache.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Advice: where it is not taken, the file stays in the page cache.
#[cfg(target_os = "linux")]
pub(super) fn drop_from_cache(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn drop_from_cache(_: &File) {}

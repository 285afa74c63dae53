//! Files to read, on the file systems that are here.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use qvl_transfer::drive::{DriveFile, ReadMode};
use qvl_transfer::source::Source;
use qvl_transfer::{Done, Failed, HostDevice, HostMemory, Io, Settings, Transfer, TransferEngine};

pub(crate) const MODES: [ReadMode; 3] = [ReadMode::Auto, ReadMode::Direct, ReadMode::Buffered];
pub(crate) const IOS: [Io; 2] = [Io::Threads, Io::Uring];

/// A folder on a real file system, and one in memory where there is that.
pub(crate) fn folders() -> Vec<tempfile::TempDir> {
    let mut folders = vec![tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()];
    folders.extend(tempfile::tempdir_in("/dev/shm"));
    folders
}

/// Bytes that differ from each other at every block and shift.
pub(crate) fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

pub(crate) fn file(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("file");
    std::fs::write(&path, bytes).unwrap();
    // Pages that are not on the drive yet cannot be dropped from the cache.
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    path
}

/// Whether the file system lets this be read past the page cache. Where it does not, that is an error that says so.
pub(crate) fn reads_direct(path: &Path) -> bool {
    match DriveFile::with_mode(path, ReadMode::Direct) {
        Ok(_) => true,
        Err(error) => {
            assert!(matches!(error, qvl_transfer::Error::DirectRefused { .. }), "{error}");
            false
        }
    }
}

/// Whether this system has a ring. Where it has none, that is an error that says what to do.
pub(crate) fn has_ring() -> bool {
    let settings = Settings { io: Io::Uring, ..Settings::default() };
    match TransferEngine::new(HostDevice::new(1 << 20), settings) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.to_string().contains("Io::Threads"), "{error}");
            false
        }
    }
}

/// The combinations that work here.
pub(crate) fn ways(path: &Path) -> Vec<(ReadMode, Io)> {
    let (direct, ring) = (reads_direct(path), has_ring());
    let both = MODES.iter().flat_map(|&mode| IOS.map(|io| (mode, io)));
    both.filter(|&(mode, io)| (direct || mode != ReadMode::Direct) && (ring || io != Io::Uring)).collect()
}

pub(crate) fn engine(io: Io, chunk_bytes: usize, depth: usize) -> TransferEngine<HostDevice> {
    let settings = Settings { chunk_bytes, staging_bytes: 4 * (chunk_bytes + 4096), depth, io, trace: None };
    TransferEngine::new(HostDevice::new(1 << 30), settings).unwrap()
}

/// Moves a source to new memory of its length.
pub(crate) fn moved(
    engine: &TransferEngine<HostDevice>,
    source: impl Source,
) -> Result<Done<HostMemory>, Failed<HostMemory>> {
    use qvl_transfer::Device;
    let memory = engine.device().allocate(source.len() as usize).unwrap();
    engine.submit(Transfer::new(source, memory)).unwrap().wait()
}

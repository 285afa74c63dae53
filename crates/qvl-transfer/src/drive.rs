//! Files on a drive: how they are opened, read and measured.
//!
//! A file that is read once and is larger than what one would keep is best read past the page cache: the drive writes
//! where the bytes belong, without a copy by the processor, and what others have in the cache stays there. A file that
//! is in the cache already is best taken from there. Opening a file finds out which it is.

mod bounce;
#[cfg(target_os = "linux")]
mod cached;
mod mapped;
pub mod probe;
mod range;
mod resume;
mod system;
pub(crate) mod uring;

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::check_range;
use crate::memory::BLOCK_BYTES;
use crate::{Error, Result};

pub use mapped::Mapped;
pub use range::FileRange;
pub(crate) use range::Window;
use resume::{Resume, Step};

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReadMode {
    /// Past the page cache if the file system offers that and most of the file is not in the cache already.
    #[default]
    Auto,
    /// Past the page cache (O_DIRECT); refused by some file systems, which is an error then. Linux only.
    Direct,
    /// Through the page cache. What was not in it before is dropped from it after it was read, unless
    /// [`DriveFile::keep_cached`] says otherwise.
    Buffered,
}

/// An open file to read from. Clones are the same file.
#[derive(Clone, Debug)]
pub struct DriveFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    direct: bool,
    len: u64,
    why: String,
    keep_cached: AtomicBool,
    /// Where the system tells, and the file is read through it.
    #[cfg(target_os = "linux")]
    cache: Option<cached::PageCache>,
}

impl DriveFile {
    /// Opens a file in the mode that fits it: see [`Self::explain`].
    ///
    /// # Errors
    /// As [`Self::with_mode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::with_mode(path, ReadMode::Auto)
    }

    /// Opens a file in a mode. Reads one block of it to see whether [`ReadMode::Direct`] works.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotAFile`] of a folder, a pipe or a device; [`Error::DirectRefused`] where
    /// [`ReadMode::Direct`] is.
    pub fn with_mode(path: impl AsRef<Path>, mode: ReadMode) -> Result<Self> {
        let path = path.as_ref();
        let failed = |source| io_error(path, "open", 0, 0, source);
        let file = system::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if let Some(what) = system::not_a_file(metadata.file_type()) {
            return Err(Error::NotAFile { path: path.to_owned(), what });
        }
        let len = metadata.len();
        #[cfg(target_os = "linux")]
        let (share, cache) = {
            let cache = cached::PageCache::of(&file, path, &metadata);
            (cache.as_ref().and_then(cached::PageCache::share), cache)
        };
        #[cfg(not(target_os = "linux"))]
        let share = None;
        let (direct, why) = match mode {
            ReadMode::Buffered => (false, "through the page cache: as set".to_owned()),
            ReadMode::Direct => {
                try_direct(path, &file, &metadata)?;
                (true, "past the page cache: as set".to_owned())
            }
            ReadMode::Auto => match share.filter(|&share| share >= CACHED_SHARE_MIN) {
                Some(share) => {
                    (false, format!("through the page cache: {:.0} % of it are there already", share * 100.0))
                }
                None => match try_direct(path, &file, &metadata) {
                    Ok(()) => (true, past(share)),
                    Err(Error::DirectRefused { source, .. }) => {
                        (false, format!("through the page cache: reading past it is refused ({source})"))
                    }
                    Err(error) => return Err(error),
                },
            },
        };
        if !direct {
            system::set_direct(&file, false).map_err(failed)?;
        }
        let inner = Inner {
            path: path.to_owned(),
            file,
            direct,
            len,
            why,
            keep_cached: AtomicBool::new(false),
            #[cfg(target_os = "linux")]
            cache: cache.filter(|_| !direct),
        };
        let file = Self { inner: Arc::new(inner) };
        file.advise();
        Ok(file)
    }

    /// Whether what is read stays in the page cache: no, if nobody says so, so that a file that is larger than the
    /// memory does not drive out what others have there. Says so for all clones. A file that is read past the page
    /// cache never gets there; what was there before always stays.
    pub fn keep_cached(&self, keep: bool) {
        self.inner.keep_cached.store(keep, Ordering::Relaxed);
        self.advise();
    }

    /// Tells the kernel how it will be read. Advice: where it is not taken, nothing but speed changes.
    ///
    /// What is dropped again must not be read ahead: the kernel would bring in what a neighbour then takes for having
    /// been there before, and in units larger than a piece, which cannot be dropped in part. Read by 8 threads in
    /// pieces of 1 MiB, each dropped behind it, 94 % of a file stayed in the cache with the advice `SEQUENTIAL` or none,
    /// and 0 % with `RANDOM`, at the same speed (0.5 GB/s with one as with the other where nothing was dropped, on a
    /// drive behind a hypervisor).
    fn advise(&self) {
        #[cfg(target_os = "linux")]
        if !self.inner.direct {
            use rustix::fs::{Advice, fadvise};
            let keep = self.inner.keep_cached.load(Ordering::Relaxed);
            let advice = if keep { Advice::Sequential } else { Advice::Random };
            let _ = fadvise(&self.inner.file, 0, None, advice);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its length when it was opened, in bytes. What was written behind it since is not seen.
    #[expect(clippy::len_without_is_empty, reason = "a file is no collection")]
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// How it is read and why, in a sentence.
    pub fn explain(&self) -> &str {
        &self.inner.why
    }

    /// Whether it is read past the page cache, in whole blocks of 4096 bytes to addresses that are multiples of that.
    pub fn is_direct(&self) -> bool {
        self.inner.direct
    }

    /// A range of it, to be transferred.
    ///
    /// # Errors
    /// [`Error::Range`] if it is not inside the file.
    pub fn range(&self, offset: u64, bytes: u64) -> Result<FileRange> {
        check_range(&self.path().display().to_string(), offset, bytes, self.len())?;
        Ok(FileRange { file: self.clone(), offset, bytes })
    }

    /// All of it.
    pub fn whole(&self) -> FileRange {
        FileRange { file: self.clone(), offset: 0, bytes: self.len() }
    }

    /// What reads begin at multiples of.
    pub(crate) fn block_bytes(&self) -> usize {
        if self.is_direct() { BLOCK_BYTES } else { 1 }
    }

    /// Fills `into` from `offset`, of which at least `needed` bytes must be there. `into` begins at a multiple of a
    /// block, as `offset` does, and is whole blocks long, if the file is read past the page cache.
    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8], needed: usize) -> Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(cache) = &self.inner.cache
            && !self.inner.keep_cached.load(Ordering::Relaxed)
        {
            return self.read_and_drop(cache, offset, into, needed);
        }
        self.read_all(offset, into, needed)
    }

    /// Reads through the page cache and drops what was not there, piece by piece, each to a multiple of a piece in the
    /// file.
    #[cfg(target_os = "linux")]
    fn read_and_drop(
        &self,
        cache: &cached::PageCache,
        offset: u64,
        into: &mut [u8],
        needed: usize,
    ) -> Result<()> {
        let mut done = 0;
        while done < needed {
            let at = offset + done as u64;
            let left_of_piece = cached::PIECE_BYTES - (at % cached::PIECE_BYTES as u64) as usize;
            let bytes = left_of_piece.min(needed - done);
            let before = usize::try_from(at).ok().and_then(|at| cache.pages(at, bytes));
            self.read_all(at, &mut into[done..done + bytes], bytes)?;
            if let Some(before) = before {
                before.drop_others(&self.inner.file);
            }
            done += bytes;
        }
        Ok(())
    }

    fn read_all(&self, offset: u64, into: &mut [u8], needed: usize) -> Result<()> {
        if needed == 0 {
            return Ok(());
        }
        let mut resume = Resume::new(needed, self.block_bytes());
        loop {
            let from = resume.from();
            match system::read_once(&self.inner.file, offset + from as u64, &mut into[from..]) {
                Ok(bytes) => match resume.took(bytes) {
                    Step::Done => return Ok(()),
                    Step::More => {}
                    Step::Ended => return Err(self.truncated(offset, needed)),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(offset + from as u64, needed - from, error)),
            }
        }
    }

    /// The error of a file that ends before what was asked for.
    pub(crate) fn truncated(&self, offset: u64, needed: usize) -> Error {
        let len = self.inner.file.metadata().map_or(0, |metadata| metadata.len());
        Error::Truncated { path: self.path().to_owned(), offset, bytes: needed as u64, len }
    }

    /// The error of a read that the system says failed.
    pub(crate) fn failed(&self, offset: u64, bytes: usize, source: io::Error) -> Error {
        let (path, bytes) = (self.path(), bytes as u64);
        if self.is_direct() && system::is_refusal(&source) {
            return Error::DirectRefused { path: path.to_owned(), offset, bytes, source: Arc::new(source) };
        }
        io_error(path, "read", offset, bytes, source)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for DriveFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

/// Has the file read past the page cache, and proves it by a read: there are file systems that let the flag be set
/// and then refuse each read.
fn try_direct(path: &Path, file: &File, metadata: &Metadata) -> Result<()> {
    let refused = |bytes, source: io::Error| {
        let (path, offset) = (path.to_owned(), PROOF_OFFSET.min(bytes));
        if system::is_refusal(&source) {
            return Error::DirectRefused { path, offset, bytes, source: Arc::new(source) };
        }
        io_error(&path, "read", offset, bytes, source)
    };
    system::set_direct(file, true).map_err(|error| refused(0, error))?;
    // Not a multiple of more than a block, so that a file system with larger ones refuses.
    let offset = if metadata.len() > PROOF_OFFSET { PROOF_OFFSET } else { 0 };
    let read = bounce::with_buffer(|buffer| {
        loop {
            match system::read_once(file, offset, &mut buffer[BLOCK_BYTES..2 * BLOCK_BYTES]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    });
    // How much there is in it is told by the reads to come: the file may be growing or shrinking now.
    read.and_then(|read| read).map(|_| ()).map_err(|error| refused(BLOCK_BYTES as u64, error))
}

fn past(share: Option<f64>) -> String {
    match share {
        Some(share) => format!("past the page cache: {:.0} % of it are there", share * 100.0),
        None => "past the page cache: it works here, and the system does not tell what is there".to_owned(),
    }
}

pub(crate) fn io_error(
    path: &Path,
    operation: &'static str,
    offset: u64,
    bytes: u64,
    source: io::Error,
) -> Error {
    Error::Io { path: path.to_owned(), operation, offset, bytes, source: Arc::new(source) }
}

/// From this share of a file in the page cache on it is read from there.
const CACHED_SHARE_MIN: f64 = 0.5;
const PROOF_OFFSET: u64 = BLOCK_BYTES as u64;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::source::Source;

    /// A file of 4 MiB and a bit, on the drive, and a folder that it is in.
    fn made() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> =
            (0..(4 << 20) + 100).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        (folder, path, bytes)
    }

    /// For each page of a file, whether it is in the page cache.
    fn resident(path: &Path) -> Vec<bool> {
        let file = File::open(path).unwrap();
        let cache = cached::PageCache::of(&file, path, &file.metadata().unwrap()).unwrap();
        let len = file.metadata().unwrap().len() as usize;
        let piece = |at| cache.pages(at, cached::PIECE_BYTES.min(len - at)).unwrap().resident().to_vec();
        (0..len).step_by(cached::PIECE_BYTES).flat_map(piece).map(|page| page & 1 != 0).collect()
    }

    fn drop_all(path: &Path) {
        system::drop_from_cache(&File::open(path).unwrap());
    }

    #[test]
    fn what_was_not_in_the_page_cache_is_not_there_after_it_was_read_and_what_was_is() {
        let (_folder, path, bytes) = made();
        drop_all(&path);
        // Some pages in the middle, as somebody else has them there.
        let other = File::open(&path).unwrap();
        let _ = rustix::fs::fadvise(&other, 0, None, rustix::fs::Advice::Random);
        let mut some = [0; 40_000];
        system::read_once(&other, 2_000_000, &mut some).unwrap();
        let before = resident(&path);
        let few = 2_000_000 / 4096..2_040_000 / 4096;
        assert!(before[few.clone()].iter().any(|&there| there));
        let file = DriveFile::with_mode(&path, ReadMode::Buffered).unwrap();
        let mut into = vec![0; bytes.len()];
        for (at, end) in [(0, bytes.len()), (5000, 9000), (1_999_000, 2_100_001), (1, 1 << 20)] {
            file.whole().fill(at as u64, &mut into[at..end]).unwrap();
            assert!(into[at..end] == bytes[at..end]);
        }
        let after = resident(&path);
        let came = (0..after.len()).filter(|&page| after[page] && !before[page]).count();
        assert_eq!((came, after.len()), (0, before.len()));
        assert_eq!(before[few.clone()], after[few]);
    }

    #[test]
    fn what_is_to_be_kept_in_the_page_cache_is_there_after_it_was_read() {
        let (_folder, path, bytes) = made();
        drop_all(&path);
        let file = DriveFile::with_mode(&path, ReadMode::Buffered).unwrap();
        file.clone().keep_cached(true);
        let mut into = vec![0; bytes.len()];
        file.whole().fill(0, &mut into).unwrap();
        assert!(resident(&path).iter().filter(|there| **there).count() > 1000);
        assert!(into == bytes);
    }

    #[test]
    fn a_read_that_the_drive_refuses_later_is_not_made_in_another_way() {
        let (_folder, path, bytes) = made();
        let Ok(file) = DriveFile::with_mode(&path, ReadMode::Direct) else { return };
        let mut into = vec![0; 3 * BLOCK_BYTES];
        let misaligned = into.as_ptr().align_offset(BLOCK_BYTES) + 1;
        match file.read_at(4096, &mut into[misaligned..][..BLOCK_BYTES], BLOCK_BYTES) {
            // Memory that poses as a drive takes any address.
            Ok(()) => assert!(into[misaligned..][..BLOCK_BYTES] == bytes[4096..8192]),
            Err(error) => {
                assert!(matches!(error, Error::DirectRefused { offset: 4096, bytes: 4096, .. }), "{error:?}");
                let said = error.to_string();
                assert!(said.contains("(4096 bytes at 4096): open it with ReadMode::Buffered"), "{said}");
            }
        }
    }

    #[test]
    fn what_the_system_says_of_a_read_keeps_its_meaning() {
        let (_folder, path, _) = made();
        let buffered = DriveFile::with_mode(&path, ReadMode::Buffered).unwrap();
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        assert!(matches!(buffered.failed(1, 2, invalid()), Error::Io { offset: 1, bytes: 2, .. }));
        if let Ok(direct) = DriveFile::with_mode(&path, ReadMode::Direct) {
            assert!(matches!(
                direct.failed(1, 2, invalid()),
                Error::DirectRefused { offset: 1, bytes: 2, .. }
            ));
            let broken = io::Error::from(io::ErrorKind::Other);
            assert!(matches!(direct.failed(1, 2, broken), Error::Io { operation: "read", .. }));
        }
    }

    #[test]
    fn windows_are_whole_blocks_where_they_must_be() {
        let (_folder, path, _) = made();
        let buffered = DriveFile::with_mode(&path, ReadMode::Buffered).unwrap().range(5000, 20_000).unwrap();
        let window = |offset, skip, bytes, needed| Window { offset, skip, bytes, needed };
        assert_eq!(buffered.window(10, 100), window(5010, 0, 100, 100));
        let Ok(direct) = DriveFile::with_mode(&path, ReadMode::Direct) else { return };
        let direct = direct.range(5000, 20_000).unwrap();
        assert_eq!(direct.window(0, 100), window(4096, 904, 4096, 1004));
        assert_eq!(direct.window(3192, 4096), window(8192, 0, 4096, 4096));
        assert_eq!(direct.window(3192, 4097), window(8192, 0, 8192, 4097));
        assert_eq!(direct.window(3191, 2), window(4096, 4095, 8192, 4097));
    }
}

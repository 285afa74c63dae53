//! Files to read from and runs of bytes in them: what is opened, when, and what its errors are called.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::place::Layout;
use crate::source::shown;
use crate::{Error, Result};

/// A file to read from. Clones are the same file.
#[derive(Clone)]
pub struct DataFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: Box<Path>,
    /// The open file, of one that is kept open.
    kept: Option<Kept>,
    /// Where it lies on its drive, once that was asked for.
    layout: OnceLock<Layout>,
}

/// What is kept open. The mode belongs to the open file, so there may be several.
#[derive(Default)]
struct Kept {
    buffered: OnceLock<Arc<File>>,
    exact: OnceLock<Arc<File>>,
    direct: OnceLock<Arc<File>>,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Through the page cache, with the system's own guess of what comes next.
    Buffered,
    /// Through the page cache, without that guess: for many reads of one file at once, each of which says all that
    /// it wants. The guess follows one reader; with several it was wrong all the time, at a third of the speed.
    Exact,
    /// Past the page cache.
    Direct,
}

impl Mode {
    /// That of an engine with many reads at once.
    pub(crate) fn of(direct: bool) -> Self {
        if direct { Self::Direct } else { Self::Exact }
    }
}

impl DataFile {
    /// A file of one sample: opened for each read, so that any number of them can be named.
    pub fn once(path: impl AsRef<Path>) -> Self {
        Self::new(path.as_ref(), None)
    }

    /// A file of many samples: opened at the first read and kept open. Any number of threads read it at once.
    pub fn kept(path: impl AsRef<Path>) -> Self {
        Self::new(path.as_ref(), Some(Kept::default()))
    }

    fn new(path: &Path, kept: Option<Kept>) -> Self {
        Self { inner: Arc::new(Inner { path: path.into(), kept, layout: OnceLock::new() }) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its length in bytes now.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Folder`] and [`Error::Read`].
    #[expect(clippy::len_without_is_empty, reason = "a file is no collection, and each call asks the system")]
    pub fn len(&self) -> Result<u64> {
        let metadata = self.path().metadata().map_err(|e| self.failed(e))?;
        if metadata.is_dir() {
            return Err(Error::Folder { name: shown(self.path()) });
        }
        Ok(metadata.len())
    }

    /// Does something with the open file.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> Result<T> {
        let file = self.open(Mode::Buffered)?;
        work(&file).map_err(|e| self.failed(e))
    }

    /// The open file: the one that is kept, or one of its own.
    pub(crate) fn open(&self, mode: Mode) -> Result<Arc<File>> {
        if let Some(file) = self.opened(mode) {
            return Ok(file);
        }
        let file = open(self.path(), mode).map_err(|e| self.refused(e, mode))?;
        Ok(self.keep(file, mode))
    }

    /// The open file if it is one that is kept and was opened before.
    pub(crate) fn opened(&self, mode: Mode) -> Option<Arc<File>> {
        self.slot(mode)?.get().cloned()
    }

    /// Keeps what was opened, if this file is one to be kept. Of two threads that open it at once, one's is kept.
    pub(crate) fn keep(&self, file: File, mode: Mode) -> Arc<File> {
        if mode == Mode::Exact {
            guess_nothing(&file);
        }
        let file = Arc::new(file);
        self.slot(mode).map_or_else(|| file.clone(), |kept| kept.get_or_init(|| file.clone()).clone())
    }

    fn slot(&self, mode: Mode) -> Option<&OnceLock<Arc<File>>> {
        let kept = self.inner.kept.as_ref()?;
        Some(match mode {
            Mode::Buffered => &kept.buffered,
            Mode::Exact => &kept.exact,
            Mode::Direct => &kept.direct,
        })
    }

    /// Where it lies, looked up at the first call.
    pub(crate) fn layout(&self) -> &Layout {
        self.inner.layout.get_or_init(|| Layout::of(self))
    }

    /// What the operating system said, with the name of the file.
    pub(crate) fn failed(&self, source: io::Error) -> Error {
        let name = shown(self.path());
        match source.kind() {
            ErrorKind::NotFound => Error::Missing { name },
            ErrorKind::IsADirectory => Error::Folder { name },
            _ => Error::Read { name, source },
        }
    }

    /// The same of a file that was to be opened or read in that mode: a file system without direct reads calls the
    /// request invalid, which alone would tell nobody what to change.
    pub(crate) fn refused(&self, source: io::Error, mode: Mode) -> Error {
        match (mode, source.kind()) {
            (Mode::Direct, ErrorKind::InvalidInput | ErrorKind::Unsupported) => Error::Storage {
                what: "direct reading (O_DIRECT)",
                why: format!("{}: the system refuses it for this file: {source}", shown(self.path())),
            },
            _ => self.failed(source),
        }
    }
}

#[cfg(target_os = "linux")]
fn open(path: &Path, mode: Mode) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.read(true);
    if mode == Mode::Direct {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path)
}

#[cfg(not(target_os = "linux"))]
fn open(path: &Path, mode: Mode) -> io::Result<File> {
    match mode {
        Mode::Buffered | Mode::Exact => OpenOptions::new().read(true).open(path),
        Mode::Direct => Err(io::Error::new(ErrorKind::Unsupported, "implemented for Linux only")),
    }
}

/// It is advice: where it is not taken, reading is slower at most.
#[cfg(target_os = "linux")]
fn guess_nothing(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

#[cfg(not(target_os = "linux"))]
fn guess_nothing(_: &File) {}

impl fmt::Debug for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DataFile").field(&self.path()).finish()
    }
}

/// A run of bytes in a file.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The file.
    pub file: DataFile,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
}

impl Extent {
    /// All of a file as it is now.
    ///
    /// # Errors
    /// As [`DataFile::len`]; [`Error::FileSize`] if it is longer than can be addressed.
    pub fn whole(file: DataFile) -> Result<Self> {
        let bytes = file.len()?;
        let limit_bytes = usize::MAX as u64;
        let bytes = usize::try_from(bytes).map_err(|_| Error::FileSize {
            name: shown(file.path()),
            bytes,
            limit_bytes,
        })?;
        Ok(Self { file, offset: 0, bytes })
    }

    /// Whether it names the same bytes.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.offset == other.offset && self.bytes == other.bytes && self.file.path() == other.file.path()
    }

    /// That the file ended after `got` of its bytes.
    pub(crate) fn shorter(&self, got: usize) -> Error {
        let name = shown(self.file.path());
        Error::Shorter { name, offset: self.offset, expected: self.bytes, got }
    }
}

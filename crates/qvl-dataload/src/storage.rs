//! Reading bytes from a drive: whole files and parts of them, into buffers that are used again.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::buffer::{Buffer, Buffers};
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
    kept: Option<OnceLock<File>>,
}

impl DataFile {
    /// A file of one sample: opened for each read, so that any number of them can be named.
    pub fn once(path: impl AsRef<Path>) -> Self {
        Self { inner: Arc::new(Inner { path: path.as_ref().into(), kept: None }) }
    }

    /// A file of many samples: opened at the first read and kept open.
    pub fn kept(path: impl AsRef<Path>) -> Self {
        Self { inner: Arc::new(Inner { path: path.as_ref().into(), kept: Some(OnceLock::new()) }) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its length in bytes now.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Folder`] and [`Error::Read`].
    pub fn len(&self) -> Result<u64> {
        let metadata = self.path().metadata().map_err(|e| self.failed(e))?;
        if metadata.is_dir() {
            return Err(Error::Folder { name: shown(self.path()) });
        }
        Ok(metadata.len())
    }

    /// Does something with the open file.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T> {
        let open = || File::open(self.path());
        let result = match &self.inner.kept {
            None => open().and_then(|file| work(&file)),
            Some(kept) => match kept.get() {
                Some(file) => work(file),
                None => open().and_then(|file| work(kept.get_or_init(|| file))),
            },
        };
        result.map_err(|e| self.failed(e))
    }

    /// What the operating system said, with the name of the file.
    pub(crate) fn failed(&self, source: std::io::Error) -> Error {
        let name = shown(self.path());
        match source.kind() {
            ErrorKind::NotFound => Error::Missing { name },
            ErrorKind::IsADirectory => Error::Folder { name },
            _ => Error::Read { name, source },
        }
    }
}

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

    fn is(&self, other: &Self) -> bool {
        self.offset == other.offset && self.bytes == other.bytes && self.file.path() == other.file.path()
    }
}

/// Reads for a [`Source`](crate::Source), in one of the loader's threads. What the loader has read ahead is handed
/// out; anything else is read now.
pub struct Reader<'a> {
    buffers: &'a dyn Buffers,
    ready: Ready,
}

impl<'a> Reader<'a> {
    /// A reader that has nothing read ahead.
    pub fn new(buffers: &'a dyn Buffers) -> Self {
        Self { buffers, ready: Ready::default() }
    }

    pub(crate) fn with_ready(buffers: &'a dyn Buffers, ready: Ready) -> Self {
        Self { buffers, ready }
    }

    /// The bytes of an extent.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Folder`], [`Error::Read`]; [`Error::Shorter`] if the file ends before the extent
    /// does; [`Error::NoBuffer`].
    pub fn read(&mut self, extent: &Extent) -> Result<Buffer> {
        if self.ready.parts.front().is_some_and(|(ready, _)| ready.is(extent))
            && let Some((_, result)) = self.ready.parts.pop_front()
        {
            return result;
        }
        let mut buffer = Buffer::take(self.buffers, extent.bytes)?;
        let got = extent.file.with(|mut file| {
            file.seek(SeekFrom::Start(extent.offset))?;
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(filled)
        })?;
        if got < extent.bytes {
            let name = shown(extent.file.path());
            return Err(Error::Shorter { name, offset: extent.offset, expected: extent.bytes, got });
        }
        Ok(buffer)
    }

    /// A buffer of `bytes` bytes of unknown content, for what does not come from a file.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn buffer(&mut self, bytes: usize) -> Result<Buffer> {
        Buffer::take(self.buffers, bytes)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// What was read ahead for one sample: its extents in the order in which it will ask for them.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) parts: std::collections::VecDeque<(Extent, Result<Buffer>)>,
    /// Bytes that were reserved for them.
    pub(crate) reserved: usize,
}

//! Files that are mapped into memory.

#![expect(unsafe_code, reason = "maps files")]

use std::fmt;

use memmap2::{Mmap, MmapOptions};

use super::{DriveFile, io_error};
use crate::source::{Source, part};
use crate::{Error, Result};

/// A file whose bytes look like memory. From [`DriveFile::map`].
pub struct Mapped {
    file: DriveFile,
    map: Mmap,
}

impl DriveFile {
    /// Maps the file, as a source that has all its bytes ([`Source::bytes`]): a device that copies by the processor
    /// takes them from there. Pages come in when they are first looked at, by the thread that does, through the page
    /// cache whatever the mode of the file is; the kernel is told that they are looked at in order.
    ///
    /// This pays for files that are in the page cache. From a drive, reads are faster: a fault brings in less at once,
    /// and nobody is told when it fails.
    ///
    /// # Errors
    /// [`Error::Truncated`] if the file is shorter than when it was opened; [`Error::Io`].
    ///
    /// # Safety
    /// While the mapping is used, nobody writes to the file or makes it shorter, in this process or another: bytes
    /// behind shared references would change, and a look at a page that is gone kills the process (`SIGBUS`), as does
    /// a drive that fails. That is why this is unsafe, and not one of the modes.
    pub unsafe fn map(&self) -> Result<Mapped> {
        let failed = |source| io_error(self.path(), "map", 0, self.len(), source);
        let len = usize::try_from(self.len()).map_err(|error| failed(std::io::Error::other(error)))?;
        if self.inner.file.metadata().map_err(failed)?.len() < self.len() {
            return Err(self.truncated(0, len));
        }
        // SAFETY: the caller promises that the file stays as it is.
        let map = unsafe { MmapOptions::new().len(len).map(&self.inner.file) }.map_err(failed)?;
        // Advice: where it is not taken, pages come in one by one.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Mapped { file: self.clone(), map })
    }
}

impl Mapped {
    /// The file.
    pub fn of(&self) -> &DriveFile {
        &self.file
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Source for Mapped {
    fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let bytes = part(&self.map, at, into.len()).map_err(|_| Error::Range {
            what: self.name(),
            at,
            bytes: into.len() as u64,
            len: self.len(),
        })?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(&self.map)
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("file", &self.file).finish_non_exhaustive()
    }
}

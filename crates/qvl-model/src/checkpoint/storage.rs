//! The bytes of a weight file: mapped, part of the program, or put together at opening.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes that live as long as anyone looks at them.
#[derive(Clone, Debug)]
pub(super) enum Storage {
    /// A file.
    Mapped(Arc<Mmap>),
    /// Part of the program.
    Static(&'static [u8]),
    /// What no file has in one piece.
    Owned(Arc<[u8]>),
}

impl Storage {
    /// Maps a file.
    ///
    /// The file must not be changed or truncated while it is in use: the operating system would end the
    /// process on access to pages that are gone.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Header`] for an empty file, which cannot be mapped.
    pub(super) fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(Error::Header {
                file: path.display().to_string(),
                reason: "the file is empty; download it again".to_owned(),
            });
        }
        #[expect(unsafe_code, reason = "a memory map is how weights larger than memory are read")]
        // SAFETY: the map is only read. That nobody truncates the file meanwhile cannot be proven here; it
        // is the documented duty of the caller, as for every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(Arc::new(map)))
    }

    /// All of them.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

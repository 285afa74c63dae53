//! The bytes of a weight file: mapped, part of the program, or put together at opening.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};

/// Bytes of a page of memory, or a multiple of them.
const PAGE: usize = 1 << 16;

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

    /// Gives the memory of whole pages inside a range back to the system; they come from the file again when they
    /// are read again. Nothing happens to bytes that are not mapped.
    pub(super) fn release(&self, range: Range<usize>) {
        let Self::Mapped(map) = self else { return };
        // The neighbours share the first and the last page.
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start < end {
            #[expect(unsafe_code, reason = "advice to forget pages of a map that is never written")]
            // SAFETY: the map is read-only and of a file, so forgotten pages are read anew with the same bytes.
            let forgotten =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
            // Only advice.
            forgotten.ok();
        }
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

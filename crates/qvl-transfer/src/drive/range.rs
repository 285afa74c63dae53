//! Ranges of files, and the reads that have them.

use super::{DriveFile, bounce};
use crate::Result;
use crate::device::check_range;
use crate::memory::BLOCK_BYTES;
use crate::source::Source;

/// A range of a file.
#[derive(Clone, Debug)]
pub struct FileRange {
    pub(super) file: DriveFile,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl FileRange {
    /// The file.
    pub fn of(&self) -> &DriveFile {
        &self.file
    }

    /// Where it begins in the file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The read that has these bytes of the range: whole blocks, if the file is read past the page cache.
    pub(crate) fn window(&self, at: u64, bytes: usize) -> Window {
        let begin = self.offset + at;
        let block = self.file.block_bytes();
        let offset = begin - begin % block as u64;
        let skip = (begin - offset) as usize;
        let read = (skip + bytes).next_multiple_of(block);
        Window { offset, skip, bytes: read, needed: skip + bytes }
    }
}

/// A read of a file, of which a part is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// What is wanted begins so many bytes into it.
    pub(crate) skip: usize,
    /// Its length.
    pub(crate) bytes: usize,
    /// The end of what is wanted in it: the file may end here.
    pub(crate) needed: usize,
}

impl Source for FileRange {
    fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    fn len(&self) -> u64 {
        self.bytes
    }

    /// Of a file that is read past the page cache, what is not aligned on both sides goes through a buffer of this
    /// thread.
    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        check_range(&self.name(), at, into.len() as u64, self.bytes)?;
        let (file, begin) = (&self.file, self.offset + at);
        if !file.is_direct() {
            return file.read_at(begin, into, into.len());
        }
        let mut done = 0;
        while done < into.len() {
            let offset = begin + done as u64;
            let rest = &mut into[done..];
            match bounce::Piece::next(offset, rest.as_ptr().addr(), rest.len()) {
                bounce::Piece::Straight(bytes) => {
                    file.read_at(offset, &mut rest[..bytes], bytes)?;
                    done += bytes;
                }
                bounce::Piece::Through { skip, bytes } => {
                    let needed = skip + bytes;
                    let through = |buffer: &mut [u8]| {
                        let window = &mut buffer[..needed.next_multiple_of(BLOCK_BYTES)];
                        file.read_at(offset - skip as u64, window, needed)?;
                        rest[..bytes].copy_from_slice(&window[skip..needed]);
                        Ok::<(), crate::Error>(())
                    };
                    bounce::with_buffer(through).map_err(|error| file.failed(offset, bytes, error))??;
                    done += bytes;
                }
            }
        }
        Ok(())
    }

    fn file(&self) -> Option<&FileRange> {
        Some(self)
    }
}

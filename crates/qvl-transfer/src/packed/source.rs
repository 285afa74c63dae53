//! Packed bytes as a source of the unpacked ones.

use std::cell::RefCell;
use std::fmt;

use super::block::{self, Scratch};
use super::format::{Block, HEAD_BYTES, Head};
use super::{Kind, Summary};
use crate::device::check_range;
use crate::source::{Source, part};
use crate::{Error, Result};

/// What a packed file or packed memory is unpacked to. The workers of an engine read and unpack blocks at once, each
/// with some memory of its own that it keeps: a packed block and 84 KiB.
pub struct PackedSource<S> {
    source: S,
    head: Head,
    blocks: Vec<Block>,
}

impl<S: Source> PackedSource<S> {
    /// Opens a range of a file ([`FileRange`](crate::drive::FileRange)), bytes in memory
    /// ([`Memory`](crate::source::Memory)), or any other source that has a packed file and nothing else. Reads its head,
    /// which takes 8 bytes for each block.
    ///
    /// # Errors
    /// [`Error::Packed`] if it is no packed file, of another version, or damaged; [`Error::Truncated`] if a file ends
    /// early; those of reading.
    pub fn open(source: S) -> Result<Self> {
        let wrong = |why| Error::Packed { what: source.name(), why };
        let len = source.len();
        let mut bytes = [0; HEAD_BYTES];
        if len < HEAD_BYTES as u64 {
            return Err(wrong(format!("it has {len} bytes, its head alone has {HEAD_BYTES}")));
        }
        source.fill(0, &mut bytes)?;
        let head = Head::decode(&bytes, len).map_err(wrong)?;
        if head.packed_bytes > len {
            return Err(match source.file() {
                Some(file) => Error::Truncated {
                    path: file.of().path().to_owned(),
                    offset: file.offset(),
                    bytes: head.packed_bytes,
                    len: file.offset() + len,
                },
                None => wrong(format!("it ends at {len} bytes, its head says {}", head.packed_bytes)),
            });
        }
        // No more than the source has, which was just checked.
        let mut index = vec![0; head.index_bytes() as usize];
        source.fill(HEAD_BYTES as u64, &mut index)?;
        let blocks = head.decode_index(&index).map_err(wrong)?;
        Ok(Self { source, head, blocks })
    }

    /// What the bytes are.
    pub fn kind(&self) -> Kind {
        self.head.kind
    }

    /// How much smaller it is packed.
    pub fn summary(&self) -> Summary {
        let raw = |(number, block): (usize, &Block)| block.bytes > self.head.unpacked_bytes_of(number as u64);
        Summary {
            unpacked_bytes: self.head.unpacked_bytes,
            packed_bytes: self.head.packed_bytes,
            blocks: self.blocks.len() as u64,
            raw_blocks: self.blocks.iter().enumerate().filter(|&block| raw(block)).count() as u64,
        }
    }

    /// Unpacks a block, of which `out` has the length.
    fn unpack(&self, number: usize, out: &mut [u8], thread: &mut Thread) -> Result<()> {
        let wrong = |why| Error::Packed { what: format!("{}, block {number}", self.source.name()), why };
        let Some(block) = self.blocks.get(number) else {
            return Err(wrong("there is no such block".to_owned()));
        };
        let Thread { packed, scratch } = thread;
        let bytes = block.bytes as usize;
        let packed = match (self.source.bytes(), self.source.file()) {
            (Some(all), _) => part(all, block.at, bytes)?,
            (None, Some(range)) => {
                let window = range.window(block.at, bytes);
                let into = aligned(packed, window.bytes);
                range.of().read_at(window.offset, into, window.needed)?;
                &into[window.skip..window.needed]
            }
            (None, None) => {
                let into = aligned(packed, bytes);
                self.source.fill(block.at, into)?;
                into
            }
        };
        let crc32 = crc32fast::hash(packed);
        if crc32 != block.crc32 {
            return Err(wrong(format!("its CRC-32 is {crc32:08x}, expected {:08x}", block.crc32)));
        }
        block::unpack(self.head.kind, packed, out, scratch).map_err(wrong)
    }
}

impl<S: Source> Source for PackedSource<S> {
    fn name(&self) -> String {
        format!("{} (packed)", self.source.name())
    }

    fn len(&self) -> u64 {
        self.head.unpacked_bytes
    }

    /// Whole blocks are unpacked to where they belong; of others, the part is copied.
    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        check_range(&self.name(), at, into.len() as u64, self.len())?;
        let block_bytes = self.granularity() as u64;
        THREAD.with_borrow_mut(|thread| {
            let (mut at, mut into) = (at, into);
            while !into.is_empty() {
                let number = at / block_bytes;
                let (skip, bytes) =
                    ((at % block_bytes) as usize, self.head.unpacked_bytes_of(number) as usize);
                let (now, later) = into.split_at_mut(into.len().min(bytes - skip));
                if now.len() == bytes {
                    self.unpack(number as usize, now, thread)?;
                } else {
                    let mut whole = vec![0; bytes];
                    self.unpack(number as usize, &mut whole, thread)?;
                    now.copy_from_slice(&whole[skip..skip + now.len()]);
                }
                at += now.len() as u64;
                into = later;
            }
            Ok(())
        })
    }

    /// A block.
    fn granularity(&self) -> usize {
        self.head.block_bytes as usize
    }
}

impl<S: Source> fmt::Debug for PackedSource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedSource").field("name", &self.name()).field("summary", &self.summary()).finish()
    }
}

/// What a thread unpacks with.
#[derive(Default)]
struct Thread {
    packed: Vec<u8>,
    scratch: Scratch,
}

thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

/// `bytes` bytes that begin at a multiple of a drive's block. No more than a packed block and the room around it.
fn aligned(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    use crate::memory::BLOCK_BYTES;
    if buffer.len() < bytes + BLOCK_BYTES {
        buffer.resize(bytes + BLOCK_BYTES, 0);
    }
    let skip = (buffer.as_ptr() as usize).next_multiple_of(BLOCK_BYTES) - buffer.as_ptr() as usize;
    &mut buffer[skip..skip + bytes]
}

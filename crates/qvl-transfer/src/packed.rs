//! Segments that take fewer bytes on the drive and come back bit by bit: bf16 weights with their exponents packed.
//!
//! The exponents of trained weights are few and mostly alike: of 8 bits they need 2.6. Signs and mantissas have no
//! pattern and stay as they are. So a file gets smaller by a third, a drive that is the slowest link delivers half as
//! many weights again, and the processor pays for it. Whether that is a gain depends on the machine; [`is_worth`] says
//! what follows from measured rates, and [`Choice`] measures both ways.
//!
//! A file is blocks that are unpacked independently, each with its length and its checksum; a block that does not get
//! smaller is stored as it is. The formats are described where they are read: `packed/format.rs` the head,
//! `packed/block.rs` a block, `packed/huffman.rs` the code.

mod block;
mod choice;
mod format;
mod fuzz;
mod huffman;
mod source;

use std::io::{self, Read, Seek, SeekFrom, Write};

pub use choice::{Choice, is_worth};
use format::{HEAD_BYTES, Head, check_block_bytes, encode_index};
#[doc(hidden)]
pub use fuzz::fuzzed;
pub use source::PackedSource;

use crate::{Error, Result};

/// What the bytes are, and so how they are packed. Any bytes come back from either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes of which some are frequent.
    Bytes = 0,
    /// Numbers of 16 bits: a sign, an exponent of 8 bits and a mantissa of 7, little-endian.
    Bf16 = 1,
}

impl Kind {
    fn symbol_bytes(self) -> usize {
        match self {
            Self::Bytes => 1,
            Self::Bf16 => 2,
        }
    }
}

/// Bytes of a block when it is unpacked, if nothing else is said: 1 MiB, a chunk of the engine.
pub const BLOCK_BYTES: usize = 1 << 20;

/// What packing made.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Bytes before.
    pub unpacked_bytes: u64,
    /// Bytes after, with the head.
    pub packed_bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Of these, those that did not get smaller and were stored as they are.
    pub raw_blocks: u64,
}

impl Summary {
    /// The bytes after as a share of those before; 1 of nothing.
    pub fn ratio(&self) -> f64 {
        if self.unpacked_bytes == 0 { 1.0 } else { self.packed_bytes as f64 / self.unpacked_bytes as f64 }
    }
}

/// Packs bytes as they come. The head is written last: a file that was not finished is not taken for one.
#[derive(Debug)]
pub struct PackedWriter<W> {
    to: W,
    /// Where the file begins in `to`.
    begin: u64,
    kind: Kind,
    block_bytes: usize,
    unpacked_bytes: u64,
    /// Of the next block.
    pending: Vec<u8>,
    packed: Vec<u8>,
    /// Length and checksum of each block.
    index: Vec<(u32, u32)>,
    raw_blocks: u64,
}

impl<W: Write + Seek> PackedWriter<W> {
    /// Packs `unpacked_bytes` bytes to where `to` is now, in blocks of `block_bytes` bytes: a multiple of 4096 up to
    /// 8 MiB, and no more than a chunk of the engine that will read them. Nothing may be behind that place.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Packed`] if `to` fails.
    pub fn new(mut to: W, unpacked_bytes: u64, kind: Kind, block_bytes: usize) -> Result<Self> {
        check_block_bytes(block_bytes).map_err(|expected| Error::Setting {
            name: "block_bytes",
            got: block_bytes.to_string(),
            expected,
        })?;
        let head = Head { kind, block_bytes: block_bytes as u32, unpacked_bytes, packed_bytes: 0 };
        if head.block_count() > u64::from(u32::MAX) {
            return Err(Error::Setting {
                name: "block_bytes",
                got: block_bytes.to_string(),
                expected: format!("{unpacked_bytes} bytes in at most {} blocks need larger ones", u32::MAX),
            });
        }
        let begin = to.stream_position().map_err(unwritten)?;
        let head_bytes = HEAD_BYTES as u64 + head.index_bytes();
        io::copy(&mut io::repeat(0).take(head_bytes), &mut to).map_err(unwritten)?;
        Ok(Self {
            to,
            begin,
            kind,
            block_bytes,
            unpacked_bytes,
            pending: Vec::with_capacity(block_bytes),
            packed: Vec::with_capacity(block_bytes + 1),
            index: Vec::new(),
            raw_blocks: 0,
        })
    }

    /// Packs some more bytes.
    ///
    /// # Errors
    /// [`Error::Packed`] if the writer fails; [`Error::Range`] if they are more than was said.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        let so_far = self.so_far();
        crate::device::check_range("what is packed", so_far, bytes.len() as u64, self.unpacked_bytes)?;
        while !bytes.is_empty() {
            let room = self.block_bytes - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == self.block_bytes {
                self.block()?;
            }
        }
        Ok(())
    }

    /// Ends the file, and gives the writer back.
    ///
    /// # Errors
    /// [`Error::Packed`] if the writer fails, or if bytes are missing.
    pub fn finish(mut self) -> Result<(W, Summary)> {
        if self.so_far() != self.unpacked_bytes {
            return Err(Error::Packed {
                what: WRITER.to_owned(),
                why: format!("{} bytes came, {} were expected", self.so_far(), self.unpacked_bytes),
            });
        }
        if !self.pending.is_empty() {
            self.block()?;
        }
        let Self { mut to, begin, kind, block_bytes, unpacked_bytes, index, raw_blocks, .. } = self;
        let head = Head { kind, block_bytes: block_bytes as u32, unpacked_bytes, packed_bytes: 0 };
        let blocks_bytes: u64 = index.iter().map(|(bytes, _)| u64::from(*bytes)).sum();
        let packed_bytes = HEAD_BYTES as u64 + head.index_bytes() + blocks_bytes;
        let head = Head { packed_bytes, ..head };
        let mut end = || {
            to.seek(SeekFrom::Start(begin + HEAD_BYTES as u64))?;
            to.write_all(&encode_index(&index))?;
            to.seek(SeekFrom::Start(begin))?;
            to.write_all(&head.encode())?;
            to.seek(SeekFrom::Start(begin + packed_bytes))?;
            to.flush()
        };
        end().map_err(unwritten)?;
        let blocks = index.len() as u64;
        Ok((to, Summary { unpacked_bytes, packed_bytes, blocks, raw_blocks }))
    }

    fn so_far(&self) -> u64 {
        (self.index.len() * self.block_bytes + self.pending.len()) as u64
    }

    fn block(&mut self) -> Result<()> {
        self.packed.clear();
        block::pack(self.kind, &self.pending, &mut self.packed);
        self.raw_blocks += u64::from(self.packed.len() > self.pending.len());
        self.to.write_all(&self.packed).map_err(unwritten)?;
        self.index.push((self.packed.len() as u32, crc32fast::hash(&self.packed)));
        self.pending.clear();
        Ok(())
    }
}

/// Packs `unpacked_bytes` bytes of `from` to `to`. Takes a second for some hundred megabytes; `from` is read in pieces
/// of `block_bytes`.
///
/// # Errors
/// Those of [`PackedWriter`]; [`Error::Source`] if `from` fails or ends early.
pub fn pack<W: Write + Seek>(
    mut from: impl Read,
    unpacked_bytes: u64,
    to: W,
    kind: Kind,
    block_bytes: usize,
) -> Result<(W, Summary)> {
    let mut writer = PackedWriter::new(to, unpacked_bytes, kind, block_bytes)?;
    let mut piece = vec![0; block_bytes];
    let mut at = 0;
    while at < unpacked_bytes {
        let bytes = (unpacked_bytes - at).min(block_bytes as u64) as usize;
        from.read_exact(&mut piece[..bytes]).map_err(|error| Error::Source {
            name: "what is packed".to_owned(),
            at,
            why: error.to_string(),
        })?;
        writer.push(&piece[..bytes])?;
        at += bytes as u64;
    }
    writer.finish()
}

fn unwritten(error: io::Error) -> Error {
    Error::Packed { what: WRITER.to_owned(), why: format!("it cannot be written: {error}") }
}

const WRITER: &str = "the file that is packed to";

#[cfg(test)]
mod tests {
    /// Weights as they come from training: normal, with a deviation of 0.02, in bf16.
    pub(super) fn weights(seed: u64, bytes: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let numbers = (0..bytes.div_ceil(2)).flat_map(|_| {
            let x = 0.02 * (-2.0 * (1.0 - random()).ln()).sqrt() * (std::f64::consts::TAU * random()).cos();
            (((x as f32).to_bits() >> 16) as u16).to_le_bytes()
        });
        numbers.take(bytes).collect()
    }
}

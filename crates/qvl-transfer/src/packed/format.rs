//! The head of a packed file: what its blocks are and where. Pure.
//!
//! ```text
//! "qvlpackd"                 8 bytes
//! version                    u32 LE, 1
//! kind                       u8: 0 bytes, 1 bf16; then three bytes 0
//! block_bytes                u32 LE: of a block when it is unpacked; a multiple of 4096
//! block_count                u32 LE
//! unpacked_bytes             u64 LE
//! packed_bytes               u64 LE, with this head
//! checksum                   u32 LE, CRC-32 of all before
//! block_count times
//!   packed_bytes             u32 LE
//!   checksum                 u32 LE, CRC-32 of the packed bytes
//! checksum                   u32 LE, CRC-32 of all since the last one
//! ```
//!
//! The blocks follow, one after another and nothing between: since only lengths are stored, no two can overlap.

use super::Kind;

/// The head without the blocks' lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) block_bytes: u32,
    pub(super) unpacked_bytes: u64,
    pub(super) packed_bytes: u64,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// In the file.
    pub(super) at: u64,
    pub(super) bytes: u32,
    pub(super) crc32: u32,
}

pub(super) const HEAD_BYTES: usize = 44;
const MAGIC: &[u8; 8] = b"qvlpackd";
const VERSION: u32 = 1;
const ENTRY_BYTES: u64 = 8;
const CHECKSUM_BYTES: u64 = 4;

/// What a block has a multiple of.
pub(super) const BLOCK_BYTES_MIN: u32 = 4096;
/// The largest block. Each thread that unpacks keeps memory for one.
pub(super) const BLOCK_BYTES_MAX: u32 = 8 << 20;

impl Head {
    pub(super) fn block_count(&self) -> u64 {
        self.unpacked_bytes.div_ceil(u64::from(self.block_bytes))
    }

    /// The bytes of a block when it is unpacked.
    pub(super) fn unpacked_bytes_of(&self, block: u64) -> u32 {
        let begin = block * u64::from(self.block_bytes);
        (self.unpacked_bytes - begin).min(u64::from(self.block_bytes)) as u32
    }

    /// Bytes of the blocks' lengths with their checksum.
    pub(super) fn index_bytes(&self) -> u64 {
        self.block_count() * ENTRY_BYTES + CHECKSUM_BYTES
    }

    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend([self.kind as u8, 0, 0, 0]);
        head.extend(self.block_bytes.to_le_bytes());
        head.extend((self.block_count() as u32).to_le_bytes());
        head.extend(self.unpacked_bytes.to_le_bytes());
        head.extend(self.packed_bytes.to_le_bytes());
        head.extend(crc32fast::hash(&head).to_le_bytes());
        let mut bytes = [0; HEAD_BYTES];
        bytes.copy_from_slice(&head);
        bytes
    }

    /// Reads the head of a file that has `file_bytes` bytes.
    pub(super) fn decode(bytes: &[u8; HEAD_BYTES], file_bytes: u64) -> Result<Self, String> {
        let u32_at = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let u64_at = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if !bytes.starts_with(MAGIC) {
            return Err("it does not begin with \"qvlpackd\": nothing packed, or not to its end".to_owned());
        }
        if u32_at(8) != VERSION {
            return Err(format!("its version is {}, expected {VERSION}", u32_at(8)));
        }
        let (got, expected) = (crc32fast::hash(&bytes[..40]), u32_at(40));
        if got != expected {
            return Err(format!("the CRC-32 of its head is {got:08x}, expected {expected:08x}"));
        }
        let kind = match bytes[12..16] {
            [0, 0, 0, 0] => Kind::Bytes,
            [1, 0, 0, 0] => Kind::Bf16,
            _ => return Err(format!("its kind is {:?}, known are 0 (bytes) and 1 (bf16)", &bytes[12..16])),
        };
        let head =
            Self { kind, block_bytes: u32_at(16), unpacked_bytes: u64_at(24), packed_bytes: u64_at(32) };
        check_block_bytes(head.block_bytes as usize)?;
        if head.block_count() != u64::from(u32_at(20)) {
            return Err(format!(
                "it has {} blocks, {} bytes in blocks of {} make {}",
                u32_at(20),
                head.unpacked_bytes,
                head.block_bytes,
                head.block_count()
            ));
        }
        let least = HEAD_BYTES as u64 + head.index_bytes() + head.block_count();
        if head.packed_bytes < least {
            return Err(format!("it says that it has {} bytes; its blocks need {least}", head.packed_bytes));
        }
        if head.packed_bytes < file_bytes {
            return Err(format!("it has {file_bytes} bytes, {} belong to it", head.packed_bytes));
        }
        Ok(head)
    }

    /// Reads the blocks' lengths; `bytes` are [`Self::index_bytes`].
    pub(super) fn decode_index(&self, bytes: &[u8]) -> Result<Vec<Block>, String> {
        let (entries, checksum) = bytes.split_last_chunk::<4>().ok_or("it has no list of blocks")?;
        let (got, expected) = (crc32fast::hash(entries), u32::from_le_bytes(*checksum));
        if got != expected {
            return Err(format!("the CRC-32 of its list of blocks is {got:08x}, expected {expected:08x}"));
        }
        let mut at = HEAD_BYTES as u64 + self.index_bytes();
        let mut blocks = Vec::with_capacity(entries.len() / ENTRY_BYTES as usize);
        for (number, entry) in entries.as_chunks::<{ ENTRY_BYTES as usize }>().0.iter().enumerate() {
            let [a, b, c, d, crc32 @ ..] = *entry;
            let (bytes, most) = (u32::from_le_bytes([a, b, c, d]), self.unpacked_bytes_of(number as u64) + 1);
            if bytes == 0 || bytes > most {
                return Err(format!("block {number} has {bytes} bytes, 1 to {most} can be"));
            }
            blocks.push(Block { at, bytes, crc32: u32::from_le_bytes(crc32) });
            at += u64::from(bytes);
        }
        if at != self.packed_bytes {
            return Err(format!("its blocks end at {at}, itself at {}", self.packed_bytes));
        }
        Ok(blocks)
    }
}

pub(super) fn encode_index(blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut index = Vec::with_capacity(blocks.len() * ENTRY_BYTES as usize + 4);
    for (bytes, crc32) in blocks {
        index.extend(bytes.to_le_bytes());
        index.extend(crc32.to_le_bytes());
    }
    index.extend(crc32fast::hash(&index).to_le_bytes());
    index
}

pub(super) fn check_block_bytes(bytes: usize) -> Result<(), String> {
    let (least, most) = (BLOCK_BYTES_MIN as usize, BLOCK_BYTES_MAX as usize);
    if bytes.is_multiple_of(least) && (least..=most).contains(&bytes) {
        return Ok(());
    }
    Err(format!("blocks of {bytes} bytes: a multiple of {least} up to {most} is needed"))
}

//! Reads past the page cache to memory that is not aligned for them.

use std::cell::RefCell;
use std::io;

use crate::memory::{BLOCK_BYTES, LARGE_PAGE_BYTES, Region};

/// What a read past the page cache to somewhere else is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes straight to where they belong: whole blocks, aligned on both sides.
    Straight(usize),
    /// So many bytes that begin `skip` bytes into a block, through a buffer.
    Through {
        /// Bytes of the block before.
        skip: usize,
        /// Bytes that are wanted.
        bytes: usize,
    },
}

impl Piece {
    /// The next piece of `bytes` bytes at `offset` of a file that go to `address`. Pure.
    pub(super) fn next(offset: u64, address: usize, bytes: usize) -> Self {
        let skip = (offset % BLOCK_BYTES as u64) as usize;
        let aligned_alike = address % BLOCK_BYTES == skip;
        if aligned_alike && skip == 0 && bytes >= BLOCK_BYTES {
            return Self::Straight(bytes - bytes % BLOCK_BYTES);
        }
        // Up to where the rest can go straight, if it can.
        let limit = if aligned_alike { BLOCK_BYTES } else { BUFFER_BYTES };
        Self::Through { skip, bytes: bytes.min(limit - skip) }
    }
}

/// Lends this thread's buffer, which is aligned to blocks and kept for the next time.
///
/// # Errors
/// If the system has no memory for it.
pub(super) fn with_buffer<R>(work: impl FnOnce(&mut [u8]) -> R) -> io::Result<R> {
    BUFFER.with_borrow_mut(|buffer| {
        let buffer = match buffer {
            Some(buffer) => buffer,
            none => none.insert(Region::map(BUFFER_BYTES)?),
        };
        Ok(work(buffer.as_mut_slice()))
    })
}

thread_local! {
    static BUFFER: RefCell<Option<Region>> = const { RefCell::new(None) };
}

/// Bytes of the buffer of a thread: a large page, which drives write to faster than to small ones, and which stays in the
/// caches.
const BUFFER_BYTES: usize = LARGE_PAGE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_straight_where_both_sides_are_aligned() {
        const B: usize = BLOCK_BYTES;
        for (offset, address, bytes, piece) in [
            (0, 0, B, Piece::Straight(B)),
            (B as u64, 7 * B, 3 * B + 5, Piece::Straight(3 * B)),
            // The last part of a block, and less than a block.
            (0, 0, B - 1, Piece::Through { skip: 0, bytes: B - 1 }),
            // Alike, so that after the first block the rest goes straight.
            (10, B + 10, 3 * B, Piece::Through { skip: 10, bytes: B - 10 }),
            (10, B + 10, 3, Piece::Through { skip: 10, bytes: 3 }),
            // Not alike: all of it through the buffer.
            (10, B, 3 * B, Piece::Through { skip: 10, bytes: 3 * B }),
            (0, 1, 2 * BUFFER_BYTES, Piece::Through { skip: 0, bytes: BUFFER_BYTES }),
            (5, 0, 2 * BUFFER_BYTES, Piece::Through { skip: 5, bytes: BUFFER_BYTES - 5 }),
        ] {
            assert_eq!(Piece::next(offset, address, bytes), piece, "{bytes} bytes at {offset} to {address}");
        }
    }
}

//! How a transfer is cut into chunks. Pure.

use std::ops::Range;

/// The chunks of one transfer, in order.
///
/// Cuts lie at multiples of the chunk size counted from `phase` before the first byte: for a file, that is where the
/// file's own multiples are, so that every chunk but the first and the last is whole blocks of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    bytes: u64,
    chunk_bytes: u64,
    /// Bytes from the last cut before the first byte to it.
    phase: u64,
}

impl Chunks {
    /// `chunk_bytes` is not 0. The first byte lies `offset` bytes into whatever the cuts are counted in.
    pub(crate) fn new(bytes: u64, chunk_bytes: u64, offset: u64) -> Self {
        Self { bytes, chunk_bytes, phase: offset % chunk_bytes }
    }

    pub(crate) fn count(&self) -> u64 {
        if self.bytes == 0 { 0 } else { (self.phase + self.bytes).div_ceil(self.chunk_bytes) }
    }

    /// The bytes of a chunk, counted from the first byte of the transfer.
    pub(crate) fn range(&self, index: u64) -> Range<u64> {
        let cut = |index: u64| (index * self.chunk_bytes).saturating_sub(self.phase).min(self.bytes);
        cut(index)..cut(index + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_are_all_bytes_once_and_in_order(
            bytes in 0u64..100_000,
            chunk_bytes in 1u64..5000,
            offset in 0u64..1 << 40,
        ) {
            let chunks = Chunks::new(bytes, chunk_bytes, offset);
            let mut end = 0;
            for index in 0..chunks.count() {
                let range = chunks.range(index);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.end > range.start && range.end - range.start <= chunk_bytes);
                prop_assert!(range.end == bytes || (offset + range.end).is_multiple_of(chunk_bytes));
                end = range.end;
            }
            prop_assert_eq!(end, bytes);
        }
    }
}

//! Memory for values that are read: page-aligned, and used again, since the first touch of fresh pages costs more than
//! reading them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Bytes of a page: what direct I/O needs as alignment.
pub(crate) const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Buffers that came back, up to a bound of bytes; and one that is larger than the bound, as long as nothing else is
/// asked for: whoever reads large values one after the other has its memory once.
#[derive(Clone)]
pub(crate) struct Buffers {
    shared: Arc<Mutex<Free>>,
}

struct Free {
    /// By number of pages, with some slack: see [`Buffers::take`].
    buffers: std::collections::BTreeMap<usize, Vec<Vec<Page>>>,
    bytes: usize,
    bytes_max: usize,
}

impl Free {
    fn clear(&mut self) {
        self.buffers.clear();
        self.bytes = 0;
    }
}

impl Buffers {
    /// Keeps at most `bytes_max` bytes that nobody uses.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let free = Free { buffers: Default::default(), bytes: 0, bytes_max };
        Self { shared: Arc::new(Mutex::new(free)) }
    }

    /// A buffer of at least `len` bytes, its contents anything that was in a buffer before.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let pages = size_class(len.div_ceil(PAGE_BYTES).max(1));
        let used = {
            let mut free = self.shared.lock();
            let found = free.buffers.get_mut(&pages).and_then(Vec::pop);
            match &found {
                Some(_) => free.bytes -= pages * PAGE_BYTES,
                // The one that is larger than the bound is in the way of what is used now.
                None if free.bytes > free.bytes_max => free.clear(),
                None => {}
            }
            found
        };
        let pages = used.unwrap_or_else(|| bytemuck::allocation::zeroed_vec(pages));
        Buffer { pages, home: self.clone() }
    }

    /// Bytes that nobody uses and that are kept for the next read.
    pub(crate) fn free_bytes(&self) -> usize {
        self.shared.lock().bytes
    }
}

/// Rounded up to an eighth of its power of two, so that buffers fit others of about their size: at most 1/8 is unused.
fn size_class(pages: usize) -> usize {
    let step = (pages.next_power_of_two() / 16).max(1);
    pages.div_ceil(step) * step
}

/// Page-aligned memory that goes back to its [`Buffers`] when dropped.
pub(crate) struct Buffer {
    pages: Vec<Page>,
    home: Buffers,
}

impl Buffer {
    /// All of it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages)
    }

    /// The buffer as shared bytes, of which `range` is seen.
    ///
    /// # Panics
    ///
    /// If `range` is not within the buffer.
    pub(crate) fn share(self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(self).slice(range)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pages)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let bytes = pages.len() * PAGE_BYTES;
        let mut free = self.home.shared.lock();
        if free.bytes == 0 || free.bytes + bytes <= free.bytes_max {
            free.bytes += bytes;
            free.buffers.entry(pages.len()).or_default().push(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_fits_others_of_its_size() {
        let buffers = Buffers::new(1 << 20);
        let mut buffer = buffers.take(100_000);
        buffer.bytes_mut()[0] = 7;
        let shared = buffer.share(0..100_000);
        let other = shared.clone();
        drop(shared);
        assert_eq!(buffers.free_bytes(), 0, "somebody still reads it");
        drop(other);
        assert_eq!(buffers.free_bytes(), 26 * PAGE_BYTES);
        assert_eq!(buffers.take(99_000).as_ref()[0], 7);
        assert_eq!(buffers.take(10).as_ref()[0], 0);
    }

    #[test]
    fn what_is_over_the_bound_is_freed() {
        let buffers = Buffers::new(8 * PAGE_BYTES);
        let held: Vec<_> = (0..4).map(|_| buffers.take(4 * PAGE_BYTES)).collect();
        drop(held);
        assert_eq!(buffers.free_bytes(), 8 * PAGE_BYTES);
    }

    #[test]
    fn one_that_is_larger_than_the_bound_stays_until_another_is_wanted() {
        let buffers = Buffers::new(8 * PAGE_BYTES);
        buffers.take(1 << 20).bytes_mut()[0] = 9;
        let again = buffers.take(1 << 20);
        assert_eq!((again.as_ref()[0], buffers.free_bytes()), (9, 0));
        drop(again);
        drop(buffers.take(PAGE_BYTES));
        assert_eq!(buffers.free_bytes(), PAGE_BYTES);
    }

    #[test]
    fn classes_waste_little() {
        for pages in 1..5000 {
            let class = size_class(pages);
            assert!(class >= pages && (class - pages) * 8 <= class, "{pages} pages in {class}");
        }
    }
}

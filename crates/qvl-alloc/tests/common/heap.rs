//! Memory of the heap, which counts what it has given, and can refuse.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses some of it")]
#![expect(unsafe_code, reason = "a backing")]

use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use qvl_alloc::backing::Region;
use qvl_alloc::{Backing, Error, Result};

#[derive(Debug)]
pub(crate) struct Heap {
    granularity: usize,
    most_bytes: usize,
    given: AtomicUsize,
    maps: AtomicUsize,
}

impl Heap {
    pub(crate) fn new(granularity: usize, most_bytes: usize) -> Self {
        Self { granularity, most_bytes, given: AtomicUsize::new(0), maps: AtomicUsize::new(0) }
    }

    /// Bytes that were given and not taken back.
    pub(crate) fn given_bytes(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }

    /// Regions that were ever given.
    pub(crate) fn maps(&self) -> usize {
        self.maps.load(Ordering::SeqCst)
    }

    fn layout(&self, bytes: usize) -> Layout {
        Layout::from_size_align(bytes, self.granularity).unwrap()
    }
}

// SAFETY: a region is from the allocator, zeroed, and given back once, by the layout it was allocated with.
unsafe impl Backing for Heap {
    fn name(&self) -> &str {
        "test heap"
    }

    fn is_host(&self) -> bool {
        true
    }

    fn granularity(&self) -> usize {
        self.granularity
    }

    fn map(&self, bytes: usize) -> Result<Region> {
        assert!(bytes > 0 && bytes.is_multiple_of(self.granularity));
        let refuse = || Error::System {
            operation: "map",
            what: format!("{bytes} bytes"),
            source: io::ErrorKind::OutOfMemory.into(),
            remedy: "Ask for less",
        };
        if self.given_bytes() + bytes > self.most_bytes {
            return Err(refuse());
        }
        // SAFETY: the size is not 0.
        let first = unsafe { std::alloc::alloc_zeroed(self.layout(bytes)) };
        let first = NonNull::new(first).ok_or_else(refuse)?;
        self.given.fetch_add(bytes, Ordering::SeqCst);
        self.maps.fetch_add(1, Ordering::SeqCst);
        Ok(Region { first, bytes })
    }

    unsafe fn unmap(&self, region: Region) {
        self.given.fetch_sub(region.bytes, Ordering::SeqCst);
        // SAFETY: allocated above with this layout, and by the caller's promise given back once.
        unsafe { std::alloc::dealloc(region.first.as_ptr(), self.layout(region.bytes)) };
    }
}

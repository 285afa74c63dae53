//! The allocator of the program, whichever it is.

#![expect(unsafe_code, reason = "calls the allocator of the program")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

use super::{Backing, HostBacking, Region, check_length};
use crate::{Error, Result};

/// The heap of the program. Its pages come when they are first touched, mostly small ones, and `discard` gives nothing
/// back: for programs on systems without [`Pages`](super::Pages), for tests, and for pools that are small.
#[derive(Clone, Copy, Debug)]
pub struct Heap {
    granularity: usize,
}

impl Heap {
    /// With regions in multiples of `granularity`, a power of two from 64 on; they are aligned to it.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is something else, or more than 1 GiB.
    pub fn new(granularity: usize) -> Result<Self> {
        if granularity.is_power_of_two() && (64..=1 << 30).contains(&granularity) {
            return Ok(Self { granularity });
        }
        let expected = "a power of two from 64 to 1073741824 is needed".to_owned();
        Err(Error::Setting { name: "granularity", got: granularity.to_string(), expected })
    }

    fn layout(&self, bytes: usize) -> Result<Layout> {
        check_length(bytes, self.granularity)?;
        Layout::from_size_align(bytes, self.granularity).map_err(|_| Error::Setting {
            name: "bytes of a region",
            got: bytes.to_string(),
            expected: format!("no more than {} can be had", isize::MAX as usize - self.granularity),
        })
    }
}

impl Default for Heap {
    /// With a granularity of 64 bytes.
    fn default() -> Self {
        Self { granularity: 64 }
    }
}

// SAFETY: what the allocator gives is one's own until it is given back, and it is zeroed.
unsafe impl Backing for Heap {
    fn name(&self) -> &str {
        "heap"
    }

    fn is_host(&self) -> bool {
        true
    }

    fn granularity(&self) -> usize {
        self.granularity
    }

    fn map(&self, bytes: usize) -> Result<Region> {
        let layout = self.layout(bytes)?;
        // SAFETY: `check_length` refused 0 bytes.
        let first = NonNull::new(unsafe { alloc_zeroed(layout) });
        first.map(|first| Region { first, bytes }).ok_or_else(|| Error::System {
            operation: "allocation",
            what: format!("{bytes} bytes of the heap"),
            source: io::ErrorKind::OutOfMemory.into(),
            remedy: "Lower the budget of the pool, or end what else has memory",
        })
    }

    unsafe fn unmap(&self, region: Region) {
        if let Ok(layout) = self.layout(region.bytes) {
            // SAFETY: the region is from `map` of this backing, as the caller says, so it has this layout.
            unsafe { dealloc(region.first.as_ptr(), layout) };
        }
    }
}

// SAFETY: `is_host` is true.
unsafe impl HostBacking for Heap {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_granularity_is_a_power_of_two_from_a_line_on() {
        for granularity in [0, 1, 32, 96, 1 << 31, usize::MAX] {
            let error = Heap::new(granularity).unwrap_err().to_string();
            assert!(error.contains(&granularity.to_string()), "{error}");
        }
        for granularity in [64, 4096, 1 << 21] {
            let heap = Heap::new(granularity).unwrap();
            let region = heap.map(3 * granularity).unwrap();
            assert_eq!(region.first.as_ptr().addr() % granularity, 0);
            // SAFETY: it was just mapped, and nobody has it.
            unsafe { heap.unmap(region) };
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_errors() {
        let heap = Heap::default();
        for bytes in [0, 63, 65, usize::MAX, (isize::MAX as usize) / 64 * 64] {
            assert!(heap.map(bytes).is_err(), "{bytes}");
        }
    }
}

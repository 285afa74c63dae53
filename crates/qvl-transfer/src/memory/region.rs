//! Pages of the system, which begin where a large page does.
//!
//! A drive that writes past the page cache to small pages gets an address for each 4096 bytes; a virtual one was
//! measured at 0.6 GB/s to them and 3.3 GB/s to large ones. The system makes a page large only where one that is
//! aligned fits, and by itself it aligns what it maps only on some kernels.

#![expect(unsafe_code, reason = "maps, moves and unmaps pages that nobody else has")]

use std::io;
use std::ptr::NonNull;

/// Fresh pages, zeroed, that nobody else has.
pub(crate) struct Region {
    pages: pages::Pages,
    bytes: usize,
}

impl Region {
    /// Maps so many bytes. From [`LARGE_PAGE_BYTES`] on they begin at a multiple of it, and large pages are asked for.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn map(bytes: usize) -> io::Result<Self> {
        Ok(Self { pages: pages::Pages::map(bytes)?, bytes })
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins. It stays there until it is resized or dropped.
    pub(crate) fn first(&self) -> NonNull<u8> {
        self.pages.first()
    }

    /// All of it.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are mapped from there, initialised by the system, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.first().as_ptr(), self.bytes) }
    }

    /// The region with another length, which keeps the pages that it has; `None` if it cannot be had.
    pub(crate) fn resized(self, bytes: usize) -> Option<Self> {
        if self.bytes == bytes {
            return Some(self);
        }
        Some(Self { pages: self.pages.resized(bytes)?, bytes })
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use std::ffi::c_void;
    use std::io;
    use std::ptr::{self, NonNull};

    use rustix::mm::{
        Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, mremap_fixed, munmap,
    };

    use super::LARGE_PAGE_BYTES;

    /// A mapping, unmapped at the drop.
    pub(super) struct Pages {
        first: NonNull<u8>,
        /// In whole pages.
        bytes: usize,
    }

    // SAFETY: nobody else has the mapping, and it does not belong to a thread.
    unsafe impl Send for Pages {}
    // SAFETY: shared, it gives an address and nothing else.
    unsafe impl Sync for Pages {}

    impl Pages {
        pub(super) fn map(bytes: usize) -> io::Result<Self> {
            let bytes = whole_pages(bytes)?;
            let usable = ProtFlags::READ | ProtFlags::WRITE;
            if bytes < LARGE_PAGE_BYTES {
                return Self::anywhere(bytes, usable);
            }
            let pages = Self::aligned(bytes, usable)?;
            // SAFETY: the mapping was just made. Advice: where it is refused, pages are small.
            let _ = unsafe { madvise(pages.address(), bytes, Advice::LinuxHugepage) };
            Ok(pages)
        }

        fn anywhere(bytes: usize, protection: ProtFlags) -> io::Result<Self> {
            // SAFETY: a new mapping where the system wants it.
            let address = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)? };
            let first = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { first, bytes })
        }

        /// Maps more than that, and gives back what is before and behind the aligned part.
        fn aligned(bytes: usize, protection: ProtFlags) -> io::Result<Self> {
            let more = bytes.checked_add(LARGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
            let all = Self::anywhere(more, protection)?;
            let skip = all.first.as_ptr().align_offset(LARGE_PAGE_BYTES);
            let (address, first) = (all.address(), all.first);
            std::mem::forget(all);
            // SAFETY: `skip` is less than a large page, so the aligned part with `bytes` is inside `all`.
            let (aligned, end) = unsafe { (first.add(skip), first.add(skip + bytes)) };
            // SAFETY: these parts are inside `all`, in whole pages, and nobody has an address in them. Where one stays
            // mapped because the system refuses, it costs addresses, not memory.
            unsafe {
                if skip > 0 {
                    let _ = munmap(address, skip);
                }
                if skip < LARGE_PAGE_BYTES {
                    let _ = munmap(end.as_ptr().cast(), LARGE_PAGE_BYTES - skip);
                }
            }
            Ok(Self { first: aligned, bytes })
        }

        fn address(&self) -> *mut c_void {
            self.first.as_ptr().cast()
        }

        pub(super) fn first(&self) -> NonNull<u8> {
            self.first
        }

        pub(super) fn resized(mut self, bytes: usize) -> Option<Self> {
            let bytes = whole_pages(bytes).ok()?;
            if bytes == self.bytes {
                return Some(self);
            }
            // What becomes large enough to be aligned was not, and its pages are small.
            if (bytes < LARGE_PAGE_BYTES) != (self.bytes < LARGE_PAGE_BYTES) && bytes > self.bytes {
                return None;
            }
            // SAFETY: nobody else has the region, so nobody holds an address in it.
            if unsafe { mremap(self.address(), self.bytes, bytes, MremapFlags::empty()) }.is_ok() {
                self.bytes = bytes;
                return Some(self);
            }
            // There is something behind it: it moves, and its pages with it.
            let room = if bytes < LARGE_PAGE_BYTES {
                Self::anywhere(bytes, ProtFlags::empty())
            } else {
                Self::aligned(bytes, ProtFlags::empty())
            };
            let room = room.ok()?;
            // SAFETY: as above; and the room, which is replaced, is nobody's either.
            let moved = unsafe {
                mremap_fixed(self.address(), self.bytes, bytes, MremapFlags::MAYMOVE, room.address())
            };
            if moved.is_err() {
                return None;
            }
            std::mem::forget(self);
            Some(room)
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping is this one's own, and nobody holds an address in it any more. It can only fail for
            // want of memory of the kernel, and then the pages stay.
            let _ = unsafe { munmap(self.address(), self.bytes) };
        }
    }

    fn whole_pages(bytes: usize) -> io::Result<usize> {
        let whole = bytes.max(1).checked_next_multiple_of(rustix::param::page_size());
        // More than that is no length of anything.
        whole
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use std::io;
    use std::ptr::NonNull;

    use memmap2::{MmapMut, MmapRaw};

    /// A mapping, unmapped at the drop.
    pub(super) struct Pages {
        map: MmapRaw,
    }

    impl Pages {
        pub(super) fn map(bytes: usize) -> io::Result<Self> {
            Ok(Self { map: MmapMut::map_anon(bytes.max(1))?.into() })
        }

        pub(super) fn first(&self) -> NonNull<u8> {
            NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling())
        }

        pub(super) fn resized(self, _: usize) -> Option<Self> {
            None
        }
    }
}

/// Bytes of a large page with base pages of 4096 bytes. With larger ones it is a multiple of a base page still.
pub(crate) const LARGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_aligned(region: &Region) -> bool {
        !cfg!(target_os = "linux") || region.first().as_ptr().addr().is_multiple_of(LARGE_PAGE_BYTES)
    }

    #[test]
    fn what_can_have_a_large_page_begins_with_one() {
        // Several at once, so that they cannot all lie well by chance.
        for bytes in [LARGE_PAGE_BYTES, LARGE_PAGE_BYTES + 1, 3 * LARGE_PAGE_BYTES + 4096, 40 << 20] {
            let mut regions: Vec<Region> = (0..8).map(|_| Region::map(bytes).unwrap()).collect();
            for (number, region) in regions.iter_mut().enumerate() {
                assert!(is_aligned(region), "{bytes} bytes, region {number}");
                assert_eq!(region.bytes(), bytes);
                let all = region.as_mut_slice();
                assert!(all.iter().all(|&byte| byte == 0), "fresh pages are zeroed");
                all.fill(number as u8 + 1);
            }
            for (number, region) in regions.iter_mut().enumerate() {
                assert!(region.as_mut_slice().iter().all(|&byte| byte == number as u8 + 1), "its own bytes");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_region_keeps_its_bytes_and_its_alignment_when_it_is_resized() {
        for (before, after) in [
            (4096, 20_480),
            (1 << 20, 3 << 18),
            (3 * LARGE_PAGE_BYTES, LARGE_PAGE_BYTES + 4096),
            (3 * LARGE_PAGE_BYTES, 4096),
            (LARGE_PAGE_BYTES + 8192, 9 * LARGE_PAGE_BYTES),
        ] {
            // Some have something behind them and must move; which is the system's affair.
            let regions: Vec<Region> = (0..6).map(|_| Region::map(before).unwrap()).collect();
            for (number, mut region) in regions.into_iter().enumerate() {
                region.as_mut_slice().fill(number as u8 + 1);
                let mut region = region.resized(after).unwrap();
                assert_eq!(region.bytes(), after);
                assert!(
                    after < LARGE_PAGE_BYTES || is_aligned(&region),
                    "{before} to {after}, region {number}"
                );
                let kept = before.min(after);
                let all = region.as_mut_slice();
                assert!(all[..kept].iter().all(|&byte| byte == number as u8 + 1), "{before} to {after}");
                assert!(all[kept..].iter().all(|&byte| byte == 0), "{before} to {after}: fresh pages");
            }
        }
    }

    #[test]
    fn small_pages_do_not_become_a_large_region() {
        let region = Region::map(1 << 20).unwrap();
        assert!(region.resized(8 << 20).is_none());
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for bytes in [usize::MAX, usize::MAX - 4095, isize::MAX as usize, isize::MAX as usize - (4 << 20)] {
            assert!(Region::map(bytes).is_err(), "{bytes}");
        }
    }
}

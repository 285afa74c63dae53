//! Pages of the system, which begin where a large page does.
//!
//! The system makes a page large only where one that is aligned fits, and by itself it aligns what it maps only on some
//! kernels. A large page is one fault instead of 512, and one entry of the address cache of the processor.

#![expect(unsafe_code, reason = "maps, advises and unmaps pages that nobody else has")]

use std::ptr::NonNull;

use super::{Backing, HostBacking, Region, check_length};
use crate::Result;

/// Bytes of a large page with base pages of 4096 bytes.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Pages of the system, zeroed when they are first touched. Regions from [`LARGE_PAGE_BYTES`] on are aligned to it.
/// Elsewhere than on Linux they are of the allocator, aligned to 4096 bytes, and nothing can be discarded.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    kind: Kind,
    granularity: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    /// Large where the system finds room.
    Advised,
    /// Large always: of those that the administrator has set aside.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "elsewhere there are none"))]
    Explicit,
}

impl Pages {
    /// Large pages wherever the system can: transparent huge pages are asked for.
    pub fn new() -> Self {
        Self { kind: Kind::Advised, granularity: system::page_bytes() }
    }

    /// Pages of whatever size the system has for everybody.
    pub fn small() -> Self {
        Self { kind: Kind::Small, granularity: system::page_bytes() }
    }

    /// Large pages of those that the system has set aside (`vm.nr_hugepages`), which are never moved and never
    /// missing later: [`map`](Backing::map) fails if there are not enough.
    ///
    /// # Errors
    /// [`Error::System`](crate::Error::System) if the system has set none aside, or has no such pages.
    pub fn set_aside() -> Result<Self> {
        system::find_set_aside()?;
        Ok(Self { kind: Kind::Explicit, granularity: LARGE_PAGE_BYTES })
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: a private mapping is nobody else's until it is unmapped, and the system zeroes its pages.
unsafe impl Backing for Pages {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Small => "pages",
            Kind::Advised => "large pages",
            Kind::Explicit => "large pages set aside",
        }
    }

    fn is_host(&self) -> bool {
        true
    }

    fn granularity(&self) -> usize {
        self.granularity
    }

    /// A system call or three. Pages come when they are first touched, but for those set aside, which are reserved.
    fn map(&self, bytes: usize) -> Result<Region> {
        check_length(bytes, self.granularity)?;
        let first = system::map(bytes, self.kind)?;
        Ok(Region { first, bytes })
    }

    unsafe fn unmap(&self, region: Region) {
        // SAFETY: as the caller says.
        unsafe { system::unmap(region) };
    }

    /// A system call. All pages of the range count as given back, also those that were never touched.
    unsafe fn discard(&self, first: NonNull<u8>, bytes: usize) -> usize {
        // SAFETY: as the caller says.
        unsafe { system::discard(first, bytes) }
    }
}

// SAFETY: `is_host` is true.
unsafe impl HostBacking for Pages {}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::path::Path;
    use std::ptr::{self, NonNull};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::{Kind, LARGE_PAGE_BYTES, Region};
    use crate::{Error, Result};

    pub(super) fn page_bytes() -> usize {
        rustix::param::page_size()
    }

    pub(super) fn find_set_aside() -> Result<()> {
        let path = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let pages: u64 = text.trim().parse().map_err(|_| Error::Content {
            path: path.to_owned(),
            field: "nr_hugepages",
            got: text.trim().chars().take(40).collect(),
            expected: "a number",
        })?;
        if pages == 0 {
            let source = io::Error::new(io::ErrorKind::OutOfMemory, "nr_hugepages is 0");
            return Err(refused("large pages of 2 MiB that are set aside".to_owned(), source, SET_ASIDE));
        }
        Ok(())
    }

    pub(super) fn map(bytes: usize, kind: Kind) -> Result<NonNull<u8>> {
        let mapped = match kind {
            Kind::Explicit => anywhere(bytes, MapFlags::HUGETLB | MapFlags::HUGE_2MB),
            _ if bytes < LARGE_PAGE_BYTES => anywhere(bytes, MapFlags::empty()),
            _ => aligned(bytes),
        };
        let remedy = if kind == Kind::Explicit { SET_ASIDE } else { "Lower the budget of the pool" };
        let first = mapped.map_err(|source| refused(format!("{bytes} bytes"), source, remedy))?;
        if kind == Kind::Advised && bytes >= LARGE_PAGE_BYTES {
            // SAFETY: the mapping was just made. Advice: where it is refused, pages are small.
            let _ = unsafe { madvise(first.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        }
        Ok(first)
    }

    fn refused(what: String, source: io::Error, remedy: &'static str) -> Error {
        Error::System { operation: "mmap", what, source, remedy }
    }

    fn anywhere(bytes: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
        let usable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the system wants it.
        let first = unsafe { mmap_anonymous(ptr::null_mut(), bytes, usable, MapFlags::PRIVATE | flags)? };
        NonNull::new(first.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Maps more than that, and gives back what is before and behind the aligned part.
    fn aligned(bytes: usize) -> io::Result<NonNull<u8>> {
        let more = bytes.checked_add(LARGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let all = anywhere(more, MapFlags::empty())?;
        let skip = all.as_ptr().align_offset(LARGE_PAGE_BYTES);
        // SAFETY: `skip` is less than a large page, so the aligned part with `bytes` is inside `all`.
        let (first, end) = unsafe { (all.add(skip), all.add(skip + bytes)) };
        // SAFETY: these parts are inside `all`, in whole pages, and nobody has an address in them. Where one stays
        // mapped because the system refuses, it costs addresses, not memory.
        unsafe {
            if skip > 0 {
                let _ = munmap(all.as_ptr().cast(), skip);
            }
            let _ = munmap(end.as_ptr().cast(), LARGE_PAGE_BYTES - skip);
        }
        Ok(first)
    }

    /// # Safety
    /// The region is a mapping that nobody uses any more.
    pub(super) unsafe fn unmap(region: Region) {
        // SAFETY: as the caller says. It can only fail for want of memory of the kernel, and then the pages stay.
        let _ = unsafe { munmap(region.first.as_ptr().cast(), region.bytes) };
    }

    /// # Safety
    /// The range is in whole pages inside a mapping, and nobody uses it.
    pub(super) unsafe fn discard(first: NonNull<u8>, bytes: usize) -> usize {
        // SAFETY: as the caller says. What is read there next are zeros.
        let gone = unsafe { madvise(first.as_ptr().cast(), bytes, Advice::LinuxDontNeed) };
        if gone.is_ok() { bytes } else { 0 }
    }

    const SET_ASIDE: &str = "Set more aside (sysctl vm.nr_hugepages), or use pages that are not set aside";
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;
    use std::ptr::NonNull;

    use super::{Kind, Region};
    use crate::backing::{Backing as _, Heap};
    use crate::{Error, Result};

    const PAGE_BYTES: usize = 4096;

    pub(super) fn page_bytes() -> usize {
        PAGE_BYTES
    }

    pub(super) fn find_set_aside() -> Result<()> {
        Err(Error::System {
            operation: "mmap",
            what: "large pages that are set aside".to_owned(),
            source: io::ErrorKind::Unsupported.into(),
            remedy: "Use pages that are not set aside: these are Linux's",
        })
    }

    pub(super) fn map(bytes: usize, _: Kind) -> Result<NonNull<u8>> {
        Ok(Heap::new(PAGE_BYTES)?.map(bytes)?.first)
    }

    /// # Safety
    /// The region is from [`map`], and nobody uses it any more.
    pub(super) unsafe fn unmap(region: Region) {
        if let Ok(heap) = Heap::new(PAGE_BYTES) {
            // SAFETY: it is from a heap of that granularity, which is all that tells heaps apart.
            unsafe { heap.unmap(region) };
        }
    }

    /// # Safety
    /// None: it does nothing.
    pub(super) unsafe fn discard(_: NonNull<u8>, _: usize) -> usize {
        0
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_can_have_a_large_page_begins_with_one() {
        let pages = Pages::new();
        // Several at once, so that they cannot all lie well by chance.
        for bytes in [LARGE_PAGE_BYTES, 3 * LARGE_PAGE_BYTES + pages.granularity(), 40 << 20] {
            let regions: Vec<Region> = (0..8).map(|_| pages.map(bytes).unwrap()).collect();
            for region in regions {
                assert_eq!(region.first.as_ptr().addr() % LARGE_PAGE_BYTES, 0, "{bytes}");
                // SAFETY: it was just mapped; its ends can be written to, and then nobody has it.
                unsafe {
                    region.first.write(1);
                    region.first.add(bytes - 1).write(1);
                    pages.unmap(region);
                }
            }
        }
    }

    #[test]
    fn what_is_discarded_is_zero() {
        let pages = Pages::small();
        let (bytes, page) = (16 * pages.granularity(), pages.granularity());
        let region = pages.map(bytes).unwrap();
        // SAFETY: it was just mapped, and nobody else has it.
        unsafe {
            region.first.write_bytes(7, bytes);
            assert_eq!(pages.discard(region.first.add(page), page), page);
            let all = std::slice::from_raw_parts(region.first.as_ptr(), bytes);
            assert!(all[..page].iter().chain(&all[2 * page..]).all(|&byte| byte == 7));
            assert!(all[page..2 * page].iter().all(|&byte| byte == 0));
            pages.unmap(region);
        }
    }

    #[test]
    fn pages_set_aside_are_had_or_the_error_says_how() {
        match Pages::set_aside() {
            Ok(pages) => match pages.map(LARGE_PAGE_BYTES) {
                // SAFETY: it was just mapped, and nobody has it.
                Ok(region) => unsafe { pages.unmap(region) },
                Err(error) => assert!(error.to_string().contains("vm.nr_hugepages"), "{error}"),
            },
            Err(error @ crate::Error::System { .. }) => {
                assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
            }
            Err(error) => assert!(error.to_string().contains("hugepages-2048kB"), "{error}"),
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_errors() {
        for pages in [Pages::new(), Pages::small()] {
            for bytes in [0, 1, 4095, usize::MAX, isize::MAX as usize / 65_536 * 65_536] {
                assert!(pages.map(bytes).is_err(), "{bytes}");
            }
        }
    }
}

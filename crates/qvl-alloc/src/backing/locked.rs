//! Pages that stay in memory.

#![expect(unsafe_code, reason = "locks pages that nobody else has")]

use super::{Backing, HostBacking, Pages, Region};
use crate::Result;

/// Pages that the system never moves to a drive: what is read at once, such as the staging of a transfer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Locked {
    pages: Pages,
}

impl Locked {
    /// Pages of this kind, locked.
    pub fn new(pages: Pages) -> Self {
        Self { pages }
    }
}

// SAFETY: as `Pages`, of which it is a lock.
unsafe impl Backing for Locked {
    fn name(&self) -> &str {
        "locked pages"
    }

    fn is_host(&self) -> bool {
        true
    }

    fn granularity(&self) -> usize {
        self.pages.granularity()
    }

    /// Waits until all of its pages are there: about a second for 4 GiB.
    ///
    /// # Errors
    /// [`Error::System`](crate::Error::System) that names the limit of locked memory, where it is what refuses.
    fn map(&self, bytes: usize) -> Result<Region> {
        let region = self.pages.map(bytes)?;
        match system::lock(&region) {
            Ok(()) => Ok(region),
            Err(error) => {
                // SAFETY: it was just mapped, and nobody has it.
                unsafe { self.pages.unmap(region) };
                Err(error)
            }
        }
    }

    unsafe fn unmap(&self, region: Region) {
        // SAFETY: as the caller says. Unmapping unlocks.
        unsafe { self.pages.unmap(region) };
    }
}

// SAFETY: `is_host` is true.
unsafe impl HostBacking for Locked {}

#[cfg(target_os = "linux")]
mod system {
    use crate::backing::Region;
    use crate::{Error, Result};

    pub(super) fn lock(region: &Region) -> Result<()> {
        // SAFETY: the region is mapped; locking changes nothing in it.
        let locked = unsafe { rustix::mm::mlock(region.first.as_ptr().cast(), region.bytes) };
        locked.map_err(|source| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
            Error::System {
                operation: "mlock",
                what: format!("{} bytes, with RLIMIT_MEMLOCK {limit},", region.bytes),
                source: source.into(),
                remedy: "Raise the limit (ulimit -l), or lower the budget of the pool",
            }
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use crate::backing::Region;
    use crate::{Error, Result};

    pub(super) fn lock(region: &Region) -> Result<()> {
        Err(Error::System {
            operation: "mlock",
            what: format!("{} bytes", region.bytes),
            source: std::io::ErrorKind::Unsupported.into(),
            remedy: "Use pages that are not locked: this is Linux's",
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn pages_are_locked_or_the_error_names_the_limit() {
        let locked = Locked::new(Pages::small());
        let bytes = 4 * locked.granularity();
        match locked.map(bytes) {
            Ok(region) => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
                let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
                assert!(kib * 1024 >= bytes, "{kib} KiB are locked");
                // SAFETY: it was just mapped, and nobody has it.
                unsafe { locked.unmap(region) };
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("RLIMIT_MEMLOCK ") && error.contains("ulimit -l"), "{error}");
            }
        }
    }
}

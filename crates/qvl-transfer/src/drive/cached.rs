//! What the page cache has of a file, so that what a reader did not find there does not stay there because of it.
//!
//! The kernel is asked with `mincore` about a mapping that nobody looks into. A read that must not wait
//! (`RWF_NOWAIT`) would answer as well, but it copies the bytes, and many kernels begin to read ahead what it did not
//! find: the question would change the answer of the next one.

#![expect(unsafe_code, reason = "asks the kernel about pages of a mapping")]

use std::fs::{File, Metadata};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{Access, Advice, fadvise};

/// The page cache's part of one file. Can be asked from several threads.
#[derive(Debug)]
pub(super) struct PageCache {
    /// Never read or written: a page that is not there any more would kill the process.
    map: MmapRaw,
    page_bytes: usize,
}

impl PageCache {
    /// `None` where the kernel does not tell: of an empty file, or, so that nobody learns what others read, of a file
    /// that is neither this user's nor writable.
    pub(super) fn of(file: &File, path: &Path, metadata: &Metadata) -> Option<Self> {
        let euid = rustix::process::geteuid();
        let own = euid.is_root() || euid.as_raw() == metadata.uid();
        if !own && rustix::fs::access(path, Access::WRITE_OK).is_err() {
            return None;
        }
        if metadata.len() == 0 {
            return None;
        }
        let map = MmapOptions::new().map_raw_read_only(file).ok()?;
        Some(Self { map, page_bytes: rustix::param::page_size() })
    }

    /// The share of the file that is in the cache, from 0 to 1, by samples of runs of pages.
    pub(super) fn share(&self) -> Option<f64> {
        let bytes = self.map.len();
        let run_bytes = SAMPLE_PAGES * self.page_bytes;
        let (mut there, mut asked) = (0, 0);
        for sample in 0..SAMPLES {
            // Evenly over the file; all of it if it is short.
            let at = (bytes as u128 * sample as u128 / SAMPLES as u128) as usize;
            let pages = self.pages(at, run_bytes.min(bytes - at))?;
            there += pages.resident().iter().filter(|page| **page & 1 != 0).count();
            asked += pages.count;
        }
        (asked > 0).then(|| there as f64 / asked as f64)
    }

    /// Which pages of a part of the file are in the cache, at most [`PIECE_BYTES`] of it. `None` behind its end, or
    /// if the kernel does not answer.
    pub(super) fn pages(&self, at: usize, bytes: usize) -> Option<Pages> {
        let first = at - at % self.page_bytes;
        let end = at.checked_add(bytes)?.min(self.map.len());
        let count = end.checked_sub(first)?.div_ceil(self.page_bytes);
        let mut pages = Pages { resident: [0; PAGES_MAX], first, count, page_bytes: self.page_bytes };
        if count == 0 || count > PAGES_MAX {
            return None;
        }
        // SAFETY: `first` is inside the mapping, by the checks above.
        let address = unsafe { self.map.as_mut_ptr().add(first) };
        // SAFETY: the pages from `address` on are mapped up to `end`, `address` is that of a page, and there is a byte
        // of `resident` for each of them (`count` was checked). The kernel looks up its tables, not the pages.
        let answer = unsafe { libc::mincore(address.cast(), end - first, pages.resident.as_mut_ptr()) };
        (answer == 0).then_some(pages)
    }
}

/// Which pages of a part of a file were in the cache.
pub(super) struct Pages {
    resident: [u8; PAGES_MAX],
    /// Where in the file the first begins.
    first: usize,
    count: usize,
    page_bytes: usize,
}

impl Pages {
    pub(super) fn resident(&self) -> &[u8] {
        &self.resident[..self.count]
    }

    /// Drops the others from the cache. It is advice: where it is not taken, pages stay until the kernel needs room.
    pub(super) fn drop_others(&self, file: &File) {
        for (from, to) in absent_runs(self.resident()) {
            let offset = self.first + from * self.page_bytes;
            let bytes = NonZeroU64::new(((to - from) * self.page_bytes) as u64);
            let _ = fadvise(file, offset as u64, bytes, Advice::DontNeed);
        }
    }
}

/// The runs of pages that are not resident, as (first, end).
fn absent_runs(resident: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let absent = |page: &u8| page & 1 == 0;
        let first = from + resident[from..].iter().position(absent)?;
        let end =
            resident[first..].iter().position(|page| !absent(page)).map_or(resident.len(), |n| first + n);
        from = end;
        Some((first, end))
    })
}

/// Reads through the cache are made and dropped in pieces of so many bytes.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Pages of a piece that may begin within one; they are nowhere smaller than 4096 bytes.
const PAGES_MAX: usize = PIECE_BYTES / 4096 + 1;
/// 64 samples of 16 pages: a file that is half in the cache is told from one that is not within 13 %, in 64 system
/// calls of a microsecond.
const SAMPLES: usize = 64;
const SAMPLE_PAGES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_absent_pages_are_found_at_both_ends_and_between() {
        for (resident, runs) in [
            (&[][..], &[][..]),
            (&[1, 1], &[]),
            (&[0, 0], &[(0, 2)]),
            (&[0, 1, 0], &[(0, 1), (2, 3)]),
            (&[1, 0, 0, 1, 1, 0, 1], &[(1, 3), (5, 6)]),
            // Only the lowest bit says it.
            (&[2, 3, 254, 255], &[(0, 1), (2, 3)]),
        ] {
            assert_eq!(absent_runs(resident).collect::<Vec<_>>(), runs, "{resident:?}");
        }
    }
}

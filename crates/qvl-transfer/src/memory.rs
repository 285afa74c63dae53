//! Host memory that transfers write to: page-aligned, under a budget, and used again.
//!
//! The first touch of a fresh page costs a fault and a clearing, at 0.3 to 1 GB/s on the machines measured: less than
//! a drive delivers. So a region goes back to its shelf when it is dropped, and the next one of its size comes from
//! there.

#![expect(unsafe_code, reason = "workers write to parts of a region that nobody else looks at")]

mod region;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) use self::region::{LARGE_PAGE_BYTES, Region};
use crate::{Error, Result};

/// What addresses, lengths and offsets of reads past the page cache are multiples of here, in bytes. It fits every
/// drive with blocks of 512 or 4096 bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Bytes in host memory, and the room around them that lets a drive write whole blocks. Derefs to its bytes.
///
/// Dropped, it goes back to its [`HostDevice`](crate::HostDevice), which keeps it for the next one.
pub struct HostMemory {
    region: Option<Region>,
    /// Where the bytes begin in the region.
    start: usize,
    len: usize,
    shelf: Arc<Shelf>,
}

impl HostMemory {
    /// Bytes that it takes of its budget: its length in whole blocks, and a block.
    pub fn charge(bytes: usize) -> usize {
        whole_blocks(bytes).saturating_add(BLOCK_BYTES)
    }

    fn region(&self) -> &Region {
        // Taken only in `drop`.
        self.region.as_ref().unwrap_or_else(|| unreachable!("the region is there until the drop"))
    }

    /// Moves the beginning so that its address is that far into a block; what is in it is unknown after. For a drive
    /// that is to write whole blocks of a file in which the bytes begin at `offset`.
    pub(crate) fn align_like(&mut self, offset: u64) {
        let start = (offset % BLOCK_BYTES as u64) as usize;
        // Memory that was made for staging has no room around it.
        if (start + self.len).next_multiple_of(BLOCK_BYTES) <= self.region().bytes() {
            self.start = start;
        }
    }

    /// Where the region is, in which what is before the bytes and behind them may be written as well.
    pub(crate) fn window(&self) -> HostWindow {
        let region = self.region();
        // SAFETY: `start + len` is at most the region's length: at first (`Shelf::take`), and when `start` was moved
        // (`align_like`).
        let first = unsafe { NonNull::new_unchecked(region.first().as_ptr().add(self.start)) };
        HostWindow { first, len: self.len, before: self.start, after: region.bytes() - self.start - self.len }
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let window = self.window();
        // SAFETY: `window` is inside the region, which is mapped until `self` is dropped; all of it was zeroed or
        // written. Whoever writes to it while it is shared keeps `self` to itself (`Device::copy_in`).
        unsafe { std::slice::from_raw_parts(window.first.as_ptr(), window.len) }
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let window = self.window();
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(window.first.as_ptr(), window.len) }
    }
}

impl AsRef<[u8]> for HostMemory {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for HostMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.shelf.put_back(region);
        }
    }
}

/// Host memory that may be written to through a shared reference, by who promises to be alone.
#[derive(Clone, Copy, Debug)]
pub struct HostWindow {
    /// The first byte.
    pub first: NonNull<u8>,
    /// Bytes from there.
    pub len: usize,
    /// Bytes before the first that may be written as well, with nothing in them.
    pub before: usize,
    /// Bytes after the last that may be written as well.
    pub after: usize,
}

/// A budget of host memory, and the regions under it that nobody uses now.
pub(crate) struct Shelf {
    what: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    budget_bytes: u64,
    in_use_bytes: u64,
    high_water_bytes: u64,
    /// The longest unused first.
    idle: Vec<Region>,
    idle_bytes: u64,
}

impl Shelf {
    pub(crate) fn new(what: &'static str, budget_bytes: u64) -> Self {
        Self { what, state: Mutex::new(State { budget_bytes, ..State::default() }) }
    }

    /// Memory with room around it for whole blocks.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<HostMemory> {
        self.take_of(bytes, HostMemory::charge(bytes))
    }

    /// Memory of whole blocks, without room around it.
    pub(crate) fn take_bare(self: &Arc<Self>, bytes: usize) -> Result<HostMemory> {
        self.take_of(bytes, whole_blocks(bytes).max(BLOCK_BYTES))
    }

    fn take_of(self: &Arc<Self>, bytes: usize, charge: usize) -> Result<HostMemory> {
        let mut excess = Vec::new();
        let reused = {
            let mut state = self.state.lock();
            let budget_bytes = state.budget_bytes;
            // The closest in size: it is cut, or grows by pages that are fresh, fewer than all of them would be.
            let apart = |region: &Region| region.bytes().abs_diff(charge);
            let close = (0..state.idle.len()).filter(|&i| apart(&state.idle[i]) <= charge / 2);
            let best = close.min_by_key(|&i| (apart(&state.idle[i]), std::cmp::Reverse(i)));
            let reused = best.map(|i| state.idle.remove(i));
            let charge = charge as u64;
            if let Some(region) = &reused {
                state.idle_bytes -= region.bytes() as u64;
            }
            while (state.in_use_bytes + state.idle_bytes).saturating_add(charge) > budget_bytes
                && !state.idle.is_empty()
            {
                let region = state.idle.remove(0);
                state.idle_bytes -= region.bytes() as u64;
                excess.push(region);
            }
            let in_use_bytes = state.in_use_bytes;
            if in_use_bytes.saturating_add(charge) > budget_bytes {
                return Err(Error::OutOfMemory {
                    what: self.what.to_owned(),
                    bytes: charge,
                    in_use_bytes,
                    budget_bytes,
                    remedy: "Drop memory that is not needed any more, or raise the budget",
                });
            }
            state.in_use_bytes += charge;
            state.high_water_bytes = state.high_water_bytes.max(state.in_use_bytes + state.idle_bytes);
            reused
        };
        // Unmapping takes a while: not under the lock, and before more is mapped.
        drop(excess);
        let region = match reused.and_then(|region| region.resized(charge)) {
            Some(region) => region,
            None => Region::map(charge).map_err(|error| {
                let mut state = self.state.lock();
                state.in_use_bytes -= charge as u64;
                Error::OutOfMemory {
                    what: format!("{} (the system says: {error})", self.what),
                    bytes: charge as u64,
                    in_use_bytes: state.in_use_bytes,
                    budget_bytes: state.budget_bytes,
                    remedy: "Lower the budget to what this machine has",
                }
            })?,
        };
        Ok(HostMemory { region: Some(region), start: 0, len: bytes, shelf: self.clone() })
    }

    fn put_back(&self, region: Region) {
        let excess = {
            let mut state = self.state.lock();
            let bytes = region.bytes() as u64;
            state.in_use_bytes -= bytes;
            if state.in_use_bytes + state.idle_bytes + bytes > state.budget_bytes {
                Some(region)
            } else {
                state.idle_bytes += bytes;
                state.idle.push(region);
                None
            }
        };
        drop(excess);
    }

    /// Gives back to the system what nobody uses.
    pub(crate) fn trim(&self) {
        let idle = {
            let mut state = self.state.lock();
            state.idle_bytes = 0;
            std::mem::take(&mut state.idle)
        };
        drop(idle);
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            budget_bytes: state.budget_bytes,
            in_use_bytes: state.in_use_bytes,
            idle_bytes: state.idle_bytes,
            high_water_bytes: state.high_water_bytes,
        }
    }
}

/// A length rounded up to blocks; the longest there is where that is longer.
fn whole_blocks(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(usize::MAX)
}

/// What is used of a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub budget_bytes: u64,
    /// What somebody has.
    pub in_use_bytes: u64,
    /// What is kept for the next one.
    pub idle_bytes: u64,
    /// The most that both were together.
    pub high_water_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_used_again_for_another_size_and_counts_as_what_it_is() {
        let shelf = Arc::new(Shelf::new("test", 1 << 20));
        let first = shelf.take(100_000).unwrap();
        let address = first.as_ptr() as usize;
        drop(first);
        assert_eq!(shelf.usage().in_use_bytes, 0);
        let mut second = shelf.take(80_000).unwrap();
        assert_eq!(second.as_ptr() as usize, address, "cut where it lies");
        second.fill(3);
        drop(second);
        let third = shelf.take(100_000).unwrap();
        assert!(third[..80_000].iter().all(|&byte| byte == 3), "the pages that it had");
        let Usage { in_use_bytes, idle_bytes, .. } = shelf.usage();
        assert_eq!((in_use_bytes, idle_bytes), (HostMemory::charge(100_000) as u64, 0));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let shelf = Arc::new(Shelf::new("test", u64::MAX));
        for bytes in [usize::MAX, usize::MAX - 5000, isize::MAX as usize] {
            assert!(matches!(shelf.take(bytes), Err(Error::OutOfMemory { .. })), "{bytes}");
        }
        assert_eq!(shelf.usage().in_use_bytes, 0);
    }
}

//! A region of a backing that is given back when it is dropped.

#![expect(unsafe_code, reason = "gives a region back to where it is from")]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::backing::{Backing, Region};
use crate::{Error, Result};

/// Memory of a backing, from an address with a given alignment on.
#[derive(Debug)]
pub(crate) struct Held<B: Backing> {
    backing: Arc<B>,
    region: Region,
    /// From the region's beginning to the first address with the alignment.
    skip: usize,
}

impl<B: Backing> Held<B> {
    /// Takes at least `bytes` (0 counts as 1), at a multiple of `align`, which is a power of two.
    pub(crate) fn map(backing: &Arc<B>, bytes: usize, align: usize) -> Result<Self> {
        let whole = Self::whole_bytes(backing, bytes, align).ok_or_else(|| Error::Setting {
            name: "bytes",
            got: bytes.to_string(),
            expected: format!("with an alignment of {align} it must be within the address space"),
        })?;
        let region = backing.map(whole)?;
        let address = region.first.as_ptr().addr();
        let skip = address.wrapping_neg() & (align - 1);
        let held = Self { backing: Arc::clone(backing), region, skip };
        // A region that is too short would be written past its end; the trait forbids it, and it is cheap to see.
        if held.region.bytes < skip.saturating_add(bytes) {
            return Err(Error::Setting {
                name: "region",
                got: format!("{} bytes at {address:#x}", held.region.bytes),
                expected: format!(
                    "{} was asked for {whole} at a multiple of its granularity",
                    backing.name()
                ),
            });
        }
        Ok(held)
    }

    /// What [`Self::map`] takes of the system; `None` if that is more than there are addresses.
    pub(crate) fn whole_bytes(backing: &B, bytes: usize, align: usize) -> Option<usize> {
        let granularity = backing.granularity().max(1);
        let padding = if align > granularity { align } else { 0 };
        let whole = bytes.max(1).checked_add(padding)?.checked_next_multiple_of(granularity)?;
        isize::try_from(whole).is_ok().then_some(whole)
    }

    /// The first address with the alignment.
    pub(crate) fn first(&self) -> NonNull<u8> {
        // SAFETY: `map` has checked that `skip` is inside the region.
        unsafe { self.region.first.add(self.skip) }
    }

    /// Bytes from [`Self::first`] to the end.
    pub(crate) fn bytes(&self) -> usize {
        self.region.bytes - self.skip
    }

    /// What was taken of the system.
    pub(crate) fn taken_bytes(&self) -> usize {
        self.region.bytes
    }
}

impl<B: Backing> Drop for Held<B> {
    fn drop(&mut self) {
        let region = Region { first: self.region.first, bytes: self.region.bytes };
        // SAFETY: it is from this backing's `map`, only this drop gives it back, and whoever has a pointer into it
        // borrows or counts the holder of this value.
        unsafe { self.backing.unmap(region) };
    }
}

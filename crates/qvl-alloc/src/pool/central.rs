//! What a pool has of its backing, and the slabs that are cut from it. All of it is behind one lock.

#![expect(unsafe_code, reason = "gives regions back that nobody uses")]

use std::ptr::NonNull;

use super::classes::{CLASSES, GRAIN_BYTES, SLAB_ALIGN, block_bytes, is_aligned, slab_blocks};
use super::offset::{PieceId, Space};
use crate::Result;
use crate::backing::{Backing, LARGE_PAGE_BYTES, Region};

/// A block of a slab that is in use, or in a cache.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) first: NonNull<u8>,
    pub(crate) slab: u32,
}

// SAFETY: an address and a number; who has the block alone uses the address.
unsafe impl Send for Block {}

/// A piece of a region.
#[derive(Clone, Copy)]
pub(crate) struct Large {
    pub(crate) first: NonNull<u8>,
    pub(crate) region: u32,
    pub(crate) piece: PieceId,
}

/// Bounds that do not change.
pub(super) struct Bounds {
    pub(super) budget_bytes: usize,
    pub(super) region_bytes_min: usize,
    pub(super) small_bytes_max: usize,
    /// Free memory is filled with this.
    pub(super) filled_with: Option<u8>,
}

pub(super) struct Central {
    regions: Vec<Option<Mapped>>,
    slabs: Vec<Option<Slab>>,
    /// For each class, its slabs that have free blocks; the last is taken from.
    partial: Vec<Vec<u32>>,
    pub(super) figures: Figures,
}

/// What is counted as it changes.
pub(super) struct Figures {
    pub(super) reserved_bytes: usize,
    pub(super) reserved_peak_bytes: usize,
    /// In use or in caches.
    pub(super) taken_bytes: usize,
    pub(super) taken_peak_bytes: usize,
    pub(super) large_bytes: usize,
    pub(super) large_allocations: u64,
    /// Blocks of each class in use or in caches, now and at most.
    pub(super) blocks: Vec<usize>,
    pub(super) blocks_peak: Vec<usize>,
    pub(super) slab_bytes: Vec<usize>,
}

struct Mapped {
    region: Region,
    space: Space,
}

struct Slab {
    class: usize,
    place: Large,
    blocks: usize,
    free_blocks: usize,
    /// A bit for each block that is free.
    free: Box<[u64]>,
    /// Where it is in the list of its class.
    listed: Option<usize>,
    /// Whether blocks came back since the last trim.
    is_dirty: bool,
}

impl Central {
    pub(super) fn new() -> Self {
        let figures = Figures {
            reserved_bytes: 0,
            reserved_peak_bytes: 0,
            taken_bytes: 0,
            taken_peak_bytes: 0,
            large_bytes: 0,
            large_allocations: 0,
            blocks: vec![0; CLASSES],
            blocks_peak: vec![0; CLASSES],
            slab_bytes: vec![0; CLASSES],
        };
        Self { regions: Vec::new(), slabs: Vec::new(), partial: vec![Vec::new(); CLASSES], figures }
    }

    /// At least one block, and up to `count` where that takes no second slab; `None` if there is no room for a slab.
    ///
    /// # Errors
    /// What the backing says when it is asked for more.
    pub(super) fn blocks(
        &mut self,
        class: usize,
        count: usize,
        backing: &impl Backing,
        bounds: &Bounds,
    ) -> Result<Option<Vec<Block>>> {
        if self.partial[class].is_empty() && !self.add_slab(class, backing, bounds)? {
            return Ok(None);
        }
        let Some(&id) = self.partial[class].last() else { return Ok(None) };
        let Some(slab) = &mut self.slabs[id as usize] else { return Ok(None) };
        let block = block_bytes(class);
        let mut taken = Vec::with_capacity(count);
        for (word_number, word) in slab.free.iter_mut().enumerate() {
            while *word != 0 && taken.len() < count {
                let number = word_number * 64 + word.trailing_zeros() as usize;
                *word &= *word - 1;
                taken.push(Block { first: offset(slab.place.first, number * block), slab: id });
            }
        }
        slab.free_blocks -= taken.len();
        if slab.free_blocks == 0 {
            self.unlist(id);
        }
        let figures = &mut self.figures;
        figures.blocks[class] += taken.len();
        figures.blocks_peak[class] = figures.blocks_peak[class].max(figures.blocks[class]);
        figures.take(taken.len() * block);
        Ok(Some(taken))
    }

    /// A block comes back. A slab that is empty goes back too, if its class has another to take from.
    pub(super) fn give_back(&mut self, returned: Block) {
        let Some(slab) = &mut self.slabs[returned.slab as usize] else { return };
        let (class, block) = (slab.class, block_bytes(slab.class));
        let number = (returned.first.addr().get() - slab.place.first.addr().get()) / block;
        debug_assert_eq!(slab.free[number / 64] & (1 << (number % 64)), 0, "it is free already");
        slab.free[number / 64] |= 1 << (number % 64);
        slab.free_blocks += 1;
        slab.is_dirty = true;
        let is_empty = slab.free_blocks == slab.blocks;
        if slab.listed.is_none() {
            slab.listed = Some(self.partial[class].len());
            self.partial[class].push(returned.slab);
        }
        self.figures.blocks[class] -= 1;
        self.figures.taken_bytes -= block;
        if is_empty && self.partial[class].len() > 1 {
            self.remove_slab(returned.slab);
        }
    }

    /// A piece of so many bytes, in whole grains; `None` if there is no room.
    ///
    /// # Errors
    /// As [`Self::blocks`].
    pub(super) fn large(
        &mut self,
        bytes: usize,
        align: usize,
        backing: &impl Backing,
        bounds: &Bounds,
    ) -> Result<Option<Large>> {
        let place = self.place(bytes, align, backing, bounds)?;
        if place.is_some() {
            self.figures.large_bytes += bytes;
            self.figures.large_allocations += 1;
            self.figures.take(bytes);
        }
        Ok(place)
    }

    pub(super) fn give_back_large(&mut self, place: Large) {
        let bytes = self.free(place);
        self.figures.large_bytes -= bytes;
        self.figures.taken_bytes -= bytes;
    }

    /// Gives slabs and regions back that have nothing in use. Returns the bytes that left.
    pub(super) fn give_back_empty(&mut self, backing: &impl Backing) -> usize {
        for id in 0..self.slabs.len() as u32 {
            if self.slabs[id as usize].as_ref().is_some_and(|slab| slab.free_blocks == slab.blocks) {
                self.remove_slab(id);
            }
        }
        let mut given_back = 0;
        for place in &mut self.regions {
            if let Some(mapped) = place.take_if(|mapped| mapped.space.is_empty()) {
                given_back += mapped.region.bytes;
                // SAFETY: it is from `map` of this backing, and nothing of it is in use. It is no longer in the list.
                unsafe { backing.unmap(mapped.region) };
            }
        }
        self.figures.reserved_bytes -= given_back;
        given_back
    }

    /// Gives whole pages back that are free and were written to. Returns their bytes.
    pub(super) fn discard(&mut self, backing: &impl Backing) -> usize {
        let mut given_back = 0;
        let mut discard = |first: NonNull<u8>, bytes: usize| {
            let granularity = backing.granularity();
            let skip = first.addr().get().next_multiple_of(granularity) - first.addr().get();
            let pages = bytes.saturating_sub(skip) / granularity * granularity;
            if pages > 0 {
                // SAFETY: the range is free and in a region of this backing, and was just cut to whole pages.
                given_back += unsafe { backing.discard(offset(first, skip), pages) };
            }
        };
        for Mapped { region, space } in self.regions.iter_mut().flatten() {
            let base = grain_of(region.first);
            space.clean(|at, grains| {
                discard(
                    offset(region.first, (at - base) as usize * GRAIN_BYTES),
                    grains as usize * GRAIN_BYTES,
                );
            });
        }
        for slab in self.slabs.iter_mut().flatten().filter(|slab| slab.is_dirty) {
            slab.is_dirty = false;
            let block = block_bytes(slab.class);
            let is_free = |number: usize| slab.free[number / 64] & (1 << (number % 64)) != 0;
            let mut number = 0;
            while number < slab.blocks {
                let run = (number..slab.blocks).take_while(|&number| is_free(number)).count();
                if run > 0 {
                    discard(offset(slab.place.first, number * block), run * block);
                }
                number += run + 1;
            }
        }
        given_back
    }

    /// The most that an allocation with this alignment would get.
    pub(super) fn fits(
        &self,
        align: usize,
        bytes_max: usize,
        granularity: usize,
        bounds: &Bounds,
        may_grow: bool,
    ) -> usize {
        let grains = (align / GRAIN_BYTES).max(1) as u64;
        let pieces =
            self.regions.iter().flatten().map(|mapped| mapped.space.fits(grains) as usize * GRAIN_BYTES);
        let block = (0..CLASSES)
            .rev()
            .find(|&class| {
                block_bytes(class) <= bytes_max && !self.partial[class].is_empty() && is_aligned(class, align)
            })
            .map_or(0, block_bytes);
        let left = (bounds.budget_bytes - self.figures.reserved_bytes) / granularity * granularity;
        let region = if may_grow { left.saturating_sub(align.saturating_sub(granularity)) } else { 0 };
        pieces.max().unwrap_or(0).max(block).max(region / GRAIN_BYTES * GRAIN_BYTES)
    }

    /// The largest free piece, and all that is free in pieces and slabs.
    pub(super) fn free_bytes(&self) -> (usize, usize) {
        let spaces = || self.regions.iter().flatten().map(|mapped| &mapped.space);
        let largest = spaces().map(Space::largest_free).max().unwrap_or(0) as usize * GRAIN_BYTES;
        let in_pieces = spaces().map(Space::free_grains).sum::<u64>() as usize * GRAIN_BYTES;
        let slabs = self.slabs.iter().flatten();
        let in_slabs: usize = slabs.clone().map(|slab| slab.free_blocks * block_bytes(slab.class)).sum();
        let block = slabs.filter(|slab| slab.free_blocks > 0).map(|slab| block_bytes(slab.class)).max();
        (largest.max(block.unwrap_or(0)), in_pieces + in_slabs)
    }

    /// Gives everything back.
    ///
    /// # Safety
    /// Nothing is in use.
    pub(super) unsafe fn close(&mut self, backing: &impl Backing) {
        for mapped in self.regions.drain(..).flatten() {
            // SAFETY: it is from `map` of this backing, and nothing of it is in use, as the caller says.
            unsafe { backing.unmap(mapped.region) };
        }
    }

    fn add_slab(&mut self, class: usize, backing: &impl Backing, bounds: &Bounds) -> Result<bool> {
        let blocks = slab_blocks(class, bounds.small_bytes_max);
        let bytes = blocks * block_bytes(class);
        let Some(place) = self.place(bytes, SLAB_ALIGN, backing, bounds)? else { return Ok(false) };
        let mut free = vec![u64::MAX; blocks.div_ceil(64)].into_boxed_slice();
        if let Some(last) = free.last_mut().filter(|_| !blocks.is_multiple_of(64)) {
            *last = (1 << (blocks % 64)) - 1;
        }
        let listed = Some(self.partial[class].len());
        // What was written to the piece before may be in it.
        let slab = Slab { class, place, blocks, free_blocks: blocks, free, listed, is_dirty: true };
        let id = insert(&mut self.slabs, slab);
        self.partial[class].push(id);
        self.figures.slab_bytes[class] += bytes;
        Ok(true)
    }

    fn remove_slab(&mut self, id: u32) {
        self.unlist(id);
        if let Some(slab) = self.slabs[id as usize].take() {
            self.figures.slab_bytes[slab.class] -= slab.blocks * block_bytes(slab.class);
            self.free(slab.place);
        }
    }

    fn unlist(&mut self, id: u32) {
        let Some(slab) = &mut self.slabs[id as usize] else { return };
        let (class, Some(at)) = (slab.class, slab.listed.take()) else { return };
        self.partial[class].swap_remove(at);
        if let Some(&moved) = self.partial[class].get(at)
            && let Some(slab) = &mut self.slabs[moved as usize]
        {
            slab.listed = Some(at);
        }
    }

    fn place(
        &mut self,
        bytes: usize,
        align: usize,
        backing: &impl Backing,
        bounds: &Bounds,
    ) -> Result<Option<Large>> {
        let grains = bytes.div_ceil(GRAIN_BYTES) as u64;
        let align_grains = (align / GRAIN_BYTES).max(1) as u64;
        for number in 0..self.regions.len() {
            if let Some(place) = self.place_in(number, grains, align_grains) {
                return Ok(Some(place));
            }
        }
        let Some(number) = self.add_region(bytes, align, backing, bounds)? else { return Ok(None) };
        Ok(self.place_in(number, grains, align_grains))
    }

    fn place_in(&mut self, number: usize, grains: u64, align_grains: u64) -> Option<Large> {
        let Mapped { region, space } = self.regions[number].as_mut()?;
        let (piece, at) = space.allocate(grains, align_grains)?;
        let first = offset(region.first, (at - grain_of(region.first)) as usize * GRAIN_BYTES);
        Some(Large { first, region: number as u32, piece })
    }

    fn free(&mut self, place: Large) -> usize {
        let Some(mapped) = &mut self.regions[place.region as usize] else { return 0 };
        let grains = mapped.space.grains_of(place.piece);
        mapped.space.free(place.piece);
        grains as usize * GRAIN_BYTES
    }

    /// As much again as there is, so that there are few regions; less if the budget or the backing has less.
    fn add_region(
        &mut self,
        bytes: usize,
        align: usize,
        backing: &impl Backing,
        bounds: &Bounds,
    ) -> Result<Option<usize>> {
        let granularity = backing.granularity();
        let left = (bounds.budget_bytes - self.figures.reserved_bytes) / granularity * granularity;
        let Some(needed) = bytes
            .checked_add(align.saturating_sub(granularity))
            .and_then(|needed| needed.checked_next_multiple_of(granularity))
            .filter(|&needed| needed <= left)
        else {
            return Ok(None);
        };
        let wanted = needed.max(self.figures.reserved_bytes).max(bounds.region_bytes_min);
        let wanted =
            wanted.min(left).next_multiple_of(granularity.max(LARGE_PAGE_BYTES)).min(left).max(needed);
        let region = match backing.map(wanted) {
            Ok(region) => region,
            Err(_) if wanted > needed => backing.map(needed)?,
            Err(error) => return Err(error),
        };
        if let Some(byte) = bounds.filled_with {
            // SAFETY: the region is of the host, as its pool checked when it was made, and nobody else has it.
            unsafe { region.first.write_bytes(byte, region.bytes) };
        }
        self.figures.reserved_bytes += region.bytes;
        self.figures.reserved_peak_bytes = self.figures.reserved_peak_bytes.max(self.figures.reserved_bytes);
        let space = Space::new(grain_of(region.first), (region.bytes / GRAIN_BYTES) as u64);
        Ok(Some(insert(&mut self.regions, Mapped { region, space }) as usize))
    }
}

impl Figures {
    fn take(&mut self, bytes: usize) {
        self.taken_bytes += bytes;
        self.taken_peak_bytes = self.taken_peak_bytes.max(self.taken_bytes);
    }
}

/// Puts something where nothing is. Walks the list: there are few regions, and a slab is taken rarely.
fn insert<T>(list: &mut Vec<Option<T>>, value: T) -> u32 {
    let at = list.iter().position(Option::is_none).unwrap_or(list.len());
    if at == list.len() {
        list.push(None);
    }
    list[at] = Some(value);
    at as u32
}

/// An address in a region; it may be of a device.
fn offset(first: NonNull<u8>, bytes: usize) -> NonNull<u8> {
    first.map_addr(|address| address.saturating_add(bytes))
}

fn grain_of(first: NonNull<u8>) -> u64 {
    (first.addr().get() / GRAIN_BYTES) as u64
}

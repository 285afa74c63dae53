//! Equal blocks that are shared and counted, such as the blocks of a KV cache.

#![expect(unsafe_code, reason = "hands out disjoint blocks of regions it holds")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::backing::Backing;
use crate::plan::Held;
use crate::{Error, OutOfMemory, OwnerUse, Result};

/// Equal blocks, each with a count of who holds it.
///
/// Taking, sharing and giving back are O(1). Counts are atomics; a lock is held only for the list of free blocks, and
/// while a region is taken of the backing, which happens at most 64 times before a [`trim`](Self::trim). Clones are the
/// same pool.
#[derive(Debug)]
pub struct BlockPool<B: Backing> {
    inner: Arc<Inner<B>>,
}

impl<B: Backing> Clone for BlockPool<B> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<B: Backing> {
    backing: Arc<B>,
    block_bytes: usize,
    /// From one block to the next: the size rounded up to the alignment.
    stride: usize,
    align: usize,
    blocks: usize,
    region_blocks: usize,
    free: Mutex<Free<B>>,
    in_use: AtomicUsize,
    /// Signed: of two threads the one that gives back can be counted before the one that shared.
    shared: AtomicIsize,
    peak: AtomicUsize,
}

#[derive(Debug)]
struct Free<B: Backing> {
    /// One for each region that there can be, at most 64.
    regions: Vec<Option<Slots<B>>>,
    /// A bit for each region that has a free block.
    with_room: u64,
    reserved_bytes: usize,
}

#[derive(Debug)]
struct Slots<B: Backing> {
    region: Arc<BlockRegion<B>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct BlockRegion<B: Backing> {
    held: Held<B>,
    number: usize,
    /// How many hold each block. As wide as an `Arc`'s own count, of which each holder has one too, so that the `Arc`
    /// stops the program before this overflows.
    counts: Box<[AtomicUsize]>,
}

impl<B: Backing> BlockPool<B> {
    /// A pool of at most `blocks` blocks of `block_bytes`, each at a multiple of `align`. Nothing is taken of the
    /// backing yet. It grows by regions of 1 MiB, or by 1/64 of the blocks if that is more.
    ///
    /// # Errors
    /// [`Error::Setting`] if a number is 0, the alignment is no power of two, or the sum is no size.
    pub fn new(backing: Arc<B>, block_bytes: usize, blocks: usize, align: usize) -> Result<Self> {
        let region_blocks = REGION_BYTES.div_ceil(block_bytes.max(1));
        Self::with_regions(backing, block_bytes, blocks, align, region_blocks)
    }

    /// As [`Self::new`], growing by so many blocks, or by 1/64 of all if that is more.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_regions(
        backing: Arc<B>,
        block_bytes: usize,
        blocks: usize,
        align: usize,
        region_blocks: usize,
    ) -> Result<Self> {
        let wrong = |name, got: usize, expected: &str| Error::Setting {
            name,
            got: got.to_string(),
            expected: expected.to_owned(),
        };
        for (name, number) in
            [("block_bytes", block_bytes), ("blocks", blocks), ("region_blocks", region_blocks)]
        {
            if number == 0 {
                return Err(wrong(name, number, "it must be at least 1"));
            }
        }
        if !align.is_power_of_two() {
            return Err(wrong("align", align, "it must be a power of two"));
        }
        let stride = block_bytes.checked_next_multiple_of(align);
        let all = stride.and_then(|stride| stride.checked_mul(blocks));
        let (Some(stride), Some(_)) = (stride, all.filter(|&all| isize::try_from(all).is_ok())) else {
            return Err(wrong("blocks", blocks, "all blocks together must be within the address space"));
        };
        let region_blocks = region_blocks.max(blocks.div_ceil(REGIONS_MAX)).min(blocks);
        let regions = (0..blocks.div_ceil(region_blocks)).map(|_| None).collect();
        Ok(Self {
            inner: Arc::new(Inner {
                backing,
                block_bytes,
                stride,
                align,
                blocks,
                region_blocks,
                free: Mutex::new(Free { regions, with_room: 0, reserved_bytes: 0 }),
                in_use: AtomicUsize::new(0),
                shared: AtomicIsize::new(0),
                peak: AtomicUsize::new(0),
            }),
        })
    }

    /// A block that nobody else has; its contents are whatever an earlier holder has left. O(1), but for the call of
    /// the system when the pool grows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if all blocks are in use, and says how many of them are shared; or if the system refuses
    /// to give more.
    pub fn take(&self) -> Result<Block<B>> {
        self.inner.take()
    }

    /// Gives regions of which no block is in use back to the system. Returns their bytes. O(regions), under the lock.
    pub fn trim(&self) -> usize {
        let mut given = Vec::new();
        let mut free = self.inner.free.lock();
        let before = free.reserved_bytes;
        for number in 0..free.regions.len() {
            let unused = |slots: &mut Slots<B>| slots.free.len() == slots.region.counts.len();
            if let Some(slots) = free.regions[number].take_if(unused) {
                free.with_room &= !(1 << number);
                free.reserved_bytes -= slots.region.held.taken_bytes();
                given.push(slots);
            }
        }
        let after = free.reserved_bytes;
        // The system is called when nobody waits for the lock.
        drop(free);
        drop(given);
        before - after
    }

    /// The size of a block.
    pub fn block_bytes(&self) -> usize {
        self.inner.block_bytes
    }

    /// How many blocks there can be.
    pub fn blocks(&self) -> usize {
        self.inner.blocks
    }

    /// How many blocks somebody has.
    pub fn in_use(&self) -> usize {
        self.inner.in_use.load(Ordering::Relaxed)
    }

    /// How many blocks can be taken, the ones included for which the pool has to grow.
    pub fn free(&self) -> usize {
        self.inner.blocks - self.in_use()
    }

    /// How many blocks have more than one holder.
    pub fn shared(&self) -> usize {
        self.inner.shared.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// The most blocks that were in use at a time.
    pub fn peak(&self) -> usize {
        self.inner.peak.load(Ordering::Relaxed)
    }

    /// What is taken of the backing.
    pub fn reserved_bytes(&self) -> usize {
        self.inner.free.lock().reserved_bytes
    }
}

impl<B: Backing> Inner<B> {
    fn take(self: &Arc<Self>) -> Result<Block<B>> {
        let mut free = self.free.lock();
        if free.with_room == 0 {
            self.grow(&mut free)?;
        }
        // The lowest region first, so that the others become free as a whole.
        let number = free.with_room.trailing_zeros() as usize;
        let slots = free.regions.get_mut(number).and_then(Option::as_mut);
        let Some((slots, slot)) = slots.and_then(|slots| slots.free.pop().map(|slot| (slots, slot))) else {
            return Err(self.no_room(free.reserved_bytes, None));
        };
        let region = Arc::clone(&slots.region);
        if slots.free.is_empty() {
            free.with_room &= !(1 << number);
        }
        region.counts[slot].store(1, Ordering::Relaxed);
        // Both under the lock, so that the peak is exact and no more than all are counted.
        let in_use = self.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(in_use, Ordering::Relaxed);
        drop(free);
        Ok(Block { pool: Arc::clone(self), region, slot })
    }

    /// Takes the first region that is not there.
    fn grow(&self, free: &mut Free<B>) -> Result<()> {
        let Some(number) = free.regions.iter().position(Option::is_none) else {
            return Err(self.no_room(free.reserved_bytes, None));
        };
        let count = self.region_blocks.min(self.blocks - number * self.region_blocks);
        let held = Held::map(&self.backing, count * self.stride, self.align)
            .map_err(|refusal| self.no_room(free.reserved_bytes, Some(refusal.to_string())))?;
        free.reserved_bytes += held.taken_bytes();
        let counts = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let region = Arc::new(BlockRegion { held, number, counts });
        free.regions[number] = Some(Slots { region, free: (0..count).rev().collect() });
        free.with_room |= 1 << number;
        Ok(())
    }

    fn no_room(&self, reserved_bytes: usize, system: Option<String>) -> Error {
        let in_use = self.in_use.load(Ordering::Relaxed);
        let shared = self.shared.load(Ordering::Relaxed).max(0).cast_unsigned().min(in_use);
        let bytes = |blocks: usize| (blocks * self.block_bytes) as u64;
        let held = |name: String, blocks| OwnerUse {
            name,
            in_use_bytes: bytes(blocks),
            peak_bytes: bytes(blocks),
            quota_bytes: None,
        };
        Error::OutOfMemory(Box::new(OutOfMemory {
            pool: format!("block pool of {}", self.backing.name()),
            bytes: self.block_bytes as u64,
            align: self.align as u64,
            owner: format!(
                "a block ({in_use} of {} blocks are in use, {shared} of them shared)",
                self.blocks
            ),
            budget_bytes: bytes(self.blocks),
            reserved_bytes: reserved_bytes as u64,
            in_use_bytes: bytes(in_use),
            owners: vec![
                held(format!("{} blocks with one holder", in_use - shared), in_use - shared),
                held(format!("{shared} shared blocks"), shared),
            ],
            system,
            ..OutOfMemory::default()
        }))
    }
}

/// One holder of a block. The block is free again when its last holder is dropped.
#[derive(Debug)]
pub struct Block<B: Backing> {
    pool: Arc<Inner<B>>,
    region: Arc<BlockRegion<B>>,
    slot: usize,
}

impl<B: Backing> Block<B> {
    /// Another holder of the same block. O(1), never blocks.
    #[must_use]
    pub fn share(&self) -> Self {
        // Relaxed, as for an `Arc`: who has a holder already sees the block.
        if self.count().fetch_add(1, Ordering::Relaxed) == 1 {
            self.pool.shared.fetch_add(1, Ordering::Relaxed);
        }
        Self { pool: Arc::clone(&self.pool), region: Arc::clone(&self.region), slot: self.slot }
    }

    /// Whether somebody else holds it too. If not, that stays so as long as this holder is not shared.
    pub fn is_shared(&self) -> bool {
        self.count().load(Ordering::Acquire) > 1
    }

    /// Its number in the pool, below [`BlockPool::blocks`]; all holders have the same.
    pub fn index(&self) -> usize {
        self.region.number * self.pool.region_blocks + self.slot
    }

    /// Its address: of the host, or of a device.
    pub fn address(&self) -> NonNull<u8> {
        // SAFETY: `grow` mapped a stride for each slot of the region.
        unsafe { self.region.held.first().add(self.slot * self.pool.stride) }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Setting`] for a backing that the host does not reach.
    pub fn read(&self) -> Result<&[u8]> {
        self.host()?;
        // SAFETY: inside the region as in `address`, and initialised by the contract of a backing that the host
        // reaches. It is written only through `write`, by the only holder, who is not borrowed elsewhere.
        Ok(unsafe { NonNull::slice_from_raw_parts(self.address(), self.pool.block_bytes).as_ref() })
    }

    /// Its bytes, to write. If others hold the block, this holder first gets a copy of its own, in another block with
    /// another index, and the others keep what they have.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no block for the copy; this holder is then as it was. [`Error::Setting`] for
    /// a backing that the host does not reach: there [`Self::is_shared`] says whether to copy.
    pub fn write(&mut self) -> Result<&mut [u8]> {
        self.host()?;
        if self.is_shared() {
            let copy = self.pool.take()?;
            // SAFETY: both are inside their regions as in `address`, the copy has no holder but this function, and a
            // block that is in use is not the one that was free.
            unsafe { copy.address().copy_from_nonoverlapping(self.address(), self.pool.block_bytes) };
            *self = copy;
        }
        // SAFETY: as in `read`, and nobody else holds the block: a count of 1 was seen with Acquire, after whatever
        // the last other holder did, and a second holder can only come from this one, which is borrowed.
        Ok(unsafe { NonNull::slice_from_raw_parts(self.address(), self.pool.block_bytes).as_mut() })
    }

    fn host(&self) -> Result<()> {
        if self.pool.backing.is_host() {
            return Ok(());
        }
        Err(Error::Setting {
            name: "backing",
            got: self.pool.backing.name().to_owned(),
            expected: "the host must reach the block's memory".to_owned(),
        })
    }

    fn count(&self) -> &AtomicUsize {
        &self.region.counts[self.slot]
    }
}

impl<B: Backing> Drop for Block<B> {
    fn drop(&mut self) {
        // Release what this holder did, and see, as the last, what the others did.
        match self.count().fetch_sub(1, Ordering::AcqRel) {
            1 => {
                let mut free = self.pool.free.lock();
                let number = self.region.number;
                if let Some(slots) = free.regions.get_mut(number).and_then(Option::as_mut) {
                    slots.free.push(self.slot);
                    free.with_room |= 1 << number;
                }
                self.pool.in_use.fetch_sub(1, Ordering::Relaxed);
            }
            2 => _ = self.pool.shared.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// So that a word has a bit for each.
const REGIONS_MAX: usize = 64;
const REGION_BYTES: usize = 1 << 20;

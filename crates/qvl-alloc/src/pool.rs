//! Pools with size classes.
//!
//! A pool takes memory of a [`Backing`] in large regions and keeps it until [`Pool::trim`]. What is freed is mapped and
//! touched already, and used again first: a large buffer from a pool costs no page faults, which is most of what it
//! costs elsewhere. Blocks up to 1 MiB are cut from slabs and kept in caches; what is larger is cut from the regions.

mod buffer;
mod central;
pub(crate) mod classes;
pub(crate) mod inner;
mod offset;
mod shard;
mod sync;

use std::sync::Arc;

pub use buffer::Buffer;

use crate::backing::{Backing, HostBacking, LARGE_PAGE_BYTES};
use crate::{Error, Owner, OwnerUse, Result};
use classes::{BLOCK_BYTES_MAX, GRAIN_BYTES};
use inner::Inner;

/// What a pool may take, and how it is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Its name, for errors and figures.
    pub name: String,
    /// The most that it takes of its backing, at most 4 TiB.
    pub budget_bytes: usize,
    /// The largest block that is cut from slabs of 64 KiB, at most 8192; larger ones have slabs of 2 MiB.
    pub small_bytes_max: usize,
    /// The largest allocation that gets a block, at most 1 MiB. What is larger is not rounded up to one.
    pub medium_bytes_max: usize,
    /// The smallest region that it takes, if the budget has as much.
    pub region_bytes_min: usize,
    /// The most that each cache keeps of what is freed. There are twice as many as the machine has threads.
    pub cache_bytes_max_per_thread: usize,
    /// What is checked.
    pub debug: Debug,
}

impl Default for PoolSettings {
    /// A budget of 1 GiB, regions from 32 MiB on, caches of 4 MiB, nothing checked.
    fn default() -> Self {
        Self {
            name: "pool".to_owned(),
            budget_bytes: 1 << 30,
            small_bytes_max: 8192,
            medium_bytes_max: BLOCK_BYTES_MAX,
            region_bytes_min: 32 << 20,
            cache_bytes_max_per_thread: 4 << 20,
            debug: Debug::Off,
        }
    }
}

/// What a pool checks of its users. What it finds is in [`Stats::violations`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Debug {
    /// Nothing.
    #[default]
    Off,
    /// Freed memory is filled with `0xdd`, and when it is used again, whether anybody wrote to it. Regions are filled
    /// when they are taken, and [`Pool::trim`] gives back whole regions only.
    Poison,
    /// 64 bytes before and behind each allocation, at the free, whether anybody wrote to them.
    Guard,
}

/// Something that was written where it should not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// What was found.
    pub kind: ViolationKind,
    /// Whose allocation it was found at: for [`ViolationKind::WrittenAfterFree`], the next one's.
    pub owner: String,
    /// The first byte that differs, in what was checked.
    pub at_byte: usize,
    /// The length of what was checked.
    pub of_bytes: usize,
}

/// What a violation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViolationKind {
    /// To memory that was free.
    WrittenAfterFree,
    /// To what is before an allocation.
    WrittenBefore,
    /// To what is behind it.
    WrittenBehind,
}

/// What a pool has and did. While other threads allocate, its figures are of slightly different moments.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// In use, with what blocks are larger than what was asked for.
    pub in_use_bytes: u64,
    /// In caches.
    pub cached_bytes: u64,
    /// Taken of the backing.
    pub reserved_bytes: u64,
    /// The most that was.
    pub reserved_peak_bytes: u64,
    /// The most that was in use or in caches.
    pub peak_bytes: u64,
    /// [`Self::reserved_peak_bytes`] over [`Self::peak_bytes`]; 1 if nothing was used.
    pub peak_over_live: f64,
    /// Allocations up to now, but those without bytes.
    pub allocations: u64,
    /// In use, not in blocks.
    pub large_bytes: u64,
    /// The largest piece that is free in what is taken.
    pub largest_free_bytes: u64,
    /// All that is free in what is taken, but for the caches.
    pub free_bytes: u64,
    /// The share of what is free that is not in the largest piece, 0 to 1.
    pub fragmentation: f64,
    /// Classes that were used, the smallest first.
    pub classes: Vec<ClassStats>,
    /// All owners, who has most first.
    pub owners: Vec<OwnerUse>,
    /// What [`Debug`](enum@Debug) found, how often.
    pub violations: u64,
    /// The first 16 of them.
    pub violations_first: Vec<Violation>,
}

/// Blocks of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Their size.
    pub block_bytes: u64,
    /// In use.
    pub in_use_bytes: u64,
    /// In caches.
    pub cached_bytes: u64,
    /// In slabs.
    pub reserved_bytes: u64,
    /// The most that was in use or in caches.
    pub peak_bytes: u64,
    /// Allocations up to now.
    pub allocations: u64,
}

/// A pool. Cheap to clone; all clones are the same pool, which gives everything back when the last of them, of its
/// owners and of its buffers is dropped.
pub struct Pool<B: Backing> {
    default_owner: Owner<B>,
}

impl<B: Backing> Pool<B> {
    /// Takes nothing yet.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting cannot be.
    pub fn new(backing: B, settings: PoolSettings) -> Result<Self> {
        let inner = Arc::new(Inner::new(backing, settings)?);
        Ok(Self { default_owner: Owner::new(inner, "default".to_owned(), None) })
    }

    /// A new owner, which is another than all others of this name.
    pub fn owner(&self, name: impl Into<String>, quota_bytes: Option<u64>) -> Owner<B> {
        Owner::new(self.inner().clone(), name.into(), quota_bytes)
    }

    /// The owner of what has no other.
    pub fn default_owner(&self) -> &Owner<B> {
        &self.default_owner
    }

    /// Memory in which anything may be; aligned to `align`, a power of two up to 2 MiB, and to 64 at least.
    ///
    /// Up to 1 MiB it mostly costs an exchange at a cache and a count at the owner; else a short lock. Where the pool
    /// has no room it asks its backing, which may take as long as the system takes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the budget, the quota or the system has no room, after caches and empty regions were
    /// given back. [`Error::Setting`] for an alignment that cannot be, a length that no memory has, and an owner of
    /// another pool.
    #[inline]
    pub fn bytes(&self, owner: &Owner<B>, len: usize, align: usize) -> Result<Buffer<u8, B>> {
        if !align.is_power_of_two() || align > LARGE_PAGE_BYTES {
            return Err(wrong("align", align, "a power of two up to 2097152 is needed"));
        }
        Ok(Buffer::new(self.take(owner, len, align)?, len))
    }

    /// `len` zeros. As [`Self::bytes`], and writes them.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub fn zeroed<T: bytemuck::Pod>(&self, owner: &Owner<B>, len: usize) -> Result<Buffer<T, B>>
    where
        B: HostBacking,
    {
        let align = align_of::<T>();
        if align > LARGE_PAGE_BYTES {
            return Err(wrong("align", align, "a power of two up to 2097152 is needed"));
        }
        let Some(bytes) = len.checked_mul(size_of::<T>()) else {
            return Err(wrong("len", len, "so many elements have more bytes than an address can say"));
        };
        let taken = self.take(owner, bytes, align)?;
        let mut zeros = Buffer::<u8, B>::new(taken, bytes);
        zeros.fill(0);
        Ok(zeros.into_elements(len))
    }

    /// Gives back what is not used: caches, empty regions, and whole pages of the others where the backing can. The
    /// pages of what is left come again, and cost a fault each, when they are used again.
    ///
    /// Returns the bytes that were given back; pages that were never touched may be among them. Takes a system call
    /// for each free piece, and other allocations that find no cache wait.
    pub fn trim(&self) -> usize {
        self.inner().trim()
    }

    /// What it has and did. Walks its slabs, under its lock.
    pub fn stats(&self) -> Stats {
        self.inner().stats()
    }

    /// As it was made.
    pub fn settings(&self) -> &PoolSettings {
        &self.inner().settings
    }

    /// Where its memory is from.
    pub fn backing(&self) -> &B {
        &self.inner().backing
    }

    #[inline(always)]
    fn take(&self, owner: &Owner<B>, bytes: usize, align: usize) -> Result<inner::Taken<B>> {
        if !Arc::ptr_eq(self.inner(), owner.pool()) {
            return Err(Error::Setting {
                name: "owner",
                got: owner.name().to_owned(),
                expected: format!("an owner of the pool {} is needed", self.settings().name),
            });
        }
        // So that nothing overflows when it is rounded up.
        if bytes > isize::MAX as usize - 4 * LARGE_PAGE_BYTES {
            return Err(wrong("len", bytes, "no memory has so many bytes"));
        }
        self.inner().allocate(owner, bytes, align.max(GRAIN_BYTES))
    }

    #[inline]
    fn inner(&self) -> &Arc<Inner<B>> {
        self.default_owner.pool()
    }
}

impl<B: Backing> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self { default_owner: self.default_owner.clone() }
    }
}

impl<B: Backing> std::fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("backing", &self.backing().name())
            .field("settings", self.settings())
            .finish()
    }
}

fn wrong(name: &'static str, got: usize, expected: &str) -> Error {
    Error::Setting { name, got: got.to_string(), expected: expected.to_owned() }
}

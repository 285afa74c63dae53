//! Memory of one step: bumped, reset, given back at once.

#![expect(unsafe_code, reason = "hands out disjoint pieces of regions it holds")]

use std::cell::{Cell, RefCell};
use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;

use crate::backing::Backing;
use crate::plan::Held;
use crate::{Error, OutOfMemory, Result};

/// Memory that is handed out piece by piece and taken back all at once.
///
/// A piece costs a few instructions, without a lock or an atomic. What does not fit comes from a further region, which
/// costs a call of the system; the next [`reset`](Self::reset) makes one region of all, as large as the most that a
/// step has used, so that the same step does not spill again. The arena goes from thread to thread, but is used by one
/// at a time.
///
/// ```
/// # fn step<B: qvl_alloc::Backing>(mut arena: qvl_alloc::arena::Arena<B>) -> qvl_alloc::Result<()> {
/// let hidden = arena.alloc::<f32>(2048)?;
/// let normed = arena.alloc_zeroed::<f32>(2048)?;
/// hidden[0] = normed[0];
/// arena.reset()?;
/// # Ok(())
/// # }
/// ```
///
/// Pieces borrow the arena, so none survives a reset:
///
/// ```compile_fail,E0502
/// # fn step<B: qvl_alloc::Backing>(mut arena: qvl_alloc::arena::Arena<B>) -> qvl_alloc::Result<()> {
/// let hidden = arena.alloc::<f32>(2048)?;
/// arena.reset()?;
/// hidden[0] = 1.0;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Arena<B: Backing> {
    backing: Arc<B>,
    budget_bytes: usize,
    /// All that is taken; the last is bumped.
    regions: RefCell<Vec<Held<B>>>,
    /// What is used of the last region.
    cursor: Cell<usize>,
    /// Where the cursor would be if all regions were one.
    used: Cell<usize>,
    reserved: Cell<usize>,
    high_water: Cell<usize>,
    align_max: Cell<usize>,
    spills: Cell<u64>,
}

impl<B: Backing> Arena<B> {
    /// An arena that begins with `first_bytes` (0: with nothing) and takes at most `budget_bytes` of the backing.
    ///
    /// # Errors
    /// [`Error::Setting`] for a backing that the host does not reach; [`Error::OutOfMemory`] if the first region is
    /// larger than the budget or the system refuses it.
    pub fn new(backing: Arc<B>, first_bytes: usize, budget_bytes: usize) -> Result<Self> {
        if !backing.is_host() {
            return Err(Error::Setting {
                name: "backing",
                got: backing.name().to_owned(),
                expected: "an arena needs memory that the host reaches".to_owned(),
            });
        }
        let arena = Self {
            backing,
            budget_bytes,
            regions: RefCell::default(),
            cursor: Cell::new(0),
            used: Cell::new(0),
            reserved: Cell::new(0),
            high_water: Cell::new(0),
            align_max: Cell::new(ALIGN_LEAST),
            spills: Cell::new(0),
        };
        if first_bytes > 0 {
            arena.take(first_bytes, first_bytes, ALIGN_LEAST)?;
        }
        Ok(arena)
    }

    /// A slice of plain values, whose contents are whatever an earlier step has left. O(1) while it fits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the budget has no room, or the system refuses; [`Error::Setting`] for more than there
    /// are addresses. What was handed out before stays as it is.
    #[expect(clippy::mut_from_ref, reason = "each call gives a piece that no other has")]
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<&mut [T]> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| too_many(len))?;
        let first = self.bump(bytes, align_of::<T>())?.cast::<T>();
        // SAFETY: `bump` gave `bytes` at this alignment that no other piece of this step has, in a region that lives
        // until `reset`, `trim` or the drop, none of which is possible while `self` is borrowed. The backing's contract
        // says that they are initialised, only values without padding are written, and every pattern is a `T`.
        Ok(unsafe { NonNull::slice_from_raw_parts(first, len).as_mut() })
    }

    /// As [`Self::alloc`], with zeros. O(len).
    ///
    /// # Errors
    /// As [`Self::alloc`].
    pub fn alloc_zeroed<T: Pod>(&self, len: usize) -> Result<&mut [T]> {
        let piece = self.alloc(len)?;
        piece.fill(T::zeroed());
        Ok(piece)
    }

    /// As [`Self::alloc`], with a copy of these values. O(len).
    ///
    /// # Errors
    /// As [`Self::alloc`].
    pub fn alloc_copy<T: Pod>(&self, values: &[T]) -> Result<&mut [T]> {
        let piece = self.alloc(values.len())?;
        piece.copy_from_slice(values);
        Ok(piece)
    }

    /// As [`Self::alloc`], of bytes at a multiple of `align`, such as 64 for a cache line, 4096 for direct I/O.
    ///
    /// # Errors
    /// As [`Self::alloc`], and [`Error::Setting`] if `align` is no power of two.
    #[expect(clippy::mut_from_ref, reason = "each call gives a piece that no other has")]
    pub fn alloc_bytes(&self, bytes: usize, align: usize) -> Result<&mut [u8]> {
        if !align.is_power_of_two() {
            return Err(Error::Setting {
                name: "align",
                got: align.to_string(),
                expected: "it must be a power of two".to_owned(),
            });
        }
        let first = self.bump(bytes, align)?;
        // SAFETY: as in `alloc`; every pattern is a `u8`.
        Ok(unsafe { NonNull::slice_from_raw_parts(first, bytes).as_mut() })
    }

    /// Takes all pieces back. If the step has spilled, its regions are given back and one is taken that has room for
    /// the most that a step has used, which costs calls of the system; otherwise O(1).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system refuses that region. The arena is empty then, and takes regions again when
    /// pieces are asked for.
    pub fn reset(&mut self) -> Result<()> {
        self.cursor.set(0);
        self.used.set(0);
        if self.regions.get_mut().len() < 2 {
            return Ok(());
        }
        self.release();
        let align = self.align_max.get();
        // Paddings may have been smaller where the regions began, and the budget is what it is.
        let most = self.budget_bytes - self.budget_bytes % self.backing.granularity().max(1);
        let fits = |bytes: usize| {
            Held::<B>::whole_bytes(&self.backing, bytes, align).is_some_and(|whole| whole <= most)
        };
        let bytes = self.high_water.get();
        if fits(bytes) { self.take(bytes, bytes, align) } else { self.take(most, most, 1) }
    }

    /// Gives everything back to the system and forgets the high-water mark. Returns how many bytes were given back.
    pub fn trim(&mut self) -> usize {
        let bytes = self.reserved.get();
        self.release();
        self.used.set(0);
        self.high_water.set(0);
        self.align_max.set(ALIGN_LEAST);
        bytes
    }

    /// What this step uses so far, with what alignments leave out.
    pub fn used_bytes(&self) -> usize {
        self.used.get()
    }

    /// The most that a step has used, with what alignments leave out.
    pub fn high_water_bytes(&self) -> usize {
        self.high_water.get()
    }

    /// What is taken of the backing.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.get()
    }

    /// What may be taken of the backing.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// How often a piece did not fit and a further region was taken.
    pub fn spills(&self) -> u64 {
        self.spills.get()
    }

    /// The beginning of `bytes` that no other piece of this step has. `align` is a power of two.
    fn bump(&self, bytes: usize, align: usize) -> Result<NonNull<u8>> {
        if bytes == 0 {
            // SAFETY: an alignment is not 0.
            return Ok(unsafe { NonNull::new_unchecked(std::ptr::without_provenance_mut(align)) });
        }
        // Before anything is taken: sums that are no address end here.
        let used = self.used.get().checked_next_multiple_of(align).and_then(|used| used.checked_add(bytes));
        let used = used.ok_or_else(|| too_many(bytes))?;
        let first = match self.fit(bytes, align) {
            Some(first) => first,
            None => {
                self.spill(bytes, align)?;
                // The new region begins at the alignment and has room for the piece.
                self.fit(bytes, align).ok_or_else(|| too_many(bytes))?
            }
        };
        self.used.set(used);
        self.high_water.set(self.high_water.get().max(used));
        self.align_max.set(self.align_max.get().max(align));
        Ok(first)
    }

    /// The piece in the last region, if it has room.
    fn fit(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        let regions = self.regions.borrow();
        let region = regions.last()?;
        let address = region.first().as_ptr().addr() + self.cursor.get();
        let start = self.cursor.get() + (address.wrapping_neg() & (align - 1));
        let end = start.checked_add(bytes).filter(|&end| end <= region.bytes())?;
        self.cursor.set(end);
        // SAFETY: `start` is at most `end`, which was compared with the region's length.
        Some(unsafe { region.first().add(start) })
    }

    /// Takes a further region: a quarter of what there is, so that a large step takes few, or less if the budget has
    /// no more.
    fn spill(&self, bytes: usize, align: usize) -> Result<()> {
        self.take(bytes.max(self.reserved.get() / 4), bytes, align)?;
        self.spills.set(self.spills.get() + 1);
        Ok(())
    }

    /// Takes a region of `wanted` bytes, or of `needed` if the budget has no room for more.
    fn take(&self, wanted: usize, needed: usize, align: usize) -> Result<()> {
        let room = self.budget_bytes.saturating_sub(self.reserved.get());
        let fits = |&bytes: &usize| {
            Held::<B>::whole_bytes(&self.backing, bytes, align).is_some_and(|whole| whole <= room)
        };
        let Some(bytes) = [wanted, needed].into_iter().find(fits) else {
            return Err(self.no_room(needed, align, room, None));
        };
        let region = Held::map(&self.backing, bytes, align)
            .map_err(|refusal| self.no_room(needed, align, room, Some(refusal.to_string())))?;
        self.reserved.set(self.reserved.get() + region.taken_bytes());
        self.regions.borrow_mut().push(region);
        self.cursor.set(0);
        Ok(())
    }

    fn release(&mut self) {
        self.regions.get_mut().clear();
        self.reserved.set(0);
        self.cursor.set(0);
    }

    fn no_room(&self, bytes: usize, align: usize, room: usize, system: Option<String>) -> Error {
        let regions = self.regions.borrow();
        let left = regions.last().map_or(0, |region| region.bytes() - self.cursor.get());
        let granularity = self.backing.granularity().max(1);
        let further = if align > granularity { room.saturating_sub(align) } else { room };
        let further = if system.is_some() { 0 } else { further - further % granularity };
        Error::OutOfMemory(Box::new(OutOfMemory {
            pool: format!("arena of {}", self.backing.name()),
            bytes: bytes as u64,
            align: align as u64,
            owner: "this step".to_owned(),
            budget_bytes: self.budget_bytes as u64,
            reserved_bytes: self.reserved.get() as u64,
            in_use_bytes: self.used.get() as u64,
            largest_free_bytes: left as u64,
            fits_bytes: left.saturating_sub(align - 1).max(further) as u64,
            system,
            ..OutOfMemory::default()
        }))
    }
}

fn too_many(len: usize) -> Error {
    Error::Setting {
        name: "len",
        got: len.to_string(),
        expected: "the piece must be within the address space".to_owned(),
    }
}

/// Regions begin at least at a cache line.
const ALIGN_LEAST: usize = 64;

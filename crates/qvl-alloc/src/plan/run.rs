//! A run whose allocations lie where a packing says.
//!
//! That two pieces never overlap does not rest on the plan: what is handed out is kept by its offset, and a place that
//! something living reaches into is not given. A run that goes another way than the recorded one is slower, not wrong.

#![expect(unsafe_code, reason = "hands out disjoint pieces of one region")]

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use super::held::Held;
use super::pack::Packing;
use crate::backing::Backing;
use crate::{Error, Result};

/// Hands out the places of a packing, in one region of a backing.
#[derive(Debug)]
pub struct PlannedRun<B: Backing> {
    memory: Arc<Memory<B>>,
    packing: Packing,
    /// The allocation that is expected next.
    cursor: usize,
    counts: Counts,
}

/// What a run was asked for since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pieces that were where the plan has them.
    pub planned: u64,
    /// Requests that the plan does not have.
    pub not_planned: u64,
    /// Allocations of the plan that were not asked for.
    pub skipped: u64,
}

#[derive(Debug)]
struct Memory<B: Backing> {
    held: Held<B>,
    is_host: bool,
    /// The pieces that live: end by offset.
    living: Mutex<BTreeMap<usize, usize>>,
}

/// What the plan has for a request.
#[derive(Debug)]
pub enum Piece<B: Backing> {
    /// Its place.
    Planned(PlannedPiece<B>),
    /// Nothing; it has to come from elsewhere, such as a pool.
    NotPlanned {
        /// How the run differs from the plan.
        why: Deviation,
    },
}

impl<B: Backing> Piece<B> {
    /// The piece, if the plan has one.
    pub fn planned(self) -> Option<PlannedPiece<B>> {
        match self {
            Self::Planned(piece) => Some(piece),
            Self::NotPlanned { .. } => None,
        }
    }
}

/// How a run differs from its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deviation {
    /// Neither the next allocation of the plan nor one of the few after it is like this.
    Different {
        /// The id of the next one.
        id: u32,
        /// Its size.
        expected_bytes: u64,
        /// Its alignment.
        expected_align: u64,
        /// What was asked for.
        bytes: u64,
        /// With which alignment.
        align: u64,
    },
    /// The plan has it, but something that should be gone is still where it belongs.
    Occupied {
        /// The id of the allocation.
        id: u32,
        /// Where the piece begins that is in the way.
        by_offset: u64,
    },
    /// The plan has come to its end.
    Ended {
        /// How many allocations it has.
        allocations: usize,
    },
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Different { id, expected_bytes, expected_align, bytes, align } => write!(
                f,
                "{bytes} bytes aligned to {align} were asked for where the plan has allocation {id} with \
                 {expected_bytes} bytes aligned to {expected_align}"
            ),
            Self::Occupied { id, by_offset } => {
                write!(f, "the piece at {by_offset} still lives where allocation {id} belongs")
            }
            Self::Ended { allocations } => write!(f, "the plan has {allocations} allocations and no more"),
        }
    }
}

impl<B: Backing> PlannedRun<B> {
    /// Takes [`Packing::peak_bytes`] of the backing, at once and for as long as this or one of its pieces lives.
    ///
    /// # Errors
    /// [`Error::System`] if the backing has not so much, [`Error::Setting`] if an address cannot be so large.
    pub fn new(backing: Arc<B>, packing: Packing) -> Result<Self> {
        packing.check()?;
        let fit = |name, value: u64| {
            usize::try_from(value).map_err(|_| Error::Setting {
                name,
                got: value.to_string(),
                expected: "it must be within the address space".to_owned(),
            })
        };
        let (bytes, align) = (fit("peak_bytes", packing.peak_bytes())?, fit("align", packing.align())?);
        let held = Held::map(&backing, bytes, align)?;
        let memory = Memory { held, is_host: backing.is_host(), living: Mutex::default() };
        Ok(Self { memory: Arc::new(memory), packing, cursor: 0, counts: Counts::default() })
    }

    /// The place of the next allocation, if the plan has one like this: the next, or one of the 8 after it, so that a
    /// run that left something out, or had something instead, comes back to its plan.
    ///
    /// Takes a lock that [`PlannedPiece`]'s drop takes too, for O(log of the living pieces).
    pub fn next(&mut self, bytes: usize, align: usize) -> Piece<B> {
        let found = self.find(bytes as u64, align as u64);
        match found {
            Ok(_) => self.counts.planned += 1,
            Err(_) => self.counts.not_planned += 1,
        }
        match found {
            Ok(offset) => Piece::Planned(PlannedPiece { memory: Arc::clone(&self.memory), offset, bytes }),
            Err(why) => Piece::NotPlanned { why },
        }
    }

    /// Begins the plan again, for the next run of the program. Pieces that still live keep their places.
    pub fn restart(&mut self) {
        // Before its first allocation a run has left nothing out.
        if self.cursor > 0 {
            self.counts.skipped += (self.packing.trace().allocations().len() - self.cursor) as u64;
        }
        self.cursor = 0;
    }

    /// How often the plan had what was asked for.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The plan.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// What was taken of the backing, in bytes.
    pub fn reserved_bytes(&self) -> usize {
        self.memory.held.taken_bytes()
    }

    /// Finds the offset and marks it as living.
    fn find(&mut self, bytes: u64, align: u64) -> Result<usize, Deviation> {
        let allocations = self.packing.trace().allocations();
        let Some(next) = allocations.get(self.cursor) else {
            return Err(Deviation::Ended { allocations: allocations.len() });
        };
        let window = allocations[self.cursor..].iter().take(1 + LOOK_AHEAD);
        let Some(skipped) = window.clone().position(|one| one.bytes == bytes && one.align == align) else {
            let (id, expected_bytes, expected_align) = (next.id, next.bytes, next.align);
            return Err(Deviation::Different { id, expected_bytes, expected_align, bytes, align });
        };
        let index = self.cursor + skipped;
        self.cursor = index + 1;
        self.counts.skipped += skipped as u64;
        // `new` has fitted the peak into a usize, and the packing is checked to end there.
        let offset = self.packing.offsets()[index] as usize;
        let end = offset + bytes as usize;
        let mut living = self.memory.living.lock();
        // Living pieces do not overlap, so the last that begins before the end is the one to look at.
        if let Some((&other, _)) =
            living.range(..end).next_back().filter(|(_, other_end)| **other_end > offset)
        {
            return Err(Deviation::Occupied { id: allocations[index].id, by_offset: other as u64 });
        }
        living.insert(offset, end);
        Ok(offset)
    }
}

/// A piece of a planned run. Its place is free again when it is dropped; until then nothing else is there.
#[derive(Debug)]
pub struct PlannedPiece<B: Backing> {
    memory: Arc<Memory<B>>,
    offset: usize,
    bytes: usize,
}

impl<B: Backing> PlannedPiece<B> {
    /// Where it begins in the region.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its address: of the host, or of a device.
    pub fn address(&self) -> NonNull<u8> {
        // SAFETY: `find` took the offset from a packing that is checked to end at its peak, and `new` mapped the peak.
        unsafe { self.memory.held.first().add(self.offset) }
    }

    /// Its bytes, if the host reaches them; what is in them at first is unknown.
    pub fn as_slice(&self) -> Option<&[u8]> {
        if !self.memory.is_host {
            return None;
        }
        // SAFETY: inside the region as in `address`, initialised by the contract of a backing that the host reaches,
        // and only this piece's, since `find` gives no place that a living piece reaches into; the borrow is shared.
        Some(unsafe { NonNull::slice_from_raw_parts(self.address(), self.bytes).as_ref() })
    }

    /// As [`Self::as_slice`], to write.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        if !self.memory.is_host {
            return None;
        }
        // SAFETY: as in `as_slice`, and this borrow is the only one.
        Some(unsafe { NonNull::slice_from_raw_parts(self.address(), self.bytes).as_mut() })
    }
}

impl<B: Backing> Drop for PlannedPiece<B> {
    fn drop(&mut self) {
        self.memory.living.lock().remove(&self.offset);
    }
}

/// Far enough for an operation that is left out, near enough not to jump to another layer for an equal size.
const LOOK_AHEAD: usize = 8;

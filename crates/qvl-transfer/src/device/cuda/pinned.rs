//! Page-locked memory of the host, of both kinds, under a budget.
//!
//! Locking pages is slow, and freeing them waits for the card. So memory that is dropped is kept for the next one, as
//! far as the budget goes.

#![expect(unsafe_code, reason = "memory that the driver locks")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use super::card::Card;
use super::driver::Code;
use super::{Inner, RefusedLock, lock_limit, no_lock};
use crate::device::Usage;
use crate::memory::{BLOCK_BYTES, Shelf};
use crate::{CudaDevice, HostMemory, Result};

/// How the processor sees page-locked memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinnedKind {
    /// As any other: right for what the host reads.
    #[default]
    Cached,
    /// Past its caches: some systems copy from it faster, and it takes no room from what the caches have. For what is
    /// written front to back; each read goes to memory, so reading it is very slow.
    WriteCombined,
}

/// Page-locked memory: a card copies from and to it at the full speed of its link. Derefs to its bytes.
///
/// Dropped, it goes back to its device, which keeps it for the next one of its kind.
pub struct Pinned {
    inner: Arc<Inner>,
    /// Taken in `drop`.
    block: Option<Block>,
    len: usize,
}

/// Memory that the driver made.
struct Block {
    /// What the driver returned, to be freed.
    base: NonNull<u8>,
    /// The first byte at a multiple of a page.
    first: NonNull<u8>,
    /// From there, in whole pages.
    bytes: usize,
    kind: PinnedKind,
}

// SAFETY: an address of memory that only the owner of the block uses.
unsafe impl Send for Block {}
// SAFETY: as above; shared, it is only read.
unsafe impl Sync for Block {}

/// The budget of page-locked memory, and what is kept under it.
pub(super) struct PinnedShelf {
    state: Mutex<State>,
    /// For what is taken where nothing can be locked.
    pageable: Arc<Shelf>,
}

struct State {
    budget_bytes: u64,
    in_use_bytes: u64,
    high_water_bytes: u64,
    /// The longest unused first.
    idle: Vec<Block>,
    idle_bytes: u64,
    /// Every block, in use or not: its first byte, and the one behind its last.
    blocks: BTreeMap<usize, usize>,
}

impl Pinned {
    /// Page-locked memory that the processor sees as any other.
    ///
    /// # Errors
    /// As [`CudaDevice::pinned`].
    pub fn cached(device: &CudaDevice, bytes: usize) -> Result<Self> {
        device.pinned(bytes, PinnedKind::Cached)
    }

    /// Page-locked memory that is written past the caches and should not be read.
    ///
    /// # Errors
    /// As [`CudaDevice::pinned`].
    pub fn write_combined(device: &CudaDevice, bytes: usize) -> Result<Self> {
        device.pinned(bytes, PinnedKind::WriteCombined)
    }

    pub(super) fn new(inner: &Arc<Inner>, bytes: usize, kind: PinnedKind) -> Result<Self> {
        let block = inner.pinned.take(inner, bytes, kind)?;
        Ok(Self { inner: inner.clone(), block: Some(block), len: bytes })
    }

    /// How the processor sees it.
    pub fn kind(&self) -> PinnedKind {
        self.block().kind
    }

    fn block(&self) -> &Block {
        // Taken only in `drop`.
        self.block.as_ref().unwrap_or_else(|| unreachable!("the block is there until the drop"))
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` bytes (`take`), which were all written once, and is this one's alone.
        // Whoever lets a card write to it keeps it to itself meanwhile (`Device::copy_out`).
        unsafe { std::slice::from_raw_parts(self.block().first.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.block().first.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.inner.pinned.put_back(&self.inner, block);
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("len", &self.len).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

/// Staging memory of a [`CudaDevice`]: page-locked, unless that was refused and
/// [`RefusedLock::Pageable`] is set. Derefs to its bytes.
pub struct CudaStaging(Staging);

enum Staging {
    Pinned(Pinned),
    Pageable(HostMemory),
}

impl CudaStaging {
    pub(super) fn new(inner: &Arc<Inner>, bytes: usize) -> Result<Self> {
        match Pinned::new(inner, bytes, inner.settings.staging) {
            Ok(pinned) => Ok(Self(Staging::Pinned(pinned))),
            Err(error) if inner.card.is_lost() || inner.settings.refused_lock == RefusedLock::Error => {
                Err(error)
            }
            Err(error) => {
                inner.warn("staging", || {
                    format!("staging memory is not page-locked, so copies are slow: {error}")
                });
                inner.pinned.pageable.take(bytes).map(|memory| Self(Staging::Pageable(memory)))
            }
        }
    }

    /// Whether it is page-locked.
    pub fn is_pinned(&self) -> bool {
        matches!(self.0, Staging::Pinned(_))
    }
}

impl From<Pinned> for CudaStaging {
    fn from(pinned: Pinned) -> Self {
        Self(Staging::Pinned(pinned))
    }
}

impl Deref for CudaStaging {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Staging::Pinned(pinned) => pinned,
            Staging::Pageable(memory) => memory,
        }
    }
}

impl DerefMut for CudaStaging {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Staging::Pinned(pinned) => pinned,
            Staging::Pageable(memory) => memory,
        }
    }
}

impl AsRef<[u8]> for CudaStaging {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for CudaStaging {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for CudaStaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaStaging").field("len", &self.len()).field("pinned", &self.is_pinned()).finish()
    }
}

impl PinnedShelf {
    pub(super) fn new(budget_bytes: u64) -> Self {
        let state = State {
            budget_bytes,
            in_use_bytes: 0,
            high_water_bytes: 0,
            idle: Vec::new(),
            idle_bytes: 0,
            blocks: BTreeMap::new(),
        };
        let pageable = Arc::new(Shelf::new("staging memory that is not locked", u64::MAX));
        Self { state: Mutex::new(state), pageable }
    }

    /// Whether all of a range is memory of this shelf.
    pub(super) fn covers(&self, range: &Range<usize>) -> bool {
        let state = self.state.lock();
        let block = state.blocks.range(..=range.start).next_back();
        !range.is_empty() && block.is_some_and(|(_, &end)| end >= range.end)
    }

    fn take(&self, inner: &Inner, bytes: usize, kind: PinnedKind) -> Result<Block> {
        let whole = bytes.max(1).checked_next_multiple_of(BLOCK_BYTES).unwrap_or(usize::MAX);
        // A lost card has no memory to give, not even what is kept: it may be written to.
        drop(inner.card.bind()?);
        let mut excess = Vec::new();
        {
            let mut state = self.state.lock();
            // The closest fit that wastes at most a quarter.
            let fit = |block: &Block| {
                block.kind == kind && block.bytes >= whole && block.bytes - whole <= whole / 4
            };
            let best = (0..state.idle.len())
                .filter(|&i| fit(&state.idle[i]))
                .min_by_key(|&i| (state.idle[i].bytes, std::cmp::Reverse(i)));
            if let Some(place) = best {
                let block = state.idle.remove(place);
                state.idle_bytes -= block.bytes as u64;
                state.in_use_bytes += block.bytes as u64;
                return Ok(block);
            }
            while state.in_use_bytes + state.idle_bytes + whole as u64 > state.budget_bytes
                && !state.idle.is_empty()
            {
                let block = state.idle.remove(0);
                state.idle_bytes -= block.bytes as u64;
                state.blocks.remove(&(block.first.as_ptr() as usize));
                excess.push(block);
            }
            if state.in_use_bytes.saturating_add(whole as u64) > state.budget_bytes {
                let usage = state.usage();
                drop(state);
                self.free_all(&inner.card, excess);
                return Err(no_lock(
                    format!("page-locked memory for {}", inner.card.name()),
                    whole,
                    usage,
                    "Lower the engine's staging_bytes, or raise CudaSettings::pinned_bytes",
                ));
            }
            state.in_use_bytes += whole as u64;
            state.high_water_bytes = state.high_water_bytes.max(state.in_use_bytes + state.idle_bytes);
        }
        // Locking and unlocking take a while: not under the lock.
        self.free_all(&inner.card, excess);
        match make(&inner.card, whole, kind) {
            Ok(block) => {
                let first = block.first.as_ptr() as usize;
                self.state.lock().blocks.insert(first, first + block.bytes);
                Ok(block)
            }
            Err(code) => {
                let usage = {
                    let mut state = self.state.lock();
                    state.in_use_bytes -= whole as u64;
                    state.usage()
                };
                if code.is_lost() {
                    inner.card.check("lock memory", code)?;
                }
                let says = inner.card.f().describe(code);
                Err(no_lock(
                    format!(
                        "page-locked memory for {} (the driver says {says}; {})",
                        inner.card.name(),
                        lock_limit()
                    ),
                    whole,
                    usage,
                    "Lower the engine's staging_bytes, raise the system's or the container's limit (ulimit -l), or \
                     set CudaSettings::refused_lock to Pageable",
                ))
            }
        }
    }

    fn put_back(&self, inner: &Inner, block: Block) {
        let excess = {
            let mut state = self.state.lock();
            let bytes = block.bytes as u64;
            state.in_use_bytes -= bytes;
            if inner.card.is_lost() {
                // Never used again, and never freed: a copy may be under way (see the head of `cuda.rs`).
                return;
            }
            if state.in_use_bytes + state.idle_bytes + bytes > state.budget_bytes {
                state.blocks.remove(&(block.first.as_ptr() as usize));
                Some(block)
            } else {
                state.idle_bytes += bytes;
                state.idle.push(block);
                None
            }
        };
        self.free_all(&inner.card, excess);
    }

    /// Frees what nobody uses.
    pub(super) fn trim(&self, inner: &Inner) {
        self.destroy(&inner.card);
    }

    pub(super) fn destroy(&self, card: &Card) {
        let idle = {
            let mut state = self.state.lock();
            let idle = std::mem::take(&mut state.idle);
            state.idle_bytes = 0;
            for block in &idle {
                state.blocks.remove(&(block.first.as_ptr() as usize));
            }
            idle
        };
        self.free_all(card, idle);
        self.pageable.trim();
    }

    fn free_all(&self, card: &Card, blocks: impl IntoIterator<Item = Block>) {
        for block in blocks {
            // A lost card's memory is not freed: see the head of `cuda.rs`.
            let Ok(_bound) = card.bind() else { return };
            // SAFETY: the driver returned this address; nobody has the block any more, and every copy that used it has
            // ended, since its owner was kept until then.
            let code = unsafe { (card.f().host_free)(block.base.as_ptr().cast()) };
            // A refusal leaks it.
            let _ = card.check("free page-locked memory", code);
        }
    }

    pub(super) fn usage(&self) -> Usage {
        self.state.lock().usage()
    }
}

impl State {
    fn usage(&self) -> Usage {
        Usage {
            budget_bytes: self.budget_bytes,
            in_use_bytes: self.in_use_bytes,
            idle_bytes: self.idle_bytes,
            high_water_bytes: self.high_water_bytes,
        }
    }
}

/// Memory from the driver. It aligns large blocks to pages; a small one may lie inside a page, and is made anew with a
/// page to spare.
fn make(card: &Card, bytes: usize, kind: PinnedKind) -> Result<Block, Code> {
    let flags = match kind {
        PinnedKind::Cached => PORTABLE,
        PinnedKind::WriteCombined => PORTABLE | WRITE_COMBINED,
    };
    let Ok(_bound) = card.bind() else { return Err(Code::INVALID_VALUE) };
    let allocate = |bytes: usize| {
        let mut base: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes an address to `base`; the context is current.
        match unsafe { (card.f().host_allocate)(&mut base, bytes, flags) } {
            Code::SUCCESS => NonNull::new(base.cast::<u8>()).ok_or(Code::OUT_OF_MEMORY),
            code => Err(code),
        }
    };
    let mut base = allocate(bytes)?;
    let mut first = base;
    if !(base.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) {
        // SAFETY: the driver returned this address just now, and nobody else has it. A refusal leaks it.
        let _ = unsafe { (card.f().host_free)(base.as_ptr().cast()) };
        base = allocate(bytes + BLOCK_BYTES)?;
        let skip = base.as_ptr().align_offset(BLOCK_BYTES);
        // SAFETY: the block has a page more than what is used of it, and `skip` is less than a page.
        first = unsafe { base.add(skip) };
    }
    // What the driver gives may have been used before, and bytes that nobody wrote are not bytes to Rust.
    // SAFETY: `bytes` bytes from `first` are in the block.
    unsafe { first.as_ptr().write_bytes(0, bytes) };
    Ok(Block { base, first, bytes, kind })
}

/// Locked for all contexts, not for the one that is current alone.
const PORTABLE: u32 = 1;
const WRITE_COMBINED: u32 = 4;

//! Memory of a card, under a budget.
//!
//! Where the driver has pools, memory comes from one of our own: giving back to it does not wait for all that the card
//! does, which freeing else does, and the next allocation of the kind finds it there. A stream that carries nothing
//! else orders both, so that an allocation is complete after an empty wait.
//!
//! Memory that the caller's computing may still use when it is dropped ([`CudaMemory::used_by`]) is kept aside until
//! the events that were recorded for it are reached, and counts until then.

#![expect(unsafe_code, reason = "calls the driver")]

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{
    CUdevice_attribute_enum as Attribute, CUdeviceptr, CUmemAllocationHandleType_enum as HandleType,
    CUmemAllocationType_enum as AllocationType, CUmemLocation, CUmemLocationType_enum as LocationType,
    CUmemPool_attribute_enum as PoolAttribute, CUmemPoolProps, CUmemoryPool, CUstream,
};
use parking_lot::Mutex;

use super::Inner;
use super::card::{Bound, Card, Event, Stream};
use super::driver::{Code, Pools};
use crate::device::{Usage, check_range};
use crate::{Error, Result};

/// Memory of a [`CudaDevice`](crate::CudaDevice). Freed when it is dropped and nothing that it was
/// [`used_by`](Self::used_by) needs it.
///
/// When a transfer has given it back, the bytes are there for whatever is launched after that, on any stream. To
/// transfer to or from memory that a stream still computes with, say so with [`Self::used_by`]: the card then waits,
/// not the host.
pub struct CudaMemory {
    inner: Arc<Inner>,
    first: CUdeviceptr,
    len: usize,
    uses: Mutex<Vec<Use>>,
}

/// What a stream of the caller does with some memory.
struct Use {
    /// Keeps the handle from being given to another stream.
    stream: Arc<CudaStream>,
    event: Event,
}

/// The memory of a card: who may have it, and how it is got.
pub(super) struct Store {
    /// `None`: what is free but for a share.
    budget_bytes: Option<u64>,
    stream: Stream,
    pool: Option<Pool>,
    state: Mutex<State>,
    /// Held by who waits for memory to become free, so that others wait as well and do not give up.
    reclaim: Mutex<()>,
}

#[derive(Default)]
struct State {
    in_use_bytes: u64,
    high_water_bytes: u64,
    /// The first to be dropped first.
    leaving: VecDeque<Leaving>,
}

/// Memory that was dropped while it was used.
struct Leaving {
    first: CUdeviceptr,
    len: usize,
    uses: Vec<Use>,
}

struct Pool {
    handle: CUmemoryPool,
    functions: &'static Pools,
}

// SAFETY: a handle; the driver's functions may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl CudaMemory {
    pub(super) fn new(inner: &Arc<Inner>, bytes: usize) -> Result<Self> {
        let first = if bytes == 0 { 0 } else { inner.store.take(inner, bytes)? };
        Ok(Self { inner: inner.clone(), first, len: bytes, uses: Mutex::new(Vec::new()) })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a range of it is on the card: an argument of a kernel.
    ///
    /// Whoever launches a kernel with it calls [`Self::used_by`] after that, or keeps this memory until the kernel has
    /// ended.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn pointer(&self, range: Range<usize>) -> Result<CUdeviceptr> {
        let bytes = range.end.saturating_sub(range.start) as u64;
        check_range(self.inner.card.name(), range.start as u64, bytes, self.len as u64)?;
        Ok(self.first + range.start as u64)
    }

    /// Says that what `stream` has been given up to now uses this memory: transfers to and from it wait for that on
    /// the card, and if it is dropped, it is freed after that. Does not wait.
    ///
    /// # Errors
    /// [`Error::Setting`] for a stream of another context; [`Error::Device`].
    pub fn used_by(&self, stream: &Arc<CudaStream>) -> Result<()> {
        self.check(stream)?;
        let card = &self.inner.card;
        let bound = card.bind()?;
        let mut uses = self.uses.lock();
        // What the same stream did before is done before.
        if let Some(earlier) = uses.iter().find(|other| Arc::ptr_eq(&other.stream, stream)) {
            return bound.record(&earlier.event, stream.cu_stream());
        }
        forget_reached(&mut uses, card, &bound)?;
        let event = card.event(&bound)?;
        if let Err(error) = bound.record(&event, stream.cu_stream()) {
            card.recycle(event);
            return Err(error);
        }
        uses.push(Use { stream: stream.clone(), event });
        Ok(())
    }

    /// Makes `stream` wait, on the card, for whatever this memory was [`used_by`](Self::used_by). Does not wait.
    ///
    /// # Errors
    /// As [`Self::used_by`].
    pub fn wait_on(&self, stream: &Arc<CudaStream>) -> Result<()> {
        self.check(stream)?;
        self.hold_back(&self.inner.card.bind()?, stream.cu_stream())
    }

    /// Makes a stream wait for the uses.
    pub(super) fn hold_back(&self, bound: &Bound<'_>, stream: CUstream) -> Result<()> {
        let mut uses = self.uses.lock();
        if uses.is_empty() {
            return Ok(());
        }
        forget_reached(&mut uses, &self.inner.card, bound)?;
        uses.iter().try_for_each(|other| bound.hold_back(stream, &other.event))
    }

    fn check(&self, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() == self.inner.card.context().cu_ctx() {
            return Ok(());
        }
        Err(Error::Setting {
            name: "stream",
            got: "one of another context".to_owned(),
            expected: "one of CudaDevice::context is needed".to_owned(),
        })
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.len > 0 {
            let uses = std::mem::take(self.uses.get_mut());
            self.inner.store.put_back(&self.inner, Leaving { first: self.first, len: self.len, uses });
        }
    }
}

impl fmt::Debug for CudaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaMemory")
            .field("first", &self.first)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// What memory of this length takes of the budget: what the driver aligns to, in bytes.
pub(super) fn charge(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGN_BYTES).unwrap_or(usize::MAX)
}

impl Store {
    pub(super) fn new(card: &Card, bound: &Bound<'_>, budget_bytes: Option<u64>) -> Result<Self> {
        let stream = Stream::new(card, bound)?;
        let pool = match card.pools() {
            Some(functions) if card.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) > 0 => {
                Some(Pool::new(card, functions)?)
            }
            _ => None,
        };
        let (state, reclaim) = (Mutex::default(), Mutex::default());
        Ok(Self { budget_bytes, stream, pool, state, reclaim })
    }

    fn take(&self, inner: &Inner, bytes: usize) -> Result<CUdeviceptr> {
        let card = &inner.card;
        let bound = card.bind()?;
        let charge = charge(bytes) as u64;
        let mut trimmed = false;
        loop {
            self.reap(card, &bound)?;
            let (free, total) = bound.memory_info()?;
            let budget_bytes = self.budget(free, total);
            let reserved = {
                let mut state = self.state.lock();
                let room = state.in_use_bytes.checked_add(charge).is_some_and(|bytes| bytes <= budget_bytes);
                if room {
                    state.in_use_bytes += charge;
                    state.high_water_bytes = state.high_water_bytes.max(state.in_use_bytes);
                }
                room
            };
            let mut refused = None;
            if reserved {
                let (code, first) = self.get(card, &bound, bytes);
                if code == Code::SUCCESS {
                    return Ok(first);
                }
                self.state.lock().in_use_bytes -= charge;
                if code != Code::OUT_OF_MEMORY {
                    card.check("allocate", code)?;
                }
                refused = Some(code);
            }
            // Room is made of what was dropped and is used still, by waiting; or of what the pool keeps.
            if self.wait_for_one(card, &bound)? {
                continue;
            }
            if refused.is_some() && !trimmed {
                self.trim(card, &bound);
                trimmed = true;
                continue;
            }
            let says = refused.map(|code| format!("; the driver says {}", card.f().describe(code)));
            return Err(Error::OutOfMemory {
                what: format!(
                    "{}'s memory ({free} of {total} bytes are free{})",
                    card.name(),
                    says.unwrap_or_default()
                ),
                bytes: charge,
                in_use_bytes: self.state.lock().in_use_bytes,
                budget_bytes,
                remedy: match refused {
                    Some(_) => {
                        "Other programs may use the card: end them, or lower the budget to what it has"
                    }
                    None => "Drop memory that is not needed any more, or raise the budget",
                },
            });
        }
    }

    /// The budget now, by what the card has.
    fn budget(&self, free: u64, total: u64) -> u64 {
        self.budget_bytes.unwrap_or_else(|| {
            let in_use = self.state.lock().in_use_bytes;
            // What the pool keeps is not free for others, but is for us.
            let kept = self.pool.as_ref().map_or(0, Pool::reserved_bytes).saturating_sub(in_use);
            (in_use + free + kept).saturating_sub(total / SHARE_LEFT)
        })
    }

    fn get(&self, card: &Card, bound: &Bound<'_>, bytes: usize) -> (Code, CUdeviceptr) {
        let mut first = 0;
        let code = match &self.pool {
            // SAFETY: writes an address to `first`; pool and stream are of this context, which is current.
            None => unsafe { (card.f().allocate)(&mut first, bytes) },
            Some(pool) => {
                let stream = self.stream.handle();
                // SAFETY: as above.
                let code = unsafe { (pool.functions.allocate)(&mut first, bytes, pool.handle, stream) };
                // Only then may other streams use it. The stream carries nothing that takes long.
                if code == Code::SUCCESS && bound.drain(stream).is_err() {
                    card.lose("its memory pool did not answer".to_owned());
                }
                code
            }
        };
        (code, first)
    }

    /// Frees memory that nothing uses.
    fn free(&self, inner: &Card, first: CUdeviceptr, len: usize) {
        let code = match &self.pool {
            // SAFETY: `first` is what `get` returned, nobody else has it any more, and nothing uses it; the context is
            // current, as the caller sees to.
            None => unsafe { (inner.f().free)(first) },
            // SAFETY: as above; the stream is of this context.
            Some(pool) => unsafe { (pool.functions.free)(first, self.stream.handle()) },
        };
        // A refusal leaks it, which the budget of a card that is not lost must know.
        if inner.check("free", code).is_ok() || inner.is_lost() {
            self.state.lock().in_use_bytes -= charge(len) as u64;
        }
    }

    fn put_back(&self, inner: &Inner, mut leaving: Leaving) {
        let card = &inner.card;
        let Ok(bound) = card.bind() else {
            // The memory went with the context.
            self.state.lock().in_use_bytes -= charge(leaving.len) as u64;
            return;
        };
        if forget_reached(&mut leaving.uses, card, &bound).is_ok() && leaving.uses.is_empty() {
            self.free(card, leaving.first, leaving.len);
        } else {
            self.state.lock().leaving.push_back(leaving);
        }
    }

    /// Frees what was dropped and is not used any more.
    fn reap(&self, card: &Card, bound: &Bound<'_>) -> Result<()> {
        loop {
            let found = {
                let mut state = self.state.lock();
                let mut found = None;
                for place in 0..state.leaving.len() {
                    forget_reached(&mut state.leaving[place].uses, card, bound)?;
                    if state.leaving[place].uses.is_empty() {
                        found = state.leaving.remove(place);
                        break;
                    }
                }
                found
            };
            match found {
                Some(leaving) => self.free(card, leaving.first, leaving.len),
                None => return Ok(()),
            }
        }
    }

    /// Waits for the first that was dropped and is used still, and frees it. False if there is none.
    fn wait_for_one(&self, card: &Card, bound: &Bound<'_>) -> Result<bool> {
        let before = self.state.lock().in_use_bytes;
        let turn = self.reclaim.lock();
        let leaving = {
            let mut state = self.state.lock();
            if state.in_use_bytes < before {
                return Ok(true);
            }
            state.leaving.pop_front()
        };
        let Some(mut leaving) = leaving else { return Ok(false) };
        for other in leaving.uses.drain(..) {
            if let Err(error) = bound.wait_for(&other.event) {
                // What uses it is unknown: it is not freed, and counts, while the card is not lost.
                if card.is_lost() {
                    self.state.lock().in_use_bytes -= charge(leaving.len) as u64;
                }
                return Err(error);
            }
            card.recycle(other.event);
        }
        self.free(card, leaving.first, leaving.len);
        drop(turn);
        Ok(true)
    }

    /// Gives back to the card what the pool keeps.
    pub(super) fn trim(&self, card: &Card, bound: &Bound<'_>) {
        // What fails here fails again where somebody asks.
        let _ = self.reap(card, bound);
        if let Some(pool) = &self.pool {
            // The pool lets go of what was freed in the order of the stream.
            let _ = bound.drain(self.stream.handle());
            // SAFETY: the pool is ours, and the context is current.
            let code = unsafe { (pool.functions.trim)(pool.handle, 0) };
            let _ = card.check("trim its memory pool", code);
        }
    }

    pub(super) fn usage(&self, inner: &Inner) -> Usage {
        let now = inner.card.bind().and_then(|bound| {
            self.reap(&inner.card, &bound)?;
            bound.memory_info()
        });
        let budget_bytes = now.map_or(0, |(free, total)| self.budget(free, total));
        let reserved =
            if inner.card.is_lost() { None } else { self.pool.as_ref() }.map_or(0, Pool::reserved_bytes);
        let state = self.state.lock();
        Usage {
            budget_bytes: self.budget_bytes.unwrap_or(budget_bytes),
            in_use_bytes: state.in_use_bytes,
            idle_bytes: reserved.saturating_sub(state.in_use_bytes),
            high_water_bytes: state.high_water_bytes,
        }
    }

    /// Waits for what is used still, and frees all. Nobody has memory of it any more.
    pub(super) fn destroy(&self, card: &Card, bound: &Bound<'_>) {
        while let Ok(true) = self.wait_for_one(card, bound) {}
        self.stream.destroy(card, bound);
        if let Some(pool) = &self.pool {
            // SAFETY: nobody uses the pool any more; the context is current. A refusal leaks it.
            let _ = unsafe { (pool.functions.destroy)(pool.handle) };
        }
    }
}

impl Pool {
    fn new(card: &Card, functions: &'static Pools) -> Result<Self> {
        let properties = CUmemPoolProps {
            allocType: AllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: HandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: CUmemLocation {
                type_: LocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: card.context().cu_device() as c_int,
            },
            win32SecurityAttributes: std::ptr::null_mut(),
            maxSize: 0,
            reserved: [0; 56],
        };
        let mut handle: CUmemoryPool = std::ptr::null_mut();
        // SAFETY: reads `properties`, writes a handle to `handle`; the context is current.
        let code = unsafe { (functions.create)(&mut handle, &properties) };
        card.check("make a memory pool", code)?;
        // Else the pool would give all back at the next wait for a stream, and memory would be got anew each time.
        let mut keep = u64::MAX;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as c_int;
        // SAFETY: reads a number of 64 bits from `keep`, as this attribute is.
        let code = unsafe { (functions.set)(handle, attribute, (&raw mut keep).cast()) };
        card.check("set up a memory pool", code)?;
        Ok(Self { handle, functions })
    }

    /// What it has from the card, in use or not.
    fn reserved_bytes(&self) -> u64 {
        let mut bytes = 0u64;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as c_int;
        // SAFETY: writes a number of 64 bits to `bytes`, as this attribute is.
        let code = unsafe { (self.functions.get)(self.handle, attribute, (&raw mut bytes).cast()) };
        if code == Code::SUCCESS { bytes } else { 0 }
    }
}

/// Removes the uses that have ended.
fn forget_reached(uses: &mut Vec<Use>, card: &Card, bound: &Bound<'_>) -> Result<()> {
    let mut place = 0;
    while place < uses.len() {
        if bound.is_reached(&uses[place].event)? {
            card.recycle(uses.swap_remove(place).event);
        } else {
            place += 1;
        }
    }
    Ok(())
}

/// What the driver aligns memory to.
const ALIGN_BYTES: usize = 512;
/// One part in so many of the card's memory is left to others where no budget is set.
const SHARE_LEFT: u64 = 20;

//! A card of NVIDIA's: its memory under a budget, copies in the background of host and computing, page-locked memory.
//!
//! Each direction has a stream of its own, so that both go at once and none waits for the computing. Behind each copy
//! an event is recorded, which is its fence. The driver is loaded when the first device is made: without it, or
//! without a card that can be used, that is [`Error::NoDevice`], and nothing else of this crate is touched.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use qvl_transfer::device::cuda::{CudaDevice, CudaSettings};
//! use qvl_transfer::source::Memory;
//! use qvl_transfer::{Device, Settings, Transfer, TransferEngine};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let card = CudaDevice::new(0, CudaSettings::default())?;
//! let engine = TransferEngine::new(card.clone(), Settings::default())?;
//! // Weights in memory, of which a layer is locked and copied as it lies there.
//! let weights = card.register(Arc::new(vec![1u8; 64 << 20]));
//! let layer = weights.lock(0..8 << 20)?;
//! let ticket = engine.submit(Transfer::new(Memory::new(layer), card.allocate(8 << 20)?))?;
//! let layer = ticket.wait()?.memory;
//! // A kernel gets its address, and says so: who overwrites it, or frees it, waits on the card.
//! let stream = card.context().new_stream()?;
//! let address = layer.pointer(0..layer.len())?;
//! layer.used_by(&stream)?;
//! # let _ = address;
//! # Ok(())
//! # }
//! ```
//!
//! # A lost card
//! Some errors, such as a kernel that reads where nothing is, break the context for good: whatever is called after
//! that fails. Every transfer then ends with an error for which [`Error::is_device_lost`] holds, and nothing waits.
//! The driver reports such an error after it has stopped the context, but promises nowhere that no copy is under way
//! any more. So page-locked memory of a lost card is never freed or used again, and memory that was registered stays
//! locked by the kernel, whatever becomes of its mapping, until the process ends: a late copy finds its pages. The
//! memory of the card goes with the context.

#![expect(unsafe_code, reason = "begins copies by the driver")]

mod card;
mod driver;
mod locked;
mod memory;
mod pinned;
mod registered;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use parking_lot::Mutex;

use self::card::{Bound, Card, Event, Stream};
use self::driver::Code;
use self::locked::Held;
use self::memory::Store;
use self::pinned::PinnedShelf;
use self::registered::Registry;
use super::{Device, Fence, Usage};
use crate::{Error, Result};

pub use self::memory::CudaMemory;
pub use self::pinned::{CudaStaging, Pinned, PinnedKind};
pub use self::registered::{LockedBytes, Registered};

/// How much of card and host a [`CudaDevice`] may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaSettings {
    /// Bytes of the card's memory. `None`: what is free when memory is asked for, but for a twentieth of all, which
    /// is left to others.
    pub memory_bytes: Option<u64>,
    /// Bytes of page-locked memory that is made here, in use and kept for the next one: 1 GiB. The system cannot move
    /// or swap it, so much of it makes everything else slow; in a container it counts as memory of the container.
    pub pinned_bytes: u64,
    /// Bytes of memory of others that are page-locked at once ([`CudaDevice::register`]): 4 GiB.
    pub registered_bytes: u64,
    /// What staging buffers are: [`PinnedKind::Cached`].
    ///
    /// The same buffers serve both directions, and what came from the card is read by the host, as is what is read
    /// from a file with a checksum. Write-combined memory is right for an engine that only brings bytes to a card and
    /// checks none.
    pub staging: PinnedKind,
    /// What happens where memory cannot be page-locked.
    pub refused_lock: RefusedLock,
}

impl Default for CudaSettings {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            pinned_bytes: 1 << 30,
            registered_bytes: 4 << 30,
            staging: PinnedKind::Cached,
            refused_lock: RefusedLock::Error,
        }
    }
}

/// What happens where memory cannot be page-locked, since a budget has no room or the system refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusedLock {
    /// It is an error that says what to do.
    #[default]
    Error,
    /// Memory that is not locked is used in its place, with one warning ([`CudaDevice::warnings`]). Copies are then
    /// made by the processor through a buffer of the driver, more slowly, and their call waits.
    Pageable,
}

/// A card. Clones share it; what it made keeps it.
///
/// Its context is the one that all users of the card in this process share (the primary one), or the one it was made
/// from; it is made current on whatever thread calls, and what was current there before is put back.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

/// What is used of the budgets of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaUsage {
    /// The card's memory.
    pub memory: Usage,
    /// Page-locked memory that was made here.
    pub pinned: Usage,
    /// Memory of others that is page-locked; unused, it stays so until its bytes are needed.
    pub registered: Usage,
}

pub(super) struct Inner {
    card: Card,
    settings: CudaSettings,
    inward: Stream,
    outward: Stream,
    store: Store,
    pinned: PinnedShelf,
    registry: Registry,
    /// By what they are about; each is told once.
    warnings: Mutex<BTreeMap<&'static str, String>>,
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

impl CudaDevice {
    /// The card of this number, from 0 on.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where there is no driver or an old one, no card, no such card, or one that is too old;
    /// [`Error::Device`].
    pub fn new(ordinal: usize, settings: CudaSettings) -> Result<Self> {
        Self::with(Card::open(ordinal)?, settings)
    }

    /// The card of a context that others use as well.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_context(context: Arc<CudaContext>, settings: CudaSettings) -> Result<Self> {
        Self::with(Card::of(context)?, settings)
    }

    fn with(card: Card, settings: CudaSettings) -> Result<Self> {
        let bound = card.bind()?;
        let inward = Stream::new(&card, &bound)?;
        let outward = Stream::new(&card, &bound)?;
        let store = Store::new(&card, &bound, settings.memory_bytes)?;
        let registry = Registry::new(&card, settings.registered_bytes);
        drop(bound);
        let pinned = PinnedShelf::new(settings.pinned_bytes);
        let warnings = Mutex::new(BTreeMap::new());
        let inner = Inner { card, settings, inward, outward, store, pinned, registry, warnings };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The context, for others who use the card.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.inner.card.context()
    }

    /// The version of CUDA that the driver knows, such as "12.4".
    pub fn driver_version(&self) -> String {
        self.inner.card.driver_version()
    }

    /// What the card has free, whoever uses the rest, in bytes. Asks the driver.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn free_bytes(&self) -> Result<u64> {
        Ok(self.inner.card.bind()?.memory_info()?.0)
    }

    /// The memory of the card, in bytes. Asks the driver.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn total_bytes(&self) -> Result<u64> {
        Ok(self.inner.card.bind()?.memory_info()?.1)
    }

    /// What is used of the budgets.
    pub fn usage(&self) -> CudaUsage {
        let inner = &self.inner;
        CudaUsage {
            memory: inner.store.usage(inner),
            pinned: inner.pinned.usage(),
            registered: inner.registry.usage(),
        }
    }

    /// Page-locked memory of this kind, aligned to 4096 bytes.
    ///
    /// Slow where none of that size was dropped before: the system locks page by page.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] over the budget, or if the system locks no more; [`Error::Device`].
    pub fn pinned(&self, bytes: usize, kind: PinnedKind) -> Result<Pinned> {
        Pinned::new(&self.inner, bytes, kind)
    }

    /// Memory of the caller's, such as a mapped file, of which ranges are page-locked on demand so that copies need no
    /// staging. Locks nothing yet.
    pub fn register<O: AsRef<[u8]> + Send + Sync + 'static>(&self, owner: Arc<O>) -> Registered<O> {
        Registered::new(&self.inner, owner)
    }

    /// What does not work as well as it could, and what to do. Each is listed once, however often it happened.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.warnings.lock().values().cloned().collect()
    }

    /// Gives back what is kept for the next one: memory of the card, page-locked memory, and the locks of memory that
    /// nobody uses.
    pub fn trim(&self) {
        let inner = &self.inner;
        inner.pinned.trim(inner);
        inner.registry.trim(inner);
        if let Ok(bound) = inner.card.bind() {
            inner.store.trim(&inner.card, &bound);
        }
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("name", &self.inner.card.name())
            .field("usage", &self.usage())
            .finish()
    }
}

impl Inner {
    /// Notes something that the caller should know, if nothing of that kind was noted before.
    fn warn(&self, about: &'static str, text: impl FnOnce() -> String) {
        self.warnings.lock().entry(about).or_insert_with(text);
    }

    fn stream(&self, direction: Direction) -> &Stream {
        match direction {
            Direction::In => &self.inward,
            Direction::Out => &self.outward,
        }
    }

    /// Begins to copy between the host's memory at `host` and `memory`, `at` bytes into it.
    ///
    /// # Safety
    /// As [`Device::copy_in`] and [`Device::copy_out`].
    unsafe fn copy(
        self: &Arc<Self>,
        direction: Direction,
        host: *mut u8,
        bytes: usize,
        memory: &CudaMemory,
        at: usize,
    ) -> Result<CudaFence> {
        let first = memory.pointer(at..at.saturating_add(bytes))?;
        let bound = self.card.bind()?;
        let stream = self.stream(direction);
        let event = self.card.event(&bound)?;
        let mut fence =
            CudaFence { inner: self.clone(), direction, event: Some(event), held: Held::default() };
        // Whatever the caller computes on this memory comes first.
        memory.hold_back(&bound, stream.handle())?;
        let begun = self.pieces(&mut fence, host as usize, bytes, |part| {
            let there = first + (part.start - host as usize) as u64;
            let here = host.wrapping_add(part.start - host as usize);
            let f = self.card.f();
            match direction {
                // SAFETY: `there` is inside the memory, checked above; `here` is inside what the caller says can be
                // read, and neither is freed or written before the fence. The context is current.
                Direction::In => unsafe { (f.copy_in)(there, here.cast(), part.len(), stream.handle()) },
                // SAFETY: as above, with the sides exchanged.
                Direction::Out => unsafe { (f.copy_out)(here.cast(), there, part.len(), stream.handle()) },
            }
        });
        let recorded = match &fence.event {
            Some(event) => bound.record(event, stream.handle()),
            None => Ok(()),
        };
        // A part of it may have begun before what failed: then nothing is sure before the stream is empty.
        if let Err(error) = begun.and(recorded) {
            self.settle(direction, &bound);
            fence.finish();
            return Err(error);
        }
        Ok(fence)
    }

    /// Calls `copy` for the parts of a range of the host that are each registered as one range or not at all: the
    /// driver refuses copies that are neither.
    fn pieces(
        &self,
        fence: &mut CudaFence,
        host: usize,
        bytes: usize,
        mut copy: impl FnMut(Range<usize>) -> Code,
    ) -> Result<()> {
        let mut rest = host..host + bytes;
        loop {
            let (parts, held, seen) = self.registry.hold(&rest);
            fence.held.append(held);
            let mut failed = None;
            for part in parts {
                let code = copy(part.clone());
                if code != Code::SUCCESS {
                    failed = Some((part.start, code));
                    break;
                }
            }
            match failed {
                None => return Ok(()),
                // A range was locked or unlocked between the look and the copy, perhaps within this part: look again.
                Some((at, Code::INVALID_VALUE)) if self.registry.changed_since(seen) => rest.start = at,
                Some((_, code)) => return self.card.check("begin a copy", code),
            }
        }
    }

    /// After an error: waits until nothing of a direction is under way. If that fails as well, the card is lost, since
    /// no one can say what it still does.
    fn settle(&self, direction: Direction, bound: &Bound<'_>) {
        if let Err(error) = bound.drain(self.stream(direction).handle()) {
            self.card.lose(error.to_string());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A card that is lost is left as it is: see the head of this file.
        let Ok(bound) = self.card.bind() else { return };
        // Nothing is under way: each fence and all memory kept this alive.
        self.inward.destroy(&self.card, &bound);
        self.outward.destroy(&self.card, &bound);
        self.store.destroy(&self.card, &bound);
        self.registry.destroy(&self.card);
        self.pinned.destroy(&self.card);
        self.card.destroy_events(&bound);
    }
}

// SAFETY: a range of the card's memory stays where it is until its `CudaMemory` is dropped, as does page-locked memory.
// There are no windows. A fence is reached when its event was, which was recorded behind the copy, or when the stream
// was found empty (`Inner::settle`), or when the card is lost, in which case neither side is freed or used again.
unsafe impl Device for CudaDevice {
    type Memory = CudaMemory;
    type Staging = CudaStaging;
    type Fence = CudaFence;

    fn name(&self) -> &str {
        self.inner.card.name()
    }

    /// Waits, if the budget has no room, for memory that was dropped while the caller's computing used it
    /// ([`CudaMemory::used_by`]).
    fn allocate(&self, bytes: usize) -> Result<CudaMemory> {
        CudaMemory::new(&self.inner, bytes)
    }

    fn bytes(&self, memory: &CudaMemory) -> usize {
        memory.len()
    }

    fn charge(&self, bytes: usize) -> usize {
        memory::charge(bytes)
    }

    fn staging(&self, bytes: usize) -> Result<CudaStaging> {
        CudaStaging::new(&self.inner, bytes)
    }

    fn copies_from(&self, bytes: &[u8]) -> bool {
        let first = bytes.as_ptr() as usize;
        let range = first..first + bytes.len();
        self.inner.pinned.covers(&range) || self.inner.registry.covers(&range)
    }

    unsafe fn copy_in(&self, from: *const u8, bytes: usize, to: &CudaMemory, at: usize) -> Result<CudaFence> {
        // SAFETY: the caller's promise; nothing is written to `from`.
        unsafe { self.inner.copy(Direction::In, from.cast_mut(), bytes, to, at) }
    }

    unsafe fn copy_out(&self, from: &CudaMemory, at: usize, to: *mut u8, bytes: usize) -> Result<CudaFence> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy(Direction::Out, to, bytes, from, at) }
    }
}

/// The end of a copy: an event behind it. Dropped, it waits.
pub struct CudaFence {
    inner: Arc<Inner>,
    direction: Direction,
    /// Taken when it was waited for.
    event: Option<Event>,
    /// Memory of others that must stay locked until then.
    held: Held,
}

impl CudaFence {
    /// Waits, once.
    fn end(&mut self) -> Result<()> {
        let Some(event) = &self.event else { return Ok(()) };
        let waited = match self.inner.card.bind() {
            Ok(bound) => bound.wait_for(event).inspect_err(|_| {
                // The event says nothing of the copy then.
                if !self.inner.card.is_lost() {
                    self.inner.settle(self.direction, &bound);
                }
            }),
            Err(error) => Err(error),
        };
        self.finish();
        waited
    }

    /// Gives back what it had.
    fn finish(&mut self) {
        if let Some(event) = self.event.take() {
            self.inner.card.recycle(event);
        }
        self.inner.registry.release(&self.inner.card, std::mem::take(&mut self.held));
    }
}

impl Fence for CudaFence {
    fn wait(mut self) -> Result<()> {
        self.end()
    }

    fn is_reached(&self) -> bool {
        let Some(event) = &self.event else { return true };
        // Of a lost card nothing is waited for.
        self.inner.card.bind().is_ok_and(|bound| bound.is_reached(event).unwrap_or(true))
            || self.inner.card.is_lost()
    }
}

impl Drop for CudaFence {
    fn drop(&mut self) {
        // Who drops it does not want to know.
        let _ = self.end();
    }
}

impl fmt::Debug for CudaFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaFence").field("reached", &self.is_reached()).finish()
    }
}

/// The error of a budget of locked memory, whoever refused.
fn no_lock(what: String, bytes: usize, usage: Usage, remedy: &'static str) -> Error {
    Error::OutOfMemory {
        what,
        bytes: bytes as u64,
        in_use_bytes: usage.in_use_bytes,
        budget_bytes: usage.budget_bytes,
        remedy,
    }
}

/// The limit of locked memory of this process, for a message.
fn lock_limit() -> String {
    #[cfg(target_os = "linux")]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        limit.map_or_else(
            || "RLIMIT_MEMLOCK is unlimited".to_owned(),
            |bytes| format!("RLIMIT_MEMLOCK is {bytes} bytes"),
        )
    }
    #[cfg(not(target_os = "linux"))]
    "the limit of locked memory is the system's".to_owned()
}

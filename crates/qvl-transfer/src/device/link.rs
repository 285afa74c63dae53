//! A device behind a link of a set speed, with faults on demand: for policies and tests on a machine without a card.
//!
//! Its memory is host memory that only copies reach. Two threads for each direction make the copies as soon as they are
//! asked for, since one alone copies no faster than some links. When a link of that speed would have carried them is
//! added up, and a fence is waited for until then: who wakes late loses nothing but the lateness of the last copy.

#![expect(unsafe_code, reason = "implements the copies of `Device`, made by threads of their own")]

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Device, Fence, Usage};
use crate::memory::Shelf;
use crate::{Error, HostMemory, Result, copy};

/// What a link is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSettings {
    /// Bytes a second in each direction.
    pub bytes_per_s: f64,
    /// From the end of a copy on the wire until its fence.
    pub latency: Duration,
    /// Bytes of the device's memory.
    pub memory_bytes: u64,
    /// Whether it copies from any memory, as a card does from what is page-locked; else only from its own staging.
    pub copies_from_anywhere: bool,
}

impl Default for LinkSettings {
    /// PCIe 3.0 with sixteen lanes, as it is in practice, and 2 GiB.
    fn default() -> Self {
        Self {
            bytes_per_s: 12e9,
            latency: Duration::from_micros(10),
            memory_bytes: 2 << 30,
            copies_from_anywhere: false,
        }
    }
}

/// What is to go wrong. Copies and allocations are counted from when this is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// This allocation of device memory finds none, the first being 0.
    pub no_memory_at: Option<u64>,
    /// This copy fails: its fence says so.
    pub failed_copy_at: Option<u64>,
    /// From this copy on the device is lost: all that is asked of it fails.
    pub lost_at: Option<u64>,
    /// Copies take so many times as long; 0 is as if it were 1.
    pub slower: f64,
}

/// A simulated device behind a link. Clones are the same device.
#[derive(Clone)]
pub struct LinkDevice {
    inner: Arc<Inner>,
}

struct Inner {
    settings: LinkSettings,
    name: String,
    memory: Arc<Shelf>,
    staging: Arc<Shelf>,
    inward: Arc<Wire>,
    outward: Arc<Wire>,
    script: Arc<Script>,
    threads: Vec<JoinHandle<()>>,
}

/// The faults, and how often each was asked for.
#[derive(Default)]
struct Script {
    state: Mutex<(Faults, u64, u64)>,
}

impl Script {
    fn lost(name: &str, operation: &'static str) -> Error {
        let what = "the link is down (a fault that was set)".to_owned();
        Error::Device { device: name.to_owned(), operation, what, lost: true }
    }

    fn is_lost(&self) -> bool {
        let state = self.state.lock();
        state.0.lost_at.is_some_and(|at| state.2 > at)
    }

    /// Counts an allocation; whether it is to fail.
    fn allocation(&self) -> bool {
        let mut state = self.state.lock();
        state.1 += 1;
        state.0.no_memory_at == Some(state.1 - 1)
    }

    /// Counts a copy; how much slower it is, or that it fails.
    fn copy(&self) -> Result<f64, Fate> {
        let mut state = self.state.lock();
        let number = state.2;
        state.2 += 1;
        if state.0.lost_at.is_some_and(|at| number >= at) {
            return Err(Fate::Lost);
        }
        if state.0.failed_copy_at == Some(number) {
            return Err(Fate::Failed);
        }
        Ok(if state.0.slower > 0.0 { state.0.slower } else { 1.0 })
    }
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Failed,
    Lost,
}

/// One direction of the link.
struct Wire {
    state: Mutex<WireState>,
    changed: Condvar,
    reached: Condvar,
}

struct WireState {
    queue: VecDeque<Order>,
    /// Copies that were ordered, numbered from 1, and those that were made, without gaps.
    ordered: u64,
    made: u64,
    /// Copies that were made before one that was ordered earlier.
    early: Vec<u64>,
    /// When the link will have carried all that was ordered.
    free_at: Instant,
    closed: bool,
}

/// A copy to be made.
struct Order {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

// SAFETY: addresses, used by the wire's threads under the contract of `Device::copy_in`.
unsafe impl Send for Order {}

impl LinkDevice {
    /// A device behind such a link.
    ///
    /// # Errors
    /// [`Error::Setting`] if the speed is not a positive number, or the system starts no thread.
    pub fn new(settings: LinkSettings) -> Result<Self> {
        if !(settings.bytes_per_s > 0.0 && settings.bytes_per_s.is_finite()) {
            return Err(Error::Setting {
                name: "bytes_per_s",
                got: settings.bytes_per_s.to_string(),
                expected: "a positive number is needed".to_owned(),
            });
        }
        let name = format!("link of {:.1} GB/s", settings.bytes_per_s / 1e9);
        let script = Arc::new(Script::default());
        let (inward, outward) = (Arc::new(Wire::new()), Arc::new(Wire::new()));
        let mut inner = Inner {
            memory: Arc::new(Shelf::new("the memory behind the link", settings.memory_bytes)),
            staging: Arc::new(Shelf::new("the host's staging memory", u64::MAX)),
            name,
            inward,
            outward,
            script,
            threads: Vec::new(),
            settings,
        };
        for (direction, wire) in [("in", &inner.inward), ("out", &inner.outward)] {
            for number in 0..CARRIERS {
                let wire = wire.clone();
                let name = format!("qvl-transfer link {direction} {number}");
                inner.threads.push(crate::worker::spawn(name, move || carry(&wire))?);
            }
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sets what is to go wrong from now on; counting begins anew.
    pub fn set_faults(&self, faults: Faults) {
        *self.inner.script.state.lock() = (faults, 0, 0);
    }

    /// What is used of the device's memory.
    pub fn usage(&self) -> Usage {
        self.inner.memory.usage()
    }

    /// What is used of staging memory.
    pub fn staging_usage(&self) -> Usage {
        self.inner.staging.usage()
    }

    fn order(&self, wire: &Arc<Wire>, operation: &'static str, order: Order) -> Result<LinkFence> {
        if self.inner.script.is_lost() {
            return Err(Script::lost(&self.inner.name, operation));
        }
        let end = {
            let mut state = wire.state.lock();
            self.inner.script.copy().map(|slower| {
                let LinkSettings { bytes_per_s, latency, .. } = self.inner.settings;
                // No copy takes longer than that: what cannot be waited for cannot be told from a link that hangs.
                let seconds = (order.bytes as f64 * slower / bytes_per_s).min(COPY_S_MAX);
                state.free_at = state.free_at.max(Instant::now()) + Duration::from_secs_f64(seconds);
                state.queue.push_back(order);
                state.ordered += 1;
                let carried_at = state.free_at + latency.min(Duration::from_secs_f64(COPY_S_MAX));
                End { number: state.ordered, carried_at }
            })
        };
        wire.changed.notify_one();
        Ok(LinkFence { wire: wire.clone(), end, device: self.inner.clone(), operation })
    }
}

impl fmt::Debug for LinkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkDevice")
            .field("settings", &self.inner.settings)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for wire in [&self.inward, &self.outward] {
            wire.state.lock().closed = true;
            wire.changed.notify_all();
        }
        // A fence has the device, so the last one is not dropped by a thread of its own.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The work of a wire's threads: all that was ordered, then the end.
fn carry(wire: &Wire) {
    while let Some((number, order)) = wire.take() {
        // SAFETY: both sides are as `Device::copy_in` or `copy_out` promised until the fence, which is not reached
        // before `made`.
        unsafe { copy::copy(order.from, order.to, order.bytes) };
        wire.made(number);
    }
}

impl Wire {
    fn new() -> Self {
        let state = WireState {
            queue: VecDeque::with_capacity(256),
            ordered: 0,
            made: 0,
            early: Vec::with_capacity(CARRIERS),
            free_at: Instant::now(),
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), reached: Condvar::new() }
    }

    /// The next copy in order, which is waited for; `None` at the end.
    fn take(&self) -> Option<(u64, Order)> {
        let mut state = self.state.lock();
        loop {
            let number = state.ordered - state.queue.len() as u64 + 1;
            if let Some(order) = state.queue.pop_front() {
                return Some((number, order));
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    fn made(&self, number: u64) {
        let mut state = self.state.lock();
        state.early.push(number);
        while let Some(place) = state.early.iter().position(|&early| early == state.made + 1) {
            state.early.swap_remove(place);
            state.made += 1;
        }
        drop(state);
        self.reached.notify_all();
    }
}

/// A day.
const COPY_S_MAX: f64 = 86_400.0;

/// Threads of a direction.
const CARRIERS: usize = 2;

/// Memory behind the link: only copies reach it.
pub struct LinkMemory {
    memory: HostMemory,
}

impl fmt::Debug for LinkMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkMemory").field("len", &self.memory.window().len).finish_non_exhaustive()
    }
}

/// The end of a copy over a link.
pub struct LinkFence {
    wire: Arc<Wire>,
    end: Result<End, Fate>,
    device: Arc<Inner>,
    operation: &'static str,
}

/// When a copy is over: it was made, and the time has come.
#[derive(Clone, Copy, Debug)]
struct End {
    number: u64,
    carried_at: Instant,
}

impl fmt::Debug for LinkFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkFence").field("end", &self.end).finish_non_exhaustive()
    }
}

impl Fence for LinkFence {
    fn wait(self) -> Result<()> {
        match self.end {
            Ok(End { number, carried_at }) => {
                let mut state = self.wire.state.lock();
                while state.made < number {
                    self.wire.reached.wait(&mut state);
                }
                drop(state);
                let left = carried_at.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    std::thread::sleep(left);
                }
                Ok(())
            }
            Err(Fate::Lost) => Err(Script::lost(&self.device.name, self.operation)),
            Err(Fate::Failed) => Err(Error::Device {
                device: self.device.name.clone(),
                operation: self.operation,
                what: "the copy failed (a fault that was set)".to_owned(),
                lost: false,
            }),
        }
    }

    fn is_reached(&self) -> bool {
        match self.end {
            Ok(end) => self.wire.state.lock().made >= end.number && Instant::now() >= end.carried_at,
            // Nothing was begun.
            Err(_) => true,
        }
    }
}

// SAFETY: a region is mapped until its memory is dropped, at the same address; a fence is reached after its copy was
// made.
unsafe impl Device for LinkDevice {
    type Memory = LinkMemory;
    type Staging = HostMemory;
    type Fence = LinkFence;

    fn name(&self) -> &str {
        &self.inner.name
    }

    fn allocate(&self, bytes: usize) -> Result<LinkMemory> {
        if self.inner.script.is_lost() {
            return Err(Script::lost(&self.inner.name, "allocate"));
        }
        if self.inner.script.allocation() {
            let Usage { budget_bytes, in_use_bytes, .. } = self.usage();
            return Err(Error::OutOfMemory {
                what: format!("{} (a fault that was set)", self.inner.name),
                bytes: bytes as u64,
                in_use_bytes,
                budget_bytes,
                remedy: "Drop memory that is not needed any more",
            });
        }
        Ok(LinkMemory { memory: self.inner.memory.take(bytes)? })
    }

    fn bytes(&self, memory: &LinkMemory) -> usize {
        memory.memory.window().len
    }

    fn charge(&self, bytes: usize) -> usize {
        HostMemory::charge(bytes)
    }

    fn staging(&self, bytes: usize) -> Result<HostMemory> {
        self.inner.staging.take_bare(bytes)
    }

    fn copies_from(&self, _: &[u8]) -> bool {
        self.inner.settings.copies_from_anywhere
    }

    unsafe fn copy_in(&self, from: *const u8, bytes: usize, to: &LinkMemory, at: usize) -> Result<LinkFence> {
        // SAFETY: the caller promises that `at..at + bytes` is inside `to`.
        let to = unsafe { to.memory.window().first.as_ptr().add(at) };
        self.order(&self.inner.inward, "copy to the device", Order { from, to, bytes })
    }

    unsafe fn copy_out(&self, from: &LinkMemory, at: usize, to: *mut u8, bytes: usize) -> Result<LinkFence> {
        // SAFETY: the caller promises that `at..at + bytes` is inside `from`.
        let from = unsafe { from.memory.window().first.as_ptr().add(at) }.cast_const();
        self.order(&self.inner.outward, "copy from the device", Order { from, to, bytes })
    }
}

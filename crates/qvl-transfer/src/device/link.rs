//! A device behind a link of a set speed, with faults on demand: for policies and tests on a machine without a card.
//!
//! Its memory is host memory that only copies reach. A thread for each direction makes the copies one after another,
//! and their fences are reached when a link of that speed would have carried them. The times are added up, so a thread
//! that wakes late loses nothing but the lateness of the last copy.

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

#[derive(Clone, Copy)]
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

#[derive(Default)]
struct WireState {
    queue: VecDeque<Order>,
    /// Copies that were begun, and those whose fence was reached, in the same order.
    begun: u64,
    done: u64,
    /// Of the done ones, those that failed and whose fence nobody waited for yet.
    failed: Vec<(u64, Fate)>,
    closed: bool,
}

/// A copy to be made.
struct Order {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
    since: Instant,
}

// SAFETY: addresses, used by the wire's thread under the contract of `Device::copy_in`.
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
        let wire = || {
            let state = Mutex::new(WireState { queue: VecDeque::with_capacity(256), ..WireState::default() });
            Arc::new(Wire { state, changed: Condvar::new(), reached: Condvar::new() })
        };
        let (inward, outward) = (wire(), wire());
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
            let (wire, script, settings) = (wire.clone(), inner.script.clone(), inner.settings.clone());
            let work = move || carry(&wire, &script, &settings);
            inner.threads.push(crate::worker::spawn(format!("qvl-transfer link {direction}"), work)?);
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
        let number = {
            let mut state = wire.state.lock();
            state.queue.push_back(order);
            state.begun += 1;
            state.begun
        };
        wire.changed.notify_one();
        Ok(LinkFence { wire: wire.clone(), number, device: self.inner.clone(), operation })
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

/// The work of a wire's thread: all that was ordered, then the end.
fn carry(wire: &Wire, script: &Script, settings: &LinkSettings) {
    let mut free_at = Instant::now();
    loop {
        let order = {
            let mut state = wire.state.lock();
            loop {
                if let Some(order) = state.queue.pop_front() {
                    break order;
                }
                if state.closed {
                    return;
                }
                wire.changed.wait(&mut state);
            }
        };
        let fate = match script.copy() {
            Err(fate) => Some(fate),
            Ok(slower) => {
                // SAFETY: both sides are as `Device::copy_in` or `copy_out` promised until the fence, which is below.
                unsafe { copy::copy(order.from, order.to, order.bytes) };
                let seconds = order.bytes as f64 * slower / settings.bytes_per_s;
                free_at = free_at.max(order.since) + Duration::from_secs_f64(seconds);
                let left = (free_at + settings.latency).saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    std::thread::sleep(left);
                }
                None
            }
        };
        let mut state = wire.state.lock();
        state.done += 1;
        if let Some(fate) = fate {
            let number = state.done;
            state.failed.push((number, fate));
        }
        drop(state);
        wire.reached.notify_all();
    }
}

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
    number: u64,
    device: Arc<Inner>,
    operation: &'static str,
}

impl fmt::Debug for LinkFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkFence").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Fence for LinkFence {
    fn wait(self) -> Result<()> {
        let fate = {
            let mut state = self.wire.state.lock();
            while state.done < self.number {
                self.wire.reached.wait(&mut state);
            }
            let place = state.failed.iter().position(|failed| failed.0 == self.number);
            place.map(|place| state.failed.swap_remove(place).1)
        };
        match fate {
            None => Ok(()),
            Some(Fate::Lost) => Err(Script::lost(&self.device.name, self.operation)),
            Some(Fate::Failed) => Err(Error::Device {
                device: self.device.name.clone(),
                operation: self.operation,
                what: "the copy failed (a fault that was set)".to_owned(),
                lost: false,
            }),
        }
    }

    fn is_reached(&self) -> bool {
        self.wire.state.lock().done >= self.number
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
        self.order(&self.inner.inward, "copy to the device", Order { from, to, bytes, since: Instant::now() })
    }

    unsafe fn copy_out(&self, from: &LinkMemory, at: usize, to: *mut u8, bytes: usize) -> Result<LinkFence> {
        // SAFETY: the caller promises that `at..at + bytes` is inside `from`.
        let from = unsafe { from.memory.window().first.as_ptr().add(at) }.cast_const();
        self.order(
            &self.inner.outward,
            "copy from the device",
            Order { from, to, bytes, since: Instant::now() },
        )
    }
}

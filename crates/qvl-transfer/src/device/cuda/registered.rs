//! Memory of others that is page-locked on demand: a mapped file is copied to a card with nothing in between.
//!
//! What is locked and unlocked when is decided by [`super::locked`]; here the driver is called, and the owners of the
//! memory are kept while any of it is locked.

#![expect(unsafe_code, reason = "calls the driver")]

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use parking_lot::{Condvar, Mutex};

use super::card::Card;
use super::driver::Code;
use super::locked::{Acquire, Held, Locked};
use super::{Inner, RefusedLock, lock_limit, no_lock};
use crate::device::{Usage, check_range};
use crate::{Error, Result};

/// What keeps memory where it is.
type Keeper = Arc<dyn Any + Send + Sync>;

/// Memory of which ranges can be page-locked: made by [`CudaDevice::register`](crate::CudaDevice::register).
///
/// Ranges that nobody uses stay locked, for the next time, until their bytes are needed for others or this is dropped.
/// The owner is kept as long as any of it is locked.
pub struct Registered<O> {
    inner: Arc<Inner>,
    owner: Arc<O>,
    number: u64,
}

/// A range of bytes that is page-locked until this is dropped: a source
/// ([`source::Memory`](crate::source::Memory)) that needs no staging.
pub struct LockedBytes<O> {
    inner: Arc<Inner>,
    owner: Arc<O>,
    range: Range<usize>,
    held: Held,
    locked: bool,
}

/// What is locked, and who waits for a change of it.
pub(super) struct Registry {
    state: Mutex<State>,
    changed: Condvar,
    next_owner: AtomicU64,
    flags: u32,
}

struct State {
    locked: Locked<Keeper>,
    /// Counts what was locked and unlocked.
    changes: u64,
}

impl<O: AsRef<[u8]> + Send + Sync + 'static> Registered<O> {
    pub(super) fn new(inner: &Arc<Inner>, owner: Arc<O>) -> Self {
        let number = inner.registry.next_owner.fetch_add(1, Ordering::Relaxed);
        Self { inner: inner.clone(), owner, number }
    }

    /// The memory.
    pub fn owner(&self) -> &Arc<O> {
        &self.owner
    }

    /// Page-locks a range of the bytes, unless it is so already, and keeps it locked until what is returned is
    /// dropped. Whole pages are locked; ranges that nobody uses are unlocked if the budget needs it.
    ///
    /// Takes as long as reading the range into memory if it is not there, and some time for each page if it is.
    ///
    /// # Errors
    /// [`Error::Range`]; [`Error::OutOfMemory`] if the budget has no room or the system refuses, unless
    /// [`RefusedLock::Pageable`] is set: then the bytes are not locked ([`LockedBytes::is_locked`]) and are copied
    /// through staging, with one warning. [`Error::Device`].
    pub fn lock(&self, range: Range<usize>) -> Result<LockedBytes<O>> {
        let all = (*self.owner).as_ref();
        let bytes = range.end.saturating_sub(range.start);
        check_range("the registered memory", range.start as u64, bytes as u64, all.len() as u64)?;
        let mut locked = LockedBytes {
            inner: self.inner.clone(),
            owner: self.owner.clone(),
            range: range.clone(),
            held: Held::default(),
            locked: true,
        };
        let first = all.as_ptr() as usize + range.start;
        let addresses = first..first + bytes;
        // What this crate locked is locked; the driver would refuse to do it twice.
        if addresses.is_empty() || self.inner.pinned.covers(&addresses) {
            return Ok(locked);
        }
        let keeper: Keeper = self.owner.clone();
        match self.inner.registry.acquire(&self.inner.card, &addresses, self.number, &keeper) {
            Ok(held) => locked.held = held,
            Err(error)
                if self.inner.card.is_lost() || self.inner.settings.refused_lock == RefusedLock::Error =>
            {
                return Err(error);
            }
            Err(error) => {
                self.inner.warn("registration", || {
                    format!("memory is not page-locked, so it is copied through staging: {error}")
                });
                locked.locked = false;
            }
        }
        Ok(locked)
    }
}

impl<O> Drop for Registered<O> {
    fn drop(&mut self) {
        let unlock = self.inner.registry.state.lock().locked.retire(self.number);
        self.inner.registry.unlock(&self.inner.card, unlock);
    }
}

impl<O> fmt::Debug for Registered<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<O> LockedBytes<O> {
    /// Whether they are page-locked: always, unless [`RefusedLock::Pageable`] is set.
    pub fn is_locked(&self) -> bool {
        self.locked
    }
}

impl<O: AsRef<[u8]>> AsRef<[u8]> for LockedBytes<O> {
    fn as_ref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl<O> Drop for LockedBytes<O> {
    fn drop(&mut self) {
        self.inner.registry.release(&self.inner.card, std::mem::take(&mut self.held));
    }
}

impl<O> fmt::Debug for LockedBytes<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedBytes")
            .field("range", &self.range)
            .field("locked", &self.locked)
            .finish_non_exhaustive()
    }
}

impl Registry {
    pub(super) fn new(card: &Card, budget_bytes: u64) -> Self {
        let read_only = card.attribute(Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED) > 0;
        let budget_bytes = usize::try_from(budget_bytes).unwrap_or(usize::MAX);
        Self {
            state: Mutex::new(State { locked: Locked::new(page_bytes(), budget_bytes), changes: 0 }),
            changed: Condvar::new(),
            next_owner: AtomicU64::new(0),
            // Without it a file that is mapped for reading is refused; nothing here is ever written by the card.
            flags: if read_only { PORTABLE | READ_ONLY } else { PORTABLE },
        }
    }

    /// Locks a range of addresses and holds it. Waits while others lock or unlock what it needs.
    fn acquire(&self, card: &Card, range: &Range<usize>, owner: u64, keeper: &Keeper) -> Result<Held> {
        let (unlock, lock, mut held) = {
            let mut state = self.state.lock();
            loop {
                match state.locked.acquire(range, owner, keeper) {
                    Acquire::Wait => self.changed.wait(&mut state),
                    Acquire::Go { unlock, lock, held } => break (unlock, lock, held),
                    Acquire::Clear { unlock } => {
                        drop(state);
                        self.unlock(card, unlock);
                        state = self.state.lock();
                    }
                    Acquire::NoRoom { bytes, used_bytes } => {
                        let usage = state.usage();
                        return Err(no_lock(
                            format!("registered memory of {}", card.name()),
                            bytes,
                            Usage { in_use_bytes: used_bytes as u64, ..usage },
                            "Lock shorter ranges, drop some that are not needed, or raise \
                             CudaSettings::registered_bytes",
                        ));
                    }
                }
            }
        };
        self.unlock(card, unlock);
        let mut failed = None;
        for gap in lock {
            // After a failure nothing more is tried, but each must be said to be gone.
            let code = match failed {
                None => register(card, &gap, self.flags),
                Some(_) => Err(None),
            };
            let mut state = self.state.lock();
            let keeper = match code {
                Ok(()) => {
                    state.locked.locked(gap.start);
                    None
                }
                Err(code) => {
                    failed = failed.or(Some((gap.len(), code)));
                    state.locked.gone(gap.start, Some(&mut held))
                }
            };
            state.changes += 1;
            drop(state);
            self.changed.notify_all();
            // May run code of the caller's: not under the lock.
            drop(keeper);
        }
        let Some((bytes, code)) = failed else { return Ok(held) };
        self.release(card, held);
        let Some(code) = code else { return Err(card.bind().err().unwrap_or(Error::Closed)) };
        if code.is_lost() {
            card.check("lock memory", code)?;
        }
        let says = card.f().describe(code);
        Err(no_lock(
            format!("registered memory of {} (the driver says {says}; {})", card.name(), lock_limit()),
            bytes,
            self.usage(),
            "Raise the system's or the container's limit of locked memory (ulimit -l), copy through staging, or set \
             CudaSettings::refused_lock to Pageable",
        ))
    }

    /// Holds what of a range is locked; the parts that it is to be copied in, and the state that this is true of. Waits
    /// while some of it is being locked or unlocked.
    pub(super) fn hold(&self, range: &Range<usize>) -> (Vec<Range<usize>>, Held, u64) {
        let mut state = self.state.lock();
        loop {
            if let Some((parts, held)) = state.locked.hold(range) {
                return (parts, held, state.changes);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Whether anything was locked or unlocked since.
    pub(super) fn changed_since(&self, seen: u64) -> bool {
        self.state.lock().changes != seen
    }

    pub(super) fn release(&self, card: &Card, held: Held) {
        if held.is_empty() {
            return;
        }
        let unlock = self.state.lock().locked.release(held);
        self.unlock(card, unlock);
    }

    /// Unlocks ranges that the policy has given up.
    fn unlock(&self, card: &Card, ranges: Vec<Range<usize>>) {
        for range in ranges {
            // Of a lost card nothing can be unlocked; the kernel does it when the process ends.
            if let Ok(_bound) = card.bind() {
                // SAFETY: the range was registered by this address, and nobody uses it any more.
                let code = unsafe { (card.f().host_unregister)(range.start as *mut _) };
                let _ = card.check("unlock memory", code);
            }
            let keeper = {
                let mut state = self.state.lock();
                state.changes += 1;
                state.locked.gone(range.start, None)
            };
            self.changed.notify_all();
            // May run code of the caller's: not under the lock.
            drop(keeper);
        }
    }

    pub(super) fn covers(&self, range: &Range<usize>) -> bool {
        self.state.lock().locked.covers(range)
    }

    /// Unlocks what nobody uses.
    pub(super) fn trim(&self, inner: &Inner) {
        let unlock = self.state.lock().locked.idle();
        self.unlock(&inner.card, unlock);
    }

    /// Unlocks all. Nobody has any of it any more.
    pub(super) fn destroy(&self, card: &Card) {
        let unlock = self.state.lock().locked.idle();
        self.unlock(card, unlock);
    }

    pub(super) fn usage(&self) -> Usage {
        self.state.lock().usage()
    }
}

impl State {
    fn usage(&self) -> Usage {
        let [budget_bytes, in_use_bytes, idle_bytes, high_water_bytes] =
            self.locked.usage().map(|n| n as u64);
        Usage { budget_bytes, in_use_bytes, idle_bytes, high_water_bytes }
    }
}

/// Locks whole pages; what the driver says otherwise, or nothing if it is lost.
fn register(card: &Card, range: &Range<usize>, flags: u32) -> Result<(), Option<Code>> {
    let Ok(_bound) = card.bind() else { return Err(None) };
    // SAFETY: each of these pages has a byte of a slice that its owner lent. A loan may last as long as the owner is
    // neither dropped nor borrowed for writing, so while its `Arc` is kept, which it is until the range is unlocked,
    // the pages are mapped. The driver locks them and writes nothing.
    match unsafe { (card.f().host_register)(range.start as *mut _, range.len(), flags) } {
        Code::SUCCESS => Ok(()),
        code => Err(Some(code)),
    }
}

fn page_bytes() -> usize {
    #[cfg(target_os = "linux")]
    return rustix::param::page_size();
    // Windows on x64.
    #[cfg(not(target_os = "linux"))]
    4096
}

/// Locked for all contexts, not for the one that is current alone.
const PORTABLE: u32 = 1;
/// The card only reads: needed for memory that is mapped for reading.
const READ_ONLY: u32 = 8;

//! Memory of the cards, which is the host's behind addresses of its own, and memory of the host that cards copy from
//! and to.

#![expect(unsafe_code, reason = "memory that the caller is given the address of")]

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Range;
use std::sync::Arc;

use crate::work::{Access, Point, Work};
use crate::world::{Code, Faults, Outcome, State};

/// A range of a card's memory that somebody has.
pub(crate) struct Allocation {
    pub(crate) card: usize,
    pub(crate) bytes: usize,
    pub(crate) storage: Arc<Storage>,
    pub(crate) pool: Option<usize>,
    /// From where on it may be used, if it was got in the order of a stream.
    pub(crate) born: Option<Point>,
    /// It is to be freed in the order of a stream.
    pub(crate) leaving: bool,
    pub(crate) accesses: Vec<Access>,
}

/// The bytes behind it. Copies that are under way keep them, even if somebody frees the memory too early.
pub(crate) struct Storage {
    first: *mut u8,
    layout: Layout,
}

// SAFETY: bytes that are read and written by the streams; two that do so at once are counted as a violation.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    fn new(bytes: usize) -> Outcome<Arc<Self>> {
        let layout = Layout::from_size_align(bytes, 16).map_err(|_| Code::OUT_OF_MEMORY)?;
        // SAFETY: not empty, as `State::allocate` saw to.
        let first = unsafe { alloc(layout) };
        if first.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        let storage = Self { first, layout };
        storage.spoil();
        Ok(Arc::new(storage))
    }

    /// The first byte.
    pub(crate) fn first(&self) -> *mut u8 {
        self.first
    }

    /// Overwrites all of it, so that whoever uses it after it was freed, or before it was written, sees nothing right.
    pub(crate) fn spoil(&self) {
        // SAFETY: all of it is this storage's.
        unsafe { self.first.write_bytes(SPOILED_CARD, self.layout.size()) };
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has it any more.
        unsafe { dealloc(self.first, self.layout) };
    }
}

/// Memory that allocations in the order of a stream come from.
pub(crate) struct Pool {
    pub(crate) card: usize,
    pub(crate) threshold: u64,
    pub(crate) reserved_bytes: usize,
    pub(crate) used_bytes: usize,
}

/// Memory of the host that does not move: made here, or somebody else's.
pub(crate) struct HostRange {
    pub(crate) end: usize,
    pub(crate) flags: u32,
    pub(crate) kind: HostKind,
    pub(crate) accesses: Vec<Access>,
}

pub(crate) enum HostKind {
    /// Made by the driver, in an allocation that begins at `base`.
    Made { base: usize, layout: Layout },
    /// Of the caller's.
    Registered,
}

impl State {
    /// What a card's memory is taken up with, in bytes.
    pub(crate) fn card_bytes(&self, card: usize) -> usize {
        let pools = self.pools.values().filter(|pool| pool.card == card).map(|pool| pool.reserved_bytes);
        let single = self.allocations.values().filter(|one| one.card == card && one.pool.is_none());
        pools.sum::<usize>() + single.map(|one| one.bytes).sum::<usize>()
    }

    /// Memory of a card, of a pool's in the order of a stream if one is named.
    pub(crate) fn allocate(
        &mut self,
        card: usize,
        bytes: usize,
        from: Option<(usize, usize)>,
    ) -> Outcome<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if Faults::is_now(&mut self.faults.fail_allocation) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let rounded = bytes.checked_next_multiple_of(512).ok_or(Code::OUT_OF_MEMORY)?;
        let free = self.config().memory_bytes - self.card_bytes(card);
        let born = match from {
            None if rounded > free => return Err(Code::OUT_OF_MEMORY),
            None => None,
            Some((pool, stream)) => {
                let of = self.pool(pool)?;
                let grow = (of.used_bytes + rounded).saturating_sub(of.reserved_bytes);
                if grow > free {
                    return Err(Code::OUT_OF_MEMORY);
                }
                of.used_bytes += rounded;
                of.reserved_bytes += grow;
                Some(self.enqueue(stream, Work::Nothing, &[])?)
            }
        };
        let address = self.next_address;
        // A gap, so that the end of one is not the beginning of the next.
        self.next_address += rounded as u64 + 4096;
        let allocation = Allocation {
            card,
            bytes: rounded,
            storage: Storage::new(rounded)?,
            pool: from.map(|(pool, _)| pool),
            born,
            leaving: false,
            accesses: Vec::new(),
        };
        self.allocations.insert(address, allocation);
        Ok(address)
    }

    /// The allocation that a range lies in, and where.
    pub(crate) fn find(&mut self, address: u64, bytes: usize) -> Outcome<(u64, usize)> {
        let found = self.allocations.range(..=address).next_back();
        let found = found.and_then(|(&first, one)| {
            let at = usize::try_from(address - first).ok()?;
            let inside = at.checked_add(bytes)? <= one.bytes;
            (inside && !one.leaving).then_some((first, at))
        });
        if found.is_none() {
            self.violate(format!("{bytes} bytes of a card are used that nobody has, or not any more"));
        }
        found.ok_or(Code::INVALID_VALUE)
    }

    /// Frees memory now. A driver waits for whatever uses it; that is counted here, since it is not to be relied on.
    pub(crate) fn free(&mut self, address: u64) -> Outcome {
        let Some(one) = self.allocations.remove(&address) else {
            self.violate("memory of a card is freed that nobody has".to_owned());
            return Err(Code::INVALID_VALUE);
        };
        if one.accesses.iter().any(|access| !self.seen.has(access.at)) {
            self.violate("memory of a card is freed while something may use it".to_owned());
        }
        one.storage.spoil();
        self.give_back(one.pool, one.bytes);
        Ok(())
    }

    /// Frees memory in the order of a stream. Its pool can give it to whoever asks on that stream from now on.
    pub(crate) fn free_on(&mut self, address: u64, stream: usize) -> Outcome {
        let known = self.clock_of(stream);
        let Some(one) = self.allocations.get_mut(&address).filter(|one| !one.leaving) else {
            self.violate("memory of a card is freed that nobody has".to_owned());
            return Err(Code::INVALID_VALUE);
        };
        one.leaving = true;
        let (pool, bytes) = (one.pool, one.bytes);
        if one.accesses.iter().any(|access| !known.has(access.at)) {
            self.violate("memory of a card is freed while another stream may use it".to_owned());
        }
        self.give_back(pool, bytes);
        self.enqueue(stream, Work::Free { address }, &[]).map(|_| ())
    }

    /// A stream has come to where memory is freed.
    pub(crate) fn freed(&mut self, address: u64) {
        if let Some(one) = self.allocations.remove(&address) {
            one.storage.spoil();
        }
    }

    fn give_back(&mut self, pool: Option<usize>, bytes: usize) {
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.used_bytes -= bytes;
            if pool.reserved_bytes as u64 > pool.threshold {
                pool.reserved_bytes = pool.used_bytes.max(pool.threshold as usize);
            }
        }
    }

    pub(crate) fn pool_create(&mut self, card: usize) -> usize {
        let handle = self.handle();
        self.pools.insert(handle, Pool { card, threshold: 0, reserved_bytes: 0, used_bytes: 0 });
        handle
    }

    pub(crate) fn pool(&mut self, pool: usize) -> Outcome<&mut Pool> {
        self.pools.get_mut(&pool).ok_or(Code::INVALID_VALUE)
    }

    pub(crate) fn pool_destroy(&mut self, pool: usize) -> Outcome {
        if self.pool(pool)?.used_bytes > 0 {
            self.violate("a pool is destroyed of which memory is in use".to_owned());
        }
        self.pools.remove(&pool);
        Ok(())
    }

    pub(crate) fn pool_trim(&mut self, pool: usize, keep: usize) -> Outcome {
        let pool = self.pool(pool)?;
        pool.reserved_bytes = pool.reserved_bytes.min(pool.used_bytes.max(keep));
        Ok(())
    }

    pub(crate) fn default_pool(&mut self, card: usize) -> usize {
        match self.default_pools.get(&card) {
            Some(&pool) => pool,
            None => {
                let pool = self.pool_create(card);
                self.default_pools.insert(card, pool);
                pool
            }
        }
    }

    pub(crate) fn host_bytes(&self, registered: bool) -> usize {
        let of = |range: &HostRange| matches!(range.kind, HostKind::Registered) == registered;
        self.host.iter().filter(|(_, range)| of(range)).map(|(start, range)| range.end - start).sum()
    }

    /// Locked memory of the host.
    pub(crate) fn host_allocate(&mut self, bytes: usize, flags: u32) -> Outcome<usize> {
        if bytes == 0 || flags & !7 != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if self.faults.lock_refused {
            return Err(Code::OUT_OF_MEMORY);
        }
        let skip = if self.faults.misaligned_host { 512 } else { 0 };
        let layout = Layout::from_size_align(bytes + skip, PAGE).map_err(|_| Code::OUT_OF_MEMORY)?;
        // SAFETY: not empty, as seen above.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        // SAFETY: all of it was allocated just now.
        unsafe { base.write_bytes(SPOILED_HOST, layout.size()) };
        let (base, first) = (base as usize, base as usize + skip);
        let kind = HostKind::Made { base, layout };
        self.host.insert(first, HostRange { end: first + bytes, flags, kind, accesses: Vec::new() });
        self.counts.pinned_bytes_max = self.counts.pinned_bytes_max.max(self.host_bytes(false));
        Ok(first)
    }

    /// Locks memory of the caller's.
    pub(crate) fn host_register(&mut self, first: usize, bytes: usize, flags: u32) -> Outcome {
        let end = first.checked_add(bytes).ok_or(Code::INVALID_VALUE)?;
        if bytes == 0
            || flags & !0xb != 0
            || (flags & READ_ONLY != 0 && !self.config().read_only_registration)
        {
            return Err(Code::INVALID_VALUE);
        }
        if self.faults.lock_refused {
            return Err(Code::OUT_OF_MEMORY);
        }
        if self.host_overlapping(first..end).next().is_some() {
            return Err(Code::ALREADY_REGISTERED);
        }
        if !is_mapped(first..end, flags & READ_ONLY == 0) {
            return Err(Code::INVALID_VALUE);
        }
        let range = HostRange { end, flags, kind: HostKind::Registered, accesses: Vec::new() };
        self.host.insert(first, range);
        self.counts.registered_bytes_max = self.counts.registered_bytes_max.max(self.host_bytes(true));
        Ok(())
    }

    /// Unlocks what begins at an address, and frees it if it was made here.
    pub(crate) fn host_forget(&mut self, first: usize, is_right: impl FnOnce(&HostKind) -> bool) -> Outcome {
        let Some(range) = self.host.get(&first).filter(|range| is_right(&range.kind)) else {
            self.violate("memory of the host is freed or unlocked that is not locked".to_owned());
            return Err(Code::NOT_REGISTERED);
        };
        if range.accesses.iter().any(|access| !self.seen.has(access.at)) {
            self.violate("memory of the host is freed or unlocked while a copy may use it".to_owned());
            // It is not, so that the copy harms nobody.
            return Ok(());
        }
        if let Some(HostRange { kind: HostKind::Made { base, layout }, .. }) = self.host.remove(&first) {
            // SAFETY: allocated with this layout; the caller gives it back.
            unsafe { (base as *mut u8).write_bytes(SPOILED_HOST, layout.size()) };
            // SAFETY: as above.
            unsafe { dealloc(base as *mut u8, layout) };
        }
        Ok(())
    }

    pub(crate) fn host_flags(&self, address: usize) -> Outcome<u32> {
        let found = self.host_overlapping(address..address + 1).next();
        found.map(|(_, range)| range.flags).ok_or(Code::INVALID_VALUE)
    }

    /// The locked range that memory of the host lies in; `None` if it is not locked.
    ///
    /// Of memory that is locked in part, or in several parts, a driver refuses copies.
    pub(crate) fn host_range(&self, range: &Range<usize>) -> Outcome<Option<usize>> {
        match self.host_overlapping(range.clone()).next() {
            None => Ok(None),
            Some((start, found)) if start <= range.start && range.end <= found.end => Ok(Some(start)),
            Some(_) => Err(Code::INVALID_VALUE),
        }
    }

    fn host_overlapping(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &HostRange)> {
        let before =
            self.host.range(..range.start).next_back().filter(|(_, before)| before.end > range.start);
        let within = self.host.range(range.clone());
        before.into_iter().chain(within).map(|(&start, range)| (start, range))
    }
}

/// Whether all of a range is mapped, for writing if it must be.
fn is_mapped(range: Range<usize>, for_writing: bool) -> bool {
    // Where the system does not say, it is.
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return true };
    let mut at = range.start;
    for line in maps.lines() {
        let Some((bounds, rest)) = line.split_once(' ') else { continue };
        let Some((start, end)) = bounds.split_once('-') else { continue };
        let address = |text: &str| usize::from_str_radix(text, 16).unwrap_or(0);
        let (start, end) = (address(start), address(end));
        if start <= at && at < end && rest.starts_with('r') && (!for_writing || rest[1..].starts_with('w')) {
            at = end;
        }
    }
    at >= range.end
}

/// What is in memory of a card that was not written, or not since it was freed.
const SPOILED_CARD: u8 = 0xdb;
/// The same of the host's.
pub(crate) const SPOILED_HOST: u8 = 0xa5;
pub(crate) const READ_ONLY: u32 = 8;
const PAGE: usize = 4096;

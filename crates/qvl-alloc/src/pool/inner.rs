//! What the handles of a pool share.

#![expect(unsafe_code, reason = "fills and checks memory that nobody uses, and gives all back at the end")]

use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use super::central::{Block, Bounds, Central, Large};
use super::classes::{CLASSES, GRAIN_BYTES, block_bytes, class_for};
use super::shard::Shard;
use super::{ClassStats, Debug, PoolSettings, Stats, Violation, ViolationKind};
use crate::backing::Backing;
use crate::owner::{BYTES_MAX, Owner, Refused, Tally};
use crate::{Error, OutOfMemory, Result};

pub(crate) struct Inner<B: Backing> {
    pub(super) backing: B,
    pub(super) settings: PoolSettings,
    bounds: Bounds,
    central: Mutex<Central>,
    shards: Box<[Shard<Stacks>]>,
    owners: Mutex<Vec<Arc<Tally>>>,
    violations: Mutex<(u64, Vec<Violation>)>,
}

/// Freed blocks, the last on top: what was used last is in the processor's caches still.
struct Stacks {
    classes: Box<[Stack]>,
    bytes: usize,
}

#[derive(Default)]
struct Stack {
    blocks: Vec<Block>,
    allocations: u64,
}

/// Where an allocation is: a [`Kind`] in one word, which a processor passes on faster than an enum of three.
#[derive(Clone, Copy)]
pub(crate) struct Place(u64);

enum Kind {
    Nothing,
    Block { class: usize, slab: u32 },
    Large { region: u32, piece: u32 },
}

impl Place {
    const NOTHING: Self = Self(u64::MAX);
    /// Below it are pieces, from it on classes: no region has so many pieces, since each takes 40 bytes to note.
    const CLASSES_FROM: u32 = u32::MAX - 2 * CLASSES as u32;

    #[inline(always)]
    fn block(class: usize, slab: u32) -> Self {
        Self((u64::from(Self::CLASSES_FROM + class as u32) << 32) | u64::from(slab))
    }

    fn large(region: u32, piece: u32) -> Self {
        Self((u64::from(piece) << 32) | u64::from(region))
    }

    #[inline(always)]
    fn kind(self) -> Kind {
        let (upper, lower) = ((self.0 >> 32) as u32, self.0 as u32);
        match upper {
            u32::MAX => Kind::Nothing,
            Self::CLASSES_FROM.. => Kind::Block { class: (upper - Self::CLASSES_FROM) as usize, slab: lower },
            _ => Kind::Large { region: lower, piece: upper },
        }
    }
}

/// Memory that is taken: where it begins, and what comes back.
pub(crate) struct Taken<B: Backing> {
    pub(super) first: NonNull<u8>,
    pub(super) owner: Owner<B>,
    pub(super) place: Place,
    /// What was asked for.
    pub(super) bytes: usize,
    /// Bytes before it that are guarded.
    pub(super) front: usize,
}

impl<B: Backing> Taken<B> {
    /// What its owner is charged.
    #[inline]
    pub(super) fn grains(&self) -> u64 {
        self.bytes.div_ceil(GRAIN_BYTES) as u64
    }
}

/// Bytes of a pattern before and behind, when guarded.
const GUARD_BYTES: usize = 64;
const GUARD: u8 = 0xa5;
const POISON: u8 = 0xdd;
const VIOLATIONS_MAX: usize = 16;
/// Blocks that a cache is filled with at once, at most.
const BATCH: usize = 16;

impl<B: Backing> Inner<B> {
    pub(super) fn new(backing: B, settings: PoolSettings) -> Result<Self> {
        let granularity = backing.granularity();
        if granularity < GRAIN_BYTES || !granularity.is_power_of_two() {
            let expected = format!("the backing must have a power of two from {GRAIN_BYTES} on");
            return Err(Error::Setting { name: "granularity", got: granularity.to_string(), expected });
        }
        settings.check(backing.is_host(), granularity)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * 2).next_power_of_two().min(64);
        let bounds = Bounds {
            budget_bytes: settings.budget_bytes,
            region_bytes_min: settings.region_bytes_min,
            small_bytes_max: settings.small_bytes_max,
            filled_with: (settings.debug == Debug::Poison).then_some(POISON),
        };
        let stacks = || Stacks { classes: (0..CLASSES).map(|_| Stack::default()).collect(), bytes: 0 };
        Ok(Self {
            backing,
            settings,
            bounds,
            central: Mutex::new(Central::new()),
            shards: (0..shards).map(|_| Shard::new(stacks())).collect(),
            owners: Mutex::default(),
            violations: Mutex::default(),
        })
    }

    pub(crate) fn know(&self, owner: &Arc<Tally>) {
        self.owners.lock().push(owner.clone());
    }

    pub(crate) fn forget(&self, owner: &Arc<Tally>) {
        self.owners.lock().retain(|known| !Arc::ptr_eq(known, owner));
    }

    /// `align` is a power of two that a pool has; `bytes` is no more than an address can be.
    #[inline(always)]
    pub(super) fn allocate(&self, owner: &Owner<B>, bytes: usize, align: usize) -> Result<Taken<B>> {
        let grains = bytes.div_ceil(GRAIN_BYTES) as u64;
        if bytes > self.settings.budget_bytes {
            return Err(self.out_of_memory(owner, bytes, align, None, None));
        }
        let charged = match owner.charge(grains) {
            Ok(charged) => charged,
            Err(Refused::Quota(quota)) => {
                return Err(self.out_of_memory(owner, bytes, align, Some(quota), None));
            }
            Err(Refused::TooMany) => return Err(Refused::too_many()),
        };
        if bytes == 0 {
            let first =
                std::num::NonZero::new(align).map_or(NonNull::dangling(), NonNull::without_provenance);
            return Ok(Taken { first, owner: charged, place: Place::NOTHING, bytes, front: 0 });
        }
        let (front, behind) = match self.settings.debug {
            Debug::Guard => (align.max(GUARD_BYTES), GUARD_BYTES),
            Debug::Off | Debug::Poison => (0, 0),
        };
        match self.take(bytes + front + behind, align) {
            Ok((first, place)) => {
                let mut taken = Taken { first, owner: charged, place, bytes, front };
                if self.settings.debug != Debug::Off {
                    self.debug_allocated(&mut taken);
                }
                Ok(taken)
            }
            Err(system) => {
                charged.discharge(grains);
                Err(self.out_of_memory(owner, bytes, align, None, system))
            }
        }
    }

    /// The memory comes back; its owner is still charged.
    #[inline]
    pub(super) fn free(&self, taken: &Taken<B>) {
        if self.settings.debug != Debug::Off {
            self.debug_freed(taken);
        }
        let front = taken.front;
        let first =
            taken.first.map_addr(|address| std::num::NonZero::new(address.get() - front).unwrap_or(address));
        match taken.place.kind() {
            Kind::Nothing => {}
            Kind::Block { class, slab } => self.free_block(class, Block { first, slab }),
            Kind::Large { region, piece } => {
                self.central.lock().give_back_large(Large { first, region, piece });
            }
        }
    }

    #[inline(always)]
    fn take(&self, bytes: usize, align: usize) -> Result<(NonNull<u8>, Place), Option<Error>> {
        let class = class_for(bytes, align, self.settings.medium_bytes_max);
        if let Some(class) = class
            && let Some(block) = self.cached(class)
        {
            return Ok((block.first, Place::block(class, block.slab)));
        }
        self.take_slowly(class, bytes, align)
    }

    #[cold]
    fn take_slowly(
        &self,
        class: Option<usize>,
        bytes: usize,
        align: usize,
    ) -> Result<(NonNull<u8>, Place), Option<Error>> {
        match self.take_once(class, bytes, align) {
            Ok(Some(taken)) => return Ok(taken),
            Ok(None) | Err(_) => self.reclaim(),
        };
        self.take_once(class, bytes, align).map_err(Some)?.ok_or(None)
    }

    fn take_once(
        &self,
        class: Option<usize>,
        bytes: usize,
        align: usize,
    ) -> Result<Option<(NonNull<u8>, Place)>> {
        let mut central = self.central.lock();
        let mut refused = None;
        if let Some(class) = class {
            let share = self.settings.cache_bytes_max_per_thread / 4 / block_bytes(class);
            match central.blocks(class, share.clamp(1, BATCH), &self.backing, &self.bounds) {
                Ok(Some(mut blocks)) => {
                    drop(central);
                    if let Some(block) = blocks.pop() {
                        self.fill(class, blocks);
                        return Ok(Some((block.first, Place::block(class, block.slab))));
                    }
                    return Ok(None);
                }
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        // What is too small for a slab may be enough for this.
        let bytes = bytes.next_multiple_of(GRAIN_BYTES);
        let place = central.large(bytes, align, &self.backing, &self.bounds)?;
        match (place, refused) {
            (Some(Large { first, region, piece }), _) => Ok(Some((first, Place::large(region, piece)))),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    #[inline(always)]
    fn cached(&self, class: usize) -> Option<Block> {
        self.any_shard(|stacks| {
            let stack = &mut stacks.classes[class];
            let block = stack.blocks.pop()?;
            stack.allocations += 1;
            stacks.bytes -= block_bytes(class);
            Some(block)
        })
        .flatten()
    }

    #[inline(always)]
    fn free_block(&self, class: usize, block: Block) {
        let kept = self.any_shard(|stacks| self.keep(stacks, class, block));
        if kept != Some(true) {
            self.give_back_some(class, block);
        }
    }

    #[inline(always)]
    fn keep(&self, stacks: &mut Stacks, class: usize, block: Block) -> bool {
        let bytes = stacks.bytes + block_bytes(class);
        if bytes > self.settings.cache_bytes_max_per_thread {
            return false;
        }
        stacks.bytes = bytes;
        stacks.classes[class].blocks.push(block);
        true
    }

    /// The cache is full: half of what it has of this class goes back with the block, so that it is not full again
    /// at once.
    #[cold]
    fn give_back_some(&self, class: usize, block: Block) {
        let half = self.any_shard(|stacks| {
            let blocks = &mut stacks.classes[class].blocks;
            // The bottom of the stack is what was not used for longest.
            let half: Vec<Block> = blocks.drain(..blocks.len().div_ceil(2)).collect();
            stacks.bytes -= half.len() * block_bytes(class);
            half
        });
        let mut central = self.central.lock();
        for block in half.into_iter().flatten().chain([block]) {
            central.give_back(block);
        }
    }

    /// Counts an allocation that passed the cache, and puts further blocks there.
    fn fill(&self, class: usize, blocks: Vec<Block>) {
        let mut blocks = blocks.into_iter();
        self.any_shard(|stacks| {
            stacks.classes[class].allocations += 1;
            while stacks.bytes + block_bytes(class) <= self.settings.cache_bytes_max_per_thread {
                let Some(block) = blocks.next() else { break };
                self.keep(stacks, class, block);
            }
        });
        if blocks.len() > 0 {
            let mut central = self.central.lock();
            blocks.for_each(|block| central.give_back(block));
        }
    }

    /// Calls with the shard of this thread, or with the next that nobody has; `None` if all are taken.
    #[inline(always)]
    fn any_shard<R>(&self, mut then: impl FnMut(&mut Stacks) -> R) -> Option<R> {
        let mask = self.shards.len() - 1;
        let own = own_number();
        (0..self.shards.len()).find_map(|further| self.shards[(own + further) & mask].try_with(&mut then))
    }

    /// Everything that is in caches goes to its slabs.
    fn drain(&self) {
        for shard in &self.shards {
            let blocks: Vec<Block> = shard.with(|stacks| {
                stacks.bytes = 0;
                stacks.classes.iter_mut().flat_map(|stack| std::mem::take(&mut stack.blocks)).collect()
            });
            let mut central = self.central.lock();
            blocks.into_iter().for_each(|block| central.give_back(block));
        }
    }

    fn reclaim(&self) -> usize {
        self.drain();
        self.central.lock().give_back_empty(&self.backing)
    }

    pub(super) fn trim(&self) -> usize {
        let given_back = self.reclaim();
        if self.settings.debug == Debug::Poison {
            // Pages that are given back are zero after, and not what is checked for.
            return given_back;
        }
        given_back + self.central.lock().discard(&self.backing)
    }

    #[cold]
    fn out_of_memory(
        &self,
        owner: &Owner<B>,
        bytes: usize,
        align: usize,
        over_quota_bytes: Option<u64>,
        system: Option<Error>,
    ) -> Error {
        let room = usize::try_from(owner.tally().room_bytes()).unwrap_or(usize::MAX);
        let around = match self.settings.debug {
            Debug::Guard => align.max(GUARD_BYTES) + GUARD_BYTES,
            Debug::Off | Debug::Poison => 0,
        };
        let fits = || {
            let granularity = self.backing.granularity();
            let medium = self.settings.medium_bytes_max;
            let fits = self.central.lock().fits(align, medium, granularity, &self.bounds, system.is_none());
            fits.saturating_sub(around) / GRAIN_BYTES * GRAIN_BYTES
        };
        let mut fit = fits();
        if fit < room {
            // An allocation would do the same before it fails.
            self.reclaim();
            fit = fits();
        }
        let stats = self.stats();
        let mut owners = stats.owners;
        owners.retain(|owner| owner.in_use_bytes > 0);
        Error::OutOfMemory(Box::new(OutOfMemory {
            pool: self.settings.name.clone(),
            bytes: bytes as u64,
            align: align as u64,
            owner: owner.name().to_owned(),
            over_quota_bytes,
            budget_bytes: self.settings.budget_bytes as u64,
            reserved_bytes: stats.reserved_bytes,
            in_use_bytes: stats.in_use_bytes,
            largest_free_bytes: stats.largest_free_bytes,
            fits_bytes: fit.min(room) as u64,
            fragmentation: stats.fragmentation,
            owners,
            system: system.map(|error| error.to_string()),
        }))
    }

    pub(super) fn stats(&self) -> Stats {
        let mut cached = vec![(0u64, 0u64); CLASSES];
        for shard in &self.shards {
            shard.with(|stacks| {
                for (stack, sum) in stacks.classes.iter().zip(&mut cached) {
                    sum.0 += stack.blocks.len() as u64;
                    sum.1 += stack.allocations;
                }
            });
        }
        let central = self.central.lock();
        let figures = &central.figures;
        let classes = cached.iter().enumerate().map(|(class, &(blocks, allocations))| {
            let block = block_bytes(class) as u64;
            ClassStats {
                block_bytes: block,
                in_use_bytes: (figures.blocks[class] as u64).saturating_sub(blocks) * block,
                cached_bytes: blocks * block,
                reserved_bytes: figures.slab_bytes[class] as u64,
                peak_bytes: figures.blocks_peak[class] as u64 * block,
                allocations,
            }
        });
        let classes: Vec<ClassStats> = classes.filter(|class| class.allocations > 0).collect();
        let sum = |of: fn(&ClassStats) -> u64| classes.iter().map(of).sum::<u64>();
        let (largest_free, free) = central.free_bytes();
        let (reserved_peak, peak) = (figures.reserved_peak_bytes, figures.taken_peak_bytes);
        let mut stats = Stats {
            in_use_bytes: sum(|class| class.in_use_bytes) + figures.large_bytes as u64,
            cached_bytes: sum(|class| class.cached_bytes),
            reserved_bytes: figures.reserved_bytes as u64,
            reserved_peak_bytes: reserved_peak as u64,
            peak_bytes: peak as u64,
            peak_over_live: if peak == 0 { 1.0 } else { reserved_peak as f64 / peak as f64 },
            allocations: sum(|class| class.allocations) + figures.large_allocations,
            large_bytes: figures.large_bytes as u64,
            largest_free_bytes: largest_free as u64,
            free_bytes: free as u64,
            fragmentation: if free == 0 { 0.0 } else { 1.0 - largest_free as f64 / free as f64 },
            classes,
            ..Stats::default()
        };
        drop(central);
        stats.owners = self.owners.lock().iter().map(|owner| owner.usage()).collect();
        stats.owners.sort_by(|a, b| b.in_use_bytes.cmp(&a.in_use_bytes).then_with(|| a.name.cmp(&b.name)));
        (stats.violations, stats.violations_first) = self.violations.lock().clone();
        stats
    }

    /// Bytes from the beginning of what was taken to its end.
    fn capacity(&self, taken: &Taken<B>) -> usize {
        match taken.place.kind() {
            Kind::Nothing => 0,
            Kind::Block { class, .. } => block_bytes(class),
            Kind::Large { .. } => taken.bytes.next_multiple_of(GRAIN_BYTES),
        }
    }

    fn debug_allocated(&self, taken: &mut Taken<B>) {
        if self.settings.debug == Debug::Poison {
            let capacity = self.capacity(taken);
            // SAFETY: the backing is of the host, as `check` of the settings established, and `capacity` bytes from
            // there on were just taken; they are initialised, as the contract of a backing says.
            let all = unsafe { std::slice::from_raw_parts(taken.first.as_ptr(), capacity) };
            self.check_pattern(all, POISON, ViolationKind::WrittenAfterFree, taken.owner.name());
            return;
        }
        // SAFETY: as above; front, what was asked for and the guard behind are within what was taken.
        unsafe {
            taken.first.write_bytes(GUARD, taken.front);
            taken.first = taken.first.add(taken.front);
            taken.first.add(taken.bytes).write_bytes(GUARD, GUARD_BYTES);
        }
    }

    fn debug_freed(&self, taken: &Taken<B>) {
        if matches!(taken.place.kind(), Kind::Nothing) {
            return;
        }
        if self.settings.debug == Debug::Poison {
            // SAFETY: as in `debug_allocated`; the buffer that had it is being dropped.
            unsafe { taken.first.write_bytes(POISON, self.capacity(taken)) };
            return;
        }
        let front = taken.front;
        // SAFETY: as above.
        let (before, behind) = unsafe {
            (
                std::slice::from_raw_parts(taken.first.sub(front).as_ptr(), front),
                std::slice::from_raw_parts(taken.first.add(taken.bytes).as_ptr(), GUARD_BYTES),
            )
        };
        self.check_pattern(before, GUARD, ViolationKind::WrittenBefore, taken.owner.name());
        self.check_pattern(behind, GUARD, ViolationKind::WrittenBehind, taken.owner.name());
    }

    fn check_pattern(&self, bytes: &[u8], pattern: u8, kind: ViolationKind, owner: &str) {
        let Some(at) = bytes.iter().position(|&byte| byte != pattern) else { return };
        let (count, first) = &mut *self.violations.lock();
        *count += 1;
        if first.len() < VIOLATIONS_MAX {
            first.push(Violation { kind, owner: owner.to_owned(), at_byte: at, of_bytes: bytes.len() });
        }
    }
}

impl<B: Backing> Drop for Inner<B> {
    fn drop(&mut self) {
        // SAFETY: every buffer has an owner, and every owner has an `Arc` of this: so there are none.
        unsafe { self.central.get_mut().close(&self.backing) };
    }
}

impl PoolSettings {
    fn check(&self, is_host: bool, granularity: usize) -> Result<()> {
        let wrong =
            |name, got: usize, expected: String| Err(Error::Setting { name, got: got.to_string(), expected });
        if self.budget_bytes < granularity || self.budget_bytes as u64 > BYTES_MAX {
            let expected = format!("at least one step of the backing ({granularity}), at most {BYTES_MAX}");
            return wrong("budget_bytes", self.budget_bytes, expected);
        }
        if self.small_bytes_max > SMALL_BYTES_MAX {
            return wrong("small_bytes_max", self.small_bytes_max, format!("at most {SMALL_BYTES_MAX}"));
        }
        if self.medium_bytes_max > super::classes::BLOCK_BYTES_MAX
            || self.medium_bytes_max < self.small_bytes_max
        {
            let expected = format!("from small_bytes_max to {}", super::classes::BLOCK_BYTES_MAX);
            return wrong("medium_bytes_max", self.medium_bytes_max, expected);
        }
        if self.debug != Debug::Off && !is_host {
            let expected = "off, where the host cannot read the memory".to_owned();
            return Err(Error::Setting { name: "debug", got: format!("{:?}", self.debug), expected });
        }
        Ok(())
    }
}

const SMALL_BYTES_MAX: usize = 8192;

/// A number that threads which run at the same time mostly do not share.
#[inline]
fn own_number() -> usize {
    thread_local! {
        // Nothing is kept in it: its address tells threads apart, for less than their id costs.
        static HERE: u8 = const { 0 };
    }
    let address = HERE.with(|here| std::ptr::from_ref(here).addr()) as u64;
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

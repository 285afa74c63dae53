//! What there is: cards, their memory, the host's memory that the driver knows, streams, events, faults and counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CStr;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::memory::{Allocation, HostRange, Pool};
use crate::work::{Clock, Event, Mark, Stream};

/// What went wrong, as the driver's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

pub(crate) type Outcome<T = ()> = Result<T, Code>;

impl Code {
    pub(crate) const INVALID_VALUE: Self = Self(1);
    pub(crate) const OUT_OF_MEMORY: Self = Self(2);
    pub(crate) const NO_DEVICE: Self = Self(100);
    pub(crate) const INVALID_DEVICE: Self = Self(101);
    pub(crate) const INVALID_CONTEXT: Self = Self(201);
    pub(crate) const INVALID_HANDLE: Self = Self(400);
    pub(crate) const NOT_READY: Self = Self(600);
    pub(crate) const ILLEGAL_ADDRESS: Self = Self(700);
    pub(crate) const CONTEXT_IS_DESTROYED: Self = Self(709);
    pub(crate) const ALREADY_REGISTERED: Self = Self(712);
    pub(crate) const NOT_REGISTERED: Self = Self(713);
    pub(crate) const UNKNOWN: Self = Self(999);

    pub(crate) fn name(self) -> &'static CStr {
        match self {
            Self::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
            Self::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
            Self::NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
            Self::INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
            Self::INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
            Self::INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
            Self::NOT_READY => c"CUDA_ERROR_NOT_READY",
            Self::ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
            Self::CONTEXT_IS_DESTROYED => c"CUDA_ERROR_CONTEXT_IS_DESTROYED",
            Self::ALREADY_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
            Self::NOT_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
            _ => c"CUDA_ERROR_UNKNOWN",
        }
    }
}

/// What the cards are, from the environment when the driver is first called.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `QVL_STAND_IN_CARDS`: 1.
    pub(crate) cards: usize,
    /// `QVL_STAND_IN_MEMORY_BYTES`, of each card: 256 MiB.
    pub(crate) memory_bytes: usize,
    /// `QVL_STAND_IN_CAPABILITY`: 61 for 6.1.
    pub(crate) capability: (i32, i32),
    /// `QVL_STAND_IN_VERSION`: 12040 for 12.4.
    pub(crate) version: i32,
    /// `QVL_STAND_IN_POOLS`: 1, whether there are pools of memory.
    pub(crate) pools: bool,
    /// `QVL_STAND_IN_READ_ONLY`: 1, whether memory that is mapped for reading can be registered.
    pub(crate) read_only_registration: bool,
}

impl Config {
    /// `None` if a variable is not a number that fits.
    fn from_environment() -> Option<Self> {
        let number = |name: &str, default: usize| match std::env::var_os(name) {
            None => Some(default),
            Some(value) => value.to_str()?.parse().ok(),
        };
        let capability = number("QVL_STAND_IN_CAPABILITY", 61)?;
        Some(Self {
            cards: number("QVL_STAND_IN_CARDS", 1)?,
            memory_bytes: number("QVL_STAND_IN_MEMORY_BYTES", 256 << 20)?,
            capability: ((capability / 10) as i32, (capability % 10) as i32),
            version: number("QVL_STAND_IN_VERSION", 12_040)? as i32,
            pools: number("QVL_STAND_IN_POOLS", 1)? != 0,
            read_only_registration: number("QVL_STAND_IN_READ_ONLY", 1)? != 0,
        })
    }
}

/// Everything, under one lock. Bytes are moved without it.
pub(crate) struct World {
    state: Mutex<State>,
    /// Told whenever a stream has done something or is given something.
    pub(crate) changed: Condvar,
}

/// The world; made by the first call.
pub(crate) fn world() -> Outcome<&'static World> {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        let state = Mutex::new(State::new(Config::from_environment()?));
        Some(World { state, changed: Condvar::new() })
    });
    world.as_ref().ok_or(Code::INVALID_VALUE)
}

impl World {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that can panic, which are none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a stream has come to a mark, or an error has made that impossible.
    pub(crate) fn wait_for<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        mark: &Mark,
    ) -> Outcome<MutexGuard<'a, State>> {
        loop {
            state.check()?;
            if state.see(mark) {
                return Ok(state);
            }
            state = self.wait(state);
        }
    }
}

pub(crate) struct State {
    config: Config,
    pub(crate) epoch: Instant,
    /// How often the context of each card is retained.
    retained: Vec<usize>,
    pub(crate) lost: Option<Code>,
    pub(crate) next_handle: usize,
    pub(crate) next_address: u64,
    /// By their first address.
    pub(crate) allocations: BTreeMap<u64, Allocation>,
    pub(crate) pools: HashMap<usize, Pool>,
    /// The pool of each card that allocations come from which name none.
    pub(crate) default_pools: HashMap<usize, usize>,
    pub(crate) host: BTreeMap<usize, HostRange>,
    pub(crate) streams: HashMap<usize, Stream>,
    /// The stream of each card that calls go to which name none.
    pub(crate) default_streams: HashMap<usize, usize>,
    pub(crate) events: HashMap<usize, Event>,
    /// What the host has seen the end of.
    pub(crate) seen: Clock,
    pub(crate) faults: Faults,
    pub(crate) counts: Counts,
    violations: Vec<String>,
    told: HashSet<String>,
}

/// What goes wrong. The n-th call from now counts down to 0, at which nothing is to happen.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) fail_allocation: u64,
    pub(crate) fail_copy: u64,
    pub(crate) fail_copy_later: u64,
    pub(crate) lock_refused: bool,
    pub(crate) misaligned_host: bool,
    pub(crate) bytes_per_s: u64,
    pub(crate) latency_us: u64,
}

impl Faults {
    /// Whether this is the call that is to fail.
    pub(crate) fn is_now(counter: &mut u64) -> bool {
        let now = *counter == 1;
        *counter = counter.saturating_sub(1);
        now
    }
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) violations: u64,
    pub(crate) copies_in: u64,
    pub(crate) copies_out: u64,
    pub(crate) pageable_copies: u64,
    /// Copies that were begun while one of the other direction was under way.
    pub(crate) overlapped: u64,
    /// Copies that are under way now, inward and outward.
    pub(crate) active: [u64; 2],
    pub(crate) registered_bytes_max: usize,
    pub(crate) pinned_bytes_max: usize,
}

impl State {
    fn new(config: Config) -> Self {
        Self {
            retained: vec![0; config.cards],
            config,
            epoch: Instant::now(),
            lost: None,
            next_handle: 0x10_0000,
            next_address: 0x7000_0000_0000,
            allocations: BTreeMap::new(),
            pools: HashMap::new(),
            default_pools: HashMap::new(),
            host: BTreeMap::new(),
            streams: HashMap::new(),
            default_streams: HashMap::new(),
            events: HashMap::new(),
            seen: Clock::default(),
            faults: Faults::default(),
            counts: Counts::default(),
            violations: Vec::new(),
            told: HashSet::new(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// An error if every call fails now.
    pub(crate) fn check(&self) -> Outcome {
        self.lost.map_or(Ok(()), Err)
    }

    pub(crate) fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    pub(crate) fn retain(&mut self, card: usize) -> Outcome {
        self.check()?;
        *self.retained.get_mut(card).ok_or(Code::INVALID_DEVICE)? += 1;
        Ok(())
    }

    pub(crate) fn release(&mut self, card: usize) -> Outcome {
        let retained = self.retained.get_mut(card).ok_or(Code::INVALID_DEVICE)?;
        *retained = retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        Ok(())
    }

    pub(crate) fn is_retained(&self, card: usize) -> bool {
        self.retained.get(card).is_some_and(|&count| count > 0)
    }

    /// Counts something that a program must not do, and notes what it was.
    pub(crate) fn violate(&mut self, what: String) {
        self.counts.violations += 1;
        if self.violations.len() < VIOLATIONS_KEPT && self.told.insert(what.clone()) {
            self.violations.push(what);
        }
    }

    pub(crate) fn violation(&self, index: usize) -> Option<&str> {
        self.violations.get(index).map(String::as_str)
    }

    /// Sets a fault or a speed.
    pub(crate) fn set(&mut self, name: &str, value: u64) -> Outcome {
        let faults = &mut self.faults;
        match name {
            // The n-th allocation of a card's memory from now finds none.
            "fail_allocation" => faults.fail_allocation = value,
            // The n-th copy from now is refused.
            "fail_copy" => faults.fail_copy = value,
            // The n-th copy from now fails while it is under way, and every call after that.
            "fail_copy_later" => faults.fail_copy_later = value,
            // Whether no memory of the host can be locked.
            "lock_refused" => faults.lock_refused = value != 0,
            // Whether memory of the host is made that begins within a page.
            "misaligned_host" => faults.misaligned_host = value != 0,
            // The speed of copies each way; 0: as fast as memory is.
            "bytes_per_s" => faults.bytes_per_s = value,
            // What each copy takes beside that.
            "latency_us" => faults.latency_us = value,
            // Every call fails with this number from now on.
            "lose" => self.lost = Some(Code(value as i32)),
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }

    /// A count.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        let counts = &self.counts;
        Some(match name {
            "violations" => counts.violations,
            "copies_in" => counts.copies_in,
            "copies_out" => counts.copies_out,
            "pageable_copies" => counts.pageable_copies,
            "overlapped" => counts.overlapped,
            "device_bytes" => {
                self.allocations.values().filter(|one| !one.leaving).map(|one| one.bytes as u64).sum()
            }
            "pinned_bytes" => self.host_bytes(false) as u64,
            "registered_bytes" => self.host_bytes(true) as u64,
            "pinned_bytes_max" => counts.pinned_bytes_max as u64,
            "registered_bytes_max" => counts.registered_bytes_max as u64,
            "streams" => self.streams.values().filter(|stream| !stream.closing).count() as u64,
            "events" => self.events.len() as u64,
            "pools" => self.pools.len() as u64,
            "contexts" => self.retained.iter().sum::<usize>() as u64,
            _ => return None,
        })
    }
}

const VIOLATIONS_KEPT: usize = 16;

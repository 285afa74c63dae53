//! How a cache is put together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::TieredCache;
use crate::cache::shared::{CostHint, OnNotice, Shared};
use crate::clock::Clock;
use crate::codec::Codec;
use crate::cold::Cold;
use crate::error::{Error, Result};
use crate::flight::Flights;
use crate::hot::Hot;
use crate::key::Key;
use crate::middle::Middle;
use crate::movement::{Pace, ReadTime};
use crate::policy::{Policy, PolicyName};
use crate::stats::Counters;
use crate::transit::Transit;
#[cfg(feature = "rocksdb")]
use crate::{buffers::Buffers, cache::WarmOptions};

/// Memory for values when nobody says how much.
const HOT_BYTES_DEFAULT: u64 = 256 << 20;
/// What is on its way down may take this part of the hot budget, beside it.
const TRANSIT_PART: u64 = 8;
/// And at least this, so that a small hot tier does not make every insertion wait.
const TRANSIT_BYTES_MIN: u64 = 16 << 20;
/// How long a value may be in memory only.
const WRITE_BEHIND_DEFAULT: Duration = Duration::from_secs(2);
/// Hints that may wait.
const PREFETCH_KEYS_DEFAULT: usize = 1024;
/// Locks of the searches under way.
const FLIGHT_SHARDS: usize = 64;

/// Builds a [`TieredCache`]. Every setting has a default: a hot tier of 256 MiB alone.
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<K: Key, V: Clone + Send + Sync + 'static> {
    codec: Arc<dyn Codec<V>>,
    hot_bytes: u64,
    policy: PolicyName,
    hot_policy: Option<Box<dyn Policy>>,
    #[cfg(feature = "rocksdb")]
    warm: Option<WarmOptions>,
    cold: Vec<Arc<dyn Cold>>,
    clock: Clock,
    cost: Option<CostHint<K, V>>,
    on_notice: Option<OnNotice>,
    transit_bytes: Option<u64>,
    write_behind: Option<Duration>,
    bytes_per_second: Option<u64>,
    threads: usize,
    prefetch_keys: usize,
    exact: bool,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Builder<K, V> {
    pub(super) fn new(codec: Arc<dyn Codec<V>>) -> Self {
        Self {
            codec,
            hot_bytes: HOT_BYTES_DEFAULT,
            policy: PolicyName::Auto,
            hot_policy: None,
            #[cfg(feature = "rocksdb")]
            warm: None,
            cold: Vec::new(),
            clock: Clock::system(),
            cost: None,
            on_notice: None,
            transit_bytes: None,
            write_behind: Some(WRITE_BEHIND_DEFAULT),
            bytes_per_second: None,
            threads: 2,
            prefetch_keys: PREFETCH_KEYS_DEFAULT,
            exact: false,
        }
    }

    /// The budget of the hot tier in bytes: values, keys and bookkeeping. 0 keeps nothing in memory.
    pub fn hot_bytes(mut self, bytes: u64) -> Self {
        self.hot_bytes = bytes;
        self
    }

    /// The policy of the hot and the warm tier [default: [`PolicyName::Auto`]].
    pub fn policy(mut self, policy: PolicyName) -> Self {
        self.policy = policy;
        self
    }

    /// A policy of the caller's own for the hot tier.
    pub fn hot_policy(mut self, policy: impl Policy + 'static) -> Self {
        self.hot_policy = Some(Box::new(policy));
        self
    }

    /// A warm tier: a folder on a fast drive.
    #[cfg(feature = "rocksdb")]
    pub fn warm(mut self, options: WarmOptions) -> Self {
        self.warm = Some(options);
        self
    }

    /// A cold tier, asked after those that were named before it.
    pub fn cold(self, tier: impl Cold + 'static) -> Self {
        self.cold_shared(Arc::new(tier))
    }

    /// A cold tier that others use too.
    pub fn cold_shared(mut self, tier: Arc<dyn Cold>) -> Self {
        self.cold.push(tier);
        self
    }

    /// What it takes to make a value again. Without it, the time that a loader takes is measured, and values that are
    /// inserted are held to cost as much as loaded ones do, at least 0.1 s, and enough to be worth storing.
    pub fn cost(mut self, cost: impl Fn(&K, &V) -> Duration + Send + Sync + 'static) -> Self {
        self.cost = Some(Box::new(cost));
        self
    }

    /// Told in a sentence when a tier fails, works again, or had something damaged. Called from any thread; must not
    /// call the cache.
    pub fn on_notice(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_notice = Some(Box::new(tell));
        self
    }

    /// Bytes that may be on their way down, in memory beside the hot tier, before insertions wait for the drive
    /// [default: 1/8 of the hot budget, at least 16 MiB].
    pub fn transit_bytes(mut self, bytes: u64) -> Self {
        self.transit_bytes = Some(bytes);
        self
    }

    /// How long an inserted value may be in memory only before it is written below in the background [default: 2 s].
    /// `None`: until it leaves the hot tier, or a flush.
    pub fn write_behind(mut self, delay: Option<Duration>) -> Self {
        self.write_behind = delay;
        self
    }

    /// A limit for what is written in the background. Without one, writes still wait for reads of callers while less
    /// than half of [`transit_bytes`](Self::transit_bytes) is waiting.
    pub fn background_bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = Some(bytes);
        self
    }

    /// Threads in the background: one writes, the others bring up what [`prefetch`](TieredCache::prefetch) names
    /// [default: 2]. With 1 a prefetch is done before its call returns. With 0 all of it is done by the caller before its call returns, in an order that depends on
    /// nothing else, and the policy knows of every single use: slow, and good for tests.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self.exact = threads == 0;
        self
    }

    /// Hints of [`prefetch`](TieredCache::prefetch) that may wait [default: 1024].
    pub fn prefetch_keys(mut self, keys: usize) -> Self {
        self.prefetch_keys = keys;
        self
    }

    /// The clock that costs and delays go by.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Opens the tiers and starts the threads.
    ///
    /// # Errors
    ///
    /// Those of opening the warm tier's folder ([`Error::NotAFolder`], [`Error::InUse`], [`Error::Foreign`],
    /// [`Error::Version`], [`Error::Fingerprint`], [`Error::Io`]); [`Error::Setting`] for settings that contradict
    /// each other, or when no thread could be started.
    pub fn build(mut self) -> Result<TieredCache<K, V>> {
        if self.prefetch_keys == 0 {
            let reason = "hints could never be taken; at least 1".to_owned();
            return Err(Error::Setting { name: "prefetch_keys", value: "0".to_owned(), reason });
        }
        let least = (self.hot_bytes / TRANSIT_PART).max(TRANSIT_BYTES_MIN);
        let transit_bytes = self.transit_bytes.unwrap_or(least);
        let middle = self.middle(transit_bytes)?;
        let policy = self.hot_policy.unwrap_or_else(|| self.policy.build());
        let (hints, hinted) = crossbeam_channel::bounded(self.prefetch_keys);
        let shared = Arc::new(Shared {
            hot: Hot::new(self.hot_bytes, policy, self.exact),
            flights: Flights::new(FLIGHT_SHARDS),
            transit: Transit::new(transit_bytes),
            codec: self.codec,
            warm: middle,
            cold_failing: self.cold.iter().map(|_| AtomicBool::new(false)).collect(),
            cold: self.cold,
            stale: Mutex::new(HashMap::new()),
            stale_len: AtomicUsize::new(0),
            cold_writes: Mutex::new(()),
            clock: self.clock,
            cost: self.cost,
            on_notice: self.on_notice,
            // 0 is what the tiers below were opened with.
            versions: AtomicU64::new(1),
            counters: Counters::default(),
            read_time: Mutex::new(ReadTime::default()),
            reads: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new(self.bytes_per_second)),
            write_behind: self.write_behind,
            sleeping: AtomicBool::new(false),
            hints: Mutex::new(Some(hints)),
            hinted: (self.threads < 2).then(|| hinted.clone()),
            threads: self.threads,
            closed: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            late: Mutex::new(Vec::new()),
            usual_cost: AtomicU64::new(0),
        });
        let cache = TieredCache { shared, threads: Mutex::new(Vec::new()) };
        // With memory alone there is nothing to write and nothing to bring up.
        let threads = if cache.shared.has_tiers_below() { self.threads } else { 0 };
        for number in 0..threads {
            let shared = Arc::clone(&cache.shared);
            let hinted = hinted.clone();
            let work = move || {
                if number == 0 { shared.write_until_closed() } else { shared.bring_up_until_closed(&hinted) }
            };
            let name = if number == 0 { "qvl-cache-write" } else { "qvl-cache-fetch" };
            // Dropping `cache` ends those that run already.
            let started = std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
                Error::Setting { name: "threads", value: self.threads.to_string(), reason: error.to_string() }
            })?;
            cache.threads.lock().push(started);
        }
        Ok(cache)
    }

    /// The warm tier. Buffers for what is read from it keep as many bytes as may be on their way down.
    #[cfg(feature = "rocksdb")]
    fn middle(&mut self, buffer_bytes: u64) -> Result<Option<Box<dyn Middle>>> {
        let Some(options) = self.warm.take() else { return Ok(None) };
        let buffers = Buffers::new(usize::try_from(buffer_bytes).unwrap_or(usize::MAX));
        Ok(Some(Box::new(options.open(self.policy, buffers, &self.cold, &self.clock)?)))
    }

    #[cfg(not(feature = "rocksdb"))]
    fn middle(&mut self, _: u64) -> Result<Option<Box<dyn Middle>>> {
        Ok(None)
    }
}

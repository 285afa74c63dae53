//! foyer's hybrid cache, set up as its documentation does for large values.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::ValueEnum;
use foyer::{
    BlockEngineConfig, DeviceBuilder, FifoPicker, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, InvalidRatioPicker, LfuConfig, LruConfig, PsyncIoEngineConfig, RecoverMode,
    S3FifoConfig, Source,
};
use mixtrics::metrics::{
    BoxedCounter, BoxedCounterVec, BoxedGauge, BoxedGaugeVec, BoxedHistogram, BoxedHistogramVec, CounterOps,
    CounterVecOps, GaugeOps, GaugeVecOps, HistogramOps, HistogramVecOps, RegistryOps,
};
use tokio::runtime::Runtime;

use crate::mixed::{Budget, Cache, Client, fresh};
use crate::requests::{Request, check, make};

/// What a user of foyer can choose; the defaults are the best that were found for this trace.
#[derive(clap::Args)]
#[command(next_help_heading = "foyer")]
pub(crate) struct Tuning {
    /// When a value is written to the drive.
    #[arg(long, value_enum, default_value_t = Write::Eviction)]
    foyer_write: Write,
    /// Who stays in memory.
    #[arg(long, value_enum, default_value_t = Eviction::S3fifo)]
    foyer_eviction: Eviction,
    /// Parts of memory with a lock each.
    #[arg(long, value_name = "N", default_value_t = 2)]
    foyer_shards: usize,
    /// Blocks the drive is divided into; more than the largest value.
    #[arg(long, value_name = "MiB", default_value_t = 32)]
    foyer_block_mebibytes: usize,
    /// Blocks written at the same time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    foyer_flushers: usize,
    /// Memory for what is being written, beside the budget.
    #[arg(long, value_name = "MiB", default_value_t = 64)]
    foyer_buffer_mebibytes: usize,
    /// Blocks with at least this share of replaced values go first; above 1 the oldest always does.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    foyer_invalid_ratio: f64,
    /// Threads of its runtime.
    #[arg(long, value_name = "N", default_value_t = 2)]
    foyer_workers: usize,
    /// Runs each client on a thread of its own, not as a task of the runtime, which is faster.
    #[arg(long)]
    foyer_threads: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Write {
    Eviction,
    Insertion,
}

#[derive(Clone, Copy, ValueEnum)]
enum Eviction {
    Lfu,
    Lru,
    S3fifo,
}

/// The cache with the runtime it needs.
pub(crate) struct Foyer {
    cache: HybridCache<u64, Bytes>,
    runtime: Runtime,
    counts: Counts,
    threads: bool,
}

impl Foyer {
    pub(crate) fn new(budget: &Budget, tuning: &Tuning) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(tuning.foyer_workers)
            .enable_all()
            .build()?;
        let counts = Counts::default();
        let device = FsDeviceBuilder::new(&budget.folder)
            .with_capacity(usize::try_from(budget.drive_bytes)?)
            .with_direct(budget.direct)
            .build()?;
        let buffers = tuning.foyer_buffer_mebibytes << 20;
        let engine = BlockEngineConfig::new(device)
            .with_block_size(tuning.foyer_block_mebibytes << 20)
            .with_flushers(tuning.foyer_flushers)
            .with_reclaimers(2)
            .with_clean_block_threshold(4)
            .with_buffer_pool_size(buffers)
            // What its documentation calls the default.
            .with_submit_queue_size_threshold(2 * buffers)
            .with_eviction_pickers(vec![
                Box::new(InvalidRatioPicker::new(tuning.foyer_invalid_ratio)),
                Box::<FifoPicker>::default(),
            ]);
        let policy = match tuning.foyer_write {
            Write::Eviction => HybridCachePolicy::WriteOnEviction,
            Write::Insertion => HybridCachePolicy::WriteOnInsertion,
        };
        let memory = HybridCacheBuilder::new()
            .with_policy(policy)
            .with_metrics_registry(Box::new(counts.clone()))
            .memory(usize::try_from(budget.hot_bytes)?)
            .with_shards(tuning.foyer_shards)
            .with_weighter(|_: &u64, value: &Bytes| value.len());
        let memory = match tuning.foyer_eviction {
            Eviction::Lfu => memory.with_eviction_config(LfuConfig::default()),
            Eviction::Lru => memory.with_eviction_config(LruConfig::default()),
            Eviction::S3fifo => memory.with_eviction_config(S3FifoConfig::default()),
        };
        let build = memory
            .storage()
            .with_io_engine_config(PsyncIoEngineConfig::new())
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::None)
            .build();
        let cache = runtime.block_on(build)?;
        Ok(Self { cache, runtime, counts, threads: tuning.foyer_threads })
    }
}

impl Cache for Foyer {
    fn client(&self, requests: &[Request]) -> Result<Client> {
        let client = client(self.cache.clone(), requests.to_vec());
        if self.threads {
            self.runtime.block_on(client)
        } else {
            self.runtime.block_on(self.runtime.spawn(client))?
        }
    }

    fn drain(&self) -> Result<()> {
        self.runtime.block_on(self.cache.storage().wait());
        Ok(())
    }

    /// Values that were not written because more came than could be written.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (queue, buffer) = (&self.counts.queue_overflow, &self.counts.buffer_overflow);
        vec![("dropped", queue.load(Ordering::Relaxed) + buffer.load(Ordering::Relaxed))]
    }

    fn close(self) -> Result<()> {
        // Without this memory would be written to the drive on the way out.
        self.cache.memory().clear();
        self.runtime.block_on(self.cache.close()).context("foyer cannot be closed")
    }
}

async fn client(cache: HybridCache<u64, Bytes>, requests: Vec<Request>) -> Result<Client> {
    let mut seen = Client::default();
    for request in &requests {
        let &Request { key, bytes, insert } = request;
        if insert {
            let value = fresh(request);
            let start = Instant::now();
            drop(cache.insert(key, value));
            seen.took(start.elapsed());
            seen.stored(bytes);
            continue;
        }
        let start = Instant::now();
        let entry =
            cache.get_or_fetch(&key, || async move { Ok::<_, anyhow::Error>(make(key, bytes)) }).await?;
        seen.took(start.elapsed());
        match entry.source() {
            Source::Memory => seen.memory += 1,
            Source::Disk => seen.drive += 1,
            Source::Outer => {
                seen.made += 1;
                seen.stored(bytes);
            }
        }
        check(key, bytes, entry.value())?;
    }
    Ok(seen)
}

/// Keeps of all that foyer counts the two that say what was dropped.
#[derive(Clone, Debug, Default)]
struct Counts {
    queue_overflow: Arc<AtomicU64>,
    buffer_overflow: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Count(Arc<AtomicU64>);

/// What nobody looks at.
#[derive(Debug)]
struct Ignored;

impl RegistryOps for Counts {
    fn register_counter_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedCounterVec {
        Box::new(self.clone())
    }

    fn register_gauge_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedGaugeVec {
        Box::new(Ignored)
    }

    fn register_histogram_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedHistogramVec {
        Box::new(Ignored)
    }

    fn register_histogram_vec_with_buckets(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
        _: Vec<f64>,
    ) -> BoxedHistogramVec {
        Box::new(Ignored)
    }
}

impl CounterVecOps for Counts {
    fn counter(&self, labels: &[Cow<'static, str>]) -> BoxedCounter {
        match labels.last().map(AsRef::as_ref) {
            Some("channel_overflow") => Box::new(Count(Arc::clone(&self.queue_overflow))),
            Some("buffer_overflow") => Box::new(Count(Arc::clone(&self.buffer_overflow))),
            _ => Box::new(Ignored),
        }
    }
}

impl CounterOps for Count {
    fn increase(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl CounterOps for Ignored {
    fn increase(&self, _: u64) {}
}

impl GaugeVecOps for Ignored {
    fn gauge(&self, _: &[Cow<'static, str>]) -> BoxedGauge {
        Box::new(Self)
    }
}

impl GaugeOps for Ignored {
    fn increase(&self, _: u64) {}
    fn decrease(&self, _: u64) {}
    fn absolute(&self, _: u64) {}
}

impl HistogramVecOps for Ignored {
    fn histogram(&self, _: &[Cow<'static, str>]) -> BoxedHistogram {
        Box::new(Self)
    }
}

impl HistogramOps for Ignored {
    fn record(&self, _: f64) {}
}

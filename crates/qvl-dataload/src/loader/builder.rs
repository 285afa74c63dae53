//! The settings of a loader, and how it is put together.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::batch::Batching;
use super::queue::Queue;
use super::state::{Identity, State};
use super::tuner::{Range, Setting, Tuner};
use super::window::{Bounds, Window};
use super::worker::{Counters, Course, Pipeline};
use super::{DataLoader, Log, Shared, Tuning};
use crate::buffer::{Buffers, Recycled};
use crate::sampler::{Sampler, Shuffle};
use crate::source::{Footprint, Source};
use crate::storage::Storage;
use crate::transform::{self, Bounded, Map, Transform};
use crate::{Cause, Error, Result};

/// What is done when a sample cannot be read or transformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnError {
    /// The run ends with the error, after the items before it.
    Stop,
    /// The sample is left out and counted, and [`Stats`](super::Stats) keep the reason. The run ends with
    /// [`Error::TooManySkipped`] at the first one beyond `most`, and when a whole epoch's worth of samples in a row
    /// was bad.
    Skip {
        /// Samples that may be left out.
        most: u64,
    },
}

impl OnError {
    /// Any number may be left out.
    pub const SKIP: Self = Self::Skip { most: u64::MAX };
}

/// Builds a [`DataLoader`]. Every setting has a default that works.
///
/// | setting | default |
/// |---|---|
/// | [`workers`](Self::workers) | tuned while it runs, 1 up to one for each core |
/// | [`prefetch_items`](Self::prefetch_items) | tuned while it runs, up to 1,024 |
/// | [`prefetch_bytes`](Self::prefetch_bytes) | 1 GiB |
/// | [`item_bytes_max`](Self::item_bytes_max) | three eighths of `prefetch_bytes` |
/// | [`storage`](Self::storage) | through the page cache, 16 MiB ahead |
/// | [`batch_size`](Self::batch_size) | 1 |
/// | [`shuffle`](Self::shuffle) | off |
/// | [`epochs`](Self::epochs) | 1 |
/// | [`shard`](Self::shard) | 0 of 1 |
/// | [`drop_last`](Self::drop_last) | no |
/// | [`on_error`](Self::on_error) | [`OnError::Stop`] |
#[must_use = "nothing is loaded before `build`"]
pub struct Builder<S, T> {
    source: S,
    transform: T,
    settings: Settings,
}

/// What does not depend on the types.
struct Settings {
    workers: Option<usize>,
    prefetch_items: Option<usize>,
    prefetch_bytes: usize,
    item_bytes_max: Option<usize>,
    batch_size: usize,
    shuffle: Shuffle,
    epochs: Option<u64>,
    rank: usize,
    world: usize,
    drop_last: bool,
    on_error: OnError,
    read_buffers: Option<Arc<dyn Buffers>>,
    output_buffers: Option<Arc<dyn Buffers>>,
    resume: Option<State>,
    storage: Storage,
}

/// Items ahead before the tuning has seen any.
const ITEMS_AT_FIRST: usize = 16;
/// Items ahead that the tuning goes up to.
const ITEMS_MAX: usize = 1024;
/// More threads, or items ahead, or items in a batch are a mistake.
const WORKERS_MAX: usize = 1024;
const COUNT_MAX: usize = 1 << 24;
/// Items that a worker may claim at once, if they take microseconds.
const RUN_MAX: usize = 64;
const DEFAULT_BYTES: usize = 1 << 30;
/// One part in so many of the bound of bytes is for buffers that wait to be used again, and more if it is free.
const IDLE_PART: usize = 4;

impl<S: Source> Builder<S, transform::Identity> {
    pub(super) fn new(source: S) -> Self {
        let settings = Settings {
            workers: None,
            prefetch_items: None,
            prefetch_bytes: DEFAULT_BYTES,
            item_bytes_max: None,
            batch_size: 1,
            shuffle: Shuffle::Off,
            epochs: Some(1),
            rank: 0,
            world: 1,
            drop_last: false,
            on_error: OnError::Stop,
            read_buffers: None,
            output_buffers: None,
            resume: None,
            storage: Storage::default(),
        };
        Self { source, transform: transform::Identity, settings }
    }

    /// Does this with every sample, in the workers. What it gives must depend on the sample alone.
    ///
    /// The size of what it gives is learned as it comes; see [`Builder::output_bytes_max`] for a bound of bytes that
    /// holds at every moment.
    pub fn map<F, O, E>(self, step: F) -> Builder<S, Map<F>>
    where
        F: Fn(S::Sample) -> Result<O, E> + Send + Sync + 'static,
        O: Footprint + Send + 'static,
        E: Into<Cause>,
    {
        self.transform(Map::new(step))
    }

    /// Does this with every sample, in the workers; for steps that keep something, or know the size of their output.
    pub fn transform<T: Transform<S::Sample>>(self, transform: T) -> Builder<S, T> {
        Builder { source: self.source, transform, settings: self.settings }
    }
}

impl<S: Source, T: Transform<S::Sample>> Builder<S, T> {
    /// No item that the transform makes takes more bytes than this: as much is reserved before it is made. An item
    /// that does take more is counted when it is there ([`Stats::undeclared_bytes`](super::Stats::undeclared_bytes)).
    pub fn output_bytes_max(self, bytes: usize) -> Builder<S, Bounded<T>> {
        let Self { source, transform, settings } = self;
        Builder { source, transform: Bounded::new(transform, bytes), settings }
    }

    /// Threads that load. 0 loads in the thread that asks for batches, when it asks.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = Some(workers);
        self
    }

    /// Items that are begun and not taken, at most. They are made ahead in addition to the batch that is in the hands
    /// of the consumer.
    pub fn prefetch_items(mut self, items: usize) -> Self {
        self.settings.prefetch_items = Some(items);
        self
    }

    /// Bytes of samples and items that are begun and not taken, at most, with the buffers kept for the next ones.
    ///
    /// Not counted: what a worker keeps from item to item (`Scratch`), and what a transform takes and gives back
    /// while it runs.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.settings.prefetch_bytes = bytes;
        self
    }

    /// Bytes that one item may take with the sample it is made from. This much is always left for the item the
    /// consumer waits for, so a smaller value lets more items be made at once.
    pub fn item_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.item_bytes_max = Some(bytes);
        self
    }

    /// Items in a batch; the last of an epoch may have fewer.
    pub fn batch_size(mut self, items: usize) -> Self {
        self.settings.batch_size = items;
        self
    }

    /// The order of the samples.
    pub fn shuffle(mut self, shuffle: Shuffle) -> Self {
        self.settings.shuffle = shuffle;
        self
    }

    /// How often all samples come.
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.settings.epochs = Some(epochs);
        self
    }

    /// Epoch after epoch without an end.
    pub fn forever(mut self) -> Self {
        self.settings.epochs = None;
        self
    }

    /// Takes one of `world` shares: samples `rank`, `rank + world` and so on of the order that all of them share.
    /// Each sample belongs to one share; with [`Builder::drop_last`] all shares are of one length.
    pub fn shard(mut self, rank: usize, world: usize) -> Self {
        (self.settings.rank, self.settings.world) = (rank, world);
        self
    }

    /// Leaves out a batch at the end of an epoch that is not full, and samples that not every share has.
    pub fn drop_last(mut self, drop: bool) -> Self {
        self.settings.drop_last = drop;
        self
    }

    /// What is done about samples that cannot be read or transformed.
    pub fn on_error(mut self, policy: OnError) -> Self {
        self.settings.on_error = policy;
        self
    }

    /// Where samples are read to. By default buffers on the heap that are used again.
    pub fn read_buffers(mut self, buffers: impl Buffers) -> Self {
        self.settings.read_buffers = Some(Arc::new(buffers));
        self
    }

    /// Where a transform that asks for buffers writes to. By default those on the heap that are used again.
    pub fn output_buffers(mut self, buffers: impl Buffers) -> Self {
        self.settings.output_buffers = Some(Arc::new(buffers));
        self
    }

    /// How files are read ahead of the workers. By default through the page cache, which the system is told to fill;
    /// [`Drive::probe`](crate::storage::Drive::probe) measures what suits a drive. Without workers nothing is read
    /// ahead.
    pub fn storage(mut self, storage: Storage) -> Self {
        self.settings.storage = storage;
        self
    }

    /// Goes on where another run was. Source, shuffling, shard and `drop_last` must be the same; workers, batches and
    /// bounds may differ. Epochs are counted from the beginning of the first run.
    pub fn resume(mut self, state: State) -> Self {
        self.settings.resume = Some(state);
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting that makes no sense, [`Error::Resume`] for a state of another run,
    /// [`Error::Thread`] if a thread cannot be started.
    pub fn build(self) -> Result<DataLoader<T::Output>> {
        let size = count("batch_size", self.settings.batch_size, COUNT_MAX)?;
        self.start(Batching::Size(size))
    }

    /// The same with batches of any size: `fits` says whether the next item still goes into the batch. It must
    /// depend on the items alone, and is not asked about the first item of a batch.
    ///
    /// ```
    /// # use qvl_dataload::{DataLoader, Memory};
    /// // At most 100 tokens a batch.
    /// let lengths = Memory::new([60usize, 30, 50, 70]);
    /// let fits = |batch: &[&usize], next: &usize| batch.iter().copied().sum::<usize>() + next <= 100;
    /// let loader = DataLoader::builder(lengths).build_by(fits)?;
    /// let batches: Vec<Vec<usize>> = loader.map(|b| Ok(b?.items)).collect::<qvl_dataload::Result<_>>()?;
    /// assert_eq!(batches, [vec![60, 30], vec![50], vec![70]]);
    /// # Ok::<(), qvl_dataload::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn build_by(
        self,
        fits: impl FnMut(&[&T::Output], &T::Output) -> bool + Send + 'static,
    ) -> Result<DataLoader<T::Output>> {
        self.start(Batching::By(Box::new(fits)))
    }

    fn start(self, batching: Batching<T::Output>) -> Result<DataLoader<T::Output>> {
        let Self { source, transform, settings } = self;
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = settings.workers.unwrap_or(cores);
        if threads > WORKERS_MAX {
            return Err(setting("workers", threads, format!("0 to {WORKERS_MAX}")));
        }
        let sampler = settings.sampler(source.len())?;
        let identity = Identity {
            samples: source.len() as u64,
            fingerprint: source.fingerprint(),
            shuffle: sampler.shuffle,
            rank: sampler.rank as u64,
            world: sampler.world as u64,
            drop_last: settings.drop_last,
        };
        let epoch_len = sampler.epoch_len() as u64;
        let (epoch, place) = match &settings.resume {
            Some(state) => state.check(&identity, epoch_len)?,
            None => (0, 0),
        };
        let total = match settings.epochs {
            Some(epochs) => epochs.saturating_sub(epoch).saturating_mul(epoch_len).max(place),
            None if epoch_len == 0 => 0,
            None => u64::MAX,
        };

        let batch = match &batching {
            Batching::Size(size) => *size,
            Batching::By(_) => 1,
        };
        let bounds = settings.bounds(batch)?;
        let bound_bytes = settings.prefetch_bytes;
        let active = if settings.workers.is_some() { threads } else { threads.min(2) };
        // Advice costs the workers a moment; anything else is a thread's work, and needs workers to read ahead of.
        let (readahead_bytes, engine) = match settings.storage {
            _ if threads == 0 => (None, None),
            Storage::Buffered { readahead_bytes: 0 } => (None, None),
            Storage::Buffered { readahead_bytes } => (Some(readahead_bytes), None),
            storage => (None, Some(storage.start()?)),
        };
        let window = Window::new(bounds, place, total);
        let queue = Arc::new(Queue::new(window, active, engine.is_some(), bound_bytes));
        // Buffers that wait to be used again have what the bound leaves, and their own part of it at least.
        let recycled = Recycled::limited_by(queue.free_bytes());
        let or_ours = |own: &Option<Arc<dyn Buffers>>| match own {
            Some(own) => Arc::clone(own),
            None => Arc::new(recycled.clone()),
        };
        let read_buffers = or_ours(&settings.read_buffers);
        let output_buffers = or_ours(&settings.output_buffers);
        let counters = Arc::new(Counters::default());
        let course = Course { sampler, epoch };
        let run_max = (bounds.items / (2 * threads.max(1))).clamp(1, RUN_MAX);
        let pipeline = Arc::new(Pipeline {
            source,
            transform,
            course,
            queue: Arc::clone(&queue),
            counters: Arc::clone(&counters),
            read_buffers,
            output_buffers,
            recycled: recycled.clone(),
            run_max,
            total,
            readahead_bytes,
            announced: Mutex::default(),
        });

        let range = Range {
            workers_max: settings.workers.is_none().then_some(threads),
            items_max: settings.prefetch_items.is_none().then_some(ITEMS_MAX),
            batch,
        };
        let tuning = (threads > 0 && (range.workers_max.is_some() || range.items_max.is_some())).then(|| {
            let setting = Setting { workers: active, items: bounds.items };
            Tuning {
                tuner: Tuner::new(range, setting),
                at: Instant::now(),
                items: 0,
                busy_ns: 0,
                consumer_wait: Duration::ZERO,
            }
        });
        let shared = Arc::new(Shared {
            queue,
            counters,
            course,
            started: Instant::now(),
            workers: threads,
            recycled,
            bytes_bound: settings.prefetch_bytes,
            identity,
            log: Mutex::new(Log { delivered: place, ..Log::default() }),
        });
        let mut loader = DataLoader {
            shared,
            threads: Vec::with_capacity(threads),
            inline: None,
            batching,
            on_error: settings.on_error,
            drop_last: settings.drop_last,
            keep: false,
            arrived: std::collections::VecDeque::new(),
            held: None,
            failed: None,
            next: place,
            skipped_in_row: 0,
            is_over: false,
            tuning,
        };
        if threads == 0 {
            let mut hands = pipeline.hands();
            loader.inline = Some(Box::new(move || pipeline.work_once(&mut hands)));
            return Ok(loader);
        }
        // Those that were started are joined when the loader is dropped, also by an error here.
        let mut spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(work);
            loader.threads.push(thread.map_err(|source| Error::Thread { source })?);
            Ok(())
        };
        for worker in 0..threads {
            let pipeline = Arc::clone(&pipeline);
            spawn(format!("qvl-dataload-{worker}"), Box::new(move || pipeline.work(worker)))?;
        }
        if let Some(mut engine) = engine {
            let storage = settings.storage;
            spawn("qvl-dataload-read".to_owned(), Box::new(move || pipeline.fetch(storage, &mut *engine)))?;
        }
        Ok(loader)
    }
}

impl Settings {
    fn sampler(&self, len: usize) -> Result<Sampler> {
        let Self { rank, world, drop_last, shuffle, .. } = *self;
        if world == 0 || rank >= world {
            return Err(setting("shard", format!("{rank} of {world}"), "a rank below the number of ranks"));
        }
        if matches!(shuffle, Shuffle::Blocks { block: 0, .. }) {
            return Err(setting("shuffle", "blocks of 0 samples", "at least 1"));
        }
        Ok(Sampler { len, shuffle, rank, world, even: drop_last })
    }

    fn bounds(&self, batch: usize) -> Result<Bounds> {
        // With a window that is always full nothing would be left for the buffers that a slow consumer gives back,
        // and each item would be made in fresh memory.
        let ours = self.read_buffers.is_none() || self.output_buffers.is_none();
        let bytes = self.prefetch_bytes - if ours { self.prefetch_bytes / IDLE_PART } else { 0 };
        if bytes == 0 {
            return Err(setting("prefetch_bytes", 0, "at least 1"));
        }
        let item_bytes_max = self.item_bytes_max.unwrap_or(bytes.div_ceil(2));
        if item_bytes_max == 0 || item_bytes_max > bytes {
            let expected = format!("1 to {bytes}, what prefetch_bytes leaves for items");
            return Err(setting("item_bytes_max", item_bytes_max, expected));
        }
        let items = match self.prefetch_items {
            Some(items) => count("prefetch_items", items, COUNT_MAX)?,
            None => ITEMS_AT_FIRST.max(2 * batch).min(ITEMS_MAX.max(batch)),
        };
        Ok(Bounds { items, bytes, item_bytes_max })
    }
}

/// A number of things, at least 1.
fn count(name: &'static str, got: usize, most: usize) -> Result<usize> {
    if got == 0 || got > most {
        return Err(setting(name, got, format!("1 to {most}")));
    }
    Ok(got)
}

fn setting(name: &'static str, got: impl ToString, expected: impl Into<String>) -> Error {
    Error::Setting { setting: name, got: got.to_string(), expected: expected.into() }
}

impl<S, T> fmt::Debug for Builder<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.settings.workers)
            .field("prefetch_items", &self.settings.prefetch_items)
            .field("prefetch_bytes", &self.settings.prefetch_bytes)
            .field("batch_size", &self.settings.batch_size)
            .finish_non_exhaustive()
    }
}

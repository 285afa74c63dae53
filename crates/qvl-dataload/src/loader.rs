//! Loading ahead of the consumer: the same items in the same order for any number of threads.

mod batch;
mod builder;
mod fetch;
mod queue;
mod state;
mod stats;
mod sync;
mod tuner;
mod window;
mod worker;

pub use batch::{Batch, Receiver};
pub use builder::{Builder, OnError};
pub use state::State;
pub use stats::{Decision, Skip, Stats};

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::buffer::Recycled;
use crate::source::Source;
use crate::transform::Identity;
use crate::{Error, Result};
use batch::Batching;
use tuner::{Period, Setting, Tuner};
use worker::{Counters, Course, ItemQueue, Outcome};

/// Batches of items, loaded ahead by threads that live as long as the loader.
///
/// An iterator over `Result<Batch<T>>`. The order of the items and their bytes depend on the source, the seed and the
/// shard, never on the number of workers. Dropping it stops and joins the workers; one that is in the middle of an
/// item finishes that item.
///
/// ```
/// use qvl_dataload::{DataLoader, Memory, Shuffle};
///
/// let words = Memory::new(["to", "be", "or", "not"].map(String::from));
/// let loader = DataLoader::builder(words)
///     .map(|word| Ok::<_, std::io::Error>(word.to_uppercase()))
///     .shuffle(Shuffle::All { seed: 7 })
///     .batch_size(3)
///     .workers(2)
///     .build()?;
/// let sizes: Vec<usize> = loader.map(|batch| Ok(batch?.len())).collect::<qvl_dataload::Result<_>>()?;
/// assert_eq!(sizes, [3, 1]);
/// # Ok::<(), qvl_dataload::Error>(())
/// ```
pub struct DataLoader<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    /// Makes one item in the consumer's thread, for a loader without workers.
    inline: Option<Box<dyn FnMut() -> bool + Send>>,
    batching: Batching<T>,
    on_error: OnError,
    drop_last: bool,
    /// Whether bytes of a batch stay counted until it is handed over.
    keep: bool,
    /// Taken from the queue and not looked at.
    arrived: VecDeque<Outcome<T>>,
    /// An item that did not fit into the batch before.
    held: Option<Numbered<T>>,
    /// An error that is reported after the batch before it.
    failed: Option<Error>,
    /// Number of the next item to be looked at.
    next: u64,
    /// Samples left out in a row.
    skipped_in_row: u64,
    is_over: bool,
    tuning: Option<Tuning>,
}

/// An item with its number in the run.
struct Numbered<T> {
    number: u64,
    item: T,
}

struct Shared<T> {
    queue: Arc<ItemQueue<T>>,
    counters: Arc<Counters>,
    course: Course,
    started: Instant,
    workers: usize,
    recycled: Recycled,
    bytes_bound: usize,
    identity: state::Identity,
    log: Mutex<Log>,
}

/// What the consumer's side writes down.
#[derive(Debug, Default)]
struct Log {
    items: u64,
    batches: u64,
    skipped: u64,
    skips: Vec<Skip>,
    decisions: VecDeque<Decision>,
    /// Where a later run would go on.
    delivered: u64,
    /// Time in which a loader without workers loaded.
    inline_wait: Duration,
}

/// The tuning with what it last looked at.
struct Tuning {
    tuner: Tuner,
    at: Instant,
    items: u64,
    busy_ns: u64,
    consumer_wait: Duration,
}

/// How often the tuning looks.
const TUNING_PERIOD: Duration = Duration::from_millis(500);

impl DataLoader<()> {
    /// A loader of samples from a source, to be set up.
    pub fn builder<S: Source>(source: S) -> Builder<S, Identity> {
        Builder::new(source)
    }
}

impl<T: Send + 'static> DataLoader<T> {
    /// What has been done so far. Cheap: one lock and a few loads.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Where the run is, to go on from later with [`Builder::resume`]: after the last batch that was handed out.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Items of this loader's shard in one epoch.
    pub fn epoch_len(&self) -> usize {
        self.shared.course.sampler.epoch_len()
    }

    /// The loader behind a channel, for consumers that select over several, or are several.
    ///
    /// One more thread hands the batches over, one at a time; a batch counts against the bound of bytes until it is
    /// received.
    ///
    /// # Errors
    /// [`Error::Thread`] if that thread cannot be started.
    pub fn into_receiver(self) -> Result<Receiver<T>> {
        Receiver::new(self)
    }

    /// The next outcome with its number; `None` at the end of the run or when it was stopped.
    fn feed(&mut self, most: usize) -> Option<(u64, Outcome<T>)> {
        if self.arrived.is_empty() {
            let mut taken = Vec::new();
            if let Some(make_one) = &mut self.inline {
                let started = Instant::now();
                while !self.shared.queue.take(most, self.keep, &mut taken) && taken.is_empty() && make_one() {
                }
                self.shared.log.lock().inline_wait += started.elapsed();
            } else {
                self.shared.queue.take_waiting(most, self.keep, &mut taken)?;
            }
            self.arrived.extend(taken);
        }
        let outcome = self.arrived.pop_front()?;
        let number = self.next;
        self.next += 1;
        Some((number, outcome))
    }

    /// Puts a sample aside that could not be made, or says that the run ends here.
    fn skip(&mut self, number: u64, error: Error) -> Result<(), Error> {
        let OnError::Skip { most } = self.on_error else { return Err(error) };
        let (epoch, index) = self.shared.course.of(number);
        self.skipped_in_row += 1;
        let mut log = self.shared.log.lock();
        log.skipped += 1;
        if log.skips.len() < Stats::SKIPS_KEPT {
            log.skips.push(Skip { index, epoch, reason: with_causes(&error) });
        }
        let all = self.shared.course.sampler.epoch_len() as u64;
        // An epoch without a single good sample would go on for ever.
        if log.skipped > most || self.skipped_in_row >= all {
            let (skipped, limit) = (log.skipped, most.min(all.saturating_sub(1)));
            let name = format!("sample {index}");
            return Err(Error::TooManySkipped { skipped, limit, name, source: Box::new(error) });
        }
        Ok(())
    }

    /// The next batch, without what surrounds it.
    fn next_batch(&mut self) -> Option<Result<Batch<T>>> {
        if let Some(error) = self.failed.take() {
            self.is_over = true;
            return Some(Err(error));
        }
        let epoch_len = self.epoch_len() as u64;
        let mut open: Vec<Numbered<T>> = self.held.take().into_iter().collect();
        loop {
            if let Some(first) = open.first()
                && (self.batching.is_full(open.len()) || first.number / epoch_len != self.next / epoch_len)
            {
                // What a function puts together is as full as it will be.
                let is_short = matches!(self.batching, Batching::Size(size) if open.len() < size);
                if !(is_short && self.drop_last) {
                    return Some(Ok(self.deliver(open, self.next)));
                }
                // The end of an epoch does not fill a batch.
                open.clear();
                self.advance(self.next);
            }
            let Some((number, outcome)) = self.feed(self.batching.missing(open.len())) else {
                // The end: an epoch that ends has handed out its last batch above.
                self.is_over = true;
                return None;
            };
            match outcome {
                Ok(item) => {
                    self.skipped_in_row = 0;
                    let fits = open.is_empty() || self.batching.fits(&open, &item);
                    if !fits {
                        self.held = Some(Numbered { number, item });
                        return Some(Ok(self.deliver(open, number)));
                    }
                    open.push(Numbered { number, item });
                }
                Err(error) => {
                    if let Err(error) = self.skip(number, *error) {
                        self.next = number;
                        if open.is_empty() {
                            self.is_over = true;
                            return Some(Err(error));
                        }
                        // What was made before it is not lost.
                        self.failed = Some(error);
                        return Some(Ok(self.deliver(open, number)));
                    }
                    if open.is_empty() {
                        self.advance(self.next);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, open: Vec<Numbered<T>>, next: u64) -> Batch<T> {
        let course = self.shared.course;
        let epoch = open.first().map_or(0, |first| course.of(first.number).0);
        let indices = open.iter().map(|item| course.of(item.number).1).collect();
        let items: Vec<T> = open.into_iter().map(|numbered| numbered.item).collect();
        self.advance(next);
        let mut log = self.shared.log.lock();
        let number = log.batches;
        log.items += items.len() as u64;
        log.batches += 1;
        drop(log);
        Batch { items, indices, epoch, number, state: self.shared.state() }
    }

    /// A later run would go on at this number.
    fn advance(&self, number: u64) {
        self.shared.log.lock().delivered = number;
    }

    fn tune(&mut self) {
        let Some(tuning) = &mut self.tuning else { return };
        let elapsed = tuning.at.elapsed();
        if elapsed < TUNING_PERIOD {
            return;
        }
        let counters = &self.shared.counters;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (items, busy_ns) =
            (load(&counters.items), load(&counters.read_ns) + load(&counters.transform_ns));
        let consumer_wait = self.shared.queue.view().waits.consumer;
        let period = Period {
            elapsed,
            consumer_wait: consumer_wait.saturating_sub(tuning.consumer_wait),
            busy: Duration::from_nanos(busy_ns - tuning.busy_ns),
            longest_item: Duration::from_nanos(counters.longest_lately_ns.swap(0, Ordering::Relaxed)),
            items: items - tuning.items,
        };
        (tuning.at, tuning.items, tuning.busy_ns, tuning.consumer_wait) =
            (Instant::now(), items, busy_ns, consumer_wait);
        if let Some((Setting { workers, items }, why)) = tuning.tuner.observe(&period) {
            self.shared.queue.tune(workers, items);
            let at = self.shared.started.elapsed();
            let decision = Decision { at, workers, prefetch_items: items, why };
            let mut log = self.shared.log.lock();
            if log.decisions.len() == Stats::DECISIONS_KEPT {
                log.decisions.pop_front();
            }
            log.decisions.push_back(decision);
        }
    }
}

impl<T> Shared<T> {
    fn stats(&self) -> Stats {
        let view = self.queue.view();
        let counters = &self.counters;
        let time =
            |counter: &std::sync::atomic::AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        let log = self.log.lock();
        Stats {
            elapsed: self.started.elapsed(),
            items: log.items,
            batches: log.batches,
            items_made: counters.items.load(Ordering::Relaxed),
            bytes_made: counters.bytes.load(Ordering::Relaxed),
            skipped: log.skipped,
            skips: log.skips.clone(),
            read: time(&counters.read_ns),
            transform: time(&counters.transform_ns),
            longest_item: time(&counters.longest_ns),
            consumer_wait: view.waits.consumer + log.inline_wait,
            worker_wait: view.waits.room,
            used_bytes: view.used_bytes,
            peak_bytes: view.peak_bytes,
            bytes_bound: self.bytes_bound,
            undeclared_bytes: counters.undeclared_bytes.load(Ordering::Relaxed),
            idle_bytes: self.recycled.idle_bytes(),
            peak_items: view.peak_items,
            prefetch_items: view.bounds.items,
            workers: self.workers,
            workers_active: view.active.min(self.workers),
            decisions: log.decisions.iter().cloned().collect(),
        }
    }

    fn state(&self) -> State {
        let delivered = self.log.lock().delivered;
        let len = (self.course.sampler.epoch_len() as u64).max(1);
        State::new(self.identity, self.course.epoch + delivered / len, delivered % len)
    }
}

impl<T: Send + 'static> Iterator for DataLoader<T> {
    type Item = Result<Batch<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over && self.failed.is_none() {
            return None;
        }
        self.tune();
        self.next_batch()
    }
}

impl<T: Send + 'static> FusedIterator for DataLoader<T> {}

impl<T> Drop for DataLoader<T> {
    fn drop(&mut self) {
        self.shared.queue.stop();
        for thread in self.threads.drain(..) {
            // A panic in a transform was caught; a thread has nothing else to say.
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for DataLoader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoader")
            .field("workers", &self.shared.workers)
            .field("next", &self.next)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

/// An error with all its causes on one line.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

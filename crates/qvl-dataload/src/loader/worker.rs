//! What a worker does with an item: reserve, read, transform, hand in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::buffer::{Buffers, Recycled};
use crate::loader::fetch::Announced;
use crate::loader::queue::{Claim, Finished, Queue, Refused};
use crate::sampler::Sampler;
use crate::source::Source;
use crate::storage::{Reader, Ready};
use crate::transform::Transform;
use crate::{Error, Result};

/// An item, or why there is none. Boxed, so that a queue of small items stays small.
pub(crate) type Outcome<T> = Result<T, Box<Error>>;

/// What was read ahead for an item.
pub(crate) type Fetched = Result<Ready, Box<Error>>;

pub(crate) type ItemQueue<T> = Queue<Fetched, Outcome<T>>;

/// Which items there are, as numbers of the run: number `n` is place `n % epoch_len` of epoch `epoch + n / epoch_len`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) sampler: Sampler,
    /// The epoch of number 0.
    pub(crate) epoch: u64,
}

impl Course {
    /// `(epoch, index in the source)` of a number.
    pub(crate) fn of(&self, number: u64) -> (u64, usize) {
        let len = self.sampler.epoch_len() as u64;
        let epoch = self.epoch + number / len;
        (epoch, self.sampler.index(epoch, (number % len) as usize))
    }
}

/// Figures that workers add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) items: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) read_ns: AtomicU64,
    pub(crate) transform_ns: AtomicU64,
    pub(crate) longest_ns: AtomicU64,
    /// The longest since the tuning last looked.
    pub(crate) longest_lately_ns: AtomicU64,
    /// The largest output that was not announced.
    largest_output: AtomicUsize,
    pub(crate) undeclared_bytes: AtomicUsize,
}

/// Everything that workers share.
pub(crate) struct Pipeline<S, T>
where
    S: Source,
    T: Transform<S::Sample>,
{
    pub(crate) source: S,
    pub(crate) transform: T,
    pub(crate) course: Course,
    pub(crate) queue: Arc<ItemQueue<T::Output>>,
    pub(crate) counters: Arc<Counters>,
    /// Samples are read into these.
    pub(crate) read_buffers: Arc<dyn Buffers>,
    /// Results are written to these.
    pub(crate) output_buffers: Arc<dyn Buffers>,
    /// Buffers that wait to be used again.
    pub(crate) recycled: Recycled,
    /// Items that a worker may claim at once.
    pub(crate) run_max: usize,
    /// Items of the whole run.
    pub(crate) total: u64,
    /// Bytes to announce to the system before they are read; `None` if something else reads ahead.
    pub(crate) readahead_bytes: Option<usize>,
    pub(crate) announced: Mutex<Announced>,
}

/// What one worker has in its hands.
pub(crate) struct Hands<S, T>
where
    S: Source,
    T: Transform<S::Sample>,
{
    /// Made with the first item, where a panic is caught.
    scratch: Option<T::Scratch>,
    /// Done and not handed in.
    pending: Vec<Finished<Outcome<T::Output>>>,
    since: Instant,
    run: usize,
}

/// Items that take less are claimed and handed in several at a time, so that the lock is not what takes longest.
const HAND_IN: Duration = Duration::from_micros(50);

/// Why an item was not made.
enum Halt {
    Stopped,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl<S, T> Pipeline<S, T>
where
    S: Source,
    T: Transform<S::Sample>,
{
    pub(crate) fn hands(&self) -> Hands<S, T> {
        Hands { scratch: None, pending: Vec::new(), since: Instant::now(), run: 1 }
    }

    /// The life of a worker thread.
    pub(crate) fn work(&self, worker: usize) {
        let mut hands = self.hands();
        while let Some(claim) = self.queue.claim(worker, hands.run) {
            if !self.do_claim(claim, &mut hands) {
                return;
            }
        }
    }

    /// Makes one item in the caller's thread; `false` if there is nothing to do.
    pub(crate) fn work_once(&self, hands: &mut Hands<S, T>) -> bool {
        self.queue.try_claim(1).is_some_and(|claim| self.do_claim(claim, hands))
    }

    /// `false` if the loader stops.
    fn do_claim(&self, claim: Claim<Fetched>, hands: &mut Hands<S, T>) -> bool {
        hands.since = Instant::now();
        let (started, mut count) = (hands.since, 1);
        let goes_on = match claim {
            Claim::Fetched { number, fetched } => self.one(number, Some(fetched), hands),
            Claim::Run { first, count: run } => {
                count = run;
                if let Some(bytes) = self.readahead_bytes {
                    self.announce(first + run as u64 - 1, bytes);
                }
                (first..first + run as u64).all(|number| self.one(number, None, hands))
            }
        };
        self.queue.publish(&mut hands.pending);
        let each = (started.elapsed().as_nanos() as usize / count).max(1);
        hands.run = (HAND_IN.as_nanos() as usize / each).clamp(1, self.run_max);
        goes_on
    }

    fn one(&self, number: u64, fetched: Option<Fetched>, hands: &mut Hands<S, T>) -> bool {
        let (_, index) = self.course.of(number);
        let made = catch_unwind(AssertUnwindSafe(|| self.make(number, index, fetched, hands)));
        let finished = match made {
            Ok(Ok((bytes, item))) => Finished { number, bytes, value: Ok(item) },
            Ok(Err(Halt::Stopped)) => return false,
            Ok(Err(Halt::Failed(error))) => Finished { number, bytes: 0, value: Err(Box::new(error)) },
            Err(panic) => {
                // What the panic left behind in the scratch is not to be trusted.
                hands.scratch = None;
                Finished {
                    number,
                    bytes: 0,
                    value: Err(Box::new(Error::panicked(self.name(index), &*panic))),
                }
            }
        };
        hands.pending.push(finished);
        if hands.since.elapsed() > HAND_IN {
            self.queue.publish(&mut hands.pending);
            hands.since = Instant::now();
        }
        true
    }

    fn make(
        &self,
        number: u64,
        index: usize,
        fetched: Option<Fetched>,
        hands: &mut Hands<S, T>,
    ) -> Result<(usize, T::Output), Halt> {
        let Hands { scratch, pending, .. } = hands;
        let mut account = Account { number, reserved: 0, pending };
        let name = self.source.name(index);
        let ready = match fetched {
            // Its bytes were reserved before it was read.
            Some(fetched) => {
                let ready = fetched.map_err(|error| *error)?;
                account.reserved = ready.reserved;
                ready
            }
            None => {
                self.reserve(&mut account, self.source.sample_bytes(index, &*self.read_buffers)?, &name)?;
                Ready::default()
            }
        };
        // What was reserved may have been what unused buffers take.
        self.recycled.trim();
        let before_read = Instant::now();
        let sample = self.source.read(index, &mut Reader::with_ready(&*self.read_buffers, ready))?;
        let after_read = Instant::now();
        let declared = self.transform.output_bytes(&sample, &name, &*self.output_buffers)?;
        let expected = match declared {
            Some(bytes) => bytes,
            None => self.expected_output(account.reserved),
        };
        self.reserve(&mut account, expected, &name)?;
        if !self.transform.takes_buffers() {
            self.recycled.trim();
        }
        let scratch = scratch.get_or_insert_with(|| self.transform.scratch());
        let before_transform = Instant::now();
        let item = self.transform.apply(sample, &name, scratch, &*self.output_buffers)?;
        let after_transform = Instant::now();
        let bytes = self.transform.footprint(&item);
        let counters = &*self.counters;
        if declared.is_none() {
            counters.largest_output.fetch_max(bytes.max(1), Ordering::Relaxed);
        }
        if let Some(more) = bytes.checked_sub(account.reserved).filter(|more| *more > 0) {
            counters.undeclared_bytes.fetch_max(more, Ordering::Relaxed);
            self.reserve(&mut account, more, &name)?;
        }
        let (read, transform) = (after_read - before_read, after_transform - before_transform);
        let add = |counter: &AtomicU64, amount: u64| counter.fetch_add(amount, Ordering::Relaxed);
        add(&counters.items, 1);
        add(&counters.bytes, bytes as u64);
        add(&counters.read_ns, nanoseconds(read));
        add(&counters.transform_ns, nanoseconds(transform));
        let took = nanoseconds(read + transform);
        counters.longest_ns.fetch_max(took, Ordering::Relaxed);
        counters.longest_lately_ns.fetch_max(took, Ordering::Relaxed);
        Ok((bytes, item))
    }

    /// Bytes to reserve for an output of unknown size: a quarter more than the largest yet. Before there was any, all
    /// that an item may take, so that the first of them are made one by one.
    fn expected_output(&self, reserved: usize) -> usize {
        let item_bytes_max = self.queue.view().bounds.item_bytes_max;
        let room = item_bytes_max.saturating_sub(reserved);
        match self.counters.largest_output.load(Ordering::Relaxed) {
            0 => room,
            largest => largest.saturating_add(largest / 4).min(room),
        }
    }

    fn reserve(
        &self,
        account: &mut Account<'_, Outcome<T::Output>>,
        bytes: usize,
        name: &str,
    ) -> Result<(), Halt> {
        match self.queue.reserve(account.number, bytes, account.pending) {
            Ok(()) => {
                account.reserved += bytes;
                Ok(())
            }
            Err(Refused::Stopped) => Err(Halt::Stopped),
            Err(Refused::TooLarge) => Err(Halt::Failed(Error::ItemBytes {
                name: name.to_owned(),
                bytes: account.reserved.saturating_add(bytes),
                limit_bytes: self.queue.view().bounds.item_bytes_max,
            })),
        }
    }

    /// The name of a sample, from a source that may just have panicked.
    fn name(&self, index: usize) -> String {
        catch_unwind(AssertUnwindSafe(|| self.source.name(index)))
            .unwrap_or_else(|_| format!("sample {index}"))
    }
}

/// What was reserved for the item that is being made.
struct Account<'a, T> {
    number: u64,
    reserved: usize,
    pending: &'a mut Vec<Finished<T>>,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

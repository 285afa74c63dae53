//! Layers of a model, or any segments that are used in a circle, brought ahead of who uses them within a budget.
//!
//! Some segments stay in memory, the others come again each time round; which, and how far ahead, is [`plan`]ned from
//! the times that are measured on the way.

pub mod plan;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::plan::{Link, Plan};
use crate::device::Device;
use crate::engine::{Transfer, TransferEngine};
use crate::source::Source;
use crate::ticket::{In, Ticket};
use crate::trace::{Stage, Trace};
use crate::{Error, Result};

/// Walks a circle of segments, ahead of its consumer.
///
/// [`next`](Self::next) gives the segments in order, round after round. While the consumer has one, those after it are
/// on their way. The memory of all of them together, that of the one in use included, stays within the budget.
pub struct LayerStream<D: Device> {
    engine: Arc<TransferEngine<D>>,
    segments: Vec<Segment<D>>,
    budget_bytes: u64,
    plan: Plan,
    /// The next segment that the consumer gets.
    cursor: usize,
    /// Segments on their way, in their order.
    ahead: VecDeque<Ahead<D>>,
    /// Segments from the cursor on that are resident or on their way.
    covered: usize,
    /// Bytes of the budget that are in use or on their way.
    held_bytes: u64,
    /// Of these, those of segments that do not stay.
    window_bytes: u64,
    held_bytes_max: u64,
    clock: Times,
    trace: Option<Trace>,
    stats: LayerStats,
}

struct Segment<D: Device> {
    source: Arc<dyn Source>,
    bytes: usize,
    charge: u64,
    resident: Option<Arc<D::Memory>>,
    crc32: Option<u32>,
    /// Seconds of the consumer with it, the last time.
    compute_s: Option<f64>,
}

struct Ahead<D: Device> {
    index: usize,
    ticket: Ticket<D, In>,
}

/// What was measured of the link since the last plan.
#[derive(Default)]
struct Times {
    bytes: u64,
    busy_s: f64,
}

/// What a stream did, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerStats {
    /// Segments given to the consumer.
    pub segments: u64,
    /// Of these, those that were resident.
    pub resident_hits: u64,
    /// Bytes that were brought.
    pub streamed_bytes: u64,
    /// Seconds in which the consumer waited for bytes.
    pub wait_seconds: f64,
    /// Seconds in which the consumer had a segment.
    pub compute_seconds: f64,
    /// Bytes of the device's budget that are held now.
    pub held_bytes: u64,
    /// The most that were held.
    pub held_bytes_max: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// How often another plan was taken up.
    pub plans: u64,
}

/// What a [`LayerStream`] is made from.
pub struct Builder<D: Device> {
    engine: Arc<TransferEngine<D>>,
    sources: Vec<(Arc<dyn Source>, Option<u32>)>,
    budget_bytes: u64,
    rate: Option<f64>,
    compute_s: Option<Vec<f64>>,
    trace: Option<Trace>,
}

impl<D: Device> Builder<D> {
    /// Adds the next segment.
    #[must_use]
    pub fn segment(mut self, source: impl Source) -> Self {
        self.sources.push((Arc::new(source), None));
        self
    }

    /// Adds the next segment, whose CRC-32 is checked each time it arrives.
    #[must_use]
    pub fn checked_segment(mut self, source: impl Source, crc32: u32) -> Self {
        self.sources.push((Arc::new(source), Some(crc32)));
        self
    }

    /// Adds segments.
    #[must_use]
    pub fn segments<S: Source>(self, sources: impl IntoIterator<Item = S>) -> Self {
        sources.into_iter().fold(self, Self::segment)
    }

    /// The times that the first plan is made from, instead of an assumption: bytes a second of the slowest link, and
    /// seconds of computing with each segment. Later plans are made from what the stream measures.
    #[must_use]
    pub fn times(mut self, bytes_per_s: f64, compute_s: Vec<f64>) -> Self {
        self.rate = Some(bytes_per_s);
        self.compute_s = Some(compute_s);
        self
    }

    /// Notes waiting and computing down, beside what the engine notes down.
    #[must_use]
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Makes the stream, and begins to bring the first segments.
    ///
    /// # Errors
    /// [`Error::Setting`] if the budget cannot hold what a walk needs at once, with the bytes that it takes, or if
    /// there are no segments.
    pub fn build(self) -> Result<LayerStream<D>> {
        let Self { engine, sources, budget_bytes, rate, compute_s, trace } = self;
        let segment = |(source, crc32): (Arc<dyn Source>, Option<u32>)| {
            let bytes = usize::try_from(source.len()).map_err(|_| Error::Setting {
                name: "segment",
                got: source.name(),
                expected: "a segment that fits into the address space is needed".to_owned(),
            })?;
            let charge = engine.device().charge(bytes) as u64;
            Ok(Segment { source, bytes, charge, resident: None, crc32, compute_s: None })
        };
        let mut segments = sources.into_iter().map(segment).collect::<Result<Vec<Segment<D>>>>()?;
        if let Some(times) = compute_s {
            if times.len() != segments.len() {
                return Err(Error::Setting {
                    name: "compute_s",
                    got: format!("{} times", times.len()),
                    expected: format!("one for each of the {} segments is needed", segments.len()),
                });
            }
            for (segment, time) in segments.iter_mut().zip(times) {
                segment.compute_s = Some(time);
            }
        }
        if segments.is_empty() {
            let expected = "at least one segment is needed".to_owned();
            return Err(Error::Setting { name: "segments", got: "none".to_owned(), expected });
        }
        let plan = plan::plan(&planned(&segments, rate.unwrap_or(ASSUMED_BYTES_PER_S)), budget_bytes)?;
        let mut stream = LayerStream {
            engine,
            segments,
            budget_bytes,
            plan,
            cursor: 0,
            ahead: VecDeque::new(),
            covered: 0,
            held_bytes: 0,
            window_bytes: 0,
            held_bytes_max: 0,
            clock: Times::default(),
            trace,
            stats: LayerStats::default(),
        };
        stream.reach_ahead()?;
        Ok(stream)
    }
}

impl<D: Device> fmt::Debug for Builder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("segments", &self.sources.len())
            .field("budget_bytes", &self.budget_bytes)
            .finish_non_exhaustive()
    }
}

impl<D: Device> LayerStream<D> {
    /// A stream of segments, to be named one after another, that holds at most `budget_bytes` of the device's memory.
    pub fn builder(engine: Arc<TransferEngine<D>>, budget_bytes: u64) -> Builder<D> {
        Builder { engine, sources: Vec::new(), budget_bytes, rate: None, compute_s: None, trace: None }
    }

    /// The next segment; waits until it is there. It is let go of when the guard is dropped, and what comes after it
    /// gets its room.
    ///
    /// # Errors
    /// That of its transfer. The next call tries the same segment again.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Result<Guard<'_, D>> {
        self.reach_ahead()?;
        let index = self.cursor;
        let began = Instant::now();
        let memory = match &self.segments[index].resident {
            Some(memory) => {
                self.stats.resident_hits += 1;
                memory.clone()
            }
            None => match self.arrive(index) {
                Ok(memory) => memory,
                Err(error) => {
                    self.forget_ahead();
                    return Err(error);
                }
            },
        };
        let now = Instant::now();
        self.stats.wait_seconds += (now - began).as_secs_f64();
        self.stats.segments += 1;
        if let Some(trace) = &self.trace {
            trace.record(Stage::Wait, index as u64, 0, 0, began, now);
        }
        self.cursor = (index + 1) % self.segments.len();
        self.covered -= 1;
        Ok(Guard { stream: self, index, memory: Some(memory), since: now })
    }

    /// The segment that [`Self::next`] gives next.
    pub fn position(&self) -> usize {
        self.cursor
    }

    /// Goes on with another segment. What is on its way and not needed then is cancelled.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no such segment.
    pub fn seek(&mut self, index: usize) -> Result<()> {
        crate::device::check_range("the stream's segments", index as u64, 1, self.segments.len() as u64)?;
        if index != self.cursor {
            self.forget_ahead();
            self.cursor = index;
        }
        self.reach_ahead()
    }

    /// What stays, what comes each time, how far ahead, and why.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it did and holds.
    pub fn stats(&self) -> LayerStats {
        let (held_bytes, held_bytes_max) = (self.held_bytes, self.held_bytes_max);
        LayerStats { held_bytes, held_bytes_max, budget_bytes: self.budget_bytes, ..self.stats.clone() }
    }

    /// Orders segments as far ahead as the plan and the budget go.
    fn reach_ahead(&mut self) -> Result<()> {
        let count = self.segments.len();
        // Not the one in use: it is behind the cursor.
        while self.covered < count {
            let index = (self.cursor + self.covered) % count;
            let segment = &self.segments[index];
            if segment.resident.is_none() {
                let charge = segment.charge;
                let window = if self.plan.resident[index] { 0 } else { charge };
                if self.covered == 0 {
                    // The consumer needs this one now. Only a guard that was leaked can be in its way.
                    self.make_room(charge);
                } else if self.window_bytes + window > self.plan.window_bytes {
                    return Ok(());
                }
                if self.held_bytes + charge > self.budget_bytes {
                    return Ok(());
                }
                let segment = &self.segments[index];
                let memory = self.engine.device().allocate(segment.bytes)?;
                let mut transfer = Transfer::new(segment.source.clone(), memory);
                if let Some(crc32) = segment.crc32 {
                    transfer = transfer.expect_crc32(crc32);
                }
                let ticket = self.engine.submit(transfer)?;
                self.ahead.push_back(Ahead { index, ticket });
                self.held_bytes += charge;
                self.window_bytes += window;
                self.held_bytes_max = self.held_bytes_max.max(self.held_bytes);
            }
            self.covered += 1;
        }
        Ok(())
    }

    /// Lets go of residents, the last to be used first, until there is room for so much.
    fn make_room(&mut self, charge: u64) {
        let count = self.segments.len();
        for behind in (1..count).rev() {
            if self.held_bytes + charge <= self.budget_bytes {
                return;
            }
            let segment = &mut self.segments[(self.cursor + behind) % count];
            if segment.resident.take().is_some() {
                self.held_bytes -= segment.charge;
            }
        }
    }

    /// Waits for the segment at the front.
    fn arrive(&mut self, index: usize) -> Result<Arc<D::Memory>> {
        let Some(Ahead { index: front, ticket }) = self.ahead.pop_front() else {
            let Segment { charge, .. } = self.segments[index];
            return Err(Error::OutOfMemory {
                what: "the budget of the stream".to_owned(),
                bytes: charge,
                in_use_bytes: self.held_bytes,
                budget_bytes: self.budget_bytes,
                remedy: "Raise the budget",
            });
        };
        debug_assert_eq!(front, index, "segments arrive in their order");
        let done = match ticket.wait() {
            Ok(done) => done,
            Err(failed) => {
                self.let_go(index);
                return Err(failed.error);
            }
        };
        self.stats.streamed_bytes += done.report.bytes;
        self.clock.bytes += done.report.bytes;
        self.clock.busy_s += done.report.wall.saturating_sub(done.report.queued).as_secs_f64();
        let memory = Arc::new(done.memory);
        if self.plan.resident[index] {
            self.segments[index].resident = Some(memory.clone());
        }
        Ok(memory)
    }

    /// The consumer is done with a segment.
    fn release(&mut self, index: usize, memory: Arc<D::Memory>, computing: Duration) {
        self.stats.compute_seconds += computing.as_secs_f64();
        self.segments[index].compute_s = Some(computing.as_secs_f64());
        drop(memory);
        if self.segments[index].resident.is_none() {
            self.let_go(index);
        }
        if index + 1 == self.segments.len() {
            self.plan_anew();
        }
        // An error here is that of an order ahead, and comes again when `next` orders it.
        let _ = self.reach_ahead();
    }

    /// At the end of a round: takes up another plan if what was measured makes it better by more than it costs.
    fn plan_anew(&mut self) {
        let Times { bytes, busy_s } = std::mem::take(&mut self.clock);
        if bytes == 0 || busy_s <= 0.0 {
            return;
        }
        let times = planned(&self.segments, MARGIN * bytes as f64 / busy_s);
        let Ok(better) = plan::plan(&times, self.budget_bytes) else { return };
        let same = better.resident == self.plan.resident && better.window_bytes == self.plan.window_bytes;
        let as_it_is = plan::simulate(&times, &self.plan.resident, self.plan.window_bytes);
        let worth =
            as_it_is.is_ok_and(|now| now.cycle_s - better.cycle.cycle_s > now.cycle_s * WORTH_REPLANNING);
        if same || !worth {
            return;
        }
        self.stats.plans += 1;
        // What counted as covered because it was resident may not be any more.
        self.forget_ahead();
        self.plan = better;
        for (segment, &resident) in self.segments.iter_mut().zip(&self.plan.resident) {
            if !resident && segment.resident.take().is_some() {
                self.held_bytes -= segment.charge;
            }
        }
    }

    /// A segment that was brought is in memory no more.
    fn let_go(&mut self, index: usize) {
        let charge = self.segments[index].charge;
        self.held_bytes -= charge;
        if !self.plan.resident[index] {
            self.window_bytes -= charge;
        }
    }

    /// Cancels what is on its way.
    fn forget_ahead(&mut self) {
        let ahead = std::mem::take(&mut self.ahead);
        ahead.iter().for_each(|ahead| ahead.ticket.cancel());
        for Ahead { index, ticket } in ahead {
            // Its memory is in use until its last chunk has ended.
            drop(ticket.wait());
            self.let_go(index);
        }
        self.covered = 0;
    }
}

impl<D: Device> fmt::Debug for LayerStream<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerStream")
            .field("position", &self.cursor)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The segments as the planner sees them.
fn planned<D: Device>(segments: &[Segment<D>], bytes_per_s: f64) -> Vec<plan::Segment> {
    let link = Link { bytes_per_s, latency_s: 0.0 };
    segments.iter().map(|segment| plan::Segment::new(segment.charge, &link, segment.compute_s)).collect()
}

/// A segment in the consumer's hands. Derefs to the device's memory.
pub struct Guard<'a, D: Device> {
    stream: &'a mut LayerStream<D>,
    index: usize,
    memory: Option<Arc<D::Memory>>,
    since: Instant,
}

impl<D: Device> Guard<'_, D> {
    /// Which segment it is.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl<D: Device> Deref for Guard<'_, D> {
    type Target = D::Memory;

    fn deref(&self) -> &D::Memory {
        // Taken only in `drop`.
        self.memory.as_ref().unwrap_or_else(|| unreachable!("a guard has its memory until it is dropped"))
    }
}

impl<D: Device> fmt::Debug for Guard<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("index", &self.index).finish_non_exhaustive()
    }
}

impl<D: Device> Drop for Guard<'_, D> {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let now = Instant::now();
        if let Some(trace) = &self.stream.trace {
            trace.record(Stage::Compute, self.index as u64, 0, 0, self.since, now);
        }
        self.stream.release(self.index, memory, now - self.since);
    }
}

/// Until it is measured: what an NVMe drive gives. Only its relation to the times of computing matters.
const ASSUMED_BYTES_PER_S: f64 = 1.5e9;
/// Of the rate that was measured, what is planned with: a plan has no slack of its own.
const MARGIN: f64 = 0.9;
/// Another plan is taken up if it shortens a round by more than this share: it costs reading what becomes resident.
const WORTH_REPLANNING: f64 = 0.05;

//! What happened when: stages of chunks and the computing of the caller, as a file for a trace viewer, and how much of
//! the moving was hidden behind the computing.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

/// A stage of a chunk, or what its consumer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the drive or the source.
    Read,
    /// To or from the device, until the fence.
    Copy,
    /// The computing of the caller.
    Compute,
    /// The caller waits for bytes.
    Wait,
}

impl Stage {
    /// All of them, in the order of a viewer's lanes.
    pub const ALL: [Self; 4] = [Self::Read, Self::Copy, Self::Compute, Self::Wait];

    /// What it is called in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Copy => "copy",
            Self::Compute => "compute",
            Self::Wait => "wait",
        }
    }

    fn moves(self) -> bool {
        matches!(self, Self::Read | Self::Copy)
    }
}

/// Something that took its time. Times are counted from when the trace was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it was.
    pub stage: Stage,
    /// The transfer; of the caller's own spans, the number that they were given.
    pub job: u64,
    /// The chunk of the transfer.
    pub chunk: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// The thread that noted it down, numbered by when it first did so in this process.
    pub thread: u32,
    /// When it began.
    pub from: Duration,
    /// When it ended; not before `from`.
    pub to: Duration,
}

/// Notes down when stages began and ended. Clones share what is noted.
#[derive(Clone)]
pub struct Trace {
    shared: Arc<Shared>,
}

struct Shared {
    made: Instant,
    capacity_events: usize,
    ring: Mutex<Ring>,
}

struct Ring {
    /// Grows within what was reserved for it; then `oldest` goes round.
    events: Vec<Event>,
    oldest: usize,
    forgotten: u64,
}

impl Trace {
    /// A trace that keeps the last `capacity_events` events, at most [`Self::CAPACITY_EVENTS_MAX`]; each takes 64 bytes.
    /// Memory for all of them is reserved here, and nothing is allocated later.
    pub fn new(capacity_events: usize) -> Self {
        let capacity_events = capacity_events.min(Self::CAPACITY_EVENTS_MAX);
        let ring = Ring { events: Vec::with_capacity(capacity_events), oldest: 0, forgotten: 0 };
        Self { shared: Arc::new(Shared { made: Instant::now(), capacity_events, ring: Mutex::new(ring) }) }
    }

    /// The most events that a trace keeps.
    pub const CAPACITY_EVENTS_MAX: usize = 1 << 22;

    /// Notes a stage down. Takes a lock for some nanoseconds, allocates nothing, and forgets the oldest event when the
    /// trace is full. What began before the trace was made begins with it.
    pub fn record(&self, stage: Stage, job: u64, chunk: u64, bytes: u64, from: Instant, to: Instant) {
        let since = |at: Instant| at.saturating_duration_since(self.shared.made);
        let from = since(from);
        let event = Event { stage, job, chunk, bytes, thread: this_thread(), from, to: since(to).max(from) };
        let mut ring = self.shared.ring.lock();
        let Ring { events, oldest, forgotten } = &mut *ring;
        if events.len() < self.shared.capacity_events {
            events.push(event);
            return;
        }
        *forgotten += 1;
        if let Some(place) = events.get_mut(*oldest) {
            *place = event;
            *oldest = (*oldest + 1) % self.shared.capacity_events;
        }
    }

    /// Notes down a stage that lasts until the span is dropped, under a number of the caller's, such as that of a layer.
    pub fn span(&self, stage: Stage, number: u64) -> Span<'_> {
        Span { trace: self, stage, number, from: Instant::now() }
    }

    /// Computes, and notes down when.
    pub fn compute<T>(&self, work: impl FnOnce() -> T) -> T {
        let _span = self.span(Stage::Compute, 0);
        work()
    }

    /// The events that are kept, in the order they ended.
    pub fn events(&self) -> Vec<Event> {
        let ring = self.shared.ring.lock();
        let (new, old) = ring.events.split_at(ring.oldest);
        [old, new].concat()
    }

    /// How many events were forgotten since the trace was made or cleared.
    pub fn forgotten(&self) -> u64 {
        self.shared.ring.lock().forgotten
    }

    /// Forgets all, and counts none of it as forgotten: what was before the part to be looked at.
    pub fn clear(&self) {
        let mut ring = self.shared.ring.lock();
        ring.events.clear();
        (ring.oldest, ring.forgotten) = (0, 0);
    }

    /// How much of the moving was hidden behind the computing, in the events that are kept.
    pub fn overlap(&self) -> Overlap {
        Overlap::of(&self.events())
    }

    /// [`Overlap::ratio`] of [`Self::overlap`].
    pub fn overlap_ratio(&self) -> f64 {
        self.overlap().ratio
    }

    /// How busy a stage was in the events that are kept.
    pub fn busy(&self, stage: Stage) -> Busy {
        Busy::of(&self.events(), stage)
    }

    /// Writes the events that are kept as a file for chrome://tracing or Perfetto: complete events with microseconds, in
    /// lanes by stage and thread. A thread that noted down stages that went on at once has several.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write_chrome(&self, mut to: impl Write) -> io::Result<()> {
        let (mut events, forgotten) = (self.events(), self.forgotten());
        events.sort_by_key(|event| (event.from, event.to));
        let lanes = lanes(&events);
        to.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        serde_json::to_writer(&mut to, &json!({ "forgotten_events": forgotten }))?;
        to.write_all(b",\"traceEvents\":[\n")?;
        let process =
            json!({ "ph": "M", "pid": 1, "name": "process_name", "args": { "name": "qvl-transfer" } });
        serde_json::to_writer(&mut to, &process)?;
        for (tid, lane) in lanes.names.iter().enumerate() {
            for (name, args) in [
                ("thread_name", json!({ "name": lane })),
                ("thread_sort_index", json!({ "sort_index": tid })),
            ] {
                to.write_all(b",\n")?;
                let line = json!({ "ph": "M", "pid": 1, "tid": tid, "name": name, "args": args });
                serde_json::to_writer(&mut to, &line)?;
            }
        }
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        for (event, tid) in events.iter().zip(&lanes.of_events) {
            let Event { stage, job, chunk, bytes, from, to: end, .. } = *event;
            let args = if stage.moves() {
                json!({ "bytes": bytes, "job": job, "chunk": chunk })
            } else {
                json!({ "number": job })
            };
            let line = json!({
                "ph": "X", "pid": 1, "tid": tid, "cat": stage.name(), "name": stage.name(),
                "ts": micros(from), "dur": micros(end - from), "args": args,
            });
            to.write_all(b",\n")?;
            serde_json::to_writer(&mut to, &line)?;
        }
        to.write_all(b"\n]}\n")?;
        to.flush()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.shared.ring.lock();
        f.debug_struct("Trace")
            .field("events", &ring.events.len())
            .field("capacity_events", &self.shared.capacity_events)
            .field("forgotten", &ring.forgotten)
            .finish()
    }
}

/// A stage that goes on; its end is noted down when this is dropped.
#[derive(Debug)]
#[must_use = "it is noted down when it is dropped"]
pub struct Span<'a> {
    trace: &'a Trace,
    stage: Stage,
    number: u64,
    from: Instant,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        self.trace.record(self.stage, self.number, 0, 0, self.from, Instant::now());
    }
}

/// How much of the moving went on while there was computing.
///
/// Moving is whenever any chunk is in [`Stage::Read`] or [`Stage::Copy`], computing whenever anything is in
/// [`Stage::Compute`]: times of events that went on at once count once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overlap {
    /// Seconds of moving.
    pub moving_s: f64,
    /// Seconds of computing.
    pub computing_s: f64,
    /// Seconds of both at once.
    pub both_s: f64,
    /// `both_s` as a share of the shorter of the two, which is all that can be hidden: 1 if it was hidden entirely, 0 if
    /// nothing was, or if there was no moving or no computing.
    pub ratio: f64,
}

impl Overlap {
    /// Of these events, in any order.
    pub fn of(events: &[Event]) -> Self {
        let moving = union(events, Stage::moves);
        let computing = union(events, |stage| stage == Stage::Compute);
        let (moving_ns, computing_ns, both_ns) =
            (length(&moving), length(&computing), common(&moving, &computing));
        let shorter = moving_ns.min(computing_ns);
        let ratio = if shorter == 0 { 0.0 } else { both_ns as f64 / shorter as f64 };
        let seconds = |ns: u64| ns as f64 / 1e9;
        Self {
            moving_s: seconds(moving_ns),
            computing_s: seconds(computing_ns),
            both_s: seconds(both_ns),
            ratio,
        }
    }
}

/// How busy a stage was between the beginning of the first event of any stage and the end of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// Seconds in which at least one event of the stage went on.
    pub busy_s: f64,
    /// Seconds from the first event of any stage to the last.
    pub wall_s: f64,
    /// `busy_s` as a share of `wall_s`; 0 if there are no events.
    pub share: f64,
    /// How often the stage was idle between two of its events.
    pub gaps: usize,
    /// The longest of these, in seconds.
    pub longest_gap_s: f64,
}

impl Busy {
    /// Of these events, in any order.
    pub fn of(events: &[Event], stage: Stage) -> Self {
        let wall_ns = match (events.iter().map(from_ns).min(), events.iter().map(to_ns).max()) {
            (Some(from), Some(to)) => to - from,
            _ => return Self::default(),
        };
        let busy = union(events, |of| of == stage);
        let busy_ns = length(&busy);
        let longest_gap_ns = busy.windows(2).map(|pair| pair[1].0 - pair[0].1).max().unwrap_or(0);
        Self {
            busy_s: busy_ns as f64 / 1e9,
            wall_s: wall_ns as f64 / 1e9,
            share: if wall_ns == 0 { 0.0 } else { busy_ns as f64 / wall_ns as f64 },
            gaps: busy.len().saturating_sub(1),
            longest_gap_s: longest_gap_ns as f64 / 1e9,
        }
    }
}

/// From and to, in nanoseconds.
type Interval = (u64, u64);

fn from_ns(event: &Event) -> u64 {
    event.from.as_nanos() as u64
}

fn to_ns(event: &Event) -> u64 {
    event.to.as_nanos() as u64
}

/// When any event of these stages went on: intervals in order that do not touch.
fn union(events: &[Event], of: impl Fn(Stage) -> bool) -> Vec<Interval> {
    let mut intervals: Vec<Interval> = events
        .iter()
        .filter(|event| of(event.stage))
        .map(|event| (from_ns(event), to_ns(event)))
        .filter(|&(from, to)| from < to)
        .collect();
    intervals.sort_unstable();
    let mut union: Vec<Interval> = Vec::new();
    for (from, to) in intervals {
        match union.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => union.push((from, to)),
        }
    }
    union
}

fn length(union: &[Interval]) -> u64 {
    union.iter().map(|(from, to)| to - from).sum()
}

/// How long two unions went on at once.
fn common(a: &[Interval], b: &[Interval]) -> u64 {
    let (mut i, mut j, mut ns) = (0, 0, 0);
    while let (Some(&(from_a, to_a)), Some(&(from_b, to_b))) = (a.get(i), b.get(j)) {
        ns += to_a.min(to_b).saturating_sub(from_a.max(from_b));
        if to_a <= to_b { i += 1 } else { j += 1 }
    }
    ns
}

/// Lanes of a viewer, in which no two events overlap.
struct Lanes {
    names: Vec<String>,
    of_events: Vec<usize>,
}

/// `events` are in the order in which they began.
fn lanes(events: &[Event]) -> Lanes {
    let mut lanes = Lanes { names: Vec::new(), of_events: vec![0; events.len()] };
    for stage in Stage::ALL {
        // Of each thread, its lanes and where their last events end.
        let mut threads: HashMap<u32, (usize, Vec<(usize, Duration)>)> = HashMap::new();
        for (event, lane) in events.iter().zip(&mut lanes.of_events).filter(|(event, _)| event.stage == stage)
        {
            let count = threads.len();
            let (number, own) = match threads.entry(event.thread) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert((count, Vec::new())),
            };
            let free = own.iter_mut().find(|(_, end)| *end <= event.from);
            *lane = match free {
                Some((lane, end)) => {
                    *end = event.to;
                    *lane
                }
                None => {
                    let mut name = format!("{} {number}", stage.name());
                    if !own.is_empty() {
                        name.push_str(&format!(", also {}", own.len()));
                    }
                    lanes.names.push(name);
                    own.push((lanes.names.len() - 1, event.to));
                    lanes.names.len() - 1
                }
            };
        }
    }
    lanes
}

/// The number of this thread.
fn this_thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static NUMBER: Cell<u32> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn event(stage: Stage, thread: u32, from: u64, to: u64) -> Event {
        let (from, to) = (Duration::from_nanos(from), Duration::from_nanos(to));
        Event { stage, job: 3, chunk: 5, bytes: 7, thread, from, to }
    }

    fn any_events() -> impl Strategy<Value = Vec<Event>> {
        let one = (0_usize..4, 0_u32..3, 0_u64..60, 0_u64..20)
            .prop_map(|(stage, thread, from, ns)| event(Stage::ALL[stage], thread, from, from + ns));
        prop::collection::vec(one, 0..25)
    }

    /// Whether anything of these stages goes on, for each nanosecond.
    fn ticks(events: &[Event], of: impl Fn(Stage) -> bool) -> Vec<bool> {
        let on = |tick: u64| events.iter().any(|e| of(e.stage) && from_ns(e) <= tick && tick < to_ns(e));
        (0..100).map(on).collect()
    }

    fn ns(seconds: f64) -> usize {
        (seconds * 1e9).round() as usize
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn overlap_is_what_a_count_of_ticks_says(events in any_events()) {
            let moving = ticks(&events, |stage| matches!(stage, Stage::Read | Stage::Copy));
            let computing = ticks(&events, |stage| stage == Stage::Compute);
            let count = |ticks: &[bool]| ticks.iter().filter(|&&on| on).count();
            let both = moving.iter().zip(&computing).filter(|&(&a, &b)| a && b).count();
            let overlap = Overlap::of(&events);
            prop_assert_eq!(ns(overlap.moving_s), count(&moving));
            prop_assert_eq!(ns(overlap.computing_s), count(&computing));
            prop_assert_eq!(ns(overlap.both_s), both);
            let shorter = count(&moving).min(count(&computing));
            let expected = if shorter == 0 { 0.0 } else { both as f64 / shorter as f64 };
            prop_assert!((overlap.ratio - expected).abs() < 1e-12 && (0.0..=1.0).contains(&overlap.ratio));
        }

        #[test]
        fn busy_is_what_a_count_of_ticks_says(events in any_events()) {
            for stage in Stage::ALL {
                let on = ticks(&events, |of| of == stage);
                let busy = Busy::of(&events, stage);
                prop_assert_eq!(ns(busy.busy_s), on.iter().filter(|&&on| on).count());
                let runs: Vec<&[bool]> = on.chunk_by(|a, b| a == b).collect();
                let inner = runs.iter().enumerate().filter(|(i, run)| !run[0] && *i > 0 && *i + 1 < runs.len());
                let gaps: Vec<usize> = inner.map(|(_, run)| run.len()).collect();
                prop_assert_eq!(busy.gaps, gaps.len());
                prop_assert_eq!(ns(busy.longest_gap_s), gaps.into_iter().max().unwrap_or(0));
                prop_assert!((0.0..=1.0).contains(&busy.share));
            }
        }

        #[test]
        fn no_two_events_of_a_lane_overlap(mut events in any_events()) {
            events.sort_by_key(|event| (event.from, event.to));
            let lanes = lanes(&events);
            let all = || events.iter().zip(&lanes.of_events);
            for (i, (a, lane)) in all().enumerate() {
                for (b, other) in all().skip(i + 1).filter(|(_, other)| *other == lane) {
                    prop_assert!(a.stage == b.stage && a.thread == b.thread);
                    prop_assert!(a.to <= b.from, "{a:?} and {b:?} are in lane {other}");
                }
            }
        }
    }

    #[test]
    fn the_oldest_are_forgotten_and_counted() {
        let trace = Trace::new(3);
        let record = |job| trace.record(Stage::Read, job, 0, 1, Instant::now(), Instant::now());
        let jobs = || trace.events().iter().map(|event| event.job).collect::<Vec<_>>();
        (0..3).for_each(record);
        assert_eq!((jobs(), trace.forgotten()), (vec![0, 1, 2], 0));
        (3..8).for_each(record);
        assert_eq!((jobs(), trace.forgotten()), (vec![5, 6, 7], 5));
        trace.clear();
        record(8);
        assert_eq!((jobs(), trace.forgotten()), (vec![8], 0));

        let none = Trace::new(0);
        none.record(Stage::Read, 0, 0, 1, Instant::now(), Instant::now());
        assert_eq!((none.events(), none.forgotten()), (vec![], 1));
    }

    #[test]
    fn an_event_takes_what_the_documentation_says() {
        assert_eq!(size_of::<Event>(), 64);
    }

    #[test]
    fn threads_have_numbers_and_nothing_is_lost() {
        let trace = Trace::new(10_000);
        std::thread::scope(|scope| {
            for job in 0..4 {
                let trace = &trace;
                scope.spawn(move || {
                    for chunk in 0..1000 {
                        trace.record(Stage::Copy, job, chunk, 1, Instant::now(), Instant::now());
                    }
                });
            }
        });
        let events = trace.events();
        assert_eq!((events.len(), trace.forgotten()), (4000, 0));
        for job in 0..4 {
            let own: Vec<&Event> = events.iter().filter(|event| event.job == job).collect();
            assert!(own.iter().enumerate().all(|(chunk, event)| event.chunk == chunk as u64));
            assert!(own.iter().all(|event| event.thread == own[0].thread));
            assert!(events.iter().all(|event| event.job == job || event.thread != own[0].thread));
        }
    }

    #[test]
    fn what_is_computed_is_noted_down_also_when_it_panics() {
        let trace = Trace::new(8);
        assert_eq!(trace.compute(|| 5), 5);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            trace.compute(|| panic!("no such layer"))
        }));
        assert!(failed.is_err());
        drop(trace.span(Stage::Wait, 9));
        let stages: Vec<_> = trace.events().iter().map(|event| (event.stage, event.job)).collect();
        assert_eq!(stages, [(Stage::Compute, 0), (Stage::Compute, 0), (Stage::Wait, 9)]);
    }

    #[test]
    fn an_event_from_before_the_trace_begins_with_it() {
        let before = Instant::now();
        std::thread::sleep(Duration::from_millis(1));
        let trace = Trace::new(2);
        trace.record(Stage::Read, 0, 0, 0, before, before);
        let now = Instant::now();
        // The wrong way round: nothing lasts less than no time.
        trace.record(Stage::Read, 0, 0, 0, now, before);
        let [first, second] = trace.events()[..] else { panic!("two were noted down") };
        assert_eq!((first.from, first.to), (Duration::ZERO, Duration::ZERO));
        assert_eq!(second.from, second.to);
    }

    #[test]
    fn the_file_has_every_event_in_a_named_lane() {
        let trace = Trace::new(8);
        let at = |micros| trace.shared.made + Duration::from_micros(micros);
        trace.record(Stage::Read, 1, 0, 4096, at(10), at(30));
        trace.record(Stage::Read, 1, 1, 4096, at(20), at(40));
        trace.record(Stage::Copy, 1, 0, 4096, at(30), at(35));
        trace.record(Stage::Compute, 7, 0, 0, at(32), at(52));
        let mut file = Vec::new();
        trace.write_chrome(&mut file).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let all = file["traceEvents"].as_array().unwrap();
        let names: Vec<_> = all
            .iter()
            .filter(|e| e["name"] == "thread_name")
            .map(|e| e["args"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["read 0", "read 0, also 1", "copy 0", "compute 0"]);
        let events: Vec<_> = all.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(events.len(), 4);
        assert_eq!(events.iter().map(|e| e["tid"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(
            *events[0],
            json!({
                "ph": "X", "pid": 1, "tid": 0, "cat": "read", "name": "read", "ts": 10.0, "dur": 20.0,
                "args": { "bytes": 4096, "job": 1, "chunk": 0 },
            })
        );
        assert_eq!(events[3]["args"]["number"], 7);
        assert_eq!(file["otherData"]["forgotten_events"], 0);
    }
}

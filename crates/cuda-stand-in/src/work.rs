//! Streams, which are threads, events, and who comes before whom.
//!
//! Each stream counts what it is given. A [`Clock`] says up to which count of each stream things are known to have
//! ended: each stream has one, which grows when it waits for an event, and so has the host, which grows when it waits
//! or looks. Two uses of the same bytes of which one writes are right if the clock of the second has the first. That
//! says whether a program is right whatever the timing, not only whether it was lucky this time; all threads of the
//! host count as one, so it finds fewer mistakes than there may be, and none that is no mistake.

#![expect(unsafe_code, reason = "copies bytes between addresses")]

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::memory::{READ_ONLY, SPOILED_HOST, Storage};
use crate::world::{Code, Faults, Outcome, State, World, world};

/// A place in the order of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    stream: usize,
    count: u64,
}

/// A point, and what is known to have ended when its stream has come to it.
#[derive(Clone)]
pub(crate) struct Mark {
    point: Point,
    clock: Clock,
}

/// Up to where each stream is known to have come.
#[derive(Clone, Default)]
pub(crate) struct Clock(HashMap<usize, u64>);

impl Clock {
    pub(crate) fn has(&self, point: Point) -> bool {
        self.0.get(&point.stream).is_some_and(|&count| count >= point.count)
    }

    fn add(&mut self, point: Point) {
        let count = self.0.entry(point.stream).or_default();
        *count = (*count).max(point.count);
    }

    fn merge(&mut self, other: &Self) {
        for (&stream, &count) in &other.0 {
            self.add(Point { stream, count });
        }
    }
}

pub(crate) struct Stream {
    card: usize,
    queue: VecDeque<(u64, Work)>,
    given: u64,
    done: u64,
    /// What is known once it has done what it was given up to now.
    clock: Clock,
    /// It was destroyed: it does what it has, and ends.
    pub(crate) closing: bool,
}

pub(crate) struct Event {
    card: usize,
    recorded: Option<Mark>,
    /// When it was recorded, or rather when the host said so.
    at: Duration,
}

/// A use of memory.
pub(crate) struct Access {
    pub(crate) at: Point,
    range: Range<usize>,
    writes: bool,
}

/// What a stream does.
pub(crate) enum Work {
    Nothing,
    Wait(Point),
    Copy { from: Place, to: Place, bytes: usize, way: Option<Way> },
    Fill { to: Place, bytes: usize, value: u8 },
    Free { address: u64 },
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

pub(crate) enum Place {
    Card(Arc<Storage>, usize),
    Host(usize),
    /// A buffer of the driver's.
    Own(Vec<u8>),
}

impl Place {
    fn address(&self) -> *mut u8 {
        match self {
            Self::Card(storage, at) => storage.first().wrapping_add(*at),
            Self::Host(address) => *address as *mut u8,
            Self::Own(bytes) => bytes.as_ptr().cast_mut(),
        }
    }
}

/// Whose memory is used.
#[derive(Clone, Copy)]
pub(crate) enum Object {
    Card(u64),
    Host(usize),
}

/// A range of memory that is used, and whether it is written.
pub(crate) type Use = (Object, Range<usize>, bool);

impl State {
    pub(crate) fn stream_create(&mut self, card: usize) -> Outcome<usize> {
        let handle = self.handle();
        let stream = Stream {
            card,
            queue: VecDeque::new(),
            given: 0,
            done: 0,
            clock: Clock::default(),
            closing: false,
        };
        self.streams.insert(handle, stream);
        let thread = std::thread::Builder::new().name(format!("stream {handle:x}"));
        thread.spawn(move || run(handle)).map_err(|_| Code::UNKNOWN)?;
        Ok(handle)
    }

    /// The stream behind a handle, which must be of the card whose context is current.
    pub(crate) fn stream_of(&mut self, card: usize, stream: usize) -> Outcome<usize> {
        if stream <= 2 {
            if let Some(&stream) = self.default_streams.get(&card) {
                return Ok(stream);
            }
            let stream = self.stream_create(card)?;
            self.default_streams.insert(card, stream);
            return Ok(stream);
        }
        match self.streams.get(&stream) {
            Some(found) if !found.closing && found.card == card => Ok(stream),
            _ => {
                self.violate("a stream is used that is destroyed, or of another context".to_owned());
                Err(Code::INVALID_HANDLE)
            }
        }
    }

    pub(crate) fn stream_destroy(&mut self, stream: usize) -> Outcome {
        self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?.closing = true;
        self.changed();
        Ok(())
    }

    /// Where a stream is when it has done what it was given up to now.
    pub(crate) fn last_mark(&self, stream: usize) -> Mark {
        let found = self.streams.get(&stream);
        let point = Point { stream, count: found.map_or(0, |found| found.given) };
        Mark { point, clock: found.map(|found| found.clock.clone()).unwrap_or_default() }
    }

    pub(crate) fn last_marks(&self, card: usize) -> Vec<Mark> {
        let of_card = self.streams.iter().filter(|(_, stream)| stream.card == card);
        of_card.map(|(&stream, _)| self.last_mark(stream)).collect()
    }

    /// Whether a stream has come to a mark. The host knows it then, and all that came before.
    pub(crate) fn see(&mut self, mark: &Mark) -> bool {
        let done = self.is_done(mark.point);
        if done {
            self.seen.add(mark.point);
            self.seen.merge(&mark.clock);
        }
        done
    }

    fn is_done(&self, point: Point) -> bool {
        self.streams.get(&point.stream).is_none_or(|stream| stream.done >= point.count)
    }

    /// What comes before the next thing that a stream is given.
    pub(crate) fn clock_of(&self, stream: usize) -> Clock {
        let mut clock = self.seen.clone();
        if let Some(stream) = self.streams.get(&stream) {
            clock.merge(&stream.clock);
        }
        clock
    }

    /// Gives a stream something to do that uses memory.
    pub(crate) fn enqueue(&mut self, stream: usize, work: Work, uses: &[Use]) -> Outcome<Point> {
        let clock = self.clock_of(stream);
        let found = self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?;
        found.given += 1;
        let at = Point { stream, count: found.given };
        found.clock = clock.clone();
        found.clock.add(at);
        found.queue.push_back((at.count, work));
        for (object, range, writes) in uses {
            self.note(*object, Access { at, range: range.clone(), writes: *writes }, &clock);
        }
        self.changed();
        Ok(at)
    }

    /// Notes a use down, and counts it if another is not known to come before it.
    fn note(&mut self, object: Object, access: Access, clock: &Clock) {
        let (accesses, born) = match object {
            Object::Card(address) => match self.allocations.get_mut(&address) {
                Some(one) => (&mut one.accesses, one.born),
                None => return,
            },
            Object::Host(first) => match self.host.get_mut(&first) {
                Some(range) => (&mut range.accesses, None),
                None => return,
            },
        };
        let early = born.is_some_and(|born| !clock.has(born));
        accesses.retain(|other| !self.seen.has(other.at));
        let races = |other: &Access| {
            let overlap = other.range.start < access.range.end && access.range.start < other.range.end;
            overlap && (other.writes || access.writes) && !clock.has(other.at)
        };
        let raced = accesses.iter().any(races);
        accesses.push(access);
        if early {
            self.violate(
                "memory of a card is used before the stream that it was got on has come to it".to_owned(),
            );
        }
        if raced {
            self.violate("two streams use the same bytes, and neither waits for the other".to_owned());
        }
    }

    /// Copies between host and card. Returns where its stream is when it has ended, and whether the call ends only
    /// then.
    ///
    /// # Safety
    /// The host's side can be read or written until the copy has ended.
    pub(crate) unsafe fn copy(
        &mut self,
        way: Way,
        host: usize,
        address: u64,
        bytes: usize,
        stream: usize,
    ) -> Outcome<(Mark, bool)> {
        let range = host..host.checked_add(bytes).ok_or(Code::INVALID_VALUE)?;
        let (allocation, at) = self.find(address, bytes)?;
        let Some(one) = self.allocations.get(&allocation) else { return Err(Code::INVALID_VALUE) };
        let card = Place::Card(one.storage.clone(), at);
        let locked = self.host_range(&range)?;
        if Faults::is_now(&mut self.faults.fail_copy) {
            return Err(Code::OUT_OF_MEMORY);
        }
        match way {
            Way::In => self.counts.copies_in += 1,
            Way::Out => self.counts.copies_out += 1,
        }
        let mut uses = vec![(Object::Card(allocation), at..at + bytes, way == Way::In)];
        match locked {
            Some(first) => {
                uses.push((Object::Host(first), range.start - first..range.end - first, way == Way::Out));
                if way == Way::Out {
                    let known = self.host.get(&first);
                    if known.is_some_and(|range| range.flags & READ_ONLY != 0) {
                        return Err(Code::INVALID_VALUE);
                    }
                    // Unless another stream is to read it first.
                    let quiet =
                        known.is_some_and(|range| range.accesses.iter().all(|one| self.seen.has(one.at)));
                    if quiet {
                        // SAFETY: the caller's promise that it can be written and that nobody looks at it.
                        unsafe { (host as *mut u8).write_bytes(SPOILED_HOST, bytes) };
                    }
                }
            }
            None => self.counts.pageable_copies += 1,
        }
        let work = if Faults::is_now(&mut self.faults.fail_copy_later) {
            Work::Fail
        } else {
            let (from, to) = match (way, locked) {
                (Way::In, Some(_)) => (Place::Host(host), card),
                (Way::In, None) => {
                    // SAFETY: the caller's promise that it can be read.
                    let bytes = unsafe { std::slice::from_raw_parts(host as *const u8, bytes) };
                    (Place::Own(bytes.to_vec()), card)
                }
                (Way::Out, _) => (card, Place::Host(host)),
            };
            Work::Copy { from, to, bytes, way: Some(way) }
        };
        self.enqueue(stream, work, &uses)?;
        Ok((self.last_mark(stream), way == Way::Out && locked.is_none()))
    }

    /// Copies within a card.
    pub(crate) fn copy_within(&mut self, to: u64, from: u64, bytes: usize, stream: usize) -> Outcome {
        let (to, to_at) = self.find(to, bytes)?;
        let (from, from_at) = self.find(from, bytes)?;
        let place = |address: u64, at: usize| {
            let one = self.allocations.get(&address).ok_or(Code::INVALID_VALUE)?;
            Ok(Place::Card(one.storage.clone(), at))
        };
        let work = Work::Copy { from: place(from, from_at)?, to: place(to, to_at)?, bytes, way: None };
        let uses = [
            (Object::Card(from), from_at..from_at + bytes, false),
            (Object::Card(to), to_at..to_at + bytes, true),
        ];
        self.enqueue(stream, work, &uses).map(|_| ())
    }

    /// Sets bytes of a card.
    pub(crate) fn fill(&mut self, to: u64, value: u8, bytes: usize, stream: usize) -> Outcome {
        let (address, at) = self.find(to, bytes)?;
        let one = self.allocations.get(&address).ok_or(Code::INVALID_VALUE)?;
        let work = Work::Fill { to: Place::Card(one.storage.clone(), at), bytes, value };
        self.enqueue(stream, work, &[(Object::Card(address), at..at + bytes, true)]).map(|_| ())
    }

    pub(crate) fn event_create(&mut self, card: usize) -> usize {
        let handle = self.handle();
        self.events.insert(handle, Event { card, recorded: None, at: Duration::ZERO });
        handle
    }

    pub(crate) fn event_record(&mut self, event: usize, stream: usize) -> Outcome {
        let card = self.streams.get(&stream).map(|stream| stream.card);
        if self.events.get(&event).map(|event| event.card) != card {
            return Err(Code::INVALID_HANDLE);
        }
        self.enqueue(stream, Work::Nothing, &[])?;
        let mark = self.last_mark(stream);
        let at = self.epoch.elapsed();
        if let Some(event) = self.events.get_mut(&event) {
            (event.recorded, event.at) = (Some(mark), at);
        }
        Ok(())
    }

    /// Where the event was recorded, if it was.
    pub(crate) fn event_mark(&self, event: usize) -> Outcome<Option<Mark>> {
        let event = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        Ok(event.recorded.clone())
    }

    pub(crate) fn event_time(&self, event: usize) -> Outcome<Duration> {
        self.events.get(&event).map(|event| event.at).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn event_destroy(&mut self, event: usize) -> Outcome {
        self.events.remove(&event).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }

    /// Makes a stream wait for an event as it was recorded last.
    pub(crate) fn hold_back(&mut self, stream: usize, event: usize) -> Outcome {
        let event = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        let Some(mark) = event.recorded.clone() else { return Ok(()) };
        self.enqueue(stream, Work::Wait(mark.point), &[])?;
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.clock.merge(&mark.clock);
        }
        Ok(())
    }

    fn changed(&self) {
        if let Ok(world) = world() {
            world.changed.notify_all();
        }
    }
}

/// The thread of a stream.
fn run(stream: usize) {
    let Ok(world) = world() else { return };
    let mut state = world.lock();
    loop {
        let lost = state.lost.is_some();
        let Some(found) = state.streams.get_mut(&stream) else { return };
        let waits = match found.queue.front() {
            None if found.closing => return,
            None => true,
            Some((_, Work::Wait(point))) => {
                let point = *point;
                !lost && !state.is_done(point)
            }
            Some(_) => false,
        };
        if waits {
            state = world.wait(state);
            continue;
        }
        let Some((count, work)) = state.streams.get_mut(&stream).and_then(|found| found.queue.pop_front())
        else {
            continue;
        };
        if !lost {
            drop(state);
            execute(world, work);
            state = world.lock();
        }
        if let Some(found) = state.streams.get_mut(&stream) {
            found.done = count;
        }
        world.changed.notify_all();
    }
}

fn execute(world: &World, work: Work) {
    match work {
        Work::Nothing | Work::Wait(_) => {}
        Work::Copy { from, to, bytes, way } => {
            let time = way.map(|way| begin(world, way, bytes));
            if let Some(time) = time.filter(|time| !time.is_zero()) {
                std::thread::sleep(time);
            }
            // SAFETY: both sides are there until the stream has done this: memory of a card is kept by its storage, and
            // the host's by who called (`State::copy`); that neither is used otherwise is what is counted.
            unsafe { std::ptr::copy(from.address(), to.address(), bytes) };
            if let Some(way) = way {
                world.lock().counts.active[way as usize] -= 1;
            }
        }
        Work::Fill { to, bytes, value } => {
            // SAFETY: as above.
            unsafe { to.address().write_bytes(value, bytes) };
        }
        Work::Free { address } => world.lock().freed(address),
        Work::Fail => world.lock().lost = Some(Code::ILLEGAL_ADDRESS),
    }
}

/// Counts a copy as under way; how long it is to take.
fn begin(world: &World, way: Way, bytes: usize) -> Duration {
    let mut state = world.lock();
    let counts = &mut state.counts;
    counts.active[way as usize] += 1;
    if counts.active[1 - way as usize] > 0 {
        counts.overlapped += 1;
    }
    let faults = &state.faults;
    let transfer = (bytes as u64 * 1_000_000_000).checked_div(faults.bytes_per_s).unwrap_or(0);
    Duration::from_nanos(transfer) + Duration::from_micros(faults.latency_us)
}

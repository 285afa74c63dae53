//! What a worker does with a chunk: reads it, copies it, and hands its fence on.

#![expect(
    unsafe_code,
    reason = "begins copies whose sides the job owns, and reads into parts that the plan keeps apart"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::{Device, Fence};
use crate::drive::uring::Ring;
use crate::drive::{FileRange, Window};
use crate::engine::{Io, Shared};
use crate::queue::{Lane, Serves, Slot, Task};
use crate::source::Source;
use crate::ticket::{Job, Route};
use crate::trace::Stage;
use crate::{Error, Result};

type TaskOf<D> = Task<Arc<Job<D>>, <D as Device>::Staging>;

/// A chunk, and how far it is.
pub(crate) struct Chunk {
    pub(crate) index: u64,
    /// Where in the source.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) begun: Instant,
    pub(crate) read: Duration,
    pub(crate) copy: Duration,
    pub(crate) crc32: Option<u32>,
}

impl Chunk {
    fn new<D: Device>(job: &Job<D>, index: u64) -> Self {
        let range = job.chunks.range(index);
        Self {
            index,
            from: range.start,
            to: range.end,
            begun: Instant::now(),
            read: Duration::ZERO,
            copy: Duration::ZERO,
            crc32: None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        (self.to - self.from) as usize
    }

    /// Where in the destination.
    fn at<D: Device>(&self, job: &Job<D>) -> usize {
        job.at + self.from as usize
    }

    /// Takes the checksum of its bytes, if it is wanted.
    fn check<D: Device>(&mut self, job: &Job<D>, bytes: &[u8]) {
        if job.checksum {
            self.crc32 = Some(crc32fast::hash(bytes));
        }
    }

    /// Its bytes were read now.
    fn was_read<D: Device>(&mut self, shared: &Shared<D>, job: &Job<D>) {
        let end = Instant::now();
        self.read = end - self.begun;
        if let Some(trace) = &shared.trace {
            trace.record(Stage::Read, job.id, self.index, self.bytes() as u64, self.begun, end);
        }
    }
}

/// A copy whose fence was not reached when it began.
struct Flight<D: Device> {
    job: Arc<Job<D>>,
    chunk: Chunk,
    fence: D::Fence,
    since: Instant,
    /// Kept from others until the fence.
    slot: Option<D::Staging>,
    memory: Arc<D::Memory>,
    host: Option<Arc<D::Staging>>,
}

/// Where the fences go, by direction.
pub(crate) struct ToWaiters<D: Device> {
    inward: Sender<Flight<D>>,
    outward: Sender<Flight<D>>,
}

impl<D: Device> Clone for ToWaiters<D> {
    fn clone(&self) -> Self {
        Self { inward: self.inward.clone(), outward: self.outward.clone() }
    }
}

/// Threads that wait for fences, one for each direction, since those of one direction are reached in their order.
pub(crate) fn waiters<D: Device>(
    shared: &Arc<Shared<D>>,
    depth: usize,
) -> Result<(ToWaiters<D>, Vec<JoinHandle<()>>)> {
    let mut threads = Vec::new();
    let mut waiter = |name: &str| -> Result<Sender<Flight<D>>> {
        let (to, from): (Sender<Flight<D>>, Receiver<Flight<D>>) = bounded(depth);
        let shared = shared.clone();
        let wait = move || {
            for flight in from {
                land(&shared, flight);
            }
        };
        threads.push(spawn(format!("qvl-transfer {name}"), wait)?);
        Ok(to)
    };
    let to = ToWaiters { inward: waiter("in")?, outward: waiter("out")? };
    Ok((to, threads))
}

pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let failed = |error: std::io::Error| Error::Setting {
        name: "depth",
        got: name.clone(),
        expected: format!("the system starts no such thread: {error}"),
    };
    std::thread::Builder::new().name(name.clone()).spawn(work).map_err(failed)
}

/// The work of a thread until the board is closed.
pub(crate) fn serve<D: Device>(shared: &Shared<D>, serves: Serves, to: &ToWaiters<D>) {
    while let Some(task) = shared.board.take(serves) {
        run(shared, task, to);
    }
}

fn run<D: Device>(shared: &Shared<D>, task: TaskOf<D>, to: &ToWaiters<D>) {
    let Task { job, index, slot } = task;
    let mut chunk = Chunk::new(&job, index);
    let mut slot = match made(shared, slot) {
        Ok(slot) => slot,
        Err(error) => return shared.end_chunk(&job, &chunk, Err(error)),
    };
    if job.is_cancelled() {
        if let Some(slot) = slot {
            shared.board.give_back(slot);
        }
        return shared.end_chunk(&job, &chunk, Err(Error::Cancelled));
    }
    let read = read(shared, &job, &mut chunk, slot.as_mut());
    proceed(shared, job, chunk, slot, read, to);
}

/// The staging buffer of a task, made now if there was none.
fn made<D: Device>(shared: &Shared<D>, slot: Slot<D::Staging>) -> Result<Option<D::Staging>> {
    match slot {
        Slot::None => Ok(None),
        Slot::Given(slot) => Ok(Some(slot)),
        Slot::ToMake => {
            let made = shared.device.staging(shared.slot_bytes());
            if made.is_err() {
                shared.board.lost();
            }
            made.map(Some)
        }
    }
}

/// Brings a chunk to where it is copied from, or where it belongs. Returns how far into the staging buffer it begins.
fn read<D: Device>(
    shared: &Shared<D>,
    job: &Job<D>,
    chunk: &mut Chunk,
    mut slot: Option<&mut D::Staging>,
) -> Result<usize> {
    let (at, bytes) = (chunk.from, chunk.bytes());
    let source = job.progress.lock().source.clone();
    let skip = match (job.route, &source) {
        (Route::Direct | Route::Staged, _) if job.file.is_some() => {
            let Some(range) = &job.file else { return Ok(0) };
            let memory = memory_of(job);
            let target = Target::of(shared, job, chunk, range, slot.as_deref_mut(), memory.as_deref())?;
            let window = target.window;
            // SAFETY: the target can be written and is nobody else's (`Target::of`): the slot is this task's, and the
            // job owns the memory, of which the guard is kept here.
            let into = unsafe { std::slice::from_raw_parts_mut(target.into, window.bytes) };
            range.of().read_at(window.offset, into, window.needed)?;
            chunk.check(job, &into[window.skip..window.needed]);
            target.skip(job)
        }
        (Route::Staged, Some(source)) => {
            let Some(slot) = slot else { return Ok(0) };
            let into = &mut slot.as_mut()[..bytes];
            fill(&**source, at, into)?;
            chunk.check(job, into);
            0
        }
        (Route::Direct, Some(source)) => {
            let memory = memory_of(job);
            let window = memory.as_deref().and_then(|memory| shared.device.window(memory));
            let Some(window) = window else { return Ok(0) };
            // SAFETY: the chunk is inside the memory, which was checked when the job was made, and no other chunk is
            // there; the job owns the memory, of which a share is kept here.
            let into =
                unsafe { std::slice::from_raw_parts_mut(window.first.as_ptr().add(chunk.at(job)), bytes) };
            fill(&**source, at, into)?;
            chunk.check(job, into);
            0
        }
        (Route::FromMemory, _) => {
            if let Some(first) = job.bytes.part(at, bytes).filter(|_| job.checksum) {
                // SAFETY: the part is inside what the job's source lends (`Bytes`).
                chunk.check(job, unsafe { std::slice::from_raw_parts(first, bytes) });
            }
            return Ok(0);
        }
        (Route::Out, _) | (_, None) => return Ok(0),
    };
    chunk.was_read(shared, job);
    Ok(skip)
}

/// Has a source make its bytes.
fn fill(source: &dyn Source, at: u64, into: &mut [u8]) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| source.fill(at, into))).unwrap_or_else(|panic| {
        let why = format!("it panicked: {}", said(&*panic));
        Err(Error::Source { name: source.name(), at, why })
    })
}

/// Where a chunk of a file is read to.
#[derive(Clone, Copy)]
struct Target {
    /// The first byte of the window.
    into: *mut u8,
    window: Window,
}

// SAFETY: an address and numbers. Who writes to the address has reasons of his own why he may.
unsafe impl Send for Target {}

impl Target {
    /// Where the window of a chunk is read to: into the memory, or into the slot if it is staged. All of it is inside
    /// the memory with the room around it, or inside the slot, and no other chunk of the job writes there.
    ///
    /// # Errors
    /// [`Error::Source`] if that cannot be: when the transfer began, the source said something else of its file.
    fn of<D: Device>(
        shared: &Shared<D>,
        job: &Job<D>,
        chunk: &Chunk,
        range: &FileRange,
        slot: Option<&mut D::Staging>,
        memory: Option<&D::Memory>,
    ) -> Result<Self> {
        let window = range.window(chunk.from, chunk.bytes());
        let into = match job.route {
            Route::Direct => memory.and_then(|memory| shared.device.window(memory)).and_then(|host| {
                let at = chunk.at(job);
                let behind = window.bytes - window.skip;
                let inside = window.skip <= host.before + at && at + behind <= host.len + host.after;
                // Only the first chunk and the last have blocks that they do not fill.
                let first = chunk.index == 0 || window.skip == 0;
                let last = chunk.index + 1 == job.chunks.count() || window.bytes == window.needed;
                let first = (inside && first && last).then_some(at as isize - window.skip as isize)?;
                // SAFETY: this is inside the memory or the room before it, as was just checked.
                Some(unsafe { host.first.as_ptr().offset(first) })
            }),
            _ => {
                slot.map(AsMut::as_mut).and_then(|slot| slot.get_mut(..window.bytes)).map(<[u8]>::as_mut_ptr)
            }
        };
        let into = into.ok_or_else(|| Error::Source {
            name: range.name(),
            at: chunk.from,
            why: "its file is not the one that it had when the transfer began".to_owned(),
        })?;
        Ok(Self { into, window })
    }

    /// How far into the staging buffer the chunk begins.
    fn skip<D: Device>(&self, job: &Job<D>) -> usize {
        if job.route == Route::Staged { self.window.skip } else { 0 }
    }
}

fn memory_of<D: Device>(job: &Job<D>) -> Option<Arc<D::Memory>> {
    job.progress.lock().memory.clone()
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Copies a chunk that was read, and ends it or hands it to who waits for its fence.
fn proceed<D: Device>(
    shared: &Shared<D>,
    job: Arc<Job<D>>,
    mut chunk: Chunk,
    slot: Option<D::Staging>,
    read: Result<usize>,
    to: &ToWaiters<D>,
) {
    let skip = match read {
        Ok(skip) => skip,
        Err(error) => {
            if let Some(slot) = slot {
                shared.board.give_back(slot);
            }
            return shared.end_chunk(&job, &chunk, Err(error));
        }
    };
    if job.route == Route::Direct {
        return shared.end_chunk(&job, &chunk, Ok(()));
    }
    let (memory, host) = {
        let progress = job.progress.lock();
        (progress.memory.clone(), progress.host.clone())
    };
    let Some(memory) = memory else { unreachable!("a job has its memory until its last chunk has ended") };
    let since = Instant::now();
    let (at, bytes) = (chunk.at(&job), chunk.bytes());
    let begun = match job.route {
        Route::Out => {
            // SAFETY: the chunk lies within the host's memory, whose length the chunks are of (`fetch`).
            let to = unsafe { job.host_first.0.add(chunk.from as usize) };
            // SAFETY: the range of the device's memory was checked when the job was made; both belong to the job, and
            // the flight keeps them until the fence; chunks do not overlap.
            unsafe { shared.device.copy_out(&memory, at, to, bytes) }
        }
        Route::FromMemory => match job.bytes.part(chunk.from, bytes) {
            // SAFETY: the part is borrowed from the source (`Bytes`), which the job keeps until the flight has landed,
            // and nothing can change what is borrowed. The range of the destination was checked when the job was
            // made, chunks do not overlap, and the flight keeps the memory.
            Some(from) => unsafe { shared.device.copy_in(from, bytes, &memory, at) },
            None => Err(Error::Source {
                name: "memory".to_owned(),
                at: chunk.from,
                why: format!("it has no {bytes} bytes there: it said that it was longer"),
            }),
        },
        Route::Staged | Route::Direct => match &slot {
            Some(slot) => {
                let from = slot.as_ref()[skip..skip + bytes].as_ptr();
                // SAFETY: the slot stays in the flight, unwritten, until the fence; the rest as above.
                unsafe { shared.device.copy_in(from, bytes, &memory, at) }
            }
            None => Err(Error::Closed),
        },
    };
    match begun {
        Err(error) => {
            drop((memory, host));
            if let Some(slot) = slot {
                shared.board.give_back(slot);
            }
            shared.end_chunk(&job, &chunk, Err(error));
        }
        Ok(fence) => {
            let outward = job.route == Route::Out;
            chunk.copy = since.elapsed();
            let flight = Flight { job, chunk, fence, since, slot, memory, host };
            if flight.fence.is_reached() {
                return land(shared, flight);
            }
            let waiter = if outward { &to.outward } else { &to.inward };
            // The waiters outlive the workers.
            if let Err(unsent) = waiter.send(flight) {
                land(shared, unsent.into_inner());
            }
        }
    }
}

/// Waits for the fence of a copy and ends its chunk.
fn land<D: Device>(shared: &Shared<D>, flight: Flight<D>) {
    let Flight { job, mut chunk, fence, since, slot, memory, host } = flight;
    let result = fence.wait();
    let end = Instant::now();
    chunk.copy = end - since;
    if let Some(trace) = &shared.trace {
        trace.record(Stage::Copy, job.id, chunk.index, chunk.bytes() as u64, since, end);
    }
    drop((memory, host));
    if let Some(slot) = slot {
        shared.board.give_back(slot);
    }
    shared.end_chunk(&job, &chunk, result);
}

/// The kernel's ring, if files are to be read through it, and how they are read in a sentence.
pub(crate) fn ring<D: Device>(io: Io, depth: usize) -> Result<(Option<Ring<Reading<D>>>, String)> {
    let threads = |why: String| (None, format!("{depth} threads: {why}"));
    match io {
        Io::Threads => Ok(threads("as set".to_owned())),
        Io::Uring => Ok((Some(Ring::new(depth)?), format!("io_uring at depth {depth}: as set"))),
        Io::Auto => Ok(match Ring::new(depth) {
            Ok(ring) => (Some(ring), format!("io_uring at depth {depth}: it works here")),
            Err(error) => threads(error.to_string()),
        }),
    }
}

/// A chunk that the kernel reads.
pub(crate) struct Reading<D: Device> {
    job: Arc<Job<D>>,
    chunk: Chunk,
    target: Target,
    /// Where the kernel writes to, one of the two.
    slot: Option<D::Staging>,
    memory: Option<Arc<D::Memory>>,
}

/// The work of the thread with the ring until the board is closed.
///
/// A chunk that comes while others are under way waits for the next of them to end: a read of a chunk at most.
pub(crate) fn serve_ring<D: Device>(
    shared: &Shared<D>,
    ring: Ring<Reading<D>>,
    to: &ToWaiters<D>,
    depth: usize,
) {
    let serves = Serves::Only(Lane::Drive);
    // Dropped in a panic, the ring waits for what the kernel writes to, and then drops it.
    let mut ring = ring;
    let mut ended = Vec::with_capacity(depth);
    loop {
        while ring.in_flight() < depth {
            let idle = ring.in_flight() == 0;
            match if idle { shared.board.take(serves) } else { shared.board.try_take(serves) } {
                Some(task) => begin(shared, task, &mut ring, to),
                None if idle => return,
                None => break,
            }
        }
        ring.wait(&mut ended);
        for (reading, result) in ended.drain(..) {
            end(shared, reading, result, to);
        }
    }
}

/// Has the kernel read a chunk.
fn begin<D: Device>(shared: &Shared<D>, task: TaskOf<D>, ring: &mut Ring<Reading<D>>, to: &ToWaiters<D>) {
    let file = task.job.file.clone();
    // What lies in the page cache is copied by the processor, and dropped from it afterwards: nothing for a ring.
    let Some(range) = file.filter(|range| range.of().is_direct()) else { return run(shared, task, to) };
    let Task { job, index, slot } = task;
    let chunk = Chunk::new(&job, index);
    let mut slot = match made(shared, slot) {
        Ok(slot) => slot,
        Err(error) => return shared.end_chunk(&job, &chunk, Err(error)),
    };
    let memory = memory_of(&job);
    let target = if job.is_cancelled() {
        Err(Error::Cancelled)
    } else {
        Target::of(shared, &job, &chunk, &range, slot.as_mut(), memory.as_deref())
    };
    match target {
        Ok(target) => {
            let Target { into, window } = target;
            let reading = Reading { job, chunk, target, slot, memory };
            // SAFETY: the window can be written at `into` and is this chunk's alone (`Target::of`). The reading has
            // the slot, or the memory, that it lies in; neither moves its bytes when it is moved itself (`Device`).
            unsafe { ring.submit(reading, range.of(), window.offset, into, window.bytes, window.needed) };
        }
        Err(error) => {
            drop(memory);
            proceed(shared, job, chunk, slot, Err(error), to);
        }
    }
}

/// The kernel has read a chunk.
fn end<D: Device>(shared: &Shared<D>, reading: Reading<D>, result: Result<()>, to: &ToWaiters<D>) {
    let Reading { job, mut chunk, target, slot, memory } = reading;
    let result = if job.is_cancelled() { Err(Error::Cancelled) } else { result };
    let skip = result.map(|()| {
        let window = target.window;
        if job.checksum {
            // SAFETY: the kernel filled the window up to `needed`, in the slot or in the memory, which are here.
            let wanted = unsafe {
                std::slice::from_raw_parts(target.into.add(window.skip), window.needed - window.skip)
            };
            chunk.check(&job, wanted);
        }
        chunk.was_read(shared, &job);
        target.skip(&job)
    });
    // Before the chunk counts as ended.
    drop(memory);
    proceed(shared, job, chunk, slot, skip, to);
}

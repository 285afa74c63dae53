//! The engine: a board of chunks, a ring of staging buffers under a budget, and the workers that serve it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::device::{Device, check_range};
use crate::drive::FileRange;
use crate::memory::{BLOCK_BYTES, LARGE_PAGE_BYTES};
use crate::plan::Chunks;
use crate::queue::{Board, Lane, Priority, Serves, Shape};
use crate::source::Source;
use crate::stats::{Report, Stats};
use crate::ticket::{Bytes, HostFirst, In, Job, Out, Progress, Route, Submitted, Ticket};
use crate::trace::Trace;
use crate::worker::{self, Chunk};
use crate::{Error, Failed, Result};

/// How an engine works. The default is right for a drive that no one has measured;
/// [`Calibration`](crate::calibrate::Calibration) measures it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of a chunk: 2 MiB less 4096, so that a staging buffer is one large page. A multiple of 4096. Larger ones
    /// cost a drive fewer requests, smaller ones begin the copy sooner and need less staging.
    pub chunk_bytes: usize,
    /// Bytes of staging buffers, those in use and those that are free: 16 MiB. A buffer has a chunk and a block.
    pub staging_bytes: usize,
    /// Chunks that are under way at once: 8.
    pub depth: usize,
    /// How files are read.
    pub io: Io,
    /// Where the stages of each chunk are noted down, if anywhere.
    pub trace: Option<Trace>,
}

impl Default for Settings {
    fn default() -> Self {
        let chunk_bytes = LARGE_PAGE_BYTES - BLOCK_BYTES;
        Self { chunk_bytes, staging_bytes: 16 << 20, depth: 8, io: Io::Auto, trace: None }
    }
}

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// By the kernel's ring where it works, else by threads; [`Stats::io`] says which and why.
    #[default]
    Auto,
    /// By a thread for each chunk that is under way.
    Threads,
    /// By one thread with io_uring. An error where the kernel has none or refuses it.
    Uring,
}

/// What is to be moved to where.
pub struct Transfer<D: Device> {
    source: Arc<dyn Source>,
    memory: D::Memory,
    at: usize,
    priority: Priority,
    checksum: bool,
    expected_crc32: Option<u32>,
}

impl<D: Device> Transfer<D> {
    /// All of `source`, to the beginning of `memory`. Bytes of the memory behind it stay as they are.
    pub fn new(source: impl Source, memory: D::Memory) -> Self {
        Self {
            source: Arc::new(source),
            memory,
            at: 0,
            priority: Priority::Normal,
            checksum: false,
            expected_crc32: None,
        }
    }

    /// To `at` bytes into the memory.
    #[must_use]
    pub fn at(self, at: usize) -> Self {
        Self { at, ..self }
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Takes the CRC-32 of the bytes on their way, for [`Report::crc32`].
    #[must_use]
    pub fn checksum(self) -> Self {
        Self { checksum: true, ..self }
    }

    /// Fails with [`Error::Checksum`] if the bytes do not have this CRC-32.
    #[must_use]
    pub fn expect_crc32(self, crc32: u32) -> Self {
        Self { checksum: true, expected_crc32: Some(crc32), ..self }
    }
}

impl<D: Device> fmt::Debug for Transfer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, at, priority, .. } = self;
        f.debug_struct("Transfer")
            .field("source", source)
            .field("at", at)
            .field("priority", priority)
            .finish_non_exhaustive()
    }
}

/// Moves bytes to and from a device by workers of its own. Dropped, it ends what is under way and waits for it.
pub struct TransferEngine<D: Device> {
    shared: Arc<Shared<D>>,
    workers: Vec<JoinHandle<()>>,
    /// Those that wait for fences, one each way.
    waiters: Vec<JoinHandle<()>>,
}

pub(crate) struct Shared<D: Device> {
    pub(crate) device: Arc<D>,
    pub(crate) board: Board<Arc<Job<D>>, D::Staging>,
    pub(crate) chunk_bytes: usize,
    pub(crate) trace: Option<Trace>,
    pub(crate) count: Counts,
    /// Whether there is a ring; then it alone reads files.
    ring: bool,
    io: String,
    staging_budget_bytes: usize,
    next_job: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Counts {
    submitted: AtomicU64,
    arrived: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    chunks: AtomicU64,
    bytes: AtomicU64,
    read_ns: AtomicU64,
    copy_ns: AtomicU64,
}

impl<D: Device> TransferEngine<D> {
    /// Makes an engine and starts its workers. Staging buffers are made when they are first needed.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Device`] if a thread cannot be started.
    pub fn new(device: D, settings: Settings) -> Result<Self> {
        let Settings { chunk_bytes, staging_bytes, depth, io, trace } = settings;
        let wrong =
            |name, got: usize, expected: String| Err(Error::Setting { name, got: got.to_string(), expected });
        if chunk_bytes == 0 || chunk_bytes % BLOCK_BYTES != 0 || chunk_bytes > CHUNK_BYTES_MAX {
            let expected = format!("a multiple of {BLOCK_BYTES} up to {CHUNK_BYTES_MAX} is needed");
            return wrong("chunk_bytes", chunk_bytes, expected);
        }
        let slot_bytes = chunk_bytes + BLOCK_BYTES;
        if staging_bytes < slot_bytes {
            let expected = format!(
                "a chunk of {chunk_bytes} bytes and its block need {slot_bytes}: raise it, or lower chunk_bytes"
            );
            return wrong("staging_bytes", staging_bytes, expected);
        }
        if depth == 0 || depth > DEPTH_MAX {
            return wrong("depth", depth, format!("1 to {DEPTH_MAX} is needed"));
        }
        let (ring, io) = worker::ring(io, depth)?;
        let shared = Arc::new(Shared {
            device: Arc::new(device),
            board: Board::new(staging_bytes / slot_bytes),
            chunk_bytes,
            trace,
            count: Counts::default(),
            ring: ring.is_some(),
            io,
            staging_budget_bytes: staging_bytes,
            next_job: AtomicU64::new(0),
        });
        let mut engine = Self { shared: shared.clone(), workers: Vec::new(), waiters: Vec::new() };
        let (to_waiters, waiters) = worker::waiters(&shared, depth)?;
        engine.waiters = waiters;
        let serves = if ring.is_some() { Serves::Only(Lane::Thread) } else { Serves::All };
        for number in 0..depth {
            let (shared, to_waiters) = (shared.clone(), to_waiters.clone());
            let work = move || worker::serve(&shared, serves, &to_waiters);
            engine.workers.push(worker::spawn(format!("qvl-transfer {number}"), work)?);
        }
        if let Some(ring) = ring {
            let work = move || worker::serve_ring(&shared, ring, &to_waiters, depth);
            engine.workers.push(worker::spawn("qvl-transfer ring".to_owned(), work)?);
        }
        Ok(engine)
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.shared.device
    }

    /// Begins a transfer and returns its handle.
    ///
    /// # Errors
    /// [`Error::Range`] if the source does not fit behind `at`, [`Error::Closed`].
    pub fn submit(&self, transfer: Transfer<D>) -> Submitted<D, In> {
        let Transfer { source, mut memory, at, priority, checksum, expected_crc32 } = transfer;
        let shared = &self.shared;
        let look = match shared.look(&*source, &mut memory, at) {
            Ok(look) => look,
            Err(error) => return Err(Failed { error, memory }),
        };
        let job = shared.job(Some(source), look, at, memory, None, checksum, expected_crc32);
        shared.begin(&job, priority).map(|()| Ticket::new(job.clone(), shared.clone())).map_err(|error| {
            let memory = job.progress.lock().memory.take().and_then(Arc::into_inner);
            Failed { error, memory: memory.unwrap_or_else(|| unreachable!("no chunk was begun")) }
        })
    }

    /// Begins to copy the first bytes of `host` (all of it) from `memory`, `at` bytes into it.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Closed`].
    pub fn fetch(
        &self,
        memory: D::Memory,
        at: usize,
        host: D::Staging,
        priority: Priority,
    ) -> Submitted<D, Out> {
        let shared = &self.shared;
        let bytes = host.as_ref().len() as u64;
        if let Err(error) =
            check_range("the device's memory", at as u64, bytes, shared.device.bytes(&memory) as u64)
        {
            return Err(Failed { error, memory: (memory, host) });
        }
        let look = Look {
            route: Route::Out,
            chunks: Chunks::new(bytes, shared.chunk_bytes as u64, 0),
            file: None,
            bytes: Bytes::of(&[]),
        };
        let job = shared.job(None, look, at, memory, Some(host), false, None);
        shared.begin(&job, priority).map(|()| Ticket::new(job.clone(), shared.clone())).map_err(|error| {
            let mut progress = job.progress.lock();
            let memory = progress.memory.take().and_then(Arc::into_inner);
            let host = progress.host.take().and_then(Arc::into_inner);
            let memory = memory.zip(host).unwrap_or_else(|| unreachable!("no chunk was begun"));
            Failed { error, memory }
        })
    }

    /// What it did and what it holds.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let count = &shared.count;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let seconds = |ns: &AtomicU64| Duration::from_nanos(read(ns)).as_secs_f64();
        let (slots, free) = shared.board.slots();
        let slot_bytes = shared.slot_bytes() as u64;
        Stats {
            submitted: read(&count.submitted),
            arrived: read(&count.arrived),
            failed: read(&count.failed),
            cancelled: read(&count.cancelled),
            chunks: read(&count.chunks),
            bytes: read(&count.bytes),
            read_seconds: seconds(&count.read_ns),
            copy_seconds: seconds(&count.copy_ns),
            staging_bytes: slots as u64 * slot_bytes,
            staging_in_use_bytes: (slots - free) as u64 * slot_bytes,
            staging_budget_bytes: shared.staging_budget_bytes as u64,
            io: shared.io.clone(),
        }
    }

    /// Frees the staging buffers that nobody uses now.
    pub fn trim(&self) {
        drop(self.shared.board.drain());
    }
}

impl<D: Device> fmt::Debug for TransferEngine<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferEngine").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<D: Device> Drop for TransferEngine<D> {
    fn drop(&mut self) {
        for (job, untaken) in self.shared.board.close() {
            self.shared.end_untaken(&job, untaken, Error::Closed);
        }
        // The workers end with what they have; the waiters when no worker is left to send them fences.
        for thread in self.workers.drain(..).chain(self.waiters.drain(..)) {
            // A panic of a worker was one of this crate's: there is no one to tell.
            let _ = thread.join();
        }
        // A ticket that was leaked keeps the board, but no buffers.
        self.trim();
    }
}

/// What is known of a transfer before it begins.
struct Look {
    route: Route,
    chunks: Chunks,
    file: Option<FileRange>,
    bytes: Bytes,
}

impl<D: Device> Shared<D> {
    /// Bytes of a staging buffer: a chunk, and a block in case it begins within one.
    pub(crate) fn slot_bytes(&self) -> usize {
        self.chunk_bytes + BLOCK_BYTES
    }

    /// How the bytes of a source will go to `at` bytes into `memory`. All that is asked of the source but for filling is
    /// asked here, once.
    fn look(&self, source: &dyn Source, memory: &mut D::Memory, at: usize) -> Result<Look> {
        let (len, granularity) = (source.len(), source.granularity().max(1));
        let memory_len = self.device.bytes(memory);
        check_range("the destination", at as u64, len, memory_len as u64)?;
        if granularity > self.chunk_bytes {
            return Err(Error::Setting {
                name: "chunk_bytes",
                got: self.chunk_bytes.to_string(),
                expected: format!(
                    "{} is made in pieces of {granularity} bytes, and a chunk is whole pieces",
                    source.name()
                ),
            });
        }
        // Pieces and blocks of the drive need not agree.
        let file = source.file().filter(|range| granularity == 1 && range.bytes() >= len).cloned();
        let bytes = source.bytes().filter(|bytes| self.device.copies_from(bytes));
        let route = match (bytes, &file) {
            (Some(_), _) => Route::FromMemory,
            (None, Some(range)) => self.route_of_file(range, len, memory, at),
            // What makes bytes can make them where they belong.
            (None, None) if self.device.window(memory).is_some() => Route::Direct,
            (None, None) => Route::Staged,
        };
        let chunk_bytes = (self.chunk_bytes - self.chunk_bytes % granularity) as u64;
        let offset = file.as_ref().map_or(0, FileRange::offset);
        let chunks = Chunks::new(len, chunk_bytes, offset);
        Ok(Look { route, chunks, file, bytes: Bytes::of(bytes.unwrap_or_default()) })
    }

    fn route_of_file(&self, range: &FileRange, len: u64, memory: &mut D::Memory, at: usize) -> Route {
        // Moving the beginning loses what is in the memory: only where all of it is replaced.
        if at == 0 && len == self.device.bytes(memory) as u64 {
            self.device.align_like(memory, range.offset());
        }
        let Some(window) = self.device.window(memory) else { return Route::Staged };
        if !range.of().is_direct() {
            return Route::Direct;
        }
        let len = len as usize;
        let whole = range.window(0, len);
        let behind = whole.bytes - whole.needed;
        let fits = (window.first.as_ptr() as usize + at) % BLOCK_BYTES == whole.skip
            && window.before + at >= whole.skip
            && window.after + (window.len - at - len) >= behind;
        // With bytes of others before or behind it, whole blocks would overwrite them.
        let alone = (at == 0 || whole.skip == 0) && (behind == 0 || at + len == window.len);
        if fits && alone { Route::Direct } else { Route::Staged }
    }

    fn job(
        &self,
        source: Option<Arc<dyn Source>>,
        look: Look,
        at: usize,
        memory: D::Memory,
        mut host: Option<D::Staging>,
        checksum: bool,
        expected_crc32: Option<u32>,
    ) -> Arc<Job<D>> {
        let Look { route, chunks, file, bytes } = look;
        let count = chunks.count();
        Arc::new(Job {
            id: self.next_job.fetch_add(1, Ordering::Relaxed),
            route,
            file,
            bytes,
            host_first: HostFirst(
                host.as_mut().map_or(std::ptr::null_mut(), |host| host.as_mut().as_mut_ptr()),
            ),
            at,
            chunks,
            checksum,
            expected_crc32,
            cancelled: AtomicBool::new(false),
            submitted: Instant::now(),
            progress: Mutex::new(Progress {
                memory: Some(Arc::new(memory)),
                host: host.map(Arc::new),
                source,
                remaining: count,
                error: None,
                report: Report::default(),
                first: None,
                crcs: vec![0; if checksum { count as usize } else { 0 }],
                ended: false,
                waker: None,
            }),
            ended: Condvar::new(),
        })
    }

    /// Puts a job on the board.
    fn begin(&self, job: &Arc<Job<D>>, priority: Priority) -> Result<()> {
        let chunks = job.chunks.count();
        if chunks == 0 {
            self.count.submitted.fetch_add(1, Ordering::Relaxed);
            self.conclude(job);
            return Ok(());
        }
        let past_cache = job.file.as_ref().is_some_and(|range| range.of().is_direct());
        let on_ring = self.ring && past_cache && job.route != Route::FromMemory;
        let lane = if on_ring { Lane::Drive } else { Lane::Thread };
        let shape = Shape { id: job.id, priority, chunks, lane, staged: job.route == Route::Staged };
        self.board.push(job.clone(), shape).map_err(|_| Error::Closed)?;
        self.count.submitted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn cancel(&self, job: &Arc<Job<D>>) {
        job.cancelled.store(true, Ordering::Relaxed);
        let untaken = self.board.abandon(job.id);
        self.end_untaken(job, untaken, Error::Cancelled);
    }

    /// Counts chunks as ended that nobody will take.
    fn end_untaken(&self, job: &Arc<Job<D>>, untaken: u64, error: Error) {
        if untaken == 0 {
            return;
        }
        let mut progress = job.progress.lock();
        progress.error.get_or_insert(error);
        progress.remaining -= untaken;
        let last = progress.remaining == 0;
        drop(progress);
        if last {
            self.conclude(job);
        }
    }

    /// A chunk ended; it has let go of the memory.
    pub(crate) fn end_chunk(&self, job: &Arc<Job<D>>, chunk: &Chunk, result: Result<()>) {
        let count = &self.count;
        let ns = |time: Duration| time.as_nanos() as u64;
        count.chunks.fetch_add(1, Ordering::Relaxed);
        count.read_ns.fetch_add(ns(chunk.read), Ordering::Relaxed);
        count.copy_ns.fetch_add(ns(chunk.copy), Ordering::Relaxed);
        let untaken = match &result {
            Ok(()) => {
                count.bytes.fetch_add(chunk.bytes() as u64, Ordering::Relaxed);
                0
            }
            Err(_) => self.board.abandon(job.id),
        };
        let mut progress = job.progress.lock();
        progress.remaining -= 1 + untaken;
        progress.first = Some(progress.first.map_or(chunk.begun, |first| first.min(chunk.begun)));
        match result {
            Ok(()) => {
                let report = &mut progress.report;
                report.bytes += chunk.bytes() as u64;
                report.chunks += 1;
                report.staged_chunks += u64::from(job.route == Route::Staged);
                report.read += chunk.read;
                report.copy += chunk.copy;
                if let (Some(crc), Some(place)) = (chunk.crc32, progress.crcs.get_mut(chunk.index as usize)) {
                    *place = crc;
                }
            }
            Err(error) => _ = progress.error.get_or_insert(error),
        }
        let last = progress.remaining == 0;
        drop(progress);
        if last {
            self.conclude(job);
        }
    }

    /// The end of a job: every chunk has ended, and has let go of memory and source.
    fn conclude(&self, job: &Job<D>) {
        // Its drop may run code of the caller's, and unlock memory that the caller locks again when the ticket says
        // that it has ended: so before that, and not under the lock.
        let source = job.progress.lock().source.take();
        let what = source.as_ref().filter(|_| job.expected_crc32.is_some()).map(Source::name);
        drop(source);
        let mut progress = job.progress.lock();
        let now = Instant::now();
        progress.report.wall = now - job.submitted;
        progress.report.queued = progress.first.map_or(Duration::ZERO, |first| first - job.submitted);
        if progress.error.is_none() && job.checksum {
            let got = self.crc32(job, &progress.crcs);
            progress.report.crc32 = Some(got);
            if let Some(expected) = job.expected_crc32.filter(|&expected| expected != got) {
                progress.error = Some(Error::Checksum { what: what.unwrap_or_default(), expected, got });
            }
        }
        let counter = match &progress.error {
            None => &self.count.arrived,
            Some(Error::Cancelled) => &self.count.cancelled,
            Some(_) => &self.count.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        progress.ended = true;
        let waker = progress.waker.take();
        drop(progress);
        job.ended.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The checksum of the whole from those of its chunks.
    fn crc32(&self, job: &Job<D>, crcs: &[u32]) -> u32 {
        let mut whole = crc32fast::Hasher::new();
        for (index, &crc) in crcs.iter().enumerate() {
            let range = job.chunks.range(index as u64);
            whole.combine(&crc32fast::Hasher::new_with_initial_len(crc, range.end - range.start));
        }
        whole.finalize()
    }
}

const CHUNK_BYTES_MAX: usize = 1 << 30;
const DEPTH_MAX: usize = 256;

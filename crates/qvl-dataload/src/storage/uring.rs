//! Reading ahead with io_uring: the kernel has many reads at once without a thread for each.
//!
//! The kernel writes into buffers while nobody waits for it, so a buffer in flight belongs to it: it is lent as a
//! whole, out of reach for anyone else, and taken back when every operation on it has ended. Dropping the engine
//! waits for those operations. Should the ring itself fail, what it had is never freed.

#![expect(unsafe_code, reason = "the kernel is given addresses of buffers and of names")]

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::engine::{Done, Engine, Request};
use super::file::{Extent, Mode};
use super::window::{self, Window};
use crate::buffer::Buffer;
use crate::{Error, Result};

/// One ring that files are opened and read through.
pub struct Uring {
    ring: IoUring,
    mode: Mode,
    depth: usize,
    /// Requests that have not ended.
    reads: HashMap<u64, Read>,
    next_read: u64,
    /// Operations that wait for room in the ring.
    waiting: VecDeque<Operation>,
    /// Operations that the kernel has, by the number it gives back.
    in_flight: HashMap<u64, Operation>,
    next_operation: u64,
    done: VecDeque<Done>,
    /// What made the ring unusable.
    broken: Option<Errno>,
    /// It is being dropped: nothing new is begun.
    closing: bool,
}

/// A request and how far it is.
struct Read {
    tag: u64,
    extent: Extent,
    since: Instant,
    window: Window,
    lent: Lent,
    /// Read by the kernel while the file is being opened.
    path: Option<CString>,
    file: Option<Arc<File>>,
    /// Operations that have not ended, those that wait among them.
    operations: usize,
    /// Bytes of the window up to which it is filled once all operations have ended.
    end: usize,
    failed: Option<io::Error>,
}

/// What the kernel is asked to do; `read` is the number of the request.
#[derive(Clone, Copy)]
enum Operation {
    Open { read: u64 },
    Fill { read: u64, from: usize, to: usize, filled: usize },
}

impl Operation {
    fn read(self) -> u64 {
        match self {
            Self::Open { read } | Self::Fill { read, .. } => read,
        }
    }
}

impl Uring {
    /// A ring with up to `depth` operations in flight, 1 to 4096, each of at most 1 MiB; longer requests are several.
    /// It reads past the page cache if it is to be `direct`.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Storage`] if the kernel is too old (5.6) or refuses, as in many containers.
    pub fn new(depth: usize, direct: bool) -> Result<Self> {
        let entries = u32::try_from(depth).ok().filter(|entries| (1..=DEPTH_MAX).contains(entries));
        let Some(entries) = entries else {
            let expected = format!("1 to {DEPTH_MAX}");
            return Err(Error::Setting { setting: "depth", got: depth.to_string(), expected });
        };
        let refused = |why: String| Error::Storage { what: "io_uring", why };
        let ring = IoUring::new(entries).map_err(|e| refused(reason(&e)))?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|e| refused(format!("it does not say what it can do: {e}")))?;
        for (code, name) in [(opcode::Read::CODE, "reading"), (opcode::OpenAt::CODE, "opening files")] {
            if !probe.is_supported(code) {
                return Err(refused(format!(
                    "this kernel's has no operation for {name} (it takes Linux 5.6)"
                )));
            }
        }
        Ok(Self {
            ring,
            mode: Mode::of(direct),
            depth,
            reads: HashMap::new(),
            next_read: 0,
            waiting: VecDeque::new(),
            in_flight: HashMap::new(),
            next_operation: 0,
            done: VecDeque::new(),
            broken: None,
            closing: false,
        })
    }

    /// The request as it is kept, or why it cannot be begun.
    fn begin(&self, tag: u64, extent: Extent, buffer: Buffer, since: Instant) -> Result<Read> {
        let window = Window::new(&extent, self.mode)?;
        let file = extent.file.opened(self.mode);
        let path = match &file {
            Some(_) => None,
            None => Some(
                CString::new(extent.file.path().as_os_str().as_bytes())
                    .map_err(|e| extent.file.failed(io::Error::new(io::ErrorKind::InvalidInput, e)))?,
            ),
        };
        if let Some(errno) = self.broken {
            return Err(extent.file.failed(errno.into()));
        }
        let lent = window::guarded(&extent, || Lent::new(buffer, &window))?;
        let end = window.len;
        Ok(Read { tag, extent, since, window, lent, path, file, operations: 0, end, failed: None })
    }

    /// Queues the operations that fill the window, a chunk each.
    fn fill(&mut self, read: u64) {
        let Some(state) = self.reads.get_mut(&read) else { return };
        for from in (0..state.window.len).step_by(CHUNK_BYTES) {
            let to = state.window.len.min(from + CHUNK_BYTES);
            state.operations += 1;
            self.waiting.push_back(Operation::Fill { read, from, to, filled: from });
        }
    }

    /// Gives the ring as many of the waiting operations as it may have at once.
    fn push(&mut self) {
        while self.in_flight.len() < self.depth {
            let Some(operation) = self.waiting.pop_front() else { return };
            let Some(state) = self.reads.get(&operation.read()) else { continue };
            if state.failed.is_some() || self.broken.is_some() {
                self.ended(operation.read());
                continue;
            }
            let number = self.next_operation;
            let entry = state.entry(operation, self.mode).user_data(number);
            // SAFETY: the memory that `entry` names is the name and the lent buffer of its request, which stays in
            // `reads` until each of its `operations`, this one among them, has ended (`ended` below).
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                // The ring has room for `depth`, so this is a full queue that the kernel has not taken yet.
                self.waiting.push_front(operation);
                return;
            }
            self.next_operation += 1;
            self.in_flight.insert(number, operation);
        }
    }

    /// Hands what is queued to the kernel, waits for at least `want` ends, and takes in what has ended.
    fn enter(&mut self, want: usize) {
        self.push();
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(e) => match Errno::from_io_error(&e) {
                // To be tried again: by the caller, who asks until there is what he wants.
                Some(Errno::INTR) => {}
                Some(Errno::AGAIN | Errno::BUSY) => std::thread::yield_now(),
                errno => self.broke(errno.unwrap_or(Errno::IO)),
            },
        }
        self.reap();
    }

    fn reap(&mut self) {
        while let Some(entry) = { self.ring.completion().next() } {
            self.landed(&entry);
        }
        self.push();
    }

    fn landed(&mut self, entry: &cqueue::Entry) {
        let Some(operation) = self.in_flight.remove(&entry.user_data()) else { return };
        let result = u32::try_from(entry.result())
            .map_err(|_| Errno::from_raw_os_error(entry.result().saturating_neg()));
        if let Err(Errno::INTR | Errno::AGAIN | Errno::CANCELED) = result {
            // Cancelled by the kernel when the thread that submitted it ended: another thread has the engine now.
            if !self.closing {
                self.waiting.push_back(operation);
                return;
            }
        }
        match operation {
            Operation::Open { read } => self.opened(read, result),
            Operation::Fill { read, from, to, filled } => self.filled(read, from..to, filled, result),
        }
        self.ended(operation.read());
    }

    fn opened(&mut self, read: u64, result: Result<u32, Errno>) {
        // A descriptor is at most `i32::MAX`, being the positive half of such a number.
        let file = result.map(|descriptor| {
            // SAFETY: the kernel has just opened this descriptor for this operation, which is removed from those in
            // flight, so it is taken once.
            File::from(unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) })
        });
        let Some(state) = self.reads.get_mut(&read) else { return };
        match file {
            Ok(file) => {
                state.file = Some(state.extent.file.keep(file, self.mode));
                if !self.closing {
                    self.fill(read);
                }
            }
            Err(errno) => state.failed = Some(errno.into()),
        }
    }

    fn filled(
        &mut self,
        read: u64,
        chunk: std::ops::Range<usize>,
        filled: usize,
        result: Result<u32, Errno>,
    ) {
        let Some(state) = self.reads.get_mut(&read) else { return };
        match result {
            Err(errno) => state.failed = Some(errno.into()),
            Ok(count) => {
                let now = state.window.resume(filled) + count as usize;
                if now <= filled {
                    state.end = state.end.min(filled);
                } else if now < chunk.end.min(state.window.needed()) && !self.closing {
                    state.operations += 1;
                    let (from, to) = (chunk.start, chunk.end);
                    self.waiting.push_front(Operation::Fill { read, from, to, filled: now });
                } else if now < chunk.end {
                    // Enough: what is needed ends in this chunk.
                    state.end = state.end.min(now);
                }
            }
        }
    }

    /// One operation of a request has ended; with the last one the request has.
    fn ended(&mut self, read: u64) {
        let Some(state) = self.reads.get_mut(&read) else { return };
        state.operations -= 1;
        if state.operations > 0 {
            return;
        }
        let Some(state) = self.reads.remove(&read) else { return };
        let Read { tag, extent, since, window, lent, end, failed, .. } = state;
        let pad = lent.pad;
        // SAFETY: none of its operations is left, neither in flight nor waiting: they were counted down above.
        let buffer = unsafe { lent.back() };
        let result = match (failed, self.broken) {
            (Some(error), _) => Err(extent.file.refused(error, self.mode)),
            (None, Some(errno)) => Err(extent.file.failed(errno.into())),
            (None, None) => window.cut(&extent, buffer, pad, end),
        };
        self.done.push_back(Done { tag, result, elapsed: since.elapsed() });
    }

    /// The ring has failed. Every request ends in that error; the buffers that the kernel has stay lent for ever.
    fn broke(&mut self, errno: Errno) {
        self.broken = Some(errno);
        self.reap();
        let lost: Vec<u64> = self.in_flight.drain().map(|(_, operation)| operation.read()).collect();
        while let Some(operation) = self.waiting.pop_front() {
            if !lost.contains(&operation.read()) {
                self.ended(operation.read());
            }
        }
        for read in lost {
            let Some(state) = self.reads.remove(&read) else { continue };
            let error = state.extent.file.failed(errno.into());
            // The kernel may still read the name; the buffer leaks with `lent`.
            std::mem::forget(state.path);
            self.done.push_back(Done { tag: state.tag, result: Err(error), elapsed: state.since.elapsed() });
        }
    }
}

impl Read {
    fn entry(&self, operation: Operation, mode: Mode) -> squeue::Entry {
        match operation {
            Operation::Open { .. } => {
                let name = self.path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
                let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::LARGEFILE;
                if mode == Mode::Direct {
                    flags |= OFlags::DIRECT;
                }
                let folder = types::Fd(rustix::fs::CWD.as_raw_fd());
                opcode::OpenAt::new(folder, name).flags(flags.bits().cast_signed()).build()
            }
            Operation::Fill { to, filled, .. } => {
                let from = self.window.resume(filled);
                // A descriptor of -1 is an error of the operation, should the file be missing here.
                let file = types::Fd(self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd));
                let (address, len) = self.lent.part(from, to);
                opcode::Read::new(file, address, len).offset(self.window.start + from as u64).build()
            }
        }
    }
}

impl Engine for Uring {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, Request { tag, extent, buffer }: Request) {
        let since = Instant::now();
        let file = extent.file.clone();
        match self.begin(tag, extent, buffer, since) {
            Err(error) => {
                // A file that is not there is that first of all, as it is for the other engines.
                let error = file.len().err().filter(|e| matches!(e, Error::Missing { .. })).unwrap_or(error);
                self.done.push_back(Done { tag, result: Err(error), elapsed: since.elapsed() });
            }
            Ok(mut state) => {
                let read = self.next_read;
                self.next_read += 1;
                let open = state.file.is_none();
                // One more while it is being set up: a request without bytes ends here.
                state.operations = 1;
                self.reads.insert(read, state);
                if open {
                    self.waiting.push_back(Operation::Open { read });
                } else {
                    self.fill(read);
                    self.ended(read);
                }
                self.enter(0);
            }
        }
    }

    fn complete(&mut self, wait: bool) -> Option<Done> {
        if self.done.is_empty() && !self.reads.is_empty() {
            self.enter(0);
        }
        while wait && self.done.is_empty() && !self.reads.is_empty() {
            self.enter(1);
        }
        self.done.pop_front()
    }
}

impl Drop for Uring {
    /// Waits for what the kernel has; what waits for its turn is not begun.
    fn drop(&mut self) {
        self.closing = true;
        for operation in std::mem::take(&mut self.waiting) {
            self.ended(operation.read());
        }
        while !self.in_flight.is_empty() {
            self.enter(1);
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("depth", &self.depth)
            .field("mode", &self.mode)
            .field("requests", &self.reads.len())
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

/// A buffer that the kernel has. Unless it is taken back it leaks, and so does its memory: never freed too early.
struct Lent {
    /// From a box, and not used while the slice at `start` is.
    whole: NonNull<Buffer>,
    /// The window: what is left of an exclusive borrow of `whole` that lasts until it is taken back, so that not
    /// even the code of a caller's own memory may touch the bytes.
    start: NonNull<u8>,
    len: usize,
    /// Where in the buffer the window begins.
    pad: usize,
}

// SAFETY: it is the only way to its buffer, and a `Buffer` may be sent.
unsafe impl Send for Lent {}

impl Lent {
    /// # Errors
    /// [`Error::NoBuffer`] if the buffer is too small for the window.
    fn new(buffer: Buffer, window: &Window) -> Result<Self> {
        window.pad(&buffer)?;
        let mut whole = NonNull::from(Box::leak(Box::new(buffer)));
        // SAFETY: it was a box a line above, and nobody else has the pointer. The borrow ends with `back`.
        let bytes: &mut [u8] = unsafe { whole.as_mut() };
        // Memory of the caller's own might give other bytes now than it did above; then it stays lent.
        let pad = window.pad(bytes)?;
        let bytes = &mut bytes[pad..][..window.len];
        let (start, len) = (NonNull::from(&mut *bytes).cast(), bytes.len());
        Ok(Self { whole, start, len, pad })
    }

    /// Address and length of a part of the window, which is not longer than a chunk.
    fn part(&self, from: usize, to: usize) -> (*mut u8, u32) {
        assert!(from <= to && to <= self.len, "a chunk lies in its window");
        // The assertion keeps it inside, and a chunk is far below 4 GiB.
        (self.start.as_ptr().wrapping_add(from), (to - from) as u32)
    }

    /// The buffer again.
    ///
    /// # Safety
    /// The kernel has no operation on it.
    unsafe fn back(self) -> Buffer {
        // SAFETY: `whole` comes from a box (`new`) and is taken back once, since `self` is gone after; nobody uses
        // the slice at `start` any more, as the caller says.
        *unsafe { Box::from_raw(self.whole.as_ptr()) }
    }
}

/// Why there is no ring, with what to do about it where that is known.
fn reason(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => format!("this kernel has none, or a sandbox hides it: {error}"),
        Some(Errno::PERM | Errno::ACCESS) => {
            format!("it is forbidden here (kernel.io_uring_disabled, or the rules of a container): {error}")
        }
        Some(Errno::NOMEM) => {
            format!("no memory for the ring, perhaps by the limit of locked memory: {error}")
        }
        _ => error.to_string(),
    }
}

/// Operations that a ring may have at once.
const DEPTH_MAX: u32 = 4096;

/// Bytes of one read: large enough to cost little each, small enough that one file keeps several in flight.
const CHUNK_BYTES: usize = 1 << 20;

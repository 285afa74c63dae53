//! The handle of a transfer, and the job behind it.
//!
//! The job, not the ticket, owns source, staging and destination. It lives until its last chunk has ended, whatever
//! becomes of the ticket: dropped, it cancels; leaked, it leaks the destination and nothing else.

#![expect(unsafe_code, reason = "a job knows the address of memory that it owns")]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::device::Device;
use crate::drive::FileRange;
use crate::engine::Shared;
use crate::plan::Chunks;
pub use crate::queue::Priority;
use crate::source::Source;
use crate::stats::Report;
use crate::{Error, Failed};

/// A transfer that is under way. Waits ([`Self::wait`]), or is awaited: it is a future for any executor.
///
/// Dropped before its end, it cancels the transfer: chunks that were begun end, the others never begin, and the
/// destination is freed after the last one.
pub struct Ticket<D: Device, W: Way<D> = In> {
    job: Arc<Job<D>>,
    shared: Arc<Shared<D>>,
    way: std::marker::PhantomData<fn() -> W>,
    taken: bool,
}

/// The end of a transfer: it arrived, or why it did not, with its memory in both.
pub type Outcome<M> = std::result::Result<Done<M>, Failed<M>>;

/// What a submission gives: a ticket, or why there is none, with the memory.
pub type Submitted<D, W> = std::result::Result<Ticket<D, W>, Failed<<W as Way<D>>::Memory>>;

/// A transfer that arrived.
pub struct Done<M> {
    /// What was given to it: the destination with the bytes in it.
    pub memory: M,
    /// What it took.
    pub report: Report,
}

impl<M> fmt::Debug for Done<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").field("report", &self.report).finish_non_exhaustive()
    }
}

/// The direction of a transfer, and what its ticket gives back. Implemented by [`In`] and [`Out`].
pub trait Way<D: Device>: sealed::Sealed {
    /// What was given to the transfer.
    type Memory;
    #[doc(hidden)]
    fn assemble(memory: D::Memory, host: Option<D::Staging>) -> Self::Memory;
}

/// To the device; gives its memory back.
#[derive(Debug)]
pub enum In {}

/// From the device; gives its memory back, and the host's with the bytes.
#[derive(Debug)]
pub enum Out {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::In {}
    impl Sealed for super::Out {}
}

impl<D: Device> Way<D> for In {
    type Memory = D::Memory;

    fn assemble(memory: D::Memory, _: Option<D::Staging>) -> D::Memory {
        memory
    }
}

impl<D: Device> Way<D> for Out {
    type Memory = (D::Memory, D::Staging);

    fn assemble(memory: D::Memory, host: Option<D::Staging>) -> Self::Memory {
        (memory, host.unwrap_or_else(|| unreachable!("a transfer from the device has host memory")))
    }
}

/// What a ticket's transfer is.
pub(crate) struct Job<D: Device> {
    pub(crate) id: u64,
    pub(crate) route: Route,
    /// The range of a file that the source is.
    pub(crate) file: Option<FileRange>,
    /// The source's bytes, if they are copied from where they are.
    pub(crate) bytes: Bytes,
    /// Where the bytes go that come from the device.
    pub(crate) host_first: HostFirst,
    /// Where in the device's memory it begins.
    pub(crate) at: usize,
    pub(crate) chunks: Chunks,
    pub(crate) checksum: bool,
    pub(crate) expected_crc32: Option<u32>,
    pub(crate) cancelled: AtomicBool,
    pub(crate) submitted: Instant,
    pub(crate) progress: Mutex<Progress<D>>,
    pub(crate) ended: Condvar,
}

/// Where a source's bytes are; none but of [`Route::FromMemory`]. They stay there while the job has the source: they
/// are borrowed from it.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    first: *const u8,
    len: usize,
}

impl Bytes {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { first: bytes.as_ptr(), len: bytes.len() }
    }

    /// A part of them, if they have it.
    pub(crate) fn part(&self, at: u64, len: usize) -> Option<*const u8> {
        let at = usize::try_from(at).ok()?;
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        inside.then(|| self.first.wrapping_add(at))
    }
}

// SAFETY: an address, which is read from while the job keeps what it is borrowed from; a `Source` can be shared among
// threads, and so can what it lends.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

/// The first byte of the host's memory of a job that comes from the device; null else.
#[derive(Clone, Copy)]
pub(crate) struct HostFirst(pub(crate) *mut u8);

// SAFETY: an address. It is written through under the contract of `Device::copy_out`, whose memory the job owns.
unsafe impl Send for HostFirst {}
// SAFETY: as above.
unsafe impl Sync for HostFirst {}

/// How the bytes of a job go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// From the drive or the source to where they belong.
    Direct,
    /// From the source's memory to where they belong.
    FromMemory,
    /// From the drive or the source through a staging buffer.
    Staged,
    /// From the device to the host.
    Out,
}

pub(crate) struct Progress<D: Device> {
    pub(crate) memory: Option<Arc<D::Memory>>,
    pub(crate) host: Option<Arc<D::Staging>>,
    /// Until the last chunk has ended.
    pub(crate) source: Option<Arc<dyn Source>>,
    /// Chunks that have not ended.
    pub(crate) remaining: u64,
    pub(crate) error: Option<Error>,
    pub(crate) report: Report,
    pub(crate) first: Option<Instant>,
    /// The CRC-32 of each chunk.
    pub(crate) crcs: Vec<u32>,
    pub(crate) ended: bool,
    pub(crate) waker: Option<Waker>,
}

impl<D: Device, W: Way<D>> Ticket<D, W> {
    pub(crate) fn new(job: Arc<Job<D>>, shared: Arc<Shared<D>>) -> Self {
        Self { job, shared, way: std::marker::PhantomData, taken: false }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What went wrong with any part of it, and the memory.
    pub fn wait(mut self) -> Outcome<W::Memory> {
        let mut progress = self.job.progress.lock();
        while !progress.ended {
            self.job.ended.wait(&mut progress);
        }
        let outcome = take::<D, W>(&mut progress);
        drop(progress);
        self.taken = true;
        outcome
    }

    /// Waits for the end for at most so long; gives the ticket back after that.
    ///
    /// # Errors
    /// The ticket, if the transfer goes on.
    pub fn wait_for(self, at_most: Duration) -> Result<Outcome<W::Memory>, Self> {
        let deadline = Instant::now() + at_most;
        {
            let mut progress = self.job.progress.lock();
            while !progress.ended {
                if self.job.ended.wait_until(&mut progress, deadline).timed_out() {
                    break;
                }
            }
        }
        if self.is_ended() { Ok(self.wait()) } else { Err(self) }
    }

    /// Whether [`Self::wait`] would return at once.
    pub fn is_ended(&self) -> bool {
        self.job.progress.lock().ended
    }

    /// Ends the transfer early: chunks that were begun end, the others never begin, and the error is
    /// [`Error::Cancelled`]. Does not wait. Nothing happens if it has ended already.
    pub fn cancel(&self) {
        self.shared.cancel(&self.job);
    }
}

impl<D: Device, W: Way<D>> Future for Ticket<D, W> {
    type Output = Outcome<W::Memory>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut progress = self.job.progress.lock();
        if !progress.ended {
            match &mut progress.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let outcome = take::<D, W>(&mut progress);
        drop(progress);
        self.taken = true;
        Poll::Ready(outcome)
    }
}

impl<D: Device, W: Way<D>> Drop for Ticket<D, W> {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.cancel(&self.job);
        }
    }
}

impl<D: Device, W: Way<D>> fmt::Debug for Ticket<D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("job", &self.job.id)
            .field("ended", &self.is_ended())
            .finish_non_exhaustive()
    }
}

/// What an ended job has to give. Once.
fn take<D: Device, W: Way<D>>(progress: &mut Progress<D>) -> Outcome<W::Memory> {
    let memory = alone(progress.memory.take());
    let host = progress.host.take().map(|host| alone(Some(host)));
    let memory = W::assemble(memory, host);
    match progress.error.take() {
        None => Ok(Done { memory, report: std::mem::take(&mut progress.report) }),
        Some(error) => Err(Failed { error, memory }),
    }
}

/// Takes out of an `Arc` that everyone else has let go of: a chunk lets go before it counts as ended.
fn alone<T>(shared: Option<Arc<T>>) -> T {
    let alone = shared.and_then(Arc::into_inner);
    alone.unwrap_or_else(|| unreachable!("a ticket gives its outcome once, after every chunk has let go"))
}

impl<D: Device> Job<D> {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

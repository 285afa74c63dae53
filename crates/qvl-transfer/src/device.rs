//! Where bytes go: the trait, and one file for each kind of device.
//!
//! A copy begins and ends at different times, and between the two both sides must stay where they are. The
//! [`TransferEngine`](crate::TransferEngine) sees to that: it owns source, staging and destination until the fence.
//! That is why the functions that begin a copy are unsafe, and nothing else of this crate's interface is: they are
//! called by the engine, not by its users.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
pub mod link;

use crate::{Error, Result};

pub use crate::memory::{HostWindow, Usage};

/// Something with memory of its own, or with the host's, that bytes are brought to and back from.
///
/// # Safety
/// What the functions say of memory is relied on: [`Self::bytes`] of an allocation stays the same, a
/// [`window`](Self::window) is there and may be written while the memory lives, the slices of a [`Self::Staging`] have
/// the same address and length each time, also after it was moved, and a fence is reached when neither side of its
/// copy is used any more, not before.
#[expect(unsafe_code, reason = "a copy that goes on after the call has a contract that types cannot say")]
pub unsafe trait Device: Send + Sync + 'static {
    /// Memory to compute with. Freed when it is dropped, which is when no copy uses it.
    type Memory: Send + Sync + 'static;
    /// Host memory that this device copies from and to at its full speed, such as page-locked memory.
    type Staging: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static;
    /// The end of one copy.
    type Fence: Fence;

    /// What it is called in messages.
    fn name(&self) -> &str;

    /// `bytes` bytes of its memory, of unknown content.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] over its budget; [`Error::Device`].
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// The length of some of its memory, in bytes.
    fn bytes(&self, memory: &Self::Memory) -> usize;

    /// What memory of this length takes of the device's budget, in bytes.
    fn charge(&self, bytes: usize) -> usize {
        bytes
    }

    /// Host memory to copy from and to, aligned to 4096 bytes.
    ///
    /// # Errors
    /// As [`Self::allocate`].
    fn staging(&self, bytes: usize) -> Result<Self::Staging>;

    /// Whether copies from here need no staging: the bytes are page-locked, or the device copies by the processor.
    fn copies_from(&self, bytes: &[u8]) -> bool;

    /// Begins to copy `bytes` bytes from `from` to `to`, `at` bytes into it.
    ///
    /// # Errors
    /// [`Error::Device`]; nothing was begun then.
    ///
    /// # Safety
    /// The `bytes` bytes at `from` can be read. Until the fence was reached they are neither freed nor written, `to`
    /// is not freed, and nobody else looks at or writes to `at..at + bytes` of it, which is inside it.
    unsafe fn copy_in(
        &self,
        from: *const u8,
        bytes: usize,
        to: &Self::Memory,
        at: usize,
    ) -> Result<Self::Fence>;

    /// Begins to copy `bytes` bytes from `from`, `at` bytes into it, to `to`.
    ///
    /// # Errors
    /// [`Error::Device`]; nothing was begun then.
    ///
    /// # Safety
    /// As [`Self::copy_in`], with the sides exchanged: until the fence was reached, nobody else looks at `to`.
    unsafe fn copy_out(
        &self,
        from: &Self::Memory,
        at: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<Self::Fence>;

    /// Where the host can write to this memory itself, so that a drive needs no staging before it. A window has the
    /// address of [`Self::align_like`], and room before and after it up to whole blocks of 4096 bytes.
    fn window(&self, memory: &Self::Memory) -> Option<HostWindow> {
        let _ = memory;
        None
    }

    /// Moves the beginning of memory whose content is not needed so that its [`window`](Self::window) begins as far
    /// into a block of 4096 bytes as `offset` does.
    fn align_like(&self, memory: &mut Self::Memory, offset: u64) {
        let _ = (memory, offset);
    }
}

/// The end of one copy.
pub trait Fence: Send + 'static {
    /// Waits until neither side of the copy is used any more. That is so after an error as well.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy failed: what is in the destination is unknown.
    fn wait(self) -> Result<()>;

    /// Whether [`Self::wait`] would return at once.
    fn is_reached(&self) -> bool;
}

/// A copy that ended before the call returned.
#[derive(Clone, Copy, Debug)]
pub struct Reached;

impl Fence for Reached {
    fn wait(self) -> Result<()> {
        Ok(())
    }

    fn is_reached(&self) -> bool {
        true
    }
}

/// Names a range that is not inside some memory.
pub(crate) fn check_range(what: &str, at: u64, bytes: u64, len: u64) -> Result<()> {
    match at.checked_add(bytes) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::Range { what: what.to_owned(), at, bytes, len }),
    }
}

//! Where pools have their memory from.

#![expect(unsafe_code, reason = "an unsafe trait for memory that others hand out")]

mod heap;
mod locked;
mod pages;

use std::ptr::NonNull;

use crate::{Error, Result};

pub use heap::Heap;
pub use locked::Locked;
pub use pages::{LARGE_PAGE_BYTES, Pages};

/// Something that has memory: the heap, pages of the system, a card.
///
/// # Safety
/// A region is valid, at the same address and nobody else's, from [`map`](Self::map) until
/// [`unmap`](Self::unmap). If [`is_host`](Self::is_host), its bytes can be read and written, and are initialised.
pub unsafe trait Backing: Send + Sync + 'static {
    /// What it is, for errors and figures.
    fn name(&self) -> &str;

    /// Whether the host reaches the memory through its address.
    fn is_host(&self) -> bool;

    /// What lengths and addresses of regions are multiples of, in bytes; a power of two.
    fn granularity(&self) -> usize;

    /// Takes memory of the system. `bytes` is a multiple of the granularity and not 0.
    ///
    /// # Errors
    /// [`Error::System`] with what the system says.
    fn map(&self, bytes: usize) -> Result<Region>;

    /// Gives a region back.
    ///
    /// # Safety
    /// It is from [`map`](Self::map) of this backing, was not given back, and nobody uses it any more.
    unsafe fn unmap(&self, region: Region);

    /// Gives pages of a region back to the system and keeps their addresses; what is in them is unknown after, but
    /// initialised. Returns how many bytes were given back: 0 if this backing cannot.
    ///
    /// # Safety
    /// The range is inside a region of this backing, both ends multiples of the granularity, and nobody uses it.
    unsafe fn discard(&self, first: NonNull<u8>, bytes: usize) -> usize {
        let _ = (first, bytes);
        0
    }
}

/// A backing whose memory the host reads and writes, known when the program is built: its buffers are slices.
///
/// # Safety
/// [`Backing::is_host`] is true, always.
pub unsafe trait HostBacking: Backing {}

/// A length that a backing can map, or what is wrong with it.
fn check_length(bytes: usize, granularity: usize) -> Result<()> {
    if bytes > 0 && bytes.is_multiple_of(granularity) && isize::try_from(bytes).is_ok() {
        return Ok(());
    }
    let expected = format!("a multiple of {granularity}, more than 0 and no more than {}", isize::MAX);
    Err(Error::Setting { name: "bytes of a region", got: bytes.to_string(), expected })
}

/// Memory that a backing gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins: an address of the host, or of a device.
    pub first: NonNull<u8>,
    /// Its length in bytes.
    pub bytes: usize,
}

// SAFETY: an address and a length; who uses the address has reasons of his own why he may.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

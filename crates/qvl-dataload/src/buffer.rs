//! Buffers that files are read into and results are written to.
//!
//! Fresh memory is slow: the first touch of a page costs the system a fault and a clearing, at 0.3 to 1 GB/s on the
//! machines measured, which is less than a JPEG decoder writes. So buffers go back where they came from when they
//! are dropped, and the next item of a similar size takes them from there. They come from a [`Buffers`], which may
//! be the caller's own: page-locked memory, an arena, a ring of staging buffers.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::{Error, Result};

/// Where the bytes of a [`Buffer`] begin, at least: what direct I/O asks for, and more than any vector load does.
pub const ALIGNMENT: usize = 4096;

/// Memory that somebody lends; anything that gives a slice of bytes is one.
pub trait Room: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static {}

impl<T: AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static> Room for T {}

/// Gives rooms for bytes. A closure `Fn(usize) -> Option<R>` is one, for any [`Room`] `R`.
///
/// Called from every worker at once. A room goes back by being dropped.
pub trait Buffers: Send + Sync + 'static {
    /// A room of at least `bytes`, or `None` if there is none now.
    fn room(&self, bytes: usize) -> Option<Box<dyn Room>>;

    /// What a room of that size takes from the memory of the machine: the figure that is counted.
    fn footprint(&self, bytes: usize) -> usize {
        bytes
    }
}

impl<F, R> Buffers for F
where
    F: Fn(usize) -> Option<R> + Send + Sync + 'static,
    R: Room,
{
    fn room(&self, bytes: usize) -> Option<Box<dyn Room>> {
        self(bytes).map(|room| Box::new(room) as Box<dyn Room>)
    }
}

/// A run of bytes in a room: what was read, or what was made of it. Derefs to its bytes.
pub struct Buffer {
    room: Box<dyn Room>,
    start: usize,
    len: usize,
    footprint: usize,
}

impl Buffer {
    /// `bytes` bytes of unknown content from `buffers`.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] if it gives none, or a smaller one.
    pub fn take(buffers: &dyn Buffers, bytes: usize) -> Result<Self> {
        let refused = |got| Error::NoBuffer { bytes, got };
        let room = buffers.room(bytes).ok_or(refused(None))?;
        let got = (*room).as_ref().len();
        if got < bytes {
            return Err(refused(Some(got)));
        }
        Ok(Self { room, start: 0, len: bytes, footprint: buffers.footprint(bytes) })
    }

    /// The same room with other bounds, as after a read that began earlier and ended later than what was asked for.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] if the range is not inside the room.
    pub fn narrow(self, start: usize, len: usize) -> Result<Self> {
        let got = (*self.room).as_ref().len();
        match start.checked_add(len) {
            Some(end) if end <= got => Ok(Self { start, len, ..self }),
            _ => Err(Error::NoBuffer { bytes: start.saturating_add(len), got: Some(got) }),
        }
    }

    /// A part of it, by its place in what the buffer is now.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] if the range is not inside it.
    pub(crate) fn cut(self, from: usize, len: usize) -> Result<Self> {
        let got = self.len;
        match from.checked_add(len) {
            Some(end) if end <= got => Ok(Self { start: self.start + from, len, ..self }),
            _ => Err(Error::NoBuffer { bytes: from.saturating_add(len), got: Some(got) }),
        }
    }

    /// Bytes of memory it keeps from others, which may be more than its length.
    pub fn footprint(&self) -> usize {
        self.footprint
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let (len, footprint) = (bytes.len(), bytes.capacity());
        Self { room: Box::new(bytes), start: 0, len, footprint }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.room).as_ref()[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut (*self.room).as_mut()[self.start..][..self.len]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("footprint", &self.footprint)
            .finish_non_exhaustive()
    }
}

/// Buffers on the heap that are kept for the next item when they are dropped. Clones share what is kept.
///
/// Sizes are rounded up to classes, eight to a doubling, so that pictures of similar size share buffers; a buffer
/// takes up to an eighth more than was asked for, and 4 KiB for its alignment. What is over the limit goes back to the
/// system, the longest unused first.
#[derive(Clone)]
pub struct Recycled {
    shelf: Arc<Shelf>,
}

struct Shelf {
    kept: Mutex<Kept>,
    /// What may be kept, in bytes. A loader lowers and raises it with what it reserves.
    limit_bytes: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Kept {
    /// The longest unused at the front. Some dozens at most, so they are looked through.
    rooms: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Recycled {
    /// Keeps at most `limit_bytes` of unused buffers.
    pub fn new(limit_bytes: usize) -> Self {
        Self::limited_by(Arc::new(AtomicUsize::new(limit_bytes)))
    }

    /// Keeps at most what is in `limit_bytes` at the time. Who lowers it calls [`Self::trim`].
    pub(crate) fn limited_by(limit_bytes: Arc<AtomicUsize>) -> Self {
        Self { shelf: Arc::new(Shelf { kept: Mutex::default(), limit_bytes }) }
    }

    /// Bytes of unused buffers that are kept now.
    pub fn idle_bytes(&self) -> usize {
        self.shelf.kept.lock().bytes
    }

    /// Sets how much is kept, and gives back what is over that.
    pub fn limit(&self, limit_bytes: usize) {
        self.shelf.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        self.trim();
    }

    /// Gives back what is over the limit.
    pub(crate) fn trim(&self) {
        let excess = self.shelf.kept.lock().excess(self.shelf.limit());
        // Unmapping megabytes takes a while: not under the lock.
        drop(excess);
    }
}

impl Shelf {
    fn limit(&self) -> usize {
        self.limit_bytes.load(Ordering::Relaxed)
    }
}

impl Kept {
    /// The one of this class that was used last.
    fn of_class(&mut self, class: usize) -> Option<Vec<u8>> {
        let place = self.rooms.iter().rposition(|room| room.len() == class)?;
        self.bytes -= class;
        self.rooms.remove(place)
    }

    fn excess(&mut self, limit_bytes: usize) -> Vec<Vec<u8>> {
        let mut excess = Vec::new();
        while self.bytes > limit_bytes
            && let Some(room) = self.rooms.pop_front()
        {
            self.bytes -= room.len();
            excess.push(room);
        }
        excess
    }
}

impl Buffers for Recycled {
    fn room(&self, bytes: usize) -> Option<Box<dyn Room>> {
        let class = class_of(bytes)?;
        let (kept, excess) = {
            let mut kept = self.shelf.kept.lock();
            let room = kept.of_class(class);
            // One that is made anew takes the place of others.
            (room, kept.excess(self.shelf.limit()))
        };
        drop(excess);
        // A vector of zeros is memory that the system clears when it is first touched.
        let room = kept.unwrap_or_else(|| pages::huge(vec![0; class]));
        let start = room.as_ptr().align_offset(ALIGNMENT);
        Some(Box::new(Lent { room, start, shelf: Arc::downgrade(&self.shelf) }))
    }

    fn footprint(&self, bytes: usize) -> usize {
        class_of(bytes).unwrap_or(usize::MAX)
    }
}

impl fmt::Debug for Recycled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recycled")
            .field("idle_bytes", &self.idle_bytes())
            .field("limit_bytes", &self.shelf.limit())
            .finish_non_exhaustive()
    }
}

/// Large pages for large buffers.
mod pages {
    #![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "advice about memory takes an address"))]

    /// Asks for large pages before the first touch: it costs a fault for 2 MiB then, in place of one for 4 KiB. Where
    /// there are none the memory is as it was.
    #[cfg(target_os = "linux")]
    pub(super) fn huge(mut room: Vec<u8>) -> Vec<u8> {
        use rustix::mm::{Advice, madvise};
        if room.len() >= LEAST_BYTES {
            // The range is of whole pages inside the vector.
            let skip = room.as_ptr().align_offset(PAGE_BYTES);
            let bytes = (room.len() - skip) / PAGE_BYTES * PAGE_BYTES;
            let start = room[skip..].as_mut_ptr();
            // SAFETY: `start` and `bytes` are a range of `room`, which nobody else has; this advice changes no byte.
            let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxHugepage) };
        }
        room
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn huge(room: Vec<u8>) -> Vec<u8> {
        room
    }

    /// Smaller ones come from memory that the allocator has touched before.
    #[cfg(target_os = "linux")]
    const LEAST_BYTES: usize = 4 << 20;
    #[cfg(target_os = "linux")]
    const PAGE_BYTES: usize = 4096;
}

/// Bytes of the smallest class that holds `bytes` and their alignment; `None` if there is no such number.
fn class_of(bytes: usize) -> Option<usize> {
    let needed = bytes.max(1).checked_add(ALIGNMENT)?;
    let step = (needed.checked_next_power_of_two()? / 16).max(ALIGNMENT / 2);
    needed.checked_next_multiple_of(step)
}

/// A room that goes back to its shelf.
struct Lent {
    room: Vec<u8>,
    start: usize,
    shelf: Weak<Shelf>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.room[self.start..]
    }
}

impl AsMut<[u8]> for Lent {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(shelf) = self.shelf.upgrade() else { return };
        let room = std::mem::take(&mut self.room);
        let mut kept = shelf.kept.lock();
        if kept.bytes + room.len() <= shelf.limit() {
            kept.bytes += room.len();
            kept.rooms.push_back(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_comes_back() {
        let buffers = Recycled::new(1 << 20);
        let mut first = Buffer::take(&buffers, 100_000).unwrap();
        assert_eq!(first.as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(first.len(), 100_000);
        first[99_999] = 7;
        let (address, footprint) = (first.as_ptr(), first.footprint());
        assert_eq!(buffers.idle_bytes(), 0);
        drop(first);
        assert_eq!(buffers.idle_bytes(), footprint);
        let second = Buffer::take(&buffers, 99_000).unwrap();
        assert_eq!(second.as_ptr(), address, "a similar size takes the same room");
        assert_eq!(buffers.idle_bytes(), 0);
    }

    #[test]
    fn what_is_over_the_limit_is_given_back() {
        let buffers = Recycled::new(300_000);
        let all: Vec<Buffer> = (0..4).map(|_| Buffer::take(&buffers, 100_000).unwrap()).collect();
        let each = all[0].footprint();
        drop(all);
        assert_eq!(buffers.idle_bytes(), 300_000 / each * each);
        buffers.limit(each);
        assert_eq!(buffers.idle_bytes(), each);
        buffers.limit(0);
        assert_eq!(buffers.idle_bytes(), 0);
        drop(Buffer::take(&buffers, 5).unwrap());
        assert_eq!(buffers.idle_bytes(), 0);
    }

    #[test]
    fn a_class_holds_its_sizes_and_wastes_an_eighth_at_most() {
        for bytes in (0..5_000).chain([65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 300_000_000]) {
            let class = class_of(bytes).unwrap();
            assert!(class >= bytes + ALIGNMENT, "{bytes} in {class}");
            assert!(class <= bytes + bytes / 8 + 2 * ALIGNMENT, "{bytes} in {class}");
            assert_eq!(class_of(class - ALIGNMENT), Some(class), "a class of its own");
        }
        assert_eq!(class_of(usize::MAX), None);
        assert!(Buffer::take(&Recycled::new(0), usize::MAX).is_err());
    }

    #[test]
    fn the_callers_own_memory() {
        let own = |bytes: usize| (bytes <= 100).then(|| vec![1u8; bytes]);
        assert_eq!(Buffer::take(&own, 3).unwrap()[..], [1, 1, 1]);
        assert!(matches!(Buffer::take(&own, 101), Err(Error::NoBuffer { bytes: 101, got: None })));
        let short = |_: usize| Some([0u8; 4]);
        assert!(matches!(Buffer::take(&short, 5), Err(Error::NoBuffer { bytes: 5, got: Some(4) })));
        let narrowed = Buffer::from(vec![1, 2, 3, 4]).narrow(1, 2).unwrap();
        assert_eq!(narrowed[..], [2, 3]);
        assert!(narrowed.narrow(3, 2).is_err());
        let narrowed = Buffer::from(vec![1, 2, 3, 4]).narrow(1, 3).unwrap();
        let cut = narrowed.cut(1, 2).unwrap();
        assert_eq!(cut[..], [3, 4], "counted from what it was narrowed to");
        assert!(matches!(cut.cut(1, 2), Err(Error::NoBuffer { bytes: 3, got: Some(2) })));
    }
}

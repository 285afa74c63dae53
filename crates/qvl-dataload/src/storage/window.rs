//! The part of a file that is read for an extent, and positioned reads of it.
//!
//! Through the page cache that is the extent itself. Past it, offset, length and address must be multiples of the
//! drive's logical block, so the blocks around the extent are read, to an aligned place inside the buffer, and the
//! extent is cut out of them. Reading in place costs two blocks of slack at most, a bounce buffer a copy of it all.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::file::{Extent, Mode};
use crate::buffer::{ALIGNMENT, Buffer};
use crate::source::shown;
use crate::{Error, Result};

/// What is read for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Where reading begins, in bytes of the file; a multiple of `align`.
    pub(crate) start: u64,
    /// Bytes before the extent.
    skip: usize,
    /// Bytes of the extent.
    bytes: usize,
    /// Bytes to read; a multiple of `align`.
    pub(crate) len: usize,
    /// What offset, length and address are multiples of.
    pub(crate) align: usize,
}

impl Window {
    /// # Errors
    /// [`Error::Shorter`] if the extent ends where no file can reach.
    pub(crate) fn new(extent: &Extent, mode: Mode) -> Result<Self> {
        let (offset, bytes) = (extent.offset, extent.bytes);
        let reachable = offset.checked_add(bytes as u64).is_some_and(|end| end <= OFFSET_MAX);
        if !reachable {
            return Err(extent.shorter(0));
        }
        let align = match mode {
            Mode::Buffered | Mode::Exact => 1,
            Mode::Direct => ALIGNMENT,
        };
        if bytes == 0 {
            return Ok(Self { start: offset - offset % align as u64, skip: 0, bytes, len: 0, align });
        }
        let skip = (offset % align as u64) as usize;
        let len = skip.checked_add(bytes).and_then(|len| len.checked_next_multiple_of(align));
        let len = len.ok_or_else(|| extent.shorter(0))?;
        Ok(Self { start: offset - skip as u64, skip, bytes, len, align })
    }

    /// Bytes of a buffer that holds the window wherever the buffer begins.
    pub(crate) fn room_bytes(&self) -> usize {
        self.len.saturating_add(self.align - 1)
    }

    /// Bytes from its start that must be there for the extent to be.
    pub(crate) fn needed(&self) -> usize {
        self.skip + self.bytes
    }

    /// Where in a buffer the window goes: at the first aligned address.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] if it does not fit.
    pub(crate) fn pad(&self, bytes: &[u8]) -> Result<usize> {
        let pad = if self.len == 0 { 0 } else { bytes.as_ptr().align_offset(self.align) };
        match pad.checked_add(self.len) {
            Some(end) if end <= bytes.len() => Ok(pad),
            end => Err(Error::NoBuffer { bytes: end.unwrap_or(usize::MAX), got: Some(bytes.len()) }),
        }
    }

    /// The extent out of a buffer with the first `filled` bytes of the window at `pad`.
    ///
    /// # Errors
    /// [`Error::Shorter`] if that is not all of it.
    pub(crate) fn cut(&self, extent: &Extent, buffer: Buffer, pad: usize, filled: usize) -> Result<Buffer> {
        if filled < self.needed() {
            return Err(extent.shorter(filled.saturating_sub(self.skip)));
        }
        buffer.cut(pad + self.skip, self.bytes)
    }

    /// Where to read next when `filled` bytes are there: no later than that, at a multiple of `align`.
    ///
    /// A read past the page cache that ends inside a block may have met the end of the file, and may not have:
    /// the block is read again, and if nothing more comes it was the end.
    pub(crate) fn resume(&self, filled: usize) -> usize {
        filled - filled % self.align
    }
}

/// Runs what calls a caller's own memory, and makes an error of its panic: a thread that died of it, or a ring that
/// was left half way, would leave other requests unanswered.
pub(crate) fn guarded<T>(extent: &Extent, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::panicked(shown(extent.file.path()), &*panic)))
}

/// Reads an extent now, into a buffer with room for its window.
pub(crate) fn read(extent: &Extent, mode: Mode, buffer: Buffer, go_on: impl Fn() -> bool) -> Result<Buffer> {
    let file = extent.file.open(mode)?;
    read_from(&file, extent, mode, buffer, go_on)
}

/// The same from a file that is open in that mode.
pub(crate) fn read_from(
    file: &File,
    extent: &Extent,
    mode: Mode,
    mut buffer: Buffer,
    go_on: impl Fn() -> bool,
) -> Result<Buffer> {
    let window = Window::new(extent, mode)?;
    let bytes = &mut buffer[..];
    let pad = window.pad(bytes)?;
    let bytes = &mut bytes[pad..][..window.len];
    let filled = fill(file, &window, bytes, go_on).map_err(|e| extent.file.refused(e, mode))?;
    window.cut(extent, buffer, pad, filled)
}

/// Fills `bytes` with the window; fewer bytes came if the file ends or `go_on` says no.
fn fill(file: &File, window: &Window, bytes: &mut [u8], go_on: impl Fn() -> bool) -> io::Result<usize> {
    let mut filled = 0;
    while filled < window.needed() && go_on() {
        let from = window.resume(filled);
        let to = bytes.len().min(from + PIECE_BYTES);
        match read_at(file, &mut bytes[from..to], window.start + from as u64) {
            Ok(count) if from + count > filled => filled = from + count,
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
        // Reading from beyond the end is an error there, not zero bytes (ERROR_HANDLE_EOF).
        Err(e) if e.raw_os_error() == Some(38) => Ok(0),
        result => result,
    }
}

/// Without positioned reads an open file has one position, so one thread at a time moves and uses it.
#[cfg(not(any(unix, windows)))]
fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::io::{Read, Seek, SeekFrom};
    static POSITION: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one = POSITION.lock();
    file.seek(SeekFrom::Start(offset))?;
    file.read(bytes)
}

/// The largest offset that systems know: theirs are signed.
const OFFSET_MAX: u64 = i64::MAX as u64 - ALIGNMENT as u64;

/// Bytes of one call. Between calls a reader looks whether it is to stop, so this bounds how long that takes; it is
/// large enough for a drive to have several requests of it at once.
const PIECE_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DataFile;

    fn window(offset: u64, bytes: usize, mode: Mode) -> Window {
        Window::new(&Extent { file: DataFile::once("x"), offset, bytes }, mode).unwrap()
    }

    #[test]
    fn a_direct_window_is_the_blocks_around_the_extent() {
        for (offset, bytes, start, skip, len) in [
            (0, 1, 0, 0, 4096),
            (0, 4096, 0, 0, 4096),
            (4095, 2, 0, 4095, 8192),
            (4096, 4097, 4096, 0, 8192),
            (10_000, 5000, 8192, 1808, 8192),
            (5, 0, 0, 0, 0),
        ] {
            let got = window(offset, bytes, Mode::Direct);
            assert_eq!(got, Window { start, skip, bytes, len, align: 4096 }, "{bytes} at {offset}");
            let got = window(offset, bytes, Mode::Buffered);
            assert_eq!(got, Window { start: offset, skip: 0, bytes, len: bytes, align: 1 });
            assert_eq!(got.room_bytes(), bytes, "no slack through the page cache");
        }
    }

    #[test]
    fn an_extent_beyond_all_files_is_too_short() {
        for (offset, bytes) in [(u64::MAX, 1), (u64::MAX, 0), (1, usize::MAX), (i64::MAX as u64, 5)] {
            for mode in [Mode::Buffered, Mode::Direct] {
                let extent = Extent { file: DataFile::once("x"), offset, bytes };
                assert!(matches!(Window::new(&extent, mode), Err(Error::Shorter { got: 0, .. })));
            }
        }
    }

    #[test]
    fn a_window_fits_its_room_at_any_address() {
        let memory = vec![0u8; 4 * ALIGNMENT];
        let window = window(4095, 2, Mode::Direct);
        for start in [0, 1, 15, 16, 4095] {
            let room = &memory[start..][..window.room_bytes()];
            let pad = window.pad(room).unwrap();
            assert_eq!(room[pad..].as_ptr().align_offset(ALIGNMENT), 0);
        }
        assert!(matches!(window.pad(&memory[..4096]), Err(Error::NoBuffer { got: Some(4096), .. })));
    }
}

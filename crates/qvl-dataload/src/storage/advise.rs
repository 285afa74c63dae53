//! Reading ahead by telling the system what will be read, so that it fills the page cache meanwhile.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Done, Engine, Request};
use super::file::{Extent, Mode};
use super::window;
use crate::Result;

/// Announces what was submitted and reads each request when it is waited for, in the order of submission.
///
/// It has no threads: the system reads ahead (Linux, `posix_fadvise` with `WILLNEED`), and `complete` copies from
/// the page cache. On other systems nothing is announced, and `complete` waits for the drive.
#[derive(Debug)]
pub struct Advise {
    readahead_bytes: usize,
    queue: VecDeque<Ahead>,
    /// How many from the front of the queue were announced, and their bytes.
    announced: usize,
    announced_bytes: usize,
}

#[derive(Debug)]
struct Ahead {
    request: Request,
    since: Instant,
    /// The file, opened when it was announced, so that it is opened once.
    file: Option<Result<Arc<File>>>,
}

impl Advise {
    /// Keeps up to `readahead_bytes` announced that were not read yet, and one request however large it is.
    pub fn new(readahead_bytes: usize) -> Self {
        Self { readahead_bytes, queue: VecDeque::new(), announced: 0, announced_bytes: 0 }
    }

    fn announce_on(&mut self) {
        while let Some(ahead) = self.queue.get_mut(self.announced) {
            let extent = &ahead.request.extent;
            let bytes = self.announced_bytes.saturating_add(extent.bytes);
            if self.announced > 0 && bytes > self.readahead_bytes {
                return;
            }
            let file = extent.file.open(Mode::Buffered);
            if let Ok(file) = &file {
                // It is advice: where it is not taken the read tells what is wrong with the file, if anything is.
                let _ = will_need(file, extent);
            }
            ahead.file = Some(file);
            self.announced += 1;
            self.announced_bytes = bytes;
        }
    }
}

impl Engine for Advise {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn submit(&mut self, request: Request) {
        self.queue.push_back(Ahead { request, since: Instant::now(), file: None });
        self.announce_on();
    }

    /// As for any engine; but nothing ends without being waited for, since it is read by whoever waits.
    fn complete(&mut self, wait: bool) -> Option<Done> {
        if !wait {
            return None;
        }
        let Ahead { request: Request { tag, extent, buffer }, since, file } = self.queue.pop_front()?;
        if file.is_some() {
            self.announced -= 1;
            self.announced_bytes -= extent.bytes;
            self.announce_on();
        }
        let file = file.unwrap_or_else(|| extent.file.open(Mode::Buffered));
        let result =
            window::guarded(&extent, || window::read_from(&*file?, &extent, Mode::Buffered, buffer, || true));
        Some(Done { tag, result, elapsed: since.elapsed() })
    }
}

/// Tells the system that an extent will be read soon, so that it reads it into the page cache meanwhile. Elsewhere
/// than on Linux it does nothing.
///
/// It does not wait for the data, though opening the file may wait for its directory.
///
/// # Errors
/// [`Error::Missing`](crate::Error::Missing), and [`Error::Read`](crate::Error::Read) for what cannot be read
/// ahead, such as a pipe.
pub fn advise(extent: &Extent) -> Result<()> {
    extent.file.with(|file| will_need(file, extent))
}

/// Asked for at once, no more is read than the larger of the drive's read-ahead (128 KiB as Linux comes) and its
/// largest request, whatever the extent; the rest of the advice is dropped. So it is given in pieces of that size.
#[cfg(target_os = "linux")]
fn will_need(file: &File, extent: &Extent) -> std::io::Result<()> {
    let end = extent.offset.saturating_add(extent.bytes as u64);
    let mut from = extent.offset;
    while let Some(len) = std::num::NonZeroU64::new(end.saturating_sub(from).min(PIECE_BYTES)) {
        rustix::fs::fadvise(file, from, Some(len), rustix::fs::Advice::WillNeed)?;
        from += len.get();
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn will_need(_: &File, _: &Extent) -> std::io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
const PIECE_BYTES: u64 = 128 << 10;

/// Requests whose files may be open and whose buffers may wait.
const DEPTH: usize = 32;

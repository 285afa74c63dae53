//! What reads ahead: requests go in, filled buffers come out.

use std::time::Duration;

use super::file::Extent;
use crate::Result;
use crate::buffer::Buffer;

/// Reads ahead of whoever needs the bytes. One thread owns it, which may be another one each time.
///
/// ```
/// use qvl_dataload::Buffer;
/// use qvl_dataload::storage::{DataFile, Extent, Request, Storage};
///
/// let storage = Storage::Pool { threads: 2, direct: false };
/// let mut engine = storage.start()?;
/// let extent = Extent::whole(DataFile::once("Cargo.toml"))?;
/// let buffer = Buffer::from(vec![0; storage.room_bytes(&extent)]);
/// engine.submit(Request { tag: 7, extent, buffer });
/// while let Some(done) = engine.complete(true) {
///     assert_eq!(done.tag, 7);
///     assert!(done.result?.starts_with(b"[package]"));
/// }
/// # Ok::<(), qvl_dataload::Error>(())
/// ```
pub trait Engine: Send {
    /// Requests that it is worth having in flight at once. More are accepted and wait for their turn.
    fn depth(&self) -> usize;

    /// Starts a read. It never waits for the data, though opening a file may wait for its directory.
    ///
    /// The engine owns the buffer until it hands it back. A dropped engine waits for what is being read, or leaves
    /// the buffer to the system; it never frees memory that is still being written.
    fn submit(&mut self, request: Request);

    /// A read that has ended, in any order. `None` if there is none: of those submitted when it is to `wait`, of
    /// those that ended when it is not.
    fn complete(&mut self, wait: bool) -> Option<Done>;
}

/// A read to be made.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the result; the engine makes nothing of it.
    pub tag: u64,
    /// What to read.
    pub extent: Extent,
    /// Where to: as many bytes as [`Storage::room_bytes`](super::Storage::room_bytes) says, or more.
    pub buffer: Buffer,
}

/// A read that has ended.
#[derive(Debug)]
pub struct Done {
    /// That of the request.
    pub tag: u64,
    /// The buffer of the request, narrowed to the extent.
    ///
    /// [`Error::Missing`](crate::Error::Missing), [`Error::Folder`](crate::Error::Folder),
    /// [`Error::Read`](crate::Error::Read); [`Error::Shorter`](crate::Error::Shorter) if the file ends before the
    /// extent does; [`Error::NoBuffer`](crate::Error::NoBuffer) if the buffer is too small;
    /// [`Error::Storage`](crate::Error::Storage) if the file cannot be read that way;
    /// [`Error::Panicked`](crate::Error::Panicked) if the code of a caller's own memory did. An error is that of its
    /// request alone; its buffer has gone back where it came from.
    pub result: Result<Buffer>,
    /// From `submit` to the end of the read, with the time it waited for its turn.
    pub elapsed: Duration,
}

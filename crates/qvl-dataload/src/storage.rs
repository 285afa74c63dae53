//! Reading bytes from a drive: whole files and parts of them, into buffers that are used again.
//!
//! A [`Reader`] reads now, an [`Engine`] reads ahead. There are three engines, and [`Storage`] is the choice of one:
//!
//! | engine | how it reads ahead | choose it |
//! |---|---|---|
//! | [`Advise`] | tells the system, which fills the page cache | files that fit in memory, or are read again: the default |
//! | [`PreadPool`] | threads that block in `pread` | drives that want many requests at once; network drives |
//! | `Uring` | the kernel has the requests (Linux, feature `io-uring`) | the same with fewer threads |
//!
//! The last two can read past the page cache (`direct`): it spares a copy and leaves the cache to others, and what
//! is read again comes from the drive again. [`Drive::probe`] measures which is right for a drive.

use std::collections::VecDeque;
use std::fmt;

use crate::buffer::{Buffer, Buffers};
use crate::{Error, Result};

mod advise;
mod engine;
mod file;
mod place;
mod pool;
mod probe;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring;
mod window;

pub use advise::{Advise, advise};
pub use engine::{Done, Engine, Request};
pub use file::{DataFile, Extent};
pub use place::{Place, place, sort_by_place};
pub use pool::PreadPool;
pub use probe::{Drive, Measurements, Point, Rate, choose};
#[cfg(all(target_os = "linux", feature = "io-uring"))]
pub use uring::Uring;

use file::Mode;
use window::Window;

/// How to read ahead: a plain value, to be given to a loader or to [`start`](Self::start).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// Through the page cache, which the system fills ahead ([`Advise`]).
    Buffered {
        /// Bytes that are announced and not read yet.
        readahead_bytes: usize,
    },
    /// With threads ([`PreadPool`]).
    Pool {
        /// How many.
        threads: usize,
        /// Past the page cache.
        direct: bool,
    },
    /// With io_uring (`Uring`): Linux, with the feature `io-uring`.
    Uring {
        /// Operations in flight.
        depth: usize,
        /// Past the page cache.
        direct: bool,
    },
}

impl Storage {
    /// Starts an engine. It is what was asked for, or an error: never another one.
    ///
    /// # Errors
    /// [`Error::Storage`] with the reason if this machine or this build does not offer it; [`Error::Setting`];
    /// [`Error::Thread`].
    pub fn start(&self) -> Result<Box<dyn Engine>> {
        match *self {
            Self::Buffered { readahead_bytes } => Ok(Box::new(Advise::new(readahead_bytes))),
            Self::Pool { threads, direct } => Ok(Box::new(PreadPool::new(threads, direct)?)),
            Self::Uring { depth, direct } => uring(depth, direct),
        }
    }

    /// Bytes that the buffer of a request must have: direct reads take whole blocks, from an aligned address on.
    pub fn room_bytes(&self, extent: &Extent) -> usize {
        // What no file can hold is the error of its request, whatever its buffer.
        Window::new(extent, self.mode()).map_or(extent.bytes, |window| window.room_bytes())
    }

    /// Whether it reads past the page cache.
    pub fn is_direct(&self) -> bool {
        self.mode() == Mode::Direct
    }

    fn mode(&self) -> Mode {
        match *self {
            Self::Buffered { .. } => Mode::Buffered,
            Self::Pool { direct, .. } | Self::Uring { direct, .. } => Mode::of(direct),
        }
    }
}

#[cfg(all(target_os = "linux", feature = "io-uring"))]
fn uring(depth: usize, direct: bool) -> Result<Box<dyn Engine>, Error> {
    Ok(Box::new(Uring::new(depth, direct)?))
}

#[cfg(not(all(target_os = "linux", feature = "io-uring")))]
fn uring(_: usize, _: bool) -> Result<Box<dyn Engine>, Error> {
    let why = match cfg!(target_os = "linux") {
        true => "this build lacks the feature io-uring",
        false => "it is part of Linux",
    };
    Err(Error::Storage { what: "io_uring", why: why.to_owned() })
}

impl Default for Storage {
    /// Through the page cache, 16 MiB ahead.
    fn default() -> Self {
        Self::Buffered { readahead_bytes: 16 << 20 }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = |direct| if direct { "direct" } else { "buffered" };
        match *self {
            Self::Buffered { readahead_bytes } => {
                write!(f, "buffered, {} KiB read ahead", readahead_bytes.div_ceil(1024))
            }
            Self::Pool { threads: 1, direct } => write!(f, "1 thread, {}", cache(direct)),
            Self::Pool { threads, direct } => write!(f, "{threads} threads, {}", cache(direct)),
            Self::Uring { depth, direct } => write!(f, "io_uring of depth {depth}, {}", cache(direct)),
        }
    }
}

/// Reads for a [`Source`](crate::Source), in one of the loader's threads. What the loader has read ahead is handed
/// out; anything else is read now.
pub struct Reader<'a> {
    buffers: &'a dyn Buffers,
    ready: Ready,
}

impl<'a> Reader<'a> {
    /// A reader that has nothing read ahead.
    pub fn new(buffers: &'a dyn Buffers) -> Self {
        Self { buffers, ready: Ready::default() }
    }

    pub(crate) fn with_ready(buffers: &'a dyn Buffers, ready: Ready) -> Self {
        Self { buffers, ready }
    }

    /// The bytes of an extent.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Folder`], [`Error::Read`]; [`Error::Shorter`] if the file ends before the extent
    /// does; [`Error::NoBuffer`].
    pub fn read(&mut self, extent: &Extent) -> Result<Buffer> {
        if self.ready.parts.front().is_some_and(|(ready, _)| ready.is(extent))
            && let Some((_, result)) = self.ready.parts.pop_front()
        {
            return result;
        }
        let buffer = Buffer::take(self.buffers, extent.bytes)?;
        window::read(extent, Mode::Buffered, buffer, || true)
    }

    /// A buffer of `bytes` bytes of unknown content, for what does not come from a file.
    ///
    /// # Errors
    /// [`Error::NoBuffer`].
    pub fn buffer(&mut self, bytes: usize) -> Result<Buffer> {
        Buffer::take(self.buffers, bytes)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// What was read ahead for one sample: its extents in the order in which it will ask for them.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) parts: VecDeque<(Extent, Result<Buffer>)>,
    /// Bytes that were reserved for them.
    pub(crate) reserved: usize,
}

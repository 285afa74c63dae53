//! What can go wrong. Each variant names the cause, with the value, the limit and the unit.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Clones share the cause, since one failure may reach several who wait.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The drive or the file system.
    #[error("{}: cannot {operation}{}", path.display(), part(*offset, *bytes))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as in "cannot {operation}".
        operation: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// How much of it, in bytes; 0 if it was not about a part of the file.
        bytes: u64,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },

    /// Something that has no bytes at offsets: a folder, a pipe, a device.
    #[error("{}: is {what}, and a file is needed", path.display())]
    NotAFile {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },

    /// A file system or a drive that does not let this be read past the page cache.
    #[error("{}: reading past the page cache (O_DIRECT) is refused{}: open it with ReadMode::Buffered, or move it to another file system", path.display(), part(*offset, *bytes))]
    DirectRefused {
        /// The file.
        path: PathBuf,
        /// Where the read began, in bytes.
        offset: u64,
        /// How much was to be read, in bytes; 0 if it was refused before any read.
        bytes: u64,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },

    /// A file has fewer bytes than what was asked for, because it is shorter or became so while it was read.
    #[error("{}: ends at {len} bytes, needed are {bytes} bytes at {offset}: it is cut, or became shorter while it was read", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the read began, in bytes.
        offset: u64,
        /// How much was wanted, in bytes.
        bytes: u64,
        /// Where the file ends now, in bytes.
        len: u64,
    },

    /// A source of the caller's own failed.
    #[error("the source {name} failed at {at}: {why}")]
    Source {
        /// What the source calls itself.
        name: String,
        /// Where in it, in bytes.
        at: u64,
        /// What it says.
        why: String,
    },

    /// A budget has no room for this.
    #[error("{what}: no room for {bytes} bytes: {in_use_bytes} of {budget_bytes} are in use. {remedy}")]
    OutOfMemory {
        /// Whose budget.
        what: String,
        /// What was asked for, in bytes.
        bytes: u64,
        /// What is in use, in bytes.
        in_use_bytes: u64,
        /// The budget, in bytes.
        budget_bytes: u64,
        /// What to do.
        remedy: &'static str,
    },

    /// The device or its driver.
    #[error("{device}: {operation} failed: {what}")]
    Device {
        /// Which device.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What the driver says, with its code.
        what: String,
        /// Whether the device cannot be used any more.
        lost: bool,
    },

    /// There is no such device here, or it cannot be used.
    #[error("no CUDA device: {why}. {remedy}")]
    NoDevice {
        /// Why.
        why: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A range that is not inside what it is a range of.
    #[error("{what}: {bytes} bytes at {at} are not inside its {len} bytes")]
    Range {
        /// What it is a range of.
        what: String,
        /// Where it begins, in bytes.
        at: u64,
        /// How long it is, in bytes.
        bytes: u64,
        /// How much there is, in bytes.
        len: u64,
    },

    /// A setting that cannot be.
    #[error("{name} is {got}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        got: String,
        /// What it must be, and why.
        expected: String,
    },

    /// What arrived is not what was meant to.
    #[error("{what}: its CRC-32 is {got:08x}, expected {expected:08x}")]
    Checksum {
        /// What it was read from.
        what: String,
        /// What was expected.
        expected: u32,
        /// What it is.
        got: u32,
    },

    /// Packed bytes that cannot be unpacked.
    #[error("{what}: {why}")]
    Packed {
        /// What they were read from.
        what: String,
        /// What is wrong with them.
        why: String,
    },

    /// The transfer was cancelled.
    #[error("the transfer was cancelled")]
    Cancelled,

    /// The engine was closed before the transfer was done.
    #[error("the transfer engine is closed")]
    Closed,
}

/// Names a part of a file, if there is one.
fn part(offset: u64, bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" ({bytes} bytes at {offset})") }
}

impl Error {
    /// Whether a device said so and cannot be used any more.
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::Device { lost: true, .. })
    }
}

/// A transfer that failed, with the memory that it was given: nothing writes to it any more, and what is in it is
/// unknown.
pub struct Failed<M> {
    /// Why.
    pub error: Error,
    /// The destination.
    pub memory: M,
}

impl<M> Failed<M> {
    /// The same with what `map` makes of the memory.
    pub fn map<N>(self, map: impl FnOnce(M) -> N) -> Failed<N> {
        Failed { error: self.error, memory: map(self.memory) }
    }
}

impl<M> fmt::Debug for Failed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<M> fmt::Display for Failed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M> std::error::Error for Failed<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<M> From<Failed<M>> for Error {
    fn from(failed: Failed<M>) -> Self {
        failed.error
    }
}

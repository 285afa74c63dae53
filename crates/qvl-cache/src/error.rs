//! The one error type of the crate.
//!
//! Every variant names the folder, file or setting, and carries the observed and the expected value.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a loader, a codec or a foreign library, kept as a cause so that its type is not part of this interface.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// The error of a loader, handed to everyone who waited for that load.
pub type SharedCause = Arc<dyn StdError + Send + Sync + 'static>;

/// What can go wrong with a cache. A value that was lost or damaged is no error but a miss, and is counted.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "create the folder", "read", "write".
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Where a folder is expected there is something else.
    #[error("{}: is not a folder", path.display())]
    NotAFolder {
        /// What was given.
        path: PathBuf,
    },
    /// Another process has the folder open.
    #[error("{}: in use by another process; give each process a folder of its own, or close the other", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds files, but none of this crate's making. Nothing in it was touched.
    #[error("{}: is not empty and holds no cache (found {found}); name an empty or a new folder", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// A file found in it.
        found: String,
    },
    /// The folder was written by another version of this format. Nothing in it was touched.
    #[error("{}: written in format {found}, this version reads {expected}; remove the folder or name another", path.display())]
    Version {
        /// The folder.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one version read here.
        expected: u32,
    },
    /// The folder was filled for something else: another model, other settings. Nothing in it was touched.
    #[error("{}: filled for {found:?}, opened for {expected:?}; name another folder, or allow it to be cleared", path.display())]
    Fingerprint {
        /// The folder.
        path: PathBuf,
        /// What it was filled for.
        found: String,
        /// What it was opened for.
        expected: String,
    },
    /// A setting is out of its range, or contradicts another.
    #[error("{name} = {value}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it was given.
        value: String,
        /// Why that cannot be, and what can.
        reason: String,
    },
    /// A value could not be turned into bytes, or bytes into a value.
    #[error("the value of {key} cannot be {operation}")]
    Codec {
        /// The key, shortened.
        key: String,
        /// "encoded" or "decoded".
        operation: &'static str,
        /// What the codec said.
        #[source]
        source: Cause,
    },
    /// The loader given to `get_or_load` failed; everyone who waited for it has the same cause.
    #[error("{key} cannot be loaded")]
    Load {
        /// The key, shortened.
        key: String,
        /// What the loader said.
        #[source]
        source: SharedCause,
    },
    /// A tier below does not work at the moment. The others go on.
    #[error("{tier}: {operation} failed")]
    Tier {
        /// The tier, with its folder or URL.
        tier: String,
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// A file is not what it is expected to be: a checkpoint's header, a trace.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the actual and the expected value.
        what: String,
    },
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
}

//! What can go wrong in the composition: the crates' own errors, and what only exists between them.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network, its checkpoint or its tokenizer.
    #[error(transparent)]
    Model(#[from] qvl_model::Error),
    /// A picture, a video or the processor's configuration.
    #[error(transparent)]
    Vision(#[from] qvl_dataload::Error),
    /// A file could not be read.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A request, manifest or reference file does not have the form it must have.
    #[error("{file}: {reason}")]
    Form {
        /// The file, with the line where that helps.
        file: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// The image processor and the network of one checkpoint disagree.
    #[error("the image processor has {field} {processor}, but config.json has {network}")]
    Mismatch {
        /// The setting.
        field: &'static str,
        /// Its value for the processor.
        processor: usize,
        /// Its value for the network.
        network: usize,
    },
}

impl Error {
    pub(crate) fn form(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Form { file: file.into(), reason: reason.into() }
    }
}

/// Reads a text file; the error names it.
pub(crate) fn read_text(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

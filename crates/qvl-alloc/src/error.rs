//! What can go wrong, named so that a user knows what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no room; says whose memory it is, and what would fit.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// A size, an alignment or a setting that cannot be.
    #[error("{name} is {got}: {expected}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What it is.
        got: String,
        /// What is needed, as a sentence.
        expected: String,
    },
    /// The system refused.
    #[error("{operation} of {what} failed: {source}. {remedy}")]
    System {
        /// What was asked for, such as `mmap`.
        operation: &'static str,
        /// Of what.
        what: String,
        /// What the system says.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A file of the system that cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of the system with something else in it than there should be.
    #[error("{}: {field} is {got:?}, {expected} was expected", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Which of its values.
        field: &'static str,
        /// What is there, shortened.
        got: String,
        /// What should be.
        expected: &'static str,
    },
    /// Something that cannot be known here.
    #[error("there is no figure for {what}: {reasons}")]
    NoFigure {
        /// What was asked for.
        what: &'static str,
        /// Why each source has none.
        reasons: String,
    },
    /// A line of a file with something else in it than there should be.
    #[error("{}:{line}: {field} is {got:?}, {expected} was expected", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// Which of its values.
        field: &'static str,
        /// What is there, shortened.
        got: String,
        /// What should be.
        expected: String,
    },
}

/// Why there is no room for something, and for what there is.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// The pool.
    pub pool: String,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// Their alignment.
    pub align: u64,
    /// Who asked.
    pub owner: String,
    /// The quota of who asked, if that is what stood in the way.
    pub over_quota_bytes: Option<u64>,
    /// What the pool may take of the system.
    pub budget_bytes: u64,
    /// What it has taken.
    pub reserved_bytes: u64,
    /// What is in use.
    pub in_use_bytes: u64,
    /// The largest piece that is free in what it has taken.
    pub largest_free_bytes: u64,
    /// The most that an allocation with this alignment and owner would get now.
    pub fits_bytes: u64,
    /// Of what is free, the share that is not in the largest piece, 0 to 1.
    pub fragmentation: f64,
    /// Everybody who has something, the most first.
    pub owners: Vec<OwnerUse>,
    /// What the system said, if it refused to give more.
    pub system: Option<String>,
}

/// What one owner has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerUse {
    /// The owner's name.
    pub name: String,
    /// What it has now.
    pub in_use_bytes: u64,
    /// The most that it had.
    pub peak_bytes: u64,
    /// What it may have, if that is bounded.
    pub quota_bytes: Option<u64>,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, bytes, align, owner, .. } = self;
        write!(f, "{pool}: no room for {bytes} bytes aligned to {align} for {owner}: ")?;
        match self.over_quota_bytes {
            Some(quota) => write!(f, "its quota is {quota} bytes")?,
            None => write!(
                f,
                "{} of {} bytes are in use, {} are taken of the system",
                self.in_use_bytes, self.budget_bytes, self.reserved_bytes
            )?,
        }
        if let Some(system) = &self.system {
            write!(f, ", and the system gives no more ({system})")?;
        }
        write!(
            f,
            "; the largest free piece has {} bytes ({:.0} % of what is free is elsewhere), and {} bytes would fit",
            self.largest_free_bytes,
            self.fragmentation * 100.0,
            self.fits_bytes
        )?;
        for (number, owner) in self.owners.iter().take(OWNERS_SHOWN).enumerate() {
            let OwnerUse { name, in_use_bytes, peak_bytes, quota_bytes } = owner;
            write!(
                f,
                "{}{name} {in_use_bytes} (at most {peak_bytes}",
                if number == 0 { "; in use: " } else { ", " }
            )?;
            match quota_bytes {
                Some(quota) => write!(f, " of {quota})")?,
                None => write!(f, ")")?,
            }
        }
        let more = self.owners.len().saturating_sub(OWNERS_SHOWN);
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        write!(f, ". Ask for less, give something back, or raise the budget or the quota")
    }
}

/// Owners that an error names; the value has all.
const OWNERS_SHOWN: usize = 8;

//! Where bytes come from.

use std::fmt;
use std::sync::Arc;

use crate::drive::FileRange;
use crate::{Error, Result};

/// Something that bytes are transferred from. The engine asks for chunks of it from several threads at once, in any
/// order, each byte once.
pub trait Source: Send + Sync + 'static {
    /// What it is called in messages.
    fn name(&self) -> String;

    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `at`. May take its time: it is called by a worker.
    ///
    /// # Errors
    /// [`Error::Source`], or another that says what went wrong. A panic becomes one.
    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()>;

    /// Chunks begin and end at multiples of this many bytes, and at the end. For what can only be made in pieces.
    fn granularity(&self) -> usize {
        1
    }

    /// The bytes, if they are in memory: a device that can copies them without staging.
    fn bytes(&self) -> Option<&[u8]> {
        None
    }

    /// The range of a file that these bytes are: it is read past the page cache, straight to where the bytes belong
    /// if the device lets it.
    fn file(&self) -> Option<&FileRange> {
        None
    }
}

/// Bytes that are in memory.
pub struct Memory<B> {
    bytes: B,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Memory<B> {
    /// Whatever gives a slice of bytes: `Vec<u8>`, `Arc<[u8]>`, a mapped file, [`HostMemory`](crate::HostMemory).
    pub fn new(bytes: B) -> Self {
        Self { bytes }
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Source for Memory<B> {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self) -> u64 {
        self.bytes.as_ref().len() as u64
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(part(self.bytes.as_ref(), at, into.len())?);
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(self.bytes.as_ref())
    }
}

/// A part of bytes that are in memory.
pub(crate) fn part(bytes: &[u8], at: u64, len: usize) -> Result<&[u8]> {
    let range = usize::try_from(at).ok().and_then(|at| bytes.get(at..at.checked_add(len)?));
    range.ok_or_else(|| Error::Range {
        what: "memory".to_owned(),
        at,
        bytes: len as u64,
        len: bytes.len() as u64,
    })
}

/// Bytes that a closure makes.
pub struct Fill<F> {
    name: String,
    len: u64,
    fill: F,
}

impl<F> Fill<F>
where
    F: Fn(u64, &mut [u8]) -> Result<(), String> + Send + Sync + 'static,
{
    /// `len` bytes that `fill(at, into)` makes; what it returns as an error becomes an [`Error::Source`].
    pub fn new(name: impl Into<String>, len: u64, fill: F) -> Self {
        Self { name: name.into(), len, fill }
    }
}

impl<F> Source for Fill<F>
where
    F: Fn(u64, &mut [u8]) -> Result<(), String> + Send + Sync + 'static,
{
    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        (self.fill)(at, into).map_err(|why| Error::Source { name: self.name.clone(), at, why })
    }
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn len(&self) -> u64 {
        (**self).len()
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        (**self).fill(at, into)
    }

    fn granularity(&self) -> usize {
        (**self).granularity()
    }

    fn bytes(&self) -> Option<&[u8]> {
        (**self).bytes()
    }

    fn file(&self) -> Option<&FileRange> {
        (**self).file()
    }
}

impl fmt::Debug for dyn Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name()).field("len", &self.len()).finish()
    }
}

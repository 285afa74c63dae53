//! What the tests of sources share: reading a sample, and checking what a source says about it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use qvl_dataload::storage::Reader;
use qvl_dataload::{Error, Footprint, Recycled, Result, Source};

/// A folder that is removed at the end of the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and the folders it is in.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Reads a sample. It takes as many bytes as the source said beforehand.
pub(crate) fn read<S: Source<Sample: Footprint>>(source: &S, index: usize) -> Result<S::Sample> {
    let buffers = Recycled::new(1 << 20);
    let said = source.sample_bytes(index, &buffers);
    let sample = source.read(index, &mut Reader::new(&buffers))?;
    assert_eq!(said.unwrap(), sample.footprint(), "{}", source.name(index));
    Ok(sample)
}

/// Reads a sample of a source that can only estimate its size.
pub(crate) fn read_estimated<S: Source>(source: &S, index: usize) -> Result<S::Sample> {
    source.read(index, &mut Reader::new(&Recycled::new(1 << 20)))
}

/// What a source says about the size of a sample before reading it.
pub(crate) fn said<S: Source>(source: &S, index: usize) -> Result<usize> {
    source.sample_bytes(index, &Recycled::new(0))
}

/// The error of a sample: one line that has `says` in it.
pub(crate) fn failure<S: Source<Sample: Footprint>>(source: &S, index: usize, says: &str) -> Error {
    let error = read(source, index).err().unwrap();
    message(&error, says);
    error
}

/// Checks that an error is one line that has `says` in it.
pub(crate) fn message(error: &Error, says: &str) {
    let message = error.to_string();
    assert!(message.contains(says), "{message:?} does not say {says:?}");
    assert!(!message.contains('\n'), "{message:?} is more than a line");
}

/// The bytes that the extents of a sample cover, in all.
pub(crate) fn extent_bytes<S: Source>(source: &S, index: usize) -> usize {
    source.extents(index).iter().map(|extent| extent.bytes).sum()
}

//! The file of checksums beside ranges of files that carry none.
//!
//! Text: a first line with the version, then for each range its checksum, offset, bytes, the bytes of its file and the
//! file's path, and a last line with the checksum of all before. Paths are as they were given.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::Storage;

const HEAD: &str = "qvl-cache sums, version 1\n";

/// A line is some 100 bytes; this is a million ranges.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A range of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    path: String,
    offset: u64,
    bytes: u64,
    file_bytes: u64,
}

impl Place {
    pub(super) fn new(path: &Path, file_bytes: u64, offset: u64, bytes: u64) -> Self {
        // In one line, whatever the name is.
        let path = path.to_string_lossy().replace(['\n', '\r'], "\u{fffd}");
        Self { path, offset, bytes, file_bytes }
    }
}

/// Checksums of ranges, and the file that they are kept in.
pub(super) struct Sums {
    path: PathBuf,
    sums: BTreeMap<Place, u64>,
    /// The bytes that each file had.
    files: BTreeMap<String, u64>,
    changed: bool,
}

impl Sums {
    /// Reads the file, if there is one.
    pub(super) fn open(path: PathBuf, storage: &dyn Storage) -> Result<Self> {
        let mut sums = Self { path, sums: BTreeMap::new(), files: BTreeMap::new(), changed: false };
        let failed = |source| Error::Io { path: sums.path.clone(), operation: "read", source };
        let bytes = match std::fs::metadata(&sums.path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(sums),
            Err(source) => return Err(failed(source)),
        };
        if bytes > FILE_BYTES_MAX {
            return Err(sums.malformed(format!("{bytes} bytes, at most {FILE_BYTES_MAX} are read")));
        }
        let mut text = vec![0; bytes as usize];
        storage.read_at(&sums.path, 0, &mut text).map_err(failed)?;
        let text = String::from_utf8(text).map_err(|_| sums.malformed("is not text".into()))?;
        let lines = checked(&text).ok_or_else(|| {
            sums.malformed("is no file of sums, or damaged; remove it to have it made anew".into())
        })?;
        for line in lines.lines() {
            let (place, sum) = parse(line).ok_or_else(|| sums.malformed(format!("has the line {line:?}")))?;
            sums.files.insert(place.path.clone(), place.file_bytes);
            sums.sums.insert(place, sum);
        }
        Ok(sums)
    }

    /// What a range had, if it is known.
    ///
    /// # Errors
    ///
    /// If its file had another length then.
    pub(super) fn get(&self, place: &Place) -> Result<Option<u64>> {
        match self.files.get(&place.path) {
            Some(&had) if had != place.file_bytes => Err(self.malformed(format!(
                "was made when {} had {had} bytes, now it has {}; remove the sums if that file was meant to change",
                place.path, place.file_bytes
            ))),
            _ => Ok(self.sums.get(place).copied()),
        }
    }

    pub(super) fn learn(&mut self, place: Place, sum: u64) {
        self.changed |= self.sums.insert(place, sum) != Some(sum);
    }

    /// Writes the file anew if something was learned.
    pub(super) fn save(&mut self, storage: &dyn Storage) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let mut text = HEAD.to_owned();
        for (Place { path, offset, bytes, file_bytes }, sum) in &self.sums {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{sum:016x} {offset} {bytes} {file_bytes} {path}");
        }
        let sum = twox_hash::XxHash3_64::oneshot(text.as_bytes());
        let last = format!("{sum:016x}\n");
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        storage
            .remove(&temporary)
            .and_then(|()| storage.write_new(&temporary, &[text.as_bytes(), last.as_bytes()]))
            .and_then(|()| storage.sync(&temporary))
            .and_then(|()| storage.rename(&temporary, &self.path))
            .map_err(|source| Error::Io { path: self.path.clone(), operation: "write", source })?;
        self.changed = false;
        Ok(())
    }

    fn malformed(&self, what: String) -> Error {
        Error::Malformed { path: self.path.clone(), what }
    }
}

/// The lines between the first and the last, if the last is their checksum.
fn checked(text: &str) -> Option<&str> {
    let end = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (before, last) = text.split_at(end);
    let sum = twox_hash::XxHash3_64::oneshot(before.as_bytes());
    if last != format!("{sum:016x}\n") {
        return None;
    }
    before.strip_prefix(HEAD)
}

fn parse(line: &str) -> Option<(Place, u64)> {
    let mut fields = line.splitn(5, ' ');
    let sum = u64::from_str_radix(fields.next()?, 16).ok()?;
    let mut number = || fields.next()?.parse().ok();
    let (offset, bytes, file_bytes) = (number()?, number()?, number()?);
    Some((Place { path: fields.next()?.to_owned(), offset, bytes, file_bytes }, sum))
}

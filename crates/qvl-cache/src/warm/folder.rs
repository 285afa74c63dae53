//! The folder of a warm tier: what marks it, who has it, and where things are in it.
//!
//! ```text
//! qvl-cache      text: what this is, the format, how often it was opened, what it was filled for
//! lock           held by the process that has the folder open
//! index/         RocksDB
//! order          which values were used last and how often, as of the last flush or close
//! values/xx/     one file a value, named for its generation, which is never used twice; of a large value two: one that
//!                is the value, GENERATION.value, and GENERATION.footer
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::format::{FORMAT, Place};
use crate::storage::Storage;
use crate::{Error, Result};

const MARKER: &str = "qvl-cache";
const LOCK: &str = "lock";
const FIRST_LINE: &str = "a warm tier of qvl-cache";
/// Folders below `values/`.
pub(crate) const FAN_OUT: u64 = 256;
/// Values written one after the other that lie in one folder: file systems place the files of a folder beside each
/// other, and what was written together is often read together. Spread over all folders, reads of 1 MiB past the page
/// cache took 1.6 times as long.
const RUN: u64 = 512;

/// The number of the folder that a value's file is in.
pub(crate) fn fan_of(generation: u64) -> u64 {
    generation / RUN % FAN_OUT
}

/// A folder that this process has.
pub(crate) struct Folder {
    path: PathBuf,
    /// How often the folder was opened, this time included: the upper bits of generations.
    pub(crate) opened: u32,
    /// Whether it was new or has been cleared.
    pub(crate) fresh: bool,
    _lock: File,
}

struct Marker {
    opened: u32,
    fingerprint: String,
}

impl Folder {
    /// Creates it, or opens what is there, for one fingerprint.
    pub(crate) fn open(
        path: &Path,
        fingerprint: &str,
        may_clear: bool,
        storage: &dyn Storage,
    ) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            return Err(Error::NotAFolder { path: path.to_owned() });
        }
        storage.create_folder(path).map_err(|source| io_error(path, "create the folder", source))?;
        let marker_path = path.join(MARKER);
        if !marker_path.is_file()
            && let Some(found) = foreign(path)?
        {
            return Err(Error::Foreign { path: path.to_owned(), found });
        }
        let lock = lock(path)?;
        let mut folder = Self { path: path.to_owned(), opened: 1, fresh: false, _lock: lock };
        match read_marker(path, &marker_path)? {
            None => folder.fresh = true,
            Some(marker) => {
                folder.opened = marker.opened.saturating_add(1);
                if marker.fingerprint != fingerprint {
                    if !may_clear {
                        let (found, expected) = (marker.fingerprint, fingerprint.to_owned());
                        return Err(Error::Fingerprint { path: path.to_owned(), found, expected });
                    }
                    folder.clear(storage)?;
                    folder.fresh = true;
                }
            }
        }
        folder.write_marker(fingerprint, storage)?;
        folder
            .create_value_folders(storage)
            .map_err(|source| io_error(path, "create the folders", source))?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn marker(&self) -> PathBuf {
        self.path.join(MARKER)
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    pub(crate) fn order(&self) -> PathBuf {
        self.path.join("order")
    }

    /// Of a number below [`FAN_OUT`].
    pub(crate) fn value_folder(&self, fan: u64) -> PathBuf {
        self.path.join("values").join(format!("{fan:02x}"))
    }

    /// The file of this content.
    pub(crate) fn file(&self, content: Content, generation: u64) -> PathBuf {
        let end = content.end();
        self.value_folder(fan_of(generation)).join(format!("{generation:016x}{end}"))
    }

    /// The file that has a value which is in a file.
    pub(crate) fn value(&self, place: Place, generation: u64) -> PathBuf {
        self.file(if place == Place::Alone { Content::Value } else { Content::Whole }, generation)
    }

    /// All files of a value.
    pub(crate) fn files(&self, place: Place, generation: u64) -> impl Iterator<Item = PathBuf> {
        contents(place).iter().map(move |content| self.file(*content, generation))
    }

    /// All of them, so that one that is missing later says that something happened to the folder.
    pub(crate) fn create_value_folders(&self, storage: &dyn Storage) -> io::Result<()> {
        for fan in 0..FAN_OUT {
            let path = self.value_folder(fan);
            if !path.is_dir() {
                storage.create_folder(&path)?;
            }
        }
        storage.sync_folder(&self.path.join("values"))
    }

    /// Replaces a small file of the folder as a whole. Returns its bytes.
    pub(crate) fn replace(&self, name: &Path, contents: &[u8], storage: &dyn Storage) -> io::Result<u64> {
        let new = name.with_extension("new");
        storage.remove(&new)?;
        storage.write_new(&new, &[contents])?;
        storage.sync(&new)?;
        storage.rename(&new, name)?;
        storage.sync_folder(&self.path)?;
        Ok(contents.len() as u64)
    }

    /// The index first: files without one are found again, and belong to the marker, which is written last.
    fn clear(&self, storage: &dyn Storage) -> Result<()> {
        let cannot_clear = |source| io_error(&self.path, "clear the folder", source);
        storage.remove_folder(&self.index()).map_err(cannot_clear)?;
        storage.remove(&self.order()).map_err(cannot_clear)?;
        storage.remove_folder(&self.path.join("values")).map_err(cannot_clear)
    }

    fn write_marker(&self, fingerprint: &str, storage: &dyn Storage) -> Result<()> {
        let text = format!("{FIRST_LINE}\nformat {FORMAT}\nopened {}\n{fingerprint}", self.opened);
        let written = self.replace(&self.marker(), text.as_bytes(), storage);
        written.map_err(|source| io_error(&self.marker(), "write", source)).map(|_| ())
    }
}

/// What a file below `values/` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    /// A value and its footer.
    Whole,
    /// A value alone.
    Value,
    /// The footer of one.
    Footer,
}

impl Content {
    fn end(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Value => ".value",
            Self::Footer => ".footer",
        }
    }
}

/// The files of a value.
pub(crate) fn contents(place: Place) -> &'static [Content] {
    match place {
        Place::Inline => &[],
        Place::File => &[Content::Whole],
        Place::Alone => &[Content::Value, Content::Footer],
    }
}

/// What a file below `values/` has by its name, and the generation that it is named for.
pub(crate) fn named(path: &Path) -> Option<(Content, u64)> {
    let (number, end) = path.file_name()?.to_str()?.split_at_checked(16)?;
    if !number.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return None;
    }
    let content =
        [Content::Whole, Content::Value, Content::Footer].into_iter().find(|content| content.end() == end);
    Some((content?, u64::from_str_radix(number, 16).ok()?))
}

pub(crate) fn io_error(path: &Path, operation: &'static str, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), operation, source }
}

/// A file that is not of this crate's making.
fn foreign(path: &Path) -> Result<Option<String>> {
    let read_folder = |source| io_error(path, "read the folder", source);
    for entry in std::fs::read_dir(path).map_err(read_folder)? {
        let name = entry.map_err(read_folder)?.file_name();
        // What a drive of its own has, and what is left of an opening that was cut short before the marker.
        if !["lost+found", LOCK, "qvl-cache.new"].iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Held until the file is closed; also against a second opening in this process.
fn lock(path: &Path) -> Result<File> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let file = file.map_err(|source| io_error(&lock_path, "open", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error(&lock_path, "lock", source)),
    }
}

/// More openings than generations have bits for are not made by opening.
fn in_bounds(opened: &u32) -> bool {
    *opened < (1 << 24) - 1
}

fn read_marker(folder: &Path, path: &Path) -> Result<Option<Marker>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, "read", source)),
    };
    let malformed = |what: &str| Error::Malformed { path: path.to_owned(), what: what.to_owned() };
    let rest = text.strip_prefix(FIRST_LINE).and_then(|rest| rest.strip_prefix("\nformat "));
    let Some((format, rest)) = rest.and_then(|rest| rest.split_once('\n')) else {
        return Err(malformed("its first lines are not those of a cache's marker"));
    };
    let found = format.parse().map_err(|_| malformed("its format is no number"))?;
    if found != FORMAT {
        return Err(Error::Version { path: folder.to_owned(), found, expected: FORMAT });
    }
    let opened = rest.strip_prefix("opened ").and_then(|rest| rest.split_once('\n'));
    let opened = opened.and_then(|(opened, rest)| Some((opened.parse().ok().filter(in_bounds)?, rest)));
    let Some((opened, fingerprint)) = opened else {
        return Err(malformed("it does not say how often it was opened"));
    };
    Ok(Some(Marker { opened, fingerprint: fingerprint.to_owned() }))
}

//! Everything that is read from the system, through one trait: so that tests give folders of recorded machines.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The files of a machine.
pub trait System: Send + Sync + 'static {
    /// All of a small file, whose path is absolute, such as `/proc/meminfo`.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] where a machine has no such file.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// The file that stands for a path here, for what needs a descriptor, such as a trigger; `None` where nothing but
    /// reading is possible.
    fn real(&self, path: &Path) -> Option<PathBuf> {
        let _ = path;
        None
    }
}

/// The machine that this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live;

impl System for Live {
    fn read(&self, path: &Path) -> io::Result<String> {
        read(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        list(folder)
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        Some(path.to_owned())
    }
}

/// A machine that was recorded as a folder: `/proc/meminfo` is `proc/meminfo` in it. Colons in names are written `%3A`,
/// since Windows has no such names.
#[derive(Clone, Debug)]
pub struct Recorded {
    root: PathBuf,
}

impl Recorded {
    /// The machine in this folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn inside(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap_or(path);
        self.root.join(inside.to_string_lossy().replace(':', COLON))
    }
}

impl System for Recorded {
    fn read(&self, path: &Path) -> io::Result<String> {
        read(&self.inside(path))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = list(&self.inside(folder))?;
        names.iter_mut().for_each(|name| *name = name.replace(COLON, ":"));
        Ok(names)
    }
}

/// How a colon is written in the name of a recorded file.
const COLON: &str = "%3A";

/// A machine in memory, whose files can be changed while it is watched.
#[derive(Debug, Default)]
pub struct Written {
    files: parking_lot::Mutex<BTreeMap<PathBuf, String>>,
}

impl Written {
    /// Writes a file, or removes it.
    pub fn set(&self, path: impl Into<PathBuf>, text: Option<&str>) {
        let mut files = self.files.lock();
        match text {
            Some(text) => _ = files.insert(path.into(), text.to_owned()),
            None => _ = files.remove(&path.into()),
        }
    }
}

impl System for Written {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.files.lock().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock();
        let inside = files.keys().filter_map(|path| path.strip_prefix(folder).ok()?.iter().next());
        let mut names: Vec<String> = inside.map(|name| name.to_string_lossy().into_owned()).collect();
        names.dedup();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }
}

impl<S: System + ?Sized> System for std::sync::Arc<S> {
    fn read(&self, path: &Path) -> io::Result<String> {
        (**self).read(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        (**self).list(folder)
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        (**self).real(path)
    }
}

/// No more than a small file has: what is longer is not what it should be.
fn read(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

const FILE_BYTES_MAX: u64 = 1 << 20;

//! Finding files: which names a folder holds that match a list of patterns, one for each level, in an order that is
//! the same everywhere.
//!
//! Folders are walked with the set of positions that the names so far can have reached in the pattern, so a folder
//! is opened only if something below it can match. A link to a folder is followed unless it leads to a folder that
//! the walk is inside of; that ends every loop. Names that are not UTF-8 are compared by what is shown of them, and
//! kept exactly. No file is opened.

use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::source::shown;
use crate::{Error, Result};

/// One level of a pattern.
#[derive(Clone, Debug)]
pub(crate) enum Level {
    /// A name.
    Name(Pattern),
    /// Any number of folders, none included.
    Any,
}

/// What the names of files are to be.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// Any that the last level matches.
    Any,
    /// With one of these endings, in letters of either case.
    Extensions(&'a [String]),
}

/// What a walk found, and what it passed by: for the message if it found nothing.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) other_files: usize,
    pub(crate) hidden: usize,
    pub(crate) folders: usize,
}

impl Found {
    /// What was passed by, in words.
    pub(crate) fn passed(&self) -> String {
        format!(
            "{} folder(s) searched, {} other file(s) and {} hidden name(s) passed by",
            self.folders, self.other_files, self.hidden
        )
    }
}

/// The files under `root` whose path from there matches `levels`, sorted by the bytes of their paths.
///
/// # Errors
/// [`Error::Missing`] if there is no `root`; [`Error::Read`] for a folder that can match and cannot be read.
pub(crate) fn find(root: &Path, levels: &[Level], wanted: Wanted<'_>) -> Result<Found> {
    let canonical = fs::canonicalize(root).map_err(|e| refused(root, e))?;
    let mut walk = Walk { levels, wanted, found: Found::default(), above: vec![canonical] };
    walk.folder(root, &walk.reach(0))?;
    let mut found = walk.found;
    found.files.sort_unstable_by(|a, b| bytes_of(a).cmp(bytes_of(b)));
    Ok(found)
}

/// The bytes of a path, by which paths are sorted and hashed.
pub(crate) fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// The names in a folder with their types, sorted by their bytes, hidden ones left out and counted.
pub(crate) fn names(folder: &Path) -> Result<(Vec<(PathBuf, FileType)>, usize)> {
    let failed = |e| refused(folder, e);
    let (mut names, mut hidden) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_hidden(&entry.file_name()) {
            hidden += 1;
        } else {
            names.push((entry.path(), entry.file_type().map_err(failed)?));
        }
    }
    names.sort_unstable_by(|a, b| bytes_of(&a.0).cmp(bytes_of(&b.0)));
    Ok((names, hidden))
}

/// Whether a name ends in a dot and one of these, whatever the case of its letters.
pub(crate) fn has_extension(path: &Path, extensions: &[String]) -> bool {
    let extension = path.extension().map(OsStr::to_string_lossy);
    extension.is_some_and(|of_path| extensions.iter().any(|e| e.eq_ignore_ascii_case(&of_path)))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

fn refused(folder: &Path, source: std::io::Error) -> Error {
    let name = shown(folder);
    if source.kind() == ErrorKind::NotFound { Error::Missing { name } } else { Error::Read { name, source } }
}

struct Walk<'a> {
    levels: &'a [Level],
    wanted: Wanted<'a>,
    found: Found,
    /// The real paths of the folders the walk is in, from the root.
    above: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Positions that can be taken without a name: `position`, and what follows it if that is any number of folders.
    fn reach(&self, position: usize) -> Vec<usize> {
        let skipped = self.levels[position..].iter().take_while(|level| matches!(level, Level::Any)).count();
        (position..=position + skipped).collect()
    }

    /// Positions after a name.
    fn step(&self, positions: &[usize], name: &OsStr) -> Vec<usize> {
        let shown = name.to_string_lossy();
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
        let mut next = Vec::new();
        for position in positions {
            match self.levels.get(*position) {
                Some(Level::Any) if !is_hidden(name) => next.extend(self.reach(*position)),
                Some(Level::Name(pattern)) if pattern.matches_with(&shown, options) => {
                    next.extend(self.reach(position + 1));
                }
                _ => {}
            }
        }
        next.sort_unstable();
        next.dedup();
        next
    }

    fn folder(&mut self, folder: &Path, positions: &[usize]) -> Result<()> {
        self.found.folders += 1;
        let failed = |e| refused(folder, e);
        let mut inner = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, name) = (entry.path(), entry.file_name());
            let next = self.step(positions, &name);
            // A file is matched by a name, not by any number of folders.
            let matches = next.contains(&self.levels.len());
            let kind = entry.file_type().map_err(failed)?;
            let leads_to_folder = kind.is_dir() || kind.is_symlink() && path.is_dir();
            if leads_to_folder {
                if next.iter().any(|position| *position < self.levels.len()) {
                    inner.push((path, next, kind.is_symlink()));
                } else if is_hidden(&name) {
                    self.found.hidden += 1;
                }
            } else if matches && self.is_wanted(&path) {
                self.found.files.push(path);
            } else if is_hidden(&name) {
                self.found.hidden += 1;
            } else {
                self.found.other_files += 1;
            }
        }
        for (path, next, is_link) in inner {
            if let Some(real) = self.real(&path, is_link)? {
                self.above.push(real);
                self.folder(&path, &next)?;
                self.above.pop();
            }
        }
        Ok(())
    }

    fn is_wanted(&self, path: &Path) -> bool {
        match self.wanted {
            Wanted::Any => true,
            Wanted::Extensions(extensions) => has_extension(path, extensions),
        }
    }

    /// The real path of a folder to walk into; none if the walk is inside of it already.
    fn real(&self, path: &Path, is_link: bool) -> Result<Option<PathBuf>> {
        let real = match (is_link, self.above.last(), path.file_name()) {
            (false, Some(above), Some(name)) => above.join(name),
            _ => fs::canonicalize(path).map_err(|e| refused(path, e))?,
        };
        Ok((!self.above.contains(&real)).then_some(real))
    }
}

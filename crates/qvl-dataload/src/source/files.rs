//! Picture files: those of a folder, those that match a pattern, or a list of them.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use glob::Pattern;

use crate::buffer::Buffers;
use crate::source::listing::{self, Level, Wanted, bytes_of};
use crate::source::{Encoded, Source, fingerprint, shown};
use crate::storage::{DataFile, Extent, Reader};
use crate::{Error, Result};

/// The longest file read unless another limit is set, in bytes: 256 MiB.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Files, each of which is one sample. They are sorted by the bytes of their paths, unless they were given as a
/// list.
///
/// Listing opens no file, so what is wrong with one is the error of its sample: it has vanished, it is a folder, it
/// may not be read. A file of 0 bytes is read as such; decoding refuses it.
#[derive(Clone)]
pub struct Files {
    files: Arc<[DataFile]>,
    max_file_bytes: u64,
}

/// Which files of a folder are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderOptions {
    /// Whether those in folders inside the folder are taken too, and in theirs.
    pub recursive: bool,
    /// Endings of names, without the dot; letters match in either case.
    pub extensions: Vec<String>,
}

impl Default for FolderOptions {
    /// Every picture this crate decodes, however deep: jpg, jpeg, png, webp, gif, bmp.
    fn default() -> Self {
        let extensions = ["jpg", "jpeg", "png", "webp", "gif", "bmp"].map(str::to_owned).to_vec();
        Self { recursive: true, extensions }
    }
}

impl Files {
    /// The pictures in a folder and in the folders inside it. Names that begin with a dot are left out; links are
    /// followed, but not in a circle.
    ///
    /// # Errors
    /// [`Error::Missing`] without such a folder, [`Error::Read`] for a folder that cannot be read,
    /// [`Error::NoSamples`] if there is no picture.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        Self::folder_with(path, &FolderOptions::default())
    }

    /// The files of a folder that the options ask for.
    ///
    /// # Errors
    /// As [`Files::folder`].
    pub fn folder_with(path: impl AsRef<Path>, options: &FolderOptions) -> Result<Self> {
        let path = path.as_ref();
        let name = Level::Name(pattern_of("*")?);
        let levels = if options.recursive { vec![Level::Any, name] } else { vec![name] };
        let found = listing::find(path, &levels, Wanted::Extensions(&options.extensions))?;
        if found.files.is_empty() {
            let (extensions, passed) = (options.extensions.join(", "), found.passed());
            let depth = if options.recursive { "at any depth" } else { "directly in it" };
            let what = format!("no file {depth} whose name ends in one of {extensions} ({passed})");
            return Err(Error::NoSamples { name: shown(path), what });
        }
        Ok(Self::of(found.files))
    }

    /// The files that match a pattern: `*` and `?` for characters of a name, `[...]` for one of several, `**` for any
    /// number of folders. Names that begin with a dot match only a pattern that does; folders match nothing.
    ///
    /// # Errors
    /// [`Error::NoSamples`] if nothing matches, or if it is no pattern; [`Error::Read`] for a folder that can match
    /// and cannot be read.
    pub fn glob(pattern: &str) -> Result<Self> {
        let none = |what: String| Error::NoSamples { name: pattern.to_owned(), what };
        let components: Vec<Component<'_>> = Path::new(pattern).components().collect();
        // The folder to begin in is what comes before the first level with a wildcard, at most all but the last.
        let is_plain = |c: &Component<'_>| !matches!(c, Component::Normal(n) if n.to_string_lossy().contains(['*', '?', '[']));
        let fixed = components.iter().take_while(|c| is_plain(c)).count();
        let fixed = fixed.min(components.len().saturating_sub(1));
        let mut root: PathBuf = components[..fixed].iter().collect();
        if root.as_os_str().is_empty() {
            root.push(Component::CurDir);
        }
        let mut levels = Vec::new();
        for component in &components[fixed..] {
            match component.as_os_str().to_str() {
                Some("**") if matches!(levels.last(), Some(Level::Any)) => {}
                Some("**") => levels.push(Level::Any),
                Some(level) => levels
                    .push(Level::Name(Pattern::new(level).map_err(|e| none(format!("is no pattern: {e}")))?)),
                None => return Err(none("is no pattern: not UTF-8".to_owned())),
            }
        }
        if matches!(levels.last(), Some(Level::Any)) {
            levels.push(Level::Name(pattern_of("*")?));
        }
        if levels.is_empty() {
            return Err(none("is no pattern for files".to_owned()));
        }
        let found = match listing::find(&root, &levels, Wanted::Any) {
            Err(Error::Missing { name }) if name == shown(&root) => {
                return Err(none(format!("no file matches: there is no folder {name}")));
            }
            found => found?,
        };
        if found.files.is_empty() {
            return Err(none(format!("no file matches ({})", found.passed())));
        }
        Ok(Self::of(found.files))
    }

    /// These files, in this order. Whether they are there is not looked at.
    ///
    /// # Errors
    /// [`Error::NoSamples`] for an empty list.
    pub fn list<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        let files = Self::of(paths);
        if files.is_empty() {
            let (name, what) = ("the list of files".to_owned(), "is empty".to_owned());
            return Err(Error::NoSamples { name, what });
        }
        Ok(files)
    }

    /// Refuses files of more bytes than this, by default 256 MiB: each one with [`Error::FileSize`].
    pub fn max_file_bytes(self, max_file_bytes: u64) -> Self {
        Self { max_file_bytes, ..self }
    }

    /// Where a sample is read from.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.files.get(index).map(DataFile::path)
    }

    fn of<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self { files: paths.into_iter().map(DataFile::once).collect(), max_file_bytes: MAX_FILE_BYTES }
    }

    fn extent(&self, index: usize) -> Result<Extent> {
        let file = self.files.get(index).ok_or_else(|| Error::Index {
            what: "the files".to_owned(),
            index,
            len: self.files.len(),
        })?;
        whole(file, self.max_file_bytes)
    }
}

impl Source for Files {
    type Sample = Encoded;

    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map_or_else(|| format!("file {index}"), shown)
    }

    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        self.extent(index).map(|extent| whole_bytes(&extent, buffers))
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Encoded> {
        read_whole(&self.extent(index)?, reader)
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        // What is wrong with the file is said by `read`.
        self.extent(index).into_iter().collect()
    }

    fn fingerprint(&self) -> u64 {
        fingerprint(self.files.iter().map(|file| bytes_of(file.path())))
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("len", &self.len())
            .field("first", &self.path(0))
            .finish_non_exhaustive()
    }
}

/// All of a file, if it is one and not longer than the limit. Costs a look at its metadata.
pub(crate) fn whole(file: &DataFile, limit_bytes: u64) -> Result<Extent> {
    let name = || shown(file.path());
    let metadata = file.path().metadata().map_err(|e| file.failed(e))?;
    if metadata.is_dir() {
        return Err(Error::Folder { name: name() });
    }
    if !metadata.is_file() {
        // Opening a pipe that nobody writes to would wait for ever.
        let source =
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "a pipe or device, not a regular file");
        return Err(Error::Read { name: name(), source });
    }
    let too_long = || Error::FileSize { name: name(), bytes: metadata.len(), limit_bytes };
    if metadata.len() > limit_bytes {
        return Err(too_long());
    }
    let bytes = usize::try_from(metadata.len()).map_err(|_| too_long())?;
    Ok(Extent { file: file.clone(), offset: 0, bytes })
}

/// Memory that a file takes once it is read.
pub(crate) fn whole_bytes(extent: &Extent, buffers: &dyn Buffers) -> usize {
    Encoded::bytes_of(shown(extent.file.path()).len(), extent.bytes, buffers)
}

/// The bytes of an extent that is a whole file.
pub(crate) fn read_whole(extent: &Extent, reader: &mut Reader<'_>) -> Result<Encoded> {
    let bytes = reader.read(extent)?;
    Ok(Encoded { name: shown(extent.file.path()).into(), bytes })
}

fn pattern_of(text: &str) -> Result<Pattern> {
    Pattern::new(text)
        .map_err(|e| Error::NoSamples { name: text.to_owned(), what: format!("is no pattern: {e}") })
}

//! Videos as folders of pictures, one for each frame.
//!
//! Frames are in the natural order of their names, `frame2` before `frame10`. If all names are one text and a number,
//! the number says which frame of the source it is; otherwise its place among the files does.

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::buffer::Buffers;
use crate::source::files::{FolderOptions, MAX_FILE_BYTES, read_whole, whole, whole_bytes};
use crate::source::listing::{bytes_of, has_extension, names};
use crate::source::{Encoded, Footprint, Source, fingerprint, shown};
use crate::storage::{DataFile, Extent, Reader};
use crate::vision::{DecodeLimits, Still, Video, VideoConfig};
use crate::{Error, Result};

/// The longest file with a frame rate that is read, in bytes. It holds one number.
const MAX_RATE_BYTES: u64 = 64 << 10;

/// Folders, each of which is a video: its pictures are the frames.
///
/// The frame rate comes from the options, or from a file `fps.txt` (`25` or `30000/1001`) or `meta.json`
/// (`{"fps": 25}`) in the folder. A folder is listed whenever its sample is asked for, so frames that come later are
/// seen, and what is wrong with a folder is the error of its sample.
#[derive(Clone)]
pub struct FrameFolders {
    folders: Arc<[PathBuf]>,
    options: FrameOptions,
}

/// How a folder of frames is read.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameOptions {
    /// Frames per second of the source; without it a file in the folder says so.
    pub fps: Option<f64>,
    /// The number in the name of the first frame of the source: 0, or 1 as ffmpeg numbers them. It is subtracted from
    /// the numbers in the names, since time begins at index 0.
    pub first_number: u64,
    /// Reads only the frames that [`VideoConfig::sample_indices`] keeps, so that a long video takes no more memory
    /// than what is left of it. Needs all frames of the source. Without this all frames are read.
    pub sample: Option<VideoConfig>,
    /// The longest file of a frame, in bytes.
    pub max_file_bytes: u64,
}

impl Default for FrameOptions {
    /// Every frame, numbered from 0, with the frame rate that the folder states; files of 256 MiB.
    fn default() -> Self {
        Self { fps: None, first_number: 0, sample: None, max_file_bytes: MAX_FILE_BYTES }
    }
}

/// The frames of a video as they are stored.
#[derive(Debug)]
pub struct FrameFolder {
    /// The folder, or the manifest and the line that name the video.
    pub name: Arc<str>,
    /// Frames per second of the source.
    pub fps: f64,
    /// The frames that were read, with their index in the source.
    pub frames: Vec<(u64, Encoded)>,
}

impl FrameFolder {
    /// What one takes beside its frames.
    pub(crate) fn bytes_of(name: &str, frames: usize) -> usize {
        size_of::<Self>() + name.len() + frames * size_of::<u64>()
    }

    /// Decodes the frames.
    ///
    /// # Errors
    /// What [`Still::decode`] and [`Video::from_frames`] return; the frame that is wrong is named by its file.
    pub fn decode(&self, limits: &DecodeLimits) -> Result<Video> {
        let mut stills: Vec<(u64, Still)> = Vec::with_capacity(self.frames.len());
        for (index, frame) in &self.frames {
            let still = Still::decode(&frame.bytes, &frame.name, limits)?;
            if let Some((_, first)) = stills.first()
                && (first.width(), first.height()) != (still.width(), still.height())
            {
                return Err(Error::FrameSize {
                    name: frame.name.to_string(),
                    width: still.width(),
                    height: still.height(),
                    expected_width: first.width(),
                    expected_height: first.height(),
                });
            }
            stills.push((*index, still));
        }
        Video::from_frames(stills, self.fps)
    }
}

impl Footprint for FrameFolder {
    fn footprint(&self) -> usize {
        let frames: usize = self.frames.iter().map(|(_, frame)| frame.footprint()).sum();
        Self::bytes_of(&self.name, self.frames.len()) + frames
    }
}

impl FrameFolders {
    /// The folders inside `root`, sorted by the bytes of their names, each a video. Names that begin with a dot are
    /// left out.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::NoSamples`] if there is no folder in it.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let (names, hidden) = names(root)?;
        let count = names.len();
        let is_folder =
            |path: &Path, kind: std::fs::FileType| kind.is_dir() || kind.is_symlink() && path.is_dir();
        let folders: Arc<[PathBuf]> =
            names.into_iter().filter(|(path, kind)| is_folder(path, *kind)).map(|(path, _)| path).collect();
        if folders.is_empty() {
            let what = format!(
                "no folder in it, each of which would be a video ({count} file(s) and {hidden} hidden name(s) passed \
                 by); a folder of frames itself is opened with FrameFolders::list"
            );
            return Err(Error::NoSamples { name: shown(root), what });
        }
        Ok(Self { folders, options: FrameOptions::default() })
    }

    /// These folders, in this order. Whether they are there is not looked at.
    ///
    /// # Errors
    /// [`Error::NoSamples`] for an empty list.
    pub fn list<P: AsRef<Path>>(folders: impl IntoIterator<Item = P>) -> Result<Self> {
        let folders: Arc<[PathBuf]> = folders.into_iter().map(|folder| folder.as_ref().to_owned()).collect();
        if folders.is_empty() {
            let (name, what) = ("the list of folders".to_owned(), "is empty".to_owned());
            return Err(Error::NoSamples { name, what });
        }
        Ok(Self { folders, options: FrameOptions::default() })
    }

    /// Sets how the folders are read.
    pub fn options(self, options: FrameOptions) -> Self {
        Self { options, ..self }
    }

    fn frames(&self, index: usize) -> Result<Frames<Extent>> {
        let (what, len) = ("the folders of frames".to_owned(), self.folders.len());
        let folder = self.folders.get(index).ok_or(Error::Index { what, index, len })?;
        Frames::of_folder(folder, &self.options)?.try_map(|file| whole(file, self.options.max_file_bytes))
    }
}

impl Source for FrameFolders {
    type Sample = FrameFolder;

    fn len(&self) -> usize {
        self.folders.len()
    }

    fn name(&self, index: usize) -> String {
        self.folders.get(index).map_or_else(|| format!("folder {index}"), |folder| shown(folder))
    }

    /// Lists the folder and looks at the size of each frame.
    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let frames = self.frames(index)?;
        let bytes: usize = frames.frames.iter().map(|(_, extent)| whole_bytes(extent, buffers)).sum();
        Ok(FrameFolder::bytes_of(&frames.name, frames.frames.len()) + bytes)
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<FrameFolder> {
        self.frames(index)?.read(|extent| read_whole(&extent, reader))
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        // What is wrong is said by `read`.
        let frames = self.frames(index).map(|frames| frames.frames).unwrap_or_default();
        frames.into_iter().map(|(_, extent)| extent).collect()
    }

    fn fingerprint(&self) -> u64 {
        fingerprint(self.folders.iter().map(|folder| bytes_of(folder)))
    }
}

impl fmt::Debug for FrameFolders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameFolders")
            .field("len", &self.folders.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A video before its frames are read: with each frame's index in the source, where it is.
pub(crate) struct Frames<T> {
    pub(crate) name: String,
    pub(crate) fps: f64,
    pub(crate) frames: Vec<(u64, T)>,
}

impl Frames<DataFile> {
    /// The pictures in a folder that the options ask for.
    pub(crate) fn of_folder(folder: &Path, options: &FrameOptions) -> Result<Self> {
        let name = shown(folder);
        if folder.is_file() {
            let what =
                "is a file; a video is read from a folder of frames, so take it apart first".to_owned();
            return Err(Error::NoSamples { name, what });
        }
        let FolderOptions { extensions, .. } = FolderOptions::default();
        let (entries, _) = names(folder)?;
        let passed = entries.len();
        let mut files: Vec<PathBuf> = entries
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| has_extension(path, &extensions))
            .collect();
        if files.is_empty() {
            let what = format!(
                "no frame in it: no file whose name ends in one of {} ({passed} other name(s) passed by)",
                extensions.join(", ")
            );
            return Err(Error::NoSamples { name, what });
        }
        files.sort_by(|a, b| natural_order(bytes_of(a), bytes_of(b)));
        let fps = match options.fps {
            Some(fps) => fps,
            None => stated_rate(folder)?,
        };
        let indices = source_indices(&files, options.first_number)?;
        let files = files.iter().map(DataFile::once);
        Self { name, fps, frames: indices.into_iter().zip(files).collect() }.sampled(options.sample.as_ref())
    }
}

impl<T> Frames<T> {
    /// What is left after sampling, if it is asked for.
    pub(crate) fn sampled(self, config: Option<&VideoConfig>) -> Result<Self> {
        let Some(config) = config else { return Ok(self) };
        // As `Video::sample`: sampling counts the frames of the source.
        if let Some((position, (got, _))) = self.frames.iter().enumerate().find(|(i, f)| f.0 != *i as u64) {
            return Err(Error::AlreadySampled { position, got: *got });
        }
        let mut keep = config.sample_indices(self.frames.len(), self.fps)?.into_iter().peekable();
        let is_kept = |(position, frame)| keep.next_if_eq(&position).map(|_| frame);
        let frames = self.frames.into_iter().enumerate().filter_map(is_kept).collect();
        Ok(Self { frames, ..self })
    }

    pub(crate) fn try_map<U>(self, mut each: impl FnMut(&T) -> Result<U>) -> Result<Frames<U>> {
        let frames: Result<_> = self.frames.iter().map(|(index, frame)| Ok((*index, each(frame)?))).collect();
        Ok(Frames { name: self.name, fps: self.fps, frames: frames? })
    }

    pub(crate) fn read(self, mut each: impl FnMut(T) -> Result<Encoded>) -> Result<FrameFolder> {
        let frames: Result<_> =
            self.frames.into_iter().map(|(index, frame)| Ok((index, each(frame)?))).collect();
        Ok(FrameFolder { name: self.name.into(), fps: self.fps, frames: frames? })
    }
}

/// Numbers by their value, everything else byte by byte.
fn natural_order(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let (whole_a, whole_b) = (a, b);
    while let (Some((first_a, rest_a)), Some((first_b, rest_b))) = (a.split_first(), b.split_first()) {
        if first_a.is_ascii_digit() && first_b.is_ascii_digit() {
            let (number_a, number_b);
            (number_a, a) = leading_number(a);
            (number_b, b) = leading_number(b);
            // Without leading zeros the longer number is the larger one.
            match number_a.len().cmp(&number_b.len()).then(number_a.cmp(number_b)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        } else if first_a == first_b {
            (a, b) = (rest_a, rest_b);
        } else {
            return first_a.cmp(first_b);
        }
    }
    a.len().cmp(&b.len()).then(whole_a.cmp(whole_b))
}

/// The digits a text begins with, without leading zeros, and what follows them.
fn leading_number(text: &[u8]) -> (&[u8], &[u8]) {
    let (digits, rest) = text.split_at(text.iter().take_while(|b| b.is_ascii_digit()).count());
    (&digits[digits.iter().take_while(|b| **b == b'0').count()..], rest)
}

/// The index of each frame in its source: the number that its name ends in, if all names begin alike and end in a
/// number; otherwise its position. Two frames with one number are an error.
fn source_indices(files: &[PathBuf], first_number: u64) -> Result<Vec<u64>> {
    let numbered: Option<Vec<(&[u8], u64)>> = files.iter().map(|file| number_of(file)).collect();
    let Some(numbered) = numbered.filter(|all| all.windows(2).all(|pair| pair[0].0 == pair[1].0)) else {
        return Ok((0..files.len() as u64).collect());
    };
    let mut indices: Vec<u64> = Vec::with_capacity(files.len());
    for (position, (_, number)) in numbered.iter().enumerate() {
        let expected = indices.last().map_or(first_number, |last| (last + first_number).saturating_add(1));
        if *number < expected {
            return Err(Error::FrameOrder { position, got: *number, expected });
        }
        indices.push(number - first_number);
    }
    Ok(indices)
}

/// What comes before the number at the end of a name, and the number.
fn number_of(file: &Path) -> Option<(&[u8], u64)> {
    let stem = file.file_stem()?.as_encoded_bytes();
    let digits = stem.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (text, digits) = stem.split_at(stem.len() - digits);
    Some((text, std::str::from_utf8(digits).ok()?.parse().ok()?))
}

/// The frame rate that a file in the folder states.
fn stated_rate(folder: &Path) -> Result<f64> {
    let (text, json) = (folder.join("fps.txt"), folder.join("meta.json"));
    if let Some(content) = small_file(&text)? {
        return rate_of(&content).ok_or_else(|| wrong_rate(&text, content.trim()));
    }
    if let Some(content) = small_file(&json)? {
        let syntax = |source| Error::ConfigSyntax { name: shown(&json), source };
        let value: serde_json::Value = serde_json::from_str(&content).map_err(|e| syntax(Some(e.into())))?;
        let members = value.as_object().ok_or_else(|| syntax(None))?;
        if let Some(fps) = members.get("fps") {
            let rate = fps.as_f64().filter(|rate| is_rate(*rate));
            return rate.ok_or_else(|| wrong_rate(&json, &fps.to_string()));
        }
    }
    Err(Error::NoFrameRate { name: shown(folder) })
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

/// A number, or one divided by another.
fn rate_of(text: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| is_rate(*number));
    let rate = match text.split_once('/') {
        Some((count, seconds)) => number(count)? / number(seconds)?,
        None => number(text)?,
    };
    is_rate(rate).then_some(rate)
}

fn wrong_rate(file: &Path, got: &str) -> Error {
    Error::ConfigValue {
        name: shown(file),
        key: "fps".to_owned(),
        got: got.chars().take(40).flat_map(char::escape_debug).collect(),
        expected: "a positive number of frames per second".to_owned(),
    }
}

/// The text of a file that holds a number; none if there is no such file.
fn small_file(path: &Path) -> Result<Option<String>> {
    let file = DataFile::once(path);
    match whole(&file, MAX_RATE_BYTES) {
        Err(Error::Missing { .. }) => return Ok(None),
        sized => sized?,
    };
    let mut content = String::new();
    match File::open(path).and_then(|opened| opened.take(MAX_RATE_BYTES).read_to_string(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file.failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_by_value() {
        let ordered =
            ["", "a", "a0", "a00", "a1", "a2", "a02b", "a9", "a10", "a10b", "a100000000000000000000", "b"];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                let same_number = matches!((*a, *b), ("a2", "a02b") | ("a02b", "a2"));
                assert!(natural_order(a.as_bytes(), b.as_bytes()) == i.cmp(&j) || same_number, "{a} {b}");
            }
        }
    }

    fn indices(names: &[&str], first: u64) -> Result<Vec<u64>> {
        source_indices(&names.iter().map(PathBuf::from).collect::<Vec<_>>(), first)
    }

    #[test]
    fn the_number_of_a_name_is_its_index() {
        assert_eq!(indices(&["f0.jpg", "f5.png", "f010.jpg"], 0).unwrap(), [0, 5, 10]);
        assert_eq!(indices(&["v/001.jpg", "v/002.jpg"], 1).unwrap(), [0, 1]);
        assert_eq!(
            indices(&["a1.jpg", "b7.jpg"], 0).unwrap(),
            [0, 1],
            "names that differ in more than a number"
        );
        assert_eq!(indices(&["a1.jpg", "a.jpg"], 0).unwrap(), [0, 1], "a name without a number");
        assert_eq!(indices(&["99999999999999999999.jpg"], 0).unwrap(), [0], "a number too large");
        assert_eq!(indices(&["18446744073709551615.jpg"], 0).unwrap(), [u64::MAX]);
        assert!(matches!(
            indices(&["f1.jpg", "f01.jpg"], 0),
            Err(Error::FrameOrder { position: 1, got: 1, expected: 2 })
        ));
        assert!(matches!(
            indices(&["f0.jpg"], 1),
            Err(Error::FrameOrder { position: 0, got: 0, expected: 1 })
        ));
    }

    #[test]
    fn rates() {
        assert_eq!(rate_of(" 25\n"), Some(25.0));
        assert_eq!(rate_of("30000/1001"), Some(30000.0 / 1001.0));
        for wrong in ["", "0", "-1", "nan", "inf", "1/0", "25 fps", "1/2/3", "1e308/1e-308"] {
            assert_eq!(rate_of(wrong), None, "{wrong}");
        }
    }
}

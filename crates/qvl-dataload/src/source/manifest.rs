//! Manifests: files with a JSON object on each line, which name the pictures that belong to it.
//!
//! Opening finds where the lines begin and keeps nothing else, so a manifest may be larger than memory. A line is
//! parsed when its sample is read; one that cannot be is the error of that sample and of no other.

mod line;
mod location;

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub(crate) use line::Line;
use line::Medium;
pub(crate) use location::Location;

use crate::buffer::{Buffer, Buffers};
use crate::source::files::{MAX_FILE_BYTES, read_whole, whole, whole_bytes};
use crate::source::frames::{FrameFolder, FrameOptions, Frames};
use crate::source::{Encoded, Footprint, Source, fingerprint, shown};
use crate::storage::{DataFile, Extent, Reader};
use crate::vision::VideoConfig;
use crate::{Error, Result};

/// A manifest in JSON Lines: each line an object, each object a sample. Empty lines are passed over.
///
/// Pictures are found where data sets for chat models name them:
///
/// - in `messages[].content[]`: `{"type": "image", "image": …}` (also `path`, `url`) and
///   `{"type": "image_url", "image_url": {"url": …}}`;
/// - in `image` or `images` beside the messages; then an item `{"type": "image"}` that names nothing takes the next
///   of them.
///
/// A place is a path, from the folder of the manifest if it is relative; a `file://` URL; or a `data:` URL with the
/// picture in base64. Nothing is fetched over a network. A manifest can name any file that the process may read.
///
/// Videos are `{"type": "video", "video": …, "fps": 25}` in the same places (`video` or `videos` beside the messages):
/// a folder of frames, as [`FrameFolders`](crate::FrameFolders) reads it, or a list of pictures.
pub struct Manifest {
    file: DataFile,
    /// The folder that relative paths begin in.
    folder: PathBuf,
    lines: Vec<Place>,
    limits: ManifestLimits,
    sample: Option<VideoConfig>,
    fingerprint: u64,
}

/// Where a line is. Sixteen bytes for each.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    /// Saturates.
    bytes: u32,
    /// From 1; saturates.
    line: u32,
}

/// What a line of a manifest may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestLimits {
    /// The longest line, in bytes; pictures in `data:` URLs are part of it.
    pub max_line_bytes: u32,
    /// The most pictures named by one line, frames of videos included.
    pub max_pictures: usize,
    /// The longest file of a picture, in bytes.
    pub max_file_bytes: u64,
}

impl Default for ManifestLimits {
    /// Lines of 16 MiB, 1,024 pictures each, files of 256 MiB.
    fn default() -> Self {
        Self { max_line_bytes: 16 << 20, max_pictures: 1_024, max_file_bytes: MAX_FILE_BYTES }
    }
}

/// A line of a manifest, and the pictures it names.
#[derive(Debug)]
pub struct Record {
    /// Its number, from 1, empty lines counted.
    pub line: usize,
    /// The object on it.
    pub value: Map<String, Value>,
    /// The pictures, in the order in which the line names them.
    pub images: Vec<Encoded>,
    /// The videos, in the order in which the line names them.
    pub videos: Vec<FrameFolder>,
}

impl Footprint for Record {
    fn footprint(&self) -> usize {
        let members = self.value.iter().map(|(key, value)| key.capacity() + of_value(value)).sum::<usize>();
        let images = self.images.iter().map(Footprint::footprint).sum::<usize>();
        size_of::<Self>() + members + images + self.videos.iter().map(Footprint::footprint).sum::<usize>()
    }
}

impl Manifest {
    /// Finds the lines of a manifest. Reads it once, and keeps sixteen bytes a line.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Folder`], [`Error::Read`]; [`Error::NoSamples`] if every line is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = DataFile::kept(path);
        whole(&file, u64::MAX)?;
        let opened = File::open(path).map_err(|e| file.failed(e))?;
        let lines = places(&mut BufReader::with_capacity(1 << 16, opened)).map_err(|e| file.failed(e))?;
        if lines.is_empty() {
            let what = "no line with a JSON object: the file is empty, or all its lines are".to_owned();
            return Err(Error::NoSamples { name: shown(path), what });
        }
        let fingerprint = fingerprint(lines.iter().map(|place| place.offset.to_le_bytes()));
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { file, folder, lines, limits: ManifestLimits::default(), sample: None, fingerprint })
    }

    /// Sets what a line may ask for.
    pub fn limits(self, limits: ManifestLimits) -> Self {
        Self { limits, ..self }
    }

    /// Reads only the frames of a video that [`VideoConfig::sample_indices`] keeps. Without this all are read.
    pub fn sample(self, config: VideoConfig) -> Self {
        Self { sample: Some(config), ..self }
    }

    /// Looks at every line and every file that one names, and returns what is wrong, in the order of the lines: an
    /// empty list means that every sample can be read. Takes a parse a line and a look at the metadata of each file.
    ///
    /// # Errors
    /// What makes reading the manifest itself impossible.
    pub fn check(&self) -> Result<Vec<Error>> {
        let mut file = File::open(self.file.path()).map_err(|e| self.file.failed(e))?;
        let mut wrong = Vec::new();
        for index in 0..self.lines.len() {
            let checked = match self.text(index, &mut file) {
                Ok(text) => self.parse(index, &text).and_then(|line| self.media(index, &line)),
                Err(error @ Error::ManifestLine { .. }) => Err(error),
                Err(error) => return Err(error),
            };
            wrong.extend(checked.err());
        }
        Ok(wrong)
    }

    fn place(&self, index: usize) -> Result<Place> {
        let (what, len) = (shown(self.file.path()), self.lines.len());
        self.lines.get(index).copied().ok_or(Error::Index { what, index, len })
    }

    fn wrong(&self, line: u32, what: String) -> Error {
        Error::ManifestLine { name: shown(self.file.path()), line: line as usize, what, source: None }
    }

    /// Where the line is, if it is not too long.
    fn extent(&self, index: usize) -> Result<Extent> {
        let Place { offset, bytes, line } = self.place(index)?;
        let limit = self.limits.max_line_bytes;
        if bytes > limit {
            return Err(self.wrong(line, format!("has {bytes} bytes or more, the limit is {limit} bytes")));
        }
        Ok(Extent { file: self.file.clone(), offset, bytes: bytes as usize })
    }

    /// The text of a line, past the reader: for what has to be known before reading.
    fn text(&self, index: usize, file: &mut File) -> Result<Vec<u8>> {
        let Extent { offset, bytes, .. } = self.extent(index)?;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(bytes as u64).read_to_end(&mut text))
            .map_err(|e| self.file.failed(e))?;
        Ok(text)
    }

    fn parse(&self, index: usize, text: &[u8]) -> Result<Line> {
        let line = self.place(index)?.line as usize;
        Line::parse(text, self.limits.max_pictures).map_err(|wrong| Error::ManifestLine {
            name: shown(self.file.path()),
            line,
            what: wrong.what,
            source: wrong.source,
        })
    }

    /// The line without its pictures, and where these are.
    fn look(&self, index: usize) -> Result<(usize, Vec<Found>)> {
        let mut file = File::open(self.file.path()).map_err(|e| self.file.failed(e))?;
        let text = self.text(index, &mut file)?;
        let line = self.parse(index, &text)?;
        let bytes = line.value.iter().map(|(key, value)| key.capacity() + of_value(value)).sum();
        Ok((bytes, self.media(index, &line)?))
    }

    /// Where the pictures and frames of a line are. Looks at the metadata of each.
    fn media(&self, index: usize, line: &Line) -> Result<Vec<Found>> {
        let number = self.place(index)?.line;
        let limit = self.limits.max_pictures;
        let mut left = limit;
        let mut take = |pictures: usize| {
            left = left.checked_sub(pictures).ok_or_else(|| {
                self.wrong(number, format!("names more pictures and frames than the limit of {limit}"))
            })?;
            Ok::<_, Error>(())
        };
        let mut found = Vec::with_capacity(line.media.len());
        for (position, medium) in line.media.iter().enumerate() {
            let name = || format!("{}: picture or video {}", self.name(index), position + 1);
            found.push(match medium {
                Medium::Image(location) => {
                    take(1)?;
                    Found::Image(self.picture(location, number, name())?)
                }
                Medium::Frames { frames, fps } => {
                    take(frames.len())?;
                    let frames = frames
                        .iter()
                        .enumerate()
                        .map(|(i, frame)| {
                            let picture = self.picture(frame, number, format!("{}, frame {i}", name()))?;
                            Ok((i as u64, picture))
                        })
                        .collect::<Result<Vec<_>>>()?;
                    let video = Frames { name: name(), fps: *fps, frames };
                    Found::Video(video.sampled(self.sample.as_ref())?)
                }
                Medium::Folder { location, fps } => {
                    let Location::File(path) = location else {
                        return Err(self.wrong(number, "a video in a data: URL is not read".to_owned()));
                    };
                    let options = FrameOptions {
                        fps: *fps,
                        sample: self.sample.clone(),
                        max_file_bytes: self.limits.max_file_bytes,
                        ..FrameOptions::default()
                    };
                    let frames = Frames::of_folder(&self.folder.join(path), &options)?;
                    take(frames.frames.len())?;
                    let pictures =
                        |file: &DataFile| whole(file, self.limits.max_file_bytes).map(Picture::File);
                    Found::Video(frames.try_map(pictures)?)
                }
            });
        }
        Ok(found)
    }

    fn picture(&self, location: &Location, line: u32, name: String) -> Result<Picture> {
        match location {
            Location::File(path) => {
                whole(&DataFile::once(self.folder.join(path)), self.limits.max_file_bytes).map(Picture::File)
            }
            Location::Data(bytes) if bytes.len() as u64 > self.limits.max_file_bytes => Err(self.wrong(
                line,
                format!("a data: URL has {} bytes, the limit is {}", bytes.len(), self.limits.max_file_bytes),
            )),
            Location::Data(bytes) => Ok(Picture::Data { name, bytes: bytes.clone() }),
        }
    }
}

/// A picture that was found and not read.
enum Picture {
    File(Extent),
    Data { name: String, bytes: Vec<u8> },
}

impl Picture {
    /// Memory that it takes once it is read.
    fn bytes(&self, buffers: &dyn Buffers) -> usize {
        match self {
            Self::File(extent) => whole_bytes(extent, buffers),
            Self::Data { name, bytes } => size_of::<Encoded>() + name.len() + bytes.capacity(),
        }
    }

    fn read(self, reader: &mut Reader<'_>) -> Result<Encoded> {
        match self {
            Self::File(extent) => read_whole(&extent, reader),
            Self::Data { name, bytes } => Ok(Encoded { name: name.into(), bytes: Buffer::from(bytes) }),
        }
    }
}

/// A picture or video that was found and not read.
enum Found {
    Image(Picture),
    Video(Frames<Picture>),
}

impl Found {
    fn bytes(&self, buffers: &dyn Buffers) -> usize {
        let pictures = self.pictures().into_iter().map(|picture| picture.bytes(buffers)).sum::<usize>();
        match self {
            Self::Image(_) => pictures,
            Self::Video(video) => FrameFolder::bytes_of(&video.name, video.frames.len()) + pictures,
        }
    }

    fn pictures(&self) -> Vec<&Picture> {
        match self {
            Self::Image(picture) => vec![picture],
            Self::Video(video) => video.frames.iter().map(|(_, picture)| picture).collect(),
        }
    }
}

impl Source for Manifest {
    type Sample = Record;

    fn len(&self) -> usize {
        self.lines.len()
    }

    fn name(&self, index: usize) -> String {
        let line = self.lines.get(index).map_or(0, |place| place.line);
        format!("{}: line {line}", shown(self.file.path()))
    }

    /// Parses the line and looks at its files: what the sample takes depends on them.
    fn sample_bytes(&self, index: usize, buffers: &dyn Buffers) -> Result<usize> {
        let (bytes, found) = self.look(index)?;
        Ok(size_of::<Record>() + bytes + found.iter().map(|found| found.bytes(buffers)).sum::<usize>())
    }

    fn read(&self, index: usize, reader: &mut Reader<'_>) -> Result<Record> {
        let text = reader.read(&self.extent(index)?)?;
        let line = self.parse(index, &text)?;
        drop(text);
        let (mut images, mut videos) = (Vec::new(), Vec::new());
        for found in self.media(index, &line)? {
            match found {
                Found::Image(picture) => images.push(picture.read(reader)?),
                Found::Video(video) => videos.push(video.read(|picture| picture.read(reader))?),
            }
        }
        Ok(Record { line: self.place(index)?.line as usize, value: line.value, images, videos })
    }

    /// Parses the line, to know the pictures it names.
    fn extents(&self, index: usize) -> Vec<Extent> {
        // What is wrong is said by `read`.
        let Ok(line) = self.extent(index) else { return Vec::new() };
        let found = self.look(index).map(|(_, found)| found).unwrap_or_default();
        let files = found.iter().flat_map(Found::pictures).filter_map(|picture| match picture {
            Picture::File(extent) => Some(extent.clone()),
            Picture::Data { .. } => None,
        });
        std::iter::once(line).chain(files).collect()
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("file", &self.file)
            .field("lines", &self.lines.len())
            .finish_non_exhaustive()
    }
}

/// Where the lines are that are not empty.
fn places(reader: &mut impl BufRead) -> std::io::Result<Vec<Place>> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let (mut lines, mut offset, mut number) = (Vec::new(), 0u64, 0u64);
    let mut start = 0u64;
    let mut is_blank = true;
    let mut finish = |start: u64, end: u64, is_blank: bool| {
        number += 1;
        if !is_blank {
            let bytes = u32::try_from(end - start).unwrap_or(u32::MAX);
            let line = u32::try_from(number).unwrap_or(u32::MAX);
            lines.push(Place { offset: start, bytes, line });
        }
    };
    loop {
        let mut chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        let taken = chunk.len();
        if offset == 0 && chunk.starts_with(BOM) {
            // A mark of the byte order, which says nothing in UTF-8.
            (chunk, start, offset) = (&chunk[BOM.len()..], BOM.len() as u64, BOM.len() as u64);
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            is_blank = is_blank && piece.iter().all(u8::is_ascii_whitespace);
            offset += piece.len() as u64;
            if piece.ends_with(b"\n") {
                finish(start, offset, is_blank);
                (start, is_blank) = (offset, true);
            }
        }
        reader.consume(taken);
    }
    finish(start, offset, is_blank);
    Ok(lines)
}

/// Bytes that a JSON value takes, about.
fn of_value(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.capacity(),
            Value::Array(items) => items.iter().map(of_value).sum(),
            Value::Object(members) => {
                members.iter().map(|(key, value)| key.capacity() + of_value(value)).sum()
            }
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_across_the_borders_of_the_buffer() {
        let text = "\u{feff}{}\r\n\n  \r\n{\"a\":1}\n\t\n{\"b\":\"\u{e9}\"}";
        let expected = ["{}\r\n", "{\"a\":1}\n", "{\"b\":\"\u{e9}\"}"];
        // Smaller buffers than the mark of the byte order are not asked for.
        for capacity in 3..40 {
            let lines = places(&mut BufReader::with_capacity(capacity, text.as_bytes())).unwrap();
            let numbers: Vec<u32> = lines.iter().map(|place| place.line).collect();
            assert_eq!(numbers, [1, 4, 6]);
            for (place, expected) in lines.iter().zip(expected) {
                let start = place.offset as usize;
                assert_eq!(&text.as_bytes()[start..start + place.bytes as usize], expected.as_bytes());
            }
        }
    }

    #[test]
    fn nothing_is_in_an_empty_file() {
        for text in ["", "\u{feff}", "\n\n", "  ", "\u{feff}\r\n"] {
            assert!(places(&mut text.as_bytes()).unwrap().is_empty(), "{text:?}");
        }
    }
}

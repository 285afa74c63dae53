//! The one error type of the crate.
//!
//! Every variant names the file (or the configuration key) and carries the observed and the expected value.

use std::any::Any;
use std::error::Error as StdError;
use std::io;

use crate::vision::Format;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a foreign decoder or parser, kept as a cause so that its type is not part of this interface.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What can go wrong between a file and its patches.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no file of that name.
    #[error("{name}: no such file")]
    Missing {
        /// The file.
        name: String,
    },
    /// A folder was given where a file is expected.
    #[error("{name}: is a folder, expected a file")]
    Folder {
        /// The folder.
        name: String,
    },
    /// The operating system refused to read the file.
    #[error("{name}: cannot be read")]
    Read {
        /// The file.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("{name}: the file is empty (0 bytes)")]
    Empty {
        /// The file.
        name: String,
    },
    /// The file is longer than [`DecodeLimits::max_file_bytes`](crate::vision::DecodeLimits::max_file_bytes).
    #[error("{name}: has {bytes} bytes or more, the limit is {limit_bytes} bytes")]
    FileSize {
        /// The file.
        name: String,
        /// Its length, or as much of it as was read before giving up.
        bytes: u64,
        /// The limit that was set.
        limit_bytes: u64,
    },
    /// The first bytes belong to none of the formats this crate decodes.
    #[error("{name}: not a JPEG, PNG, WebP, GIF or BMP picture (the file starts with {start})")]
    Format {
        /// The file.
        name: String,
        /// The first bytes, printable ones as text.
        start: String,
    },
    /// The header announces a picture larger than [`DecodeLimits`](crate::vision::DecodeLimits) allow.
    #[error(
        "{name}: the header announces {width}x{height} pixels, the limits are {max_side} a side and {max_pixels} in all"
    )]
    PictureSize {
        /// The file.
        name: String,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// The longest side allowed.
        max_side: u32,
        /// The most pixels allowed.
        max_pixels: u64,
    },
    /// The data of a known format cannot be decoded to the end.
    #[error("{name}: damaged or truncated {format} data")]
    Damaged {
        /// The file.
        name: String,
        /// The format its first bytes announce.
        format: Format,
        /// What the decoder said.
        source: Cause,
    },
    /// A valid file in a variant of its format that this crate does not decode.
    #[error("{name}: {format} of an unsupported kind: {what}")]
    Unsupported {
        /// The file.
        name: String,
        /// The format its first bytes announce.
        format: Format,
        /// What the decoder said about it.
        what: String,
    },
    /// A picture was built from a buffer of the wrong length.
    #[error("a {width}x{height} RGB picture takes {expected} bytes, got {got}")]
    RgbLength {
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
        /// `width * height * 3`.
        expected: u64,
        /// The length of the buffer.
        got: u64,
    },
    /// A picture, or the size it is to be brought to, has no pixels.
    #[error("a picture of {width}x{height} pixels has no content")]
    NoPixels {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
    },
    /// The picture is too thin for the model.
    #[error("a {width}x{height} picture has an aspect ratio of {ratio:.1}, the limit is {limit}")]
    AspectRatio {
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
        /// Longer side divided by shorter side.
        ratio: f64,
        /// The largest ratio accepted.
        limit: f64,
    },
    /// The size settings lead to a picture that cannot be addressed.
    #[error(
        "resizing {width}x{height} under these settings gives {got_width}x{got_height}, more than 65535 a side"
    )]
    TargetSize {
        /// Width of the source.
        width: u32,
        /// Height of the source.
        height: u32,
        /// Width of the target.
        got_width: f64,
        /// Height of the target.
        got_height: f64,
    },
    /// Resizing is switched off and the picture does not consist of whole merged patches.
    #[error("do_resize is false and {width}x{height} is not a multiple of {factor} in both directions")]
    Divisibility {
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
        /// `patch_size * merge_size`.
        factor: u32,
    },
    /// The caller's buffer has the wrong length.
    #[error("the output buffer holds {got} values, {expected} are needed for a grid of {t}x{h}x{w} patches")]
    OutputLength {
        /// Length of the buffer.
        got: usize,
        /// Length that is needed.
        expected: usize,
        /// Grid, in time.
        t: u32,
        /// Grid, in height.
        h: u32,
        /// Grid, in width.
        w: u32,
    },
    /// A video has too few frames for one temporal patch.
    #[error("the video has {got} frame(s), at least {expected} are needed")]
    FrameCount {
        /// Frames in the video.
        got: usize,
        /// Frames needed.
        expected: usize,
    },
    /// The frames of a video differ in size.
    #[error(
        "{name}: has {width}x{height} pixels, the first frame of the video has {expected_width}x{expected_height}"
    )]
    FrameSize {
        /// The frame: its file, or its place in the list.
        name: String,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Width of the first frame.
        expected_width: u32,
        /// Height of the first frame.
        expected_height: u32,
    },
    /// The source indices of a video go backwards.
    #[error("frame {position} of the video has source index {got}, expected at least {expected}")]
    FrameOrder {
        /// Place in the list of frames.
        position: usize,
        /// Its source index.
        got: u64,
        /// Source index of the frame before.
        expected: u64,
    },
    /// A frame rate is not a positive finite number.
    #[error("a frame rate of {got} frames per second was given, expected a positive finite number")]
    FrameRate {
        /// The rate given.
        got: f64,
    },
    /// Frames were already left out of the video that is to be sampled.
    #[error(
        "frame {position} of the video has source index {got}, expected {position}: it has been sampled already"
    )]
    AlreadySampled {
        /// Place in the list of frames.
        position: usize,
        /// Its source index.
        got: u64,
    },
    /// A configuration file is not JSON, or a part of it is not an object.
    #[error("{name}: not a JSON object")]
    ConfigSyntax {
        /// The file.
        name: String,
        /// Where the JSON ends to make sense; absent if it is JSON but no object.
        source: Option<Cause>,
    },
    /// A key of the processor configuration has a value that cannot be honoured.
    #[error("{name}: {key} is {got}, expected {expected}")]
    ConfigValue {
        /// The file, or where the value came from.
        name: String,
        /// The key.
        key: String,
        /// The value.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// No buffer could be had.
    #[error("no buffer of {bytes} bytes could be had{}", .got.map(|got| format!(", one of {got} bytes was given")).unwrap_or_default())]
    NoBuffer {
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes of the buffer that was given instead, if one was.
        got: Option<usize>,
    },
    /// A file ends before the bytes that were to be read.
    #[error("{name}: {expected} bytes at offset {offset} were to be read, the file ends after {got} of them")]
    Shorter {
        /// The file.
        name: String,
        /// Where reading began.
        offset: u64,
        /// Bytes that were to be read.
        expected: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// A number beyond the end of a list.
    #[error("{what}: there is no number {index}, there are {len}")]
    Index {
        /// The list.
        what: String,
        /// The number asked for, from 0.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// A folder, a pattern or a list that yields no sample.
    #[error("{name}: {what}")]
    NoSamples {
        /// The folder, pattern or list.
        name: String,
        /// What was looked for and not found.
        what: String,
    },
    /// A line of a manifest is not what it should be.
    #[error("{name}: line {line}: {what}")]
    ManifestLine {
        /// The manifest.
        name: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
        /// What the parser said, if it is not JSON.
        source: Option<Cause>,
    },
    /// An archive (tar, Parquet) is cut off or damaged.
    #[error("{name}: damaged or truncated {kind} at offset {offset}: {what}")]
    Archive {
        /// The archive.
        name: String,
        /// What kind of archive it is.
        kind: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A sample lacks a field that was asked for.
    #[error("{name}: has no field {field}, only {present}")]
    Field {
        /// The sample.
        name: String,
        /// The field or fields, any of which would do.
        field: String,
        /// The fields it has.
        present: String,
    },
    /// The loader's transform failed.
    #[error("{name}: the transform failed")]
    Transform {
        /// The sample.
        name: String,
        /// What the transform said.
        source: Cause,
    },
    /// The loader's source or transform panicked.
    #[error("{name}: panicked: {message}")]
    Panicked {
        /// The sample.
        name: String,
        /// What the panic said.
        message: String,
    },
    /// An item takes more memory than one item may.
    #[error(
        "{name}: takes {bytes} bytes, at most {limit_bytes} are allowed for one item; raise item_bytes_max, and \
         prefetch_bytes if it is smaller than twice that"
    )]
    ItemBytes {
        /// The sample.
        name: String,
        /// Bytes it takes.
        bytes: usize,
        /// Bytes that one item may take.
        limit_bytes: usize,
    },
    /// More samples failed than the error policy allows.
    #[error("{skipped} samples were skipped, at most {limit} are allowed; the last one was {name}")]
    TooManySkipped {
        /// Samples that failed.
        skipped: u64,
        /// How many may.
        limit: u64,
        /// The last of them.
        name: String,
        /// Why it failed.
        source: Box<Error>,
    },
    /// A setting of the loader makes no sense.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// A state to resume from belongs to another run.
    #[error("the state to resume from has {what} {got}, this loader has {expected}")]
    Resume {
        /// What differs.
        what: &'static str,
        /// Its value in the state.
        got: String,
        /// Its value in the loader.
        expected: String,
    },
    /// A way of reading that this machine does not offer.
    #[error("{what} cannot be used here: {why}")]
    Storage {
        /// The way of reading.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// A worker thread could not be started.
    #[error("a worker thread could not be started")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
    /// Nothing says how many frames per second a video has.
    #[error(
        "{name}: nothing says the frame rate: set fps in FrameOptions, or put it in the folder as fps.txt (25) or \
         meta.json ({{\"fps\": 25}})"
    )]
    NoFrameRate {
        /// The folder of its frames.
        name: String,
    },
    /// A text is not a [`ContentHash`](crate::vision::ContentHash).
    #[error("{got:?} is no content hash, expected 64 hexadecimal digits")]
    ContentHashSyntax {
        /// The text, or its beginning.
        got: String,
    },
}

impl Error {
    /// A panic that was caught, with what it was given.
    pub(crate) fn panicked(name: String, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked { name, message: message.unwrap_or_else(|| "no message".to_owned()) }
    }
}

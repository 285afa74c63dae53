//! The one error type of the crate.
//!
//! Every variant names the file (or the configuration key) and carries the observed and the expected value.

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
    /// A folder was given where a picture is expected.
    #[error("{name}: is a folder, expected a picture file")]
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
}

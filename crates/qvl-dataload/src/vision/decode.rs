//! Bytes of a picture file to RGB, as Pillow and transformers' `load_image` and `convert_to_rgb` make it.
//!
//! | in the file | becomes | equal to Pillow 12.3 |
//! |---|---|---|
//! | RGB, 8 bits | itself | bit for bit |
//! | grey, 1 to 8 bits | the value three times | bit for bit |
//! | grey, 16 bits (PNG) | clipped: 255 and everything above it is white | bit for bit |
//! | grey with alpha, RGB or RGBA of 16 bits (PNG) | the high byte | bit for bit |
//! | alpha channel, palette with several levels of alpha | dropped: hidden colours show | bit for bit |
//! | one transparent colour (PNG `tRNS`, GIF) | white | bit for bit |
//! | palette | its colours; a GIF's frame lies on its transparent colour or its first one | bit for bit |
//! | gamma, ICC profile | ignored | bit for bit |
//! | WebP, lossless or lossy | RGB, first frame | bit for bit in the test pictures |
//! | BMP, 1 to 32 bits a pixel, run lengths | RGB | bit for bit |
//! | JPEG: YCbCr, RGB, grey, CMYK, YCCK | RGB | see the README: within 4 levels, or bit for bit with `libjpeg-turbo` |
//! | EXIF orientation (JPEG, PNG, WebP), XMP orientation | upright | bit for bit |
//! | EXIF in a compressed PNG text chunk | ignored | Pillow reads it |
//!
//! Where Pillow goes on (damage inside a JPEG, a wrong check sum of PNG pixels) this is an error. A file that lacks
//! nothing but its end mark is accepted by both (PNG, GIF) or refused by both (JPEG).

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use image::ImageFormat;

use crate::{Error, Result};

pub(crate) mod job;

use job::{Buffers, Job};

/// A decoded still picture: RGB, 8 bits a channel, upright.
///
/// Two stills are two pictures, whatever their size; the frames of a video are
/// [`Frame`](crate::vision::Frame)s.
#[derive(Clone, PartialEq, Eq)]
pub struct Still {
    width: u32,
    height: u32,
    /// `width * height * 3` bytes, row by row.
    rgb: Vec<u8>,
}

impl Still {
    /// Reads and decodes a file. Its format is taken from its content, never from its name.
    ///
    /// # Errors
    /// Every one names the file: [`Error::Missing`], [`Error::Folder`], [`Error::Read`], [`Error::FileSize`] and
    /// what [`Still::decode`] returns.
    pub fn open(path: impl AsRef<Path>, limits: &DecodeLimits) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::decode(&read_file(path, &name, limits.max_file_bytes)?, &name, limits)
    }

    /// Decodes the bytes of a file; `name` is for errors only.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::FileSize`], [`Error::Format`], [`Error::PictureSize`] (from the header alone, before
    /// any pixel is allocated), [`Error::Unsupported`] and [`Error::Damaged`].
    pub fn decode(bytes: &[u8], name: &str, limits: &DecodeLimits) -> Result<Self> {
        let mut buffers = Buffers::default();
        let (width, height) = Job::new(bytes, name, limits)?.decode(1, &mut buffers)?;
        Self::from_rgb(width, height, buffers.rgb)
    }

    /// A picture from pixels: `width * height` times R, G, B, row by row.
    ///
    /// # Errors
    /// [`Error::NoPixels`] if a side is zero, [`Error::RgbLength`] if the buffer has another length.
    pub fn from_rgb(width: u32, height: u32, rgb: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let expected = u64::from(width).saturating_mul(u64::from(height)).saturating_mul(3);
        if rgb.len() as u64 != expected {
            return Err(Error::RgbLength { width, height, expected, got: rgb.len() as u64 });
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels: R, G, B, row by row from the top left.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Gives the pixels away.
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }
}

impl fmt::Debug for Still {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Still")
            .field("width", &self.width)
            .field("height", &self.height)
            .finish_non_exhaustive()
    }
}

/// What a picture file may ask for. Checked against its header, before anything of that size is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// The longest side, in pixels.
    pub max_side: u32,
    /// The most pixels in all; decoding takes up to about eight bytes for each.
    pub max_pixels: u64,
    /// The longest file, in bytes.
    pub max_file_bytes: u64,
}

impl Default for DecodeLimits {
    /// 65,535 a side (the limit of JPEG), 178,956,970 pixels (where Pillow refuses too), 256 MiB a file.
    fn default() -> Self {
        Self { max_side: 65_535, max_pixels: 178_956_970, max_file_bytes: 256 << 20 }
    }
}

/// The picture formats this crate decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Baseline, extended and progressive JPEG.
    Jpeg,
    /// PNG; of an animation the default picture.
    Png,
    /// WebP, lossy or lossless; of an animation the first frame.
    WebP,
    /// GIF, the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
}

impl Format {
    /// The format that the first bytes announce.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match image::guess_format(bytes).ok()? {
            ImageFormat::Jpeg => Some(Self::Jpeg),
            ImageFormat::Png => Some(Self::Png),
            ImageFormat::WebP => Some(Self::WebP),
            ImageFormat::Gif => Some(Self::Gif),
            ImageFormat::Bmp => Some(Self::Bmp),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        })
    }
}

/// Reads a whole file, but not more than `limit_bytes`.
fn read_file(path: &Path, name: &str, limit_bytes: u64) -> Result<Vec<u8>> {
    let name = || name.to_owned();
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => Error::Missing { name: name() },
        ErrorKind::IsADirectory => Error::Folder { name: name() },
        _ => Error::Read { name: name(), source },
    };
    let metadata = path.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Error::Folder { name: name() });
    }
    let too_long = |bytes| Error::FileSize { name: name(), bytes, limit_bytes };
    if metadata.len() > limit_bytes {
        return Err(too_long(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let mut file = File::open(path).map_err(failed)?.take(limit_bytes.saturating_add(1));
    file.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

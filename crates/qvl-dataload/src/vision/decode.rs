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
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits};

use crate::vision::orientation::Orientation;
use crate::vision::{jpeg, png};
use crate::{Cause, Error, Result};

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
        let job = Job { bytes, name, limits };
        let length = bytes.len() as u64;
        if length == 0 {
            return Err(Error::Empty { name: name.to_owned() });
        }
        if length > limits.max_file_bytes {
            let limit_bytes = limits.max_file_bytes;
            return Err(Error::FileSize { name: name.to_owned(), bytes: length, limit_bytes });
        }
        let Some(format) = Format::of(bytes) else {
            return Err(Error::Format { name: name.to_owned(), start: start_of(bytes) });
        };
        let (still, orientation) = match format {
            Format::Jpeg => job.jpeg()?,
            Format::Png => job.png()?,
            Format::WebP => job.webp()?,
            Format::Gif => job.gif()?,
            Format::Bmp => job.bmp()?,
        };
        let (width, height, rgb) = orientation.apply(still.width, still.height, still.rgb);
        Ok(Self { width, height, rgb })
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

/// Pixels as stored, and how they are to be turned.
type Stored = (Still, Orientation);

/// One file on its way.
struct Job<'a> {
    bytes: &'a [u8],
    name: &'a str,
    limits: &'a DecodeLimits,
}

impl Job<'_> {
    fn png(&self) -> Result<Stored> {
        // IHDR is always first: width and height at 16, bit depth at 24, colour type at 25.
        if let Some(header) = self.bytes.get(16..24) {
            let side = |b: &[u8]| b.iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
            self.check_size(side(&header[..4]), side(&header[4..]))?;
        }
        let kind = self.bytes.get(24..26).map_or((0, 0), |b| (b[0], b[1]));
        let mut decoder = PngDecoder::with_limits(Cursor::new(self.bytes), self.image_limits())
            .map_err(|e| self.image_error(Format::Png, e))?;
        // EXIF may follow the pixels, where the decoder does not look.
        let exif = png::chunk(self.bytes, b"eXIf");
        let xmp = decoder.xmp_metadata().ok().flatten();
        let orientation = Orientation::from_metadata(exif, xmp.as_deref());
        let mut still = self.finish(Format::Png, decoder, kind == png::GREY_16)?;
        if let Some(key) = png::transparent_color(self.bytes, kind) {
            whiten(&mut still.rgb, key);
        }
        Ok((still, orientation))
    }

    fn webp(&self) -> Result<Stored> {
        let mut decoder =
            WebPDecoder::new(Cursor::new(self.bytes)).map_err(|e| self.image_error(Format::WebP, e))?;
        let exif = decoder.exif_metadata().ok().flatten();
        let xmp = decoder.xmp_metadata().ok().flatten();
        let orientation = Orientation::from_metadata(exif.as_deref(), xmp.as_deref());
        Ok((self.finish(Format::WebP, decoder, false)?, orientation))
    }

    fn bmp(&self) -> Result<Stored> {
        let decoder =
            BmpDecoder::new(Cursor::new(self.bytes)).map_err(|e| self.image_error(Format::Bmp, e))?;
        let mut still = self.finish(Format::Bmp, decoder, false)?;
        if self.little_endian(28, 2) == Some(16) {
            // The decoder rounds samples of 5 and 6 bits to 8, Pillow truncates. Other masks Pillow does not read.
            let green = match (self.little_endian(30, 4), self.little_endian(58, 4)) {
                (Some(0), _) | (Some(3), Some(0x03E0)) => Some(31),
                (Some(3), Some(0x07E0)) => Some(63),
                _ => None,
            };
            if let Some(green) = green {
                for pixel in still.rgb.as_chunks_mut::<3>().0 {
                    for (sample, largest) in pixel.iter_mut().zip([31, green, 31]) {
                        let stored = (u32::from(*sample) * largest + 127) / 255;
                        *sample = (stored * 255 / largest) as u8;
                    }
                }
            }
        }
        Ok((still, Orientation::Upright))
    }

    /// The number of `count` bytes at an offset of the file.
    fn little_endian(&self, at: usize, count: usize) -> Option<u32> {
        Some(self.bytes.get(at..at + count)?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn gif(&self) -> Result<Stored> {
        let damaged = |e: gif::DecodingError| self.damaged(Format::Gif, e);
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::Indexed);
        options.set_memory_limit(gif::MemoryLimit::Unlimited);
        let mut decoder = options.read_info(Cursor::new(self.bytes)).map_err(damaged)?;
        let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
        self.check_size(screen.0, screen.1)?;
        let global = decoder.global_palette().map(<[u8]>::to_vec);
        let orientation = Orientation::from_metadata(None, decoder.xmp_metadata());
        let Some(frame) = decoder.next_frame_info().map_err(damaged)?.cloned() else {
            return Err(self.damaged(Format::Gif, "the file has no frame"));
        };
        // A frame that sticks out of the screen enlarges the picture.
        let (left, top) = (u32::from(frame.left), u32::from(frame.top));
        let (frame_width, frame_height) = (u32::from(frame.width), u32::from(frame.height));
        let (width, height) = (screen.0.max(left + frame_width), screen.1.max(top + frame_height));
        self.check_size(width, height)?;
        let mut indices = vec![0; frame_width as usize * frame_height as usize];
        if !indices.is_empty() {
            decoder.read_into_buffer(&mut indices).map_err(damaged)?;
        }
        let palette = frame.palette.as_deref().or(global.as_deref());
        let color = |index: u8| match palette {
            Some(palette) => {
                let at = usize::from(index) * 3;
                palette.get(at..at + 3).map_or([0; 3], |c| [c[0], c[1], c[2]])
            }
            None => [index; 3],
        };
        // What the frame does not cover has the transparent colour, or the first of the palette.
        let around = color(frame.transparent.unwrap_or(0));
        let mut rgb = around.repeat(width as usize * height as usize);
        let rows = rgb.chunks_exact_mut(width as usize * 3).skip(top as usize);
        for (row, indices) in rows.zip(indices.chunks_exact(frame_width.max(1) as usize)) {
            for (pixel, index) in row[left as usize * 3..].as_chunks_mut::<3>().0.iter_mut().zip(indices) {
                *pixel = color(*index);
            }
        }
        if let Some(transparent) = frame.transparent {
            whiten(&mut rgb, color(transparent));
        }
        Ok((Still::from_rgb(width, height, rgb)?, orientation))
    }

    fn jpeg(&self) -> Result<Stored> {
        let outline = jpeg::Outline::of(self.bytes);
        let orientation = Orientation::from_metadata(outline.exif.as_deref(), outline.xmp.as_deref());
        let check = |width, height| self.check_size(width, height);
        let failed = |failure| match failure {
            jpeg::Failure::Damaged(cause) => self.damaged(Format::Jpeg, cause),
            jpeg::Failure::Unsupported(what) => self.unsupported(Format::Jpeg, what),
            jpeg::Failure::Refused(error) => error,
        };
        let still = jpeg::pixels(self.bytes, check).map_err(failed)?;
        // Both decoders make something up for the last pixels of a file that ends early.
        if !outline.complete {
            return Err(self.damaged(Format::Jpeg, "the file ends before the picture does"));
        }
        Ok((still, orientation))
    }

    /// Checks the size, decodes, and converts whatever the decoder yields.
    ///
    /// `clip`: 16-bit grey is clipped to 8 bits instead of losing its low byte.
    fn finish(&self, format: Format, mut decoder: impl ImageDecoder, clip: bool) -> Result<Still> {
        let (width, height) = decoder.dimensions();
        self.check_size(width, height)?;
        decoder.set_limits(self.image_limits()).map_err(|e| self.image_error(format, e))?;
        let decoded = DynamicImage::from_decoder(decoder).map_err(|e| self.image_error(format, e))?;
        let high = |sample: u16| (sample >> 8) as u8;
        let grey = |sample: u16| if clip { sample.min(255) as u8 } else { high(sample) };
        let rgb = match decoded {
            DynamicImage::ImageRgb8(p) => p.into_raw(),
            DynamicImage::ImageRgba8(p) => {
                p.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect()
            }
            DynamicImage::ImageLuma8(p) => grey_to_rgb(p.as_raw()),
            DynamicImage::ImageLumaA8(p) => p.as_chunks::<2>().0.iter().flat_map(|p| [p[0]; 3]).collect(),
            DynamicImage::ImageLuma16(p) => p.iter().flat_map(|s| [grey(*s); 3]).collect(),
            DynamicImage::ImageLumaA16(p) => {
                p.as_chunks::<2>().0.iter().flat_map(|p| [grey(p[0]); 3]).collect()
            }
            DynamicImage::ImageRgb16(p) => p.iter().map(|s| high(*s)).collect(),
            DynamicImage::ImageRgba16(p) => {
                p.as_chunks::<4>().0.iter().flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
            }
            other => return Err(self.unsupported(format, format!("{:?} samples", other.color()))),
        };
        Still::from_rgb(width, height, rgb)
    }

    fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let DecodeLimits { max_side, max_pixels, .. } = *self.limits;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        if width > max_side || height > max_side || u64::from(width) * u64::from(height) > max_pixels {
            let name = self.name.to_owned();
            return Err(Error::PictureSize { name, width, height, max_side, max_pixels });
        }
        Ok(())
    }

    fn image_limits(&self) -> Limits {
        let mut limits = Limits::no_limits();
        limits.max_image_width = Some(self.limits.max_side);
        limits.max_image_height = Some(self.limits.max_side);
        // Eight bytes for a 16-bit RGBA pixel, and room for tables and metadata.
        limits.max_alloc = Some(self.limits.max_pixels.saturating_mul(8).saturating_add(64 << 20));
        limits
    }

    fn image_error(&self, format: Format, error: ImageError) -> Error {
        match error {
            ImageError::Unsupported(e) => self.unsupported(format, e.to_string()),
            e => self.damaged(format, e),
        }
    }

    fn damaged(&self, format: Format, source: impl Into<Cause>) -> Error {
        Error::Damaged { name: self.name.to_owned(), format, source: source.into() }
    }

    fn unsupported(&self, format: Format, what: String) -> Error {
        Error::Unsupported { name: self.name.to_owned(), format, what }
    }
}

/// Makes every pixel of this colour white.
fn whiten(rgb: &mut [u8], color: [u8; 3]) {
    for pixel in rgb.as_chunks_mut::<3>().0.iter_mut().filter(|pixel| **pixel == color) {
        *pixel = [255; 3];
    }
}

fn grey_to_rgb(grey: &[u8]) -> Vec<u8> {
    grey.iter().flat_map(|g| [*g; 3]).collect()
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

/// The first bytes of a file, fit for a message.
fn start_of(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(12)];
    if start.iter().all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
        return format!("{:?}", String::from_utf8_lossy(start));
    }
    let hex: Vec<String> = start.iter().map(|b| format!("{b:02x}")).collect();
    format!("the bytes {}", hex.join(" "))
}

//! One picture file on its way to RGB, format by format, into memory that may have held another picture before.
//!
//! A file is opened, which reads its header and its metadata and checks its size; and then its pixels are decoded. The
//! first step alone is what [`Header::read`](crate::vision::Header::read) is made of, so both have the same errors.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageError, Limits};

use super::{DecodeLimits, Format};
use crate::vision::orientation::Orientation;
use crate::vision::{jpeg, png};
use crate::{Cause, Error, Result};

/// Width and height.
type Size = (u32, u32);

/// A GIF up to its first frame, and that frame without its pixels.
type OpenedGif<'a> = (Opened, gif::Frame<'static>, gif::Decoder<Cursor<&'a [u8]>>);

/// Memory of a decoder that is worth keeping from one picture to the next.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The last picture, upright: `width * height * 3` bytes.
    pub(crate) rgb: Vec<u8>,
    /// Samples of another kind than RGB, and pictures before they are turned.
    other: Vec<u8>,
}

impl Buffers {
    /// Memory they hold.
    pub(crate) fn bytes(&self) -> usize {
        self.rgb.capacity() + self.other.capacity()
    }
}

/// `len` bytes, of any value or all zero.
///
/// Memory that is too small is replaced, not extended: that copies nothing, and the system's pages are zero already.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize, zero: bool) -> &mut [u8] {
    if buffer.capacity() < len {
        *buffer = Vec::new();
        *buffer = vec![0; len];
    } else {
        if zero {
            buffer.clear();
        }
        buffer.resize(len, 0);
    }
    buffer
}

/// What a file says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    /// As stored.
    size: Size,
    orientation: Orientation,
}

impl Opened {
    /// Upright.
    pub(crate) fn size(self) -> Size {
        self.orientation.turned(self.size)
    }
}

/// One file on its way.
pub(crate) struct Job<'a> {
    bytes: &'a [u8],
    name: &'a str,
    limits: &'a DecodeLimits,
    format: Format,
}

impl<'a> Job<'a> {
    /// # Errors
    /// [`Error::Empty`], [`Error::FileSize`], [`Error::Format`].
    pub(crate) fn new(bytes: &'a [u8], name: &'a str, limits: &'a DecodeLimits) -> Result<Self> {
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
        Ok(Self { bytes, name, limits, format })
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// What the header says, checked against the limits.
    pub(crate) fn open(&self) -> Result<Opened> {
        match self.format {
            Format::Jpeg => self.open_jpeg(&jpeg::Outline::of_header(self.bytes)),
            Format::Png => Ok(self.open_png()?.0),
            Format::WebP => Ok(self.open_webp()?.0),
            Format::Gif => Ok(self.open_gif()?.0),
            Format::Bmp => Ok(self.open_bmp()?.0),
        }
    }

    /// Decodes to upright RGB in `buffers.rgb` and returns its size.
    ///
    /// `divisor`: 1, or what a JPEG is to be shrunk by while it is decoded; see [`jpeg::DIVISORS`].
    pub(crate) fn decode(&self, divisor: u32, buffers: &mut Buffers) -> Result<Size> {
        let Opened { size, orientation } = match self.format {
            Format::Jpeg => self.jpeg(divisor, buffers)?,
            Format::Png => self.png(buffers)?,
            Format::WebP => self.webp(buffers)?,
            Format::Gif => self.gif(buffers)?,
            Format::Bmp => self.bmp(buffers)?,
        };
        if orientation != Orientation::Upright {
            let Buffers { rgb, other } = buffers;
            orientation.apply(size, rgb, room(other, rgb.len(), false));
            std::mem::swap(rgb, other);
        }
        Ok(orientation.turned(size))
    }

    fn open_png(&self) -> Result<(Opened, PngDecoder<Cursor<&'a [u8]>>)> {
        // IHDR is always first: width and height at 16, bit depth at 24, colour type at 25.
        if let Some(header) = self.bytes.get(16..24) {
            let side = |b: &[u8]| b.iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
            self.check_size((side(&header[..4]), side(&header[4..])))?;
        }
        let mut decoder = PngDecoder::with_limits(Cursor::new(self.bytes), self.image_limits())
            .map_err(|e| self.image_error(e))?;
        // EXIF may follow the pixels, where the decoder does not look.
        let exif = png::chunk(self.bytes, b"eXIf");
        let xmp = decoder.xmp_metadata().ok().flatten();
        let orientation = Orientation::from_metadata(exif, xmp.as_deref());
        Ok((self.opened(&decoder, orientation)?, decoder))
    }

    fn png(&self, buffers: &mut Buffers) -> Result<Opened> {
        let (opened, decoder) = self.open_png()?;
        let kind = self.bytes.get(24..26).map_or((0, 0), |b| (b[0], b[1]));
        self.finish(decoder, kind == png::GREY_16, buffers)?;
        if let Some(key) = png::transparent_color(self.bytes, kind) {
            whiten(&mut buffers.rgb, key);
        }
        Ok(opened)
    }

    fn open_webp(&self) -> Result<(Opened, WebPDecoder<Cursor<&'a [u8]>>)> {
        let mut decoder = WebPDecoder::new(Cursor::new(self.bytes)).map_err(|e| self.image_error(e))?;
        let exif = decoder.exif_metadata().ok().flatten();
        let xmp = decoder.xmp_metadata().ok().flatten();
        let orientation = Orientation::from_metadata(exif.as_deref(), xmp.as_deref());
        Ok((self.opened(&decoder, orientation)?, decoder))
    }

    fn webp(&self, buffers: &mut Buffers) -> Result<Opened> {
        let (opened, decoder) = self.open_webp()?;
        self.finish(decoder, false, buffers)?;
        Ok(opened)
    }

    fn open_bmp(&self) -> Result<(Opened, BmpDecoder<Cursor<&'a [u8]>>)> {
        let decoder = BmpDecoder::new(Cursor::new(self.bytes)).map_err(|e| self.image_error(e))?;
        Ok((self.opened(&decoder, Orientation::Upright)?, decoder))
    }

    fn bmp(&self, buffers: &mut Buffers) -> Result<Opened> {
        let (opened, decoder) = self.open_bmp()?;
        self.finish(decoder, false, buffers)?;
        if self.little_endian(28, 2) == Some(16) {
            // The decoder rounds samples of 5 and 6 bits to 8, Pillow truncates. Other masks Pillow does not read.
            let green = match (self.little_endian(30, 4), self.little_endian(58, 4)) {
                (Some(0), _) | (Some(3), Some(0x03E0)) => Some(31),
                (Some(3), Some(0x07E0)) => Some(63),
                _ => None,
            };
            if let Some(green) = green {
                for pixel in buffers.rgb.as_chunks_mut::<3>().0 {
                    for (sample, largest) in pixel.iter_mut().zip([31, green, 31]) {
                        let stored = (u32::from(*sample) * largest + 127) / 255;
                        *sample = (stored * 255 / largest) as u8;
                    }
                }
            }
        }
        Ok(opened)
    }

    /// The number of `count` bytes at an offset of the file.
    fn little_endian(&self, at: usize, count: usize) -> Option<u32> {
        Some(self.bytes.get(at..at + count)?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    /// Opens a GIF up to its first frame, without the pixels of that.
    fn open_gif(&self) -> Result<OpenedGif<'a>> {
        let damaged = |e: gif::DecodingError| self.damaged(e);
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::Indexed);
        options.set_memory_limit(gif::MemoryLimit::Unlimited);
        let mut decoder = options.read_info(Cursor::new(self.bytes)).map_err(damaged)?;
        let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
        self.check_size(screen)?;
        let orientation = Orientation::from_metadata(None, decoder.xmp_metadata());
        let Some(frame) = decoder.next_frame_info().map_err(damaged)?.cloned() else {
            return Err(self.damaged("the file has no frame"));
        };
        // A frame that sticks out of the screen enlarges the picture.
        let right = u32::from(frame.left) + u32::from(frame.width);
        let bottom = u32::from(frame.top) + u32::from(frame.height);
        let size = (screen.0.max(right), screen.1.max(bottom));
        self.check_size(size)?;
        Ok((Opened { size, orientation }, frame, decoder))
    }

    fn gif(&self, buffers: &mut Buffers) -> Result<Opened> {
        let (opened, frame, mut decoder) = self.open_gif()?;
        let (width, height) = (opened.size.0 as usize, opened.size.1 as usize);
        let indices = room(&mut buffers.other, usize::from(frame.width) * usize::from(frame.height), true);
        if !indices.is_empty() {
            decoder.read_into_buffer(indices).map_err(|e| self.damaged(e))?;
        }
        let palette = frame.palette.as_deref().or(decoder.global_palette());
        // A colour for every index, so that the loop over the pixels looks up and nothing else.
        let colors: [[u8; 3]; 256] = std::array::from_fn(|index| match palette {
            Some(palette) => palette.get(index * 3..index * 3 + 3).map_or([0; 3], |c| [c[0], c[1], c[2]]),
            None => [index as u8; 3],
        });
        let color = |index: u8| colors[usize::from(index)];
        // What the frame does not cover has the transparent colour, or the first of the palette.
        let around = color(frame.transparent.unwrap_or(0));
        let rgb = room(&mut buffers.rgb, width * height * 3, false);
        rgb.as_chunks_mut::<3>().0.fill(around);
        let rows = rgb.chunks_exact_mut(width * 3).skip(usize::from(frame.top));
        for (row, indices) in rows.zip(indices.chunks_exact(usize::from(frame.width).max(1))) {
            let pixels = row[usize::from(frame.left) * 3..].as_chunks_mut::<3>().0;
            for (pixel, index) in pixels.iter_mut().zip(indices) {
                *pixel = color(*index);
            }
        }
        if let Some(transparent) = frame.transparent {
            whiten(rgb, color(transparent));
        }
        Ok(opened)
    }

    fn open_jpeg(&self, outline: &jpeg::Outline) -> Result<Opened> {
        let orientation = Orientation::from_metadata(outline.exif.as_deref(), outline.xmp.as_deref());
        let Some(size) = outline.size else {
            return Err(self.damaged("the file has no frame header"));
        };
        self.check_size(size)?;
        Ok(Opened { size, orientation })
    }

    fn jpeg(&self, divisor: u32, buffers: &mut Buffers) -> Result<Opened> {
        let outline = jpeg::Outline::of(self.bytes);
        let orientation = Orientation::from_metadata(outline.exif.as_deref(), outline.xmp.as_deref());
        let check = |size| self.check_size(size);
        let failed = |failure| match failure {
            jpeg::Failure::Damaged(cause) => self.damaged(cause),
            jpeg::Failure::Unsupported(what) => self.unsupported(what),
            jpeg::Failure::Refused(error) => error,
        };
        let Buffers { rgb, other } = buffers;
        // A picture in several scans may lack one, and what the decoder then leaves out must not show the last picture.
        let target = jpeg::Target { rgb, other, zero: !outline.plain };
        let size = jpeg::pixels(self.bytes, divisor, check, target).map_err(failed)?;
        // Both decoders make something up for the last pixels of a file that ends early.
        if !outline.complete {
            return Err(self.damaged("the file ends before the picture does"));
        }
        Ok(Opened { size, orientation })
    }

    /// The size that a decoder read in the header, checked.
    fn opened(&self, decoder: &impl ImageDecoder, orientation: Orientation) -> Result<Opened> {
        let size = decoder.dimensions();
        self.check_size(size)?;
        Ok(Opened { size, orientation })
    }

    /// Decodes, and converts whatever the decoder yields to RGB.
    ///
    /// `clip`: 16-bit grey is clipped to 8 bits instead of losing its low byte.
    fn finish(&self, mut decoder: impl ImageDecoder, clip: bool, buffers: &mut Buffers) -> Result<()> {
        let (width, height) = decoder.dimensions();
        decoder.set_limits(self.image_limits()).map_err(|e| self.image_error(e))?;
        let kind = decoder.color_type();
        let len = usize::try_from(decoder.total_bytes()).map_err(|e| self.damaged(e))?;
        let Buffers { rgb, other } = buffers;
        if kind == ColorType::Rgb8 {
            // Not every decoder writes every pixel, and none may show the last picture.
            return decoder.read_image(room(rgb, len, true)).map_err(|e| self.image_error(e));
        }
        let samples = room(other, len, true);
        decoder.read_image(samples).map_err(|e| self.image_error(e))?;
        let rgb = room(rgb, width as usize * height as usize * 3, false).as_chunks_mut::<3>().0;
        let wide = |bytes: [u8; 2]| u16::from_ne_bytes(bytes);
        let high = |a: u8, b: u8| (wide([a, b]) >> 8) as u8;
        let grey = |a: u8, b: u8| if clip { wide([a, b]).min(255) as u8 } else { high(a, b) };
        match kind {
            ColorType::L8 => convert(samples, rgb, |[l]| [l; 3]),
            ColorType::La8 => convert(samples, rgb, |[l, _]| [l; 3]),
            ColorType::Rgba8 => convert(samples, rgb, |[r, g, b, _]| [r, g, b]),
            ColorType::L16 => convert(samples, rgb, |[a, b]| [grey(a, b); 3]),
            ColorType::La16 => convert(samples, rgb, |[a, b, _, _]| [grey(a, b); 3]),
            ColorType::Rgb16 => {
                convert(samples, rgb, |[r0, r1, g0, g1, b0, b1]| [high(r0, r1), high(g0, g1), high(b0, b1)]);
            }
            ColorType::Rgba16 => convert(samples, rgb, |[r0, r1, g0, g1, b0, b1, _, _]| {
                [high(r0, r1), high(g0, g1), high(b0, b1)]
            }),
            other => return Err(self.unsupported(format!("{other:?} samples"))),
        }
        Ok(())
    }

    fn check_size(&self, (width, height): Size) -> Result<()> {
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

    fn image_error(&self, error: ImageError) -> Error {
        match error {
            ImageError::Unsupported(e) => self.unsupported(e.to_string()),
            e => self.damaged(e),
        }
    }

    pub(crate) fn damaged(&self, source: impl Into<Cause>) -> Error {
        Error::Damaged { name: self.name.to_owned(), format: self.format, source: source.into() }
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { name: self.name.to_owned(), format: self.format, what }
    }
}

/// Pixels of `N` bytes to RGB.
fn convert<const N: usize>(samples: &[u8], rgb: &mut [[u8; 3]], pixel: impl Fn([u8; N]) -> [u8; 3]) {
    for (rgb, sample) in rgb.iter_mut().zip(samples.as_chunks::<N>().0) {
        *rgb = pixel(*sample);
    }
}

/// Makes every pixel of this colour white.
fn whiten(rgb: &mut [u8], color: [u8; 3]) {
    for pixel in rgb.as_chunks_mut::<3>().0 {
        if *pixel == color {
            *pixel = [255; 3];
        }
    }
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

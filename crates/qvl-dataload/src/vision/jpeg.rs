//! JPEG: what surrounds the pixels, and the pixels by one of two decoders.
//!
//! The default decoder is zune-jpeg, which needs no C compiler; with the feature `libjpeg-turbo` it is the library
//! that Pillow uses, with Pillow's settings (exact inverse transform, smooth chroma upsampling). Both are told to
//! refuse damaged data. Neither notices when the last few bytes of a file are missing, hence [`Outline::complete`].

use memchr::memchr;

use crate::vision::decode::job::room;
use crate::{Cause, Error, Result};

/// Scans of a progressive picture that are read; more is an attack on the reader's time.
const MAX_SCANS: u16 = 100;

/// What libjpeg-turbo can shrink a picture by while it decodes it, largest first. The other decoder cannot.
pub(crate) const DIVISORS: [u32; 3] = [8, 4, 2];

/// Where pixels go.
pub(crate) struct Target<'a> {
    /// The RGB.
    pub(crate) rgb: &'a mut Vec<u8>,
    /// Samples that are yet to become RGB.
    pub(crate) other: &'a mut Vec<u8>,
    /// Whether memory has to be cleared first.
    pub(crate) zero: bool,
}

impl<'a> Target<'a> {
    /// `len` bytes for RGB and `other_len` for other samples.
    fn room(self, len: usize, other_len: usize) -> (&'a mut [u8], &'a mut [u8]) {
        (room(self.rgb, len, self.zero), room(self.other, other_len, self.zero))
    }
}

/// Why there are no pixels.
pub(crate) enum Failure {
    Damaged(Cause),
    Unsupported(String),
    /// The caller does not want a picture of that size.
    Refused(Error),
}

/// Markers and segments of a file, read without its pixels.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    /// Width and height in the first frame header.
    pub(crate) size: Option<(u32, u32)>,
    /// All EXIF segments: several are one block in pieces.
    pub(crate) exif: Option<Vec<u8>>,
    /// The last XMP packet.
    pub(crate) xmp: Option<Vec<u8>>,
    /// Whether the marker that ends the picture is there.
    pub(crate) complete: bool,
    /// Whether there is nothing between the first scan and the end but its data.
    pub(crate) plain: bool,
}

impl Outline {
    /// Of the whole file: about a third of a nanosecond for each byte.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::scan(bytes, false)
    }

    /// Of what comes before the pixels, in time that does not depend on those.
    pub(crate) fn of_header(bytes: &[u8]) -> Self {
        Self::scan(bytes, true)
    }

    fn scan(bytes: &[u8], header: bool) -> Self {
        const EXIF: &[u8] = b"Exif\0\0";
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        let mut outline = Self { plain: true, ..Self::default() };
        let mut seen_scan = false;
        let mut rest = bytes.get(2..).unwrap_or_default();
        while let Some((code, after)) = next_marker(rest) {
            rest = after;
            match code {
                0xD9 => {
                    outline.complete = true;
                    break;
                }
                // These have no segment.
                0x01 | 0xD0..=0xD8 => continue,
                _ => outline.plain &= !seen_scan,
            }
            if code == 0xDA {
                seen_scan = true;
                if header {
                    break;
                }
            }
            let Some(length) = rest.first_chunk().map(|l| usize::from(u16::from_be_bytes(*l)).max(2)) else {
                break;
            };
            let Some(segment) = rest.get(2..length) else { break };
            if code == 0xE1 && !seen_scan {
                if let Some(block) = segment.strip_prefix(EXIF) {
                    outline.exif.get_or_insert_default().extend_from_slice(block);
                } else if let Some(packet) = segment.strip_prefix(XMP) {
                    outline.xmp = Some(packet.to_vec());
                }
            }
            // Frame headers are C0 to CF without the tables and the reserved code among them.
            if matches!(code, 0xC0..=0xCF) && !matches!(code, 0xC4 | 0xC8 | 0xCC) && outline.size.is_none() {
                let side =
                    |at: usize| Some(u32::from(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?)));
                outline.size = side(3).zip(side(1));
            }
            rest = &rest[length..];
        }
        outline
    }
}

/// The code of the next marker, and what follows it. A marker is FF and a code; FF 00 is a byte of data and FF FF is
/// filling.
fn next_marker(mut rest: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        rest = &rest[memchr(0xFF, rest)? + 1..];
        match rest.first()? {
            // The second of two may begin a marker.
            0xFF => {}
            0x00 => rest = &rest[1..],
            code => return Some((*code, &rest[1..])),
        }
    }
}

/// Decodes to RGB of the size that is returned; `check` sees the size in the header before anything of that size is
/// allocated.
#[cfg(not(feature = "libjpeg-turbo"))]
pub(crate) fn pixels(
    bytes: &[u8],
    divisor: u32,
    check: impl Fn((u32, u32)) -> Result<()>,
    target: Target<'_>,
) -> Result<(u32, u32), Failure> {
    use zune_jpeg::JpegDecoder;
    use zune_jpeg::errors::DecodeErrors;
    use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

    let failed = |error: DecodeErrors| match error {
        DecodeErrors::Unsupported(what) => Failure::Unsupported(format!("{what:?}")),
        other => Failure::Damaged(other.into()),
    };
    if divisor != 1 {
        return Err(Failure::Unsupported(format!(
            "to be shrunk by {divisor} takes the feature libjpeg-turbo"
        )));
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(usize::from(MAX_SCANS));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(failed)?;
    let Some((width, height)) = decoder.dimensions() else {
        return Err(Failure::Damaged("the file has no frame header".into()));
    };
    let size = (width as u32, height as u32);
    check(size).map_err(Failure::Refused)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let wanted = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(wanted));
    let (rgb, samples) = target.room(width * height * 3, if grey { width * height } else { 0 });
    if grey {
        decoder.decode_into(samples).map_err(failed)?;
        for (pixel, sample) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
            *pixel = [*sample; 3];
        }
    } else {
        decoder.decode_into(rgb).map_err(failed)?;
    }
    Ok(size)
}

/// Decodes to RGB of the size that is returned; `check` sees the size in the header before anything of that size is
/// allocated.
#[cfg(feature = "libjpeg-turbo")]
pub(crate) fn pixels(
    bytes: &[u8],
    divisor: u32,
    check: impl Fn((u32, u32)) -> Result<()>,
    target: Target<'_>,
) -> Result<(u32, u32), Failure> {
    use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

    let failed = |error: turbojpeg::Error| match error {
        turbojpeg::Error::BadSubsamp(_) | turbojpeg::Error::BadColorspace(_) => {
            Failure::Unsupported(error.to_string())
        }
        other => Failure::Damaged(other.into()),
    };
    let mut decoder = Decompressor::new().map_err(failed)?;
    decoder.set_scan_limit(u32::from(MAX_SCANS)).map_err(failed)?;
    let header = decoder.read_header(bytes).map_err(failed)?;
    // A JPEG header has 16 bits for each side.
    check((header.width as u32, header.height as u32)).map_err(Failure::Refused)?;
    let factor = ScalingFactor::new(1, divisor as usize);
    if divisor != 1 {
        decoder.set_scaling_factor(factor).map_err(failed)?;
    }
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let (format, samples) = if inks { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
    let pitch = width * samples;
    let (rgb, inverted) = target.room(width * height * 3, if inks { pitch * height } else { 0 });
    let pixels = if inks { &mut *inverted } else { &mut *rgb };
    decoder.decompress(bytes, Image { pixels, width, pitch, height, format }).map_err(failed)?;
    if inks {
        for (pixel, inverted) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(inverted.as_chunks::<4>().0) {
            *pixel = ink_to_rgb(*inverted);
        }
    }
    Ok((width as u32, height as u32))
}

/// Cyan, magenta, yellow and black, stored inverted as all JPEG files in use have them, to RGB as Pillow does it.
#[cfg(feature = "libjpeg-turbo")]
fn ink_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = i32::from(k);
    [c, m, y].map(|inverted| {
        // Division by 255, rounded, without dividing.
        let product = i32::from(255 - inverted) * light + 128;
        let share = ((product >> 8) + product) >> 8;
        (light - share).clamp(0, 255) as u8
    })
}

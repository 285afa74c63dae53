//! JPEG: what surrounds the pixels, and the pixels by one of two decoders.
//!
//! The default decoder is zune-jpeg, which needs no C compiler; with the feature `libjpeg-turbo` it is the library
//! that Pillow uses, with Pillow's settings (exact inverse transform, smooth chroma upsampling). Both are told to
//! refuse damaged data. Neither notices when the last few bytes of a file are missing, hence [`Outline::complete`].

use crate::vision::Still;
use crate::{Cause, Error, Result};

/// Scans of a progressive picture that are read; more is an attack on the reader's time.
const MAX_SCANS: u16 = 100;

/// Why there are no pixels.
pub(crate) enum Failure {
    Damaged(Cause),
    Unsupported(String),
    /// The caller does not want a picture of that size.
    Refused(Error),
}

/// Markers and segments of a file, read without its pixels.
#[derive(Default)]
pub(crate) struct Outline {
    /// All EXIF segments: several are one block in pieces.
    pub(crate) exif: Option<Vec<u8>>,
    /// The last XMP packet.
    pub(crate) xmp: Option<Vec<u8>>,
    /// Whether the marker that ends the picture is there.
    pub(crate) complete: bool,
}

impl Outline {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        const EXIF: &[u8] = b"Exif\0\0";
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        let mut outline = Self::default();
        let mut seen_scan = false;
        let mut rest = bytes.get(2..).unwrap_or_default();
        // A marker is FF and a code; FF 00 is a byte of data and FF FF is filling.
        while let Some(at) = rest.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0x00 | 0xFF)) {
            let code = rest[at + 1];
            rest = &rest[at + 2..];
            match code {
                0xD9 => {
                    outline.complete = true;
                    break;
                }
                // These have no segment.
                0x01 | 0xD0..=0xD8 => continue,
                0xDA => seen_scan = true,
                _ => {}
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
            rest = &rest[length..];
        }
        outline
    }
}

/// Decodes to RGB; `check` sees the size in the header before anything of that size is allocated.
#[cfg(not(feature = "libjpeg-turbo"))]
pub(crate) fn pixels(bytes: &[u8], check: impl Fn(u32, u32) -> Result<()>) -> Result<Still, Failure> {
    use zune_jpeg::JpegDecoder;
    use zune_jpeg::errors::DecodeErrors;
    use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

    let failed = |error: DecodeErrors| match error {
        DecodeErrors::Unsupported(what) => Failure::Unsupported(format!("{what:?}")),
        other => Failure::Damaged(other.into()),
    };
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
    let (width, height) = (width as u32, height as u32);
    check(width, height).map_err(Failure::Refused)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let wanted = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(wanted));
    let samples = decoder.decode().map_err(failed)?;
    let rgb = if grey { samples.iter().flat_map(|s| [*s; 3]).collect() } else { samples };
    Still::from_rgb(width, height, rgb).map_err(Failure::Refused)
}

/// Decodes to RGB; `check` sees the size in the header before anything of that size is allocated.
#[cfg(feature = "libjpeg-turbo")]
pub(crate) fn pixels(bytes: &[u8], check: impl Fn(u32, u32) -> Result<()>) -> Result<Still, Failure> {
    use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

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
    let (width, height) = (header.width as u32, header.height as u32);
    check(width, height).map_err(Failure::Refused)?;
    let (format, samples) = match header.colorspace {
        Colorspace::CMYK | Colorspace::YCCK => (PixelFormat::CMYK, 4),
        _ => (PixelFormat::RGB, 3),
    };
    let pitch = header.width * samples;
    let mut pixels = vec![0; pitch * header.height];
    let image = Image { pixels: &mut pixels[..], width: header.width, pitch, height: header.height, format };
    decoder.decompress(bytes, image).map_err(failed)?;
    if samples == 4 {
        pixels = pixels.as_chunks::<4>().0.iter().flat_map(|inverted| ink_to_rgb(*inverted)).collect();
    }
    Still::from_rgb(width, height, pixels).map_err(Failure::Refused)
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

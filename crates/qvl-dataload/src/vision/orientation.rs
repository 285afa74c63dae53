//! Which way up a picture is meant to be seen.
//!
//! Read as Pillow's `exif_transpose` reads it: EXIF tag 0x0112 of the first directory, and where there is none the
//! attribute `tiff:Orientation` of the XMP packet. Metadata that makes no sense counts as absent: the pixels are
//! still good.
//!
//! Source: Pillow 12.3, `Image.getexif` and `ImageOps.exif_transpose`.

/// How the stored pixels are turned to be upright; the discriminants are the EXIF values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orientation {
    Upright = 1,
    FlipHorizontal = 2,
    Rotate180 = 3,
    FlipVertical = 4,
    /// Rows become columns.
    Transpose = 5,
    Rotate90 = 6,
    /// Mirrored along the other diagonal.
    Transverse = 7,
    Rotate270 = 8,
}

impl Orientation {
    fn from_exif(value: u32) -> Self {
        match value {
            2 => Self::FlipHorizontal,
            3 => Self::Rotate180,
            4 => Self::FlipVertical,
            5 => Self::Transpose,
            6 => Self::Rotate90,
            7 => Self::Transverse,
            8 => Self::Rotate270,
            _ => Self::Upright,
        }
    }

    /// Reads the metadata of a picture; EXIF wins over XMP.
    pub(crate) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        exif.and_then(exif_orientation)
            .or_else(|| xmp.and_then(xmp_orientation))
            .map_or(Self::Upright, Self::from_exif)
    }

    /// The width and height of a picture that is turned.
    pub(crate) fn turned(self, (width, height): (u32, u32)) -> (u32, u32) {
        match self {
            Self::Transpose | Self::Rotate90 | Self::Transverse | Self::Rotate270 => (height, width),
            Self::Upright | Self::FlipHorizontal | Self::Rotate180 | Self::FlipVertical => (width, height),
        }
    }

    /// Turns the RGB pixels of a picture of `size` into `out`, which is as long.
    ///
    /// In blocks: rows of one picture are columns of the other, and of a block both are in the cache. It is narrow
    /// because every pixel of its width may be in another page of memory, and few pages are found fast.
    pub(crate) fn apply(self, size: (u32, u32), rgb: &[u8], out: &mut [u8]) {
        const WIDE: usize = 32;
        const HIGH: usize = 128;
        let (w, h) = (size.0 as usize, size.1 as usize);
        let (new_w, new_h) = self.turned(size);
        let (new_w, new_h) = (new_w as usize, new_h as usize);
        let (source, out) = (rgb.as_chunks::<3>().0, out.as_chunks_mut::<3>().0);
        let (last_x, last_y) = (w - 1, (h - 1) * w);
        // Where the first pixel comes from, whether x goes along a row of the source, and which ways x and y go.
        let (first, along, forth_x, forth_y) = match self {
            Self::Upright => (0, true, true, true),
            Self::FlipHorizontal => (last_x, true, false, true),
            Self::Rotate180 => (last_x + last_y, true, false, false),
            Self::FlipVertical => (last_y, true, true, false),
            Self::Transpose => (0, false, true, true),
            Self::Rotate90 => (last_y, false, false, true),
            Self::Transverse => (last_x + last_y, false, false, false),
            Self::Rotate270 => (last_x, false, true, false),
        };
        let (step_x, step_y) = if along { (1, w) } else { (w, 1) };
        // Steps against the direction of the source are negative; every place they lead to is one.
        let [step_x, step_y] = [(step_x, forth_x), (step_y, forth_y)]
            .map(|(step, forth)| if forth { step } else { usize::wrapping_neg(step) });
        for top in (0..new_h).step_by(HIGH) {
            for left in (0..new_w).step_by(WIDE) {
                let right = (left + WIDE).min(new_w);
                for y in top..(top + HIGH).min(new_h) {
                    let row = first.wrapping_add(step_y.wrapping_mul(y));
                    let mut at = row.wrapping_add(step_x.wrapping_mul(left));
                    for pixel in &mut out[y * new_w + left..][..right - left] {
                        *pixel = source[at];
                        at = at.wrapping_add(step_x);
                    }
                }
            }
        }
    }
}

/// Tag 0x0112 of the first directory of a TIFF structure, if it is one whole number.
fn exif_orientation(block: &[u8]) -> Option<u32> {
    const ORIENTATION: u16 = 0x0112;
    let mut tiff = block;
    while let Some(rest) = tiff.strip_prefix(b"Exif\0\0") {
        tiff = rest;
    }
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let b: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) })
    };
    let u32_at = |at: usize| {
        let b: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(b) } else { u32::from_be_bytes(b) })
    };
    let directory = u32_at(4)? as usize;
    let entries = usize::from(u16_at(directory)?);
    let mut found = None;
    for i in 0..entries {
        let Some(entry) = directory.checked_add(2 + 12 * i) else { break };
        let (Some(tag), Some(kind), Some(count)) = (u16_at(entry), u16_at(entry + 2), u32_at(entry + 4))
        else {
            break;
        };
        if tag == ORIENTATION {
            found = match (kind, count) {
                // SHORT, SSHORT: in the first two bytes of the value field. LONG, SLONG: all four.
                (3 | 8, 1) => u16_at(entry + 8).map(u32::from),
                (4 | 9, 1) => u32_at(entry + 8),
                // Present, but no number: it overrides XMP and turns nothing.
                _ => Some(1),
            };
        }
    }
    found
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(packet: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut rest = packet;
    loop {
        let at = rest.windows(KEY.len()).position(|w| w == KEY)?;
        rest = &rest[at + KEY.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"));
        if let Some(digit) = value.and_then(|v| v.first()).filter(|d| d.is_ascii_digit()) {
            return Some(u32::from(digit - b'0'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(little: bool, kind: u16, value: u16) -> Vec<u8> {
        let n = |v: u16| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let m = |v: u32| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let mut b = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        b.extend(m(8));
        b.extend(n(1));
        b.extend(n(0x0112));
        b.extend(n(kind));
        b.extend(m(1));
        b.extend(n(value));
        b.extend([0; 6]);
        b
    }

    #[test]
    fn both_byte_orders_are_read() {
        assert_eq!(exif_orientation(&exif(true, 3, 6)), Some(6));
        assert_eq!(exif_orientation(&exif(false, 3, 8)), Some(8));
        assert_eq!(exif_orientation(b"Exif\0\0II"), None);
    }

    #[test]
    fn exif_wins_over_xmp() {
        let xmp: &[u8] = b"<x tiff:Orientation=\"8\"/>";
        let block = exif(true, 3, 6);
        assert_eq!(Orientation::from_metadata(Some(&block), Some(xmp)), Orientation::Rotate90);
        assert_eq!(Orientation::from_metadata(None, Some(xmp)), Orientation::Rotate270);
        assert_eq!(Orientation::from_metadata(None, Some(b"tiff:Orientation")), Orientation::Upright);
    }

    /// ```text
    /// a b c      d a
    /// d e f      e b     Rotate90 turns clockwise
    ///            f c
    /// ```
    #[test]
    fn rotate_90_is_clockwise() {
        let pixels = |letters: &[u8]| letters.iter().flat_map(|l| [*l; 3]).collect::<Vec<u8>>();
        let apply = |orientation: Orientation| {
            let mut out = vec![0; 18];
            orientation.apply((3, 2), &pixels(b"abcdef"), &mut out);
            (orientation.turned((3, 2)), out)
        };
        assert_eq!(apply(Orientation::Upright), ((3, 2), pixels(b"abcdef")));
        assert_eq!(apply(Orientation::FlipHorizontal), ((3, 2), pixels(b"cbafed")));
        assert_eq!(apply(Orientation::Rotate180), ((3, 2), pixels(b"fedcba")));
        assert_eq!(apply(Orientation::FlipVertical), ((3, 2), pixels(b"defabc")));
        assert_eq!(apply(Orientation::Transpose), ((2, 3), pixels(b"adbecf")));
        assert_eq!(apply(Orientation::Rotate90), ((2, 3), pixels(b"daebfc")));
        assert_eq!(apply(Orientation::Transverse), ((2, 3), pixels(b"fcebda")));
        assert_eq!(apply(Orientation::Rotate270), ((2, 3), pixels(b"cfbead")));
    }

    /// More than one block in both directions, against where each pixel comes from.
    #[test]
    fn large_pictures_are_turned_pixel_by_pixel() {
        let (w, h) = (150usize, 71usize);
        let rgb: Vec<u8> = (0..w * h * 3).map(|i| (i * 7 + i / 251) as u8).collect();
        for value in 1..=8 {
            let orientation = Orientation::from_exif(value);
            let mut out = vec![0; rgb.len()];
            orientation.apply((w as u32, h as u32), &rgb, &mut out);
            let (new_w, new_h) = orientation.turned((w as u32, h as u32));
            for (y, x) in (0..new_h as usize).flat_map(|y| (0..new_w as usize).map(move |x| (y, x))) {
                let (from_x, from_y) = match value {
                    1 => (x, y),
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (y, h - 1 - x),
                    7 => (w - 1 - y, h - 1 - x),
                    _ => (w - 1 - y, x),
                };
                let (got, expected) = ((y * new_w as usize + x) * 3, (from_y * w + from_x) * 3);
                assert_eq!(out[got..got + 3], rgb[expected..expected + 3], "{orientation:?} at {x}, {y}");
            }
        }
    }
}

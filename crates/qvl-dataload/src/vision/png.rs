//! What the PNG decoder does not tell: chunks behind the pixels, and which colour is transparent.
//!
//! Source: Pillow 12.3, `PngImagePlugin.chunk_tRNS` and `Image.convert`; transformers 5.23, `convert_to_rgb` in
//! `image_transforms.py`, which lays a picture with a transparent colour on white.

/// Bit depth and colour type of 16-bit grey in the header of a PNG.
pub(crate) const GREY_16: (u8, u8) = (16, 0);

/// The contents of the last chunk of this kind in a PNG.
pub(crate) fn chunk<'a>(bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = bytes.get(8..)?;
    let mut found = None;
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(data) = after.get(..length) else { break };
        if header[4..] == *wanted {
            found = Some(data);
        }
        // Four bytes of check sum follow.
        rest = after.get(length.saturating_add(4)..).unwrap_or_default();
    }
    found
}

/// The one colour that a PNG declares transparent, as Pillow and transformers come to compare it with 8-bit pixels.
///
/// That is faithful to samples of 8 bits and to palettes with one fully transparent entry. For other depths Pillow
/// compares the raw number of the file with scaled samples, and so does this.
pub(crate) fn transparent_color(bytes: &[u8], kind: (u8, u8)) -> Option<[u8; 3]> {
    let transparency = chunk(bytes, b"tRNS")?;
    let sample = |i: usize| transparency.get(2 * i..2 * i + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    match kind {
        (1, 0) => Some(if sample(0)? == 0 { [0; 3] } else { [255, 0, 0] }),
        GREY_16 => Some([sample(0)? as u8, 0, 0]),
        (_, 0) => Some([sample(0)?.min(255) as u8; 3]),
        (_, 2) => Some([sample(0)? as u8, sample(1)? as u8, sample(2)? as u8]),
        (_, 3) => {
            // Several levels of alpha are dropped like an alpha channel.
            let clear = transparency.iter().position(|alpha| *alpha == 0)?;
            let others = transparency.iter().enumerate().all(|(i, alpha)| i == clear || *alpha == 255);
            let at = clear * 3;
            let color = chunk(bytes, b"PLTE")?.get(at..at + 3).filter(|_| others)?;
            Some([color[0], color[1], color[2]])
        }
        _ => None,
    }
}

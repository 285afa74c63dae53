//! The size a picture or a video frame is brought to before it is cut into patches.
//!
//! Separate from resizing because it needs no pixels: the number of visual tokens follows from it. Python's `round`
//! takes a half to the even neighbour (720 / 32 = 22.5 becomes 22, hence 704 rows), and all arithmetic is in f64;
//! rounding half up or in f32 gives another grid for such pictures.
//!
//! Source: transformers 5.23, `smart_resize` in `image_processing_pil_qwen2_vl.py` and in
//! `video_processing_qwen3_vl.py`.

use crate::{Error, Result};

/// The largest ratio of the longer to the shorter side that the reference accepts.
pub const MAX_ASPECT_RATIO: f64 = 200.0;

/// The longest side a target may have; more cannot come from sensible settings.
const MAX_TARGET_SIDE: f64 = 65_535.0;

/// `(height, width)` a still picture of `height` x `width` pixels is resized to.
///
/// Both are multiples of `factor` (patch size times merge size) and their product is, as far as the multiples allow,
/// between `min_pixels` and `max_pixels`, at nearly the aspect ratio of the source.
///
/// # Errors
/// [`Error::NoPixels`] for an empty picture or a result of zero, [`Error::AspectRatio`] above [`MAX_ASPECT_RATIO`],
/// [`Error::TargetSize`] if a side of the result exceeds 65535.
///
/// ```
/// # use qvl_dataload::vision::smart_resize;
/// // 720 is 22.5 times 32; the half goes to the even 22.
/// assert_eq!(smart_resize(720, 1280, 32, 65_536, 16_777_216)?, (704, 1280));
/// # Ok::<(), qvl_dataload::Error>(())
/// ```
pub fn smart_resize(
    height: u32,
    width: u32,
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(u32, u32)> {
    let factor = check(height, width, factor)?;
    check_aspect_ratio(height, width, f64::from(height), f64::from(width))?;
    let (h, w) = (f64::from(height), f64::from(width));
    // Integer products are exact in Python; in f64 they are below 2^53, which 65535 x 65535 x 768 frames is.
    let area = h * w;
    let bars = fit(h, w, factor, Volume { bar_frames: 1.0, source: area, min_pixels, max_pixels });
    whole(height, width, bars)
}

/// `(height, width)` the frames of a video are resized to.
///
/// The pixel limits hold for all frames together: `frames * height * width`, with `frames` rounded (half to even) to
/// a multiple of `temporal_factor` in the test whether to shrink, and as they are in the computation by how much.
/// Frames thinner than `factor` are first enlarged in both directions.
///
/// # Errors
/// [`Error::FrameCount`] for fewer frames than `temporal_factor`, otherwise as [`smart_resize`].
pub fn smart_resize_video(
    frames: usize,
    height: u32,
    width: u32,
    temporal_factor: u32,
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(u32, u32)> {
    let factor_f = check(height, width, factor)?;
    if frames < temporal_factor as usize || temporal_factor == 0 {
        return Err(Error::FrameCount { got: frames, expected: temporal_factor.max(1) as usize });
    }
    let (mut h, mut w) = (f64::from(height), f64::from(width));
    if height < factor || width < factor {
        let scale = (factor_f / h).max(factor_f / w);
        (h, w) = ((h * scale).trunc(), (w * scale).trunc());
    }
    check_aspect_ratio(height, width, h, w)?;
    let (n, temporal) = (frames as f64, f64::from(temporal_factor));
    let bar_frames = (n / temporal).round_ties_even() * temporal;
    let bars = fit(h, w, factor_f, Volume { bar_frames, source: n * h * w, min_pixels, max_pixels });
    whole(height, width, bars)
}

/// What the pixel limits are compared with.
#[derive(Clone, Copy)]
struct Volume {
    /// Frames counted in the comparison; 1 for a still.
    bar_frames: f64,
    /// Pixels of the source, all frames together.
    source: f64,
    min_pixels: u64,
    max_pixels: u64,
}

/// Rounds to multiples of `factor`, then shrinks or enlarges if the volume is outside its limits.
fn fit(h: f64, w: f64, factor: f64, volume: Volume) -> (f64, f64) {
    let (min_pixels, max_pixels) = (volume.min_pixels as f64, volume.max_pixels as f64);
    let h_bar = (h / factor).round_ties_even() * factor;
    let w_bar = (w / factor).round_ties_even() * factor;
    let bar = volume.bar_frames * h_bar * w_bar;
    if bar > max_pixels {
        let beta = (volume.source / max_pixels).sqrt();
        let shrink = |side: f64| factor.max((side / beta / factor).floor() * factor);
        (shrink(h), shrink(w))
    } else if bar < min_pixels {
        let beta = (min_pixels / volume.source).sqrt();
        let enlarge = |side: f64| (side * beta / factor).ceil() * factor;
        (enlarge(h), enlarge(w))
    } else {
        (h_bar, w_bar)
    }
}

fn check(height: u32, width: u32, factor: u32) -> Result<f64> {
    if height == 0 || width == 0 || factor == 0 {
        return Err(Error::NoPixels { width, height });
    }
    Ok(f64::from(factor))
}

/// `h` and `w` are what the ratio is taken of; `height` and `width` are for the message.
fn check_aspect_ratio(height: u32, width: u32, h: f64, w: f64) -> Result<()> {
    let ratio = h.max(w) / h.min(w);
    if ratio > MAX_ASPECT_RATIO {
        return Err(Error::AspectRatio { width, height, ratio, limit: MAX_ASPECT_RATIO });
    }
    Ok(())
}

/// The result as integers, or why it cannot be used.
fn whole(height: u32, width: u32, (h, w): (f64, f64)) -> Result<(u32, u32)> {
    if h < 1.0 || w < 1.0 {
        return Err(Error::NoPixels { width: w as u32, height: h as u32 });
    }
    // Negated so that NaN fails too.
    if !(h <= MAX_TARGET_SIDE && w <= MAX_TARGET_SIDE) {
        return Err(Error::TargetSize { width, height, got_width: w, got_height: h });
    }
    Ok((h as u32, w as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_goes_to_the_even_multiple() {
        for (side, expected) in
            [(80, 64), (144, 128), (208, 192), (336, 320), (112, 128), (720, 704), (1040, 1024)]
        {
            assert_eq!(
                smart_resize(side, side, 32, 1, u64::MAX).unwrap(),
                (expected, expected),
                "side {side}"
            );
        }
    }

    #[test]
    fn thin_pictures_are_enlarged_instead_of_vanishing() {
        assert_eq!(smart_resize(10, 640, 32, 65_536, 16_777_216).unwrap(), (32, 2048));
    }

    #[test]
    fn aspect_ratio_of_exactly_the_limit_is_accepted() {
        assert!(smart_resize(1, 200, 32, 65_536, 16_777_216).is_ok());
        let e = smart_resize(1, 201, 32, 65_536, 16_777_216).unwrap_err();
        assert_eq!(e.to_string(), "a 201x1 picture has an aspect ratio of 201.0, the limit is 200");
    }

    #[test]
    fn limits_of_zero_or_without_end_are_errors_where_they_bite() {
        assert!(matches!(smart_resize(3, 3, 32, 0, 100), Err(Error::NoPixels { .. })));
        assert!(matches!(smart_resize(3, 3, 32, u64::MAX, u64::MAX), Err(Error::TargetSize { .. })));
        assert!(matches!(smart_resize(0, 3, 32, 1, 100), Err(Error::NoPixels { .. })));
    }
}

//! Rescale, normalise and cut into patches, in one pass over the resized bytes.
//!
//! A byte has 256 values, so rescaling and normalising is a table of 256 f32 a channel, computed in the reference's
//! own order of operations. The two processors differ in the last bit:
//!
//! - stills (NumPy): `(f32(x * scale in f64) - mean) / std` in f32
//! - video frames (torch): `(f32(x) - mean * (1 / scale)) / (std * (1 / scale))` in f32
//!
//! One patch is a row of `3 * T * P * P` values in the order (channel, frame, row, column); patches come in the order
//! (grid row of merged patches, grid column of merged patches, row inside, column inside), so that the patches of one
//! visual token are adjacent. A still fills all `T` frames of its only temporal patch with the same picture.

use crate::vision::{ImageConfig, VideoConfig};

/// Patches of a picture or a video in time, height and width, before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal patches; 1 for a still.
    pub t: u32,
    /// Patches from top to bottom.
    pub h: u32,
    /// Patches from left to right.
    pub w: u32,
}

impl Grid {
    /// Number of patches, which is the number of rows of `pixel_values`.
    pub fn patches(self) -> usize {
        self.t as usize * self.h as usize * self.w as usize
    }

    /// Number of visual tokens once `merge` x `merge` patches are merged into one.
    pub fn visual_tokens(self, merge: u32) -> usize {
        let merge = merge.max(1) as usize;
        self.patches() / (merge * merge)
    }
}

/// A still, cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// How many patches in each direction.
    pub grid: Grid,
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub pixel_values: Vec<f32>,
}

/// A video, cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoPatches {
    /// How many patches in each direction.
    pub grid: Grid,
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub pixel_values: Vec<f32>,
    /// Seconds from the start of the source, one for each of the `grid.t` temporal patches.
    pub timestamps: Vec<f64>,
}

/// The value of every byte, for each channel.
pub(crate) type Tables = [[f32; 256]; 3];

/// Tables of the still picture processor.
pub(crate) fn image_tables(config: &ImageConfig) -> Tables {
    let value = |byte: u8, channel: usize| {
        let mut value = if config.do_rescale {
            (f64::from(byte) * config.rescale_factor) as f32
        } else {
            f32::from(byte)
        };
        if config.do_normalize {
            value = (value - config.image_mean[channel] as f32) / config.image_std[channel] as f32;
        }
        value
    };
    tables(value)
}

/// Tables of the video processor.
pub(crate) fn video_tables(config: &VideoConfig) -> Tables {
    // Fused by the reference: the mean and the deviation are scaled, not the pixels.
    let unscale = if config.do_rescale { (1.0 / config.rescale_factor) as f32 } else { 1.0 };
    let value = |byte: u8, channel: usize| match (config.do_normalize, config.do_rescale) {
        (true, _) => {
            let mean = config.image_mean[channel] as f32 * unscale;
            let std = config.image_std[channel] as f32 * unscale;
            (f32::from(byte) - mean) / std
        }
        (false, true) => f32::from(byte) * config.rescale_factor as f32,
        (false, false) => f32::from(byte),
    };
    tables(value)
}

fn tables(value: impl Fn(u8, usize) -> f32) -> Tables {
    std::array::from_fn(|channel| std::array::from_fn(|byte| value(byte as u8, channel)))
}

/// How one temporal patch is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Patches in height and width.
    pub(crate) grid_h: usize,
    pub(crate) grid_w: usize,
    /// Pixels a side of a patch.
    pub(crate) patch: usize,
    /// Frames in a temporal patch.
    pub(crate) temporal: usize,
    /// Patches a side that are merged into one token.
    pub(crate) merge: usize,
}

impl Layout {
    /// Values of one patch.
    pub(crate) fn row_len(self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// Bytes of one frame.
    fn frame_len(self) -> usize {
        self.grid_h * self.grid_w * self.patch * self.patch * 3
    }
}

/// Cuts one temporal patch.
///
/// - `frames`: one frame, used for the whole temporal patch, or `temporal` of them; each
///   `[grid_h * patch, grid_w * patch, 3]` bytes
/// - `out`: `[grid_h * grid_w, row_len]`
pub(crate) fn patchify(frames: &[&[u8]], layout: Layout, tables: &Tables, out: &mut [f32]) {
    let Layout { grid_h, grid_w, patch, temporal, merge } = layout;
    assert!(frames.len() == 1 || frames.len() == temporal, "one frame, or one for each place in the patch");
    assert!(
        frames.iter().all(|f| f.len() == layout.frame_len()),
        "a frame does not have the size of its grid"
    );
    assert_eq!(
        out.len(),
        grid_h * grid_w * layout.row_len(),
        "the output does not have the size of its grid"
    );
    let plane = patch * patch;
    let stride = grid_w * patch * 3;
    for (index, row) in out.chunks_exact_mut(layout.row_len()).enumerate() {
        let (token, inside) = (index / (merge * merge), index % (merge * merge));
        let patch_y = token / (grid_w / merge) * merge + inside / merge;
        let patch_x = token % (grid_w / merge) * merge + inside % merge;
        let corner = patch_y * patch * stride + patch_x * patch * 3;
        let (red, rest) = row.split_at_mut(temporal * plane);
        let (green, blue) = rest.split_at_mut(temporal * plane);
        for (t, frame) in frames.iter().enumerate() {
            let at = t * plane..(t + 1) * plane;
            let lines = red[at.clone()]
                .chunks_exact_mut(patch)
                .zip(green[at.clone()].chunks_exact_mut(patch))
                .zip(blue[at].chunks_exact_mut(patch));
            for (y, ((red, green), blue)) in lines.enumerate() {
                let pixels = frame[corner + y * stride..][..patch * 3].chunks_exact(3);
                for (((pixel, red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
                    *red = tables[0][usize::from(pixel[0])];
                    *green = tables[1][usize::from(pixel[1])];
                    *blue = tables[2][usize::from(pixel[2])];
                }
            }
        }
        if frames.len() < temporal {
            for channel in [red, green, blue] {
                let (first, others) = channel.split_at_mut(plane);
                for other in others.chunks_exact_mut(plane) {
                    other.copy_from_slice(first);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two temporal patches' worth of one 2x2-pixel patch grid, merge 2: patches come as (0,0) (0,1) (1,0) (1,1) of
    /// the left token, then of the right one.
    #[test]
    fn patches_of_one_token_are_adjacent() {
        let layout = Layout { grid_h: 2, grid_w: 4, patch: 1, temporal: 1, merge: 2 };
        // 2 rows of 4 pixels; the red byte counts the pixels.
        let rgb: Vec<u8> = (0..8u8).flat_map(|i| [i, 100, 200]).collect();
        let identity = tables(|byte, _| f32::from(byte));
        let mut out = vec![0.0; 24];
        patchify(&[&rgb], layout, &identity, &mut out);
        let red: Vec<f32> = out.chunks_exact(3).map(|p| p[0]).collect();
        assert_eq!(red, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert!(out.chunks_exact(3).all(|p| p[1..] == [100.0, 200.0]));
    }

    /// One pixel, two frames: the order inside a patch is channel, then frame.
    #[test]
    fn a_still_fills_every_frame_of_its_patch() {
        let layout = Layout { grid_h: 1, grid_w: 1, patch: 1, temporal: 2, merge: 1 };
        let identity = tables(|byte, _| f32::from(byte));
        let mut out = vec![0.0; 6];
        patchify(&[&[1, 2, 3]], layout, &identity, &mut out);
        assert_eq!(out, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        patchify(&[&[1, 2, 3], &[4, 5, 6]], layout, &identity, &mut out);
        assert_eq!(out, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}

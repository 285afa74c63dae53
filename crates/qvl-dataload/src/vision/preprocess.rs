//! Stills and videos to patches: the steps of this module's neighbours in order.

use std::ops::Range;

use crate::vision::patchify::Layout;
use crate::vision::resize::rows::Key;
use crate::vision::resize::{self, Weights};
use crate::vision::strips::{Strips, Task};
use crate::vision::values::{PatchValue, Scale};
use crate::vision::{
    Grid, ImageConfig, Patches, ProcessorConfig, Still, Video, VideoConfig, VideoPatches, smart_resize,
    smart_resize_video,
};
use crate::{Error, Result};

impl ProcessorConfig {
    /// The grid of a still of this size, from which its number of visual tokens follows, without its pixels.
    ///
    /// # Errors
    /// As [`smart_resize`]; [`Error::Divisibility`] if resizing is off; [`Error::ConfigValue`] for settings that
    /// make no sense.
    pub fn image_grid(&self, width: u32, height: u32) -> Result<Grid> {
        let (height, width) = self.image.target(height, width)?;
        Ok(Grid { t: 1, h: height / self.image.patch_size, w: width / self.image.patch_size })
    }

    /// The grid of a video of `frames` frames (after sampling) of this size, without its pixels.
    ///
    /// # Errors
    /// As [`smart_resize_video`]; [`Error::Divisibility`] if resizing is off; [`Error::ConfigValue`] for settings
    /// that make no sense.
    pub fn video_grid(&self, frames: usize, width: u32, height: u32) -> Result<Grid> {
        let config = &self.video;
        let (height, width) = config.target(frames, height, width)?;
        let t = u32::try_from(frames.div_ceil(config.temporal_patch_size as usize))
            .map_err(|_| Error::FrameCount { got: frames, expected: u32::MAX as usize })?;
        Ok(Grid { t, h: height / config.patch_size, w: width / config.patch_size })
    }

    /// A still, resized and cut into patches: `pixel_values` of the reference's Pillow image processor.
    ///
    /// # Errors
    /// As [`ProcessorConfig::image_grid`].
    pub fn image(&self, still: &Still) -> Result<Patches> {
        let grid = self.image_grid(still.width(), still.height())?;
        let mut pixel_values = vec![0.0; grid.patches() * self.image.patch_values()];
        self.image_into(still, &mut pixel_values)?;
        Ok(Patches { grid, pixel_values })
    }

    /// As [`ProcessorConfig::image`], into a buffer of exactly [`Grid::patches`] times
    /// [`ImageConfig::patch_values`] values.
    ///
    /// # Errors
    /// [`Error::OutputLength`] if the buffer has another length, otherwise as [`ProcessorConfig::image_grid`]. The
    /// buffer is then unchanged.
    pub fn image_into<V: PatchValue>(&self, still: &Still, out: &mut [V]) -> Result<Grid> {
        let grid = self.image_grid(still.width(), still.height())?;
        self.check_image_output(grid, out)?;
        Strips::default().image(self, still.rgb(), (still.width(), still.height()), grid, out)?;
        Ok(grid)
    }

    /// A still as it is before it is cut into patches: the bytes to compare when patches differ.
    ///
    /// # Errors
    /// As [`ProcessorConfig::image_grid`].
    pub fn resized_image(&self, still: &Still) -> Result<Still> {
        let (height, width) = self.image.target(still.height(), still.width())?;
        let key =
            Key { weights: Weights::Pillow, from: (still.width(), still.height()), to: (width, height) };
        let resized = resize::resize(key, still.rgb())?;
        Still::from_rgb(width, height, resized.into_owned())
    }

    /// The frames of a video, resized and cut into patches: `pixel_values_videos` of the reference's video processor
    /// with `do_sample_frames=False`. To sample, call [`Video::sample`] first.
    ///
    /// A last temporal patch that is not full repeats the last frame.
    ///
    /// # Errors
    /// As [`ProcessorConfig::video_grid`].
    pub fn video(&self, video: &Video) -> Result<VideoPatches> {
        let grid = self.video_grid(video.frames().len(), video.width(), video.height())?;
        let mut pixel_values = vec![0.0; grid.patches() * self.video.patch_values()];
        self.video_into(video, &mut pixel_values)?;
        Ok(VideoPatches { grid, pixel_values, timestamps: video.timestamps(self.video.temporal_patch_size) })
    }

    /// The frames of a video as they are before they are cut into patches, in order and without a repeated last one.
    ///
    /// # Errors
    /// As [`ProcessorConfig::video_grid`].
    pub fn resized_video(&self, video: &Video) -> Result<Vec<Still>> {
        let (height, width) = self.video.target(video.frames().len(), video.height(), video.width())?;
        video
            .frames()
            .iter()
            .map(|f| {
                let key = Key { weights: Weights::Torch, from: (f.width(), f.height()), to: (width, height) };
                let rgb = resize::resize(key, f.rgb())?;
                Still::from_rgb(width, height, rgb.into_owned())
            })
            .collect()
    }

    /// As [`ProcessorConfig::video`], into a buffer of exactly [`Grid::patches`] times
    /// [`VideoConfig::patch_values`] values. A few rows of one frame are resized at a time.
    ///
    /// # Errors
    /// [`Error::OutputLength`] if the buffer has another length, otherwise as [`ProcessorConfig::video_grid`].
    pub fn video_into<V: PatchValue>(&self, video: &Video, out: &mut [V]) -> Result<Grid> {
        let (frames, from) = (video.frames(), (video.width(), video.height()));
        let grid = self.video_grid(frames.len(), from.0, from.1)?;
        let mut strips = Strips::default();
        self.frames_into(frames.len(), from, grid, out, |place, task, places, stream, out| {
            strips.cut(task, frames[place].rgb(), places, stream, out)
        })?;
        Ok(grid)
    }

    /// Cuts `count` frames of a size into their temporal patches; `cut` is given the number of each frame.
    pub(crate) fn frames_into<V: PatchValue>(
        &self,
        count: usize,
        from: (u32, u32),
        grid: Grid,
        out: &mut [V],
        mut cut: impl FnMut(usize, Task, Range<usize>, bool, &mut [V]) -> Result<()>,
    ) -> Result<()> {
        let config = &self.video;
        let layout = layout(grid, config.patch_size, config.temporal_patch_size, config.merge_size);
        check_output(out, grid, layout)?;
        let to = (grid.w * config.patch_size, grid.h * config.patch_size);
        let key = Key { weights: Weights::Torch, from, to };
        let task = Task { key, layout, scale: Scale::of_video(config) };
        let rows = grid.h as usize * grid.w as usize * layout.row_len();
        let stream = Strips::stream(out);
        for (t, out) in out.chunks_exact_mut(rows).enumerate() {
            let first = t * layout.temporal;
            for place in first..count.min(first + layout.temporal) {
                // The last frame stands in for those that are missing.
                let end = if place + 1 == count { layout.temporal } else { place + 1 - first };
                cut(place, task, place - first..end, stream, out)?;
            }
        }
        Ok(())
    }
}

impl ImageConfig {
    /// Values in one patch: three channels, the frames of a temporal patch, and a square of pixels.
    pub fn patch_values(&self) -> usize {
        patch_values(self.patch_size, self.temporal_patch_size)
    }

    /// `(height, width)` after resizing.
    fn target(&self, height: u32, width: u32) -> Result<(u32, u32)> {
        self.validate()?;
        let factor = self.patch_size * self.merge_size;
        if self.do_resize {
            smart_resize(height, width, factor, self.min_pixels, self.max_pixels)
        } else {
            whole_patches(height, width, factor)
        }
    }
}

impl VideoConfig {
    /// Values in one patch: three channels, the frames of a temporal patch, and a square of pixels.
    pub fn patch_values(&self) -> usize {
        patch_values(self.patch_size, self.temporal_patch_size)
    }

    /// `(height, width)` after resizing.
    fn target(&self, frames: usize, height: u32, width: u32) -> Result<(u32, u32)> {
        self.validate()?;
        let factor = self.patch_size * self.merge_size;
        let expected = self.temporal_patch_size as usize;
        if frames == 0 {
            return Err(Error::FrameCount { got: 0, expected });
        }
        if !self.do_resize {
            return whole_patches(height, width, factor);
        }
        let max_pixels = if self.cap_pixels_per_frame {
            let frame_cap = u64::from(self.max_video_tokens) * u64::from(factor) * u64::from(factor);
            let share = self.max_pixels / frames as u64;
            let floor = (self.min_pixels as f64 * 1.05) as u64;
            frame_cap.min(share).max(floor).saturating_mul(frames as u64)
        } else {
            self.max_pixels
        };
        smart_resize_video(
            frames,
            height,
            width,
            self.temporal_patch_size,
            factor,
            self.min_pixels,
            max_pixels,
        )
    }
}

impl ProcessorConfig {
    /// Whether a buffer has the length for a still of this grid.
    pub(crate) fn check_image_output<V>(&self, grid: Grid, out: &[V]) -> Result<()> {
        let config = &self.image;
        check_output(
            out,
            grid,
            layout(grid, config.patch_size, config.temporal_patch_size, config.merge_size),
        )
    }

    /// Width and height of a still of this grid, resized.
    pub(crate) fn image_size(&self, grid: Grid) -> (u32, u32) {
        (grid.w * self.image.patch_size, grid.h * self.image.patch_size)
    }
}

impl Strips {
    /// A still of `width` x `height` pixels to its patches, which `grid` may hold.
    pub(crate) fn image<V: PatchValue>(
        &mut self,
        config: &ProcessorConfig,
        rgb: &[u8],
        from: (u32, u32),
        grid: Grid,
        out: &mut [V],
    ) -> Result<()> {
        let key = Key { weights: Weights::Pillow, from, to: config.image_size(grid) };
        let config = &config.image;
        let layout = layout(grid, config.patch_size, config.temporal_patch_size, config.merge_size);
        let task = Task { key, layout, scale: Scale::of_image(config) };
        self.cut(task, rgb, 0..layout.temporal, Self::stream(out), out)
    }
}

fn patch_values(patch_size: u32, temporal_patch_size: u32) -> usize {
    3 * temporal_patch_size as usize * patch_size as usize * patch_size as usize
}

fn layout(grid: Grid, patch: u32, temporal: u32, merge: u32) -> Layout {
    Layout {
        grid_h: grid.h as usize,
        grid_w: grid.w as usize,
        patch: patch as usize,
        temporal: temporal as usize,
        merge: merge as usize,
    }
}

fn check_output<V>(out: &[V], grid: Grid, layout: Layout) -> Result<()> {
    let expected = grid.patches() * layout.row_len();
    if out.len() == expected {
        return Ok(());
    }
    Err(Error::OutputLength { got: out.len(), expected, t: grid.t, h: grid.h, w: grid.w })
}

/// The size as it is, if it can be cut into merged patches.
fn whole_patches(height: u32, width: u32, factor: u32) -> Result<(u32, u32)> {
    if height == 0 || width == 0 {
        return Err(Error::NoPixels { width, height });
    }
    if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
        return Err(Error::Divisibility { width, height, factor });
    }
    Ok((height, width))
}

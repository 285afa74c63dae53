//! A video as its frames, with where each frame comes from.
//!
//! Timestamps are computed from the index of a frame in its source and the source's frame rate, so both stay with
//! the frames through sampling. Sampling is a step of its own and happens once: frames that were sampled before are
//! refused.
//!
//! Source: transformers 5.23, `Qwen3VLVideoProcessor.sample_frames` and `Qwen3VLProcessor._calculate_timestamps`.

use std::fmt;
use std::path::Path;

use crate::vision::{DecodeLimits, Still, VideoConfig};
use crate::{Error, Result};

/// One frame of a video: pixels, and its index in the source.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    source_index: u64,
    picture: Still,
}

impl Frame {
    /// Index in the source, from 0.
    pub fn source_index(&self) -> u64 {
        self.source_index
    }

    /// Width in pixels, the same for all frames of a video.
    pub fn width(&self) -> u32 {
        self.picture.width()
    }

    /// Height in pixels, the same for all frames of a video.
    pub fn height(&self) -> u32 {
        self.picture.height()
    }

    /// The pixels: R, G, B, row by row from the top left.
    pub fn rgb(&self) -> &[u8] {
        self.picture.rgb()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("source_index", &self.source_index)
            .field("width", &self.width())
            .field("height", &self.height())
            .finish_non_exhaustive()
    }
}

/// Frames of one video, all of one size, in the order of their source.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// Never empty.
    frames: Vec<Frame>,
    fps: f64,
}

impl Video {
    /// A video from `(index in the source, pixels)` of each frame and the frame rate of the source.
    ///
    /// # Errors
    /// [`Error::FrameCount`] without frames, [`Error::FrameRate`] unless `fps` is positive and finite,
    /// [`Error::FrameSize`] if the sizes differ, [`Error::FrameOrder`] if an index is below the one before.
    pub fn from_frames(frames: Vec<(u64, Still)>, fps: f64) -> Result<Self> {
        Self::build(frames, fps, |position| format!("frame {position}"))
    }

    /// A video from picture files, which are frames 0, 1, 2 and so on of a source of `fps` frames per second.
    ///
    /// # Errors
    /// What [`Still::open`] and [`Video::from_frames`] return, naming the file.
    pub fn open_frames<P: AsRef<Path>>(paths: &[P], fps: f64, limits: &DecodeLimits) -> Result<Self> {
        check_fps(fps)?;
        let mut frames = Vec::with_capacity(paths.len());
        for (index, path) in paths.iter().enumerate() {
            frames.push((index as u64, Still::open(path, limits)?));
            // A wrong size is found before the rest is decoded.
            check_size(&frames, index, |i| paths[i].as_ref().display().to_string())?;
        }
        Self::build(frames, fps, |i| paths[i].as_ref().display().to_string())
    }

    fn build(frames: Vec<(u64, Still)>, fps: f64, name: impl Fn(usize) -> String) -> Result<Self> {
        check_fps(fps)?;
        if frames.is_empty() {
            return Err(Error::FrameCount { got: 0, expected: 1 });
        }
        for position in 1..frames.len() {
            check_size(&frames, position, &name)?;
            let (got, expected) = (frames[position].0, frames[position - 1].0);
            if got < expected {
                return Err(Error::FrameOrder { position, got, expected });
            }
        }
        let frames =
            frames.into_iter().map(|(source_index, picture)| Frame { source_index, picture }).collect();
        Ok(Self { frames, fps })
    }

    /// The frames, at least one.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Frames per second of the source, not of the frames that are left of it.
    pub fn fps(&self) -> f64 {
        self.fps
    }

    /// Width of every frame in pixels.
    pub fn width(&self) -> u32 {
        self.frames[0].width()
    }

    /// Height of every frame in pixels.
    pub fn height(&self) -> u32 {
        self.frames[0].height()
    }

    /// Keeps the frames that the reference's video processor would keep; see [`VideoConfig::sample_indices`].
    ///
    /// The reference does this if `do_sample_frames` is set; here it is the caller's step, and the frame rate and the
    /// source indices stay right through it.
    ///
    /// # Errors
    /// [`Error::AlreadySampled`] if the frames are not frames 0, 1, 2 and so on of their source.
    pub fn sample(self, config: &VideoConfig) -> Result<Self> {
        let skipped = self.frames.iter().enumerate().find(|(position, f)| f.source_index != *position as u64);
        if let Some((position, frame)) = skipped {
            return Err(Error::AlreadySampled { position, got: frame.source_index });
        }
        let mut keep = config.sample_indices(self.frames.len(), self.fps)?.into_iter().peekable();
        let mut frames = Vec::with_capacity(keep.len());
        for (position, frame) in self.frames.into_iter().enumerate() {
            if keep.next_if_eq(&position).is_some() {
                frames.push(frame);
            }
        }
        Ok(Self { frames, fps: self.fps })
    }

    /// Seconds from the start of the source for each temporal patch of `temporal_patch_size` frames: the mean of the
    /// times of its first and its last frame. A last patch that is not full repeats the last frame.
    pub fn timestamps(&self, temporal_patch_size: u32) -> Vec<f64> {
        let indices: Vec<u64> = self.frames.iter().map(Frame::source_index).collect();
        timestamps(&indices, self.fps, temporal_patch_size)
    }
}

/// See [`Video::timestamps`].
pub(crate) fn timestamps(source_indices: &[u64], fps: f64, temporal_patch_size: u32) -> Vec<f64> {
    let time = |index: u64| index as f64 / fps;
    source_indices
        .chunks(temporal_patch_size.max(1) as usize)
        .map(|patch| (time(patch[0]) + time(patch[patch.len() - 1])) / 2.0)
        .collect()
}

impl VideoConfig {
    /// Which frames of `total` at `fps` frames per second the reference's video processor keeps, in ascending order.
    ///
    /// As many as last `total / fps` seconds at [`VideoConfig::fps`], at least [`VideoConfig::min_frames`], at most
    /// [`VideoConfig::max_frames`] and never more than there are, evenly spread from the first to the last.
    ///
    /// # Errors
    /// [`Error::FrameCount`] for no frames, [`Error::FrameRate`] unless both rates are positive and finite.
    pub fn sample_indices(&self, total: usize, fps: f64) -> Result<Vec<usize>> {
        check_fps(fps)?;
        check_fps(self.fps)?;
        if total == 0 {
            return Err(Error::FrameCount { got: 0, expected: 1 });
        }
        // A conversion from f64 truncates and saturates; the result is bounded by `total`.
        let wanted = (total as f64 / fps * self.fps) as usize;
        let count = wanted.max(self.min_frames as usize).min(self.max_frames as usize).min(total).max(1);
        let last = (total - 1) as f64;
        if count == 1 {
            return Ok(vec![0]);
        }
        // As numpy.linspace: a step, multiplied, with the last value exact.
        let step = last / (count - 1) as f64;
        let mut indices: Vec<usize> =
            (0..count).map(|i| (i as f64 * step).round_ties_even() as usize).collect();
        indices[count - 1] = total - 1;
        Ok(indices)
    }
}

pub(crate) fn check_fps(fps: f64) -> Result<()> {
    if fps.is_finite() && fps > 0.0 { Ok(()) } else { Err(Error::FrameRate { got: fps }) }
}

fn check_size(frames: &[(u64, Still)], position: usize, name: impl Fn(usize) -> String) -> Result<()> {
    let (first, this) = (&frames[0].1, &frames[position].1);
    if (this.width(), this.height()) == (first.width(), first.height()) {
        return Ok(());
    }
    Err(Error::FrameSize {
        name: name(position),
        width: this.width(),
        height: this.height(),
        expected_width: first.width(),
        expected_height: first.height(),
    })
}

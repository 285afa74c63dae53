//! Encoded files to patches in the caller's buffer, and the memory that a worker keeps from picture to picture.
//!
//! The first touch of fresh memory costs 0.25 to 3 ns a byte, which for a picture of 12 megapixels is as much as resizing
//! it. A [`Workspace`] that has seen a picture of some size needs no memory of that size for the next one. What it has
//! seen never shows: the same file gives the same bits, whatever came before.

use crate::vision::decode::job::{Buffers, Job, Opened};
use crate::vision::strips::Strips;
use crate::vision::{DecodeLimits, Format, Grid, JpegScale, PatchValue, ProcessorConfig, jpeg};
use crate::{Error, Result};

/// What one worker keeps from picture to picture: the decoded picture, rows on their way, weights and tables.
///
/// It grows to what the largest picture needed and stays there; [`Workspace::bytes`] says how much that is. Drop it to
/// give the memory back. One worker, one workspace: it is not shared.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) buffers: Buffers,
    pub(crate) strips: Strips,
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes it holds: about three for each pixel of the largest file seen, six if one had to be turned, four to eleven
    /// if one had other samples than RGB of 8 bits.
    pub fn bytes(&self) -> usize {
        self.buffers.bytes() + self.strips.bytes()
    }
}

/// What a picture file says about itself before its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format that the first bytes announce.
    pub format: Format,
    /// Width in pixels once the picture is upright.
    pub width: u32,
    /// Height in pixels once the picture is upright.
    pub height: u32,
    /// Bytes of the decoded picture: three for each pixel.
    pub decoded_bytes: u64,
}

impl Header {
    /// Reads it without decoding a pixel; `name` is for errors only. Takes microseconds, and for a PNG about 20 ns more
    /// for each of its chunks.
    ///
    /// # Errors
    /// Those that decoding the file would end with if they can be told from the header: [`Error::Empty`],
    /// [`Error::FileSize`], [`Error::Format`], [`Error::PictureSize`], [`Error::NoPixels`], and [`Error::Damaged`] or
    /// [`Error::Unsupported`] for a header that makes no sense.
    pub fn read(bytes: &[u8], name: &str, limits: &DecodeLimits) -> Result<Self> {
        let job = Job::new(bytes, name, limits)?;
        Ok(Self::of(&job, job.open()?))
    }

    fn of(job: &Job<'_>, opened: Opened) -> Self {
        let (width, height) = opened.size();
        let decoded_bytes = u64::from(width) * u64::from(height) * 3;
        Self { format: job.format(), width, height, decoded_bytes }
    }
}

impl ProcessorConfig {
    /// The grid of an encoded still, from its header alone; see [`Header::read`].
    ///
    /// # Errors
    /// As [`Header::read`] and [`ProcessorConfig::image_grid`].
    pub fn encoded_grid(&self, bytes: &[u8], name: &str, limits: &DecodeLimits) -> Result<Grid> {
        let header = Header::read(bytes, name, limits)?;
        self.image_grid(header.width, header.height)
    }

    /// An encoded still to its patches, with no memory of the size of a picture but what `workspace` holds already: bit
    /// for bit what [`Still::decode`](crate::vision::Still::decode) and [`ProcessorConfig::image_into`] make of it,
    /// unless [`ImageConfig::jpeg_scale`](crate::vision::ImageConfig::jpeg_scale) says otherwise.
    ///
    /// `out` is `[Grid::patches, ImageConfig::patch_values]`; [`ProcessorConfig::encoded_grid`] says how many. Its size
    /// is checked before anything is decoded.
    ///
    /// ```
    /// use qvl_dataload::vision::{DecodeLimits, ProcessorConfig, Workspace};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pixels");
    /// let bytes = std::fs::read(format!("{folder}/rgb_1280x720.png"))?;
    /// let (config, limits) = (ProcessorConfig::default(), DecodeLimits::default());
    /// let mut workspace = Workspace::new();
    ///
    /// let grid = config.encoded_grid(&bytes, "a.png", &limits)?;
    /// let mut pixel_values = vec![0.0f32; grid.patches() * config.image.patch_values()];
    /// config.encoded_into(&bytes, "a.png", &limits, &mut workspace, &mut pixel_values)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Still::decode`](crate::vision::Still::decode) and [`ProcessorConfig::image_into`]. After an error of the
    /// pixels `out` may have been written to in part; the workspace can be used again.
    pub fn encoded_into<V: PatchValue>(
        &self,
        bytes: &[u8],
        name: &str,
        limits: &DecodeLimits,
        workspace: &mut Workspace,
        out: &mut [V],
    ) -> Result<Grid> {
        let job = Job::new(bytes, name, limits)?;
        let header = Header::of(&job, job.open()?);
        let grid = self.image_grid(header.width, header.height)?;
        self.check_image_output(grid, out)?;
        let size = self.decode(&job, header, grid, &mut workspace.buffers)?;
        workspace.strips.image(self, &workspace.buffers.rgb, size, grid, out)?;
        Ok(grid)
    }

    /// The grid of a video of encoded frames, each with its name for errors, from the header of the first.
    ///
    /// # Errors
    /// As [`Header::read`] and [`ProcessorConfig::video_grid`].
    pub fn encoded_frames_grid(&self, frames: &[(&str, &[u8])], limits: &DecodeLimits) -> Result<Grid> {
        let expected = self.video.temporal_patch_size as usize;
        let (name, bytes) = frames.first().ok_or(Error::FrameCount { got: 0, expected })?;
        let header = Header::read(bytes, name, limits)?;
        self.video_grid(frames.len(), header.width, header.height)
    }

    /// The encoded frames of a video, in order, to its patches: bit for bit what [`ProcessorConfig::video_into`] makes of
    /// them, with one decoded frame at a time in memory.
    ///
    /// # Errors
    /// As [`ProcessorConfig::encoded_frames_grid`], [`Still::decode`](crate::vision::Still::decode) and
    /// [`ProcessorConfig::video_into`]; [`Error::FrameSize`] for a frame that differs in size from the first. After an
    /// error of the pixels `out` may have been written to in part.
    pub fn encoded_frames_into<V: PatchValue>(
        &self,
        frames: &[(&str, &[u8])],
        limits: &DecodeLimits,
        workspace: &mut Workspace,
        out: &mut [V],
    ) -> Result<Grid> {
        let expected = self.video.temporal_patch_size as usize;
        let (name, bytes) = frames.first().ok_or(Error::FrameCount { got: 0, expected })?;
        let first = Header::read(bytes, name, limits)?;
        let from = (first.width, first.height);
        let grid = self.video_grid(frames.len(), from.0, from.1)?;
        let Workspace { buffers, strips } = workspace;
        self.frames_into(frames.len(), from, grid, out, |place, task, places, stream, out| {
            let (name, bytes) = frames[place];
            let job = Job::new(bytes, name, limits)?;
            let (width, height) = job.decode(1, buffers)?;
            if (width, height) != from {
                let (name, (expected_width, expected_height)) = (name.to_owned(), from);
                return Err(Error::FrameSize { name, width, height, expected_width, expected_height });
            }
            strips.cut(task, &buffers.rgb, places, stream, out)
        })?;
        Ok(grid)
    }

    /// Decodes at the size that the settings ask for, and returns that.
    pub(crate) fn decode(
        &self,
        job: &Job<'_>,
        header: Header,
        grid: Grid,
        buffers: &mut Buffers,
    ) -> Result<(u32, u32)> {
        let target = self.image_size(grid);
        let divisor = match self.image.jpeg_scale {
            JpegScale::Inexact if header.format == Format::Jpeg => {
                let large = |side: u32, target: u32, divisor: u32| side.div_ceil(divisor) >= target;
                let fits = |divisor: &u32| {
                    large(header.width, target.0, *divisor) && large(header.height, target.1, *divisor)
                };
                jpeg::DIVISORS.into_iter().find(fits).unwrap_or(1)
            }
            _ => 1,
        };
        let size = job.decode(divisor, buffers)?;
        if size != (header.width.div_ceil(divisor), header.height.div_ceil(divisor)) {
            return Err(job.damaged("the picture does not have the size that its header announces"));
        }
        Ok(size)
    }

    /// Reads the header and decodes; for what wants to look at the decoded picture.
    pub(crate) fn decode_encoded(
        &self,
        bytes: &[u8],
        name: &str,
        limits: &DecodeLimits,
        buffers: &mut Buffers,
    ) -> Result<((u32, u32), Grid)> {
        let job = Job::new(bytes, name, limits)?;
        let header = Header::of(&job, job.open()?);
        let grid = self.image_grid(header.width, header.height)?;
        Ok((self.decode(&job, header, grid, buffers)?, grid))
    }
}

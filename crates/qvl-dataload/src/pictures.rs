//! From picture files and frames to patches, as steps for the loader: decode, resize, normalise and cut, into buffers
//! that are used again.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::buffer::{Buffer, Buffers};
use crate::source::frames::FrameFolder;
use crate::source::{Encoded, Footprint};
use crate::transform::Transform;
use crate::vision::video::{check_fps, timestamps};
use crate::vision::{ContentHash, DecodeLimits, Grid, PatchValue, ProcessorConfig, Workspace};
use crate::{Error, Result};

/// The step from [`Encoded`] pictures to [`Prepared`] ones, in `f32` or `half::bf16`.
///
/// It says how large its output will be from the header of the picture, so the loader's bound of bytes holds at every
/// moment. A worker keeps a [`Workspace`] as large as the largest picture it decoded (3 bytes a pixel).
///
/// ```
/// use qvl_dataload::vision::ProcessorConfig;
/// use qvl_dataload::{DataLoader, Files, Patchify};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pixels");
/// let loader = DataLoader::builder(Files::folder(folder)?)
///     .transform(Patchify::<half::bf16>::new(ProcessorConfig::default()))
///     .build()?;
/// for batch in loader.take(3) {
///     let picture = &batch?[0];
///     assert_eq!(picture.values().len(), picture.grid.patches() * 1536);
/// }
/// # Ok::<(), qvl_dataload::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Patchify<V = f32> {
    config: ProcessorConfig,
    limits: DecodeLimits,
    with_content_hash: bool,
    values: PhantomData<fn() -> V>,
}

impl<V: PatchValue> Patchify<V> {
    /// With the settings of a model, and the default [`DecodeLimits`].
    pub fn new(config: ProcessorConfig) -> Self {
        Self { config, limits: DecodeLimits::default(), with_content_hash: false, values: PhantomData }
    }

    /// What a picture file may ask for.
    pub fn limits(mut self, limits: DecodeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Also computes the [`ContentHash`] of each file, by which a cache knows a picture again: some 0.3 ms for a
    /// megabyte.
    pub fn content_hash(mut self, with: bool) -> Self {
        self.with_content_hash = with;
        self
    }
}

impl<V: PatchValue> Transform<Encoded> for Patchify<V> {
    type Output = Prepared<V>;
    type Scratch = Workspace;

    fn scratch(&self) -> Workspace {
        Workspace::new()
    }

    fn output_bytes(&self, sample: &Encoded, name: &str, buffers: &dyn Buffers) -> Result<Option<usize>> {
        let grid = self.config.encoded_grid(&sample.bytes, name, &self.limits)?;
        let bytes = buffers.footprint(self.bytes(grid));
        Ok(Some(bytes.saturating_add(size_of::<Prepared<V>>() + sample.name.len())))
    }

    fn takes_buffers(&self) -> bool {
        true
    }

    fn apply(
        &self,
        sample: Encoded,
        name: &str,
        workspace: &mut Workspace,
        buffers: &dyn Buffers,
    ) -> Result<Prepared<V>> {
        let Self { config, limits, .. } = self;
        let grid = config.encoded_grid(&sample.bytes, name, limits)?;
        let mut buffer = Buffer::take(buffers, self.bytes(grid))?;
        config.encoded_into::<V>(&sample.bytes, name, limits, workspace, values_of(&mut buffer)?)?;
        let content_hash = self.with_content_hash.then(|| config.content_hash(&sample.bytes));
        Ok(Prepared { name: sample.name, grid, content_hash, buffer, values: PhantomData })
    }

    fn footprint(&self, output: &Prepared<V>) -> usize {
        output.footprint()
    }
}

impl<V: PatchValue> Patchify<V> {
    fn bytes(&self, grid: Grid) -> usize {
        grid.patches() * self.config.image.patch_values() * size_of::<V>()
    }
}

/// A buffer as values.
fn values_of<V: PatchValue>(buffer: &mut Buffer) -> Result<&mut [V]> {
    bytemuck::try_cast_slice_mut(buffer).map_err(|_| Error::Storage {
        what: "the caller's buffer",
        why: format!("it begins at an address that is no multiple of {}", align_of::<V>()),
    })
}

/// A picture cut into patches, in a buffer that goes back where it came from.
pub struct Prepared<V = f32> {
    /// The file, or the shard and the name inside it.
    pub name: Arc<str>,
    /// How many patches in each direction.
    pub grid: Grid,
    /// What the file holds and the settings make of it, if [`Patchify::content_hash`] asked for it. Equal hashes are
    /// equal patches of one type of values.
    pub content_hash: Option<ContentHash>,
    buffer: Buffer,
    values: PhantomData<fn() -> V>,
}

impl<V: PatchValue> Prepared<V> {
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub fn values(&self) -> &[V] {
        // It was cast when it was written, and has not moved since.
        bytemuck::try_cast_slice(&self.buffer).unwrap_or_default()
    }

    /// The same as bytes, in the order of this machine.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }
}

impl<V> Footprint for Prepared<V> {
    fn footprint(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.buffer.footprint()
    }
}

impl<V> fmt::Debug for Prepared<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("name", &self.name)
            .field("grid", &self.grid)
            .field("content_hash", &self.content_hash)
            .finish_non_exhaustive()
    }
}

/// The step from videos in frames, as [`FrameFolders`](crate::FrameFolders) reads them, to [`PreparedVideo`]s. One
/// decoded frame at a time is in memory, so a long video takes no more than its encoded frames and its patches.
///
/// Frames are left out before they are read, with [`FrameOptions::sample`](crate::FrameOptions::sample).
#[derive(Clone, Debug)]
pub struct PatchifyVideo<V = f32> {
    config: ProcessorConfig,
    limits: DecodeLimits,
    values: PhantomData<fn() -> V>,
}

impl<V: PatchValue> PatchifyVideo<V> {
    /// With the settings of a model, and the default [`DecodeLimits`].
    pub fn new(config: ProcessorConfig) -> Self {
        Self { config, limits: DecodeLimits::default(), values: PhantomData }
    }

    /// What a frame may ask for.
    pub fn limits(mut self, limits: DecodeLimits) -> Self {
        self.limits = limits;
        self
    }

    fn grid(&self, sample: &FrameFolder) -> Result<(Grid, usize)> {
        let grid = self.config.encoded_frames_grid(&named(sample), &self.limits)?;
        Ok((grid, grid.patches() * self.config.video.patch_values() * size_of::<V>()))
    }
}

impl<V: PatchValue> Transform<FrameFolder> for PatchifyVideo<V> {
    type Output = PreparedVideo<V>;
    type Scratch = Workspace;

    fn scratch(&self) -> Workspace {
        Workspace::new()
    }

    fn output_bytes(&self, sample: &FrameFolder, _: &str, buffers: &dyn Buffers) -> Result<Option<usize>> {
        let (grid, bytes) = self.grid(sample)?;
        let places = grid.t as usize * size_of::<f64>() + size_of_val(&sample.frames[..]);
        let beside = size_of::<PreparedVideo<V>>() + sample.name.len() + places;
        Ok(Some(buffers.footprint(bytes).saturating_add(beside)))
    }

    fn takes_buffers(&self) -> bool {
        true
    }

    fn apply(
        &self,
        sample: FrameFolder,
        _: &str,
        workspace: &mut Workspace,
        buffers: &dyn Buffers,
    ) -> Result<PreparedVideo<V>> {
        check_fps(sample.fps)?;
        let (grid, bytes) = self.grid(&sample)?;
        let mut buffer = Buffer::take(buffers, bytes)?;
        let out = values_of::<V>(&mut buffer)?;
        self.config.encoded_frames_into(&named(&sample), &self.limits, workspace, out)?;
        let source_indices: Vec<u64> = sample.frames.iter().map(|(index, _)| *index).collect();
        let timestamps = timestamps(&source_indices, sample.fps, self.config.video.temporal_patch_size);
        let FrameFolder { name, fps, .. } = sample;
        Ok(PreparedVideo { name, fps, source_indices, timestamps, grid, buffer, values: PhantomData })
    }

    fn footprint(&self, output: &PreparedVideo<V>) -> usize {
        output.footprint()
    }
}

/// Frames as the image functions take them.
fn named(sample: &FrameFolder) -> Vec<(&str, &[u8])> {
    sample.frames.iter().map(|(_, frame)| (&*frame.name, &frame.bytes[..])).collect()
}

/// A video cut into patches, in a buffer that goes back where it came from, with where its frames come from.
pub struct PreparedVideo<V = f32> {
    /// The folder, or the manifest and the line that name the video.
    pub name: Arc<str>,
    /// Frames per second of the source.
    pub fps: f64,
    /// Index of each frame in the source.
    pub source_indices: Vec<u64>,
    /// Seconds from the start of the source, one for each of the `grid.t` temporal patches.
    pub timestamps: Vec<f64>,
    /// How many patches in each direction.
    pub grid: Grid,
    buffer: Buffer,
    values: PhantomData<fn() -> V>,
}

impl<V: PatchValue> PreparedVideo<V> {
    /// `[grid.patches(), 3 * temporal_patch_size * patch_size * patch_size]`, row by row.
    pub fn values(&self) -> &[V] {
        // It was cast when it was written, and has not moved since.
        bytemuck::try_cast_slice(&self.buffer).unwrap_or_default()
    }
}

impl<V> Footprint for PreparedVideo<V> {
    fn footprint(&self) -> usize {
        let places = size_of_val(&self.source_indices[..]) + size_of_val(&self.timestamps[..]);
        size_of::<Self>() + self.name.len() + places + self.buffer.footprint()
    }
}

impl<V> fmt::Debug for PreparedVideo<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedVideo")
            .field("name", &self.name)
            .field("grid", &self.grid)
            .field("fps", &self.fps)
            .field("source_indices", &self.source_indices)
            .finish_non_exhaustive()
    }
}

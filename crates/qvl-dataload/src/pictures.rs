//! From picture files to patches, as a step for the loader: decode, resize, normalise and cut, into buffers that are
//! used again.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::buffer::{Buffer, Buffers};
use crate::source::{Encoded, Footprint};
use crate::transform::Transform;
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
        let out = bytemuck::try_cast_slice_mut(&mut buffer).map_err(|_| Error::Storage {
            what: "the caller's buffer",
            why: format!("it begins at an address that is no multiple of {}", align_of::<V>()),
        })?;
        config.encoded_into::<V>(&sample.bytes, name, limits, workspace, out)?;
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

/// A picture cut into patches, in a buffer that goes back where it came from.
pub struct Prepared<V = f32> {
    /// The file, or the shard and the name inside it.
    pub name: Arc<str>,
    /// How many patches in each direction.
    pub grid: Grid,
    /// What the file holds and the settings make of it, if [`Patchify::content_hash`] asked for it. Equal hashes are
    /// equal patches.
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

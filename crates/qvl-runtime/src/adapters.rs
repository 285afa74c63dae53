//! The only place where types of two crates meet.

use std::path::Path;

use qvl_dataload::vision::{Grid, ImageConfig, Patches, ProcessorConfig, VideoConfig, VideoPatches};
use qvl_model::checkpoint::{Checkpoint, ImageSettings};
use qvl_model::config::Config;
use qvl_model::{VisualInput, VisualKind};

use crate::error::{Error, Result};

/// A grid of the image processor as the network's.
pub(crate) fn grid(grid: Grid) -> qvl_model::Grid {
    qvl_model::Grid { t: grid.t, h: grid.h, w: grid.w }
}

/// A still's patches as the network takes them.
pub(crate) fn still(patches: Patches) -> VisualInput {
    VisualInput { kind: VisualKind::Image, grid: grid(patches.grid), pixel_values: patches.pixel_values }
}

/// A video's patches as the network takes them.
pub(crate) fn video(patches: VideoPatches) -> VisualInput {
    VisualInput {
        kind: VisualKind::Video { timestamps: patches.timestamps },
        grid: grid(patches.grid),
        pixel_values: patches.pixel_values,
    }
}

/// A checkpoint and its image processor: a folder, or a language model in GGUF with its mmproj.
pub(crate) fn open(path: &Path, mmproj: Option<&Path>) -> Result<(Checkpoint, ProcessorConfig)> {
    let checkpoint = match mmproj {
        Some(mmproj) => Checkpoint::open_gguf(path, Some(mmproj))?,
        None => Checkpoint::open(path)?,
    };
    let processor = match checkpoint.image_settings() {
        Some(settings) => processor(settings, &checkpoint.config()?)?,
        None => ProcessorConfig::from_dir(path)?,
    };
    Ok((checkpoint, processor))
}

/// The processor of a GGUF pair: what the mmproj says, and for the rest the settings of the published
/// checkpoints.
fn processor(settings: &ImageSettings, config: &Config) -> Result<ProcessorConfig> {
    let vision = &config.vision;
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let (patch_size, temporal_patch_size, merge_size) =
        (side(vision.patch_size), side(vision.temporal_patch_size), side(vision.spatial_merge_size));
    let default = ImageConfig::default();
    let image = ImageConfig {
        patch_size,
        temporal_patch_size,
        merge_size,
        min_pixels: settings.min_pixels.unwrap_or(default.min_pixels),
        max_pixels: settings.max_pixels.unwrap_or(default.max_pixels),
        image_mean: settings.mean,
        image_std: settings.std,
        ..default
    };
    let video = VideoConfig {
        patch_size,
        temporal_patch_size,
        merge_size,
        image_mean: settings.mean,
        image_std: settings.std,
        ..VideoConfig::default()
    };
    image.validate().and_then(|()| video.validate()).map_err(|error| {
        Error::form(&settings.file, format!("what it says about pictures cannot be used: {error}"))
    })?;
    Ok(ProcessorConfig { image, video })
}

/// The processor must cut the patches that the network was trained on.
pub(crate) fn check_fit(processor: &ProcessorConfig, config: &Config) -> Result<()> {
    let vision = &config.vision;
    for (field, processor, network) in [
        ("patch_size", processor.image.patch_size, vision.patch_size),
        ("temporal_patch_size", processor.image.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", processor.image.merge_size, vision.spatial_merge_size),
        ("video patch_size", processor.video.patch_size, vision.patch_size),
        ("video temporal_patch_size", processor.video.temporal_patch_size, vision.temporal_patch_size),
        ("video merge_size", processor.video.merge_size, vision.spatial_merge_size),
    ] {
        if processor as usize != network {
            return Err(Error::Mismatch { field, processor: processor as usize, network });
        }
    }
    Ok(())
}

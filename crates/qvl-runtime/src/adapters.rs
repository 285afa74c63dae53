//! The only place where types of two crates meet.

use qvl_dataload::vision::{Grid, Patches, ProcessorConfig, VideoPatches};
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

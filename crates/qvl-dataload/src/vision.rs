//! From a picture or the frames of a video to the patches that Qwen3-VL's vision tower reads.
//!
//! | step | file | equal to |
//! |---|---|---|
//! | bytes to RGB | [`decode`] | `PIL.Image.open`, `exif_transpose`, `convert("RGB")` |
//! | target size | [`size`] | `smart_resize` of transformers' image and video processors |
//! | resize | [`resize`] | Pillow 12's bicubic for stills, torchvision's for video frames |
//! | rescale, normalise, patchify in one pass | [`patchify`] | `pixel_values`, `pixel_values_videos` |
//! | all of it, from encoded bytes | [`ProcessorConfig::encoded_into`] | the above |
//! | a hash after each step | [`certificate`](mod@certificate) | SHA-256 of the same bytes in Python |
//! | settings | [`config`] | `preprocessor_config.json` and its relatives |
//!
//! Stills and video frames are different types: two stills are never merged into one temporal patch.

pub mod certificate;
pub mod config;
mod content_hash;
pub mod decode;
mod jpeg;
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions, in files of their own")
)]
mod kernels;
mod orientation;
pub mod patchify;
mod png;
mod preprocess;
pub mod resize;
pub mod size;
mod strips;
mod values;
pub mod video;
mod workspace;

pub use certificate::{Certificate, Stage, certificate};
pub use config::{ImageConfig, JpegScale, ProcessorConfig, VideoConfig};
pub use content_hash::ContentHash;
pub use decode::{DecodeLimits, Format, Still};
pub use patchify::{Grid, Patches, VideoPatches};
pub use resize::resize_bicubic;
pub use size::{MAX_ASPECT_RATIO, smart_resize, smart_resize_video};
pub use values::PatchValue;
pub use video::{Frame, Video};
pub use workspace::{Header, Workspace};

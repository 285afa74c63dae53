#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod buffer;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod loader;
mod pictures;
mod sampler;
pub mod source;
pub mod storage;
mod transform;
pub mod vision;

pub use buffer::{Buffer, Buffers, Recycled};
pub use error::{Cause, Error, Result};
pub use loader::{Batch, Builder, DataLoader, Decision, OnError, Receiver, Skip, State, Stats};
pub use pictures::{Patchify, PatchifyVideo, Prepared, PreparedVideo};
pub use sampler::Shuffle;
pub use source::files::{Files, FolderOptions};
pub use source::frames::{FrameFolder, FrameFolders, FrameOptions};
pub use source::manifest::{Manifest, ManifestLimits, Record};
#[cfg(feature = "parquet")]
pub use source::parquet::ParquetImages;
pub use source::tar::{ShardDamage, TarField, TarOptions, TarSample, TarShards};
pub use source::{Encoded, Footprint, Memory, Source};
pub use transform::{Bounded, Identity, Map, Transform};

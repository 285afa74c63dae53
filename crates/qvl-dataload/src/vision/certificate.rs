//! What a picture went through, as hashes of the bits after each stage.
//!
//! Two programs that should see the same picture compare certificates: the first hash that differs names the stage, and
//! all others follow from it. SHA-256, so that a line of Python makes the same ones.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::Result;
use crate::vision::resize::rows::Key;
use crate::vision::resize::{Weights, resize};
use crate::vision::workspace::Workspace;
use crate::vision::{DecodeLimits, Grid, ProcessorConfig};

/// SHA-256 of a picture after each stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Width and height of the decoded picture, upright.
    pub decoded_size: (u32, u32),
    /// Of the decoded RGB, row by row: `hashlib.sha256(numpy.asarray(picture).tobytes())`.
    pub decoded: [u8; 32],
    /// Width and height of the resized picture.
    pub resized_size: (u32, u32),
    /// Of the resized RGB, row by row.
    pub resized: [u8; 32],
    /// Patches in time, height and width.
    pub grid: Grid,
    /// Of `pixel_values` as little-endian f32, row by row: `hashlib.sha256(pixel_values.numpy().tobytes())`.
    pub pixel_values: [u8; 32],
}

/// A stage between a file and its patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// From the file to upright RGB.
    Decode,
    /// From RGB to RGB of the target size.
    Resize,
    /// From there to `pixel_values`.
    Patchify,
}

/// Takes an encoded still through every stage and hashes what comes out of each; `name` is for errors only. Costs the
/// hashing, a few ns a byte on a CPU without instructions for it, on top of what the stages cost.
///
/// # Errors
/// As [`ProcessorConfig::encoded_into`].
pub fn certificate(
    config: &ProcessorConfig,
    bytes: &[u8],
    name: &str,
    limits: &DecodeLimits,
) -> Result<Certificate> {
    let mut workspace = Workspace::new();
    let (from, grid) = config.decode_encoded(bytes, name, limits, &mut workspace.buffers)?;
    let to = config.image_size(grid);
    let rgb = &workspace.buffers.rgb;
    let resized = resize(Key { weights: Weights::Pillow, from, to }, rgb)?;
    let mut values = vec![0.0f32; grid.patches() * config.image.patch_values()];
    workspace.strips.image(config, rgb, from, grid, &mut values)?;
    let mut hasher = Sha256::new();
    for values in values.chunks(1024) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    Ok(Certificate {
        decoded_size: from,
        decoded: Sha256::digest(rgb).into(),
        resized_size: to,
        resized: Sha256::digest(&resized).into(),
        grid,
        pixel_values: hasher.finalize().into(),
    })
}

impl Certificate {
    /// The first stage after which the two differ, or `None` if they are the same.
    pub fn first_difference(&self, other: &Self) -> Option<Stage> {
        if (self.decoded_size, self.decoded) != (other.decoded_size, other.decoded) {
            Some(Stage::Decode)
        } else if (self.resized_size, self.resized) != (other.resized_size, other.resized) {
            Some(Stage::Resize)
        } else if (self.grid, self.pixel_values) != (other.grid, other.pixel_values) {
            Some(Stage::Patchify)
        } else {
            None
        }
    }
}

/// Three lines: the stage, the size or grid, and the hash.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Grid { t, h, w }, size) = (self.grid, |(width, height): (u32, u32)| format!("{width}x{height}"));
        writeln!(f, "decoded      {:>12} {}", size(self.decoded_size), Hex(&self.decoded))?;
        writeln!(f, "resized      {:>12} {}", size(self.resized_size), Hex(&self.resized))?;
        write!(f, "pixel_values {:>12} {}", format!("{t}x{h}x{w}"), Hex(&self.pixel_values))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Resize => "resize",
            Self::Patchify => "patchify",
        })
    }
}

/// Bytes as hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

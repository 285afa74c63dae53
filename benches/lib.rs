//! Criterion benches of the qvl crates and programs that measure them; see the files beside this one. Here is
//! what several of them compute with.

use anyhow::{Context, Result};
use qvl_model::backend::HeadShape;
use qvl_model::checkpoint::{SafetensorsFile, TensorView};

/// Heads of the decoder of the 2B shape.
pub const DECODER_HEADS: HeadShape = HeadShape { heads: 16, kv_heads: 8, head_dim: 128 };

/// Values between -1 and 1, the same in every run.
pub fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A bf16 matrix as a checkpoint stores it. Its memory is never given back: a program makes a few of them.
///
/// # Errors
/// If the checkpoint's reader does not take it.
pub fn tensor(rows: usize, cols: usize) -> Result<TensorView> {
    let header = format!(
        r#"{{"w":{{"dtype":"BF16","shape":[{rows},{cols}],"data_offsets":[0,{}]}}}}"#,
        2 * rows * cols
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(noise(rows * cols).iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()));
    let file = SafetensorsFile::from_static("bench", bytes.leak())?;
    file.get("w").context("the tensor is there")
}

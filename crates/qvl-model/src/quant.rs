//! Block formats: 32 or 256 values that share a scale, as GGUF files store weights.
//!
//! The layouts are those of ggml's types `Q8_0`, `Q4_0`, `Q4_K`, `Q5_K` and `Q6_K`. A row of a matrix is a
//! whole number of blocks, one after the other. Decoding has the same bits as `gguf.quants.dequantize` of the
//! Python package `gguf`; so has encoding to `Q8_0` and `Q4_0`. The other three leave the choice of scales to
//! the encoder; what this one does is said in `fit.rs`.
//!
//! Each layout has a type that holds one block unpacked, integer codes and integer scales as they are, for
//! whoever lays them out anew: [`Q8Block`], [`Q4Block`], [`KBlock`], [`Q6Block`].
//!
//! # Encoding
//!
//! Values must be finite, and their scale must fit into an IEEE half: [`Unquantizable`] names the first that
//! does not. Nothing else fails. Tiny values may become zero. A block of zeros decodes to zeros.
//!
//! The result depends on the values only: no fused operations, sums in a fixed order, on every machine.

mod block32;
mod fit;
mod k_block;
mod q6_block;

use std::fmt;

pub use block32::{Q4Block, Q8Block};
pub use k_block::KBlock;
pub use q6_block::Q6Block;

/// How a block of weights is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 values: a scale and signed 8-bit codes. 8.5 bits a value.
    Q8_0,
    /// 32 values: a scale and 4-bit codes around 8. 4.5 bits a value.
    Q4_0,
    /// 256 values: 4-bit codes, eight 6-bit scales and minima. 4.5 bits a value.
    Q4K,
    /// 256 values: 5-bit codes, eight 6-bit scales and minima. 5.5 bits a value.
    Q5K,
    /// 256 values: 6-bit codes around 32, sixteen 8-bit scales. 6.5625 bits a value.
    Q6K,
}

/// A value that a block format cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("value {index} is {value}, which {format} cannot hold")]
pub struct Unquantizable {
    /// Where it is among the values given.
    pub index: usize,
    /// The value: not finite, or so large that the scale of its block is beyond an IEEE half.
    pub value: f32,
    /// The format asked for.
    pub format: BlockFormat,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Values of one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => Q8Block::BYTES,
            Self::Q4_0 => Q4Block::BYTES,
            Self::Q4K => KBlock::Q4_BYTES,
            Self::Q5K => KBlock::Q5_BYTES,
            Self::Q6K => Q6Block::BYTES,
        }
    }

    /// Bits that a value takes, scales included.
    pub fn bits(self) -> f32 {
        8.0 * self.block_bytes() as f32 / self.block_len() as f32
    }

    /// The format's name, as ggml writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Bytes that hold `values` values; `None` if they are not whole blocks or too many to count.
    pub const fn bytes_of(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.block_len()) {
            (values / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Decodes whole blocks.
    ///
    /// - `bytes`: `n * block_bytes`
    /// - `out`: `n * block_len`
    ///
    /// # Panics
    /// If the lengths are not those.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        self.assert_lengths(out.len(), bytes.len());
        match self {
            Self::Q8_0 => each_block(bytes, out, |block, values| *values = Q8Block::unpack(block).values()),
            Self::Q4_0 => each_block(bytes, out, |block, values| *values = Q4Block::unpack(block).values()),
            Self::Q4K => each_block(bytes, out, |block, values| {
                KBlock::unpack_q4(block).write_values(values);
            }),
            Self::Q5K => each_block(bytes, out, |block, values| {
                KBlock::unpack_q5(block).write_values(values);
            }),
            Self::Q6K => each_block(bytes, out, |block, values| {
                Q6Block::unpack(block).write_values(values);
            }),
        }
    }

    /// Encodes whole blocks.
    ///
    /// - `values`: `n * block_len`
    /// - `out`: `n * block_bytes`
    ///
    /// # Errors
    /// [`Unquantizable`] names the first value that cannot be held; `out` is then written in part.
    ///
    /// # Panics
    /// If the lengths are not those.
    pub fn quantize(self, values: &[f32], out: &mut [u8]) -> Result<(), Unquantizable> {
        self.assert_lengths(values.len(), out.len());
        match self {
            Self::Q8_0 => {
                encode_each(values, out, |block, out| Q8Block::quantize(block).map(|b| b.pack(out)))
            }
            Self::Q4_0 => {
                encode_each(values, out, |block, out| Q4Block::quantize(block).map(|b| b.pack(out)))
            }
            Self::Q4K => {
                encode_each(values, out, |block, out| KBlock::quantize_q4(block).map(|b| b.pack_q4(out)))
            }
            Self::Q5K => {
                encode_each(values, out, |block, out| KBlock::quantize_q5(block).map(|b| b.pack_q5(out)))
            }
            Self::Q6K => encode_each(values, out, |block, out| Q6Block::quantize(block).map(|b| b.pack(out))),
        }
    }

    fn assert_lengths(self, values: usize, bytes: usize) {
        assert_eq!(
            self.bytes_of(values),
            Some(bytes),
            "{values} values in whole blocks of {self}, as many as the bytes hold"
        );
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first value that is infinite or not a number.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Whole chunks first: without the early exit in each value the scan is as fast as memory.
    const CHUNK: usize = 256;
    let broken = |chunk: &[f32]| chunk.iter().fold(false, |any, value| any | !value.is_finite());
    let chunk = values.chunks(CHUNK).position(broken)?;
    values[chunk * CHUNK..].iter().position(|value| !value.is_finite()).map(|index| chunk * CHUNK + index)
}

/// The error for a block: its first value that is not finite, or else its largest.
fn unquantizable(format: BlockFormat, values: &[f32]) -> Unquantizable {
    let index = first_non_finite(values).unwrap_or_else(|| fit::largest(values));
    Unquantizable { index, value: values[index], format }
}

fn each_block<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, values) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, values);
    }
}

fn encode_each<const B: usize, const N: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &mut [u8; B]) -> Result<(), Unquantizable>,
) -> Result<(), Unquantizable> {
    for (index, (block, bytes)) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
        encode(block, bytes).map_err(|error| Unquantizable { index: index * N + error.index, ..error })?;
    }
    Ok(())
}

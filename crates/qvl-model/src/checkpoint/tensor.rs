//! A tensor inside a file, whatever the file's format.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::storage::Storage;
use crate::error::{Error, Result};
use crate::quant::BlockFormat;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
    /// Blocks of values that share a scale. Each row, the values of the last dimension, is whole blocks.
    Block(BlockFormat),
}

impl Dtype {
    /// Values that are stored together and cannot be had alone: 1, or those of a block.
    pub fn unit_values(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 | Self::F32 => 1,
            Self::Block(format) => format.block_len(),
        }
    }

    /// Bytes of one value, or of one block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::Block(format) => format.block_bytes(),
        }
    }

    /// Bytes of a tensor; `None` if they are too many to count, or its rows are not whole blocks.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.unit_values()) {
            return None;
        }
        let values = shape.iter().try_fold(1usize, |values, &dim| values.checked_mul(dim))?;
        (values / self.unit_values()).checked_mul(self.bytes())
    }

    /// Decodes stored little-endian bytes: whole values or blocks, as many as `out` holds.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16::from_le_bytes(*b).to_f32();
                }
            }
            Self::F16 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::F32 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*b);
                }
            }
            Self::Block(format) => format.dequantize(bytes, out),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::Block(format) => format.name(),
        })
    }
}

/// A tensor inside a file: keeps the file mapped as long as it lives.
#[derive(Clone, Debug)]
pub struct TensorView {
    file: Arc<str>,
    tensor: String,
    dtype: Dtype,
    shape: Vec<usize>,
    storage: Storage,
    /// As many bytes as type and shape need.
    range: Range<usize>,
}

impl TensorView {
    /// The tensor in `range` of `storage`, which was checked to hold it.
    pub(super) fn new(
        file: &Arc<str>,
        tensor: &str,
        dtype: Dtype,
        shape: &[usize],
        storage: &Storage,
        range: Range<usize>,
    ) -> Self {
        debug_assert_eq!(dtype.bytes_of(shape), Some(range.len()), "{tensor}");
        Self {
            file: Arc::clone(file),
            tensor: tensor.to_owned(),
            dtype,
            shape: shape.to_vec(),
            storage: storage.clone(),
            range,
        }
    }

    /// The file it is in.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Its name in that file.
    pub fn name(&self) -> &str {
        &self.tensor
    }

    /// Stored type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions, slowest first, in values.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored little-endian bytes, of no guaranteed alignment. Blocks of block formats as they are.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    /// Gives its memory back to the system, if it is mapped: for whoever has copied it. Reading it again is only
    /// slower.
    pub fn release(&self) {
        self.storage.release(self.range.clone());
    }

    /// All values as f32; exact for every stored type, block formats decoded. Costs a copy.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.dtype.decode(self.bytes(), &mut values);
        values
    }

    /// The same values seen with another shape. Rows of block formats stay whole blocks.
    ///
    /// # Errors
    /// [`Error::TensorShape`] if the numbers of values differ or rows would end within a block.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self> {
        if self.dtype.bytes_of(shape) != Some(self.range.len()) {
            return Err(Error::TensorShape {
                file: self.file.to_string(),
                tensor: self.tensor,
                got: self.shape,
                expected: shape.to_vec(),
            });
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// Entry `index` of the slowest dimension, for instance one expert of a stack. `None` if there are not
    /// that many, or if it would be a part of a block.
    pub fn entry(&self, index: usize) -> Option<Self> {
        let mut entry = self.entries(index, 1)?;
        entry.shape.remove(0);
        (!entry.shape.is_empty() || self.dtype.unit_values() == 1).then_some(entry)
    }

    /// `count` entries of the slowest dimension from `first` on, for instance some rows of a matrix. `None` if
    /// there are not that many, or if the last would end within a block.
    pub fn entries(&self, first: usize, count: usize) -> Option<Self> {
        let (&have, rest) = self.shape.split_first()?;
        let end = first.checked_add(count).filter(|&end| end <= have)?;
        if end == 0 {
            return None;
        }
        let mut shape = vec![count];
        shape.extend_from_slice(rest);
        let bytes = self.dtype.bytes_of(&shape)?;
        let start =
            if rest.is_empty() { self.dtype.bytes_of(&[first])? } else { bytes / count.max(1) * first };
        let range = self.range.start + start..self.range.start + start + bytes;
        let tensor = if count == 1 {
            format!("{}[{first}]", self.tensor)
        } else {
            format!("{}[{first}..{end}]", self.tensor)
        };
        Some(Self {
            file: Arc::clone(&self.file),
            tensor,
            dtype: self.dtype,
            shape,
            storage: self.storage.clone(),
            range,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, shape: &[usize]) -> TensorView {
        let bytes: Arc<[u8]> = (0..dtype.bytes_of(shape).unwrap()).map(|i| (i * 7 % 251) as u8).collect();
        let range = 0..bytes.len();
        TensorView::new(&"f".into(), "t", dtype, shape, &Storage::Owned(bytes), range)
    }

    #[test]
    fn entries_are_pieces_of_the_whole_in_every_type() {
        let formats = BlockFormat::ALL.map(Dtype::Block);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().chain(formats) {
            let stack = view(dtype, &[3, 2, 256]);
            let all: Vec<u32> = stack.to_f32().iter().map(|v| v.to_bits()).collect();
            let bits = |view: TensorView| view.to_f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(stack.entry(2).unwrap()), all[1024..]);
            assert_eq!(stack.entry(2).unwrap().shape(), [2, 256]);
            assert_eq!(stack.entry(2).unwrap().name(), "t[2]");
            assert_eq!(bits(stack.entry(1).unwrap().entry(1).unwrap()), all[768..1024]);
            assert_eq!(bits(stack.entries(1, 2).unwrap()), all[512..]);
            assert_eq!(stack.entries(1, 2).unwrap().name(), "t[1..3]");
            assert!(stack.entry(3).is_none() && stack.entries(2, 2).is_none());
            assert!(stack.entries(1, usize::MAX).is_none());
            assert_eq!(bits(stack.reshaped(&[6, 256]).unwrap()), all);
        }
    }

    #[test]
    fn blocks_are_not_cut() {
        let rows = view(Dtype::Block(BlockFormat::Q8_0), &[4, 64]);
        assert!(rows.clone().reshaped(&[8, 32]).is_ok());
        assert!(matches!(rows.clone().reshaped(&[16, 16]), Err(Error::TensorShape { .. })));
        let row = rows.entry(0).unwrap();
        assert!(row.entry(0).is_none());
        assert!(
            row.entries(32, 32).is_some() && row.entries(16, 32).is_none() && row.entries(0, 16).is_none()
        );
        assert_eq!(Dtype::Block(BlockFormat::Q6K).bytes_of(&[2, 256]), Some(420));
        assert_eq!(Dtype::Block(BlockFormat::Q6K).bytes_of(&[2, 255]), None);
        assert_eq!(Dtype::F32.bytes_of(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F32.bytes_of(&[]), Some(4));
    }
}

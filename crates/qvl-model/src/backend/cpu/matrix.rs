//! Weight matrices as the CPU backend holds them: where they lie in the checkpoint, or packed.

use std::ops::Range;

use half::{bf16, f16};

use super::dots::{self, Weights};
use super::isa::Isa;
use super::panels::Panels;
use crate::backend::mat::Values;
use crate::backend::{Layout, Role, WeightPart};
use crate::checkpoint::{Dtype, TensorView};
use crate::quant::BlockFormat;

/// A weight matrix `[rows (out), cols (in)]`: segments stacked along the outputs.
#[derive(Debug)]
pub struct CpuMatrix {
    segments: Vec<Segment>,
    /// Where the segments end.
    borders: Vec<usize>,
    cols: usize,
}

/// Some outputs of one kind.
#[derive(Debug)]
pub(super) enum Segment {
    /// In the checkpoint.
    Stored(Stored),
    /// Quantised and packed.
    Panels(Panels),
}

/// Outputs read from the checkpoint's own bytes, a memory map usually.
#[derive(Debug)]
pub(super) struct Stored {
    tensor: TensorView,
    layout: Layout,
    /// The first of the tensor's outputs that is meant.
    first: usize,
    /// Small or looked up: products with it are exact where those with other matrices round activations.
    table: bool,
}

impl CpuMatrix {
    pub(super) fn new(segments: Vec<(Segment, usize)>, cols: usize) -> Self {
        let mut borders = Vec::with_capacity(segments.len());
        let mut rows = 0;
        for (_, outputs) in &segments {
            rows += outputs;
            borders.push(rows);
        }
        Self { segments: segments.into_iter().map(|(segment, _)| segment).collect(), borders, cols }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.borders.last().copied().unwrap_or(0)
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where the segments end.
    pub(super) fn borders(&self) -> &[usize] {
        &self.borders
    }

    /// Segment `index`, and some of the matrix' outputs counted from its first.
    pub(super) fn segment(&self, index: usize, outputs: Range<usize>) -> (&Segment, Range<usize>) {
        let start = index.checked_sub(1).map_or(0, |before| self.borders[before]);
        (&self.segments[index], outputs.start - start..outputs.end - start)
    }

    /// One row as f32.
    pub(super) fn unpack_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let index = self.borders.partition_point(|&end| end <= row);
        let (segment, outputs) = self.segment(index, row..row + 1);
        match segment {
            Segment::Stored(stored) => stored.unpack(isa, outputs, self.cols, out),
            Segment::Panels(panels) => panels.unpack_row(outputs.start, out),
        }
    }

    /// Whether a product with it needs quantised activations.
    pub(super) fn has_panels(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Panels(_)))
    }

    /// Whether a product with it can multiply bfloat16 with bfloat16, where there are instructions for that and
    /// activations may be rounded.
    pub(super) fn has_bf16(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Stored(stored) if stored.is_bf16()))
    }

    /// Whether a product with it multiplies floats in any case.
    pub(super) fn has_floats(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Stored(stored) if !stored.is_bf16()))
    }

    /// Bytes that a product with one row reads, wherever they lie.
    pub fn bytes(&self) -> usize {
        let mut start = 0;
        let mut bytes = 0;
        for (segment, &end) in self.segments.iter().zip(&self.borders) {
            bytes += match segment {
                Segment::Stored(stored) => (end - start) * self.cols * stored.tensor.dtype().bytes(),
                Segment::Panels(panels) => panels.bytes(),
            };
            start = end;
        }
        bytes
    }
}

impl Stored {
    pub(super) fn new(part: &WeightPart) -> Self {
        let table = part.role == Role::Table;
        Self { tensor: part.tensor.clone(), layout: part.layout, first: part.outputs.start, table }
    }

    /// Whether the weights are bfloat16 that may be multiplied with rounded activations.
    fn is_bf16(&self) -> bool {
        self.tensor.dtype() == Dtype::Bf16 && !self.table
    }

    /// The bytes of some rows, if they are such weights; put one after the other in `room` where they are not
    /// stored so.
    pub(super) fn bf16_rows<'a>(
        &'a self,
        rows: Range<usize>,
        cols: usize,
        room: &'a mut Values,
    ) -> Option<&'a [u8]> {
        if !self.is_bf16() {
            return None;
        }
        if self.layout == Layout::OutIn {
            return self.row_bytes(rows, cols);
        }
        room.resize((rows.len() * cols).div_ceil(2));
        let room: &mut [u8] = bytemuck::cast_slice_mut(room);
        let (bytes, outputs) = (self.tensor.bytes(), self.tensor.shape()[1]);
        // The values of one input lie together: each cache line is read once for all rows.
        for input in 0..cols {
            for row in rows.clone() {
                let from = 2 * (input * outputs + self.first + row);
                let to = 2 * ((row - rows.start) * cols + input);
                room[to..to + 2].copy_from_slice(&bytes[from..from + 2]);
            }
        }
        Some(&room[..2 * rows.len() * cols])
    }

    /// The stored bytes of some rows, if rows are what is stored.
    fn row_bytes(&self, rows: Range<usize>, cols: usize) -> Option<&[u8]> {
        if self.layout == Layout::InOut {
            return None;
        }
        let dtype = self.tensor.dtype();
        let row_bytes = cols / dtype.unit_values() * dtype.bytes();
        Some(&self.tensor.bytes()[(self.first + rows.start) * row_bytes..][..rows.len() * row_bytes])
    }

    /// The same as values that products can be taken with; `None` for blocks, which are packed first.
    pub(super) fn in_place(&self, rows: Range<usize>, cols: usize) -> Option<Weights<'_>> {
        let bytes = self.row_bytes(rows, cols)?;
        match self.tensor.dtype() {
            Dtype::F32 => Some(Weights::F32Bytes(bytes)),
            Dtype::Bf16 => Some(Weights::Bf16(bytes)),
            Dtype::F16 => Some(Weights::F16(bytes)),
            Dtype::Block(_) => None,
        }
    }

    /// The format of the blocks that rows are stored in, and those of some rows.
    pub(super) fn blocks(&self, rows: Range<usize>, cols: usize) -> Option<(BlockFormat, &[u8])> {
        match self.tensor.dtype() {
            Dtype::Block(format) => self.row_bytes(rows, cols).map(|bytes| (format, bytes)),
            Dtype::F32 | Dtype::Bf16 | Dtype::F16 => None,
        }
    }

    /// Some rows as f32, one after the other.
    pub(super) fn unpack(&self, isa: Isa, rows: Range<usize>, cols: usize, out: &mut [f32]) {
        let out = &mut out[..rows.len() * cols];
        if let Some(weights) = self.in_place(rows.clone(), cols) {
            dots::unpack(isa, weights, cols, cols, out);
            return;
        }
        if let Some((format, bytes)) = self.blocks(rows.clone(), cols) {
            format.dequantize(bytes, out);
            return;
        }
        // The values of one input lie together: each cache line is read once for all rows.
        let (dtype, bytes) = (self.tensor.dtype(), self.tensor.bytes());
        let outputs = self.tensor.shape()[1];
        for input in 0..cols {
            for row in rows.clone() {
                out[(row - rows.start) * cols + input] =
                    value(dtype, bytes, input * outputs + self.first + row);
            }
        }
    }
}

/// Value `index` of a stored array.
fn value(dtype: Dtype, bytes: &[u8], index: usize) -> f32 {
    let at = index * dtype.bytes();
    match dtype {
        Dtype::Bf16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        Dtype::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        Dtype::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
        Dtype::Block(_) => unreachable!("blocks run along the inputs: no format stores them [in, out]"),
    }
}

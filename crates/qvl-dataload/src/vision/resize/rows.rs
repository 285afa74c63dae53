//! A resize as a stream of rows: the driver of both passes.
//!
//! The vertical pass of a row of the result needs the few rows of the horizontal pass around it, so those live in a
//! ring that fits a second-level cache, and the whole picture never exists between the passes. Whoever takes the rows
//! may take as many at a time as he likes: a strip of patches is normalised while it is in the cache.

use super::Weights;
use super::taps::{Axis, Taps};
use crate::vision::kernels::{GROUP, Isa, SLACK};
use crate::{Error, Result};

/// The longest side accepted, so that no product of sizes overflows.
const MAX_SIDE: u32 = 65_535;

/// What a resize from one size to another needs to know; costs about a microsecond for each 10 columns and rows.
#[derive(Debug)]
pub(crate) struct Plan {
    isa: Isa,
    key: Key,
    /// Absent where a direction does not change.
    columns: Option<Taps>,
    rows: Option<Taps>,
}

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) weights: Weights,
    /// `(width, height)` of the source.
    pub(crate) from: (u32, u32),
    /// `(width, height)` of the result.
    pub(crate) to: (u32, u32),
}

/// Memory of a resize that is worth keeping from one picture to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// `[capacity, stride]` rows out of the horizontal pass, row `y` in slot `(y - first) % capacity`.
    ring: Vec<u8>,
    /// The last group of rows of the source, with room behind it.
    tail: Vec<u8>,
    /// For the portable horizontal pass.
    strip: Vec<u8>,
    /// Where the rows of one result begin.
    offsets: Vec<usize>,
}

impl Scratch {
    /// Memory it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.ring.capacity() + self.tail.capacity() + self.strip.capacity() + self.offsets.capacity() * 8
    }
}

impl Plan {
    /// # Errors
    /// [`Error::NoPixels`] if a side is zero, [`Error::TargetSize`] if one of the result exceeds 65535.
    pub(crate) fn new(isa: Isa, key: Key) -> Result<Self> {
        let ((width, height), (new_width, new_height)) = (key.from, key.to);
        if new_width == 0 || new_height == 0 || width == 0 || height == 0 {
            return Err(Error::NoPixels { width: new_width, height: new_height });
        }
        if new_width > MAX_SIDE || new_height > MAX_SIDE {
            let (got_width, got_height) = (f64::from(new_width), f64::from(new_height));
            return Err(Error::TargetSize { width, height, got_width, got_height });
        }
        let taps = |from: u32, to: u32, axis| {
            (from != to).then(|| Taps::new(key.weights, from as usize, to as usize, axis, isa.cut()))
        };
        let (columns, rows) = (taps(width, new_width, Axis::Columns), taps(height, new_height, Axis::Rows));
        Ok(Self { isa, key, columns, rows })
    }

    /// What it was made for.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Whether the result is the source.
    pub(crate) fn is_copy(&self) -> bool {
        self.columns.is_none() && self.rows.is_none()
    }

    /// Memory it holds.
    pub(crate) fn bytes(&self) -> usize {
        [&self.columns, &self.rows].into_iter().flatten().map(Taps::bytes).sum()
    }
}

/// The rows of a result, from the top.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    plan: &'a Plan,
    rgb: &'a [u8],
    scratch: &'a mut Scratch,
    /// Bytes of a row of the source.
    source_stride: usize,
    /// Bytes of a row of the ring.
    stride: usize,
    /// Rows in the ring.
    capacity: usize,
    /// The first row of the source that is read.
    first: usize,
    /// The next row that goes through the horizontal pass.
    next: usize,
    /// The next row of the result.
    y: usize,
}

impl<'a> Rows<'a> {
    /// # Errors
    /// [`Error::RgbLength`] unless `rgb` has the size that the plan was made for.
    pub(crate) fn new(plan: &'a Plan, rgb: &'a [u8], scratch: &'a mut Scratch) -> Result<Self> {
        let (width, height) = plan.key.from;
        let expected = u64::from(width) * u64::from(height) * 3;
        if rgb.len() as u64 != expected {
            return Err(Error::RgbLength { width, height, expected, got: rgb.len() as u64 });
        }
        // A power of two apart, rows would share the same few lines of a cache.
        let stride = (plan.key.to.0 as usize * 3 + SLACK).next_multiple_of(64) | 64;
        let most = plan.rows.as_ref().map_or(1, Taps::most);
        // A row of the result needs `most` rows and they come in groups.
        let capacity = (most + GROUP).next_multiple_of(GROUP);
        if plan.columns.is_some() {
            scratch.ring.resize(stride * capacity, 0);
        }
        // Only the rows that the vertical pass reads go through the horizontal one.
        let first = plan.rows.as_ref().map_or(0, |r| r.span().0);
        let source_stride = width as usize * 3;
        Ok(Self { plan, rgb, scratch, source_stride, stride, capacity, first, next: first, y: 0 })
    }

    /// The next rows of the result, as many as fit `out`.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let width = self.plan.key.to.0 as usize * 3;
        for row in out.chunks_exact_mut(width) {
            self.row(row);
            self.y += 1;
        }
    }

    fn row(&mut self, out: &mut [u8]) {
        let plan = self.plan;
        let (start, end) = match &plan.rows {
            Some(rows) => {
                let (start, weights) = rows.at(self.y);
                (start, start + weights.len())
            }
            None => (self.y, self.y + 1),
        };
        if let Some(columns) = &plan.columns {
            while self.next < end {
                self.group(columns);
            }
        }
        let (first, capacity, stride) = (self.first, self.capacity, self.stride);
        let (source, place): (&[u8], &dyn Fn(usize) -> usize) = match plan.columns {
            Some(_) => (&self.scratch.ring, &|row| (row - first) % capacity * stride),
            None => (self.rgb, &|row| row * self.source_stride),
        };
        match &plan.rows {
            Some(rows) => {
                // What fills up the last four has no weight: any row will do.
                let needed = (start..start + rows.row_count(self.y)).map(|row| place(row.min(end - 1)));
                self.scratch.offsets.clear();
                self.scratch.offsets.extend(needed);
                plan.isa.vertical(rows, self.y, source, &self.scratch.offsets, out);
            }
            None => out.copy_from_slice(&source[place(self.y)..][..out.len()]),
        }
    }

    /// Takes the next group of rows through the horizontal pass into the ring.
    fn group(&mut self, columns: &Taps) {
        let (height, stride) = (self.plan.key.from.1 as usize, self.source_stride);
        let Scratch { ring, tail, strip, .. } = &mut *self.scratch;
        let slot = (self.next - self.first) % self.capacity * self.stride;
        let out = &mut ring[slot..][..GROUP * self.stride];
        // Below the last row there is none: it stands in.
        let rows: [usize; GROUP] = std::array::from_fn(|r| (self.next + r).min(height - 1) * stride);
        if rows[GROUP - 1] + stride + SLACK <= self.rgb.len() {
            self.plan.isa.horizontal(columns, self.rgb, &rows, out, strip);
        } else {
            // At the end of the picture a row is read beyond its end, and behind that nothing may be read.
            tail.clear();
            tail.extend_from_slice(&self.rgb[rows[0]..]);
            tail.resize(tail.len() + SLACK, 0);
            let rows = rows.map(|row| row - rows[0]);
            self.plan.isa.horizontal(columns, tail, &rows, out, strip);
        }
        self.next += GROUP;
    }
}

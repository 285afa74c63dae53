//! Activations in host memory, shared by the backends that compute there.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use parking_lot::Mutex;

/// `[rows, cols]` f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Mat {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Values,
}

impl Mat {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: Values::zeros(rows * cols) }
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.cols..][..self.cols]
    }

    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.values[index * cols..][..cols]
    }

    pub(crate) fn from_slice(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "upload: length");
        let mut mat = Self::zeros(rows, cols);
        mat.values.copy_from_slice(values);
        mat
    }

    pub(crate) fn reshape(self, rows: usize, cols: usize) -> Self {
        assert_eq!(self.values.len(), rows * cols, "reshape: length");
        Self { rows, cols, ..self }
    }

    /// `self[rows[i]] = source[i]`
    pub(crate) fn set_rows(&mut self, rows: &[usize], source: &Self) {
        for (index, &row) in rows.iter().enumerate() {
            self.row_mut(row).copy_from_slice(source.row(index));
        }
    }

    /// `self[rows[i]] += source[i]`
    pub(crate) fn add_rows(&mut self, rows: &[usize], source: &Self) {
        for (index, &row) in rows.iter().enumerate() {
            for (x, &source) in self.row_mut(row).iter_mut().zip(source.row(index)) {
                *x += source;
            }
        }
    }

    /// Copies of some rows.
    pub(crate) fn take_rows(&self, rows: &[usize]) -> Self {
        let mut taken = Self::zeros(rows.len(), self.cols);
        for (index, &row) in rows.iter().enumerate() {
            taken.row_mut(index).copy_from_slice(self.row(row));
        }
        taken
    }
}

/// One cache line: a vector load of 64 bytes that crosses lines costs two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Values that start on a cache line. Those of a [`Recycler`] go back to it when they are dropped.
#[derive(Default)]
pub(crate) struct Values {
    lines: Vec<Line>,
    len: usize,
    home: Option<Arc<Recycler>>,
}

impl Values {
    /// Zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self { lines: vec![Line::zeroed(); len.div_ceil(LINE)], len, home: None }
    }

    /// Makes room for `len` values, whatever they are; allocates only if there never was as much.
    pub(crate) fn resize(&mut self, len: usize) {
        self.lines.resize(len.div_ceil(LINE), Line::zeroed());
        self.len = len;
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        Self { lines: self.lines.clone(), len: self.len, home: None }
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        let mut aligned = Self::zeros(values.len());
        aligned.copy_from_slice(&values);
        aligned
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.keep(std::mem::take(&mut self.lines));
        }
    }
}

/// Keeps the memory of dropped activations for the next ones: a step needs the same sizes as the one before,
/// and the first touch of fresh pages costs more than most operations on them.
#[derive(Debug)]
pub(crate) struct Recycler {
    free: Mutex<Vec<Vec<Line>>>,
    /// Bytes kept at most; what comes back beyond them is given to the system.
    bytes_max: usize,
}

impl Recycler {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        // Room for more buffers than a layer has alive, so that keeping one never allocates.
        Arc::new(Self { free: Mutex::new(Vec::with_capacity(64)), bytes_max })
    }

    /// A matrix whose values are whatever was left there.
    pub(crate) fn mat(self: &Arc<Self>, rows: usize, cols: usize) -> Mat {
        let len = rows * cols;
        let wanted = len.div_ceil(LINE);
        let mut free = self.free.lock();
        let best = free
            .iter()
            .enumerate()
            .filter(|(_, lines)| lines.capacity() >= wanted)
            .min_by_key(|(_, lines)| lines.capacity())
            .map(|(index, _)| index);
        let lines = best.map(|index| free.swap_remove(index));
        drop(free);
        let lines = match lines {
            // What is longer stays so: growing it again would write it anew.
            Some(mut lines) => {
                if lines.len() < wanted {
                    lines.resize(wanted, Line::zeroed());
                }
                lines
            }
            None => vec![Line::zeroed(); wanted],
        };
        Mat { rows, cols, values: Values { lines, len, home: Some(Arc::clone(self)) } }
    }

    fn keep(&self, lines: Vec<Line>) {
        let bytes = |lines: &Vec<Line>| lines.capacity() * size_of::<Line>();
        let mut free = self.free.lock();
        let kept: usize = free.iter().map(bytes).sum();
        if kept + bytes(&lines) <= self.bytes_max && free.len() < free.capacity() {
            free.push(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let recycler = Recycler::new(1 << 20);
        let first = recycler.mat(3, 100);
        let address = first.values.as_ptr();
        assert_eq!(address as usize % 64, 0);
        drop(first);
        let second = recycler.mat(2, 150);
        assert_eq!((second.values.as_ptr(), second.values.len()), (address, 300));
        assert_ne!(recycler.mat(3, 100).values.as_ptr(), address, "in use");
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let recycler = Recycler::new(1_000);
        drop(recycler.mat(1, 10_000));
        assert!(recycler.free.lock().is_empty());
    }
}

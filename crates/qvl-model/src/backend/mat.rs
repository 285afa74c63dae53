//! Activations in host memory, shared by the backends that compute there.

/// `[rows, cols]` f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Mat {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Vec<f32>,
}

impl Mat {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: vec![0.0; rows * cols] }
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.cols..][..self.cols]
    }

    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.cols..][..self.cols]
    }

    pub(crate) fn from_slice(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "upload: length");
        Self { rows, cols, values: values.to_vec() }
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
        let values = rows.iter().flat_map(|&row| self.row(row)).copied().collect();
        Self { rows: rows.len(), cols: self.cols, values }
    }
}

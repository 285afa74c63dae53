//! Blocks of one matrix written by several threads at once.

#![expect(
    unsafe_code,
    reason = "blocks of columns of a row-major matrix are not contiguous, so no slice can be split into them"
)]

use std::marker::PhantomData;
use std::ops::Range;

use super::team::Team;
use crate::backend::Mat;

/// A matrix cut into blocks of at most so many rows and columns; a block never crosses a border.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling<'a> {
    /// Where runs of rows end, ascending; the last is the height of the matrix.
    pub(super) row_borders: &'a [usize],
    /// Where runs of columns end, ascending; the last is the width of the matrix.
    pub(super) borders: &'a [usize],
    /// Most rows of a block.
    pub(super) row_block: usize,
    /// Most columns of a block.
    pub(super) col_block: usize,
    /// Which blocks follow each other.
    pub(super) order: Order,
}

/// Blocks that follow each other mostly are one thread's, so what they share is read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Those of the same columns.
    ByColumns,
    /// Those of the same rows.
    ByRows,
}

/// How many blocks the runs that end at `borders` are cut into.
fn count(borders: &[usize], size: usize) -> usize {
    let mut start = 0;
    let mut blocks = 0;
    for &end in borders {
        blocks += (end - start).div_ceil(size);
        start = end;
    }
    blocks
}

/// Block `index` of them, and its run.
fn nth(borders: &[usize], size: usize, mut index: usize) -> (usize, Range<usize>) {
    let mut start = 0;
    for (run, &end) in borders.iter().enumerate() {
        let blocks = (end - start).div_ceil(size);
        if index < blocks {
            let first = start + index * size;
            return (run, first..(first + size).min(end));
        }
        index -= blocks;
        start = end;
    }
    unreachable!("fewer blocks than were counted")
}

impl Tiling<'_> {
    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        count(self.borders, self.col_block) * count(self.row_borders, self.row_block)
    }

    /// Block `index`.
    fn get(&self, index: usize) -> Place {
        let (row_index, col_index) = match self.order {
            Order::ByColumns => {
                let row_blocks = count(self.row_borders, self.row_block);
                (index % row_blocks, index / row_blocks)
            }
            Order::ByRows => {
                let col_blocks = count(self.borders, self.col_block);
                (index / col_blocks, index % col_blocks)
            }
        };
        let (row_run, rows) = nth(self.row_borders, self.row_block, row_index);
        let (run, columns) = nth(self.borders, self.col_block, col_index);
        Place { run, row_run, rows, columns }
    }
}

/// Where a block lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its run of columns.
    pub(super) run: usize,
    /// Its run of rows.
    pub(super) row_run: usize,
    /// Its rows.
    pub(super) rows: Range<usize>,
    /// Its columns.
    pub(super) columns: Range<usize>,
}

/// A block of a matrix.
pub(super) struct Block<'a> {
    first: *mut f32,
    stride: usize,
    /// Where it lies.
    pub(super) place: Place,
    matrix: PhantomData<&'a mut [f32]>,
}

impl Block<'_> {
    /// Row `index` of the block, counted from its first.
    pub(super) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.place.rows.len(), "row {index} of a block of {}", self.place.rows.len());
        // SAFETY: the row lies inside the matrix, and no other block has these columns of it.
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add(index * self.stride), self.place.columns.len())
        }
    }
}

/// A pointer that may go to another thread.
struct Shared(*mut f32);

// SAFETY: each thread makes blocks of it that no other thread has.
unsafe impl Sync for Shared {}

/// Runs `f` on every block of `y`; on all threads of the team if `parallel`.
pub(super) fn for_each_block(
    team: &Team,
    y: &mut Mat,
    tiling: Tiling<'_>,
    parallel: bool,
    f: impl Fn(Block<'_>) + Sync,
) {
    assert_eq!(Some(&y.cols), tiling.borders.last(), "the borders end with the matrix");
    assert_eq!(Some(&y.rows), tiling.row_borders.last(), "the borders end with the matrix");
    assert!(tiling.borders.is_sorted() && tiling.row_borders.is_sorted());
    assert_eq!(y.values.len(), y.rows * y.cols);
    let stride = y.cols;
    let base = Shared(y.values.as_mut_ptr());
    let run = |index: usize| {
        let base = &base;
        let place = tiling.get(index);
        // SAFETY: the place lies inside the matrix: its rows and its columns end at a border.
        let first = unsafe { base.0.add(place.rows.start * stride + place.columns.start) };
        f(Block { first, stride, place, matrix: PhantomData });
    };
    if parallel {
        team.for_each(tiling.len(), &run);
    } else {
        (0..tiling.len()).for_each(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_block_and_no_block_crosses_a_border() {
        let team = Team::new(3).unwrap();
        for (rows, borders) in [(1, vec![5]), (7, vec![4, 4, 9, 20]), (3, vec![1, 2, 3]), (8, vec![16])] {
            let width = *borders.last().unwrap();
            for (row_block, col_block, order) in [
                (1, 1, Order::ByColumns),
                (2, 4, Order::ByRows),
                (100, 100, Order::ByColumns),
                (3, 5, Order::ByColumns),
                (3, 5, Order::ByRows),
            ] {
                let mut y = Mat::zeros(rows, width);
                let row_borders = [rows / 2, rows];
                let tiling =
                    Tiling { row_borders: &row_borders, borders: &borders, row_block, col_block, order };
                for_each_block(&team, &mut y, tiling, true, |mut block| {
                    let Range { start, end } = block.place.columns;
                    assert!(borders.iter().all(|border| !(start + 1..end).contains(border)));
                    let rows = &block.place.rows;
                    assert!(!(rows.start + 1..rows.end).contains(&row_borders[0]));
                    for row in 0..block.place.rows.len() {
                        for (offset, value) in block.row(row).iter_mut().enumerate() {
                            *value += 1.0 + offset as f32 + start as f32;
                        }
                    }
                });
                for row in 0..rows {
                    let expected: Vec<f32> = (1..=width).map(|column| column as f32).collect();
                    assert_eq!(y.row(row), expected);
                }
            }
        }
    }
}

//! Cache blocking: the product of a gathered A and a packed B, in tasks over blocks of rows and ranges of panels.

use std::ops::Range;

use rayon::prelude::*;

use super::level::Level;
use super::panels::Panels;
use super::tile::{BLOCK, Lhs, PITCH, SharedOut, panel_product};
use super::windows::{Norm, Windows, gather_columns, gather_rows, rows_len};
use super::workspace::with_workspace;
use crate::kernels::element::Element;

/// Where A comes from.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a, T> {
    /// The im2col matrix of activations.
    Windows { windows: Windows, x: &'a [T], norm: Option<Norm<'a>> },
    /// A dense matrix stored `[k, m]`.
    Transposed { a: &'a [T], m: usize },
}

/// Where the row for output pixel `(image, y, x)` begins in C: `base + image · step[0] + y · step[1] + x · step[2]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMap {
    pub(crate) base: usize,
    pub(crate) step: [usize; 3],
    /// Height and width of the output.
    pub(crate) out: [usize; 2],
}

impl RowMap {
    /// Rows of `cols` values, one after the other.
    pub(crate) fn dense(rows: usize, cols: usize) -> RowMap {
        RowMap { base: 0, step: [rows * cols, rows * cols, cols], out: [1, rows.max(1)] }
    }

    /// Offsets of these rows.
    pub(crate) fn offsets(&self, rows: Range<usize>, out: &mut Vec<usize>) {
        out.clear();
        let per_image = self.out[0] * self.out[1];
        out.extend(rows.map(|row| {
            let (image, pixel) = (row / per_image, row % per_image);
            let (y, x) = (pixel / self.out[1], pixel % self.out[1]);
            self.base + image * self.step[0] + y * self.step[1] + x * self.step[2]
        }));
    }
}

/// Called once rows and columns of C are final and still in the cache, with the number of the part, the offsets of its
/// rows, and its columns as the product counts them. A part is what a block of rows and an image share; both only grow
/// from row to row, so that block + image numbers the parts.
pub(crate) type Finish<'a> = dyn Fn(usize, &[usize], Range<usize>) + Sync + 'a;

/// `C (+)= A · B` with products of `T`.
pub(crate) struct Product<'a, T, O> {
    pub(crate) level: Level,
    pub(crate) rows: usize,
    pub(crate) left: Left<'a, T>,
    pub(crate) panels: Panels,
    /// B, packed.
    pub(crate) b: &'a [u32],
    pub(crate) out: SharedOut<O>,
    pub(crate) map: RowMap,
    pub(crate) accumulate: bool,
    pub(crate) finish: Option<&'a Finish<'a>>,
}

/// Rows of a task: a multiple of the tile that keeps the gathered block in the second-level cache, smaller where there
/// are few rows. A function of the sizes alone; `words` is the inner dimension.
pub(crate) fn block_rows(level: Level, rows: usize, words: usize) -> usize {
    let tile = level.tile_rows();
    let most = (512 * 1024 / (4 * PITCH * words.div_ceil(BLOCK).max(1))).clamp(2 * tile, 224);
    rows.div_ceil(16).next_multiple_of(tile).clamp(2 * tile, most / tile * tile)
}

impl<T: Element, O: Element> Product<'_, T, O> {
    /// Runs the product on rayon's current pool.
    ///
    /// # Safety
    /// The slice of `out` is still borrowed, its rows are disjoint, and nothing else touches them meanwhile.
    #[expect(unsafe_code, reason = "tasks share the output")]
    pub(crate) unsafe fn run(&self) {
        let blocks = self.rows.div_ceil(block_rows(self.level, self.rows, self.panels.words()));
        let panels = self.panels.count();
        // Only the gathering is repeated where the panels of a block are divided, and no result changes.
        let wanted = (4 * rayon::current_num_threads()).div_ceil(blocks.max(1));
        let splits = if rayon::current_num_threads() == 1 { 1 } else { wanted.clamp(1, panels.div_ceil(2).max(1)) };
        let per_split = panels.div_ceil(splits).max(1);
        let splits = panels.div_ceil(per_split);
        (0..blocks * splits).into_par_iter().with_max_len(1).for_each(|task| {
            let (block, split) = (task / splits, task % splits);
            // SAFETY: tasks own disjoint blocks of rows or ranges of columns; the rest is the caller's promise.
            unsafe { self.task(block, split * per_split..panels.min((split + 1) * per_split)) }
        });
    }

    /// Runs the product on this thread.
    ///
    /// # Safety
    /// As [`Product::run`].
    #[expect(unsafe_code, reason = "tasks share the output")]
    pub(crate) unsafe fn run_serial(&self) {
        for block in 0..self.rows.div_ceil(block_rows(self.level, self.rows, self.panels.words())) {
            // SAFETY: the caller's promise.
            unsafe { self.task(block, 0..self.panels.count()) }
        }
    }

    #[expect(unsafe_code, reason = "tasks share the output")]
    unsafe fn task(&self, block: usize, panels: Range<usize>) {
        let size = block_rows(self.level, self.rows, self.panels.words());
        let rows = block * size..self.rows.min((block + 1) * size);
        let words = self.panels.words();
        with_workspace(|workspace| {
            self.map.offsets(rows.clone(), &mut workspace.rows);
            let offsets = &workspace.rows[..];
            let lhs = match &self.left {
                Left::Windows { windows, x, norm } => {
                    let a = workspace.a.at_least(rows_len::<T>(windows, rows.len()));
                    gather_rows(self.level, windows, x, norm.as_ref(), rows.clone(), a);
                    Lhs::Rows { step: rows.len() * PITCH }
                }
                Left::Transposed { a: matrix, m } => {
                    let a = workspace.a.at_least(words * PITCH);
                    let (matrix_of, buffer) = (Windows::matrix(self.panels.k(), *m), &mut workspace.rows_of_words);
                    gather_columns(self.level, &matrix_of, matrix, None, 0..self.panels.k(), rows.clone(), a, buffer);
                    Lhs::Columns
                }
            };
            let a = workspace.a.as_slice();
            // The next block is most likely this thread's as well.
            let mut ahead = match &self.left {
                Left::Windows { windows, x, .. } if words <= BLOCK && panels == (0..self.panels.count()) => {
                    windows.dense_rows(x, rows.end..rows.end + size)
                }
                _ => &[],
            };
            for panel in panels {
                let (column, cols, width) =
                    (self.panels.column(panel), self.panels.cols(panel), self.panels.width(panel));
                let b = &self.b[self.panels.offset(panel)..][..words * width];
                // SAFETY: this task alone writes these rows and columns.
                unsafe {
                    panel_product::<T, O>(
                        self.level,
                        lhs,
                        words,
                        a,
                        b,
                        width,
                        cols,
                        self.out,
                        offsets,
                        column,
                        self.accumulate,
                        &mut ahead,
                    );
                }
                if let Some(finish) = self.finish {
                    let per_image = self.map.out[0] * self.map.out[1];
                    let mut from = rows.start;
                    while from < rows.end {
                        let image = from / per_image;
                        let to = rows.end.min((image + 1) * per_image);
                        let part = &offsets[from - rows.start..to - rows.start];
                        finish(block + image, part, column..column + cols);
                        from = to;
                    }
                }
            }
        });
    }
}

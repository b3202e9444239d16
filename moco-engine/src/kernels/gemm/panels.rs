//! The packed order of B: panels of one tile's width, each with its rows of words one after the other.

use super::level::Level;
use crate::kernels::element::Element;

/// Where the panels of a packed `k × n` matrix lie, counted in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    level: Level,
    k: usize,
    words: usize,
    n: usize,
}

impl Panels {
    /// For products of `T`.
    pub(crate) fn new<T: Element>(level: Level, k: usize, n: usize) -> Panels {
        Panels { level, k, words: k.div_ceil(T::PER_WORD), n }
    }

    /// Rows.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Rows of words.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(self.level.tile_cols())
    }

    /// First column of a panel.
    pub(crate) fn column(&self, panel: usize) -> usize {
        panel * self.level.tile_cols()
    }

    /// Columns of a panel that hold data.
    pub(crate) fn cols(&self, panel: usize) -> usize {
        self.level.tile_cols().min(self.n - self.column(panel))
    }

    /// Columns of a panel as stored: whole vectors.
    pub(crate) fn width(&self, panel: usize) -> usize {
        self.cols(panel).next_multiple_of(self.level.lanes())
    }

    /// Place of a panel in the packed buffer.
    pub(crate) fn offset(&self, panel: usize) -> usize {
        self.column(panel) * self.words
    }

    /// Words of the packed buffer.
    pub(crate) fn len(&self) -> usize {
        self.count().checked_sub(1).map_or(0, |last| self.offset(last) + self.width(last) * self.words)
    }

    /// Packs one panel of a dense matrix, stored `[k, n]`, or `[n, k]` if `transposed`, for products of `T`.
    pub(super) fn pack<S: Element, T: Element>(&self, panel: usize, b: &[S], transposed: bool, out: &mut [u32]) {
        let (first, cols, width) = (self.column(panel), self.cols(panel), self.width(panel));
        if cols < width {
            out.fill(0);
        }
        if !transposed {
            for (rows, out) in b.chunks(T::PER_WORD * self.n).zip(out.chunks_exact_mut(width)) {
                let (row, next) = rows.split_at(self.n);
                let row = &row[first..first + cols];
                match next.get(first..first + cols) {
                    Some(next) => {
                        for ((out, a), b) in out.iter_mut().zip(row).zip(next) {
                            *out = T::word(a.widen(), b.widen());
                        }
                    }
                    None => out.iter_mut().zip(row).for_each(|(out, a)| *out = T::word(a.widen(), 0.0)),
                }
            }
            return;
        }
        // Sixteen rows at a time, so that a cache line of B is used whole.
        for (block, out) in out.chunks_mut(16 * width).enumerate() {
            for (j, row) in b[first * self.k..(first + cols) * self.k].chunks_exact(self.k).enumerate() {
                let values = row[16 * T::PER_WORD * block..].chunks(T::PER_WORD);
                for (out, values) in out.chunks_exact_mut(width).zip(values) {
                    out[j] = T::word(values[0].widen(), values.get(1).map_or(0.0, |v| v.widen()));
                }
            }
        }
    }
}

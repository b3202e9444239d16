//! The packed order of B: panels of one tile's width, each with its rows one after the other.

use super::level::Level;

/// Where the panels of a packed `k × n` matrix lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    level: Level,
    k: usize,
    n: usize,
}

impl Panels {
    pub(crate) fn new(level: Level, k: usize, n: usize) -> Panels {
        Panels { level, k, n }
    }

    /// Rows.
    pub(crate) fn k(&self) -> usize {
        self.k
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
        self.column(panel) * self.k
    }

    /// Values of the packed buffer.
    pub(crate) fn len(&self) -> usize {
        self.count().checked_sub(1).map_or(0, |last| self.offset(last) + self.width(last) * self.k)
    }

    /// Packs one panel of a dense matrix, stored `[k, n]`, or `[n, k]` if `transposed`.
    pub(super) fn pack(&self, panel: usize, b: &[f32], transposed: bool, out: &mut [f32]) {
        let (first, cols, width) = (self.column(panel), self.cols(panel), self.width(panel));
        if cols < width {
            out.fill(0.0);
        }
        if !transposed {
            for (row, out) in b.chunks_exact(self.n).zip(out.chunks_exact_mut(width)) {
                out[..cols].copy_from_slice(&row[first..first + cols]);
            }
            return;
        }
        // Sixteen rows at a time, so that a cache line of B is used whole.
        for (block, out) in out.chunks_mut(16 * width).enumerate() {
            for (j, row) in b[first * self.k..(first + cols) * self.k].chunks_exact(self.k).enumerate() {
                for (out, &value) in out.chunks_exact_mut(width).zip(&row[16 * block..]) {
                    out[j] = value;
                }
            }
        }
    }
}

//! How the rows of a batch normalisation are cut into blocks.

use std::sync::Arc;

use super::driver::{Driver, THREADS};
use super::kernels::width;
use super::memory::Value;
use crate::kernels::NormShape;

/// Numbers kept per group and channel: mean, 1/σ, scale, shift, and two terms of the gradient.
pub(super) const FIELDS: usize = 6;

/// Rows that a thread should at least sum: each chunk's sums are written and read again.
const SUMMED_ROWS: usize = 32;
/// Rows that a thread should at least pass over where nothing is summed: it reads its channels' numbers first.
const PASSED_ROWS: usize = 8;

/// A grid over chunks of rows, blocks of channels and groups; see `Walk` in `common.cuh`.
pub(super) struct Chunks {
    /// Rows of a chunk.
    pub rows: usize,
    /// Chunks, blocks of channels, groups.
    pub grid: [usize; 3],
}

impl Chunks {
    /// For a kernel that sums.
    pub(super) fn summing<T: Value, D: Driver>(driver: &Arc<D>, shape: &NormShape) -> Chunks {
        Chunks::cut::<T>(shape, 8 * driver.multiprocessors(), SUMMED_ROWS)
    }

    /// For a kernel that only passes over the rows.
    pub(super) fn passing<T: Value, D: Driver>(driver: &Arc<D>, shape: &NormShape) -> Chunks {
        Chunks::cut::<T>(shape, 16 * driver.multiprocessors(), PASSED_ROWS)
    }

    /// At most about `blocks` blocks, whose threads have at least `least` rows each where there are that many.
    fn cut<T: Value>(shape: &NormShape, blocks: usize, least: usize) -> Chunks {
        let map = shape.map;
        let (step, channel_blocks) = walk::<T>(map.channels);
        let groups = shape.groups.count().min(map.n);
        let rows = map.n.div_ceil(shape.groups.count()) * map.pixels;
        let chunks = (blocks / (channel_blocks * groups)).clamp(1, rows.div_ceil(step * least));
        let rows_of_chunk = rows.div_ceil(chunks).next_multiple_of(step);
        Chunks { rows: rows_of_chunk, grid: [rows.div_ceil(rows_of_chunk), channel_blocks, groups] }
    }

    /// Bytes of the sums of all chunks.
    pub(super) fn bytes(&self, shape: &NormShape) -> usize {
        self.grid[0] * self.grid[2] * 2 * shape.map.channels * size_of::<f32>()
    }

    /// No batch of at most `shape`'s size needs more bytes for its sums.
    pub(super) fn most_bytes<T: Value, D: Driver>(driver: &Arc<D>, shape: &NormShape) -> usize {
        let (step, channel_blocks) = walk::<T>(shape.map.channels);
        let groups = shape.groups.count().min(shape.map.n);
        let rows = shape.map.n.div_ceil(shape.groups.count()) * shape.map.pixels;
        // Of any n: chunks ≤ blocks / (channel blocks · groups) or 1, and chunks ≤ its rows / (step · least) or 1.
        let by_blocks = (8 * driver.multiprocessors() / channel_blocks).max(groups);
        let by_rows = rows.div_ceil(step * SUMMED_ROWS) * groups;
        by_blocks.min(by_rows) * 2 * shape.map.channels * size_of::<f32>()
    }
}

/// Rows that a block reads side by side, and blocks that the channels are cut into.
fn walk<T: Value>(channels: usize) -> (usize, usize) {
    let vectors = channels / width::<T>(channels);
    let lanes = vectors.min(THREADS);
    (THREADS / lanes, vectors.div_ceil(lanes))
}

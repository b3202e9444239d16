//! Normalisations on a device, and how their rows are cut into blocks.

use std::sync::Arc;

use super::CudaKernels;
use super::arguments::*;
use super::driver::{Driver, THREADS};
use super::kernels::{COLUMNS, width};
use super::memory::{DeviceView, Memory, Value};
use crate::kernels::{Mask, NormOffsets, NormShape, Residual, Statistics};

/// Numbers kept per group and channel: mean, 1/σ, scale, shift, and two terms of the gradient.
pub(super) const FIELDS: usize = 6;

/// Rows that a thread should at least sum: each chunk's sums are written and read again.
const SUMMED_ROWS: usize = 32;
/// Rows that a thread should at least pass over where nothing is summed: it reads its channels' numbers first.
const PASSED_ROWS: usize = 8;

impl<T: Value, D: Driver> CudaKernels<T, D> {
    fn norm(&self, shape: &NormShape) -> (Groups, i32) {
        (Groups::new(shape.groups, shape.map.n, shape.map.pixels), shape.map.channels as i32)
    }

    /// Batch statistics of every group.
    pub(super) fn batch_stats(
        &mut self,
        shape: &NormShape,
        z: &DeviceView<T>,
        params: &DeviceView<f32>,
        at: NormOffsets,
        buffers: &mut DeviceView<f32>,
        stats: &mut Memory<D>,
    ) {
        let (groups, channels) = self.norm(shape);
        let (c, z, stats) = (shape.map.channels, z.address(), stats.address());
        let chunks = Chunks::summing::<T, D>(&self.driver, shape);
        let partial = self.scratch(chunks.bytes(shape));
        self.launch(chunks.grid, NormSums { z, partial, groups, channels, chunk: chunks.rows as i32 });
        let finish = NormFinish {
            z,
            partial,
            weight: params.part(at.weight, c),
            bias: params.part(at.bias, c),
            running_mean: buffers.part(at.running_mean, c),
            running_var: buffers.part(at.running_var, c),
            stats,
            groups,
            channels,
            chunks: chunks.grid[0] as i32,
            eps: shape.eps,
            momentum: shape.momentum,
        };
        self.launch([c.div_ceil(COLUMNS), 1, 1], finish);
    }

    /// Running statistics, for every group.
    pub(super) fn running_stats(
        &mut self,
        shape: &NormShape,
        params: &DeviceView<f32>,
        at: NormOffsets,
        buffers: &DeviceView<f32>,
        stats: &mut Memory<D>,
    ) {
        let (groups, channels) = self.norm(shape);
        let c = shape.map.channels;
        let running = NormRunning {
            weight: params.part(at.weight, c),
            bias: params.part(at.bias, c),
            running_mean: buffers.part(at.running_mean, c),
            running_var: buffers.part(at.running_var, c),
            stats: stats.address(),
            groups,
            channels,
            eps: shape.eps,
        };
        self.launch([(shape.groups.count() * c).div_ceil(THREADS), 1, 1], running);
    }

    /// Normalises, adds, cuts off below 0.
    pub(super) fn normalise(
        &mut self,
        shape: &NormShape,
        z: Option<&DeviceView<T>>,
        stats: &Memory<D>,
        residual: Residual<'_, Self>,
        relu: bool,
        y: &mut DeviceView<T>,
    ) {
        let (groups, channels) = self.norm(shape);
        let (residual, residual_stats) = match residual {
            Residual::None => (0, 0),
            Residual::Map(map) => (map.address(), 0),
            Residual::Norm { z, stats } => (z.address(), stats.address()),
        };
        let chunks = Chunks::passing::<T, D>(&self.driver, shape);
        let y = y.address();
        let apply = NormApply {
            z: z.map_or(y, DeviceView::address),
            stats: stats.address(),
            residual,
            residual_stats,
            y,
            groups,
            channels,
            chunk: chunks.rows as i32,
            relu: i32::from(relu),
        };
        self.launch(chunks.grid, apply);
    }

    /// Gradients of weight and bias, and the two terms of the data gradient.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    pub(super) fn norm_gradient_sums(
        &mut self,
        shape: &NormShape,
        z: &DeviceView<T>,
        stats: &mut Memory<D>,
        mask: Mask<'_, Self>,
        dy: &mut DeviceView<T>,
        at: NormOffsets,
        gradients: &mut DeviceView<f32>,
    ) {
        let (groups, channels) = self.norm(shape);
        let (masked, y) = match mask {
            Mask::None => (0, 0),
            Mask::Recompute => (1, 0),
            Mask::Output(y) => (2, y.address()),
        };
        let (c, stats) = (shape.map.channels, stats.address());
        let chunks = Chunks::summing::<T, D>(&self.driver, shape);
        let partial = self.scratch(chunks.bytes(shape));
        let sums = NormGradientSums {
            z: z.address(),
            stats,
            y,
            dy: dy.address(),
            partial,
            groups,
            channels,
            chunk: chunks.rows as i32,
            masked,
        };
        self.launch(chunks.grid, sums);
        let finish = NormGradientFinish {
            partial,
            stats,
            d_weight: gradients.part(at.weight, c),
            d_bias: gradients.part(at.bias, c),
            groups,
            channels,
            chunks: chunks.grid[0] as i32,
            constant: i32::from(shape.statistics != Statistics::Batch),
        };
        self.launch([c.div_ceil(COLUMNS), 1, 1], finish);
        if let Statistics::Image { groups } = shape.statistics {
            let (images, width) = (shape.groups.count() as i32, (c / groups) as i32);
            let (pixels, chunks) = (shape.map.pixels as i32, chunks.grid[0] as i32);
            let terms = GroupNormGradient { partial, stats, images, pixels, channels, width, chunks };
            self.launch([groups, shape.map.n, 1], terms);
        }
    }

    /// Gradient of what was normalised.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    pub(super) fn norm_gradient(
        &mut self,
        shape: &NormShape,
        z: Option<&DeviceView<T>>,
        stats: &Memory<D>,
        recompute_mask: bool,
        dy: Option<&DeviceView<T>>,
        dz: &mut DeviceView<T>,
        accumulate: bool,
    ) {
        let (groups, channels) = self.norm(shape);
        let chunks = Chunks::passing::<T, D>(&self.driver, shape);
        let dz = dz.address();
        let apply = NormGradientApply {
            z: z.map_or(0, DeviceView::address),
            stats: stats.address(),
            dy: dy.map_or(dz, DeviceView::address),
            dz,
            groups,
            channels,
            chunk: chunks.rows as i32,
            masked: i32::from(recompute_mask),
            accumulate: i32::from(accumulate),
        };
        self.launch(chunks.grid, apply);
    }

    /// Statistics of every image's groups of channels.
    pub(super) fn image_stats(
        &mut self,
        shape: &NormShape,
        z: &DeviceView<T>,
        params: &DeviceView<f32>,
        at: NormOffsets,
        stats: &mut Memory<D>,
    ) {
        let Statistics::Image { groups: channel_groups } = shape.statistics else {
            unreachable!("the plan asks for statistics of images where it has them");
        };
        let (groups, channels) = self.norm(shape);
        let (c, z) = (shape.map.channels, z.address());
        let chunks = Chunks::summing::<T, D>(&self.driver, shape);
        let partial = self.scratch(chunks.bytes(shape));
        self.launch(chunks.grid, NormSums { z, partial, groups, channels, chunk: chunks.rows as i32 });
        let finish = GroupNormFinish {
            z,
            partial,
            weight: params.part(at.weight, c),
            bias: params.part(at.bias, c),
            stats: stats.address(),
            images: shape.groups.count() as i32,
            pixels: shape.map.pixels as i32,
            channels,
            width: (c / channel_groups) as i32,
            chunks: chunks.grid[0] as i32,
            eps: shape.eps,
        };
        self.launch([channel_groups, shape.map.n, 1], finish);
    }
}

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

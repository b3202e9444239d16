//! [`Kernels`] on a device.

use std::marker::PhantomData;
use std::sync::Arc;

use super::arguments::*;
use super::conv::Weights;
use super::driver::{Driver, THREADS, flat, launch};
use super::memory::{DeviceView, Memory, Value};
use super::norm::Chunks;
use super::passes::Passes;
use crate::Result;
use crate::kernels::conv::ConvShape;
use crate::kernels::{
    ConvInput, Kernels, LinearShape, MapShape, Mask, Need, NormOffsets, NormShape, Offsets, Pass, PoolShape, Residual,
};

/// The steps of a plan on a device, maps stored as `T`.
///
/// Sums have a fixed order; the same plan on the same device gives the same bits again.
pub struct CudaKernels<T: Value, D: Driver> {
    /// Before the driver, which it must not outlive.
    passes: Passes<D>,
    pub(super) driver: Arc<D>,
    pub(super) needs: Needs,
    /// Sums of the chunks of one normalisation; splits and library layout of one weight gradient; padded images.
    pub(super) scratch: Option<Memory<D>>,
    pub(super) weights: Weights<D>,
    maps: PhantomData<T>,
}

/// What all announced steps need, in bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Needs {
    pub scratch: usize,
    pub weights: usize,
}

impl<T: Value, D: Driver> CudaKernels<T, D> {
    /// Kernels for one plan.
    pub fn new(driver: &Arc<D>) -> CudaKernels<T, D> {
        CudaKernels {
            passes: Passes::default(),
            driver: driver.clone(),
            needs: Needs::default(),
            scratch: None,
            weights: Weights::default(),
            maps: PhantomData,
        }
    }

    pub(super) fn launch<A: Arguments>(&self, grid: [usize; 3], arguments: A) {
        launch::<D, T, A>(&self.driver, grid, arguments);
    }

    /// Address of the scratch, of which the caller uses `bytes`.
    pub(super) fn scratch(&self, bytes: usize) -> u64 {
        let scratch = self.scratch.as_ref().expect("the plan has allocated the workspace");
        assert!(bytes <= scratch.bytes(), "a step announced less scratch than the {bytes} bytes it uses");
        scratch.address()
    }

    fn flat(&self, len: usize) -> [usize; 3] {
        flat::<D, T>(&self.driver, len)
    }

    /// Grid of a pooling kernel over `len` values of a map with `channels`.
    fn by_channels(&self, len: usize, channels: usize) -> [usize; 3] {
        [(len / width::<T>(channels)).div_ceil(THREADS).min(16 * self.driver.multiprocessors()), 1, 1]
    }

    fn norm(&self, shape: &NormShape) -> (Groups, i32) {
        (Groups::new(shape.groups, shape.map.n, shape.map.pixels), shape.map.channels as i32)
    }
}

/// Values a thread moves at a time where each row has `channels`.
pub(super) fn width<T: Value>(channels: usize) -> usize {
    let wide = super::driver::ACCESS / T::BYTES;
    if channels.is_multiple_of(wide) { wide } else { 1 }
}

fn same_len<T: Value, U: Value>(a: &DeviceView<T>, b: &DeviceView<U>) -> usize {
    assert_eq!(a.len(), b.len(), "a step's maps have one length");
    a.len()
}

/// Side of a tile of a matrix product; `TILE` in `product.cu`.
pub(super) const TILE: usize = 64;
/// Columns of a block of `column_sums`, and channels of one that finishes sums.
pub(super) const COLUMNS: usize = 32;

impl<T: Value, D: Driver> Kernels for CudaKernels<T, D> {
    type Buffer = Memory<D>;
    type View = DeviceView<f32>;
    type Map = Memory<D>;
    type MapView = DeviceView<T>;
    type Bytes = Memory<D>;

    const MAP_VALUE_BYTES: usize = T::BYTES;
    /// cuDNN reads its input as it is.
    const FUSES_INPUT_NORM: bool = false;

    fn buffer(&self, len: usize) -> Result<Memory<D>> {
        Memory::zeroed(&self.driver, len.saturating_mul(size_of::<f32>()))
    }

    fn map(&self, len: usize) -> Result<Memory<D>> {
        Memory::zeroed(&self.driver, len.saturating_mul(T::BYTES))
    }

    fn bytes(&self, len: usize) -> Result<Memory<D>> {
        Memory::zeroed(&self.driver, len)
    }

    fn view(buffer: &Memory<D>, len: usize) -> &DeviceView<f32> {
        buffer.view(len)
    }

    fn view_mut(buffer: &mut Memory<D>, len: usize) -> &mut DeviceView<f32> {
        buffer.view_mut(len)
    }

    fn len(view: &DeviceView<f32>) -> usize {
        view.len()
    }

    fn map_view(map: &Memory<D>, len: usize) -> &DeviceView<T> {
        map.view(len)
    }

    fn map_view_mut(map: &mut Memory<D>, len: usize) -> &mut DeviceView<T> {
        map.view_mut(len)
    }

    fn describe(&self) -> String {
        "cuda".into()
    }

    fn expect(&mut self, need: &Need, backward: bool) {
        match need {
            Need::Conv(shape) => {
                self.passes.expect(shape.y_len() * T::BYTES);
                self.expect_conv(shape, backward);
            }
            Need::Norm(shape) => {
                let bytes = Chunks::most_bytes::<T, D>(&self.driver, shape);
                self.needs.scratch = self.needs.scratch.max(bytes);
            }
            Need::Linear(_) | Need::Resize(_) | Need::Concat | Need::Shared(_) | Need::Given => {}
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.needs.scratch + self.needs.weights
    }

    fn allocate_workspace(&mut self) -> Result<()> {
        self.scratch = Some(Memory::zeroed(&self.driver, self.needs.scratch)?);
        self.weights = Weights::allocate(&self.driver, self.needs.weights)?;
        Ok(())
    }

    fn begin_pass(&mut self, pass: Pass, n: usize, views: &mut dyn Iterator<Item = (usize, &DeviceView<f32>)>) -> bool {
        let mut key = vec![u64::from(pass == Pass::Backward), n as u64];
        for (role, view) in views {
            key.extend([role as u64, view.address(), view.len() as u64]);
        }
        self.passes.begin(&self.driver, key)
    }

    fn end_pass(&mut self) -> bool {
        self.passes.end(&self.driver)
    }

    fn load(&mut self, from: &DeviceView<f32>, to: &mut DeviceView<T>, accumulate: bool) {
        let len = same_len(from, to);
        let (from, to, accumulate) = (from.address(), to.address(), i32::from(accumulate));
        self.launch(self.flat(len), Load { from, to, len: len as u64, accumulate });
    }

    fn store(&mut self, from: &DeviceView<T>, to: &mut DeviceView<f32>) {
        let len = same_len(from, to);
        self.launch(self.flat(len), Store { from: from.address(), to: to.address(), len: len as u64 });
    }

    fn copy(&mut self, from: &DeviceView<T>, to: &mut DeviceView<T>) {
        same_len(from, to);
        self.driver.copy(from.address(), to.address(), from.bytes());
    }

    fn add_assign(&mut self, from: &DeviceView<T>, to: &mut DeviceView<T>) {
        self.add(None, from, false, to);
    }

    fn zero(&mut self, view: &mut DeviceView<f32>, offset: usize, len: usize) {
        self.driver.clear(view.part(offset, len), len * size_of::<f32>());
    }

    fn conv_forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &DeviceView<f32>,
        at: Offsets,
        _sums: bool,
        relu: bool,
        y: &mut DeviceView<T>,
    ) {
        self.forward(shape, input, params, at, y);
        if relu {
            self.relu(None, y);
        }
    }

    fn conv_backward_params(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        dy: &DeviceView<T>,
        at: Offsets,
        gradients: &mut DeviceView<f32>,
    ) {
        self.weight_gradient(shape, input, dy, at.weight, gradients);
        if let Some(bias) = at.bias {
            self.column_sums(dy, gradients.part(bias, shape.c_out), shape.c_out);
        }
    }

    fn conv_backward_data(
        &mut self,
        shape: &ConvShape,
        dy: &DeviceView<T>,
        params: &DeviceView<f32>,
        at: Offsets,
        dx: &mut DeviceView<T>,
        accumulate: bool,
    ) {
        self.data_gradient(shape, dy, params, at.weight, dx, accumulate);
    }

    fn norm_stats_len(shape: &NormShape) -> usize {
        super::norm::FIELDS * shape.groups.count() * shape.map.channels
    }

    fn norm_batch_stats(
        &mut self,
        shape: &NormShape,
        z: &DeviceView<T>,
        _summed: bool,
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

    fn norm_running_stats(
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

    fn norm_apply(
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

    fn norm_backward_reduce(
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
        };
        self.launch([c.div_ceil(COLUMNS), 1, 1], finish);
    }

    fn norm_backward_apply(
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
        let z = z.expect("only running statistics, whose gradient is not supported, do without it");
        let apply = NormGradientApply {
            z: z.address(),
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

    fn relu(&mut self, x: Option<&DeviceView<T>>, y: &mut DeviceView<T>) {
        let (y, len) = (y.address(), y.len());
        let b = x.map_or(y, DeviceView::address);
        self.launch(self.flat(len), Add { a: 0, b, y, len: len as u64, relu: 1 });
    }

    fn relu_mask(&mut self, y: &DeviceView<T>, dy: &mut DeviceView<T>) {
        let len = same_len(y, dy);
        self.launch(self.flat(len), ReluMask { y: y.address(), dy: dy.address(), len: len as u64 });
    }

    fn add(&mut self, a: Option<&DeviceView<T>>, b: &DeviceView<T>, relu: bool, y: &mut DeviceView<T>) {
        let len = same_len(b, y);
        let y = y.address();
        let a = a.map_or(y, DeviceView::address);
        self.launch(self.flat(len), Add { a, b: b.address(), y, len: len as u64, relu: i32::from(relu) });
    }

    fn max_pool(&mut self, shape: &PoolShape, x: &DeviceView<T>, y: &mut DeviceView<T>, index: Option<&mut Memory<D>>) {
        let index = index.map_or(0, |index| {
            assert!(y.len() <= index.bytes(), "a byte for every value");
            index.address()
        });
        let grid = self.by_channels(y.len(), shape.channels);
        self.launch(grid, MaxPool { x: x.address(), y: y.address(), index, sizes: pool_sizes(shape) });
    }

    fn max_pool_backward(
        &mut self,
        shape: &PoolShape,
        dy: &DeviceView<T>,
        index: &Memory<D>,
        dx: &mut DeviceView<T>,
        accumulate: bool,
    ) {
        let gradient = MaxPoolGradient {
            dy: dy.address(),
            index: index.address(),
            dx: dx.address(),
            sizes: pool_sizes(shape),
            accumulate: i32::from(accumulate),
        };
        self.launch(self.by_channels(dx.len(), shape.channels), gradient);
    }

    fn mean_pool(&mut self, shape: &MapShape, x: &DeviceView<T>, y: &mut DeviceView<T>) {
        let (n, pixels, channels) = (shape.n as i32, shape.pixels as i32, shape.channels as i32);
        let grid = self.by_channels(y.len(), shape.channels);
        self.launch(grid, MeanPool { x: x.address(), y: y.address(), n, pixels, channels });
    }

    fn mean_pool_backward(&mut self, shape: &MapShape, dy: &DeviceView<T>, dx: &mut DeviceView<T>, accumulate: bool) {
        let gradient = MeanPoolGradient {
            dy: dy.address(),
            dx: dx.address(),
            n: shape.n as i32,
            pixels: shape.pixels as i32,
            channels: shape.channels as i32,
            accumulate: i32::from(accumulate),
        };
        self.launch(self.by_channels(dx.len(), shape.channels), gradient);
    }

    fn linear(
        &mut self,
        shape: &LinearShape,
        x: &DeviceView<T>,
        params: &DeviceView<f32>,
        at: Offsets,
        relu: bool,
        y: &mut DeviceView<T>,
    ) {
        let product = Linear {
            x: x.address(),
            weight: params.part(at.weight, shape.inputs * shape.outputs),
            bias: at.bias.map_or(0, |bias| params.part(bias, shape.outputs)),
            y: y.address(),
            n: shape.n as i32,
            inputs: shape.inputs as i32,
            outputs: shape.outputs as i32,
            relu: i32::from(relu),
        };
        self.launch([shape.n.div_ceil(TILE), shape.outputs.div_ceil(TILE), 1], product);
    }

    fn linear_backward_params(
        &mut self,
        shape: &LinearShape,
        x: &DeviceView<T>,
        dy: &DeviceView<T>,
        at: Offsets,
        gradients: &mut DeviceView<f32>,
    ) {
        let product = LinearWeights {
            x: x.address(),
            dy: dy.address(),
            d_weight: gradients.part(at.weight, shape.inputs * shape.outputs),
            n: shape.n as i32,
            inputs: shape.inputs as i32,
            outputs: shape.outputs as i32,
        };
        self.launch([shape.outputs.div_ceil(TILE), shape.inputs.div_ceil(TILE), 1], product);
        if let Some(bias) = at.bias {
            self.column_sums(dy, gradients.part(bias, shape.outputs), shape.outputs);
        }
    }

    fn linear_backward_data(
        &mut self,
        shape: &LinearShape,
        dy: &DeviceView<T>,
        params: &DeviceView<f32>,
        at: Offsets,
        dx: &mut DeviceView<T>,
        accumulate: bool,
    ) {
        let product = LinearData {
            dy: dy.address(),
            weight: params.part(at.weight, shape.inputs * shape.outputs),
            dx: dx.address(),
            n: shape.n as i32,
            inputs: shape.inputs as i32,
            outputs: shape.outputs as i32,
            accumulate: i32::from(accumulate),
        };
        self.launch([shape.n.div_ceil(TILE), shape.inputs.div_ceil(TILE), 1], product);
    }
}

impl<T: Value, D: Driver> CudaKernels<T, D> {
    fn column_sums(&self, from: &DeviceView<T>, sums: u64, columns: usize) {
        let rows = (from.len() / columns) as i32;
        let grid = [columns.div_ceil(COLUMNS), 1, 1];
        self.launch(grid, ColumnSums { from: from.address(), sums, rows, columns: columns as i32 });
    }
}

fn pool_sizes(shape: &PoolShape) -> PoolSizes {
    PoolSizes {
        n: shape.n as i32,
        input: shape.input.map(|v| v as i32),
        output: shape.output.map(|v| v as i32),
        channels: shape.channels as i32,
        kernel: shape.kernel as i32,
        stride: shape.stride as i32,
        padding: shape.padding as i32,
    }
}

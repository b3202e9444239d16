//! [`Kernels`] on a device.

use std::marker::PhantomData;
use std::sync::Arc;

use moco_models::Interpolation;

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
    ResizeShape, SliceShape,
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
        self.driver.describe()
    }

    fn supports(&self, _need: &Need, _backward: bool) -> bool {
        true
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

    fn load_part(&mut self, from: &DeviceView<f32>, offset: usize, len: usize, to: &mut DeviceView<T>) {
        assert_eq!(len, to.len(), "a value for each of the map");
        let (from, to) = (from.part(offset, len), to.address());
        self.launch(self.flat(len), Load { from, to, len: len as u64, accumulate: 0 });
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
        self.forward(shape, input, params, at, relu, y);
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
        self.batch_stats(shape, z, params, at, buffers, stats);
    }

    fn norm_image_stats(
        &mut self,
        shape: &NormShape,
        z: &DeviceView<T>,
        _summed: bool,
        params: &DeviceView<f32>,
        at: NormOffsets,
        stats: &mut Memory<D>,
    ) {
        self.image_stats(shape, z, params, at, stats);
    }

    fn norm_running_stats(
        &mut self,
        shape: &NormShape,
        params: &DeviceView<f32>,
        at: NormOffsets,
        buffers: &DeviceView<f32>,
        stats: &mut Memory<D>,
    ) {
        self.running_stats(shape, params, at, buffers, stats);
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
        self.normalise(shape, z, stats, residual, relu, y);
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
        self.norm_gradient_sums(shape, z, stats, mask, dy, at, gradients);
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
        self.norm_gradient(shape, z, stats, recompute_mask, dy, dz, accumulate);
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

    fn resize(&mut self, shape: &ResizeShape, x: &DeviceView<T>, y: &mut DeviceView<T>) {
        let (grid, sizes) = (self.by_channels(y.len(), shape.channels), resize_sizes(shape));
        self.launch(grid, Resize { x: x.address(), y: y.address(), sizes });
    }

    fn resize_backward(&mut self, shape: &ResizeShape, dy: &DeviceView<T>, dx: &mut DeviceView<T>, accumulate: bool) {
        let (grid, sizes) = (self.by_channels(dx.len(), shape.channels), resize_sizes(shape));
        let (dy, dx, accumulate) = (dy.address(), dx.address(), i32::from(accumulate));
        self.launch(grid, ResizeGradient { dy, dx, sizes, accumulate });
    }

    fn insert_channels(&mut self, shape: &SliceShape, x: &DeviceView<T>, y: &mut DeviceView<T>) {
        self.move_channels(shape, x, y, false, false);
    }

    fn take_channels(&mut self, shape: &SliceShape, dy: &DeviceView<T>, dx: &mut DeviceView<T>, accumulate: bool) {
        self.move_channels(shape, dy, dx, true, accumulate);
    }

    fn add_to_gradients(&mut self, from: &DeviceView<f32>, len: usize, gradients: &mut DeviceView<f32>, offset: usize) {
        let (from, to) = (from.part(0, len), gradients.part(offset, len));
        self.launch(flat::<D, f32>(&self.driver, len), AddFloats { from, to, len: len as u64 });
    }
}

impl<T: Value, D: Driver> CudaKernels<T, D> {
    fn move_channels(
        &self,
        shape: &SliceShape,
        from: &DeviceView<T>,
        to: &mut DeviceView<T>,
        take: bool,
        accumulate: bool,
    ) {
        let (slice, map) = if take { (to.len(), from.len()) } else { (from.len(), to.len()) };
        let SliceShape { rows, channels, first, of } = *shape;
        assert!(slice == rows * channels && map == rows * of && first + channels <= of, "the sizes of {shape:?}");
        let moved = MoveChannels {
            from: from.address(),
            to: to.address(),
            rows: rows as u64,
            channels: channels as i32,
            first: first as i32,
            of: of as i32,
            take: i32::from(take),
            accumulate: i32::from(accumulate),
        };
        self.launch(self.by_channels(slice, channels), moved);
    }

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

fn resize_sizes(shape: &ResizeShape) -> ResizeSizes {
    ResizeSizes {
        n: shape.n as i32,
        input: shape.input.map(|v| v as i32),
        output: shape.output.map(|v| v as i32),
        channels: shape.channels as i32,
        bilinear: i32::from(shape.interpolation == Interpolation::Bilinear),
    }
}

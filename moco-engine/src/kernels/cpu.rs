//! [`Kernels`] on the CPU: all threads of rayon's current pool, the same result whatever their number.

use rayon::prelude::*;

use super::conv::{self, ConvShape, Packed, Pass};
use super::memory::zeroed;
use super::norm::{Added, Masked};
use super::resize::Tables;
use super::*;

/// Values per piece of an elementwise step.
const PIECE: usize = 1 << 14;

/// The CPU, all cores through rayon's current thread pool. Feature maps and their gradients are stored as `T` and
/// multiplied in its precision; sums, statistics, parameters and their gradients are f32.
pub struct CpuKernels<T: Element = f32> {
    needs: Needs,
    /// Weights of the convolution that runs, laid out for it: they change with every step, and here they are still in
    /// cache.
    packed: Packed<T>,
    /// Sums of the blocks of one normalisation.
    block_sums: Vec<f32>,
    /// Sum and sum of squares of each image of the last convolution that was asked for them.
    image_sums: Vec<f64>,
    /// Per-channel sums of one group.
    merge: Vec<f64>,
    /// Group of each image of the batch that the last convolution read.
    image_group: Vec<u32>,
    /// What the last resize read.
    tables: Tables,
}

/// Largest scratch of all announced steps, in values.
#[derive(Clone, Copy, Default)]
struct Needs {
    packed: usize,
    block_sums: usize,
    image_sums: usize,
    merge: usize,
    images: usize,
    /// Rows and columns of the inputs and outputs of resizes.
    sides: [[usize; 2]; 2],
}

impl<T: Element> Default for CpuKernels<T> {
    fn default() -> CpuKernels<T> {
        CpuKernels {
            needs: Needs::default(),
            packed: Packed::with_capacity(0),
            block_sums: vec![],
            image_sums: vec![],
            merge: vec![],
            image_group: vec![],
            tables: Tables::default(),
        }
    }
}

impl<T: Element> Kernels for CpuKernels<T> {
    type Buffer = Vec<f32>;
    type View = [f32];
    type Map = Vec<T>;
    type MapView = [T];
    type Bytes = Vec<u8>;

    const MAP_VALUE_BYTES: usize = size_of::<T>();

    fn buffer(&self, len: usize) -> Result<Vec<f32>> {
        zeroed(len)
    }

    fn map(&self, len: usize) -> Result<Vec<T>> {
        zeroed(len)
    }

    fn bytes(&self, len: usize) -> Result<Vec<u8>> {
        zeroed(len)
    }

    fn view(buffer: &Vec<f32>, len: usize) -> &[f32] {
        &buffer[..len]
    }

    fn view_mut(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
        &mut buffer[..len]
    }

    fn len(view: &[f32]) -> usize {
        view.len()
    }

    fn map_view(map: &Vec<T>, len: usize) -> &[T] {
        &map[..len]
    }

    fn map_view_mut(map: &mut Vec<T>, len: usize) -> &mut [T] {
        &mut map[..len]
    }

    fn enter<R: Send>(run: impl FnOnce() -> R + Send) -> R {
        // Every kernel called from outside the pool would wake it up again.
        if rayon::current_thread_index().is_some() { run() } else { rayon::scope(|_| run()) }
    }

    fn describe(&self) -> String {
        "cpu".into()
    }

    fn supports(&self, _need: &Need, _backward: bool) -> bool {
        true
    }

    fn expect(&mut self, need: &Need, backward: bool) {
        let needs = &mut self.needs;
        match need {
            Need::Conv(shape) => {
                needs.packed = needs.packed.max(Packed::<T>::needed_len(shape, Pass::Forward));
                if backward {
                    needs.packed = needs.packed.max(Packed::<T>::needed_len(shape, Pass::BackwardData));
                }
                needs.image_sums = needs.image_sums.max(2 * shape.n * shape.c_out);
                needs.images = needs.images.max(shape.n);
            }
            Need::Norm(shape) => {
                needs.block_sums = needs.block_sums.max(norm::sums_len(shape));
                needs.merge = needs.merge.max(norm::merge_len(shape));
            }
            Need::Resize(shape) => {
                for (needed, sides) in needs.sides.iter_mut().zip([shape.input, shape.output]) {
                    needed.iter_mut().zip(sides).for_each(|(needed, side)| *needed = side.max(*needed));
                }
            }
            Need::Linear(_) | Need::Concat | Need::Shared(_) | Need::Given => {}
        }
    }

    fn workspace_bytes(&self) -> usize {
        let n = &self.needs;
        let tables = resize::tables_bytes(n.sides[0], n.sides[1]);
        4 * (n.packed + n.block_sums) + 8 * (n.image_sums + n.merge) + 4 * n.images + tables
    }

    fn allocate_workspace(&mut self) -> Result<()> {
        self.packed = Packed::with_capacity(self.needs.packed);
        self.block_sums = zeroed(self.needs.block_sums)?;
        self.image_sums = zeroed(self.needs.image_sums)?;
        self.merge = zeroed(self.needs.merge)?;
        self.image_group = zeroed(self.needs.images)?;
        self.tables = Tables::with_capacity(self.needs.sides[0], self.needs.sides[1]);
        Ok(())
    }

    fn load(&mut self, from: &[f32], to: &mut [T], accumulate: bool) {
        to.par_chunks_mut(PIECE)
            .zip(from.par_chunks(PIECE))
            .for_each(|(to, from)| if accumulate { add_values(from, to) } else { narrow_values(from, to) });
    }

    fn load_part(&mut self, from: &[f32], offset: usize, len: usize, to: &mut [T]) {
        self.load(&from[offset..][..len], to, false);
    }

    fn store(&mut self, from: &[T], to: &mut [f32]) {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| widen_values(from, to));
    }

    fn copy(&mut self, from: &[T], to: &mut [T]) {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
    }

    fn add_assign(&mut self, from: &[T], to: &mut [T]) {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| add_to(from, to));
    }

    fn zero(&mut self, view: &mut [f32], offset: usize, len: usize) {
        view[offset..][..len].fill(0.0);
    }

    fn conv_forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &[f32],
        at: Offsets,
        sums: bool,
        relu: bool,
        y: &mut [T],
    ) {
        self.packed.repack(shape, Pass::Forward, &params[at.weight..][..shape.weight_len()]);
        let norm = input_norm(&input, shape, &mut self.image_group);
        let epilogue = conv::Epilogue {
            stats: sums.then(|| &mut self.image_sums[..2 * shape.n * shape.c_out]),
            bias: at.bias.map(|bias| &params[bias..][..shape.c_out]),
            relu,
            ..Default::default()
        };
        conv::forward(shape, input.x, &self.packed, y, norm.as_ref(), epilogue);
    }

    fn conv_backward_params(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        dy: &[T],
        at: Offsets,
        gradients: &mut [f32],
    ) {
        let norm = input_norm(&input, shape, &mut self.image_group);
        let weight = &mut gradients[at.weight..][..shape.weight_len()];
        conv::backward_weights(shape, input.x, dy, weight, norm.as_ref());
        if let Some(bias) = at.bias {
            linear::column_sums(dy, &mut gradients[bias..][..shape.c_out]);
        }
    }

    fn conv_backward_data(
        &mut self,
        shape: &ConvShape,
        dy: &[T],
        params: &[f32],
        at: Offsets,
        dx: &mut [T],
        accumulate: bool,
    ) {
        self.packed.repack(shape, Pass::BackwardData, &params[at.weight..][..shape.weight_len()]);
        conv::backward_data(shape, dy, &self.packed, dx, accumulate);
    }

    fn norm_stats_len(shape: &NormShape) -> usize {
        norm::stats_len(shape)
    }

    fn norm_batch_stats(
        &mut self,
        shape: &NormShape,
        z: &[T],
        summed: bool,
        params: &[f32],
        at: NormOffsets,
        buffers: &mut [f32],
        stats: &mut Vec<f32>,
    ) {
        if summed {
            let sums = &self.image_sums[..2 * shape.map.n * shape.map.channels];
            norm::batch_stats_from_images(shape, sums, params, at, buffers, stats, &mut self.merge);
        } else {
            norm::batch_stats(shape, z, params, at, buffers, stats, &mut self.block_sums, &mut self.merge);
        }
    }

    fn norm_image_stats(
        &mut self,
        shape: &NormShape,
        z: &[T],
        summed: bool,
        params: &[f32],
        at: NormOffsets,
        stats: &mut Vec<f32>,
    ) {
        let Statistics::Image { groups } = shape.statistics else {
            unreachable!("the plan asks for the statistics that a normalisation has")
        };
        if summed {
            let sums = &self.image_sums[..2 * shape.map.n * shape.map.channels];
            group_norm::stats_from_images(shape, groups, sums, params, at, stats);
        } else {
            group_norm::stats(shape, groups, z, params, at, stats, &mut self.block_sums);
        }
    }

    fn norm_running_stats(
        &mut self,
        shape: &NormShape,
        params: &[f32],
        at: NormOffsets,
        buffers: &[f32],
        stats: &mut Vec<f32>,
    ) {
        norm::running_stats(shape, params, at, buffers, stats);
    }

    fn norm_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&[T]>,
        stats: &Vec<f32>,
        residual: Residual<'_, Self>,
        relu: bool,
        y: &mut [T],
    ) {
        let added = match residual {
            Residual::None => Added::Nothing,
            Residual::Map(map) => Added::Map(map),
            Residual::Norm { z, stats } => Added::Norm { z, stats },
        };
        norm::apply(shape, z, stats, added, relu, y);
    }

    fn norm_backward_reduce(
        &mut self,
        shape: &NormShape,
        z: &[T],
        stats: &mut Vec<f32>,
        mask: Mask<'_, Self>,
        dy: &mut [T],
        at: NormOffsets,
        gradients: &mut [f32],
    ) {
        let masked = match mask {
            Mask::None => Masked::No,
            Mask::Recompute => Masked::Recompute,
            Mask::Output(y) => Masked::Output(y),
        };
        norm::backward_reduce(shape, z, stats, masked, dy, at, gradients, &mut self.block_sums, &mut self.merge);
    }

    fn norm_backward_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&[T]>,
        stats: &Vec<f32>,
        recompute_mask: bool,
        dy: Option<&[T]>,
        dz: &mut [T],
        accumulate: bool,
    ) {
        norm::backward_apply(shape, z, stats, recompute_mask, dy, dz, accumulate);
    }

    fn relu(&mut self, x: Option<&[T]>, y: &mut [T]) {
        y.par_chunks_mut(PIECE).enumerate().for_each(|(i, y)| match x {
            None => y.iter_mut().for_each(|y| *y = T::narrow(rows::clamp(y.widen()))),
            Some(x) => y.iter_mut().zip(&x[i * PIECE..]).for_each(|(y, x)| *y = T::narrow(rows::clamp(x.widen()))),
        });
    }

    fn relu_mask(&mut self, y: &[T], dy: &mut [T]) {
        dy.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(dy, y)| {
            for (dy, y) in dy.iter_mut().zip(y) {
                *dy = if y.widen() > 0.0 { *dy } else { T::zeroed() };
            }
        });
    }

    fn add(&mut self, a: Option<&[T]>, b: &[T], relu: bool, y: &mut [T]) {
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        y.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).enumerate().for_each(|(i, (y, b))| match a {
            None => add_in_place(b, floor, y),
            Some(a) => add_both(&a[i * PIECE..][..b.len()], b, floor, y),
        });
    }

    fn max_pool(&mut self, shape: &PoolShape, x: &[T], y: &mut [T], index: Option<&mut Vec<u8>>) {
        pool::max_pool(shape, x, y, index.map(Vec::as_mut_slice));
    }

    fn max_pool_backward(&mut self, shape: &PoolShape, dy: &[T], index: &Vec<u8>, dx: &mut [T], accumulate: bool) {
        pool::max_pool_backward(shape, dy, index, dx, accumulate);
    }

    fn mean_pool(&mut self, shape: &MapShape, x: &[T], y: &mut [T]) {
        pool::mean_pool(shape, x, y);
    }

    fn mean_pool_backward(&mut self, shape: &MapShape, dy: &[T], dx: &mut [T], accumulate: bool) {
        pool::mean_pool_backward(shape, dy, dx, accumulate);
    }

    fn linear(&mut self, shape: &LinearShape, x: &[T], params: &[f32], at: Offsets, relu: bool, y: &mut [T]) {
        linear::forward(shape, x, params, at, relu, y);
    }

    fn linear_backward_params(&mut self, shape: &LinearShape, x: &[T], dy: &[T], at: Offsets, gradients: &mut [f32]) {
        linear::backward_params(shape, x, dy, at, gradients);
    }

    fn linear_backward_data(
        &mut self,
        shape: &LinearShape,
        dy: &[T],
        params: &[f32],
        at: Offsets,
        dx: &mut [T],
        accumulate: bool,
    ) {
        linear::backward_data(shape, dy, params, at, dx, accumulate);
    }

    fn resize(&mut self, shape: &ResizeShape, x: &[T], y: &mut [T]) {
        resize::forward(shape, &mut self.tables, x, y);
    }

    fn resize_backward(&mut self, shape: &ResizeShape, dy: &[T], dx: &mut [T], accumulate: bool) {
        resize::backward(shape, &mut self.tables, dy, dx, accumulate);
    }

    fn insert_channels(&mut self, shape: &SliceShape, x: &[T], y: &mut [T]) {
        slice::insert(shape, x, y);
    }

    fn take_channels(&mut self, shape: &SliceShape, dy: &[T], dx: &mut [T], accumulate: bool) {
        slice::take(shape, dy, dx, accumulate);
    }

    fn add_to_gradients(&mut self, from: &[f32], len: usize, gradients: &mut [f32], offset: usize) {
        gradients[offset..][..len]
            .par_chunks_mut(PIECE)
            .zip(from[..len].par_chunks(PIECE))
            .for_each(|(to, from)| add_values(from, to));
    }
}

fn input_norm<'a, T: Element>(
    input: &ConvInput<'a, CpuKernels<T>>,
    shape: &ConvShape,
    image_group: &'a mut [u32],
) -> Option<conv::InputNorm<'a>> {
    let norm = input.norm.as_ref()?;
    for (i, group) in image_group[..shape.n].iter_mut().enumerate() {
        *group = norm.shape.groups.group_of(i, shape.n) as u32;
    }
    let (scale, shift) = norm::scale_and_shift(norm.shape, norm.stats);
    Some(conv::InputNorm { scale, shift, group_of_image: &image_group[..shape.n], relu: norm.relu })
}

simd::multiversion! {
    fn add_to<T: Element>(from: &[T], to: &mut [T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::narrow(to.widen() + from.widen());
        }
    }
}

simd::multiversion! {
    fn add_values<T: Element>(from: &[f32], to: &mut [T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::narrow(to.widen() + from);
        }
    }
}

simd::multiversion! {
    fn narrow_values<T: Element>(from: &[f32], to: &mut [T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::narrow(*from);
        }
    }
}

simd::multiversion! {
    fn widen_values<T: Element>(from: &[T], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.widen();
        }
    }
}

simd::multiversion! {
    fn add_both<T: Element>(a: &[T], b: &[T], floor: f32, y: &mut [T]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = T::narrow(rows::at_least(a.widen() + b.widen(), floor));
        }
    }
}

simd::multiversion! {
    fn add_in_place<T: Element>(b: &[T], floor: f32, y: &mut [T]) {
        for (y, b) in y.iter_mut().zip(b) {
            *y = T::narrow(rows::at_least(y.widen() + b.widen(), floor));
        }
    }
}

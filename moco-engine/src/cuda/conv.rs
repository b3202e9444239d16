//! Convolutions: by the driver's library where it has an answer, else by the engine's own product kernels.
//!
//! Both read weights in the storage type, OHWI. A plan's weights are brought into that form as its forward pass reaches
//! them and stay for the backward pass.

use std::collections::HashMap;
use std::sync::Arc;

use super::arguments::*;
use super::driver::{Convolution, Driver, Pass, flat, launch};
use super::kernels::{CudaKernels, TILE};
use super::memory::{ALIGN, DeviceView, Memory, Value};
use crate::Result;
use crate::kernels::conv::ConvShape;
use crate::kernels::{ConvInput, Kernels, Offsets};

/// Tensor cores want channels in multiples of this.
const CHANNELS: usize = 8;
/// Output pixels that a split of a weight gradient should at least sum.
const SPLIT_PIXELS: usize = 1024;
/// Most bytes for the splits of a weight gradient.
const SPLIT_BYTES: usize = 64 << 20;

/// Weights as convolutions read them.
pub(super) struct Weights<D: Driver> {
    arena: Option<Memory<D>>,
    /// Place in the arena of the weight at an offset of the parameters.
    places: HashMap<usize, u64>,
    used: usize,
}

impl<D: Driver> Default for Weights<D> {
    fn default() -> Weights<D> {
        Weights { arena: None, places: HashMap::new(), used: 0 }
    }
}

impl<D: Driver> Weights<D> {
    pub(super) fn allocate(driver: &Arc<D>, bytes: usize) -> Result<Weights<D>> {
        Ok(Weights { arena: Some(Memory::zeroed(driver, bytes)?), ..Weights::default() })
    }

    /// Address of the weight at `offset`, whose `bytes` have been announced.
    fn place(&mut self, offset: usize, bytes: usize) -> u64 {
        let arena = self.arena.as_ref().expect("the plan has allocated the workspace");
        let used = &mut self.used;
        arena.address()
            + *self.places.entry(offset).or_insert_with(|| {
                let at = *used;
                *used += bytes.next_multiple_of(ALIGN);
                assert!(*used <= arena.bytes(), "every convolution has announced its weight");
                at as u64
            })
    }
}

/// Input channels with padding.
fn padded<T: Value>(shape: &ConvShape) -> usize {
    if T::BF16 && shape.groups == 1 { shape.c_in.next_multiple_of(CHANNELS) } else { shape.c_in }
}

fn weight_len(shape: &ConvShape, c_in: usize) -> usize {
    shape.c_out * shape.kernel * shape.kernel * c_in / shape.groups
}

impl<T: Value, D: Driver> CudaKernels<T, D> {
    pub(super) fn expect_conv(&mut self, shape: &ConvShape, backward: bool) {
        let c_in = padded::<T>(shape);
        let weight = weight_len(shape, c_in) * T::BYTES;
        self.needs.weights += weight.next_multiple_of(ALIGN);
        let mut scratch = if c_in == shape.c_in { 0 } else { images_bytes::<T>(shape, c_in) };
        if backward {
            let (splits, _) = self.splits(&ConvShape { c_in, ..*shape });
            // The library's gradient has the storage type, that of the own kernel is f32.
            scratch += weight.max(splits * weight_len(shape, c_in) * size_of::<f32>()) + ALIGN;
        }
        self.needs.scratch = self.needs.scratch.max(scratch);
    }

    pub(super) fn forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &DeviceView<f32>,
        at: Offsets,
        relu: bool,
        y: &mut DeviceView<T>,
    ) {
        let w = self.weights.place(at.weight, weight_len(shape, padded::<T>(shape)) * T::BYTES);
        self.bring(shape, padded::<T>(shape), params, at.weight, w);
        let (shape, x) = self.padded_input(shape, input);
        let job = Convolution { pass: Pass::Forward, shape, bf16: T::BF16, x, w, y: y.address(), accumulate: false };
        let bias = at.bias.map(|bias| params.part(bias, shape.c_out));
        let by_library = self.driver.convolve(&job);
        // The engine's own kernel adds the bias as it writes, but cuts nothing off.
        let added = if by_library || relu { None } else { bias };
        if !by_library {
            let pixels = shape.n * shape.out_h() * shape.out_w();
            let grid = [pixels.div_ceil(TILE), (shape.c_out / shape.groups).div_ceil(TILE), shape.groups];
            self.launch(grid, Conv { x, weight: w, bias: added.unwrap_or(0), y: job.y, sizes: sizes(&shape) });
        }
        match bias.filter(|_| added.is_none()) {
            Some(bias) => {
                let (rows, channels) = ((shape.y_len() / shape.c_out) as u64, shape.c_out as i32);
                let add = AddBias { y: job.y, bias, rows, channels, relu: i32::from(relu) };
                self.launch(flat::<D, T>(&self.driver, shape.y_len()), add);
            }
            None if relu => self.relu(None, y),
            None => {}
        }
    }

    pub(super) fn data_gradient(
        &mut self,
        shape: &ConvShape,
        dy: &DeviceView<T>,
        params: &DeviceView<f32>,
        weight: usize,
        dx: &mut DeviceView<T>,
        accumulate: bool,
    ) {
        let c_in = padded::<T>(shape);
        let w = if c_in == shape.c_in {
            self.weights.place(weight, weight_len(shape, c_in) * T::BYTES)
        } else {
            // The gradient has no padding, so neither may the weight: brought in anew, for this call.
            let w = self.scratch(weight_len(shape, shape.c_in) * T::BYTES);
            self.bring(shape, shape.c_in, params, weight, w);
            w
        };
        let (y, x) = (dy.address(), dx.address());
        let job = Convolution { pass: Pass::Data, shape: *shape, bf16: T::BF16, x, w, y, accumulate };
        if self.driver.convolve(&job) {
            return;
        }
        let pixels = shape.n * shape.h * shape.w;
        let grid = [pixels.div_ceil(TILE), (shape.c_in / shape.groups).div_ceil(TILE), shape.groups];
        let accumulate = i32::from(accumulate);
        self.launch(grid, ConvData { dy: y, weight: w, dx: x, sizes: sizes(shape), accumulate });
    }

    pub(super) fn weight_gradient(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        dy: &DeviceView<T>,
        weight: usize,
        gradients: &mut DeviceView<f32>,
    ) {
        let to = gradients.part(weight, shape.weight_len());
        let (c_in, narrow) = (padded::<T>(shape), shape.c_in);
        let images = if c_in == narrow { 0 } else { images_bytes::<T>(shape, c_in) };
        let (shape, x) = self.padded_input(shape, input);
        let y = dy.address();
        let len = weight_len(&shape, c_in);
        // Behind the padded images, which share the scratch.
        let from = self.scratch(images + len * T::BYTES) + images as u64;
        let out = WeightsOut {
            from,
            to,
            c_out: shape.c_out as i32,
            c_in: (narrow / shape.groups) as i32,
            taps: (shape.kernel * shape.kernel) as i32,
            padded: (c_in / shape.groups) as i32,
            splits: 1,
        };
        let grid = flat::<D, f32>(&self.driver, len);
        let job = Convolution { pass: Pass::Weights, shape, bf16: T::BF16, x, w: from, y, accumulate: false };
        if self.driver.convolve(&job) {
            self.launch(grid, out);
            return;
        }
        let (splits, each) = self.splits(&shape);
        self.scratch(images + splits * len * size_of::<f32>());
        let n = shape.kernel * shape.kernel * c_in / shape.groups;
        let tiles = [(shape.c_out / shape.groups).div_ceil(TILE), n.div_ceil(TILE), shape.groups * splits];
        let (splits, each) = (splits as i32, each as i32);
        self.launch(tiles, ConvWeights { x, dy: y, partial: from, sizes: sizes(&shape), splits, each });
        launch::<D, f32, _>(&self.driver, grid, WeightsOut { splits, ..out });
    }

    /// Splits of a weight gradient's sum over pixels, and pixels of each.
    fn splits(&self, shape: &ConvShape) -> (usize, usize) {
        let pixels = shape.n * shape.out_h() * shape.out_w();
        let n = shape.kernel * shape.kernel * shape.c_in / shape.groups;
        let tiles = (shape.c_out / shape.groups).div_ceil(TILE) * n.div_ceil(TILE) * shape.groups;
        let bytes = weight_len(shape, shape.c_in) * size_of::<f32>();
        // A smaller batch never has more splits, so what the largest one has announced suffices.
        let most = (8 * self.driver.multiprocessors() / tiles).min(SPLIT_BYTES / bytes).max(1);
        let splits = pixels.div_ceil(SPLIT_PIXELS).min(most);
        (splits, pixels.div_ceil(splits))
    }

    /// The input with its channels padded, in scratch, if it has to be; and the shape that fits.
    fn padded_input(&self, shape: &ConvShape, input: ConvInput<'_, Self>) -> (ConvShape, u64) {
        assert!(input.norm.is_none(), "these kernels do not normalise as they read, and say so");
        let (from, c_in) = (input.x.address(), padded::<T>(shape));
        if c_in == shape.c_in {
            return (*shape, from);
        }
        let (rows, to) = (shape.n * shape.h * shape.w, self.scratch(images_bytes::<T>(shape, c_in)));
        let pad = PadChannels { from, to, rows: rows as u64, channels: shape.c_in as i32, padded: c_in as i32 };
        self.launch(flat::<D, T>(&self.driver, rows * c_in), pad);
        (ConvShape { c_in, ..*shape }, to)
    }

    /// Brings a weight into the storage type, OHWI, its input channels padded to `c_in`.
    fn bring(&self, shape: &ConvShape, c_in: usize, params: &DeviceView<f32>, weight: usize, to: u64) {
        let bring = WeightsIn {
            from: params.part(weight, shape.weight_len()),
            to,
            c_out: shape.c_out as i32,
            c_in: (shape.c_in / shape.groups) as i32,
            taps: (shape.kernel * shape.kernel) as i32,
            padded: (c_in / shape.groups) as i32,
        };
        self.launch(flat::<D, f32>(&self.driver, weight_len(shape, c_in)), bring);
    }
}

/// Bytes of the padded input, rounded up so that what follows is aligned.
fn images_bytes<T: Value>(shape: &ConvShape, c_in: usize) -> usize {
    (shape.n * shape.h * shape.w * c_in * T::BYTES).next_multiple_of(ALIGN)
}

fn sizes(shape: &ConvShape) -> ConvSizes {
    let i = |v: usize| v as i32;
    ConvSizes {
        n: i(shape.n),
        input: [i(shape.h), i(shape.w), i(shape.c_in)],
        output: [i(shape.out_h()), i(shape.out_w()), i(shape.c_out)],
        kernel: i(shape.kernel),
        stride: i(shape.stride),
        padding: i(shape.padding),
        groups: i(shape.groups),
    }
}

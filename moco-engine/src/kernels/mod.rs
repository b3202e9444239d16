//! The steps a plan is made of, as a trait, and their implementation on the CPU.

pub mod conv;
mod cpu;
mod element;
pub mod gemm;
mod groups;
mod linear;
mod memory;
mod norm;
mod pool;
mod reference;
mod rows;
pub(crate) mod simd;

use crate::Result;
use conv::ConvShape;

pub use cpu::CpuKernels;
pub use element::Element;
pub use groups::{BnGroups, Group};
pub use reference::ReferenceKernels;

/// Everything a [`Plan`](crate::Plan) calls.
///
/// A plan owns one implementation, tells it every step it will ask for ([`Kernels::expect`]), lets it allocate its
/// scratch once, and then calls the steps in order.
///
/// There are two kinds of memory. A [`Kernels::Map`] holds a feature map or its gradient, NHWC, in whatever precision the
/// implementation stores them; it never leaves the plan. A [`Kernels::Buffer`] holds what keeps full precision: the
/// parameters, their gradients and the running statistics, flat, in which a step finds its tensors by offset; the images;
/// what taps give and receive. Where a step can work in place, the operand it would read is `None` and the output holds
/// it.
pub trait Kernels: Sized + Send + Sync {
    /// Memory of the device, in full precision.
    type Buffer: Send + Sync;
    /// A borrowed part of it; `[f32]` on the CPU.
    type View: ?Sized + Send + Sync;
    /// Memory of the device for feature maps, in the precision in which they are stored.
    type Map: Send + Sync;
    /// A borrowed part of it.
    type MapView: ?Sized + Send + Sync;
    /// Small integers, one byte each: where a pooling window found its maximum.
    type Bytes: Send + Sync;

    /// Bytes of a stored value of a map.
    const MAP_VALUE_BYTES: usize;
    /// Whether a convolution can normalise what it reads ([`ConvInput::norm`]). Where it cannot, plans write the
    /// normalised map out and no convolution is given one.
    const FUSES_INPUT_NORM: bool = true;

    /// Runs a whole pass; a place to enter a thread pool or to make a device current.
    fn enter<R: Send>(run: impl FnOnce() -> R + Send) -> R {
        run()
    }

    /// Memory for `len` values, all 0.
    ///
    /// # Errors
    /// If the device has not that much.
    fn buffer(&self, len: usize) -> Result<Self::Buffer>;
    /// Memory for feature maps of `len` values, all 0.
    ///
    /// # Errors
    /// If the device has not that much.
    fn map(&self, len: usize) -> Result<Self::Map>;
    /// Memory for `len` bytes.
    ///
    /// # Errors
    /// If the device has not that much.
    fn bytes(&self, len: usize) -> Result<Self::Bytes>;
    /// The first `len` values of a buffer.
    fn view(buffer: &Self::Buffer, len: usize) -> &Self::View;
    /// The first `len` values of a buffer, to be written.
    fn view_mut(buffer: &mut Self::Buffer, len: usize) -> &mut Self::View;
    /// Number of values in a view.
    fn len(view: &Self::View) -> usize;
    /// The first `len` values of a map.
    fn map_view(map: &Self::Map, len: usize) -> &Self::MapView;
    /// The first `len` values of a map, to be written.
    fn map_view_mut(map: &mut Self::Map, len: usize) -> &mut Self::MapView;

    /// Announces a step, at the plan's largest batch; `backward` tells whether its gradient will be asked for.
    fn expect(&mut self, need: &Need, backward: bool);
    /// Bytes of scratch for all announced steps.
    fn workspace_bytes(&self) -> usize;
    /// Allocates the scratch. No later call allocates.
    ///
    /// # Errors
    /// If the device has not that much.
    fn allocate_workspace(&mut self) -> Result<()>;

    /// Begins a pass over a plan's steps, all of whose operands are the plan's own memory and `views`, each with its role.
    /// `false` if the kernels have repeated an earlier pass like it, so that nothing is left to do; else
    /// [`Kernels::end_pass`] follows the steps.
    fn begin_pass(&mut self, pass: Pass, n: usize, views: &mut dyn Iterator<Item = (usize, &Self::View)>) -> bool {
        let _ = (pass, n, views);
        true
    }
    /// Ends a pass. `false` if it has not run and its steps have to be asked for once more.
    fn end_pass(&mut self) -> bool {
        true
    }

    /// Brings values into a map: `to = from`, or `to += from` if `accumulate`.
    fn load(&mut self, from: &Self::View, to: &mut Self::MapView, accumulate: bool);
    /// Brings a map out: `to = from`.
    fn store(&mut self, from: &Self::MapView, to: &mut Self::View);
    /// `to = from`.
    fn copy(&mut self, from: &Self::MapView, to: &mut Self::MapView);
    /// `to += from`.
    fn add_assign(&mut self, from: &Self::MapView, to: &mut Self::MapView);
    /// `view[offset..offset + len] = 0`.
    fn zero(&mut self, view: &mut Self::View, offset: usize, len: usize);

    /// `y = conv(input, params[weight])`, plus `params[bias]` on each pixel if there is one. With `sums`, the sums that
    /// [`Kernels::norm_batch_stats`] needs are kept for the call that follows; `y` is the same to the bit without them.
    fn conv_forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &Self::View,
        at: Offsets,
        sums: bool,
        y: &mut Self::MapView,
    );
    /// Gradients of weight and bias from the input and the output's gradient, written to `gradients`.
    fn conv_backward_params(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        dy: &Self::MapView,
        at: Offsets,
        gradients: &mut Self::View,
    );
    /// Gradient of the input (as the convolution sees it, after its normalisation): `dx = …`, or `dx += …` if
    /// `accumulate`.
    fn conv_backward_data(
        &mut self,
        shape: &ConvShape,
        dy: &Self::MapView,
        params: &Self::View,
        at: Offsets,
        dx: &mut Self::MapView,
        accumulate: bool,
    );

    /// Number of values in the `stats` of a batch normalisation.
    fn norm_stats_len(shape: &NormShape) -> usize;
    /// Batch statistics of `z` into `stats`, and into the running statistics in `buffers`. With `summed`, the call before
    /// was the convolution that made `z` and kept its sums.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    fn norm_batch_stats(
        &mut self,
        shape: &NormShape,
        z: &Self::MapView,
        summed: bool,
        params: &Self::View,
        at: NormOffsets,
        buffers: &mut Self::View,
        stats: &mut Self::Buffer,
    );
    /// Running statistics into `stats`.
    fn norm_running_stats(
        &mut self,
        shape: &NormShape,
        params: &Self::View,
        at: NormOffsets,
        buffers: &Self::View,
        stats: &mut Self::Buffer,
    );
    /// `y = act(normalised z · weight + bias + residual)`; `z` is `None` to work in place on `y`.
    fn norm_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&Self::MapView>,
        stats: &Self::Buffer,
        residual: Residual<'_, Self>,
        relu: bool,
        y: &mut Self::MapView,
    );
    /// Gradients of weight and bias, written to `gradients`, and the sums that [`Kernels::norm_backward_apply`] needs,
    /// kept in `stats`. With [`Mask::Output`], `dy` is masked in place.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    fn norm_backward_reduce(
        &mut self,
        shape: &NormShape,
        z: &Self::MapView,
        stats: &mut Self::Buffer,
        mask: Mask<'_, Self>,
        dy: &mut Self::MapView,
        at: NormOffsets,
        gradients: &mut Self::View,
    );
    /// Gradient of `z`, where `recompute_mask` masks `dy` as [`Mask::Recompute`] does: `dz = …`, or `dz += …` if
    /// `accumulate`; `dy` is `None` to work in place on `dz`.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    fn norm_backward_apply(
        &mut self,
        shape: &NormShape,
        z: &Self::MapView,
        stats: &Self::Buffer,
        recompute_mask: bool,
        dy: Option<&Self::MapView>,
        dz: &mut Self::MapView,
        accumulate: bool,
    );

    /// `y = max(x, 0)`; `x` is `None` to work in place.
    fn relu(&mut self, x: Option<&Self::MapView>, y: &mut Self::MapView);
    /// `dy = 0` where `y` is not above 0.
    fn relu_mask(&mut self, y: &Self::MapView, dy: &mut Self::MapView);
    /// `y = act(a + b)`; `a` is `None` to work in place.
    fn add(&mut self, a: Option<&Self::MapView>, b: &Self::MapView, relu: bool, y: &mut Self::MapView);

    /// Max pooling; `index`, where the gradient will need it, remembers which pixel of its
    /// window gave each value.
    fn max_pool(
        &mut self,
        shape: &PoolShape,
        x: &Self::MapView,
        y: &mut Self::MapView,
        index: Option<&mut Self::Bytes>,
    );
    /// Gradient of max pooling's input.
    fn max_pool_backward(
        &mut self,
        shape: &PoolShape,
        dy: &Self::MapView,
        index: &Self::Bytes,
        dx: &mut Self::MapView,
        accumulate: bool,
    );
    /// Mean over the pixels of each map.
    fn mean_pool(&mut self, shape: &MapShape, x: &Self::MapView, y: &mut Self::MapView);
    /// Gradient of the mean's input.
    fn mean_pool_backward(&mut self, shape: &MapShape, dy: &Self::MapView, dx: &mut Self::MapView, accumulate: bool);

    /// `y = act(x Wᵀ + b)`.
    fn linear(
        &mut self,
        shape: &LinearShape,
        x: &Self::MapView,
        params: &Self::View,
        at: Offsets,
        relu: bool,
        y: &mut Self::MapView,
    );
    /// Gradients of weight and bias, written to `gradients`.
    fn linear_backward_params(
        &mut self,
        shape: &LinearShape,
        x: &Self::MapView,
        dy: &Self::MapView,
        at: Offsets,
        gradients: &mut Self::View,
    );
    /// Gradient of the input.
    fn linear_backward_data(
        &mut self,
        shape: &LinearShape,
        dy: &Self::MapView,
        params: &Self::View,
        at: Offsets,
        dx: &mut Self::MapView,
        accumulate: bool,
    );
}

/// A direction in which a plan goes over its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From the images to the taps.
    Forward,
    /// From the taps' gradients to the parameters'.
    Backward,
}

/// A step that needs scratch.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A convolution.
    Conv(ConvShape),
    /// A batch normalisation.
    Norm(NormShape),
    /// A linear layer.
    Linear(LinearShape),
}

/// Places of a layer's tensors in the flat parameter buffer.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// First value of the weight.
    pub weight: usize,
    /// First value of the bias.
    pub bias: Option<usize>,
}

/// Places of a batch normalisation's tensors: the first two in the parameters, the others in the buffers.
#[derive(Clone, Copy, Debug)]
pub struct NormOffsets {
    /// Scale, in the parameters.
    pub weight: usize,
    /// Shift, in the parameters.
    pub bias: usize,
    /// In the buffers.
    pub running_mean: usize,
    /// In the buffers.
    pub running_var: usize,
}

/// Feature maps of one size.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// Images.
    pub n: usize,
    /// Pixels of a map; 1 for vectors.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
}

impl MapShape {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.n * self.sample_len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values of one image.
    pub fn sample_len(&self) -> usize {
        self.pixels * self.channels
    }
}

/// A batch normalisation.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// What it normalises.
    pub map: MapShape,
    /// Which samples share statistics.
    pub groups: BnGroups,
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the new statistics in the running ones.
    pub momentum: f32,
}

/// A max pooling.
#[derive(Clone, Copy, Debug)]
pub struct PoolShape {
    /// Images.
    pub n: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Side of the window; at most 15, so that a position fits a byte.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Padding on all four sides.
    pub padding: usize,
}

/// A linear layer.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Rows.
    pub n: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
}

/// What a convolution reads.
pub struct ConvInput<'a, K: Kernels> {
    /// The feature map.
    pub x: &'a K::MapView,
    /// A normalisation (and ReLU) of `x` that is never written out: the convolution applies it as it reads.
    pub norm: Option<InputNorm<'a, K>>,
}

/// The normalisation of a [`ConvInput`].
pub struct InputNorm<'a, K: Kernels> {
    /// Its sizes.
    pub shape: &'a NormShape,
    /// Its statistics.
    pub stats: &'a K::Buffer,
    /// Whether negative results become 0.
    pub relu: bool,
}

/// What is added after a normalisation, before the activation.
pub enum Residual<'a, K: Kernels> {
    /// Nothing.
    None,
    /// A feature map.
    Map(&'a K::MapView),
    /// Another normalisation's result (the shortcut of a block that changes size), never written out.
    Norm {
        /// What it normalises.
        z: &'a K::MapView,
        /// Its statistics.
        stats: &'a K::Buffer,
    },
}

/// How the activation after a normalisation masks the gradient.
pub enum Mask<'a, K: Kernels> {
    /// There is no activation.
    None,
    /// By the sign of the normalised value, computed again: there was no residual.
    Recompute,
    /// By the sign of the step's output.
    Output(&'a K::MapView),
}

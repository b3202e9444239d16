//! The steps a plan is made of, as a trait, and their implementation on the CPU.

pub mod conv;
mod cpu;
mod element;
pub mod gemm;
mod group_norm;
mod groups;
mod linear;
mod memory;
mod norm;
mod pool;
mod reference;
mod resize;
mod rows;
mod shapes;
pub(crate) mod simd;
mod slice;

use std::fmt;

use crate::Result;
use conv::ConvShape;

pub use cpu::CpuKernels;
pub use element::Element;
pub use groups::{BnGroups, Group};
pub use reference::ReferenceKernels;
pub use shapes::{
    LinearShape, MapShape, NormOffsets, NormShape, Offsets, PoolShape, ResizeShape, SliceShape, Statistics,
};

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

    /// What messages call the place where they run.
    fn describe(&self) -> String {
        "this device".into()
    }
    /// Whether a step can be computed, and its gradient if `backward`; a plan with any other is refused.
    fn supports(&self, need: &Need, backward: bool) -> bool {
        match need {
            Need::Conv(_) | Need::Linear(_) => true,
            Need::Norm(shape) => match shape.statistics {
                Statistics::Batch => true,
                Statistics::Running => !backward,
                Statistics::Image { .. } => false,
            },
            Need::Resize(_) | Need::Concat | Need::Shared(_) | Need::Given => false,
        }
    }
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
    /// Brings some of the values into a map: `to = from[offset..offset + len]`.
    fn load_part(&mut self, from: &Self::View, offset: usize, len: usize, to: &mut Self::MapView) {
        let _ = (from, offset, len, to);
        unsupported(self)
    }
    /// Brings a map out: `to = from`.
    fn store(&mut self, from: &Self::MapView, to: &mut Self::View);
    /// `to = from`.
    fn copy(&mut self, from: &Self::MapView, to: &mut Self::MapView);
    /// `to += from`.
    fn add_assign(&mut self, from: &Self::MapView, to: &mut Self::MapView);
    /// `view[offset..offset + len] = 0`.
    fn zero(&mut self, view: &mut Self::View, offset: usize, len: usize);

    /// `y = act(conv(input, params[weight]))`, with `params[bias]` on each pixel if there is one. With `sums`, the sums
    /// that [`Kernels::norm_batch_stats`] or [`Kernels::norm_image_stats`] needs are kept for the call that follows; `y` is
    /// the same to the bit without them.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    fn conv_forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &Self::View,
        at: Offsets,
        sums: bool,
        relu: bool,
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
    /// Statistics of every image's groups of channels ([`Statistics::Image`]) into `stats`, with `summed` as in
    /// [`Kernels::norm_batch_stats`].
    fn norm_image_stats(
        &mut self,
        shape: &NormShape,
        z: &Self::MapView,
        summed: bool,
        params: &Self::View,
        at: NormOffsets,
        stats: &mut Self::Buffer,
    ) {
        let _ = (shape, z, summed, params, at, stats);
        unsupported(self)
    }
    /// Running statistics into `stats`, with all that a backward pass reads of them.
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
    /// kept in `stats` (running statistics need none). With [`Mask::Output`], `dy` is masked in place.
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
    /// `accumulate`; `dy` is `None` to work in place on `dz`. `z` is `None` where it makes no difference: running
    /// statistics ([`Statistics::Running`]) and no mask to recompute.
    #[expect(clippy::too_many_arguments, reason = "the operands of one step")]
    fn norm_backward_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&Self::MapView>,
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

    /// `y` is `x` brought to another height and width.
    fn resize(&mut self, shape: &ResizeShape, x: &Self::MapView, y: &mut Self::MapView) {
        let _ = (shape, x, y);
        unsupported(self)
    }
    /// Gradient of the input of [`Kernels::resize`].
    fn resize_backward(&mut self, shape: &ResizeShape, dy: &Self::MapView, dx: &mut Self::MapView, accumulate: bool) {
        let _ = (shape, dy, dx, accumulate);
        unsupported(self)
    }
    /// Writes `x` into its channels of `y`.
    fn insert_channels(&mut self, shape: &SliceShape, x: &Self::MapView, y: &mut Self::MapView) {
        let _ = (shape, x, y);
        unsupported(self)
    }
    /// Reads channels of `dy`: the gradient of the input of [`Kernels::insert_channels`].
    fn take_channels(&mut self, shape: &SliceShape, dy: &Self::MapView, dx: &mut Self::MapView, accumulate: bool) {
        let _ = (shape, dy, dx, accumulate);
        unsupported(self)
    }
    /// `gradients[offset..offset + len] += from[..len]`, where a layer has served more than once.
    fn add_to_gradients(&mut self, from: &Self::View, len: usize, gradients: &mut Self::View, offset: usize) {
        let _ = (from, len, gradients, offset);
        unsupported(self)
    }
}

fn unsupported<K: Kernels>(kernels: &K) {
    unreachable!("{}: the plan was compiled with a step that `Kernels::supports` does not name", kernels.describe())
}

/// A direction in which a plan goes over its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From the images to the taps.
    Forward,
    /// From the taps' gradients to the parameters'.
    Backward,
}

/// A kind of step that needs scratch, or that not every device computes.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A convolution.
    Conv(ConvShape),
    /// A normalisation.
    Norm(NormShape),
    /// A linear layer.
    Linear(LinearShape),
    /// A resize.
    Resize(ResizeShape),
    /// Maps joined along their channels.
    Concat,
    /// Gradients of a layer that serves more than once, of so many parameters.
    Shared(usize),
    /// Several maps from outside, in one view.
    Given,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Need::Conv(_) => "a convolution",
            Need::Norm(shape) => match shape.statistics {
                Statistics::Batch => "a batch normalisation",
                Statistics::Running => "a batch normalisation with running statistics",
                Statistics::Image { .. } => "a group normalisation",
            },
            Need::Linear(_) => "a linear layer",
            Need::Resize(_) => "a resize",
            Need::Concat => "a concatenation",
            Need::Shared(_) => "a layer that serves more than once, in training",
            Need::Given => "one of several maps from outside",
        })
    }
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

//! Convolutions of NHWC activations: forward, gradient of the data, gradient of the weights.
//!
//! Each is a product of the im2col matrix, gathered a block at a time and never stored, with packed weights or with the
//! gradient of the output. The data gradient of a strided convolution is divided into phases, each a convolution of
//! stride 1, so that no zeros are multiplied.
//!
//! Weights are packed once per step from PyTorch's OIHW into [`Packed`] buffers that the caller keeps; nothing here
//! allocates in a warm step (working memory is kept by each thread). Results do not depend on the number of threads.

mod data;
mod epilogue;
mod geometry;
mod grouped;
mod grouped_simd;
mod method;
mod shape;
#[cfg(test)]
mod tests;
mod transpose;
mod weight_gradient;
mod weights;
mod winograd;
mod winograd_gradient;

pub use epilogue::Epilogue;
pub use method::Method;
pub use shape::ConvShape;
pub use weights::{Packed, Pass};

use super::element::Element;
use super::gemm::level::Level;
use super::gemm::windows::Norm;

/// Applied to every input value on its way into a convolution (padding stays 0):
/// `x ↦ x · scale[g][c] + shift[g][c]`, then ReLU if asked, with g the group of the image. It makes the normalised
/// activations of a batch norm unnecessary to store.
#[derive(Clone, Copy, Debug)]
pub struct InputNorm<'a> {
    /// `[groups, c_in]`.
    pub scale: &'a [f32],
    /// `[groups, c_in]`.
    pub shift: &'a [f32],
    /// Group of each image `[n]`; empty = all in group 0.
    pub group_of_image: &'a [u32],
    /// Whether negative results become 0.
    pub relu: bool,
}

/// `y = conv(x, weights)`: `x` `[n, h, w, c_in]`, `y` `[n, out_h, out_w, c_out]`, overwritten.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says, or `weights` were packed for another layer or pass.
pub fn forward<T: Element>(
    shape: &ConvShape,
    x: &[T],
    weights: &Packed<T>,
    y: &mut [T],
    norm: Option<&InputNorm>,
    epilogue: Epilogue<T>,
) {
    assert_lengths(shape, x.len(), y.len());
    let norm = norm.map(|norm| norm.checked(shape));
    if let Some(stats) = &epilogue.stats {
        assert_eq!(stats.len(), 2 * shape.n * shape.c_out, "statistics of {shape:?}");
    }
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == shape.c_out), "bias of {shape:?}");
    assert!(epilogue.add.is_none_or(|add| add.len() == shape.y_len()), "summand of {shape:?}");
    data::forward(shape, x, weights, y, norm, epilogue);
}

/// Gradient of the input from `dy` `[n, out_h, out_w, c_out]`: overwrites `dx` `[n, h, w, c_in]`, or adds to it.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says, or `weights` were packed for another layer or pass.
pub fn backward_data<T: Element>(shape: &ConvShape, dy: &[T], weights: &Packed<T>, dx: &mut [T], accumulate: bool) {
    assert_lengths(shape, dx.len(), dy.len());
    data::backward_data(shape, dy, weights, dx, accumulate);
}

/// Gradient of the weights, OIHW, overwritten; `norm` is what the forward pass applied to `x`.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says.
pub fn backward_weights<T: Element>(shape: &ConvShape, x: &[T], dy: &[T], dw: &mut [f32], norm: Option<&InputNorm>) {
    backward_weights_at(Level::detect(), shape, x, dy, dw, norm);
}

fn backward_weights_at<T: Element>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [f32],
    norm: Option<&InputNorm>,
) {
    assert_lengths(shape, x.len(), dy.len());
    assert_eq!(dw.len(), shape.weight_len(), "weight gradient of {shape:?}");
    weight_gradient::backward_weights(level, shape, x, dy, dw, norm.map(|norm| norm.checked(shape)));
}

fn assert_lengths(shape: &ConvShape, x: usize, y: usize) {
    shape.assert_valid();
    assert_eq!(x, shape.x_len(), "input side of {shape:?}");
    assert_eq!(y, shape.y_len(), "output side of {shape:?}");
}

impl<'a> InputNorm<'a> {
    fn checked(&self, shape: &ConvShape) -> Norm<'a> {
        let groups = self.group_of_image.iter().max().map_or(1, |&g| g as usize + 1);
        assert!(
            self.scale.len() == self.shift.len() && self.scale.len() >= groups * shape.c_in,
            "scale and shift of {groups} groups for {shape:?}"
        );
        assert!(
            self.group_of_image.is_empty() || self.group_of_image.len() == shape.n,
            "groups of images of {shape:?}"
        );
        let InputNorm { scale, shift, group_of_image, relu } = *self;
        Norm { scale, shift, group_of_image, relu }
    }
}

//! Convolutions of NHWC activations: forward, gradient of the data, gradient of the weights.
//!
//! Weights are packed once per step from PyTorch's OIHW into [`Packed`] buffers that the caller keeps; nothing here
//! allocates in a warm step (working memory is kept by each thread). Results do not depend on the number of threads.

mod shape;

pub use shape::ConvShape;

use crate::kernels::gemm::AlignedBuffer;

/// Which pass packed weights serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`forward`].
    Forward,
    /// [`backward_data`].
    BackwardData,
}

/// Weights in the order a pass reads them. Does not depend on `n`, `h` and `w` of the shape.
#[derive(Clone, Debug)]
pub struct Packed {
    shape: ConvShape,
    pass: Pass,
    data: AlignedBuffer,
}

impl Packed {
    /// Room for the weights of `shape`, to be filled by [`Packed::pack`].
    pub fn new(shape: &ConvShape, pass: Pass) -> Packed {
        shape.assert_valid();
        Packed { shape: *shape, pass, data: AlignedBuffer::zeroed(shape.weight_len()) }
    }

    /// Copies `weight` `[c_out, c_in / groups, kernel, kernel]` in.
    ///
    /// # Panics
    /// If the length of `weight` is another.
    pub fn pack(&mut self, weight: &[f32]) {
        assert_eq!(weight.len(), self.shape.weight_len(), "weight of {:?}", self.shape);
        self.data.as_mut_slice()[..weight.len()].copy_from_slice(weight);
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> usize {
        4 * self.data.as_slice().len()
    }
}

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

/// What is done to the outputs while they are still in the cache, in this order: statistics of the plain result, then
/// `+ bias`, `+ add`, ReLU.
#[derive(Debug, Default)]
pub struct Epilogue<'a> {
    /// Filled with the sum and the sum of squares over the pixels of each image, `[n, 2, c_out]`.
    pub stats: Option<&'a mut [f64]>,
    /// `[c_out]`.
    pub bias: Option<&'a [f32]>,
    /// As long as the output.
    pub add: Option<&'a [f32]>,
    /// Whether negative results become 0.
    pub relu: bool,
}

/// `y = conv(x, weights)`: `x` `[n, h, w, c_in]`, `y` `[n, out_h, out_w, c_out]`, overwritten.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says, or `weights` were packed for another layer or pass.
pub fn forward(
    shape: &ConvShape,
    x: &[f32],
    weights: &Packed,
    y: &mut [f32],
    norm: Option<&InputNorm>,
    epilogue: Epilogue,
) {
    let s = shape;
    assert!(x.len() == s.x_len() && y.len() == s.y_len() && weights.pass == Pass::Forward, "{s:?}");
    let x = normalised(s, x, norm);
    let wt = weights.data.as_slice();
    y.fill(0.0);
    each_product(s, |yi, xi, wi| y[yi] += x[xi] * wt[wi]);
    if let Some(stats) = epilogue.stats {
        assert_eq!(stats.len(), 2 * s.n * s.c_out);
        stats.fill(0.0);
        for (i, &v) in y.iter().enumerate() {
            let image = i / (s.y_len() / s.n);
            stats[2 * image * s.c_out + i % s.c_out] += f64::from(v);
            stats[(2 * image + 1) * s.c_out + i % s.c_out] += f64::from(v) * f64::from(v);
        }
    }
    for (i, v) in y.iter_mut().enumerate() {
        *v += epilogue.bias.map_or(0.0, |b| b[i % s.c_out]) + epilogue.add.map_or(0.0, |a| a[i]);
        if epilogue.relu {
            *v = v.max(0.0);
        }
    }
}

/// Gradient of the input from `dy` `[n, out_h, out_w, c_out]`: overwrites `dx` `[n, h, w, c_in]`, or adds to it.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says, or `weights` were packed for another layer or pass.
pub fn backward_data(shape: &ConvShape, dy: &[f32], weights: &Packed, dx: &mut [f32], accumulate: bool) {
    let s = shape;
    assert!(dx.len() == s.x_len() && dy.len() == s.y_len() && weights.pass == Pass::BackwardData, "{s:?}");
    if !accumulate {
        dx.fill(0.0);
    }
    let wt = weights.data.as_slice();
    each_product(s, |yi, xi, wi| dx[xi] += dy[yi] * wt[wi]);
}

/// Gradient of the weights, OIHW, overwritten; `norm` is what the forward pass applied to `x`.
///
/// # Panics
/// If a slice is not exactly as long as `shape` says.
pub fn backward_weights(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], norm: Option<&InputNorm>) {
    let s = shape;
    assert!(x.len() == s.x_len() && dy.len() == s.y_len() && dw.len() == s.weight_len(), "{s:?}");
    let x = normalised(s, x, norm);
    dw.fill(0.0);
    each_product(s, |yi, xi, wi| dw[wi] += dy[yi] * x[xi]);
}

fn normalised(s: &ConvShape, x: &[f32], norm: Option<&InputNorm>) -> Vec<f32> {
    let mut out = x.to_vec();
    if let Some(norm) = norm {
        for (i, v) in out.iter_mut().enumerate() {
            let image = i / (s.h * s.w * s.c_in);
            let g = norm.group_of_image.get(image).map_or(0, |&g| g as usize) * s.c_in + i % s.c_in;
            *v = *v * norm.scale[g] + norm.shift[g];
            if norm.relu {
                *v = v.max(0.0);
            }
        }
    }
    out
}

/// Calls `f(index in y, index in x, index in the weight)` for every product of the convolution.
fn each_product(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let (oh, ow, ci, co) = (s.out_h(), s.out_w(), s.c_in / s.groups, s.c_out / s.groups);
    for img in 0..s.n {
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            for (ky, kx) in (0..s.kernel).flat_map(|ky| (0..s.kernel).map(move |kx| (ky, kx))) {
                let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
                if iy < s.padding || ix < s.padding || iy - s.padding >= s.h || ix - s.padding >= s.w {
                    continue;
                }
                let (iy, ix) = (iy - s.padding, ix - s.padding);
                for o in 0..s.c_out {
                    let yi = ((img * oh + oy) * ow + ox) * s.c_out + o;
                    for c in 0..ci {
                        let xi = ((img * s.h + iy) * s.w + ix) * s.c_in + o / co * ci + c;
                        f(yi, xi, ((o * ci + c) * s.kernel + ky) * s.kernel + kx);
                    }
                }
            }
        }
    }
}

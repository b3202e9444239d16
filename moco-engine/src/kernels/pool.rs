//! Max and mean pooling on the CPU.

use rayon::prelude::*;

use super::element::Element;
use super::simd::multiversion;
use super::{MapShape, PoolShape};

/// Max pooling with implicit −∞ padding; the first of equal values wins, and NaN wins over all, as in PyTorch. `index`
/// is at least as long as `y`.
pub(super) fn max_pool<T: Element>(shape: &PoolShape, x: &[T], y: &mut [T], index: Option<&mut [u8]>) {
    let row = shape.output[1] * shape.channels;
    let rows = y.par_chunks_mut(row).enumerate();
    match index {
        Some(index) => rows.zip(index.par_chunks_mut(row)).for_each(|((r, y), index)| {
            max_pool_row(shape, x, r, y, |x, position, first, y, c| {
                let index = &mut index[c..][..y.len()];
                if first {
                    index.fill(position);
                }
                keep_larger_at(x, position, y, index);
            });
        }),
        None => rows.for_each(|(r, y)| max_pool_row(shape, x, r, y, |x, _, _, y, _| keep_larger(x, y))),
    }
}

/// One row of the output. `meet(x, position, first, y, place)` lets `x`, the channels of the pixel at `position` of a
/// window (the `first` inside the map), meet what `y`, at `place` of the row, holds so far.
fn max_pool_row<T: Element>(
    shape: &PoolShape,
    x: &[T],
    r: usize,
    y: &mut [T],
    mut meet: impl FnMut(&[T], u8, bool, &mut [T], usize),
) {
    let ([height, width], c) = (shape.input, shape.channels);
    let (image, oy) = (r / shape.output[0], r % shape.output[0]);
    let x = &x[image * height * width * c..][..height * width * c];
    for (ox, y) in y.chunks_exact_mut(c).enumerate() {
        y.fill(T::NEG_INFINITY);
        let mut first = true;
        for (ky, iy) in window(oy, shape, height) {
            for (kx, ix) in window(ox, shape, width) {
                meet(&x[(iy * width + ix) * c..][..c], (ky * shape.kernel + kx) as u8, first, y, ox * c);
                first = false;
            }
        }
    }
}

/// Gradient of [`max_pool`]'s input: each value collects from the windows in which it was the largest.
pub(super) fn max_pool_backward<T: Element>(shape: &PoolShape, dy: &[T], index: &[u8], dx: &mut [T], accumulate: bool) {
    let [height, width] = shape.input;
    let c = shape.channels;
    dx.par_chunks_mut(width * c).enumerate().for_each(|(r, dx)| {
        for (ix, dx) in dx.chunks_exact_mut(c).enumerate() {
            collect_pixel(shape, dy, index, [r / height, r % height, ix], dx, accumulate);
        }
    });
}

/// Mean over the pixels of each map.
pub(super) fn mean_pool<T: Element>(shape: &MapShape, x: &[T], y: &mut [T]) {
    let c = shape.channels;
    x.par_chunks_exact(shape.sample_len()).zip(y.par_chunks_exact_mut(c)).for_each(|(x, y)| {
        for (j, y) in y.iter_mut().enumerate() {
            // f64 because a map may hold many pixels; the channels of a pixel share cache lines, so the stride costs
            // nothing that matters on maps of a last stage.
            let sum: f64 = x[j..].iter().step_by(c).map(|v| f64::from(v.widen())).sum();
            *y = T::narrow((sum / shape.pixels as f64) as f32);
        }
    });
}

/// Gradient of [`mean_pool`]'s input.
pub(super) fn mean_pool_backward<T: Element>(shape: &MapShape, dy: &[T], dx: &mut [T], accumulate: bool) {
    let c = shape.channels;
    let each = 1.0 / shape.pixels as f32;
    dx.par_chunks_exact_mut(shape.sample_len()).zip(dy.par_chunks_exact(c)).for_each(|(dx, dy)| {
        for dx in dx.chunks_exact_mut(c) {
            for (dx, dy) in dx.iter_mut().zip(dy) {
                let gradient = dy.widen() * each;
                *dx = T::narrow(if accumulate { dx.widen() + gradient } else { gradient });
            }
        }
    });
}

/// Positions in the window of output `o`, with the input each meets, without the padding.
fn window(o: usize, shape: &PoolShape, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (first, padding) = (o * shape.stride, shape.padding);
    (0..shape.kernel).map(move |k| (k, (first + k).wrapping_sub(padding))).filter(move |(_, i)| *i < size)
}

/// Windows that hold input `i`: its position in each and the window's output.
fn readers(i: usize, shape: &PoolShape, outputs: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (at, kernel, stride) = (i + shape.padding, shape.kernel, shape.stride);
    let first = (at + 1).saturating_sub(kernel).div_ceil(stride);
    (first..outputs).take_while(move |o| o * stride <= at).map(move |o| (at - o * stride, o))
}

multiversion! {
    fn keep_larger<T: Element>(x: &[T], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            *y = if is_larger(*x, *y) { *x } else { *y };
        }
    }
}

multiversion! {
    fn keep_larger_at<T: Element>(x: &[T], position: u8, y: &mut [T], index: &mut [u8]) {
        for ((x, y), index) in x.iter().zip(y).zip(index) {
            let larger = is_larger(*x, *y);
            *y = if larger { *x } else { *y };
            *index = if larger { position } else { *index };
        }
    }
}

#[inline(always)]
fn is_larger<T: Element>(x: T, y: T) -> bool {
    let (x, y) = (x.widen(), y.widen());
    x > y || x.is_nan()
}

multiversion! {
    /// The gradient of one pixel `[image, y, x]` of the input, summed before it is rounded.
    fn collect_pixel<T: Element>(
        shape: &PoolShape, dy: &[T], index: &[u8], pixel: [usize; 3], dx: &mut [T], accumulate: bool,
    ) {
        const CHANNELS: usize = 64;
        let ([image, iy, ix], c) = (pixel, shape.channels);
        let [out_height, out_width] = shape.output;
        for (part, dx) in dx.chunks_mut(CHANNELS).enumerate() {
            let mut sums = [0.0f32; CHANNELS];
            let sums = &mut sums[..dx.len()];
            if accumulate {
                sums.iter_mut().zip(&*dx).for_each(|(sum, dx)| *sum = dx.widen());
            }
            for (ky, oy) in readers(iy, shape, out_height) {
                for (kx, ox) in readers(ix, shape, out_width) {
                    let at = ((image * out_height + oy) * out_width + ox) * c + part * CHANNELS;
                    let position = (ky * shape.kernel + kx) as u8;
                    for ((sum, dy), index) in sums.iter_mut().zip(&dy[at..]).zip(&index[at..]) {
                        *sum += if *index == position { dy.widen() } else { 0.0 };
                    }
                }
            }
            dx.iter_mut().zip(sums).for_each(|(dx, sum)| *dx = T::narrow(*sum));
        }
    }
}

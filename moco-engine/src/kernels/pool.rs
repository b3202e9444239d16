//! Max and mean pooling on the CPU.

use rayon::prelude::*;

use super::simd::multiversion;
use super::{MapShape, PoolShape};

/// Max pooling with implicit −∞ padding; the first of equal values wins, and NaN wins over all, as in PyTorch. `index`
/// is at least as long as `y`.
pub(super) fn max_pool(shape: &PoolShape, x: &[f32], y: &mut [f32], index: Option<&mut [u8]>) {
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
fn max_pool_row(
    shape: &PoolShape,
    x: &[f32],
    r: usize,
    y: &mut [f32],
    mut meet: impl FnMut(&[f32], u8, bool, &mut [f32], usize),
) {
    let ([height, width], c) = (shape.input, shape.channels);
    let (image, oy) = (r / shape.output[0], r % shape.output[0]);
    let x = &x[image * height * width * c..][..height * width * c];
    for (ox, y) in y.chunks_exact_mut(c).enumerate() {
        y.fill(f32::NEG_INFINITY);
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
pub(super) fn max_pool_backward(shape: &PoolShape, dy: &[f32], index: &[u8], dx: &mut [f32], accumulate: bool) {
    let [height, width] = shape.input;
    let [out_height, out_width] = shape.output;
    let c = shape.channels;
    dx.par_chunks_mut(width * c).enumerate().for_each(|(r, dx)| {
        let (image, iy) = (r / height, r % height);
        if !accumulate {
            dx.fill(0.0);
        }
        for (ix, dx) in dx.chunks_exact_mut(c).enumerate() {
            for (ky, oy) in readers(iy, shape, out_height) {
                for (kx, ox) in readers(ix, shape, out_width) {
                    let at = ((image * out_height + oy) * out_width + ox) * c;
                    let position = (ky * shape.kernel + kx) as u8;
                    collect(&dy[at..][..c], &index[at..][..c], position, dx);
                }
            }
        }
    });
}

/// Mean over the pixels of each map.
pub(super) fn mean_pool(shape: &MapShape, x: &[f32], y: &mut [f32]) {
    let c = shape.channels;
    x.par_chunks_exact(shape.sample_len()).zip(y.par_chunks_exact_mut(c)).for_each(|(x, y)| {
        for (j, y) in y.iter_mut().enumerate() {
            // f64 because a map may hold many pixels; the channels of a pixel share cache lines, so the stride costs
            // nothing that matters on maps of a last stage.
            let sum: f64 = x[j..].iter().step_by(c).map(|v| f64::from(*v)).sum();
            *y = (sum / shape.pixels as f64) as f32;
        }
    });
}

/// Gradient of [`mean_pool`]'s input.
pub(super) fn mean_pool_backward(shape: &MapShape, dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let c = shape.channels;
    let each = 1.0 / shape.pixels as f32;
    dx.par_chunks_exact_mut(shape.sample_len()).zip(dy.par_chunks_exact(c)).for_each(|(dx, dy)| {
        for dx in dx.chunks_exact_mut(c) {
            for (dx, dy) in dx.iter_mut().zip(dy) {
                *dx = if accumulate { *dx + dy * each } else { dy * each };
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
    fn keep_larger(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = if *x > *y || x.is_nan() { *x } else { *y };
        }
    }
}

multiversion! {
    fn keep_larger_at(x: &[f32], position: u8, y: &mut [f32], index: &mut [u8]) {
        for ((x, y), index) in x.iter().zip(y).zip(index) {
            let larger = *x > *y || x.is_nan();
            *y = if larger { *x } else { *y };
            *index = if larger { position } else { *index };
        }
    }
}

multiversion! {
    fn collect(dy: &[f32], index: &[u8], position: u8, dx: &mut [f32]) {
        for ((dy, index), dx) in dy.iter().zip(index).zip(dx) {
            *dx += if *index == position { *dy } else { 0.0 };
        }
    }
}

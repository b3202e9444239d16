//! Group normalisation and resizing in f64.

use moco_models::Interpolation;

use super::*;

/// Indices into the map of the values of a group of channels of an image.
fn of_group(shape: &NormShape, image: usize, channels: std::ops::Range<usize>) -> impl Iterator<Item = usize> + use<> {
    let map = shape.map;
    (0..map.pixels).flat_map(move |p| channels.clone().map(move |j| (image * map.pixels + p) * map.channels + j))
}

pub(super) fn image_stats(shape: &NormShape, z: &[f64], params: &[f64], at: NormOffsets, stats: &mut [f64]) {
    let Statistics::Image { groups } = shape.statistics else { unreachable!("a group normalisation") };
    let width = shape.map.channels / groups;
    for (image, g) in (0..shape.map.n).flat_map(|image| (0..groups).map(move |g| (image, g))) {
        let channels = g * width..(g + 1) * width;
        let values = || of_group(shape, image, channels.clone()).map(|i| z[i]);
        let count = (shape.map.pixels * width) as f64;
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let inv_std = 1.0 / (variance + f64::from(shape.eps)).sqrt();
        for j in channels {
            let scale = params[at.weight + j] * inv_std;
            for (field, value) in [mean, inv_std, scale, params[at.bias + j] - mean * scale].into_iter().enumerate() {
                stats[place(shape, field, image) + j] = value;
            }
        }
    }
}

/// With u = weight · dy / σ: dz = u − mean u − unit · mean (u · unit).
#[expect(clippy::too_many_arguments, reason = "the operands of one step")]
pub(super) fn image_gradients(
    shape: &NormShape,
    groups: usize,
    z: &[f64],
    stats: &mut [f64],
    recompute: bool,
    dy: &[f64],
    at: NormOffsets,
    gradients: &mut [f64],
) {
    let c = shape.map.channels;
    gradients[at.weight..][..c].fill(0.0);
    gradients[at.bias..][..c].fill(0.0);
    for (image, g) in (0..shape.map.n).flat_map(|image| (0..groups).map(move |g| (image, g))) {
        let channels = g * (c / groups)..(g + 1) * (c / groups);
        let (mut all, mut along, mut count) = (0.0, 0.0, 0.0);
        for i in of_group(shape, image, channels.clone()) {
            let field = |f| stats[place(shape, f, image) + i % c];
            let open = !recompute || normalised(shape, z[i], stats, i) > 0.0;
            let (dy, unit) = (if open { dy[i] } else { 0.0 }, (z[i] - field(0)) * field(1));
            gradients[at.weight + i % c] += dy * unit;
            gradients[at.bias + i % c] += dy;
            all += field(2) * dy;
            along += field(2) * dy * unit;
            count += 1.0;
        }
        for j in channels {
            stats[place(shape, 4, image) + j] = all / count;
            stats[place(shape, 5, image) + j] = along / count;
        }
    }
}

/// What an output reads along an axis: two inputs and the second's weight.
fn source(o: usize, input: usize, output: usize, interpolation: Interpolation) -> (usize, usize, f64) {
    let ratio = input as f64 / output as f64;
    match interpolation {
        Interpolation::Nearest => {
            let at = o * input / output;
            (at, at, 0.0)
        }
        Interpolation::Bilinear => {
            let at = (ratio * (o as f64 + 0.5) - 0.5).clamp(0.0, input as f64 - 1.0);
            let first = at.floor() as usize;
            (first, (first + 1).min(input - 1), at - at.floor())
        }
    }
}

/// Calls `f(index into y, index into x, weight)` for all that an output value reads.
fn each(shape: &ResizeShape, mut f: impl FnMut(usize, usize, f64)) {
    let ([h, w], [oh, ow], c) = (shape.input, shape.output, shape.channels);
    for i in 0..shape.n * oh * ow * c {
        let (channel, ox, oy, image) = (i % c, i / c % ow, i / c / ow % oh, i / c / ow / oh);
        let (top, bottom, below) = source(oy, h, oh, shape.interpolation);
        let (left, right, beside) = source(ox, w, ow, shape.interpolation);
        for (row, of_row) in [(top, 1.0 - below), (bottom, below)] {
            for (column, of_column) in [(left, 1.0 - beside), (right, beside)] {
                f(i, ((image * h + row) * w + column) * c + channel, of_row * of_column);
            }
        }
    }
}

pub(super) fn resize(shape: &ResizeShape, x: &[f64], y: &mut [f64]) {
    y.fill(0.0);
    each(shape, |to, from, weight| y[to] += weight * x[from]);
}

pub(super) fn resize_backward(shape: &ResizeShape, dy: &[f64], dx: &mut [f64], accumulate: bool) {
    if !accumulate {
        dx.fill(0.0);
    }
    each(shape, |from, to, weight| dx[to] += weight * dy[from]);
}

//! Pooling in f64.

use super::*;

pub(super) fn max_pool(shape: &PoolShape, x: &[f64], y: &mut [f64], mut index: Option<&mut Vec<u8>>) {
    let s = shape;
    for (i, y) in y.iter_mut().enumerate() {
        let (c, pixel) = (i % s.channels, i / s.channels);
        let (ox, oy, image) =
            (pixel % s.output[1], pixel / s.output[1] % s.output[0], pixel / (s.output[0] * s.output[1]));
        let mut best = None;
        for tap in 0..s.kernel * s.kernel {
            let inside = |o: usize, t: usize, size| (o * s.stride + t).checked_sub(s.padding).filter(|i| *i < size);
            let place = (inside(oy, tap / s.kernel, s.input[0]), inside(ox, tap % s.kernel, s.input[1]));
            if let (Some(iy), Some(ix)) = place {
                let value = x[((image * s.input[0] + iy) * s.input[1] + ix) * s.channels + c];
                if best.is_none_or(|(max, _)| value > max || value.is_nan()) {
                    best = Some((value, tap as u8));
                }
            }
        }
        let (value, tap) = best.unwrap_or((f64::NEG_INFINITY, 0));
        *y = value;
        if let Some(index) = &mut index {
            index[i] = tap;
        }
    }
}

pub(super) fn max_pool_backward(shape: &PoolShape, dy: &[f64], index: &[u8], dx: &mut [f64], accumulate: bool) {
    let s = shape;
    if !accumulate {
        dx.fill(0.0);
    }
    for (i, dy) in dy.iter().enumerate() {
        let (c, pixel) = (i % s.channels, i / s.channels);
        let (ox, oy, image) =
            (pixel % s.output[1], pixel / s.output[1] % s.output[0], pixel / (s.output[0] * s.output[1]));
        let tap = usize::from(index[i]);
        let place = (
            (oy * s.stride + tap / s.kernel).checked_sub(s.padding),
            (ox * s.stride + tap % s.kernel).checked_sub(s.padding),
        );
        if let (Some(iy), Some(ix)) = place {
            dx[((image * s.input[0] + iy) * s.input[1] + ix) * s.channels + c] += dy;
        }
    }
}

pub(super) fn mean_pool(shape: &MapShape, x: &[f64], y: &mut [f64]) {
    for (i, y) in y.iter_mut().enumerate() {
        let (image, c) = (i / shape.channels, i % shape.channels);
        let first = image * shape.sample_len() + c;
        let values = (0..shape.pixels).map(|p| x[first + p * shape.channels]);
        *y = values.sum::<f64>() / shape.pixels as f64;
    }
}

pub(super) fn mean_pool_backward(shape: &MapShape, dy: &[f64], dx: &mut [f64], accumulate: bool) {
    for (i, dx) in dx.iter_mut().enumerate() {
        let value = dy[i / shape.sample_len() * shape.channels + i % shape.channels] / shape.pixels as f64;
        set(dx, value, accumulate);
    }
}

//! Convolutions in f64.

use rayon::prelude::*;

use super::*;

pub(super) fn forward(
    shape: &ConvShape,
    input: &ConvInput<'_, ReferenceKernels>,
    params: &[f64],
    at: Offsets,
    y: &mut [f64],
) {
    let s = shape;
    let (x, weight) = (conv_input(s, input), by_tap(s, &params[at.weight..][..s.weight_len()]));
    let (oh, ow, ci, co) = (s.out_h(), s.out_w(), s.c_in / s.groups, s.c_out / s.groups);
    y.par_chunks_mut(s.c_out).enumerate().for_each(|(pixel, y)| {
        y.fill(0.0);
        let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
        for tap in 0..s.kernel * s.kernel {
            let (Some(iy), Some(ix)) = (under(oy, tap / s.kernel, s, s.h), under(ox, tap % s.kernel, s, s.w)) else {
                continue;
            };
            for g in 0..s.groups {
                let x = &x[((image * s.h + iy) * s.w + ix) * s.c_in + g * ci..][..ci];
                for (c, x) in x.iter().enumerate() {
                    let weight = &weight[((g * s.kernel * s.kernel + tap) * ci + c) * co..][..co];
                    add_scaled(*x, weight, &mut y[g * co..][..co]);
                }
            }
        }
        if let Some(bias) = at.bias {
            y.iter_mut().zip(&params[bias..]).for_each(|(y, b)| *y += b);
        }
    });
}

pub(super) fn backward_params(
    shape: &ConvShape,
    input: &ConvInput<'_, ReferenceKernels>,
    dy: &[f64],
    at: Offsets,
    gradients: &mut [f64],
) {
    let s = shape;
    let x = conv_input(s, input);
    let (oh, ow, ci, co) = (s.out_h(), s.out_w(), s.c_in / s.groups, s.c_out / s.groups);
    let taps = s.kernel * s.kernel;
    // [groups, taps, ci] rows of [co], then into PyTorch's order.
    let mut rows = vec![0.0; s.weight_len()];
    rows.par_chunks_mut(co).enumerate().for_each(|(row, dw)| {
        let (g, tap, c) = (row / (taps * ci), row / ci % taps, row % ci);
        for pixel in 0..s.n * oh * ow {
            let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let place = (under(oy, tap / s.kernel, s, s.h), under(ox, tap % s.kernel, s, s.w));
            if let (Some(iy), Some(ix)) = place {
                let x = x[((image * s.h + iy) * s.w + ix) * s.c_in + g * ci + c];
                let dy = &dy[pixel * s.c_out + g * co..][..co];
                add_scaled(x, dy, dw);
            }
        }
    });
    for (row, dw) in rows.chunks(co).enumerate() {
        let (g, tap, c) = (row / (taps * ci), row / ci % taps, row % ci);
        for (o, dw) in dw.iter().enumerate() {
            gradients[at.weight + ((g * co + o) * ci + c) * taps + tap] = *dw;
        }
    }
    if let Some(bias) = at.bias {
        for o in 0..s.c_out {
            gradients[bias + o] = dy.iter().skip(o).step_by(s.c_out).sum();
        }
    }
}

pub(super) fn backward_data(
    shape: &ConvShape,
    dy: &[f64],
    params: &[f64],
    at: Offsets,
    dx: &mut [f64],
    accumulate: bool,
) {
    let s = shape;
    let weight = by_tap(s, &params[at.weight..][..s.weight_len()]);
    let (oh, ow, ci, co) = (s.out_h(), s.out_w(), s.c_in / s.groups, s.c_out / s.groups);
    dx.par_chunks_mut(s.h * s.w * s.c_in).zip(dy.par_chunks(oh * ow * s.c_out)).for_each(|(dx, dy)| {
        if !accumulate {
            dx.fill(0.0);
        }
        for pixel in 0..oh * ow {
            for tap in 0..s.kernel * s.kernel {
                let (oy, ox) = (pixel / ow, pixel % ow);
                let place = (under(oy, tap / s.kernel, s, s.h), under(ox, tap % s.kernel, s, s.w));
                let (Some(iy), Some(ix)) = place else { continue };
                for g in 0..s.groups {
                    let dy = &dy[pixel * s.c_out + g * co..][..co];
                    let dx = &mut dx[(iy * s.w + ix) * s.c_in + g * ci..][..ci];
                    for (c, dx) in dx.iter_mut().enumerate() {
                        let weight = &weight[((g * s.kernel * s.kernel + tap) * ci + c) * co..][..co];
                        add_dot(dy, weight, dx);
                    }
                }
            }
        }
    });
}

/// Weight as [groups, kernel, kernel, c_in / groups, c_out / groups].
fn by_tap(shape: &ConvShape, weight: &[f64]) -> Vec<f64> {
    let (k, ci, co) = (shape.kernel, shape.c_in / shape.groups, shape.c_out / shape.groups);
    let mut out = Vec::with_capacity(weight.len());
    for g in 0..shape.groups {
        for tap in 0..k * k {
            for c in 0..ci {
                out.extend((0..co).map(|o| weight[((g * co + o) * ci + c) * k * k + tap]));
            }
        }
    }
    out
}

/// Input coordinate of output `o` under tap `t`, unless it is padding.
fn under(o: usize, t: usize, shape: &ConvShape, size: usize) -> Option<usize> {
    (o * shape.stride + t).checked_sub(shape.padding).filter(|i| *i < size)
}

simd::multiversion! {
    fn add_scaled(factor: f64, from: &[f64], to: &mut [f64]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += factor * from;
        }
    }
}

simd::multiversion! {
    fn add_dot(a: &[f64], b: &[f64], to: &mut f64) {
        // Eight sums, so that the compiler may use vectors.
        let mut sums = [0.0; 8];
        let (a8, a_rest) = a.as_chunks::<8>();
        let (b8, b_rest) = b.as_chunks::<8>();
        for (a, b) in a8.iter().zip(b8) {
            for j in 0..8 {
                sums[j] += a[j] * b[j];
            }
        }
        let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        *to += sums.iter().sum::<f64>() + rest;
    }
}

fn conv_input(shape: &ConvShape, input: &ConvInput<'_, ReferenceKernels>) -> Vec<f64> {
    debug_assert_eq!(input.x.len(), shape.x_len());
    match &input.norm {
        None => input.x.to_vec(),
        Some(norm) => {
            let values = input.x.iter().enumerate().map(|(i, z)| normalised(norm.shape, *z, norm.stats, i));
            values.map(|v| if norm.relu { relu(v) } else { v }).collect()
        }
    }
}

//! Linear layers on the CPU.

use rayon::prelude::*;

use super::element::Element;
use super::gemm::{Gemm, gemm};
use super::rows::clamp;
use super::{LinearShape, Offsets};

/// `y = act(x Wᵀ + b)`.
pub(super) fn forward<T: Element>(shape: &LinearShape, x: &[T], params: &[f32], at: Offsets, relu: bool, y: &mut [T]) {
    let weight = &params[at.weight..][..shape.inputs * shape.outputs];
    gemm(Gemm::new(shape.n, shape.outputs, shape.inputs).b_transposed(), x, weight, y);
    let bias = at.bias.map(|bias| &params[bias..][..shape.outputs]);
    if bias.is_none() && !relu {
        return;
    }
    y.par_chunks_exact_mut(shape.outputs).for_each(|y| {
        for (j, y) in y.iter_mut().enumerate() {
            let sum = y.widen() + bias.map_or(0.0, |bias| bias[j]);
            *y = T::narrow(if relu { clamp(sum) } else { sum });
        }
    });
}

/// `dW = dyᵀ x` and `db = Σ dy`.
pub(super) fn backward_params<T: Element>(shape: &LinearShape, x: &[T], dy: &[T], at: Offsets, gradients: &mut [f32]) {
    let weight = &mut gradients[at.weight..][..shape.inputs * shape.outputs];
    gemm(Gemm::new(shape.outputs, shape.inputs, shape.n).a_transposed(), dy, x, weight);
    if let Some(bias) = at.bias {
        column_sums(dy, &mut gradients[bias..][..shape.outputs]);
    }
}

/// `dx (+)= dy W`.
pub(super) fn backward_data<T: Element>(
    shape: &LinearShape,
    dy: &[T],
    params: &[f32],
    at: Offsets,
    dx: &mut [T],
    accumulate: bool,
) {
    let weight = &params[at.weight..][..shape.inputs * shape.outputs];
    let product = Gemm::new(shape.n, shape.inputs, shape.outputs);
    gemm(if accumulate { product.accumulate() } else { product }, dy, weight, dx);
}

/// Sum over the rows of `dy` [rows, columns], in f64.
pub(super) fn column_sums<T: Element>(dy: &[T], sums: &mut [f32]) {
    let columns = sums.len();
    sums.par_iter_mut().enumerate().with_min_len(64).for_each(|(j, sum)| {
        *sum = dy[j..].iter().step_by(columns).map(|v| f64::from(v.widen())).sum::<f64>() as f32;
    });
}

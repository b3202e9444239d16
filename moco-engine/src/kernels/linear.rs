//! Linear layers on the CPU.

use rayon::prelude::*;

use super::element::Element;
use super::gemm::workspace::with_shared;
use super::gemm::{Gemm, gemm};
use super::rows::{self, clamp};
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

/// Rows up to which a column is summed as it stands.
const FEW_ROWS: usize = 2048;

/// Values of a block of [`column_sums`].
const BLOCK: usize = 1 << 15;

/// Sum over the rows of `dy` [rows, columns]: in f64, or in blocks whose sums in f32 are added up in f64.
pub(super) fn column_sums<T: Element>(dy: &[T], sums: &mut [f32]) {
    let columns = sums.len();
    if dy.len() <= FEW_ROWS * columns {
        sums.par_iter_mut().enumerate().with_min_len(64).for_each(|(j, sum)| {
            *sum = dy[j..].iter().step_by(columns).map(|v| f64::from(v.widen())).sum::<f64>() as f32;
        });
        return;
    }
    let block = (BLOCK / columns).clamp(1, FEW_ROWS) * columns;
    with_shared(dy.len().div_ceil(block) * columns, |blocks: &mut [f32]| {
        blocks.par_chunks_mut(columns).zip(dy.par_chunks(block)).for_each(|(sums, dy)| rows::sums(dy, sums));
        let blocks = &*blocks;
        sums.par_iter_mut().enumerate().with_min_len(16).for_each(|(j, sum)| {
            *sum = blocks[j..].iter().step_by(columns).map(|v| f64::from(*v)).sum::<f64>() as f32;
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_summed_as_few_are() {
        for (rows, columns) in [(1, 1), (FEW_ROWS, 3), (FEW_ROWS + 1, 3), (70_001, 5), (9000, 257)] {
            let dy: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
            let mut sums = vec![f32::NAN; columns];
            column_sums(&dy, &mut sums);
            for (j, sum) in sums.iter().enumerate() {
                let exact: f64 = dy[j..].iter().step_by(columns).map(|v| f64::from(*v)).sum();
                assert!((f64::from(*sum) - exact).abs() < 1e-6 * rows as f64, "{rows}×{columns}: {sum} {exact}");
            }
        }
    }
}

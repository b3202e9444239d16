//! SGD with momentum, the momentum encoder's moving average, and sums of gradients, over flat buffers.

use rayon::prelude::*;

/// Values per piece of work; the pieces, and so the results, do not depend on the number of threads.
const PIECE: usize = 1 << 15;

/// One step of `torch.optim.SGD` (no Nesterov, no dampening), in place:
/// `d = g + weight_decay · p`, `v = momentum · v + d`, `p = p − lr · v`.
///
/// `velocity` starts at 0, which makes PyTorch's special first step (`v = d`) the general one.
///
/// # Panics
/// If the three lengths differ.
pub fn sgd_momentum(
    params: &mut [f32],
    gradients: &[f32],
    velocity: &mut [f32],
    lr: f32,
    momentum: f32,
    weight_decay: f32,
) {
    assert_eq!(params.len(), gradients.len(), "one gradient per parameter");
    assert_eq!(params.len(), velocity.len(), "one velocity per parameter");
    params.par_chunks_mut(PIECE).zip(gradients.par_chunks(PIECE)).zip(velocity.par_chunks_mut(PIECE)).for_each(
        |((params, gradients), velocity)| {
            for ((p, g), v) in params.iter_mut().zip(gradients).zip(velocity) {
                *v = momentum * *v + (*g + weight_decay * *p);
                *p -= lr * *v;
            }
        },
    );
}

/// Moving average of MoCo's momentum encoder (arXiv:1911.05722, eq. 2), in place: `target = m · target + (1 − m) · source`.
///
/// Goes over parameters only; the momentum encoder keeps its own running statistics.
///
/// # Panics
/// If the two lengths differ.
pub fn ema(target: &mut [f32], source: &[f32], m: f32) {
    assert_eq!(target.len(), source.len(), "one source value per target value");
    // 1 − m in f64, as Python computes it before it meets the f32 tensor.
    let rest = (1.0 - f64::from(m)) as f32;
    target.par_chunks_mut(PIECE).zip(source.par_chunks(PIECE)).for_each(|(target, source)| {
        for (t, s) in target.iter_mut().zip(source) {
            *t = *t * m + *s * rest;
        }
    });
}

/// `to += from`.
///
/// # Panics
/// If the two lengths differ.
pub fn add_assign(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "one value for each");
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        for (t, f) in to.iter_mut().zip(from) {
            *t += f;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// p = torch.tensor([1., -2.], requires_grad=True); o = torch.optim.SGD([p], 0.1, momentum=0.9, weight_decay=0.01)
    /// for g in ([.5, .25], [-1., 2.]): p.grad = torch.tensor(g); o.step()
    /// ```
    #[test]
    fn two_steps_match_torch_sgd() {
        let (mut p, mut v) = ([1.0f32, -2.0], [0.0f32; 2]);
        sgd_momentum(&mut p, &[0.5, 0.25], &mut v, 0.1, 0.9, 0.01);
        sgd_momentum(&mut p, &[-1.0, 2.0], &mut v, 0.1, 0.9, 0.01);
        let first = [1.0 - 0.1 * 0.51, -2.0 - 0.1 * 0.23];
        let second = [0.9 * 0.51 - 1.0 + 0.01 * first[0], 0.9 * 0.23 + 2.0 + 0.01 * first[1]];
        for i in 0..2 {
            assert!((f64::from(p[i]) - (first[i] - 0.1 * second[i])).abs() < 1e-6, "{i}: {}", p[i]);
            assert!((f64::from(v[i]) - second[i]).abs() < 1e-6, "{i}: {}", v[i]);
        }
    }

    #[test]
    fn ema_moves_towards_the_source_by_one_minus_m() {
        let mut target = vec![1.0f32; 100_000];
        ema(&mut target, &vec![3.0; 100_000], 0.75);
        assert!(target.iter().all(|&t| t == 1.5));
    }
}

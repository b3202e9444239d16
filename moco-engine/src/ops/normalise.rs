//! Rows scaled to unit length, as `torch.nn.functional.normalize(x, dim=1)` does.

use rayon::prelude::*;

/// `torch.nn.functional.normalize`'s default: a row shorter than this is divided by it instead of by its length.
const EPS: f32 = 1e-12;

/// Divides every row of `x` [n, dim] by max(‖row‖, 1e-12) into `y` [n, dim].
///
/// # Panics
/// If the lengths differ or are not a multiple of `dim`.
pub fn l2_normalise(x: &[f32], dim: usize, y: &mut [f32]) {
    check(dim, &[x.len(), y.len()]);
    x.par_chunks(dim).zip(y.par_chunks_mut(dim)).for_each(|(x, y)| {
        let scale = 1.0 / norm(x).max(EPS);
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * scale;
        }
    });
}

/// Gradient of [`l2_normalise`]: with `y = x / ‖x‖`, `dx = (dy − y (y · dy)) / ‖x‖`; for a row below 1e-12, where the
/// divisor is constant, `dx = dy / 1e-12`.
/// - `x` [n, dim]: the rows before normalisation.   - `dy` [n, dim].   - `dx` [n, dim]: overwritten.
///
/// # Panics
/// If the lengths differ or are not a multiple of `dim`.
pub fn l2_normalise_backward(x: &[f32], dy: &[f32], dim: usize, dx: &mut [f32]) {
    check(dim, &[x.len(), dy.len(), dx.len()]);
    x.par_chunks(dim).zip(dy.par_chunks(dim)).zip(dx.par_chunks_mut(dim)).for_each(|((x, dy), dx)| {
        let norm = norm(x);
        let scale = 1.0 / norm.max(EPS);
        let along = if norm > EPS {
            let dot: f64 = x.iter().zip(dy).map(|(x, dy)| f64::from(*x) * f64::from(*dy)).sum();
            (dot * f64::from(scale) * f64::from(scale)) as f32
        } else {
            0.0
        };
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = (dy - x * along) * scale;
        }
    });
}

fn norm(row: &[f32]) -> f32 {
    row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
}

fn check(dim: usize, lens: &[usize]) {
    assert!(dim > 0 && lens.iter().all(|l| *l == lens[0] && l.is_multiple_of(dim)), "rows of {dim} in {lens:?} values");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_unit_length_and_a_zero_row_stays_zero() {
        let mut y = [9.0; 4];
        l2_normalise(&[3.0, 4.0, 0.0, 0.0], 2, &mut y);
        assert_eq!(y, [0.6, 0.8, 0.0, 0.0]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let x: Vec<f32> = (0..10).map(|i| ((i * 7 + 3) % 11) as f32 / 5.0 - 1.0).collect();
        let dy: Vec<f32> = (0..10).map(|i| ((i * 5 + 1) % 7) as f32 / 3.0 - 1.0).collect();
        let loss = |x: &[f32]| {
            let rows = x.chunks(5).zip(dy.chunks(5));
            rows.map(|(x, dy)| {
                let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                x.iter().zip(dy).map(|(x, d)| f64::from(*x) / norm * f64::from(*d)).sum::<f64>()
            })
            .sum::<f64>()
        };
        let mut dx = vec![0.0; 10];
        l2_normalise_backward(&x, &dy, 5, &mut dx);
        for i in 0..10 {
            let (mut up, mut down) = (x.clone(), x.clone());
            (up[i], down[i]) = (x[i] + 1e-2, x[i] - 1e-2);
            let expected = (loss(&up) - loss(&down)) / (f64::from(up[i]) - f64::from(down[i]));
            assert!((f64::from(dx[i]) - expected).abs() < 1e-3, "{i}: {} {expected}", dx[i]);
        }
    }
}

//! Spread and effective rank of a set of embeddings.

/// Standard deviation over rows of each column of `rows` [n, dim], averaged over the columns; 0 for fewer than 2 rows.
pub fn feature_std(rows: &[f32], dim: usize) -> f64 {
    let n = rows.len() / dim;
    if n < 2 {
        return 0.0;
    }
    let (mut sum, mut squares) = (vec![0.0f64; dim], vec![0.0f64; dim]);
    for row in rows.chunks_exact(dim) {
        for ((s, q), &v) in sum.iter_mut().zip(&mut squares).zip(row) {
            *s += f64::from(v);
            *q += f64::from(v) * f64::from(v);
        }
    }
    let n = n as f64;
    let std = |(s, q): (&f64, &f64)| ((q - s * s / n) / (n - 1.0)).max(0.0).sqrt();
    sum.iter().zip(&squares).map(std).sum::<f64>() / dim as f64
}

/// RankMe (arXiv:2210.02885): `exp(−Σ p log p)` with `p = σ / Σσ` over the singular values σ of `rows` [n, dim];
/// between 1 (all rows parallel) and min(n, dim). 0 for no rows or only zeros.
pub fn effective_rank(rows: &[f32], dim: usize) -> f64 {
    let n = rows.len() / dim.max(1);
    if n == 0 || dim == 0 {
        return 0.0;
    }
    let sigmas: Vec<f64> = eigenvalues(gram(rows, n, dim)).into_iter().map(|e| e.max(0.0).sqrt()).collect();
    let total: f64 = sigmas.iter().sum();
    if total <= 0.0 || !total.is_finite() {
        return 0.0;
    }
    let entropy: f64 = sigmas.iter().map(|s| s / total).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// The smaller of RᵀR and RRᵀ, whose eigenvalues are the squared singular values.
fn gram(rows: &[f32], n: usize, dim: usize) -> Vec<Vec<f64>> {
    if n < dim {
        let row = |i: usize| &rows[i * dim..][..dim];
        let dot = |i, j| row(i).iter().zip(row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        return (0..n).map(|i| (0..n).map(|j| dot(i, j)).collect()).collect();
    }
    let mut gram = vec![vec![0.0; dim]; dim];
    for row in rows.chunks_exact(dim) {
        for (line, &a) in gram.iter_mut().zip(row) {
            for (g, &b) in line.iter_mut().zip(row) {
                *g += f64::from(a) * f64::from(b);
            }
        }
    }
    gram
}

/// Eigenvalues of a symmetric matrix: Householder reduction to tridiagonal form, then implicit QL (Golub and Van Loan,
/// Matrix Computations, §8.3).
fn eigenvalues(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    let (mut diagonal, mut off) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n {
        diagonal[k] = a[k][k];
        if k + 2 > n {
            break;
        }
        let norm = (k + 1..n).map(|i| a[i][k] * a[i][k]).sum::<f64>().sqrt();
        let alpha = if a[k + 1][k] > 0.0 { -norm } else { norm };
        off[k] = alpha;
        let mut v: Vec<f64> = (k + 1..n).map(|i| a[i][k]).collect();
        v[0] -= alpha;
        let vv: f64 = v.iter().map(|x| x * x).sum();
        if vv == 0.0 {
            continue;
        }
        // A ← H A H with H = I − 2 v vᵀ / vᵀv, on the trailing block: A − v wᵀ − w vᵀ.
        let p: Vec<f64> =
            (k + 1..n).map(|i| 2.0 / vv * v.iter().zip(&a[i][k + 1..]).map(|(x, y)| x * y).sum::<f64>()).collect();
        let shift = v.iter().zip(&p).map(|(x, y)| x * y).sum::<f64>() / vv;
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - shift * v).collect();
        for i in 0..v.len() {
            for j in 0..v.len() {
                a[k + 1 + i][k + 1 + j] -= v[i] * w[j] + w[i] * v[j];
            }
        }
    }
    implicit_ql(&mut diagonal, &mut off);
    diagonal
}

fn implicit_ql(d: &mut [f64], e: &mut [f64]) {
    const MOST_ROUNDS: usize = 60;
    let n = d.len();
    for l in 0..n {
        for _ in 0..MOST_ROUNDS {
            let m = (l..n - 1).find(|&m| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs())).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let mut r = g.hypot(1.0);
            g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut underflow = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    underflow = true;
                    break;
                }
                s = f / r;
                c = g / r;
                g = d[i + 1] - p;
                r = (d[i] - g) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g + p;
                g = c * r - b;
            }
            if !underflow {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_a_known_matrix() {
        // The second difference matrix of order n has eigenvalues 2 − 2 cos(kπ / (n + 1)).
        let n = 9;
        let a = (0..n).map(|i: usize| (0..n).map(|j| [2.0, -1.0, 0.0][i.abs_diff(j).min(2)]).collect()).collect();
        let mut got = eigenvalues(a);
        got.sort_by(f64::total_cmp);
        for (k, value) in got.iter().enumerate() {
            let expected = 2.0 - 2.0 * ((k + 1) as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - expected).abs() < 1e-12, "{k}: {value} instead of {expected}");
        }
    }

    #[test]
    fn full_matrices_keep_trace_and_squared_norm() {
        let n = 17;
        let value = |i: usize, j: usize| (((i * j + i + j) * 7919) % 101) as f64 / 50.0 - 1.0;
        let a: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| value(i, j)).collect()).collect();
        let trace: f64 = (0..n).map(|i| a[i][i]).sum();
        let squares: f64 = a.iter().flatten().map(|x| x * x).sum();
        let e = eigenvalues(a);
        assert!((e.iter().sum::<f64>() - trace).abs() < 1e-10);
        assert!((e.iter().map(|x| x * x).sum::<f64>() - squares).abs() < 1e-9);
    }

    #[test]
    fn rank_counts_directions_whatever_the_shape() {
        let unit = |n: usize, dim: usize, directions: usize| -> Vec<f32> {
            (0..n * dim).map(|i| f32::from(i % dim == (i / dim) % directions)).collect()
        };
        for (n, dim, directions) in [(12, 5, 3), (12, 5, 5), (4, 9, 2), (1, 3, 1), (64, 64, 64)] {
            let got = effective_rank(&unit(n, dim, directions), dim);
            let expected = directions.min(n) as f64;
            assert!((got - expected).abs() < 0.05 * expected, "{n}×{dim}: {got} instead of {expected}");
        }
        assert_eq!(effective_rank(&[0.0; 6], 3), 0.0);
        assert_eq!(effective_rank(&[], 3), 0.0);
    }

    #[test]
    fn std_is_over_rows() {
        assert_eq!(feature_std(&[1.0, 5.0, 1.0, 5.0, 1.0, 5.0], 2), 0.0);
        assert!((feature_std(&[0.0, 1.0, 2.0, 1.0], 2) - 2f64.sqrt() / 2.0).abs() < 1e-12);
    }
}

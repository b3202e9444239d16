//! The product against a sum in f64, on every instruction set of this CPU.

use half::bf16;

use super::*;

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn stored<T: Element>(values: &[f32]) -> Vec<T> {
    values.iter().map(|v| T::narrow(*v)).collect()
}

/// What storing as `T` loses of a value, at most.
fn rounding<T: Element>(value: f64) -> f64 {
    if T::PER_WORD == 1 { 0.0 } else { value.abs() / 256.0 }
}

fn reference<A: Element, B: Element, C: Element>(p: Gemm, a: &[A], b: &[B], c: &[C]) -> Vec<f64> {
    // B is rounded to the precision of A.
    let wide = |b: &[B]| b.iter().map(|v| A::narrow(v.widen()).widen()).collect::<Vec<f32>>();
    let (a, b, c): (Vec<f32>, _, Vec<f32>) =
        (a.iter().map(|v| v.widen()).collect(), wide(b), c.iter().map(|v| v.widen()).collect());
    let at = |i, k| f64::from(if p.a_transposed { a[k * p.m + i] } else { a[i * p.k + k] });
    let bt = |k, j| f64::from(if p.b_transposed { b[j * p.k + k] } else { b[k * p.n + j] });
    (0..p.m * p.n)
        .map(|at_c| {
            let (i, j) = (at_c / p.n, at_c % p.n);
            let start = if p.accumulate { f64::from(c[at_c]) } else { 0.0 };
            start + (0..p.k).map(|k| at(i, k) * bt(k, j)).sum::<f64>()
        })
        .collect()
}

#[test]
fn every_layout_and_awkward_size_agrees_with_f64() {
    let sizes = [
        (0, 5, 3),
        (4, 0, 3),
        (3, 4, 0),
        (1, 1, 1),
        (2, 7, 33),
        (33, 17, 5),
        (63, 65, 257),
        (230, 40, 300),
        (15, 1100, 1030),
    ];
    for level in Level::available() {
        for (m, n, k) in sizes {
            for flags in 0..8 {
                let mut p = Gemm::new(m, n, k);
                (p.a_transposed, p.b_transposed, p.accumulate) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
                check::<f32, f32, f32>(level, p);
                check::<bf16, bf16, bf16>(level, p);
                check::<bf16, bf16, f32>(level, p);
                check::<bf16, f32, bf16>(level, p);
            }
        }
    }
}

fn check<A: Element, B: Element, C: Element>(level: Level, p: Gemm) {
    let (a, b) = (stored::<A>(&values(p.m * p.k, 1)), stored::<B>(&values(p.k * p.n, 2)));
    let start = stored::<C>(&values(p.m * p.n, 3));
    let expected = reference(p, &a, &b, &start);
    for parallel in [false, true] {
        let mut c = start.clone();
        gemm_at(level, p, &a, &b, &mut c, parallel);
        for (i, (&got, &want)) in c.iter().zip(&expected).enumerate() {
            let bound = 1e-6 * (p.k as f64).sqrt().max(1.0) * 4.0 + rounding::<C>(want);
            let got = f64::from(got.widen());
            assert!((got - want).abs() <= bound, "{level:?} {p:?} [{i}]: {got}, expected {want} ± {bound}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let p = Gemm::new(700, 130, 520);
    let (a, b) = (values(p.m * p.k, 1), values(p.k * p.n, 2));
    let run = |threads| {
        let mut c = vec![0.0; p.m * p.n];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gemm(p, &a, &b, &mut c));
        c
    };
    let one = run(1);
    assert!((2..=5).all(|threads| run(threads) == one));
}

//! AVX2 + FMA tiles of up to 6×16: 12 accumulators, two vectors of B and one broadcast of A in 16 registers.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use std::arch::x86_64::*;

use super::tile::{Lhs, PITCH, Tile};

/// Runs the kernel for `mr` rows and `vectors` vectors of columns.
///
/// # Safety
/// AVX2 and FMA are there, `1 <= mr <= 6`, `1 <= vectors <= 2`, and the buffers of `t` hold the tile ([`Tile`]).
pub(super) unsafe fn tile(lhs: Lhs, mr: usize, vectors: usize, t: &Tile) {
    macro_rules! rows {
        ($($mr:literal)*) => {
            match (mr, vectors, lhs) {
                $(
                    // SAFETY: the caller's promise.
                    ($mr, 1, Lhs::Rows) => unsafe { kernel::<$mr, 1, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 1, Lhs::Columns) => unsafe { kernel::<$mr, 1, 1, PITCH>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, Lhs::Rows) => unsafe { kernel::<$mr, 2, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, Lhs::Columns) => unsafe { kernel::<$mr, 2, 1, PITCH>(t) },
                )*
                _ => unreachable!("tiles have 1 to 6 rows and 1 or 2 vectors"),
            }
        };
    }
    rows!(1 2 3 4 5 6)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn kernel<const MR: usize, const NV: usize, const A_ROW: usize, const A_STEP: usize>(t: &Tile) {
    let mut acc = [[_mm256_setzero_ps(); NV]; MR];
    let (mut a, mut b, mut ahead) = (t.a, t.b, t.ahead);
    for _ in 0..t.k {
        let mut bv = [_mm256_setzero_ps(); NV];
        for (v, bv) in bv.iter_mut().enumerate() {
            // SAFETY: B has `NV` vectors in each of its k rows.
            *bv = unsafe { _mm256_loadu_ps(b.add(8 * v)) };
        }
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: A has MR values for each of the k steps.
            let av = _mm256_set1_ps(unsafe { *a.add(i * A_ROW) });
            for v in 0..NV {
                acc[v] = _mm256_fmadd_ps(av, bv[v], acc[v]);
            }
        }
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(t.ahead_step);
        a = a.wrapping_add(A_STEP);
        b = b.wrapping_add(t.b_step);
    }
    for (i, acc) in acc.iter().enumerate() {
        for (v, &sum) in acc.iter().enumerate() {
            let left = t.cols - 8 * v;
            // SAFETY: row i of C has `cols` values; the partial branch touches only those.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + 8 * v);
                if left >= 8 {
                    let sum = if t.accumulate { _mm256_add_ps(_mm256_loadu_ps(c), sum) } else { sum };
                    _mm256_storeu_ps(c, sum);
                } else {
                    let mut values = [0.0; 8];
                    _mm256_storeu_ps(values.as_mut_ptr(), sum);
                    for (j, value) in values[..left].iter().enumerate() {
                        *c.add(j) = if t.accumulate { *c.add(j) + value } else { *value };
                    }
                }
            }
        }
    }
}

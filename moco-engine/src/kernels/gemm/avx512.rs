//! AVX-512 tiles of up to 14×32: 28 accumulators, two vectors of B and one broadcast of A in 32 registers.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use std::arch::x86_64::*;

use super::tile::{Lhs, PITCH, Tile};

/// Runs the kernel for `mr` rows and `vectors` vectors of columns.
///
/// # Safety
/// AVX-512F is there, `1 <= mr <= 14`, `1 <= vectors <= 2`, and the buffers of `t` hold the tile ([`Tile`]).
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
                _ => unreachable!("tiles have 1 to 14 rows and 1 or 2 vectors"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[target_feature(enable = "avx512f")]
unsafe fn kernel<const MR: usize, const NV: usize, const A_ROW: usize, const A_STEP: usize>(t: &Tile) {
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    let (mut a, mut b, mut ahead) = (t.a, t.b, t.ahead);
    // The lines of C come from memory while the sum is formed.
    for i in 0..MR {
        // SAFETY: row i of C exists; prefetching touches nothing.
        let c = unsafe { t.c.wrapping_add(*t.rows.add(i)) };
        for v in 0..NV {
            _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(16 * v).cast());
        }
    }
    for _ in 0..t.k {
        let mut bv = [_mm512_setzero_ps(); NV];
        for (v, bv) in bv.iter_mut().enumerate() {
            // SAFETY: B has `NV` vectors in each of its k rows.
            *bv = unsafe { _mm512_loadu_ps(b.add(16 * v)) };
        }
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: A has MR values for each of the k steps.
            let av = _mm512_set1_ps(unsafe { *a.add(i * A_ROW) });
            for v in 0..NV {
                acc[v] = _mm512_fmadd_ps(av, bv[v], acc[v]);
            }
        }
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(t.ahead_step);
        a = a.wrapping_add(A_STEP);
        b = b.wrapping_add(t.b_step);
    }
    if t.cols == 16 * NV {
        for (i, acc) in acc.iter().enumerate() {
            for (v, &sum) in acc.iter().enumerate() {
                // SAFETY: row i of C has `cols` values.
                unsafe {
                    let c = t.c.add(*t.rows.add(i) + 16 * v);
                    let sum = if t.accumulate { _mm512_add_ps(_mm512_loadu_ps(c), sum) } else { sum };
                    _mm512_storeu_ps(c, sum);
                }
            }
        }
        return;
    }
    for (i, acc) in acc.iter().enumerate() {
        for (v, &sum) in acc.iter().enumerate() {
            let mask = ((1u32 << (t.cols - 16 * v).min(16)) - 1) as __mmask16;
            // SAFETY: row i of C has `cols` values; the mask leaves the rest alone.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + 16 * v);
                let sum = if t.accumulate { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum) } else { sum };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}

//! AVX2 + FMA tiles of up to 6×16: 12 accumulators, two vectors of B and one broadcast of A in 16 registers.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use std::arch::x86_64::*;

use super::tile::{BLOCK, PITCH, Tile};
use crate::kernels::element::Element;

/// Runs the kernel for products of `T`, with `mr` rows and `vectors` vectors of columns.
///
/// # Safety
/// AVX2 and FMA are there, `1 <= mr <= 6`, `1 <= vectors <= 2`, and the buffers of `t` hold the tile ([`Tile`]).
pub(super) unsafe fn tile<T: Element, O: Element>(by_columns: bool, mr: usize, vectors: usize, t: &Tile<O>) {
    macro_rules! rows {
        ($($mr:literal)*) => {
            match (mr, vectors, by_columns) {
                $(
                    // SAFETY: the caller's promise.
                    ($mr, 1, false) => unsafe { kernel::<T, O, $mr, 1, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 1, true) => unsafe { kernel::<T, O, $mr, 1, 1, PITCH>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, false) => unsafe { kernel::<T, O, $mr, 2, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, true) => unsafe { kernel::<T, O, $mr, 2, 1, PITCH>(t) },
                )*
                _ => unreachable!("tiles have 1 to 6 rows and 1 or 2 vectors"),
            }
        };
    }
    rows!(1 2 3 4 5 6)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn kernel<T: Element, O: Element, const MR: usize, const NV: usize, const A_ROW: usize, const A_STEP: usize>(
    t: &Tile<O>,
) {
    let mut acc = [[_mm256_setzero_ps(); NV]; MR];
    let (mut a, mut b, mut ahead) = (t.a, t.b, t.ahead);
    let mut left = t.k;
    while left > 0 {
        let depth = left.min(BLOCK);
        left -= depth;
        for _ in 0..depth {
            let mut bv = [_mm256_setzero_ps(); NV];
            for (v, bv) in bv.iter_mut().enumerate() {
                // SAFETY: B has `NV` vectors in each of its k rows.
                *bv = unsafe { _mm256_loadu_ps(b.add(8 * v).cast()) };
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: A has MR words for each of the k steps.
                let av = _mm256_set1_ps(unsafe { *a.add(i * A_ROW).cast() });
                for v in 0..NV {
                    acc[v] = dot::<T>(acc[v], av, bv[v]);
                }
            }
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            ahead = ahead.wrapping_add(t.ahead_step);
            a = a.wrapping_add(A_STEP);
            b = b.wrapping_add(t.b_step);
        }
        a = a.wrapping_add(t.a_skip);
    }
    if t.cols < 8 * NV {
        // A copy, so that the sums of the other case need not be in memory.
        let sums = acc;
        // SAFETY: the caller's promise.
        return unsafe { store_part(&sums, t) };
    }
    for (i, acc) in acc.iter().enumerate() {
        for (v, &sum) in acc.iter().enumerate() {
            // SAFETY: row i of C has `cols` values.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + 8 * v);
                let sum = if t.accumulate { _mm256_add_ps(O::load_256(c), sum) } else { sum };
                O::store_256(c, sum);
            }
        }
    }
}

/// Writes the columns of C that exist, fewer than there are sums.
///
/// # Safety
/// AVX2 is there, and C has the tile's rows and columns.
#[cold]
#[target_feature(enable = "avx2")]
unsafe fn store_part<O: Element, const MR: usize, const NV: usize>(sums: &[[__m256; NV]; MR], t: &Tile<O>) {
    for (i, sums) in sums.iter().enumerate() {
        let mut values = [[0.0; 8]; NV];
        for (values, &sum) in values.iter_mut().zip(sums) {
            // SAFETY: an array of eight values.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), sum) };
        }
        for (j, &value) in values.as_flattened()[..t.cols].iter().enumerate() {
            // SAFETY: row i of C has `cols` values.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + j);
                *c = O::narrow(if t.accumulate { (*c).widen() + value } else { value });
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot<T: Element>(sum: __m256, a: __m256, b: __m256) -> __m256 {
    if T::PER_WORD == 1 {
        return _mm256_fmadd_ps(a, b, sum);
    }
    let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
    let upper = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
    let second = |v| _mm256_castsi256_ps(_mm256_and_si256(v, upper));
    let first = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
    _mm256_fmadd_ps(second(a), second(b), _mm256_fmadd_ps(first(a), first(b), sum))
}

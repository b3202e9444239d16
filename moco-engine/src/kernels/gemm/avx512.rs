//! AVX-512 tiles of up to 14×32: 28 accumulators, two vectors of B and one broadcast of A in 32 registers.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use std::arch::x86_64::*;

use super::tile::{BLOCK, PITCH, Tile};
use crate::kernels::element::Element;

/// Runs the kernel for products of `T`, with `mr` rows and `vectors` vectors of columns; `native` tells whether the CPU
/// multiplies bf16.
///
/// # Safety
/// AVX-512F is there, and AVX512-BF16 if `native`; `1 <= mr <= 14`, `1 <= vectors <= 2`, and the buffers of `t` hold the
/// tile ([`Tile`]).
pub(super) unsafe fn tile<T: Element, O: Element>(
    native: bool,
    by_columns: bool,
    mr: usize,
    vectors: usize,
    t: &Tile<O>,
) {
    macro_rules! rows {
        ($kernel:ident: $($mr:literal)*) => {
            match (mr, vectors, by_columns) {
                $(
                    // SAFETY: the caller's promise.
                    ($mr, 1, false) => unsafe { $kernel::<O, $mr, 1, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 1, true) => unsafe { $kernel::<O, $mr, 1, 1, PITCH>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, false) => unsafe { $kernel::<O, $mr, 2, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, 2, true) => unsafe { $kernel::<O, $mr, 2, 1, PITCH>(t) },
                )*
                _ => unreachable!("tiles have 1 to 14 rows and 1 or 2 vectors"),
            }
        };
    }
    if T::PER_WORD == 1 {
        rows!(single: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    } else if native {
        rows!(pairs: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    } else {
        rows!(widened_pairs: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// A kernel that adds the product of two vectors of words by `$dot(sum, a, b)` and writes C by `$store`.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ident, $store:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The features are there, and the buffers of `t` hold the tile.
        #[target_feature(enable = $features)]
        unsafe fn $name<O: Element, const MR: usize, const NV: usize, const A_ROW: usize, const A_STEP: usize>(
            t: &Tile<O>,
        ) {
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
            let mut left = t.k;
            while left > 0 {
                let depth = left.min(BLOCK);
                left -= depth;
                for _ in 0..depth {
                    let mut bv = [_mm512_setzero_ps(); NV];
                    for (v, bv) in bv.iter_mut().enumerate() {
                        // SAFETY: B has `NV` vectors in each of its k rows.
                        *bv = unsafe { _mm512_loadu_ps(b.add(16 * v).cast()) };
                    }
                    for (i, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: A has MR words for each of the k steps.
                        let av = _mm512_set1_ps(unsafe { *a.add(i * A_ROW).cast() });
                        for v in 0..NV {
                            acc[v] = $dot(acc[v], av, bv[v]);
                        }
                    }
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                    ahead = ahead.wrapping_add(t.ahead_step);
                    a = a.wrapping_add(A_STEP);
                    b = b.wrapping_add(t.b_step);
                }
                a = a.wrapping_add(t.a_skip);
            }
            if t.cols < 16 * NV {
                // A copy, so that the sums of the other case need not be in memory.
                let sums = acc;
                // SAFETY: the caller's promise.
                return unsafe { store_part(&sums, t) };
            }
            for (i, acc) in acc.iter().enumerate() {
                for (v, &sum) in acc.iter().enumerate() {
                    // SAFETY: row i of C has `cols` values.
                    unsafe {
                        let c = t.c.add(*t.rows.add(i) + 16 * v);
                        let sum = if t.accumulate { _mm512_add_ps(O::load_512(c), sum) } else { sum };
                        O::$store(c, sum);
                    }
                }
            }
        }
    };
}

/// Writes the columns of C that exist, fewer than there are sums.
///
/// # Safety
/// AVX-512F is there, and C has the tile's rows and columns.
#[cold]
#[target_feature(enable = "avx512f")]
unsafe fn store_part<O: Element, const MR: usize, const NV: usize>(sums: &[[__m512; NV]; MR], t: &Tile<O>) {
    for (i, sums) in sums.iter().enumerate() {
        let mut values = [[0.0; 16]; NV];
        for (values, &sum) in values.iter_mut().zip(sums) {
            // SAFETY: an array of sixteen values.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), sum) };
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

kernel!(
    /// Words of one f32.
    single, "avx512f", dot_single, store_512
);
kernel!(
    /// Words of two bf16, multiplied as they are.
    pairs, "avx512f,avx512bf16", dot_pairs, store_512_native
);
kernel!(
    /// Words of two bf16, widened first.
    widened_pairs, "avx512f", dot_widened_pairs, store_512
);

#[inline]
#[target_feature(enable = "avx512f")]
fn dot_single(sum: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, sum)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: both types are 512 bits without invalid values.
    let [a, b] = unsafe { [std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b)] };
    _mm512_dpbf16_ps(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn dot_widened_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
    let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    let second = |v| _mm512_castsi512_ps(_mm512_and_si512(v, upper));
    let first = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
    _mm512_fmadd_ps(second(a), second(b), _mm512_fmadd_ps(first(a), first(b), sum))
}

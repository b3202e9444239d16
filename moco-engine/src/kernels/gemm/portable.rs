//! Tiles of up to 4×8 in plain Rust, which the compiler turns into whatever vectors the target has.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use super::tile::{BLOCK, PITCH, Tile};
use crate::kernels::element::Element;

/// Runs the kernel for products of `T`, with `mr` rows and one vector of columns.
///
/// # Safety
/// `1 <= mr <= 4` and the buffers of `t` hold the tile ([`Tile`]).
pub(super) unsafe fn tile<T: Element, O: Element>(by_columns: bool, mr: usize, t: &Tile<O>) {
    macro_rules! rows {
        ($($mr:literal)*) => {
            match (mr, by_columns) {
                $(
                    // SAFETY: the caller's promise.
                    ($mr, false) => unsafe { kernel::<T, O, $mr, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, true) => unsafe { kernel::<T, O, $mr, 1, PITCH>(t) },
                )*
                _ => unreachable!("tiles have 1 to 4 rows"),
            }
        };
    }
    rows!(1 2 3 4)
}

unsafe fn kernel<T: Element, O: Element, const MR: usize, const A_ROW: usize, const A_STEP: usize>(t: &Tile<O>) {
    let mut acc = [[0.0f32; 8]; MR];
    let (mut a, mut b) = (t.a, t.b);
    let mut left = t.k;
    while left > 0 {
        let depth = left.min(BLOCK);
        left -= depth;
        for _ in 0..depth {
            // SAFETY: B has 8 words in each of its k rows.
            let bv = unsafe { b.cast::<[u32; 8]>().read() };
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: A has MR words for each of the k steps.
                let av = unsafe { *a.add(i * A_ROW) };
                for (sum, b) in acc.iter_mut().zip(bv) {
                    *sum = dot::<T>(*sum, av, b);
                }
            }
            a = a.wrapping_add(A_STEP);
            b = b.wrapping_add(t.b_step);
        }
        a = a.wrapping_add(t.a_skip);
    }
    for (i, acc) in acc.iter().enumerate() {
        for (j, &sum) in acc[..t.cols].iter().enumerate() {
            // SAFETY: row i of C has `cols` values.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + j);
                *c = O::narrow(if t.accumulate { (*c).widen() + sum } else { sum });
            }
        }
    }
}

#[inline(always)]
fn dot<T: Element>(sum: f32, a: u32, b: u32) -> f32 {
    if T::PER_WORD == 1 {
        return sum + f32::from_bits(a) * f32::from_bits(b);
    }
    let second = |v: u32| f32::from_bits(v & 0xFFFF_0000);
    let first = |v: u32| f32::from_bits(v << 16);
    sum + first(a) * first(b) + second(a) * second(b)
}

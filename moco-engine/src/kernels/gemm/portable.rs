//! Tiles of up to 4×8 in plain Rust, which the compiler turns into whatever vectors the target has.
#![expect(unsafe_code, reason = "a micro-kernel on raw pointers; bounds are asserted in `panel_product`")]

use super::tile::{Lhs, PITCH, Tile};

/// Runs the kernel for `mr` rows and one vector of columns.
///
/// # Safety
/// `1 <= mr <= 4` and the buffers of `t` hold the tile ([`Tile`]).
pub(super) unsafe fn tile(lhs: Lhs, mr: usize, t: &Tile) {
    macro_rules! rows {
        ($($mr:literal)*) => {
            match (mr, lhs) {
                $(
                    // SAFETY: the caller's promise.
                    ($mr, Lhs::Rows) => unsafe { kernel::<$mr, PITCH, 1>(t) },
                    // SAFETY: the caller's promise.
                    ($mr, Lhs::Columns) => unsafe { kernel::<$mr, 1, PITCH>(t) },
                )*
                _ => unreachable!("tiles have 1 to 4 rows"),
            }
        };
    }
    rows!(1 2 3 4)
}

unsafe fn kernel<const MR: usize, const A_ROW: usize, const A_STEP: usize>(t: &Tile) {
    let mut acc = [[0.0f32; 8]; MR];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.k {
        // SAFETY: B has 8 values in each of its k rows.
        let bv = unsafe { b.cast::<[f32; 8]>().read() };
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: A has MR values for each of the k steps.
            let av = unsafe { *a.add(i * A_ROW) };
            for (sum, b) in acc.iter_mut().zip(bv) {
                *sum += av * b;
            }
        }
        a = a.wrapping_add(A_STEP);
        b = b.wrapping_add(t.b_step);
    }
    for (i, acc) in acc.iter().enumerate() {
        for (j, &sum) in acc[..t.cols].iter().enumerate() {
            // SAFETY: row i of C has `cols` values.
            unsafe {
                let c = t.c.add(*t.rows.add(i) + j);
                *c = if t.accumulate { *c + sum } else { sum };
            }
        }
    }
}

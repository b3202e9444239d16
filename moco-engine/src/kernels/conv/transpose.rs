//! Tiles of 16 × 16 values, turned over: weights are stored by output channel and read by input channel.
#![expect(clippy::needless_range_loop, reason = "rows and columns, by their indices")]

use crate::kernels::gemm::level::{Isa, Level};

/// Side of a tile.
pub(super) const SIDE: usize = 16;

/// A tile, row after row.
pub(super) type Tile = [[f32; SIDE]; SIDE];

/// Swaps rows and columns.
#[inline]
pub(super) fn transpose(level: Level, tile: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if matches!(level.isa(), Isa::Avx512 | Isa::Avx512Bf16) {
        // SAFETY: a `Level` is only made for instruction sets that this CPU has.
        #[expect(unsafe_code, reason = "functions for a CPU feature are called after it was detected")]
        unsafe {
            avx512(tile);
        }
        return;
    }
    let _ = level;
    for i in 0..SIDE {
        for j in 0..i {
            (tile[i][j], tile[j][i]) = (tile[j][i], tile[i][j]);
        }
    }
}

/// In four rounds: pairs of values, pairs of pairs, and quarters of registers twice.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(tile: &mut Tile) {
    use std::arch::x86_64::*;
    /// Quarters 0 and 2, or 1 and 3, of both operands.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut a = [_mm512_setzero_ps(); SIDE];
    for (a, row) in a.iter_mut().zip(tile.iter()) {
        // SAFETY: a row is one vector.
        #[expect(unsafe_code, reason = "loads take pointers")]
        unsafe {
            *a = _mm512_loadu_ps(row.as_ptr());
        }
    }
    let mut b = a;
    for i in 0..SIDE / 2 {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    // Now a[4 q + r] holds column 4 p + r of rows 4 q … 4 q + 3 in its quarter p.
    for q in 0..SIDE / 4 {
        for half in 0..2 {
            let (x, y) = (_mm512_castps_pd(b[4 * q + half]), _mm512_castps_pd(b[4 * q + 2 + half]));
            a[4 * q + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            a[4 * q + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    for r in 0..4 {
        let [x, y, z, w] = [a[r], a[4 + r], a[8 + r], a[12 + r]];
        let even = [_mm512_shuffle_f32x4::<EVEN>(x, y), _mm512_shuffle_f32x4::<EVEN>(z, w)];
        let odd = [_mm512_shuffle_f32x4::<ODD>(x, y), _mm512_shuffle_f32x4::<ODD>(z, w)];
        b[r] = _mm512_shuffle_f32x4::<EVEN>(even[0], even[1]);
        b[4 + r] = _mm512_shuffle_f32x4::<EVEN>(odd[0], odd[1]);
        b[8 + r] = _mm512_shuffle_f32x4::<ODD>(even[0], even[1]);
        b[12 + r] = _mm512_shuffle_f32x4::<ODD>(odd[0], odd[1]);
    }
    for (b, row) in b.iter().zip(tile.iter_mut()) {
        // SAFETY: a row is one vector.
        #[expect(unsafe_code, reason = "stores take pointers")]
        unsafe {
            _mm512_storeu_ps(row.as_mut_ptr(), *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_change_places_at_every_level() {
        for level in Level::available() {
            let mut tile: Tile = std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as f32));
            transpose(level, &mut tile);
            for (i, row) in tile.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    assert_eq!(*value, (100 * j + i) as f32, "{level:?} {i} {j}");
                }
            }
        }
    }
}

//! Micro-kernels of [`grouped`](super::grouped) with AVX-512 and AVX2.
#![expect(unsafe_code, reason = "micro-kernels; bounds are asserted in the two functions that are called from outside")]

use super::grouped::Piece;
use crate::kernels::element::Element;
use crate::kernels::gemm::level::{Isa, Level};
use crate::kernels::gemm::tile::SharedOut;

/// Output pixels of a piece for one vector of channels: `weights` `[tap · width, step]`, the row for each pixel in `out`
/// at `offsets[row] + column`.
///
/// # Panics
/// If a slice is too short, or the level has no kernel.
///
/// # Safety
/// The calling task owns these channels of these rows of `out`.
pub(super) unsafe fn rows<T: Element>(
    level: Level,
    piece: &Piece<T>,
    weights: &[f32],
    step: usize,
    out: SharedOut<T>,
    offsets: &[usize],
    accumulate: bool,
) {
    check(level, piece, offsets.len());
    let depth = piece.taps * piece.width;
    assert!(depth == 0 || weights.len() >= (depth - 1) * step + level.lanes(), "weights of {} values", weights.len());
    let mut row = 0;
    while row < offsets.len() {
        let some = if row + 8 <= offsets.len() { 8 } else { 1 };
        // SAFETY: the lengths were checked above and in `check`; the level says that the CPU has the instructions; the
        // caller owns the outputs.
        unsafe {
            match (level.isa(), some) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Avx512Bf16, 8) => {
                    avx512::rows::<T, 8>(piece, row, weights, step, out, offsets, accumulate)
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Avx512Bf16, _) => {
                    avx512::rows::<T, 1>(piece, row, weights, step, out, offsets, accumulate)
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, 8) => {
                    avx2::rows::<T, 4>(piece, row, weights, step, out, offsets, accumulate);
                    avx2::rows::<T, 4>(piece, row + 4, weights, step, out, offsets, accumulate);
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, _) => avx2::rows::<T, 1>(piece, row, weights, step, out, offsets, accumulate),
                _ => unreachable!("`applies` excludes the portable level"),
            }
        }
        row += some;
    }
}

/// Adds the products of the pixels of a piece with `dy` `[row, channels]` to `sums` `[tap · width, channels]`.
///
/// # Panics
/// If a slice is too short, or the level has no kernel.
pub(super) fn sums<T: Element>(level: Level, piece: &Piece<T>, dy: &[T], channels: usize, sums: &mut [f32]) {
    let rows = dy.len() / channels;
    check(level, piece, rows);
    assert!(piece.column + level.lanes() <= channels && sums.len() >= piece.taps * piece.width * channels);
    macro_rules! kernel {
        ($($width:literal)*) => {
            match (level.isa(), piece.width) {
                $(
                    // SAFETY: the lengths were checked above and in `check`; the level says that the CPU has AVX-512.
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx512 | Isa::Avx512Bf16, $width) => unsafe { avx512::sums::<T, $width>(piece, rows, dy, channels, sums) },
                    // SAFETY: the lengths were checked above and in `check`; the level says that the CPU has AVX2 and FMA.
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx2, $width) if $width <= 8 => unsafe { avx2::sums::<T, $width>(piece, rows, dy, channels, sums) },
                )*
                _ => unreachable!("`applies` excludes the portable level, and groups divide a vector"),
            }
        };
    }
    kernel!(1 2 4 8 16);
}

/// Asserts what the kernels read of `x` and of the normalisation.
fn check<T: Element>(level: Level, piece: &Piece<T>, rows: usize) {
    let end = piece.column + level.lanes();
    assert_eq!(piece.places.len(), rows * piece.taps, "taps of {rows} rows");
    assert!(level.lanes().is_multiple_of(piece.width), "groups of {} channels", piece.width);
    let last = piece.places.iter().copied().filter(|&place| place != usize::MAX).max();
    assert!(last.is_none_or(|last| last + end <= piece.x.len()), "activations of {} values", piece.x.len());
    if let Some(norm) = &piece.norm {
        let last = piece.groups.iter().max().map_or(0, |last| last + end);
        let short = norm.scale.len().min(norm.shift.len());
        assert!(piece.groups.len() == rows && last <= short, "statistics of {rows} rows");
    }
}

/// The two kernels for one instruction set.
macro_rules! kernels {
    ($name:ident, $feature:literal, $lanes:literal, $widen:ident, $narrow:ident, $zero:ident, $load:ident, $store:ident, $add:ident, $mul:ident,
     $max:ident, $fma:ident, $permute:expr, $index:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $name {
            use std::arch::x86_64::*;

            use super::super::grouped::Piece;
            use crate::kernels::element::Element;
            use crate::kernels::gemm::tile::SharedOut;

            /// Lane j takes channel `c` of the group that lane j belongs to.
            fn index(width: usize, c: usize) -> [i32; $lanes] {
                std::array::from_fn(|lane| (lane / width * width + c) as i32)
            }

            macro_rules! input {
                ($piece:ident, $row:expr, $tap:expr) => {{
                    let place = $piece.places[$row * $piece.taps + $tap];
                    if place == usize::MAX {
                        $zero()
                    } else {
                        // SAFETY: `check` looked at every place and group.
                        unsafe {
                            let x = T::$widen($piece.x.as_ptr().add(place + $piece.column));
                            match $piece.norm {
                                None => x,
                                Some(norm) => {
                                    let at = $piece.groups[$row] + $piece.column;
                                    let scale = $load(norm.scale.as_ptr().add(at));
                                    let x = $add($mul(x, scale), $load(norm.shift.as_ptr().add(at)));
                                    // The second operand is the result where it is NaN.
                                    if norm.relu { $max($zero(), x) } else { x }
                                }
                            }
                        }
                    }
                }};
            }

            /// # Safety
            /// The CPU has the feature; `rows`' caller has checked the lengths and owns the outputs.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn rows<T: Element, const P: usize>(
                piece: &Piece<T>,
                first: usize,
                weights: &[f32],
                step: usize,
                out: SharedOut<T>,
                offsets: &[usize],
                accumulate: bool,
            ) {
                let mut indices = [[0; $lanes]; $lanes];
                for c in 0..piece.width {
                    indices[c] = index(piece.width, c);
                }
                let mut acc = [$zero(); P];
                let mut w = weights.as_ptr();
                for tap in 0..piece.taps {
                    let mut x = [$zero(); P];
                    for (p, x) in x.iter_mut().enumerate() {
                        *x = input!(piece, first + p, tap);
                    }
                    for index in &indices[..piece.width] {
                        // SAFETY: `weights` has a vector for each tap and channel; `index` is a vector.
                        let (index, weight) = unsafe { ($index(index.as_ptr().cast()), $load(w)) };
                        for p in 0..P {
                            acc[p] = $fma($permute(index, x[p]), weight, acc[p]);
                        }
                        w = w.wrapping_add(step);
                    }
                }
                for (p, &acc) in acc.iter().enumerate() {
                    // SAFETY: the caller owns these outputs; the slice checks its bounds.
                    unsafe {
                        let out = out.slice(offsets[first + p] + piece.column, $lanes).as_mut_ptr();
                        T::$narrow(out, if accumulate { $add(T::$widen(out), acc) } else { acc });
                    }
                }
            }

            /// # Safety
            /// The CPU has the feature; `sums`' caller has checked the lengths.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn sums<T: Element, const W: usize>(
                piece: &Piece<T>,
                rows: usize,
                dy: &[T],
                channels: usize,
                sums: &mut [f32],
            ) {
                let mut indices = [[0; $lanes]; W];
                for (c, i) in indices.iter_mut().enumerate() {
                    *i = index(W, c);
                }
                for tap in 0..piece.taps {
                    let mut acc = [$zero(); W];
                    for row in 0..rows {
                        let x = input!(piece, row, tap);
                        // SAFETY: `dy` has `rows` rows of `channels` values.
                        let dy = unsafe { T::$widen(dy.as_ptr().add(row * channels + piece.column)) };
                        for c in 0..W {
                            // SAFETY: a whole vector of indices.
                            let index = unsafe { $index(indices[c].as_ptr().cast()) };
                            acc[c] = $fma($permute(index, x), dy, acc[c]);
                        }
                    }
                    for (c, &acc) in acc.iter().enumerate() {
                        // SAFETY: `sums` has a row of `channels` values for each tap and channel of a group.
                        unsafe {
                            let sum = sums.as_mut_ptr().add((tap * W + c) * channels + piece.column);
                            $store(sum, $add($load(sum), acc));
                        }
                    }
                }
            }
        }
    };
}

kernels!(
    avx512,
    "avx512f",
    16,
    load_512,
    store_512,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_mul_ps,
    _mm512_max_ps,
    _mm512_fmadd_ps,
    _mm512_permutexvar_ps,
    _mm512_loadu_si512
);
kernels!(
    avx2,
    "avx2,fma",
    8,
    load_256,
    store_256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_mul_ps,
    _mm256_max_ps,
    _mm256_fmadd_ps,
    |index, x| _mm256_permutevar8x32_ps(x, index),
    _mm256_loadu_si256
);

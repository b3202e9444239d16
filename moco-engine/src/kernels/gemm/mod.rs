//! Matrix products on packed, cache-blocked tiles, with micro-kernels chosen by the CPU's features at run time.
//!
//! The scheme is that of BLIS (van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
//! Functionality"): B packed in panels of a tile's width that stay in the first-level cache, A in blocks that stay in the
//! second. A is not transposed while it is packed, since a micro-kernel broadcasts its values one at a time: rows are
//! copied with a fixed distance, and a row may be gathered from an image on the way ([`windows`]).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
pub(crate) mod level;
pub(crate) mod panels;
mod portable;
pub(crate) mod product;
#[cfg(test)]
mod tests;
pub(crate) mod tile;
pub(crate) mod windows;
pub(crate) mod workspace;

use super::element::Element;
pub(crate) use buffer::AlignedBuffer;
use level::Level;
use panels::Panels;
use product::{Left, Product, RowMap};
use rayon::prelude::*;
use tile::SharedOut;
use windows::Windows;
use workspace::with_shared;

/// Words of B that are packed at a time.
const PACKED_AT_ONCE: usize = 1 << 20;

/// Sizes and storage of a product `C = A · B` (or `C += A · B`); every matrix is dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// A is stored `[k, m]` instead of `[m, k]`.
    pub a_transposed: bool,
    /// B is stored `[n, k]` instead of `[k, n]`.
    pub b_transposed: bool,
    /// Add to C instead of overwriting it.
    pub accumulate: bool,
}

impl Gemm {
    /// `C[m, n] = A[m, k] · B[k, n]`, all as they are written, C overwritten.
    pub fn new(m: usize, n: usize, k: usize) -> Gemm {
        Gemm { m, n, k, a_transposed: false, b_transposed: false, accumulate: false }
    }

    /// A is stored `[k, m]`.
    pub fn a_transposed(self) -> Gemm {
        Gemm { a_transposed: true, ..self }
    }

    /// B is stored `[n, k]`, as the weight of a linear layer or the rows of a queue are.
    pub fn b_transposed(self) -> Gemm {
        Gemm { b_transposed: true, ..self }
    }

    /// Add to C.
    pub fn accumulate(self) -> Gemm {
        Gemm { accumulate: true, ..self }
    }
}

/// The product on rayon's current thread pool; the result does not depend on the number of threads. A and B are
/// multiplied in the precision of A, sums are formed in f32.
///
/// B is packed (copied) on every call: where one operand is much larger than the other, let it be A.
///
/// # Panics
/// If a slice is not exactly as long as its matrix.
pub fn gemm<A: Element, B: Element, C: Element>(p: Gemm, a: &[A], b: &[B], c: &mut [C]) {
    gemm_at(Level::detect(), p, a, b, c, true);
}

/// [`gemm`] on the calling thread alone, for callers that are already one of many tasks.
///
/// # Panics
/// If a slice is not exactly as long as its matrix.
pub fn gemm_serial<A: Element, B: Element, C: Element>(p: Gemm, a: &[A], b: &[B], c: &mut [C]) {
    gemm_at(Level::detect(), p, a, b, c, false);
}

fn gemm_at<A: Element, B: Element, C: Element>(level: Level, p: Gemm, a: &[A], b: &[B], c: &mut [C], parallel: bool) {
    assert_eq!(a.len(), p.m * p.k, "A of {p:?}");
    assert_eq!(b.len(), p.k * p.n, "B of {p:?}");
    assert_eq!(c.len(), p.m * p.n, "C of {p:?}");
    if p.m == 0 || p.n == 0 {
        return;
    }
    if p.k == 0 {
        if !p.accumulate {
            c.fill(C::zeroed());
        }
        return;
    }
    let panels = Panels::new::<A>(level, p.k, p.n);
    let left = if p.a_transposed {
        Left::Transposed { a, m: p.m }
    } else {
        Left::Windows { windows: Windows::matrix(p.m, p.k), x: a, norm: None }
    };
    let out = SharedOut::new(c);
    let one = panels.words() * level.tile_cols();
    let at_once = (PACKED_AT_ONCE / one).clamp(1, panels.count());
    let packed_len = Panels::new::<A>(level, p.k, p.n.min(at_once * level.tile_cols())).len();
    with_shared(packed_len, |packed: &mut [u32]| {
        for first in (0..panels.count()).step_by(at_once) {
            let column = panels.column(first);
            let part = Panels::new::<A>(level, p.k, (p.n - column).min(at_once * level.tile_cols()));
            let packed = &mut packed[..part.len()];
            let pack = |(i, out): (usize, &mut [u32])| panels.pack::<B, A>(first + i, b, p.b_transposed, out);
            if parallel {
                packed.par_chunks_mut(one).enumerate().for_each(pack);
            } else {
                packed.chunks_mut(one).enumerate().for_each(pack);
            }
            let mut map = RowMap::dense(p.m, p.n);
            map.base = column;
            let product = Product {
                level,
                rows: p.m,
                left,
                panels: part,
                b: packed,
                out,
                map,
                accumulate: p.accumulate,
                finish: None,
            };
            // SAFETY: `c` is borrowed by this function, its rows do not overlap, and parts follow one another.
            #[expect(unsafe_code, reason = "the output is shared by tasks")]
            unsafe {
                if parallel { product.run() } else { product.run_serial() }
            }
        }
    });
}

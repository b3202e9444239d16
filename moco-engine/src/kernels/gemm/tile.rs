//! The register tile: `C[rows, cols] (+)= A[rows, k] · B[k, cols]` with all accumulators in registers.

use super::level::{Isa, Level};
use crate::kernels::element::Element;

/// Distance in words between two rows of a gathered block. 17 cache lines, so that rows of a tile fall into different
/// sets of the cache; the micro-kernels have it built in, so that one pointer serves all rows.
pub(crate) const PITCH: usize = 272;

/// Columns of a gathered block that may be used, in words. What is deeper lies in further blocks, see [`panel_product`].
pub(crate) const BLOCK: usize = 256;

/// How a tile finds A, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lhs {
    /// `A[i, k]` at `i · PITCH + k` of block `k / BLOCK`; blocks are `step` apart.
    Rows {
        /// From one block to the next.
        step: usize,
    },
    /// `A[i, k]` at `k · PITCH + i`.
    Columns,
}

/// Arguments of a micro-kernel; A and B in words.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "nothing is prefetched there"))]
pub(super) struct Tile<O> {
    /// Words of the inner dimension.
    pub(super) k: usize,
    pub(super) a: *const u32,
    /// What has to be added to A's place behind each [`BLOCK`] of words.
    pub(super) a_skip: usize,
    pub(super) b: *const u32,
    /// Words between B's rows.
    pub(super) b_step: usize,
    pub(super) c: *mut O,
    /// Offset of each row in C.
    pub(super) rows: *const usize,
    pub(super) cols: usize,
    pub(super) accumulate: bool,
    /// A cache line to fetch in each step of k, and the distance to the next, in bytes.
    pub(super) ahead: *const u8,
    pub(super) ahead_step: usize,
}

/// A region of memory that the tasks of one operation write at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<T> {
    ptr: *mut T,
    len: usize,
}

#[expect(unsafe_code, reason = "tasks share the output and write disjoint parts of it")]
// SAFETY: every use goes through unsafe functions whose callers promise disjoint access.
unsafe impl<T: Send> Send for SharedOut<T> {}
#[expect(unsafe_code, reason = "tasks share the output and write disjoint parts of it")]
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedOut<T> {}

impl<T> SharedOut<T> {
    /// Borrows `out` for as long as the tasks of the caller run; the caller must not use `out` meanwhile.
    pub(crate) fn new(out: &mut [T]) -> SharedOut<T> {
        SharedOut { ptr: out.as_mut_ptr(), len: out.len() }
    }

    /// `len` values from `start`.
    ///
    /// # Safety
    /// The slice given to [`SharedOut::new`] is still borrowed, and no other task reads or writes these values while
    /// the result lives.
    #[expect(unsafe_code, reason = "tasks share the output and write disjoint parts of it")]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} values of {}", self.len);
        // SAFETY: inside the region by the assertion, valid and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// `C[i, j] (+)= Σ_k A[i, k] · B[k, j]` of products of `T` for `i < rows.len()`, `j < cols`, `k < depth` words, where
/// `C[i, j]` lies at `rows[i] + column + j` of `out` and `B[k, j]` at `k · b_step + j`. The sum over k is formed in f32,
/// in order, and then added and rounded once, so that results do not depend on how rows and columns are divided into
/// calls. `ahead` is memory that will be read soon: it is fetched into the second-level cache on the way, a line in each
/// step, and shortened by what was fetched.
///
/// # Panics
/// If a buffer is too short.
///
/// # Safety
/// The slice given to [`SharedOut::new`] is still borrowed, and no other task touches the values written.
#[expect(unsafe_code, reason = "entry of the micro-kernels")]
#[expect(clippy::too_many_arguments, reason = "the three matrices of a product")]
pub(crate) unsafe fn panel_product<T: Element, O: Element>(
    level: Level,
    lhs: Lhs,
    depth: usize,
    a: &[u32],
    b: &[u32],
    b_step: usize,
    cols: usize,
    out: SharedOut<O>,
    rows: &[usize],
    column: usize,
    accumulate: bool,
    ahead: &mut &[T],
) {
    if rows.is_empty() || cols == 0 {
        return;
    }
    let vectors = cols.div_ceil(level.lanes());
    let (a_end, a_skip) = match lhs {
        Lhs::Rows { step } => {
            let blocks = depth.div_ceil(BLOCK).max(1);
            assert!(blocks == 1 || step >= BLOCK, "blocks {step} apart");
            let last = depth - (blocks - 1) * BLOCK;
            ((blocks - 1) * step + (rows.len() - 1) * PITCH + last, step.wrapping_sub(BLOCK))
        }
        Lhs::Columns => {
            assert!(rows.len() <= PITCH, "{} columns of A", rows.len());
            (depth.saturating_sub(1) * PITCH + rows.len(), 0)
        }
    };
    assert!(cols <= level.tile_cols(), "{cols} columns");
    assert!(depth == 0 || a.len() >= a_end, "A of {} words", a.len());
    assert!(depth == 0 || b.len() >= (depth - 1) * b_step + vectors * level.lanes(), "B of {} words", b.len());
    let last = rows.iter().max().expect("there are rows") + column;
    assert!(last <= out.len && cols <= out.len - last, "C of {} values", out.len);
    let full = level.tile_rows();
    let line = 64 / size_of::<T>();
    let mut i = 0;
    while i < rows.len() {
        let mr = full.min(rows.len() - i);
        let (ahead_now, ahead_step) =
            if ahead.is_empty() { (b.as_ptr().cast(), 0) } else { (ahead.as_ptr().cast(), 64) };
        *ahead = &ahead[(line * depth).min(ahead.len())..];
        let tile = Tile {
            ahead: ahead_now,
            ahead_step,
            k: depth,
            a: a.as_ptr().wrapping_add(if lhs == Lhs::Columns { i } else { i * PITCH }),
            a_skip,
            b: b.as_ptr(),
            b_step,
            c: out.ptr.wrapping_add(column),
            rows: rows[i..].as_ptr(),
            cols,
            accumulate,
        };
        let by_columns = lhs == Lhs::Columns;
        // SAFETY: A, B and C hold what the kernel reads and writes by the assertions above; `rows` has `mr` entries
        // left; the instruction set is there because a `Level` says so; nobody else touches C by the caller's promise.
        unsafe {
            match level.isa() {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => super::avx512::tile::<T, O>(true, by_columns, mr, vectors, &tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => super::avx512::tile::<T, O>(false, by_columns, mr, vectors, &tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => super::avx2::tile::<T, O>(by_columns, mr, vectors, &tile),
                _ => super::portable::tile::<T, O>(by_columns, mr, &tile),
            }
        }
        i += mr;
    }
}

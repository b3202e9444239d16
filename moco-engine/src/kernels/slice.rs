//! Channels of a map put in and taken out on the CPU: maps joined along their channels, and their gradients.

use rayon::prelude::*;

use super::SliceShape;
use super::element::Element;
use super::simd::multiversion;

/// Values per piece of work.
const PIECE: usize = 1 << 14;

/// Writes `x` [rows, channels] into its channels of `y` [rows, of].
pub(super) fn insert<T: Element>(shape: &SliceShape, x: &[T], y: &mut [T]) {
    let rows = piece_rows(shape);
    y.par_chunks_mut(rows * shape.of).zip(x.par_chunks(rows * shape.channels)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(shape.of).zip(x.chunks_exact(shape.channels)) {
            y[shape.first..][..shape.channels].copy_from_slice(x);
        }
    });
}

/// `dx (+)= dy[.., first..first + channels]`.
pub(super) fn take<T: Element>(shape: &SliceShape, dy: &[T], dx: &mut [T], accumulate: bool) {
    let rows = piece_rows(shape);
    dx.par_chunks_mut(rows * shape.channels).zip(dy.par_chunks(rows * shape.of)).for_each(|(dx, dy)| {
        if accumulate {
            add_rows(dy, shape.first, shape.of, shape.channels, dx);
        } else {
            for (dx, dy) in dx.chunks_exact_mut(shape.channels).zip(dy.chunks_exact(shape.of)) {
                dx.copy_from_slice(&dy[shape.first..][..shape.channels]);
            }
        }
    });
}

fn piece_rows(shape: &SliceShape) -> usize {
    (PIECE / shape.of).max(1)
}

multiversion! {
    fn add_rows<T: Element>(dy: &[T], first: usize, of: usize, c: usize, dx: &mut [T]) {
        for (dx, dy) in dx.chunks_exact_mut(c).zip(dy.chunks_exact(of)) {
            let dy = &dy[first..][..c];
            for j in 0..c {
                dx[j] = T::narrow(dx[j].widen() + dy[j].widen());
            }
        }
    }
}

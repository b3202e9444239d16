//! What happens to the outputs of a convolution while they are still in the cache.

use std::ops::Range;

use crate::kernels::element::Element;
use crate::kernels::gemm::level::{Level, multiversion};
use crate::kernels::gemm::tile::SharedOut;

/// What is done to the outputs of [`forward`](super::forward), in this order: statistics of the plain result, then
/// `+ bias`, `+ add`, ReLU.
#[derive(Debug)]
pub struct Epilogue<'a, T = f32> {
    /// Filled with the sum and the sum of squares over the pixels of each image, `[n, 2, c_out]`.
    pub stats: Option<&'a mut [f64]>,
    /// `[c_out]`.
    pub bias: Option<&'a [f32]>,
    /// As long as the output.
    pub add: Option<&'a [T]>,
    /// Whether negative results become 0.
    pub relu: bool,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Epilogue { stats: None, bias: None, add: None, relu: false }
    }
}

/// Partial sums in f32, `[part, 2, c_out]`, with the parts of [`Finish`](crate::kernels::gemm::product::Finish). What is
/// a row here is a pixel or a tile of pixels.
pub(super) struct Partials {
    pub(super) block_rows: usize,
    pub(super) rows_per_image: usize,
    pub(super) c_out: usize,
}

impl Partials {
    /// Values of all partial sums for `n` images.
    pub(super) fn len(&self, n: usize) -> usize {
        ((n * self.rows_per_image).div_ceil(self.block_rows) + n) * 2 * self.c_out
    }

    /// Adds the partial sums up to `[n, 2, c_out]`.
    pub(super) fn reduce(&self, partials: &[f32], stats: &mut [f64]) {
        for (image, stats) in stats.chunks_exact_mut(2 * self.c_out).enumerate() {
            stats.fill(0.0);
            let first = image * self.rows_per_image / self.block_rows;
            let last = ((image + 1) * self.rows_per_image - 1) / self.block_rows;
            for block in first..=last {
                let part = &partials[(block + image) * 2 * self.c_out..][..2 * self.c_out];
                for (sum, &value) in stats.iter_mut().zip(part) {
                    *sum += f64::from(value);
                }
            }
        }
    }

    /// Writes the partial sums of a part over the given rows and channels of the output.
    ///
    /// # Safety
    /// The caller's task alone touches these rows and channels of `y`, and these channels of the part's sums.
    #[expect(unsafe_code, reason = "tasks share the output")]
    #[expect(clippy::too_many_arguments, reason = "a region of the output and one of the sums")]
    pub(super) unsafe fn sum<T: Element>(
        &self,
        level: Level,
        y: SharedOut<T>,
        partials: SharedOut<f32>,
        part: usize,
        channels: Range<usize>,
        offsets: &[usize],
        column: usize,
    ) {
        let at = part * 2 * self.c_out + channels.start;
        // SAFETY: the caller's promise; the two halves do not overlap.
        let (sums, squares) =
            unsafe { (partials.slice(at, channels.len()), partials.slice(at + self.c_out, channels.len())) };
        sum_rows(level, y, offsets, column, sums, squares);
    }
}

multiversion! {
    /// Sum and sum of squares over rows of `y`, which the calling task owns.
    fn sum_rows<T: Element>(y: SharedOut<T>, offsets: &[usize], column: usize, sums: &mut [f32], squares: &mut [f32]) = sum_rows_body;
}

#[inline(always)]
fn sum_rows_body<T: Element>(y: SharedOut<T>, offsets: &[usize], column: usize, sums: &mut [f32], squares: &mut [f32]) {
    match sums.len() {
        32 => sum_rows_of::<T, 32>(y, offsets, column, sums, squares),
        16 => sum_rows_of::<T, 16>(y, offsets, column, sums, squares),
        8 => sum_rows_of::<T, 8>(y, offsets, column, sums, squares),
        _ => {
            for i in 0..sums.len() {
                sum_rows_of::<T, 1>(y, offsets, column + i, &mut sums[i..=i], &mut squares[i..=i]);
            }
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "tasks share the output")]
fn sum_rows_of<T: Element, const N: usize>(
    y: SharedOut<T>,
    offsets: &[usize],
    column: usize,
    sums: &mut [f32],
    squares: &mut [f32],
) {
    // Even and odd rows apart: additions of one row need not wait for those of the row before.
    let mut sum = [[0.0; N]; 2];
    let mut square = [[0.0; N]; 2];
    let mut pairs = offsets.chunks_exact(2);
    let mut add = |half: usize, offset: usize| {
        // SAFETY: `Partials::sum`'s caller promises that its task owns the rows.
        let row: &[T; N] = unsafe { &*y.slice(offset + column, N) }.first_chunk().expect("N values");
        for i in 0..N {
            let value = row[i].widen();
            sum[half][i] += value;
            square[half][i] += value * value;
        }
    };
    for pair in &mut pairs {
        add(0, pair[0]);
        add(1, pair[1]);
    }
    pairs.remainder().iter().for_each(|&offset| add(0, offset));
    for i in 0..N {
        sums[i] = sum[0][i] + sum[1][i];
        squares[i] = square[0][i] + square[1][i];
    }
}

/// `+ bias`, `+ add`, ReLU on one row's channels; `add` and `bias` are the parts that belong to them.
#[inline]
pub(super) fn finish_row<T: Element>(row: &mut [T], bias: Option<&[f32]>, add: Option<&[T]>, relu: bool) {
    for (i, value) in row.iter_mut().enumerate() {
        let sum = value.widen() + bias.map_or(0.0, |bias| bias[i]) + add.map_or(0.0, |add| add[i].widen());
        // Not `max`: a NaN has to stay visible.
        *value = T::narrow(if relu && sum < 0.0 { 0.0 } else { sum });
    }
}

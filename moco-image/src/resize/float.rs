//! Resizing of floats: PIL's mode "F", whose sums are in double precision and whose passes each round to single.

use super::{Filter, Region, coefficients::weights};
use crate::{Image, Result};

/// Resizes the whole image to `full` (height, width) and leaves `region` of that in `out`; outside it is 0.
pub(crate) fn resized_region_f32(
    image: &Image<f32>,
    full: (usize, usize),
    region: &Region,
    filter: Filter,
    rows_between: &mut Vec<f32>,
    out: &mut Image<f32>,
) -> Result<()> {
    let channels = image.channels();
    out.reshape(region.width, region.height, channels)?;
    out.data_mut().fill(0.0);
    let inside = |start: isize, len: usize, full: usize| {
        let from = start.clamp(0, full as isize) as usize;
        let to = (start + len as isize).clamp(0, full as isize) as usize;
        (from, to - from, (from as isize - start) as usize)
    };
    let (row, rows, row_offset) = inside(region.top, region.height, full.0);
    let (column, columns, column_offset) = inside(region.left, region.width, full.1);
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let vertical = Taps::new(image.height(), full.0, row, rows, filter);
    let horizontal = Taps::new(image.width(), full.1, column, columns, filter);
    let stride = image.width() * channels;
    let (first, end) = vertical.span();
    // Columns first, as PIL does when the height shrinks by more than twice as many pixels as the width; the order
    // only moves the rounding of the pass between.
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let (fewer_rows, fewer_columns) = (shrinks_by(image.height(), full.0), shrinks_by(image.width(), full.1));
    let target_stride = region.width * channels;
    let target = &mut out.data_mut()[row_offset * target_stride + column_offset * channels..];
    if fewer_rows > 0 && fewer_rows > 2 * fewer_columns {
        rows_between.resize(rows * stride, 0.0);
        vertical.rows(image.data(), stride, 0, stride, rows_between, stride);
        for (y, input) in rows_between.chunks_exact(stride).enumerate() {
            horizontal.row(input, channels, &mut target[y * target_stride..]);
        }
    } else {
        let width = columns * channels;
        rows_between.resize((end - first) * width, 0.0);
        let inputs = image.data()[first * stride..].chunks_exact(stride);
        for (input, output) in inputs.zip(rows_between.chunks_exact_mut(width)) {
            horizontal.row(input, channels, output);
        }
        vertical.rows(rows_between, width, first, width, target, target_stride);
    }
    Ok(())
}

/// The filter in one direction: for each output the first input and the weights from there.
struct Taps {
    taps: Vec<(usize, Vec<f64>)>,
}

impl Taps {
    fn new(input: usize, output: usize, from: usize, len: usize, filter: Filter) -> Self {
        if input == output {
            return Self { taps: (from..from + len).map(|i| (i, vec![1.0])).collect() };
        }
        let taps = (from..from + len).map(|i| {
            let mut exact = Vec::new();
            let first = weights(input, output, i, filter, &mut exact);
            (first, exact)
        });
        Self { taps: taps.collect() }
    }

    /// The inputs that all outputs together read.
    fn span(&self) -> (usize, usize) {
        let start = self.taps.first().map_or(0, |(first, _)| *first);
        (start, self.taps.last().map_or(0, |(first, weights)| first + weights.len()))
    }

    fn row(&self, input: &[f32], channels: usize, output: &mut [f32]) {
        for ((first, weights), pixel) in self.taps.iter().zip(output.chunks_exact_mut(channels)) {
            for (c, value) in pixel.iter_mut().enumerate() {
                let values = input[first * channels + c..].iter().step_by(channels);
                *value = weights.iter().zip(values).map(|(w, v)| w * f64::from(*v)).sum::<f64>() as f32;
            }
        }
    }

    /// Rows `0..` of `output` from the rows of `input`, whose first is number `first_row`.
    fn rows(&self, input: &[f32], stride: usize, first_row: usize, width: usize, output: &mut [f32], to: usize) {
        let mut sums = vec![0.0f64; width];
        for ((first, weights), out) in self.taps.iter().zip(output.chunks_mut(to)) {
            sums.fill(0.0);
            for (t, weight) in weights.iter().enumerate() {
                let row = &input[(first - first_row + t) * stride..][..width];
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * f64::from(*v));
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = *sum as f32);
        }
    }
}

//! The small transforms of [`winograd`](super::winograd), sixteen channels at a time.
//!
//! With patches of `P × P` inputs under tiles of `M × M = (P − 2) × (P − 2)` outputs. `P = 4` interpolates at 0, ±1 and ∞.
//! `P = 6` interpolates at 0, ±¾, ±3/2 and ∞: these are exact in binary, their product is near 1, and the result is three
//! times as exact as with the usual 0, ±1, ±2 (error analysis: arXiv:1803.10986).
#![expect(clippy::needless_range_loop, reason = "rows and columns of small matrices, by their indices")]

use std::ops::Range;

use super::winograd::{OUTSIDE, Tiles, position_step};
use crate::kernels::element::{Element, narrow_16, words_16};
use crate::kernels::gemm::level::multiversion_native;
use crate::kernels::gemm::tile::{BLOCK, PITCH, SharedOut};
use crate::kernels::gemm::windows::{Norm, Windows, normalise};

/// Channels that are transformed at a time.
const LANES: usize = 16;

type Vector = [f32; LANES];

/// The points of the larger tiles, beside 0 and ∞, and what the transforms are made of.
pub(super) const A: f32 = 0.75;
pub(super) const B: f32 = 1.5;
pub(super) const A2: f32 = A * A;
pub(super) const B2: f32 = B * B;
pub(super) const SUM: f32 = A2 + B2;
pub(super) const PRODUCT: f32 = A2 * B2;

multiversion_native! {
    /// `Bᵀ d B` of every tile and channel, to `[channel block, position, tile, word of channels]`, tiles [`PITCH`] and
    /// positions [`position_step`] apart.
    pub(super) fn transform_input<T: Element>(
        windows: &Windows, x: &[T], norm: Option<&Norm<'_>>, tiles: &Tiles, range: Range<usize>, out: &mut [u32],
    ) = transform_input_body;
}

#[inline(always)]
fn transform_input_body<T: Element, const NATIVE: bool>(
    w: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    match tiles.side {
        2 => transform_input_of::<T, 4, NATIVE>(w, x, norm, tiles, range, out),
        _ => transform_input_of::<T, 6, NATIVE>(w, x, norm, tiles, range, out),
    }
}

#[inline(always)]
fn transform_input_of<T: Element, const P: usize, const NATIVE: bool>(
    w: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    let step = position_step(range.len());
    for (t, tile) in range.enumerate() {
        let patch = Patch::<T, P>::new(w, x, norm, tiles, tile);
        for channel in (0..w.channels).step_by(LANES) {
            let values = input_side(patch.values(w, norm, channel));
            let word = channel / T::PER_WORD;
            let base = word / BLOCK * P * P * step + t * PITCH + word % BLOCK;
            for (position, values) in values.as_flattened().iter().enumerate() {
                let words = &mut out[base + position * step..][..LANES / T::PER_WORD];
                bytemuck::cast_slice_mut(words).copy_from_slice(&narrow_16::<T, NATIVE>(values));
            }
        }
    }
}

multiversion_native! {
    /// `Bᵀ d B` of every 2×2 tile and channel, to `[position, word of tiles, channel]`, words [`PITCH`] and positions
    /// [`position_step`] apart.
    pub(super) fn transform_input_columns<T: Element>(
        windows: &Windows, x: &[T], norm: Option<&Norm<'_>>, tiles: &Tiles, range: Range<usize>, out: &mut [u32],
    ) = transform_input_columns_body;
}

#[inline(always)]
fn transform_input_columns_body<T: Element, const NATIVE: bool>(
    w: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    let step = position_step(range.len().div_ceil(T::PER_WORD));
    for (t, tile) in range.clone().step_by(T::PER_WORD).enumerate() {
        let first = Patch::<T, 4>::new(w, x, norm, tiles, tile);
        let second = (T::PER_WORD > 1 && tile + 1 < range.end).then(|| Patch::<T, 4>::new(w, x, norm, tiles, tile + 1));
        for channel in (0..w.channels).step_by(LANES) {
            let values = input_side(first.values(w, norm, channel));
            let next = match &second {
                Some(second) => input_side(second.values(w, norm, channel)),
                None => [[[0.0; LANES]; 4]; 4],
            };
            let values = values.as_flattened().iter().zip(next.as_flattened());
            for (position, (values, next)) in values.enumerate() {
                let out = &mut out[position * step + t * PITCH + channel..][..LANES];
                out.copy_from_slice(&words_16::<T, NATIVE>(values, next));
            }
        }
    }
}

/// The inputs of a tile.
pub(super) struct Patch<'a, T, const P: usize> {
    /// Of its image.
    pub(super) pixels: &'a [T],
    /// Channel 0 of each position, or [`OUTSIDE`].
    pub(super) places: [[usize; P]; P],
    /// Of the image's group of statistics.
    pub(super) group: usize,
}

impl<'a, T: Element, const P: usize> Patch<'a, T, P> {
    #[inline(always)]
    pub(super) fn new(w: &Windows, x: &'a [T], norm: Option<&Norm<'_>>, tiles: &Tiles, tile: usize) -> Patch<'a, T, P> {
        let image_len = w.size[0] * w.size[1] * w.pixel;
        let (image, y, x_out) = tiles.place(tile);
        let (top, left) = (y as isize + w.origin[0], x_out as isize + w.origin[1]);
        let mut places = [[OUTSIDE; P]; P];
        for i in 0..P {
            for j in 0..P {
                let (y, x) = (top + i as isize, left + j as isize);
                if y >= 0 && x >= 0 && y < w.size[0] as isize && x < w.size[1] as isize {
                    places[i][j] = (y as usize * w.size[1] + x as usize) * w.pixel + w.channel;
                }
            }
        }
        let group = norm.and_then(|norm| norm.group_of_image.get(image)).map_or(0, |&g| g as usize) * w.pixel;
        Patch { pixels: &x[image * image_len..][..image_len], places, group }
    }

    /// Some channels, normalised.
    #[inline(always)]
    fn values(&self, w: &Windows, norm: Option<&Norm<'_>>, channel: usize) -> [[Vector; P]; P] {
        let lanes = LANES.min(w.channels - channel);
        let mut patch = [[[0.0; LANES]; P]; P];
        let values = patch.as_flattened_mut();
        let places = self.places.as_flattened();
        let at = self.group + w.channel + channel;
        if lanes == LANES {
            for p in 0..P * P {
                if places[p] != OUTSIDE {
                    values[p] = widened(vector(self.pixels, places[p] + channel));
                }
            }
            if let Some(norm) = norm {
                let (scale, shift) = (vector(norm.scale, at), vector(norm.shift, at));
                for p in 0..P * P {
                    if places[p] != OUTSIDE {
                        values[p] = affine(values[p], scale, shift, norm.relu);
                    }
                }
            }
            return patch;
        }
        for p in 0..P * P {
            if places[p] == OUTSIDE {
                continue;
            }
            let from = &self.pixels[places[p] + channel..][..lanes];
            match norm {
                None => values[p].iter_mut().zip(from).for_each(|(value, from)| *value = from.widen()),
                Some(norm) => {
                    let (scale, shift) = (&norm.scale[at..at + lanes], &norm.shift[at..at + lanes]);
                    normalise::<T, f32, false>(from, scale, shift, norm.relu, &mut values[p][..lanes]);
                }
            }
        }
        patch
    }
}

#[inline(always)]
fn vector<T>(values: &[T], at: usize) -> &[T; LANES] {
    values[at..at + LANES].first_chunk().expect("a whole vector")
}

#[inline(always)]
pub(super) fn widened<T: Element, const N: usize>(values: &[T; N]) -> [f32; N] {
    let mut out = [0.0; N];
    for i in 0..N {
        out[i] = values[i].widen();
    }
    out
}

/// [`normalise`] of a whole vector.
#[inline(always)]
fn affine(x: Vector, scale: &Vector, shift: &Vector, relu: bool) -> Vector {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = x[i] * scale[i] + shift[i];
    }
    if relu {
        for value in &mut out {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }
    out
}

/// `Bᵀ d B`. Plain loops instead of closures over arrays: those are not inlined into functions for a CPU feature.
#[inline(always)]
fn input_side<const P: usize>(d: [[Vector; P]; P]) -> [[Vector; P]; P] {
    let mut rows = [[[0.0; LANES]; P]; P];
    for i in 0..P {
        rows[i] = input_line(d[i]);
    }
    let mut out = [[[0.0; LANES]; P]; P];
    for j in 0..P {
        let mut column = [[0.0; LANES]; P];
        for i in 0..P {
            column[i] = rows[i][j];
        }
        let column = input_line(column);
        for i in 0..P {
            out[i][j] = column[i];
        }
    }
    out
}

#[inline(always)]
fn input_line<const P: usize>(d: [Vector; P]) -> [Vector; P] {
    let mut out = [[0.0; LANES]; P];
    if P == 4 {
        out[0] = sub(d[0], d[2]);
        out[1] = add(d[1], d[2]);
        out[2] = sub(d[2], d[1]);
        out[3] = sub(d[1], d[3]);
    } else {
        let (even, odd) = (sub(d[4], times(B2, d[2])), times(A, sub(d[3], times(B2, d[1]))));
        out[1] = add(even, odd);
        out[2] = sub(even, odd);
        let (even, odd) = (sub(d[4], times(A2, d[2])), times(B, sub(d[3], times(A2, d[1]))));
        out[3] = add(even, odd);
        out[4] = sub(even, odd);
        out[0] = add(sub(times(PRODUCT, d[0]), times(SUM, d[2])), d[4]);
        out[5] = add(sub(times(PRODUCT, d[1]), times(SUM, d[3])), d[5]);
    }
    out
}

multiversion_native! {
    /// `Y = Aᵀ m A` of `cols` columns of every tile, from `[position, tile, width]` to the pixels of each tile in `out`,
    /// which the calling task owns; overwrites or adds.
    pub(super) fn transform_output<T: Element>(
        side: usize, products: &[f32], width: usize, places: &[usize], out: SharedOut<T>, column: usize, cols: usize,
        accumulate: bool,
    ) = transform_output_body;
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "tiles among the products and among the outputs")]
fn transform_output_body<T: Element, const NATIVE: bool>(
    side: usize,
    products: &[f32],
    width: usize,
    places: &[usize],
    out: SharedOut<T>,
    column: usize,
    cols: usize,
    accumulate: bool,
) {
    match side {
        2 => transform_output_of::<T, 4, 2, NATIVE>(products, width, places, out, column, cols, accumulate),
        _ => transform_output_of::<T, 6, 4, NATIVE>(products, width, places, out, column, cols, accumulate),
    }
}

#[inline(always)]
fn transform_output_of<T: Element, const P: usize, const M: usize, const NATIVE: bool>(
    products: &[f32],
    width: usize,
    places: &[usize],
    out: SharedOut<T>,
    column: usize,
    cols: usize,
    accumulate: bool,
) {
    let count = places.len() / (M * M);
    for (t, places) in places.chunks_exact(M * M).enumerate() {
        let products = &products[t * width..];
        let mut from = 0;
        while from + LANES <= cols {
            output_tile::<T, LANES, P, M, NATIVE>(products, width, count, from, places, out, column, LANES, accumulate);
            from += LANES;
        }
        while from < cols {
            let lanes = (cols - from).min(8);
            output_tile::<T, 8, P, M, NATIVE>(products, width, count, from, places, out, column, lanes, accumulate);
            from += 8;
        }
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a tile among the products and among the outputs")]
fn output_tile<T: Element, const N: usize, const P: usize, const M: usize, const NATIVE: bool>(
    products: &[f32],
    width: usize,
    count: usize,
    from: usize,
    places: &[usize],
    out: SharedOut<T>,
    column: usize,
    lanes: usize,
    accumulate: bool,
) {
    let mut rows = [[[0.0; N]; M]; P];
    for i in 0..P {
        let mut line = [[0.0; N]; P];
        for j in 0..P {
            let at = (P * i + j) * count * width + from;
            line[j] = *products[at..].first_chunk().expect("panels are whole vectors");
        }
        rows[i] = output_line(line);
    }
    for j in 0..M {
        let mut column_of = [[0.0; N]; P];
        for i in 0..P {
            column_of[i] = rows[i][j];
        }
        let column_of: [[f32; N]; M] = output_line(column_of);
        for i in 0..M {
            let place = places[M * i + j];
            if place == OUTSIDE {
                continue;
            }
            // SAFETY: the calling task owns these pixels and columns.
            #[expect(unsafe_code, reason = "tasks share the output")]
            let pixel = unsafe { out.slice(place + column + from, lanes) };
            if lanes == N {
                let pixel: &mut [T; N] = pixel.first_chunk_mut().expect("N values");
                let sum = if accumulate { add(widened(pixel), column_of[i]) } else { column_of[i] };
                match sum.first_chunk() {
                    Some(sum) if N == LANES => pixel.copy_from_slice(&narrow_16::<T, NATIVE>(sum)),
                    _ => {
                        for lane in 0..N {
                            pixel[lane] = T::narrow(sum[lane]);
                        }
                    }
                }
            } else {
                for (pixel, value) in pixel.iter_mut().zip(column_of[i]) {
                    *pixel = T::narrow(if accumulate { pixel.widen() + value } else { value });
                }
            }
        }
    }
}

#[inline(always)]
fn output_line<const N: usize, const P: usize, const M: usize>(m: [[f32; N]; P]) -> [[f32; N]; M] {
    let mut out = [[0.0; N]; M];
    if P == 4 {
        out[0] = add(add(m[0], m[1]), m[2]);
        out[1] = sub(sub(m[1], m[2]), m[3]);
    } else {
        let (sum, difference) = (add(m[1], m[2]), sub(m[1], m[2]));
        let (sum_b, difference_b) = (add(m[3], m[4]), sub(m[3], m[4]));
        out[0] = add(m[0], add(sum, sum_b));
        out[1] = add(times(A, difference), times(B, difference_b));
        out[2] = add(times(A2, sum), times(B2, sum_b));
        out[3] = add(add(times(A * A2, difference), times(B * B2, difference_b)), m[5]);
    }
    out
}

/// `G g Gᵀ` of the nine taps of `N` kernels side by side.
#[inline(always)]
pub(super) fn transform_kernel<const N: usize, const P: usize>(taps: &[[f32; N]; 9]) -> [[[f32; N]; P]; P] {
    let mut rows = [[[0.0; N]; P]; 3];
    for i in 0..3 {
        rows[i] = kernel_line([taps[3 * i], taps[3 * i + 1], taps[3 * i + 2]]);
    }
    let mut out = [[[0.0; N]; P]; P];
    for j in 0..P {
        let column: [[f32; N]; P] = kernel_line([rows[0][j], rows[1][j], rows[2][j]]);
        for i in 0..P {
            out[i][j] = column[i];
        }
    }
    out
}

#[inline(always)]
fn kernel_line<const N: usize, const P: usize>([a, b, c]: [[f32; N]; 3]) -> [[f32; N]; P] {
    let mut out = [[0.0; N]; P];
    if P == 4 {
        let (ends, middle) = (halve(add(a, c)), halve(b));
        out[0] = a;
        out[1] = add(ends, middle);
        out[2] = sub(ends, middle);
        out[3] = c;
    } else {
        const OF_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
        const OF_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
        let (even, odd) = (times(OF_A, add(a, times(A2, c))), times(OF_A * A, b));
        out[1] = add(even, odd);
        out[2] = sub(even, odd);
        let (even, odd) = (times(OF_B, add(a, times(B2, c))), times(OF_B * B, b));
        out[3] = add(even, odd);
        out[4] = sub(even, odd);
        out[0] = times(1.0 / PRODUCT, a);
        out[5] = c;
    }
    out
}

#[inline(always)]
fn times<const N: usize>(factor: f32, a: [f32; N]) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] *= factor;
    }
    out
}

#[inline(always)]
pub(super) fn add<const N: usize>(a: [f32; N], b: [f32; N]) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] += b[i];
    }
    out
}

#[inline(always)]
pub(super) fn sub<const N: usize>(a: [f32; N], b: [f32; N]) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] -= b[i];
    }
    out
}

#[inline(always)]
pub(super) fn halve<const N: usize>(a: [f32; N]) -> [f32; N] {
    let mut out = a;
    for value in &mut out {
        *value *= 0.5;
    }
    out
}

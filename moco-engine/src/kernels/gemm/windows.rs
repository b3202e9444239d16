//! Rows of the im2col matrix, gathered from NHWC activations a block at a time: the matrix itself never exists.

use std::ops::Range;

use super::AlignedBuffer;
use super::level::{Level, multiversion, multiversion_native};
use super::tile::{BLOCK, PITCH};
use crate::kernels::element::{Element, narrow_16};

/// The im2col matrix of a convolution: one row for each output pixel `(image, y, x)`, one column for each
/// `(ky, kx, channel)`. A plain row-major matrix is the case of a 1×1 kernel on a `1 × rows` image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Height and width of the input.
    pub(crate) size: [usize; 2],
    /// Values between two pixels of the input.
    pub(crate) pixel: usize,
    /// First channel that is read, and how many are.
    pub(crate) channel: usize,
    pub(crate) channels: usize,
    /// Height and width of the kernel.
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Input position of the kernel's first tap for output pixel (0, 0).
    pub(crate) origin: [isize; 2],
    /// Height and width of the output.
    pub(crate) out: [usize; 2],
}

/// See [`InputNorm`](crate::kernels::conv::InputNorm).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    /// `[groups, pixel]`.
    pub(crate) scale: &'a [f32],
    /// `[groups, pixel]`.
    pub(crate) shift: &'a [f32],
    pub(crate) group_of_image: &'a [u32],
    pub(crate) relu: bool,
}

impl Windows {
    /// A row-major matrix of `rows` × `cols`.
    pub(crate) fn matrix(rows: usize, cols: usize) -> Windows {
        Windows {
            size: [1, rows],
            pixel: cols,
            channel: 0,
            channels: cols,
            kernel: [1, 1],
            stride: 1,
            origin: [0, 0],
            out: [1, rows],
        }
    }

    /// Columns of the im2col matrix.
    pub(crate) fn cols(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Rows for one image.
    pub(crate) fn rows_per_image(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// The values of these rows if they lie one after the other in `x`, else nothing.
    pub(crate) fn dense_rows<'a, T>(&self, x: &'a [T], rows: Range<usize>) -> &'a [T] {
        let dense = self.is_matrix() && self.channels == self.pixel;
        if dense { &x[(rows.start * self.pixel).min(x.len())..(rows.end * self.pixel).min(x.len())] } else { &[] }
    }

    /// Whether every row is one pixel of the input, in order.
    fn is_matrix(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.origin == [0, 0] && self.out == self.size
    }
}

/// Words of the block that [`gather_rows`] fills.
pub(crate) fn rows_len<T: Element>(windows: &Windows, rows: usize) -> usize {
    windows.cols().div_ceil(T::PER_WORD).div_ceil(BLOCK) * rows * PITCH
}

/// Writes the given rows of the im2col matrix of `x` to `block` as [`Lhs::Rows`](super::tile::Lhs) reads them, with
/// `rows.len() · PITCH` words from block to block; positions outside the image become 0, the others go through `norm`.
///
/// # Panics
/// If `x` or `block` are too short.
pub(crate) fn gather_rows<T: Element>(
    level: Level,
    windows: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    rows: Range<usize>,
    block: &mut [u32],
) {
    let (cols, deep) = (windows.cols(), BLOCK * T::PER_WORD);
    for (i, block) in block.chunks_exact_mut(rows.len() * PITCH).enumerate() {
        let cols = (i * deep).min(cols)..((i + 1) * deep).min(cols);
        gather(level, windows, x, norm, rows.clone(), cols, bytemuck::cast_slice_mut(block));
    }
}

/// Writes the given rows and columns of the im2col matrix of `x` to `block` as [`Lhs::Columns`](super::tile::Lhs) reads
/// its transpose: rows of words, one for each [`Element::PER_WORD`] rows of the matrix; else as [`gather_rows`].
///
/// # Panics
/// If there are more than [`BLOCK`] columns, or `x` or `block` are too short.
#[expect(clippy::too_many_arguments, reason = "a region of a matrix that does not exist")]
pub(crate) fn gather_columns<T: Element>(
    level: Level,
    windows: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    rows: Range<usize>,
    cols: Range<usize>,
    block: &mut [u32],
    buffer: &mut AlignedBuffer,
) {
    /// Rows that are gathered before their pairs are formed: they stay in the first-level cache.
    const ROWS: usize = 16;
    if T::PER_WORD == 1 {
        gather(level, windows, x, norm, rows, cols, bytemuck::cast_slice_mut(block));
        return;
    }
    assert!(cols.len() <= BLOCK, "columns {cols:?}");
    let pitch = PITCH * T::PER_WORD;
    if windows.is_matrix() && norm.is_none() {
        let row = |row: usize| &x[row * windows.pixel + windows.channel..][cols.clone()];
        for (i, out) in block.chunks_mut(PITCH).take(rows.len().div_ceil(2)).enumerate() {
            let first = rows.start + 2 * i;
            pair_rows(level, row(first), if first + 1 < rows.end { row(first + 1) } else { &[] }, out);
        }
        return;
    }
    let buffer = buffer.at_least::<T>(ROWS * pitch);
    for (from, out) in rows.clone().step_by(ROWS).zip(block.chunks_mut(ROWS / 2 * PITCH)) {
        let some = from..rows.end.min(from + ROWS);
        gather(level, windows, x, norm, some.clone(), cols.clone(), buffer);
        for (i, out) in out.chunks_mut(PITCH).take(some.len().div_ceil(2)).enumerate() {
            let second = if 2 * i + 1 < some.len() { &buffer[(2 * i + 1) * pitch..][..cols.len()] } else { &[] };
            pair_rows(level, &buffer[2 * i * pitch..][..cols.len()], second, out);
        }
    }
}

multiversion! {
    /// Words of two rows; a second row without values counts as zeros.
    fn pair_rows<T: Element>(first: &[T], second: &[T], out: &mut [u32]) = pair_rows_body;
}

#[inline(always)]
fn pair_rows_body<T: Element>(first: &[T], second: &[T], out: &mut [u32]) {
    let out = &mut out[..first.len()];
    if second.len() == first.len() {
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = T::pair(*first, *second);
        }
    } else {
        out.iter_mut().zip(first).for_each(|(out, first)| *out = T::pair(*first, T::zeroed()));
    }
}

multiversion_native! {
    /// Writes the given rows and columns of the im2col matrix of `x` to `block`, rows [`PITCH`] words apart; the last
    /// word of a row is filled up with 0.
    fn gather<T: Element>(
        windows: &Windows, x: &[T], norm: Option<&Norm<'_>>, rows: Range<usize>, cols: Range<usize>, block: &mut [T],
    ) = gather_body;
}

#[inline(always)]
fn gather_body<T: Element, const NATIVE: bool>(
    windows: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    rows: Range<usize>,
    cols: Range<usize>,
    block: &mut [T],
) {
    let pitch = PITCH * T::PER_WORD;
    assert!(cols.len() <= BLOCK * T::PER_WORD && cols.end <= windows.cols(), "columns {cols:?} of {windows:?}");
    let w = windows;
    if !cols.len().is_multiple_of(T::PER_WORD) {
        block.chunks_mut(pitch).take(rows.len()).for_each(|row| row[cols.len()] = T::zeroed());
    }
    if w.is_matrix() && norm.is_none() {
        for (row, out) in rows.zip(block.chunks_mut(pitch)) {
            let at = row * w.pixel + w.channel;
            copy(&x[at + cols.start..at + cols.end], out);
        }
        return;
    }
    let per_image = w.rows_per_image();
    let (mut image, pixel) = (rows.start / per_image, rows.start % per_image);
    let (mut y, mut x_out) = (pixel / w.out[1], pixel % w.out[1]);
    for out in block.chunks_mut(pitch).take(rows.len()) {
        let top = (y * w.stride) as isize + w.origin[0];
        let left = (x_out * w.stride) as isize + w.origin[1];
        let pixels = &x[image * w.size[0] * w.size[1] * w.pixel..][..w.size[0] * w.size[1] * w.pixel];
        match norm {
            None if w.channels == w.pixel => whole_pixels(w, pixels, top, left, &cols, out),
            None => tap_by_tap(w, top, left, &cols, out, |from, _, out| copy(&pixels[from..from + out.len()], out)),
            Some(norm) => {
                let group = norm.group_of_image.get(image).map_or(0, |&g| g as usize) * w.pixel;
                tap_by_tap(w, top, left, &cols, out, |from, channel, out| {
                    let at = group + channel;
                    let (scale, shift) = (&norm.scale[at..at + out.len()], &norm.shift[at..at + out.len()]);
                    normalise::<T, T, NATIVE>(&pixels[from..from + out.len()], scale, shift, norm.relu, out);
                });
            }
        }
        x_out += 1;
        if x_out == w.out[1] {
            (x_out, y) = (0, y + 1);
            if y == w.out[0] {
                (y, image) = (0, image + 1);
            }
        }
    }
}

/// One row where all channels are read: the taps of a kernel row lie one after the other in memory, so what is inside
/// the image is one piece.
#[inline(always)]
fn whole_pixels<T: Element>(w: &Windows, pixels: &[T], top: isize, left: isize, cols: &Range<usize>, out: &mut [T]) {
    let run = w.kernel[1] * w.channels;
    let (height, width) = (w.size[0] as isize, w.size[1] as isize);
    // Taps of a run that lie inside the image, in values.
    let inside_from = (-left).clamp(0, w.kernel[1] as isize) as usize * w.channels;
    let inside_to = (width - left).clamp(0, w.kernel[1] as isize) as usize * w.channels;
    let whole_run = inside_from == 0 && inside_to == run;
    let mut ky = cols.start / run;
    let mut from = cols.start - ky * run;
    let mut out = &mut out[..cols.len()];
    while !out.is_empty() {
        let to = run.min(from + out.len());
        let (piece, rest) = out.split_at_mut(to - from);
        let y = top + ky as isize;
        let row = (y * width + left) * w.pixel as isize;
        if y < 0 || y >= height {
            zero(piece);
        } else if whole_run {
            copy(&pixels[(row + from as isize) as usize..][..to - from], piece);
        } else {
            let (a, b) = (inside_from.clamp(from, to), inside_to.clamp(from, to));
            zero(&mut piece[..a - from]);
            if a < b {
                copy(&pixels[(row + a as isize) as usize..][..b - a], &mut piece[a - from..b - from]);
            }
            zero(&mut piece[b.max(a) - from..]);
        }
        (out, ky, from) = (rest, ky + 1, 0);
    }
}

/// One row, calling `piece(offset in the image, channel, destination)` for every part of a tap inside the image.
#[inline(always)]
fn tap_by_tap<T: Element>(
    w: &Windows,
    top: isize,
    left: isize,
    cols: &Range<usize>,
    out: &mut [T],
    mut piece: impl FnMut(usize, usize, &mut [T]),
) {
    let mut col = cols.start;
    let (mut tap, mut from) = (col / w.channels, col % w.channels);
    while col < cols.end {
        let (ky, kx) = (tap / w.kernel[1], tap % w.kernel[1]);
        let to = w.channels.min(from + cols.end - col);
        let out = &mut out[col - cols.start..][..to - from];
        let (y, x) = (top + ky as isize, left + kx as isize);
        if (0..w.size[0] as isize).contains(&y) && (0..w.size[1] as isize).contains(&x) {
            let channel = w.channel + from;
            piece((y as usize * w.size[1] + x as usize) * w.pixel + channel, channel, out);
        } else {
            zero(out);
        }
        col += to - from;
        (tap, from) = (tap + 1, 0);
    }
}

/// `memcpy` for pieces of tens to hundreds of values, where the call would cost as much as the copy.
#[inline(always)]
fn copy<T: Element>(from: &[T], out: &mut [T]) {
    const V: usize = 16;
    let n = from.len();
    let out = &mut out[..n];
    if n >= V {
        let mut i = 0;
        while i + V <= n {
            out[i..i + V].copy_from_slice(&from[i..i + V]);
            i += V;
        }
        // The rest overlaps what was written: the same values again.
        out[n - V..].copy_from_slice(&from[n - V..]);
        return;
    }
    for (out, &value) in out.iter_mut().zip(from) {
        *out = value;
    }
}

/// Zeros, without a call where there is nothing to fill.
#[inline(always)]
fn zero<T: Element>(out: &mut [T]) {
    if !out.is_empty() {
        out.fill(T::zeroed());
    }
}

/// `x · scale + shift`, then ReLU if asked.
#[inline(always)]
pub(crate) fn normalise<T: Element, O: Element, const NATIVE: bool>(
    from: &[T],
    scale: &[f32],
    shift: &[f32],
    relu: bool,
    out: &mut [O],
) {
    const V: usize = 16;
    // Not `max`: a NaN has to stay visible.
    let bar = if relu { 0.0 } else { f32::NEG_INFINITY };
    let n = out.len();
    let (from, scale, shift) = (&from[..n], &scale[..n], &shift[..n]);
    let mut i = 0;
    while i + V <= n {
        let mut values = [0.0; V];
        for j in 0..V {
            let value = from[i + j].widen() * scale[i + j] + shift[i + j];
            values[j] = if value < bar { bar } else { value };
        }
        out[i..i + V].copy_from_slice(&narrow_16::<O, NATIVE>(&values));
        i += V;
    }
    for j in i..n {
        let value = from[j].widen() * scale[j] + shift[j];
        out[j] = O::narrow(if value < bar { bar } else { value });
    }
}

//! The weight gradient of the layers that [`winograd`](super::winograd) computes: with the names used there,
//! `dg = Gᵀ [Σ over tiles of (A dY Aᵀ) ⊙ (Bᵀ d B)] G`, where the sum is 16 matrix products with the tiles as inner
//! dimension.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::{Bundles, forward_windows};
use super::shape::ConvShape;
use super::winograd::{OUTSIDE, POSITIONS, Tiles, add, halve, position_step, sub, transform_input_columns, widened};
use crate::kernels::element::{Element, words_16};
use crate::kernels::gemm::level::{Level, multiversion, multiversion_native};
use crate::kernels::gemm::product::RowMap;
use crate::kernels::gemm::tile::{Lhs, PITCH, SharedOut, panel_product};
use crate::kernels::gemm::windows::{Norm, Windows};
use crate::kernels::gemm::workspace::{with_shared, with_workspace};

/// Channels on either side of a task's part of the result: more where products are cheaper, since both transforms are
/// repeated for each part.
const fn chunk<T: Element>() -> usize {
    64 * T::PER_WORD
}

/// Tasks that an operation is divided into at least, where its size allows; the same on every machine, since the sums
/// are divided as well.
const TASKS: usize = 16;

/// Channels that are transformed at a time.
const LANES: usize = 16;

struct Sum<'a, T> {
    level: Level,
    windows: Windows,
    tiles: Tiles,
    x: &'a [T],
    dy: &'a [T],
    norm: Option<Norm<'a>>,
    c_out: usize,
    /// Tiles whose products are summed in registers.
    depth: usize,
    splits: usize,
    /// Tiles of a split.
    split: usize,
    out_chunks: usize,
    in_chunks: usize,
}

pub(super) fn backward_weights<T: Element>(
    level: Level,
    s: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [f32],
    norm: Option<Norm>,
) {
    let windows = forward_windows(s, &Bundles::new(s), 0);
    let tiles = Tiles::new::<T>(level, &windows, s.n);
    let (out_chunks, in_chunks) = (s.c_out.div_ceil(chunk::<T>()), s.c_in.div_ceil(chunk::<T>()));
    // Both transforms of a block: at most about three quarters of a second-level cache of 1 MiB.
    let channels = s.c_out.div_ceil(out_chunks) + s.c_in.div_ceil(in_chunks);
    let depth = (768 * 1024 / (size_of::<T>() * POSITIONS * channels)).clamp(16, 128) / 2 * 2;
    let one = POSITIONS * s.c_out * s.c_in;
    let wanted = TASKS.div_ceil(out_chunks * in_chunks).min(((1 << 22) / one).max(1));
    let split = tiles.count().div_ceil(wanted).next_multiple_of(depth);
    let splits = tiles.count().div_ceil(split);
    let sum = Sum { level, windows, tiles, x, dy, norm, c_out: s.c_out, depth, splits, split, out_chunks, in_chunks };
    with_shared(splits * one, |sums: &mut [f32]| {
        sum.run(SharedOut::new(sums));
        let per_out = 9 * s.c_in;
        dw.par_chunks_mut(per_out).with_min_len(4).enumerate().for_each(|(o, dw)| {
            to_kernels(level, &sums[o * s.c_in..], one, s.c_out * s.c_in, dw);
        });
    });
}

impl<T: Element> Sum<'_, T> {
    /// Fills `out` `[split, position, output channel, input channel]`.
    fn run(&self, out: SharedOut<f32>) {
        let tasks = self.splits * self.out_chunks * self.in_chunks;
        (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
            let (task, in_chunk) = (task / self.in_chunks, task % self.in_chunks);
            self.task(task / self.out_chunks, task % self.out_chunks, in_chunk, out);
        });
    }

    fn task(&self, split: usize, out_chunk: usize, in_chunk: usize, out: SharedOut<f32>) {
        let c_in = self.windows.channels;
        let outs = part(self.c_out, self.out_chunks, out_chunk);
        let ins = part(c_in, self.in_chunks, in_chunk);
        let windows = Windows { channel: ins.start, channels: ins.len(), ..self.windows };
        let [height, width] = windows.out;
        let map =
            RowMap { base: 0, step: [height * width * self.c_out, width * self.c_out, self.c_out], out: windows.out };
        let base = split * POSITIONS * self.c_out * c_in;
        let start = split * self.split;
        let end = self.tiles.count().min(start + self.split);
        with_workspace(|workspace| {
            let rows = &mut workspace.product_rows;
            rows.clear();
            rows.extend(outs.clone().map(|o| base + o * c_in + ins.start));
            for from in (start..end).step_by(self.depth) {
                let tiles = from..end.min(from + self.depth);
                let words = tiles.len().div_ceil(T::PER_WORD);
                let b = workspace.b.at_least(POSITIONS * position_step(words));
                transform_input_columns(
                    self.level,
                    &windows,
                    self.x,
                    self.norm.as_ref(),
                    &self.tiles,
                    tiles.clone(),
                    b,
                );
                self.tiles.offsets(tiles, &map, &mut workspace.rows);
                let a = workspace.a.at_least(POSITIONS * position_step(words));
                transform_gradient(self.level, self.dy, outs.clone(), &workspace.rows, a);
                for position in 0..POSITIONS {
                    let at = position * position_step(words);
                    for j in (0..ins.len()).step_by(self.level.tile_cols()) {
                        let cols = self.level.tile_cols().min(ins.len() - j);
                        let column = position * self.c_out * c_in + j;
                        let (a, b) = (&a[at..], &b[at + j..]);
                        // SAFETY: a task owns its channels of its split.
                        #[expect(unsafe_code, reason = "tasks share the output")]
                        unsafe {
                            let add = from > start;
                            panel_product::<T, f32>(
                                self.level,
                                Lhs::Columns,
                                words,
                                a,
                                b,
                                PITCH,
                                cols,
                                out,
                                rows,
                                column,
                                add,
                                &mut &[][..],
                            );
                        }
                    }
                }
            }
        });
    }
}

/// One of `parts` about equal parts of `0..len`.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    let size = len.div_ceil(parts);
    (index * size).min(len)..((index + 1) * size).min(len)
}

multiversion_native! {
    /// `A dY Aᵀ` of the tiles with these pixels and of some channels, to `[position, word of tiles, channel]`, words
    /// [`PITCH`] and positions [`position_step`] apart.
    fn transform_gradient<T: Element>(dy: &[T], channels: Range<usize>, places: &[usize], out: &mut [u32]) =
        transform_gradient_body;
}

#[inline(always)]
fn transform_gradient_body<T: Element, const NATIVE: bool>(
    dy: &[T],
    channels: Range<usize>,
    places: &[usize],
    out: &mut [u32],
) {
    let step = position_step((places.len() / 4).div_ceil(T::PER_WORD));
    for (t, places) in places.chunks(4 * T::PER_WORD).enumerate() {
        for from in (0..channels.len()).step_by(LANES) {
            let lanes = LANES.min(channels.len() - from);
            let first = gradient_side(dy, &places[..4], channels.start + from, lanes);
            let second = match places.get(4..8) {
                Some(places) => gradient_side(dy, places, channels.start + from, lanes),
                None => [[[0.0; LANES]; 4]; 4],
            };
            let values = first.as_flattened().iter().zip(second.as_flattened());
            for (position, (values, next)) in values.enumerate() {
                let out = &mut out[position * step + t * PITCH + from..][..LANES];
                out.copy_from_slice(&words_16::<T, NATIVE>(values, next));
            }
        }
    }
}

/// `A dY Aᵀ` of some channels of a tile.
#[inline(always)]
fn gradient_side<T: Element>(dy: &[T], places: &[usize], channel: usize, lanes: usize) -> [[[f32; LANES]; 4]; 4] {
    let mut tile = [[[0.0; LANES]; 2]; 2];
    for i in 0..2 {
        for j in 0..2 {
            let place = places[2 * i + j];
            if place == OUTSIDE {
                continue;
            }
            let values = &dy[place + channel..][..lanes];
            match values.first_chunk() {
                Some(values) => tile[i][j] = widened(values),
                None => tile[i][j].iter_mut().zip(values).for_each(|(out, value)| *out = value.widen()),
            }
        }
    }
    let rows = [gradient_line(tile[0]), gradient_line(tile[1])];
    let mut out = [[[0.0; LANES]; 4]; 4];
    for j in 0..4 {
        let column = gradient_line([rows[0][j], rows[1][j]]);
        for i in 0..4 {
            out[i][j] = column[i];
        }
    }
    out
}

#[inline(always)]
fn gradient_line([a, b]: [[f32; LANES]; 2]) -> [[f32; LANES]; 4] {
    [a, add(a, b), sub(a, b), sub([0.0; LANES], b)]
}

multiversion! {
    /// `Gᵀ u G` of all input channels of one output channel, `u` being the sum over splits `split` apart of the matrices
    /// `position` apart; to `[input channel, tap]`.
    fn to_kernels(sums: &[f32], split: usize, position: usize, dw: &mut [f32]) = to_kernels_body;
}

#[inline(always)]
fn to_kernels_body(sums: &[f32], split: usize, position: usize, dw: &mut [f32]) {
    for (block, dw) in dw.chunks_mut(9 * LANES).enumerate() {
        let lanes = dw.len() / 9;
        let mut u = [[[0.0; LANES]; 4]; 4];
        for (p, u) in u.as_flattened_mut().iter_mut().enumerate() {
            let mut at = p * position + block * LANES;
            while at < sums.len() {
                match sums[at..at + lanes].first_chunk() {
                    Some(values) => *u = add(*u, *values),
                    None => u.iter_mut().zip(&sums[at..at + lanes]).for_each(|(u, value)| *u += value),
                }
                at += split;
            }
        }
        let mut rows = [[[0.0; LANES]; 3]; 4];
        for i in 0..4 {
            rows[i] = tap_line(u[i]);
        }
        for x in 0..3 {
            let column = tap_line([rows[0][x], rows[1][x], rows[2][x], rows[3][x]]);
            for y in 0..3 {
                for lane in 0..lanes {
                    dw[9 * lane + 3 * y + x] = column[y][lane];
                }
            }
        }
    }
}

#[inline(always)]
fn tap_line([a, b, c, d]: [[f32; LANES]; 4]) -> [[f32; LANES]; 3] {
    let both = halve(add(b, c));
    [add(a, both), halve(sub(b, c)), add(both, d)]
}

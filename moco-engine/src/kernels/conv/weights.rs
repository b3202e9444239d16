//! Weights in the order the micro-kernels read them.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::geometry::{Bundles, Phase, phases};
use super::grouped;
use super::shape::ConvShape;
use super::transpose::{SIDE, Tile, transpose};
use super::winograd::{self, POSITIONS, transform_kernel};
use crate::kernels::element::Element;
use crate::kernels::gemm::AlignedBuffer;
use crate::kernels::gemm::level::{Level, multiversion};
use crate::kernels::gemm::panels::Panels;

/// Which pass packed weights serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`forward`](super::forward).
    Forward,
    /// [`backward_data`](super::backward_data).
    BackwardData,
}

/// Weights of one layer, packed for one pass on activations stored as `T`. One buffer may serve layer after layer: [`Packed::repack`] does not
/// allocate while [`Packed::needed_len`] stays within what it was made for.
#[derive(Clone, Debug)]
pub struct Packed<T = f32> {
    level: Level,
    /// Layer and pass packed last, with the shape's `n`, `h` and `w` as 0: they make no difference.
    packed: Option<(ConvShape, Pass)>,
    data: AlignedBuffer,
    element: PhantomData<T>,
}

impl<T: Element> Packed<T> {
    /// Room for `len` words of 4 bytes, see [`Packed::needed_len`].
    pub fn with_capacity(len: usize) -> Packed<T> {
        Packed::<T>::with_level(Level::detect(), len)
    }

    pub(super) fn with_level(level: Level, len: usize) -> Packed<T> {
        Packed { level, packed: None, data: AlignedBuffer::zeroed(len), element: PhantomData }
    }

    /// Words of 4 bytes that [`Packed::repack`] needs for a layer and pass; does not depend on `n`, `h` and `w`.
    ///
    /// # Panics
    /// If the groups do not divide the channels, or kernel, stride or groups are 0.
    pub fn needed_len(shape: &ConvShape, pass: Pass) -> usize {
        Packed::<T>::needed_len_at(Level::detect(), shape, pass)
    }

    pub(super) fn needed_len_at(level: Level, shape: &ConvShape, pass: Pass) -> usize {
        shape.assert_valid();
        let bundles = bundles_of(level, shape);
        let matrices = matrices(shape);
        bundles.count
            * parts(shape, pass)
                .map(|taps| matrices * panels::<T>(shape, level, &bundles, pass, taps).len())
                .sum::<usize>()
    }

    /// Replaces the content by `weight` `[c_out, c_in / groups, kernel, kernel]` of this layer.
    ///
    /// # Panics
    /// If the length of `weight` is not the shape's, or for what [`Packed::needed_len`] panics.
    pub fn repack(&mut self, shape: &ConvShape, pass: Pass, weight: &[f32]) {
        shape.assert_valid();
        assert_eq!(weight.len(), shape.weight_len(), "weight of {shape:?}");
        let level = self.level;
        let bundles = bundles_of(level, shape);
        let mut rest = self.data.at_least(Packed::<T>::needed_len_at(level, shape, pass));
        for bundle in 0..bundles.count {
            for taps in parts(shape, pass) {
                let panels = panels::<T>(shape, level, &bundles, pass, taps);
                let (part, after) = rest.split_at_mut(matrices(shape) * panels.len());
                rest = after;
                if part.is_empty() {
                    continue;
                }
                let one = matrices(shape) * panels.words() * level.tile_cols();
                part.par_chunks_mut(one).enumerate().for_each(|(panel, out)| {
                    let place = Place { shape, bundles: &bundles, bundle, pass, taps, panels: &panels, panel };
                    if grouped::applies(level, shape) {
                        pack_panel::<f32>(level, &place, weight, out);
                    } else {
                        pack_panel::<T>(level, &place, weight, out);
                    }
                });
            }
        }
        self.packed = Some((layer(shape), pass));
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> usize {
        4 * self.data.as_slice::<u32>().len()
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// The packed matrices of every bundle, and in it of every phase.
    ///
    /// # Panics
    /// If another layer or pass was packed.
    pub(super) fn parts(&self, shape: &ConvShape, pass: Pass) -> impl Iterator<Item = (Panels, &[u32])> {
        assert_eq!(self.packed, Some((layer(shape), pass)), "the weights of another layer or pass are packed");
        let (level, shape) = (self.level, *shape);
        let bundles = bundles_of(level, &shape);
        let mut rest = self.data.as_slice();
        (0..bundles.count).flat_map(move |_| parts(&shape, pass)).map(move |taps| {
            let panels = panels::<T>(&shape, level, &bundles, pass, taps);
            let (part, after) = rest.split_at(matrices(&shape) * panels.len());
            rest = after;
            (panels, part)
        })
    }
}

/// How a layer's channels are divided into products.
pub(super) fn bundles_of(level: Level, shape: &ConvShape) -> Bundles {
    if grouped::applies(level, shape) { Bundles::all_groups(shape) } else { Bundles::new(shape) }
}

fn layer(shape: &ConvShape) -> ConvShape {
    ConvShape { n: 0, h: 0, w: 0, ..*shape }
}

/// The kernels a pass is made of: the whole one, or one for each phase.
fn parts(shape: &ConvShape, pass: Pass) -> impl Iterator<Item = [Phase; 2]> + use<> {
    let whole = Phase { residue: 0, taps: shape.kernel, first: 0, count: 0, origin: 0 };
    let forward = (pass == Pass::Forward).then_some([whole; 2]);
    let backward = (pass == Pass::BackwardData).then(|| phases(shape));
    forward.into_iter().chain(backward.into_iter().flatten())
}

/// Matrices of the same size that a part consists of: one, or one for each position of a patch.
fn matrices(shape: &ConvShape) -> usize {
    if winograd::applies(shape) { POSITIONS } else { 1 }
}

fn panels<T: Element>(shape: &ConvShape, level: Level, bundles: &Bundles, pass: Pass, taps: [Phase; 2]) -> Panels {
    let (from, to) = match pass {
        Pass::Forward => (bundles.c_in, bundles.c_out),
        Pass::BackwardData if grouped::applies(level, shape) => (bundles.c_in, bundles.c_out),
        Pass::BackwardData => (bundles.c_out, bundles.c_in),
    };
    let k = if winograd::applies(shape) { from } else { taps[0].taps * taps[1].taps * from };
    let to = if k == 0 { 0 } else { to };
    // The kernels of narrow groups multiply in f32, whatever the activations are stored as.
    if grouped::applies(level, shape) { Panels::new::<f32>(level, k, to) } else { Panels::new::<T>(level, k, to) }
}

/// Which panel is packed.
struct Place<'a> {
    shape: &'a ConvShape,
    bundles: &'a Bundles,
    bundle: usize,
    pass: Pass,
    taps: [Phase; 2],
    panels: &'a Panels,
    panel: usize,
}

/// One panel: rows `(tap y, tap x, channel read)` or `(position, channel read)`, columns the channels written.
fn pack_panel<T: Element>(level: Level, place: &Place, weight: &[f32], out: &mut [u32]) {
    let &Place { shape, bundles, bundle, pass, taps, panels, panel } = place;
    let (first, cols, width) = (panels.column(panel), panels.cols(panel), panels.width(panel));
    let transformed = winograd::applies(shape);
    let channels = if transformed { panels.k() } else { panels.k() / (taps[0].taps * taps[1].taps) };
    if !channels.is_multiple_of(T::PER_WORD) {
        out.fill(0);
    }
    let all_groups = grouped::applies(level, shape);
    let area = shape.kernel * shape.kernel;
    let position = |phase: &Phase, tap| match pass {
        Pass::Forward => tap,
        Pass::BackwardData => phase.tap(shape, tap),
    };
    let (rows, columns) = (taps[0].taps, taps[1].taps);
    // Some taps of some channels at a time: read in the order of the weight, collected where everything stays in the
    // first-level cache, and written in long pieces.
    let mut block = [0.0; TAPS * CHANNELS * LANES];
    for first_tap in (0..rows * columns).step_by(TAPS) {
        let count = TAPS.min(rows * columns - first_tap);
        let positions: [usize; TAPS] = std::array::from_fn(|i| {
            let tap = (first_tap + i).min(rows * columns - 1);
            position(&taps[0], tap / columns) * shape.kernel + position(&taps[1], tap % columns)
        });
        // A single tap leaves room for more channels.
        let at_once = if rows * columns == 1 { TAPS * CHANNELS } else { CHANNELS };
        for first_channel in (0..channels).step_by(at_once) {
            let some = at_once.min(channels - first_channel);
            let dense = bundles.c_in == bundles.group_in && !all_groups && (area == 1 || area == TAPS);
            // All kernels that lead to an output channel, from some input channel on.
            let kernels = |o: usize, i: usize| {
                let o = bundle * bundles.c_out + o;
                &weight[(o * bundles.c_in + i) * area..(o + 1) * bundles.c_in * area]
            };
            match pass {
                Pass::Forward if dense => {
                    let row = |o: usize| &kernels(first + o, first_channel)[..some * area];
                    turn(level, row, cols, some * area, area, width, &mut block);
                }
                Pass::BackwardData if dense => {
                    for o in 0..some {
                        let kernels = &kernels(first_channel + o, first)[..cols * area];
                        spread(level, kernels, area, &positions[..count], &mut block[o * width..]);
                    }
                }
                _ => {
                    for (channel, lane) in (0..some).flat_map(|channel| (0..cols).map(move |lane| (channel, lane))) {
                        let (o, i) = match pass {
                            Pass::Forward => (first + lane, first_channel + channel),
                            Pass::BackwardData => (first_channel + channel, first + lane),
                        };
                        let index = if all_groups && pass == Pass::BackwardData {
                            let (group, i) = (i / bundles.group_in, i % bundles.group_in);
                            Some((group * bundles.group_out + o) * bundles.group_in + i)
                        } else {
                            bundles.kernel_index(bundle, o, i)
                        };
                        let kernel = index.map(|index| &weight[index * area..][..area]);
                        for (tap, &position) in positions[..count].iter().enumerate() {
                            let at = tap * CHANNELS * LANES + channel * width + lane;
                            block[at] = kernel.map_or(0.0, |kernel| kernel[position]);
                        }
                    }
                }
            }
            if transformed {
                let (row, words) = (first_channel / T::PER_WORD, panels.words());
                transform_block::<T>(level, &block, some, width, words * width, &mut out[row * width..]);
                continue;
            }
            for tap in 0..count {
                let row = (first_tap + tap) * channels + first_channel;
                write_rows::<T>(&block[tap * CHANNELS * LANES..][..some * width], row, width, out);
            }
        }
    }
}

/// Writes the rows of a block to the words of rows from `row` on.
fn write_rows<T: Element>(block: &[f32], row: usize, width: usize, out: &mut [u32]) {
    let mut rows = block.chunks_exact(width);
    let mut row = row;
    // The other half of a word at either end belongs to another block, or stays 0.
    if !row.is_multiple_of(T::PER_WORD) {
        let values = rows.next().expect("a block has rows");
        for (out, value) in out[row / T::PER_WORD * width..][..width].iter_mut().zip(values) {
            *out = *out & 0xFFFF | T::word(0.0, *value);
        }
        row += 1;
    }
    let mut out = out[row / T::PER_WORD * width..].chunks_exact_mut(width);
    while let (Some(first), Some(out)) = (rows.next(), out.next()) {
        let second = if T::PER_WORD > 1 { rows.next() } else { None };
        match second {
            Some(second) => {
                for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                    *out = T::word(*first, *second);
                }
            }
            None if T::PER_WORD == 1 => out.iter_mut().zip(first).for_each(|(out, first)| *out = T::word(*first, 0.0)),
            None => {
                for (out, first) in out.iter_mut().zip(first) {
                    *out = T::word(*first, 0.0) | *out & 0xFFFF_0000;
                }
            }
        }
    }
}

/// Taps, channels and lanes of a block while it is packed: 18 KiB.
const TAPS: usize = 9;
const CHANNELS: usize = 16;
const LANES: usize = 32;

multiversion! {
    /// Writes the transform of the kernels of `rows` channels of a block, `width` side by side, to words of rows `step`
    /// apart, one for each position.
    fn transform_block<T: Element>(block: &[f32], rows: usize, width: usize, step: usize, out: &mut [u32]) =
        transform_block_body;
}

#[inline(always)]
fn transform_block_body<T: Element>(block: &[f32], rows: usize, width: usize, step: usize, out: &mut [u32]) {
    for (word, row) in (0..rows).step_by(T::PER_WORD).enumerate() {
        for at in (0..width).step_by(8) {
            let first = transformed(block, row * width + at);
            let second = if T::PER_WORD > 1 && row + 1 < rows {
                transformed(block, (row + 1) * width + at)
            } else {
                [[0.0; 8]; POSITIONS]
            };
            for position in 0..POSITIONS {
                let out = &mut out[position * step + word * width + at..][..8];
                for lane in 0..8 {
                    out[lane] = T::word(first[position][lane], second[position][lane]);
                }
            }
        }
    }
}

#[inline(always)]
fn transformed(block: &[f32], at: usize) -> [[f32; 8]; POSITIONS] {
    let mut taps = [[0.0; 8]; 9];
    for (t, tap) in taps.iter_mut().enumerate() {
        *tap = *block[t * CHANNELS * LANES + at..].first_chunk().expect("eight lanes");
    }
    transform_kernel(&taps)
}

/// The forward pass: `row(o)` `[channel, position]` of every output channel goes to lane o of block rows
/// `[position, channel]`.
#[inline]
fn turn<'a>(
    level: Level,
    row: impl Fn(usize) -> &'a [f32],
    cols: usize,
    len: usize,
    area: usize,
    width: usize,
    block: &mut [f32],
) {
    for lane in (0..cols).step_by(SIDE) {
        let lanes = SIDE.min(cols - lane);
        for from in (0..len).step_by(SIDE) {
            let values = SIDE.min(len - from);
            let mut tile: Tile = [[0.0; SIDE]; SIDE];
            for (o, tile) in tile[..lanes].iter_mut().enumerate() {
                load(&row(lane + o)[from..], values, tile);
            }
            transpose(level, &mut tile);
            for (value, tile) in (from..from + values).zip(&tile) {
                let at = value % area * CHANNELS * LANES + value / area * width + lane;
                store(tile, lanes, &mut block[at..]);
            }
        }
    }
}

/// The data gradient: kernels `[input channel, position]` of one output channel go to block rows, one for each of the
/// wanted positions.
#[inline]
fn spread(level: Level, kernels: &[f32], area: usize, positions: &[usize], block: &mut [f32]) {
    if area == 1 {
        block[..kernels.len()].copy_from_slice(kernels);
        return;
    }
    let cols = kernels.len() / area;
    for lane in (0..cols).step_by(SIDE) {
        let lanes = SIDE.min(cols - lane);
        let mut tile: Tile = [[0.0; SIDE]; SIDE];
        for (i, tile) in tile[..lanes].iter_mut().enumerate() {
            let kernels = &kernels[(lane + i) * area..];
            load(kernels, SIDE.min(kernels.len()), tile);
        }
        transpose(level, &mut tile);
        for (tap, &position) in positions.iter().enumerate() {
            store(&tile[position], lanes, &mut block[tap * CHANNELS * LANES + lane..]);
        }
    }
}

#[inline(always)]
fn load(from: &[f32], len: usize, row: &mut [f32; SIDE]) {
    match from.first_chunk() {
        Some(values) if len == SIDE => *row = *values,
        _ => row[..len].copy_from_slice(&from[..len]),
    }
}

#[inline(always)]
fn store(row: &[f32; SIDE], len: usize, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(to) if len == SIDE => *to = *row,
        _ => to[..len].copy_from_slice(&row[..len]),
    }
}

//! Weights in the order the micro-kernels read them.

use rayon::prelude::*;

use super::geometry::{Bundles, Phase, phases};
use super::grouped;
use super::shape::ConvShape;
use super::winograd::{self, POSITIONS, transform_kernel};
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

/// Weights of one layer, packed for one pass. One buffer may serve layer after layer: [`Packed::repack`] does not
/// allocate while [`Packed::needed_len`] stays within what it was made for.
#[derive(Clone, Debug)]
pub struct Packed {
    level: Level,
    /// Layer and pass packed last, with the shape's `n`, `h` and `w` as 0: they make no difference.
    packed: Option<(ConvShape, Pass)>,
    data: AlignedBuffer,
}

impl Packed {
    /// Room for `len` values, see [`Packed::needed_len`].
    pub fn with_capacity(len: usize) -> Packed {
        Packed::with_level(Level::detect(), len)
    }

    pub(super) fn with_level(level: Level, len: usize) -> Packed {
        Packed { level, packed: None, data: AlignedBuffer::zeroed(len) }
    }

    /// Values that [`Packed::repack`] needs for a layer and pass; does not depend on `n`, `h` and `w`.
    ///
    /// # Panics
    /// If the groups do not divide the channels, or kernel, stride or groups are 0.
    pub fn needed_len(shape: &ConvShape, pass: Pass) -> usize {
        Packed::needed_len_at(Level::detect(), shape, pass)
    }

    pub(super) fn needed_len_at(level: Level, shape: &ConvShape, pass: Pass) -> usize {
        shape.assert_valid();
        let bundles = bundles_of(level, shape);
        let matrices = matrices(shape);
        bundles.count
            * parts(shape, pass).map(|taps| matrices * panels(shape, level, &bundles, pass, taps).len()).sum::<usize>()
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
        let mut rest = self.data.at_least(Packed::needed_len_at(level, shape, pass));
        for bundle in 0..bundles.count {
            for taps in parts(shape, pass) {
                let panels = panels(shape, level, &bundles, pass, taps);
                let (part, after) = rest.split_at_mut(matrices(shape) * panels.len());
                rest = after;
                if part.is_empty() {
                    continue;
                }
                let one = matrices(shape) * panels.k() * level.tile_cols();
                part.par_chunks_mut(one).enumerate().for_each(|(panel, out)| {
                    pack_panel(level, shape, &bundles, bundle, pass, taps, &panels, panel, weight, out);
                });
            }
        }
        self.packed = Some((layer(shape), pass));
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> usize {
        4 * self.data.as_slice().len()
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// The packed matrices of every bundle, and in it of every phase.
    ///
    /// # Panics
    /// If another layer or pass was packed.
    pub(super) fn parts(&self, shape: &ConvShape, pass: Pass) -> impl Iterator<Item = (Panels, &[f32])> {
        assert_eq!(self.packed, Some((layer(shape), pass)), "the weights of another layer or pass are packed");
        let (level, shape) = (self.level, *shape);
        let bundles = bundles_of(level, &shape);
        let mut rest = self.data.as_slice();
        (0..bundles.count).flat_map(move |_| parts(&shape, pass)).map(move |taps| {
            let panels = panels(&shape, level, &bundles, pass, taps);
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

fn panels(shape: &ConvShape, level: Level, bundles: &Bundles, pass: Pass, taps: [Phase; 2]) -> Panels {
    let (from, to) = match pass {
        Pass::Forward => (bundles.c_in, bundles.c_out),
        Pass::BackwardData if grouped::applies(level, shape) => (bundles.c_in, bundles.c_out),
        Pass::BackwardData => (bundles.c_out, bundles.c_in),
    };
    let k = if winograd::applies(shape) { from } else { taps[0].taps * taps[1].taps * from };
    Panels::new(level, k, if k == 0 { 0 } else { to })
}

/// One panel: rows `(tap y, tap x, channel read)` or `(position, channel read)`, columns the channels written.
#[expect(clippy::too_many_arguments, reason = "the place of a panel in the packed weights")]
fn pack_panel(
    level: Level,
    shape: &ConvShape,
    bundles: &Bundles,
    bundle: usize,
    pass: Pass,
    taps: [Phase; 2],
    panels: &Panels,
    panel: usize,
    weight: &[f32],
    out: &mut [f32],
) {
    let (first, cols, width) = (panels.column(panel), panels.cols(panel), panels.width(panel));
    let transformed = winograd::applies(shape);
    let channels = if transformed { panels.k() } else { panels.k() / (taps[0].taps * taps[1].taps) };
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
        for first_channel in (0..channels).step_by(CHANNELS) {
            let some = CHANNELS.min(channels - first_channel);
            let (majors, minors) = if pass == Pass::Forward { (cols, some) } else { (some, cols) };
            for major in 0..majors {
                let (o, i, at, step) = match pass {
                    Pass::Forward => (first + major, first_channel, major, width),
                    Pass::BackwardData => (first_channel + major, first, major * width, 1),
                };
                let block = &mut block[at..];
                if bundles.c_in == bundles.group_in && !(all_groups && pass == Pass::BackwardData) {
                    let kernels = &weight[((bundle * bundles.c_out + o) * bundles.c_in + i) * area..][..minors * area];
                    match count {
                        1 => scatter::<1>(kernels, area, &positions, step, block),
                        TAPS => scatter::<TAPS>(kernels, area, &positions, step, block),
                        _ => (0..count).for_each(|tap| {
                            scatter::<1>(kernels, area, &positions[tap..], step, &mut block[tap * CHANNELS * LANES..]);
                        }),
                    }
                    continue;
                }
                for minor in 0..minors {
                    let index = if all_groups {
                        let (group, i) = ((i + minor) / bundles.group_in, (i + minor) % bundles.group_in);
                        Some((group * bundles.group_out + o) * bundles.group_in + i)
                    } else {
                        bundles.kernel_index(bundle, o, i + minor)
                    };
                    let kernel = index.map(|index| &weight[index * area..][..area]);
                    for (tap, &position) in positions[..count].iter().enumerate() {
                        block[tap * CHANNELS * LANES + minor * step] = kernel.map_or(0.0, |kernel| kernel[position]);
                    }
                }
            }
            if transformed {
                transform_block(level, &block, some * width, channels * width, &mut out[first_channel * width..]);
                continue;
            }
            for (tap, block) in block.chunks_exact(CHANNELS * LANES).take(count).enumerate() {
                let at = ((first_tap + tap) * channels + first_channel) * width;
                out[at..at + some * width].copy_from_slice(&block[..some * width]);
            }
        }
    }
}

/// Taps, channels and lanes of a block while it is packed: 18 KiB.
const TAPS: usize = 9;
const CHANNELS: usize = 16;
const LANES: usize = 32;

multiversion! {
    /// Writes the transform of `len` kernels of a block to rows `step` apart, one for each position.
    fn transform_block(block: &[f32], len: usize, step: usize, out: &mut [f32]) = transform_block_body;
}

#[inline(always)]
fn transform_block_body(block: &[f32], len: usize, step: usize, out: &mut [f32]) {
    for at in (0..len).step_by(8) {
        let mut taps = [[0.0; 8]; 9];
        for (t, tap) in taps.iter_mut().enumerate() {
            *tap = *block[t * CHANNELS * LANES + at..].first_chunk().expect("eight lanes");
        }
        for (position, values) in transform_kernel(&taps).iter().enumerate() {
            out[position * step + at..][..8].copy_from_slice(values);
        }
    }
}

/// Distributes neighbouring kernels: each kernel's tap `positions[t]` goes to row t of the block.
#[inline]
fn scatter<const T: usize>(kernels: &[f32], area: usize, positions: &[usize], step: usize, block: &mut [f32]) {
    let positions: &[usize; T] = positions.first_chunk().expect("T positions");
    if area == 1 && step == 1 {
        block[..kernels.len()].copy_from_slice(kernels);
        return;
    }
    for (minor, kernel) in kernels.chunks_exact(area).enumerate() {
        for t in 0..T {
            block[t * CHANNELS * LANES + minor * step] = kernel[positions[t]];
        }
    }
}

//! Batch normalisation (arXiv:1502.03167) on the CPU: statistics, application, gradient.
//!
//! The work is cut into blocks of rows of one sample. Each block sums in f32 (shifted by its first row, so that the
//! variance stays accurate where the mean is large against it); the blocks of a group are added up in f64, always in
//! the same order.

use rayon::prelude::*;

use super::element::Element;
use super::rows::{self, GradientTerms};
use super::{BnGroups, Group, NormOffsets, NormShape, Statistics, group_norm};

/// Values in a block: about a quarter of a core's L2 cache.
const BLOCK: usize = 1 << 15;

/// Numbers kept per group and channel.
const FIELDS: usize = 6;
pub(super) const MEAN: usize = 0;
pub(super) const INV_STD: usize = 1;
pub(super) const SCALE: usize = 2;
pub(super) const SHIFT: usize = 3;
pub(super) const SLOPE: usize = 4;
pub(super) const OFFSET: usize = 5;

/// Length of `stats`: [6, groups, channels] = mean, 1/σ, scale, shift, and two terms of the gradient.
pub(super) fn stats_len(shape: &NormShape) -> usize {
    FIELDS * field_len(shape)
}

/// Scale and shift, [groups, channels] each.
pub(super) fn scale_and_shift<'a>(shape: &NormShape, stats: &'a [f32]) -> (&'a [f32], &'a [f32]) {
    let len = field_len(shape);
    (&stats[SCALE * len..][..len], &stats[SHIFT * len..][..len])
}

/// Length of the scratch for block sums: [n, blocks, 2, channels].
pub(super) fn sums_len(shape: &NormShape) -> usize {
    shape.map.n * blocks(shape) * 2 * shape.map.channels
}

/// Length of the f64 scratch: [4, channels].
pub(super) fn merge_len(shape: &NormShape) -> usize {
    4 * shape.map.channels
}

/// Batch statistics of every group; running statistics move as [`BnGroups`](super::BnGroups) tells.
#[expect(clippy::too_many_arguments, reason = "the operands of one step and its two scratch buffers")]
pub(super) fn batch_stats<T: Element>(
    shape: &NormShape,
    z: &[T],
    params: &[f32],
    at: NormOffsets,
    buffers: &mut [f32],
    stats: &mut [f32],
    sums: &mut [f32],
    merge: &mut [f64],
) {
    let c = shape.map.channels;
    block_sums(shape, z, sums);
    let (mean, deviation) = merge[..2 * c].split_at_mut(c);
    for (g, group) in shape.groups.of(shape.map.n).enumerate() {
        merge_moments(shape, group, z, sums, mean, deviation);
        finish_group(shape, g, group, mean, deviation, params, at, buffers, stats);
    }
}

/// [`batch_stats`] from the sum and the sum of squares of each image, `sums` [n, 2, channels].
pub(super) fn batch_stats_from_images(
    shape: &NormShape,
    sums: &[f64],
    params: &[f32],
    at: NormOffsets,
    buffers: &mut [f32],
    stats: &mut [f32],
    merge: &mut [f64],
) {
    let c = shape.map.channels;
    let (mean, deviation) = merge[..2 * c].split_at_mut(c);
    for (g, group) in shape.groups.of(shape.map.n).enumerate() {
        let count = (group.len * shape.map.pixels) as f64;
        mean.fill(0.0);
        deviation.fill(0.0);
        for i in group.samples() {
            let sums = &sums[2 * i * c..][..2 * c];
            for j in 0..c {
                mean[j] += sums[j];
                deviation[j] += sums[c + j];
            }
        }
        for (mean, deviation) in mean.iter_mut().zip(deviation.iter_mut()) {
            *mean /= count;
            *deviation = (*deviation - *mean * *mean * count).max(0.0);
        }
        finish_group(shape, g, group, mean, deviation, params, at, buffers, stats);
    }
}

/// Sums of every block, [n, blocks, 2, channels], shifted by its first row.
pub(super) fn block_sums<T: Element>(shape: &NormShape, z: &[T], sums: &mut [f32]) {
    let c = shape.map.channels;
    let block = block_rows(shape) * c;
    sums[..sums_len(shape)]
        .par_chunks_mut(blocks(shape) * 2 * c)
        .zip(z.par_chunks_exact(shape.map.sample_len()))
        .for_each(|(sums, z)| {
            sums.par_chunks_mut(2 * c).zip(z.par_chunks(block)).for_each(|(sums, z)| rows::shifted_sums(z, c, sums));
        });
}

/// Writes what one group's moments decide: its fields of `stats` and its part of the running statistics.
#[expect(clippy::too_many_arguments, reason = "the operands of one step")]
fn finish_group(
    shape: &NormShape,
    g: usize,
    group: Group,
    mean: &[f64],
    deviation: &[f64],
    params: &[f32],
    at: NormOffsets,
    buffers: &mut [f32],
    stats: &mut [f32],
) {
    let c = shape.map.channels;
    let count = (group.len * shape.map.pixels) as f64;
    for j in 0..c {
        let inv_std = 1.0 / (deviation[j] / count + f64::from(shape.eps)).sqrt();
        let scale = f64::from(params[at.weight + j]) * inv_std;
        stats[place(shape, MEAN, g) + j] = mean[j] as f32;
        stats[place(shape, INV_STD, g) + j] = inv_std as f32;
        stats[place(shape, SCALE, g) + j] = scale as f32;
        stats[place(shape, SHIFT, g) + j] = (f64::from(params[at.bias + j]) - mean[j] * scale) as f32;
    }
    let kept = match shape.groups {
        BnGroups::Interleaved(s) => s.min(shape.map.n),
        BnGroups::Whole | BnGroups::Ranks(_) => 1,
    };
    if g < kept {
        // Each kept group moves its own copy of the old values and the copies are averaged: the old values decay once,
        // with the first group, and every group adds its share.
        let momentum = f64::from(shape.momentum);
        let decay = if g == 0 { 1.0 - momentum } else { 1.0 };
        let share = momentum / kept as f64;
        for j in 0..c {
            let unbiased = deviation[j] / (count - 1.0);
            let (m, v) = (at.running_mean + j, at.running_var + j);
            buffers[m] = (decay * f64::from(buffers[m]) + share * mean[j]) as f32;
            buffers[v] = (decay * f64::from(buffers[v]) + share * unbiased) as f32;
        }
    }
}

/// All fields from the running statistics, for every group.
pub(super) fn running_stats(shape: &NormShape, params: &[f32], at: NormOffsets, buffers: &[f32], stats: &mut [f32]) {
    for g in 0..shape.groups.count() {
        for j in 0..shape.map.channels {
            let (mean, variance) = (f64::from(buffers[at.running_mean + j]), f64::from(buffers[at.running_var + j]));
            let inv_std = 1.0 / (variance + f64::from(shape.eps)).sqrt();
            let scale = f64::from(params[at.weight + j]) / (variance + f64::from(shape.eps)).sqrt();
            stats[place(shape, MEAN, g) + j] = mean as f32;
            stats[place(shape, INV_STD, g) + j] = inv_std as f32;
            stats[place(shape, SCALE, g) + j] = scale as f32;
            stats[place(shape, SHIFT, g) + j] = (f64::from(params[at.bias + j]) - mean * scale) as f32;
            // Constants have no gradient.
            stats[place(shape, SLOPE, g) + j] = 0.0;
            stats[place(shape, OFFSET, g) + j] = 0.0;
        }
    }
}

/// What is added to a normalised map.
#[derive(Clone, Copy)]
pub(super) enum Added<'a, T> {
    Nothing,
    Map(&'a [T]),
    Norm { z: &'a [T], stats: &'a [f32] },
}

/// `y = act(z · scale + shift + added)`; in place without `z`.
pub(super) fn apply<T: Element>(
    shape: &NormShape,
    z: Option<&[T]>,
    stats: &[f32],
    added: Added<'_, T>,
    relu: bool,
    y: &mut [T],
) {
    let (sample, block) = (shape.map.sample_len(), block_rows(shape) * shape.map.channels);
    y.par_chunks_mut(sample).enumerate().for_each(|(i, y)| {
        let g = shape.groups.group_of(i, shape.map.n);
        let (scale, shift) = (field(shape, stats, SCALE, g), field(shape, stats, SHIFT, g));
        y.par_chunks_mut(block).enumerate().for_each(|(b, y)| {
            let at = i * sample + b * block..i * sample + b * block + y.len();
            let z = z.map(|z| &z[at.clone()]);
            match added {
                Added::Nothing => rows::affine(z, scale, shift, relu, y),
                Added::Map(r) => rows::affine_add(z, scale, shift, &r[at], relu, y),
                Added::Norm { z: z2, stats: stats2 } => {
                    let (scale2, shift2) = (field(shape, stats2, SCALE, g), field(shape, stats2, SHIFT, g));
                    let affine = [scale, shift, scale2, shift2];
                    rows::affine_add_affine(z, affine, &z2[at], relu, y);
                }
            }
        });
    });
}

/// How `dy` is masked before it is used.
#[derive(Clone, Copy)]
pub(super) enum Masked<'a, T> {
    No,
    Recompute,
    Output(&'a [T]),
}

/// Gradients of weight and bias, and the two terms of the data gradient, kept in `stats`.
#[expect(clippy::too_many_arguments, reason = "the operands of one step and its two scratch buffers")]
pub(super) fn backward_reduce<T: Element>(
    shape: &NormShape,
    z: &[T],
    stats: &mut [f32],
    masked: Masked<'_, T>,
    dy: &mut [T],
    at: NormOffsets,
    gradients: &mut [f32],
    sums: &mut [f32],
    merge: &mut [f64],
) {
    let (c, sample, block) = (shape.map.channels, shape.map.sample_len(), block_rows(shape) * shape.map.channels);
    let all_stats = &*stats;
    sums[..sums_len(shape)].par_chunks_mut(blocks(shape) * 2 * c).zip(dy.par_chunks_mut(sample)).enumerate().for_each(
        |(i, (sums, dy))| {
            let g = shape.groups.group_of(i, shape.map.n);
            let mean = field(shape, all_stats, MEAN, g);
            sums.par_chunks_mut(2 * c).zip(dy.par_chunks_mut(block)).enumerate().for_each(|(b, (sums, dy))| {
                let at = i * sample + b * block..i * sample + b * block + dy.len();
                let z = &z[at.clone()];
                match masked {
                    Masked::No => rows::gradient_sums(z, mean, dy, sums),
                    Masked::Recompute => {
                        let (scale, shift) = (field(shape, all_stats, SCALE, g), field(shape, all_stats, SHIFT, g));
                        rows::gradient_sums_recomputed(z, mean, scale, shift, dy, sums);
                    }
                    Masked::Output(y) => rows::gradient_sums_masking(z, mean, &y[at], dy, sums),
                }
            });
        },
    );

    if let Statistics::Image { groups } = shape.statistics {
        group_norm::finish_gradient(shape, groups, sums, at, stats, gradients, merge);
        return;
    }
    gradients[at.weight..][..c].fill(0.0);
    gradients[at.bias..][..c].fill(0.0);
    let (sum, dot) = merge[..2 * c].split_at_mut(c);
    for (g, group) in shape.groups.of(shape.map.n).enumerate() {
        sum.fill(0.0);
        dot.fill(0.0);
        for block in group_blocks(shape, group, sums) {
            for j in 0..c {
                sum[j] += f64::from(block[j]);
                dot[j] += f64::from(block[c + j]);
            }
        }
        let count = (group.len * shape.map.pixels) as f64;
        for j in 0..c {
            let inv_std = f64::from(stats[place(shape, INV_STD, g) + j]);
            let scale = f64::from(stats[place(shape, SCALE, g) + j]);
            gradients[at.weight + j] += (dot[j] * inv_std) as f32;
            gradients[at.bias + j] += sum[j] as f32;
            if shape.statistics == Statistics::Batch {
                stats[place(shape, SLOPE, g) + j] = (-scale * inv_std * inv_std * dot[j] / count) as f32;
                stats[place(shape, OFFSET, g) + j] = (-scale * sum[j] / count) as f32;
            }
        }
    }
}

/// Gradient of `z` after [`backward_reduce`]; without `dy`, `dz` holds it. Running statistics are constants: `z` then
/// serves the mask alone.
///
/// # Panics
/// If `z` is missing where it is needed.
pub(super) fn backward_apply<T: Element>(
    shape: &NormShape,
    z: Option<&[T]>,
    stats: &[f32],
    recompute_mask: bool,
    dy: Option<&[T]>,
    dz: &mut [T],
    accumulate: bool,
) {
    let (sample, block) = (shape.map.sample_len(), block_rows(shape) * shape.map.channels);
    dz.par_chunks_mut(sample).enumerate().for_each(|(i, dz)| {
        let g = shape.groups.group_of(i, shape.map.n);
        let terms = GradientTerms {
            mean: field(shape, stats, MEAN, g),
            scale: field(shape, stats, SCALE, g),
            shift: field(shape, stats, SHIFT, g),
            slope: field(shape, stats, SLOPE, g),
            offset: field(shape, stats, OFFSET, g),
        };
        dz.par_chunks_mut(block).enumerate().for_each(|(b, dz)| {
            let at = i * sample + b * block..i * sample + b * block + dz.len();
            let dy = dy.map(|dy| &dy[at.clone()]);
            if shape.statistics == Statistics::Running {
                let z = z.filter(|_| recompute_mask).map(|z| &z[at]);
                rows::affine_gradient(z, terms.scale, terms.shift, dy, dz, accumulate);
            } else {
                let z = z.expect("the statistics depend on it");
                rows::norm_gradient(&z[at], terms, recompute_mask, dy, dz, accumulate);
            }
        });
    });
}

fn block_rows(shape: &NormShape) -> usize {
    (BLOCK / shape.map.channels).clamp(1, shape.map.pixels)
}

fn blocks(shape: &NormShape) -> usize {
    shape.map.pixels.div_ceil(block_rows(shape))
}

fn field_len(shape: &NormShape) -> usize {
    shape.groups.count() * shape.map.channels
}

/// Where a group's values of a field start.
pub(super) fn place(shape: &NormShape, field: usize, group: usize) -> usize {
    field * field_len(shape) + group * shape.map.channels
}

fn field<'a>(shape: &NormShape, stats: &'a [f32], field: usize, group: usize) -> &'a [f32] {
    &stats[place(shape, field, group)..][..shape.map.channels]
}

/// Sums of every block of a group, [2, channels] each, in the order of samples and rows.
pub(super) fn group_blocks<'a>(shape: &NormShape, group: Group, sums: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
    let (c, blocks) = (shape.map.channels, blocks(shape));
    group.samples().flat_map(move |i| (0..blocks).map(move |b| &sums[(i * blocks + b) * 2 * c..][..2 * c]))
}

/// First row and number of rows of each block of a group, beside its sums.
pub(super) fn blocks_of<'a, T: Element>(
    shape: &NormShape,
    group: Group,
    z: &'a [T],
    sums: &'a [f32],
) -> impl Iterator<Item = ((&'a [T], f64), &'a [f32])> {
    let (c, pixels, block, blocks) = (shape.map.channels, shape.map.pixels, block_rows(shape), blocks(shape));
    let places = group.samples().flat_map(move |i| {
        (0..blocks).map(move |b| (&z[(i * pixels + b * block) * c..][..c], block.min(pixels - b * block) as f64))
    });
    places.zip(group_blocks(shape, group, sums))
}

/// Mean, and sum of squared deviations from it, of one group from its block sums (Chan, Golub, LeVeque 1983).
fn merge_moments<T: Element>(
    shape: &NormShape,
    group: Group,
    z: &[T],
    sums: &[f32],
    mean: &mut [f64],
    deviation: &mut [f64],
) {
    let c = shape.map.channels;
    let count = (group.len * shape.map.pixels) as f64;
    mean.fill(0.0);
    for ((first, rows), sums) in blocks_of(shape, group, z, sums) {
        for j in 0..c {
            mean[j] += f64::from(first[j].widen()) * rows + f64::from(sums[j]);
        }
    }
    for mean in mean.iter_mut() {
        *mean /= count;
    }
    deviation.fill(0.0);
    for ((first, rows), sums) in blocks_of(shape, group, z, sums) {
        let each = 1.0 / rows;
        for j in 0..c {
            let shifted = f64::from(sums[j]) * each;
            let within = f64::from(sums[c + j]) - f64::from(sums[j]) * shifted;
            let off = f64::from(first[j].widen()) + shifted - mean[j];
            deviation[j] += within.max(0.0) + rows * off * off;
        }
    }
}

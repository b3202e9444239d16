//! Group normalisation (arXiv:1803.08494) on the CPU: what differs from batch normalisation.
//!
//! Every image is a group of its own, so its mean and variance, spread over the channels of a channel group, are applied
//! as [`norm`](super::norm) applies those of a batch; statistics and the sums of the gradient are taken over blocks of rows
//! as there, then over the channels of each group.

use super::element::Element;
use super::norm::{INV_STD, MEAN, OFFSET, SCALE, SHIFT, SLOPE, block_sums, blocks_of, group_blocks, place};
use super::{Group, NormOffsets, NormShape};

/// Statistics of every image from its values.
pub(super) fn stats<T: Element>(
    shape: &NormShape,
    channel_groups: usize,
    z: &[T],
    params: &[f32],
    at: NormOffsets,
    stats: &mut [f32],
    sums: &mut [f32],
) {
    block_sums(shape, z, sums);
    let width = shape.map.channels / channel_groups;
    for image in 0..shape.map.n {
        for channels in (0..channel_groups).map(|g| g * width..(g + 1) * width) {
            let mut mean = 0.0;
            for ((first, rows), sums) in blocks_of(shape, one(image), z, sums) {
                for j in channels.clone() {
                    mean += f64::from(first[j].widen()) * rows + f64::from(sums[j]);
                }
            }
            mean /= (shape.map.pixels * width) as f64;
            // As in `norm::merge_moments`: within the blocks, and of the blocks' means around the whole.
            let mut deviation = 0.0;
            for ((first, rows), sums) in blocks_of(shape, one(image), z, sums) {
                for j in channels.clone() {
                    let shifted = f64::from(sums[j]) / rows;
                    let within = f64::from(sums[shape.map.channels + j]) - f64::from(sums[j]) * shifted;
                    let off = f64::from(first[j].widen()) + shifted - mean;
                    deviation += within.max(0.0) + rows * off * off;
                }
            }
            finish(shape, image, channels, mean, deviation, params, at, stats);
        }
    }
}

/// [`stats`] from the sum and the sum of squares of each image, `sums` [n, 2, channels].
pub(super) fn stats_from_images(
    shape: &NormShape,
    channel_groups: usize,
    sums: &[f64],
    params: &[f32],
    at: NormOffsets,
    stats: &mut [f32],
) {
    let c = shape.map.channels;
    let width = c / channel_groups;
    let count = (shape.map.pixels * width) as f64;
    for (image, sums) in sums.chunks_exact(2 * c).enumerate() {
        for channels in (0..channel_groups).map(|g| g * width..(g + 1) * width) {
            let mean = sums[channels.clone()].iter().sum::<f64>() / count;
            let square = sums[c..][channels.clone()].iter().sum::<f64>();
            finish(shape, image, channels, mean, (square - mean * mean * count).max(0.0), params, at, stats);
        }
    }
}

/// Gradients of weight and bias and the two terms of the data gradient, from the block sums of `dy` and `dy · (z − mean)`;
/// `merge` has room for [4, channels].
pub(super) fn finish_gradient(
    shape: &NormShape,
    channel_groups: usize,
    sums: &[f32],
    at: NormOffsets,
    stats: &mut [f32],
    gradients: &mut [f32],
    merge: &mut [f64],
) {
    let c = shape.map.channels;
    let width = c / channel_groups;
    let count = (shape.map.pixels * width) as f64;
    let (totals, of_image) = merge[..4 * c].split_at_mut(2 * c);
    totals.fill(0.0);
    for image in 0..shape.map.n {
        of_image.fill(0.0);
        for block in group_blocks(shape, one(image), sums) {
            of_image.iter_mut().zip(block).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let (sum, dot) = of_image.split_at(c);
        for channels in (0..channel_groups).map(|g| g * width..(g + 1) * width) {
            let inv_std = f64::from(stats[place(shape, INV_STD, image) + channels.start]);
            let (mut all, mut along) = (0.0, 0.0);
            for j in channels.clone() {
                let scale = f64::from(stats[place(shape, SCALE, image) + j]);
                all += scale * sum[j];
                along += scale * dot[j];
                totals[j] += inv_std * dot[j];
                totals[c + j] += sum[j];
            }
            let (slope, offset) = (-inv_std * inv_std * along / count, -all / count);
            stats[place(shape, SLOPE, image)..][channels.clone()].fill(slope as f32);
            stats[place(shape, OFFSET, image)..][channels].fill(offset as f32);
        }
    }
    for (at, totals) in [at.weight, at.bias].into_iter().zip(totals.chunks_exact(c)) {
        gradients[at..][..c].iter_mut().zip(totals).for_each(|(gradient, total)| *gradient = *total as f32);
    }
}

fn one(image: usize) -> Group {
    Group { first: image, len: 1, step: 1 }
}

#[expect(clippy::too_many_arguments, reason = "the operands of one step")]
fn finish(
    shape: &NormShape,
    image: usize,
    channels: std::ops::Range<usize>,
    mean: f64,
    deviation: f64,
    params: &[f32],
    at: NormOffsets,
    stats: &mut [f32],
) {
    let count = (shape.map.pixels * channels.len()) as f64;
    let inv_std = 1.0 / (deviation / count + f64::from(shape.eps)).sqrt();
    for j in channels {
        let scale = f64::from(params[at.weight + j]) * inv_std;
        stats[place(shape, MEAN, image) + j] = mean as f32;
        stats[place(shape, INV_STD, image) + j] = inv_std as f32;
        stats[place(shape, SCALE, image) + j] = scale as f32;
        stats[place(shape, SHIFT, image) + j] = (f64::from(params[at.bias + j]) - mean * scale) as f32;
    }
}

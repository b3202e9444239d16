//! From 8-bit pixels to the network's numbers, and mirroring.

use crate::{Error, Image, Layout, Result};

/// Writes `(value / 255 − mean) / std` of `image` to `out`; a grey image fills all of `channels`.
pub(crate) fn write_normalised(
    image: &Image,
    channels: usize,
    mean: &[f32],
    std: &[f32],
    layout: Layout,
    flip: bool,
    out: &mut [f32],
) -> Result<()> {
    let (width, pixels) = (image.width(), image.width() * image.height());
    let source_channels = image.channels();
    if source_channels != channels && source_channels != 1 {
        return Err(Error::Channels(format!("{source_channels} channels cannot fill {channels}")));
    }
    // ToTensor then Normalize in single precision, as torchvision does, once for each possible value.
    let tables: Vec<[f32; 256]> = mean
        .iter()
        .zip(std)
        .map(|(mean, std)| std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std))
        .collect();
    let step = if source_channels == 1 { 0 } else { 1 };
    let rows = image.data().chunks_exact(width * source_channels);
    match layout {
        Layout::Nhwc => {
            for (input, output) in rows.zip(out.chunks_exact_mut(width * channels)) {
                if let (3, [red, green, blue], false) = (source_channels, &tables[..], flip) {
                    for (pixel, target) in input.chunks_exact(3).zip(output.chunks_exact_mut(3)) {
                        target[0] = red[usize::from(pixel[0])];
                        target[1] = green[usize::from(pixel[1])];
                        target[2] = blue[usize::from(pixel[2])];
                    }
                    continue;
                }
                for (x, target) in output.chunks_exact_mut(channels).enumerate() {
                    let from = if flip { width - 1 - x } else { x } * source_channels;
                    for (c, value) in target.iter_mut().enumerate() {
                        *value = tables[c][usize::from(input[from + c * step])];
                    }
                }
            }
        }
        Layout::Nchw => {
            for (y, input) in rows.enumerate() {
                for (c, table) in tables.iter().enumerate() {
                    let output = &mut out[c * pixels + y * width..][..width];
                    let values = input[c * step..].iter().step_by(source_channels).map(|&v| table[usize::from(v)]);
                    if flip {
                        output.iter_mut().rev().zip(values).for_each(|(o, v)| *o = v);
                    } else {
                        output.iter_mut().zip(values).for_each(|(o, v)| *o = v);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Mirrors left to right.
pub(super) fn flip(image: &mut Image) {
    let (width, channels) = (image.width(), image.channels());
    for row in image.data_mut().chunks_exact_mut(width * channels) {
        for x in 0..width / 2 {
            let (left, right) = row.split_at_mut((width - 1 - x) * channels);
            left[x * channels..(x + 1) * channels].swap_with_slice(&mut right[..channels]);
        }
    }
}

//! From 8-bit pixels to the network's numbers, and mirroring.

use crate::{Error, Image, Layout, Result, Scratch};

/// `(value / 255 − mean) / std` of every byte, for each channel.
#[derive(Debug, Default)]
pub(crate) struct NormaliseTables {
    mean: Vec<f32>,
    std: Vec<f32>,
    tables: Vec<[f32; 256]>,
}

impl NormaliseTables {
    /// ToTensor then Normalize in single precision, as torchvision does, once for each possible value.
    fn update(&mut self, mean: &[f32], std: &[f32]) {
        if self.mean == mean && self.std == std {
            return;
        }
        (self.mean, self.std) = (mean.to_vec(), std.to_vec());
        self.tables = normalise_tables(mean, std);
    }
}

/// `(value / 255 − mean) / std` in single precision, of every byte for each channel.
pub fn normalise_tables(mean: &[f32], std: &[f32]) -> Vec<[f32; 256]> {
    let table = |(mean, std)| std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std);
    mean.iter().zip(std).map(table).collect()
}

/// Writes `(value / 255 − mean) / std` of the scratch's image to `out`; a grey image fills all channels.
pub(crate) fn write_normalised(
    scratch: &mut Scratch,
    mean: &[f32],
    std: &[f32],
    layout: Layout,
    flip: bool,
    out: &mut [f32],
) -> Result<()> {
    scratch.normalise.update(mean, std);
    let (image, tables) = (&scratch.image, &scratch.normalise.tables[..]);
    let (width, pixels) = (image.width(), image.width() * image.height());
    let (channels, source_channels) = (mean.len(), image.channels());
    if source_channels != channels && source_channels != 1 {
        return Err(Error::Channels(format!("{source_channels} channels cannot fill {channels}")));
    }
    // In steps of the source: a grey pixel is read again for each channel.
    let step = if source_channels == 1 { 0 } else { 1 };
    let rows = image.data().chunks_exact(width * source_channels);
    match (layout, tables) {
        (Layout::Nhwc, [red, green, blue]) if source_channels == 3 => {
            let write = |target: &mut [f32; 3], pixel: &[u8; 3]| {
                target[0] = red[usize::from(pixel[0])];
                target[1] = green[usize::from(pixel[1])];
                target[2] = blue[usize::from(pixel[2])];
            };
            for (input, output) in rows.zip(out.chunks_exact_mut(width * 3)) {
                let (targets, pixels) = (output.as_chunks_mut::<3>().0.iter_mut(), input.as_chunks::<3>().0.iter());
                if flip {
                    targets.zip(pixels.rev()).for_each(|(t, p)| write(t, p));
                } else {
                    targets.zip(pixels).for_each(|(t, p)| write(t, p));
                }
            }
        }
        (Layout::Nhwc, _) => {
            for (input, output) in rows.zip(out.chunks_exact_mut(width * channels)) {
                for (x, target) in output.chunks_exact_mut(channels).enumerate() {
                    let from = if flip { width - 1 - x } else { x } * source_channels;
                    for (c, value) in target.iter_mut().enumerate() {
                        *value = tables[c][usize::from(input[from + c * step])];
                    }
                }
            }
        }
        (Layout::Nchw, _) => {
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

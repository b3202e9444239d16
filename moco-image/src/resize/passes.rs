//! The two passes of a resize, horizontal then vertical, each rounding to 8 bits as PIL does.

use super::coefficients::{Coefficients, PRECISION_BITS};
use super::{Filter, Region};
use crate::{CropBox, Image, Result, Scratch};

/// Resizes `window` of the image to `full` (height, width) and leaves `region` of that in the scratch's image.
pub(super) fn resample(
    image: &Image,
    window: CropBox,
    full: (usize, usize),
    region: &Region,
    filter: Filter,
    scratch: &mut Scratch,
) -> Result<()> {
    let channels = image.channels();
    scratch.image.reshape(region.width, region.height, channels)?;
    // The part of the region that lies inside the resized image.
    let clip = |start: isize, len: usize, full: usize| {
        let from = start.clamp(0, full as isize) as usize;
        let to = (start + len as isize).clamp(0, full as isize) as usize;
        (from, to - from, (from as isize - start) as usize)
    };
    let (row, rows, row_offset) = clip(region.top, region.height, full.0);
    let (column, columns, column_offset) = clip(region.left, region.width, full.1);
    let padded = rows < region.height || columns < region.width;
    if padded {
        scratch.image.data_mut().fill(0);
    }
    if rows == 0 || columns == 0 {
        return Ok(());
    }

    let Scratch { image: out, rows: temp, horizontal, vertical, block, .. } = scratch;
    let vertical_pass = window.height != full.0;
    let horizontal_pass = window.width != full.1;
    let (first, last) = if vertical_pass {
        vertical.compute(window.height, full.0, row, rows, filter);
        vertical.span()
    } else {
        (row, row + rows)
    };
    let source_stride = image.width() * channels;
    let source_row = |y: usize, from: usize, len: usize| {
        let start = (window.top + y) * source_stride + (window.left + from) * channels;
        &image.data()[start..start + len * channels]
    };

    let width = columns * channels;
    let out_stride = region.width * channels;
    let out_start = row_offset * out_stride + column_offset * channels;
    if !horizontal_pass && !vertical_pass {
        for y in 0..rows {
            let start = out_start + y * out_stride;
            out.data_mut()[start..start + width].copy_from_slice(source_row(row + y, column, columns));
        }
        return Ok(());
    }
    if !horizontal_pass {
        let start = (window.top + first) * source_stride + (window.left + column) * channels;
        let end = (window.top + last - 1) * source_stride + (window.left + column + columns) * channels;
        let input = Rows { data: &image.data()[start..end], stride: source_stride, first };
        let output = &mut out.data_mut()[out_start..];
        pulp::Arch::new().dispatch(VerticalPass { input, width, coefficients: vertical, output, out_stride });
        return Ok(());
    }

    horizontal.compute(window.width, full.1, column, columns, filter);
    let (from, to) = horizontal.span();
    let source = |y: usize| source_row(y, from, to - from);
    let (target, target_stride): (&mut [u8], usize) = if vertical_pass {
        temp.resize((last - first) * width, 0);
        (&mut temp[..], width)
    } else {
        (&mut out.data_mut()[out_start..], out_stride)
    };
    let mut y = first;
    while y < last {
        let lanes_rows = rows_per_block(channels).min(last - y);
        let target = &mut target[(y - first) * target_stride..];
        let pass =
            HorizontalPass { channels, rows: lanes_rows, from, coefficients: horizontal, block, target, target_stride };
        match channels {
            1 => pass.run::<1, 8>(|r| source(y + r)),
            3 => pass.run::<3, 2>(|r| source(y + r)),
            _ => pass.plain(|r| source(y + r)),
        }
        y += lanes_rows;
    }
    if vertical_pass {
        let input = Rows { data: temp, stride: width, first };
        let output = &mut out.data_mut()[out_start..];
        pulp::Arch::new().dispatch(VerticalPass { input, width, coefficients: vertical, output, out_stride });
    }
    Ok(())
}

const LANES: usize = 8;
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn rows_per_block(channels: usize) -> usize {
    match channels {
        1 => 8,
        3 => 2,
        _ => 1,
    }
}

#[inline(always)]
fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Rows of bytes with a stride; `first` is the number of the first one.
struct Rows<'a> {
    data: &'a [u8],
    stride: usize,
    first: usize,
}

/// One or more rows at once: values of several rows and channels lie side by side in the lanes of a vector.
struct HorizontalPass<'a> {
    channels: usize,
    rows: usize,
    from: usize,
    coefficients: &'a Coefficients,
    block: &'a mut Vec<[i32; LANES]>,
    target: &'a mut [u8],
    target_stride: usize,
}

impl<'a> HorizontalPass<'a> {
    /// `R` rows of `C` channels; each row takes `8 / R` lanes.
    fn run<'s, const C: usize, const R: usize>(self, source: impl Fn(usize) -> &'s [u8]) {
        // A missing row repeats the last one and is not written.
        let sources: [&[u8]; R] = std::array::from_fn(|r| source(r.min(self.rows - 1)));
        pulp::Arch::new().dispatch(HorizontalKernel::<C, R> { pass: self, sources });
    }

    /// Any number of channels, without vectors.
    fn plain<'s>(self, source: impl Fn(usize) -> &'s [u8]) {
        let channels = self.channels;
        for r in 0..self.rows {
            let input = source(r);
            let output = &mut self.target[r * self.target_stride..];
            for (x, pixel) in output.chunks_exact_mut(channels).take(self.coefficients.len()).enumerate() {
                let (first, weights) = self.coefficients.at(x);
                for (c, value) in pixel.iter_mut().enumerate() {
                    let taps = weights.iter().enumerate();
                    let sum: i32 =
                        taps.map(|(t, &w)| w * i32::from(input[(first - self.from + t) * channels + c])).sum();
                    *value = clip8(HALF + sum);
                }
            }
        }
    }
}

struct HorizontalKernel<'a, const C: usize, const R: usize> {
    pass: HorizontalPass<'a>,
    sources: [&'a [u8]; R],
}

impl<const C: usize, const R: usize> pulp::NullaryFnOnce for HorizontalKernel<'_, C, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let HorizontalPass { rows, from, coefficients, block, target, target_stride, .. } = self.pass;
        let lanes = LANES / R;
        let pixels = self.sources[0].len() / C;
        block.resize(pixels.max(block.len()), [0; LANES]);
        let block = &mut block[..pixels];
        let mut sources = self.sources.map(|s| s.chunks_exact(C));
        for cell in block.iter_mut() {
            for r in 0..R {
                if let Some(pixel) = sources[r].next() {
                    for c in 0..C {
                        cell[r * lanes + c] = i32::from(pixel[c]);
                    }
                }
            }
        }
        for x in 0..coefficients.len() {
            let (first, weights) = coefficients.at(x);
            let mut sum = [HALF; LANES];
            for (cell, &w) in block[first - from..].iter().zip(weights) {
                for lane in 0..LANES {
                    sum[lane] += cell[lane] * w;
                }
            }
            for r in 0..rows {
                let at = r * target_stride + x * C;
                for c in 0..C {
                    target[at + c] = clip8(sum[r * lanes + c]);
                }
            }
        }
    }
}

struct VerticalPass<'a> {
    input: Rows<'a>,
    width: usize,
    coefficients: &'a Coefficients,
    output: &'a mut [u8],
    out_stride: usize,
}

impl pulp::NullaryFnOnce for VerticalPass<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        const CHUNK: usize = 32;
        let Self { input, width, coefficients, output, out_stride } = self;
        for y in 0..coefficients.len() {
            let (first, weights) = coefficients.at(y);
            let out = &mut output[y * out_stride..y * out_stride + width];
            let rows = &input.data[(first - input.first) * input.stride..];
            let mut chunks = out.chunks_exact_mut(CHUNK);
            let mut x = 0;
            for chunk in &mut chunks {
                let mut sum = [HALF; CHUNK];
                for (t, &w) in weights.iter().enumerate() {
                    let start = t * input.stride + x;
                    let values: &[u8; CHUNK] = rows[start..start + CHUNK].try_into().expect("slice of CHUNK values");
                    for i in 0..CHUNK {
                        sum[i] += i32::from(values[i]) * w;
                    }
                }
                for i in 0..CHUNK {
                    chunk[i] = clip8(sum[i]);
                }
                x += CHUNK;
            }
            for value in chunks.into_remainder() {
                let taps = weights.iter().enumerate();
                let sum: i32 = taps.map(|(t, &w)| i32::from(rows[t * input.stride + x]) * w).sum();
                *value = clip8(HALF + sum);
                x += 1;
            }
        }
    }
}

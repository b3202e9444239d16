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
    let source = Source { data: image.data(), stride: image.width() * channels, channels, window };
    let width = columns * channels;
    let out_stride = region.width * channels;
    let out = &mut out.data_mut()[row_offset * out_stride + column_offset * channels..];
    let (vertical_pass, horizontal_pass) = (window.height != full.0, window.width != full.1);
    if vertical_pass {
        vertical.compute(window.height, full.0, row, rows, filter);
    }
    if horizontal_pass {
        horizontal.compute(window.width, full.1, column, columns, filter);
    }
    match (horizontal_pass, vertical_pass) {
        (false, false) => {
            for (y, out) in out.chunks_mut(out_stride).take(rows).enumerate() {
                out[..width].copy_from_slice(source.row(row + y, column, columns));
            }
        }
        (false, true) => {
            let input = source.rows(vertical.span(), column, columns);
            pulp::Arch::new().dispatch(VerticalPass { input, width, coefficients: vertical, output: out, out_stride });
        }
        (true, false) => {
            let (from, to) = horizontal.span();
            let input = |y: usize| source.row(row + y, from, to - from);
            horizontal_rows(channels, input, rows, horizontal, block, out, out_stride);
        }
        (true, true) if vertical_first(window, full) => {
            let (from, to) = horizontal.span();
            let temp_width = (to - from) * channels;
            temp.resize(rows * temp_width, 0);
            let input = source.rows(vertical.span(), from, to - from);
            let pass =
                VerticalPass { input, width: temp_width, coefficients: vertical, output: temp, out_stride: temp_width };
            pulp::Arch::new().dispatch(pass);
            let input = |y: usize| &temp[y * temp_width..(y + 1) * temp_width];
            horizontal_rows(channels, input, rows, horizontal, block, out, out_stride);
        }
        (true, true) => {
            let ((first, last), (from, to)) = (vertical.span(), horizontal.span());
            temp.resize((last - first) * width, 0);
            let input = |y: usize| source.row(first + y, from, to - from);
            horizontal_rows(channels, input, last - first, horizontal, block, temp, width);
            let input = Rows { data: temp, stride: width, first };
            pulp::Arch::new().dispatch(VerticalPass { input, width, coefficients: vertical, output: out, out_stride });
        }
    }
    Ok(())
}

/// Which pass comes first changes the rounding by a grey level here and there. Since version 13 PIL begins with the
/// columns when the height shrinks by more than twice as many pixels as the width (Pillow pull request 9549); found
/// from its results: no exception in 3000 random sizes.
pub(crate) fn vertical_first(window: CropBox, full: (usize, usize)) -> bool {
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let (rows, columns) = (shrinks_by(window.height, full.0), shrinks_by(window.width, full.1));
    rows > 0 && rows > 2 * columns
}

/// The window of the image that is resized.
struct Source<'a> {
    data: &'a [u8],
    stride: usize,
    channels: usize,
    window: CropBox,
}

impl<'a> Source<'a> {
    fn row(&self, y: usize, from: usize, columns: usize) -> &'a [u8] {
        let start = (self.window.top + y) * self.stride + (self.window.left + from) * self.channels;
        &self.data[start..start + columns * self.channels]
    }

    fn rows(&self, (first, last): (usize, usize), from: usize, columns: usize) -> Rows<'a> {
        let start = (self.window.top + first) * self.stride + (self.window.left + from) * self.channels;
        let len = (last - first - 1) * self.stride + columns * self.channels;
        Rows { data: &self.data[start..start + len], stride: self.stride, first }
    }
}

/// The horizontal pass over `rows` rows; `source` gives the part of a row that the coefficients span.
fn horizontal_rows<'s>(
    channels: usize,
    source: impl Fn(usize) -> &'s [u8],
    rows: usize,
    coefficients: &Coefficients,
    block: &mut Vec<[u8; LANES]>,
    target: &mut [u8],
    target_stride: usize,
) {
    let (from, _) = coefficients.span();
    let at_once = rows_per_block(channels);
    for y in (0..rows).step_by(at_once) {
        let rows = at_once.min(rows - y);
        let target = &mut target[y * target_stride..];
        let pass = HorizontalPass { channels, rows, from, coefficients, block, target, target_stride };
        match channels {
            1 => pass.run::<1, 32>(|r| source(y + r)),
            3 => pass.run::<3, 8>(|r| source(y + r)),
            _ => pass.plain(|r| source(y + r)),
        }
    }
}

/// Values of a block side by side: eight rows of RGB (and a spare value each), or 32 rows of grey.
pub(crate) const LANES: usize = 32;
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn rows_per_block(channels: usize) -> usize {
    match channels {
        1 => 32,
        3 => 8,
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
    block: &'a mut Vec<[u8; LANES]>,
    target: &'a mut [u8],
    target_stride: usize,
}

impl<'a> HorizontalPass<'a> {
    /// `R` rows of `C` channels; each row takes `LANES / R` lanes.
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
        // The widest kernel may reach past the last pixel, with weights of 0. Results are gathered as blocks too: sums
        // that are taken apart value by value keep the compiler from using vectors.
        let inputs = pixels + coefficients.widest();
        block.resize((inputs + coefficients.len()).max(block.len()), [0; LANES]);
        let (inputs, results) = block.split_at_mut(inputs);
        for (x, cell) in inputs[..pixels].iter_mut().enumerate() {
            for (r, source) in self.sources.iter().enumerate() {
                // All of the row's lanes at once: the spare one gets the next pixel's first value, which nobody reads.
                match source.get(x * C..x * C + lanes) {
                    Some(values) => cell[r * lanes..(r + 1) * lanes].copy_from_slice(values),
                    None => cell[r * lanes..r * lanes + C].copy_from_slice(&source[x * C..]),
                }
            }
        }
        for (x, result) in results[..coefficients.len()].iter_mut().enumerate() {
            let (first, weights) = coefficients.padded(x);
            let mut sum = [HALF; LANES];
            for (cell, &w) in inputs[first - from..].iter().zip(weights) {
                for lane in 0..LANES {
                    sum[lane] += i32::from(cell[lane]) * w;
                }
            }
            for lane in 0..LANES {
                result[lane] = clip8(sum[lane]);
            }
        }
        for r in 0..rows {
            let target = target[r * target_stride..].chunks_exact_mut(C);
            for (pixel, result) in target.zip(&results[..coefficients.len()]) {
                pixel.copy_from_slice(&result[r * lanes..r * lanes + C]);
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

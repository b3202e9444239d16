//! Views as tables of numbers: all that a device needs to make them from decoded pixels as [`augment_exactly`] does.
//!
//! What is computed in double precision (the weights of a resize, the radius of a blur) is computed here, so that the device
//! only adds and multiplies small integers.
//!
//! [`augment_exactly`]: super::augment_exactly

use super::blur::BoxWeights;
use super::{AugmentConfig, AugmentParams, CropBox, PixelOp};
use crate::resize::{Coefficients, vertical_first};
use crate::{Error, Result};

/// Words of a view's header.
pub const VIEW_HEADER: usize = 48;

/// Words of an operation in the header: its number, and up to three parameters.
const OP: usize = 4;
/// First word of the operations.
const OPS: usize = 20;
/// Most operations of a view.
const MOST_OPS: usize = (VIEW_HEADER - OPS) / OP;

/// Words of a header before the operations, in order. Offsets of 64 bits take two words, low one first.
#[derive(Clone, Copy)]
enum Word {
    /// First byte of the crop among the batch's pixels.
    Source = 0,
    /// First byte of what the first pass leaves, among that of all views.
    Between = 2,
    /// Bytes from one row of the source to the next.
    Stride = 4,
    /// Whether the first pass goes down the columns.
    VerticalFirst = 5,
    /// Rows that the first pass leaves.
    Rows = 6,
    /// Columns that the first pass leaves.
    Columns = 7,
    /// Row or column of the crop that is the first of those.
    Origin = 8,
    /// Where in the tables a pass has its first inputs and their numbers (two words an output), and its weights.
    FirstInputs = 9,
    FirstWeights = 10,
    FirstTaps = 11,
    SecondInputs = 12,
    SecondWeights = 13,
    SecondTaps = 14,
    /// Mirrored left to right.
    Flip = 15,
    /// Number of operations.
    Ops = 16,
}

/// One view as a header, and the tables to which it points.
#[derive(Debug, Default)]
pub struct ViewProgram {
    header: Vec<i32>,
    tables: Vec<i32>,
    between: usize,
    horizontal: Coefficients,
    vertical: Coefficients,
}

/// Views of a batch: headers [views, [`VIEW_HEADER`]] and after them their tables.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ViewTables {
    /// Headers and tables.
    pub words: Vec<i32>,
    /// Bytes that the first passes leave, over all views.
    pub between: usize,
}

impl ViewProgram {
    /// Whether a device can make such views: operations without number would be silently left out.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming what is too much.
    pub fn check(config: &AugmentConfig) -> Result<()> {
        // Contrast adds up lumas in 32 bits; 2^24 pixels are as many as fit.
        if config.size[0] * config.size[1] > 1 << 24 {
            return Err(Error::parameter("augment.size", "views of more than 2^24 pixels are made on the CPU only"));
        }
        Ok(())
    }

    /// The view that `params` describe, of an image of which the device gets the pixels of `part`, HWC.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a crop outside the part or a parameter out of range.
    pub fn compile(
        &mut self,
        part: CropBox,
        channels: usize,
        params: &AugmentParams,
        config: &AugmentConfig,
    ) -> Result<()> {
        let (crop, [height, width]) = (params.crop, config.size);
        let inside =
            |start: usize, len: usize, from: usize, of: usize| len > 0 && start >= from && start + len <= from + of;
        if !inside(crop.top, crop.height, part.top, part.height)
            || !inside(crop.left, crop.width, part.left, part.width)
        {
            return Err(Error::parameter("crop", format!("{crop:?} is empty or outside of {part:?}")));
        }
        self.header.clear();
        self.header.resize(VIEW_HEADER, 0);
        self.tables.clear();
        self.vertical.compute(crop.height, height, 0, height, config.filter);
        self.horizontal.compute(crop.width, width, 0, width, config.filter);
        let stride = part.width * channels;
        self.set_offset(Word::Source, (crop.top - part.top) * stride + (crop.left - part.left) * channels);
        self.set(Word::Stride, stride);
        let columns_first = vertical_first(crop, (height, width));
        self.set(Word::VerticalFirst, usize::from(columns_first));
        let (vertical_span, horizontal_span) = (self.vertical.span(), self.horizontal.span());
        let ((from, to), rows, columns) = match columns_first {
            true => (horizontal_span, height, horizontal_span.1 - horizontal_span.0),
            false => (vertical_span, vertical_span.1 - vertical_span.0, width),
        };
        debug_assert!(from < to);
        self.set(Word::Origin, from);
        self.set(Word::Rows, rows);
        self.set(Word::Columns, columns);
        self.between = rows * columns * channels;
        let (vertical, horizontal) = (std::mem::take(&mut self.vertical), std::mem::take(&mut self.horizontal));
        let (first, second) = if columns_first { (&vertical, &horizontal) } else { (&horizontal, &vertical) };
        self.pass(first, [Word::FirstInputs, Word::FirstWeights, Word::FirstTaps]);
        self.pass(second, [Word::SecondInputs, Word::SecondWeights, Word::SecondTaps]);
        (self.vertical, self.horizontal) = (vertical, horizontal);
        self.operations(&params.ops, channels)
    }

    fn pass(&mut self, coefficients: &Coefficients, [inputs, weights, taps]: [Word; 3]) {
        let (outputs, widest) = (coefficients.len(), coefficients.widest());
        self.set(taps, widest);
        self.set(inputs, self.tables.len());
        for i in 0..outputs {
            let (first, weights) = coefficients.at(i);
            self.tables.extend([first as i32, weights.len() as i32]);
        }
        self.set(weights, self.tables.len());
        for i in 0..outputs {
            self.tables.extend_from_slice(coefficients.padded(i).1);
        }
    }

    fn operations(&mut self, ops: &[PixelOp], channels: usize) -> Result<()> {
        let (mut flips, mut count) = (0, 0);
        for op in ops {
            op.validate()?;
            let colour = channels == 3;
            let float = |factor: f64| (factor as f32).to_bits() as i32;
            let words = match *op {
                PixelOp::Flip => {
                    flips += 1;
                    continue;
                }
                PixelOp::Saturation(_) | PixelOp::Hue(_) | PixelOp::Grayscale if !colour => continue,
                PixelOp::Brightness(factor) => [1, float(factor), 0, 0],
                PixelOp::Contrast(factor) => [2, float(factor), 0, 0],
                PixelOp::Saturation(factor) => [3, float(factor), 0, 0],
                PixelOp::Hue(turns) => [4, i32::from(super::hue::shift_of(turns)), 0, 0],
                PixelOp::Grayscale => [5, 0, 0, 0],
                PixelOp::Blur(radius) => match BoxWeights::of_gaussian(radius) {
                    Some(BoxWeights { radius, inner, outer }) => [6, radius as i32, inner as i32, outer as i32],
                    None => continue,
                },
                PixelOp::Solarize(threshold) => [7, i32::from(threshold), 0, 0],
            };
            if count == MOST_OPS {
                return Err(Error::parameter("ops", format!("a view with more than {MOST_OPS} operations")));
            }
            self.header[OPS + count * OP..][..OP].copy_from_slice(&words);
            count += 1;
        }
        self.set(Word::Ops, count);
        self.set(Word::Flip, flips % 2);
        Ok(())
    }

    fn set(&mut self, word: Word, value: usize) {
        self.header[word as usize] = value as i32;
    }

    fn set_offset(&mut self, word: Word, value: usize) {
        write_offset(&mut self.header, word, value);
    }
}

impl ViewTables {
    /// Packs views; each comes with the place of its part's first byte among the batch's pixels.
    pub fn pack<'a>(&mut self, views: impl ExactSizeIterator<Item = (&'a ViewProgram, usize)>) {
        self.words.clear();
        self.words.resize(views.len() * VIEW_HEADER, 0);
        self.between = 0;
        for (i, (view, pixels)) in views.enumerate() {
            let tables = self.words.len() as i32;
            self.words.extend_from_slice(&view.tables);
            let header = &mut self.words[i * VIEW_HEADER..][..VIEW_HEADER];
            header.copy_from_slice(&view.header);
            for word in [Word::FirstInputs, Word::FirstWeights, Word::SecondInputs, Word::SecondWeights] {
                header[word as usize] += tables;
            }
            let source = read_offset(header, Word::Source) + pixels;
            write_offset(header, Word::Source, source);
            write_offset(header, Word::Between, self.between);
            self.between += view.between;
        }
    }
}

fn write_offset(header: &mut [i32], word: Word, value: usize) {
    let value = value as u64;
    header[word as usize] = value as u32 as i32;
    header[word as usize + 1] = (value >> 32) as u32 as i32;
}

fn read_offset(header: &[i32], word: Word) -> usize {
    let half = |i: usize| u64::from(header[word as usize + i] as u32);
    (half(0) | half(1) << 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::PRECISION_BITS;
    use crate::{Filter, Image, Rng, resized_crop};

    /// The two passes as a device runs them.
    fn run(tables: &ViewTables, view: usize, pixels: &[u8], channels: usize, [height, width]: [usize; 2]) -> Vec<u8> {
        let header = &tables.words[view * VIEW_HEADER..][..VIEW_HEADER];
        let word = |w: Word| header[w as usize] as usize;
        let columns_first = word(Word::VerticalFirst) == 1;
        let input = |inputs: Word, i: usize| {
            let at = word(inputs) + 2 * i;
            (tables.words[at] as usize, tables.words[at + 1] as usize)
        };
        let sum = |weights: Word, taps: Word, i: usize, count: usize, value: &dyn Fn(usize) -> u8| {
            let weights = &tables.words[word(weights) + i * word(taps)..][..count];
            let sum: i32 = weights.iter().enumerate().map(|(t, w)| w * i32::from(value(t))).sum();
            (((1 << (PRECISION_BITS - 1)) + sum) >> PRECISION_BITS).clamp(0, 255) as u8
        };
        let (rows, columns, origin) = (word(Word::Rows), word(Word::Columns), word(Word::Origin));
        let (source, stride) = (read_offset(header, Word::Source), word(Word::Stride));
        let mut between = vec![0; rows * columns * channels];
        for (i, out) in between.iter_mut().enumerate() {
            let (c, x, y) = (i % channels, i / channels % columns, i / channels / columns);
            let (first, count) = input(Word::FirstInputs, if columns_first { y } else { x });
            *out = match columns_first {
                true => sum(Word::FirstWeights, Word::FirstTaps, y, count, &|t| {
                    pixels[source + (first + t) * stride + (origin + x) * channels + c]
                }),
                false => sum(Word::FirstWeights, Word::FirstTaps, x, count, &|t| {
                    pixels[source + (origin + y) * stride + (first + t) * channels + c]
                }),
            };
        }
        let mut image = vec![0; height * width * channels];
        for (i, out) in image.iter_mut().enumerate() {
            let (c, x, y) = (i % channels, i / channels % width, i / channels / width);
            let (first, count) = input(Word::SecondInputs, if columns_first { x } else { y });
            *out = sum(Word::SecondWeights, Word::SecondTaps, if columns_first { x } else { y }, count, &|t| {
                match columns_first {
                    true => between[(y * columns + first + t - origin) * channels + c],
                    false => between[((first + t - origin) * columns + x) * channels + c],
                }
            });
        }
        image
    }

    #[test]
    fn tables_of_a_batch_resize_as_the_cpu_does() {
        let mut rng = Rng::new(5, 6);
        for channels in [1, 3] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let config = AugmentConfig { size: [19, 23], filter, ..AugmentConfig::moco_v2() };
                let (mut pixels, mut expected, mut programs) = (vec![], vec![], vec![]);
                // Larger, smaller, equal, and shapes whose columns come first.
                for (width, height) in [(40, 31), (9, 12), (23, 19), (21, 160), (160, 21), (23, 50)] {
                    let data = (0..width * height * channels).map(|_| rng.below(256) as u8).collect();
                    let image = Image::new(width, height, channels, data).unwrap();
                    let part = CropBox { top: 0, left: 0, height, width };
                    let random = config.sample(height, width, &mut rng).crop;
                    for crop in [part, random] {
                        expected.push(resized_crop(&image, crop, 19, 23, filter).unwrap());
                        let params = AugmentParams { crop, ops: vec![PixelOp::Flip, PixelOp::Solarize(7)] };
                        let mut program = ViewProgram::default();
                        program.compile(part, channels, &params, &config).unwrap();
                        programs.push((program, pixels.len()));
                    }
                    pixels.extend_from_slice(image.data());
                }
                let mut tables = ViewTables::default();
                tables.pack(programs.iter().map(|(p, at)| (p, *at)));
                for (view, expected) in expected.iter().enumerate() {
                    assert_eq!(run(&tables, view, &pixels, channels, config.size), expected.data(), "view {view}");
                    let header = &tables.words[view * VIEW_HEADER..];
                    assert_eq!((header[Word::Flip as usize], header[Word::Ops as usize]), (1, 1));
                    assert_eq!(header[OPS..OPS + 2], [7, 7]);
                }
            }
        }
    }

    #[test]
    fn a_part_without_the_crop_is_refused() {
        let crop = CropBox { top: 2, left: 0, height: 4, width: 4 };
        let params = AugmentParams { crop, ops: vec![] };
        let part = CropBox { top: 0, left: 0, height: 5, width: 8 };
        let error = ViewProgram::default().compile(part, 3, &params, &AugmentConfig::cifar_demo()).unwrap_err();
        assert!(error.to_string().contains("crop"), "{error}");
    }
}

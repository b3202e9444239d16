//! Views of an image as torchvision makes them on PIL images: random resized crop, colour jitter, grey, blur,
//! solarisation, flip, then normalisation.

mod blur;
mod color;
mod config;
mod hue;
mod normalise;
mod planes;
mod program;
#[cfg(test)]
mod tests;

pub use color::luma;
pub use config::{AugmentConfig, AugmentParams, CropBox, PixelOp, Step};
pub use normalise::normalise_tables;
pub(crate) use normalise::{NormaliseTables, write_normalised};
pub use program::{VIEW_HEADER, ViewProgram, ViewTables};

use crate::preprocess::FloatBuffers;
use crate::resize::{Coefficients, LANES, resized_crop_into};
use crate::{Error, Filter, Image, Layout, Result, Rng};

/// Buffers that are kept from image to image, so that nothing is allocated once they have grown.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) image: Image,
    pub(crate) rows: Vec<u8>,
    pub(crate) block: Vec<[u8; LANES]>,
    pub(crate) horizontal: Coefficients,
    pub(crate) vertical: Coefficients,
    pub(crate) normalise: NormaliseTables,
    pub(crate) params: Option<AugmentParams>,
    pub(crate) floats: FloatBuffers,
}

impl Scratch {
    /// The image that the last operation left.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// That image itself; its buffer leaves the scratch.
    pub fn take_image(&mut self) -> Image {
        std::mem::take(&mut self.image)
    }
}

/// Draws a view from `config` and writes it, normalised, to `out` as height × width × channels.
///
/// # Errors
/// What [`AugmentConfig::validate`] finds, [`Error::Channels`] unless mean and std have as many values as the image
/// has channels, [`Error::OutputLength`] for a buffer of another length.
pub fn augment(image: &Image, config: &AugmentConfig, rng: &mut Rng, out: &mut [f32]) -> Result<()> {
    config.validate()?;
    augment_with(image, config, rng, &mut Scratch::default(), out)
}

/// As [`augment`] for a validated `config`, with buffers that are kept from image to image.
///
/// # Errors
/// As [`augment`], without the configuration's.
pub fn augment_with(
    image: &Image,
    config: &AugmentConfig,
    rng: &mut Rng,
    scratch: &mut Scratch,
    out: &mut [f32],
) -> Result<()> {
    let empty = CropBox { top: 0, left: 0, height: 0, width: 0 };
    let mut params = scratch.params.take().unwrap_or(AugmentParams { crop: empty, ops: Vec::with_capacity(8) });
    config.sample_into(image.height(), image.width(), rng, &mut params);
    let result = augment_exactly(image, config, &params, scratch, out);
    scratch.params = Some(params);
    result
}

/// Makes the view that `params` describes: what [`augment`] does after drawing them.
///
/// # Errors
/// As [`augment`], and [`Error::Parameter`] for parameters out of range.
pub fn augment_exactly(
    image: &Image,
    config: &AugmentConfig,
    params: &AugmentParams,
    scratch: &mut Scratch,
    out: &mut [f32],
) -> Result<()> {
    let channels = image.channels();
    if config.mean.len() != channels || config.std.len() != channels {
        return Err(Error::Channels(format!(
            "the image has {channels} channel(s), the augmentation's mean and std have {} and {} value(s): give as many \
             as the images have channels, or convert the images",
            config.mean.len(),
            config.std.len()
        )));
    }
    let [height, width] = config.size;
    let expected = height * width * channels;
    if out.len() != expected {
        let what = format!("{height}×{width} (height × width), {channels} channels");
        return Err(Error::OutputLength { got: out.len(), expected, what });
    }
    // A flip commutes with every other operation, all of which treat left and right alike: it is done while writing.
    let flips = params.ops.iter().filter(|op| **op == PixelOp::Flip).count();
    resized_crop_into(image, params.crop, (height, width), config.filter, scratch)?;
    for op in params.ops.iter().filter(|op| **op != PixelOp::Flip) {
        apply(scratch, *op)?;
    }
    write_normalised(scratch, &config.mean, &config.std, Layout::Nhwc, flips % 2 == 1, out)
}

/// Crop, resize to `size` (height, width) and operations with explicit parameters, still in 8 bits.
///
/// # Errors
/// [`Error::Parameter`] for a crop outside the image or a parameter out of range.
pub fn render(image: &Image, params: &AugmentParams, size: (usize, usize), filter: Filter) -> Result<Image> {
    let mut scratch = Scratch::default();
    resized_crop_into(image, params.crop, size, filter, &mut scratch)?;
    params.ops.iter().try_for_each(|op| apply(&mut scratch, *op))?;
    Ok(scratch.take_image())
}

/// Operations with explicit parameters, in order.
///
/// # Errors
/// [`Error::Parameter`] for a parameter out of range.
pub fn apply_ops(image: &Image, ops: &[PixelOp]) -> Result<Image> {
    let mut scratch = Scratch { image: image.clone(), ..Scratch::default() };
    ops.iter().try_for_each(|op| apply(&mut scratch, *op))?;
    Ok(scratch.take_image())
}

fn apply(scratch: &mut Scratch, op: PixelOp) -> Result<()> {
    op.validate()?;
    let image = &mut scratch.image;
    match op {
        PixelOp::Brightness(factor) => color::brightness(image, factor),
        PixelOp::Contrast(factor) => color::contrast(image, factor),
        PixelOp::Saturation(factor) => color::saturation(image, factor),
        PixelOp::Hue(turns) => hue::adjust(image, turns),
        PixelOp::Grayscale => color::grayscale(image),
        PixelOp::Blur(radius) => blur::gaussian(image, radius, &mut scratch.rows),
        PixelOp::Solarize(threshold) => color::solarize(image, threshold),
        PixelOp::Flip => normalise::flip(image),
    }
    Ok(())
}

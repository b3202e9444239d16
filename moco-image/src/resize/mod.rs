//! Antialiased resizing exactly as PIL does it (libImaging/Resample.c), and torchvision's geometry on top of it.

mod coefficients;
mod float;
mod passes;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub(crate) use coefficients::Coefficients;
#[cfg(test)]
pub(crate) use coefficients::PRECISION_BITS;
pub(crate) use float::resized_region_f32;
pub(crate) use passes::{LANES, vertical_first};

use crate::{CropBox, Error, Image, Result, Scratch};

/// Interpolation of a resize; both widen their kernel when they shrink, as PIL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle of radius 1: `PIL.Image.BILINEAR`, torchvision's default.
    #[default]
    Bilinear,
    /// Keys' cubic with a = −0.5: `PIL.Image.BICUBIC`.
    Bicubic,
}

/// The part of a resized image that is wanted; it may stick out, and is 0 there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub top: isize,
    pub left: isize,
    pub height: usize,
    pub width: usize,
}

impl From<CropBox> for Region {
    fn from(crop: CropBox) -> Self {
        Self { top: crop.top as isize, left: crop.left as isize, height: crop.height, width: crop.width }
    }
}

/// Resizes to `width` × `height`, every value as `PIL.Image.resize` computes it.
///
/// # Errors
/// [`Error::Shape`] when a side is 0 or the result overflows.
pub fn resize(image: &Image, width: usize, height: usize, filter: Filter) -> Result<Image> {
    let mut scratch = Scratch::default();
    let region = Region { top: 0, left: 0, height, width };
    resized_region(image, (height, width), &region, filter, &mut scratch)?;
    Ok(scratch.take_image())
}

/// Resizes floats, as `PIL.Image.resize` does in its mode "F".
///
/// # Errors
/// [`Error::Shape`] when a side is 0 or the result overflows.
pub fn resize_f32(image: &Image<f32>, width: usize, height: usize, filter: Filter) -> Result<Image<f32>> {
    let region = Region { top: 0, left: 0, height, width };
    let mut out = Image::default();
    resized_region_f32(image, (height, width), &region, filter, &mut Vec::new(), &mut out)?;
    Ok(out)
}

/// The crop of the image resized to `full` (height, width), without making the rest: `resize`, then `crop`.
///
/// # Errors
/// [`Error::Parameter`] when the crop leaves the resized image or is empty, [`Error::Shape`] for sizes without pixels.
pub fn crop_resized(image: &Image, full: (usize, usize), crop: CropBox, filter: Filter) -> Result<Image> {
    check_crop(crop, full)?;
    let mut scratch = Scratch::default();
    resized_region(image, full, &Region::from(crop), filter, &mut scratch)?;
    Ok(scratch.take_image())
}

/// As [`crop_resized`], for floats.
///
/// # Errors
/// As [`crop_resized`].
pub fn crop_resized_f32(image: &Image<f32>, full: (usize, usize), crop: CropBox, filter: Filter) -> Result<Image<f32>> {
    check_crop(crop, full)?;
    let mut out = Image::default();
    resized_region_f32(image, full, &Region::from(crop), filter, &mut Vec::new(), &mut out)?;
    Ok(out)
}

/// torchvision's `resized_crop` on a PIL image: the crop is cut out first, so the filter sees nothing outside it.
///
/// # Errors
/// [`Error::Parameter`] when the crop leaves the image, [`Error::Shape`] when the result has no pixels.
pub fn resized_crop(image: &Image, crop: CropBox, height: usize, width: usize, filter: Filter) -> Result<Image> {
    let mut scratch = Scratch::default();
    resized_crop_into(image, crop, (height, width), filter, &mut scratch)?;
    Ok(scratch.take_image())
}

/// torchvision's `Resize(side)`: the shorter side becomes `side`, the longer `⌊side · long / short⌋`.
///
/// # Errors
/// [`Error::Shape`] when `side` is 0 or the longer side would overflow.
pub fn resize_shorter_side(image: &Image, side: usize, filter: Filter) -> Result<Image> {
    let (height, width) = shorter_side_size(image.height(), image.width(), side)?;
    resize(image, width, height, filter)
}

/// torchvision's `CenterCrop`: offsets round half to even; an image that is too small is padded with 0.
///
/// # Errors
/// [`Error::Shape`] when a side is 0.
pub fn center_crop(image: &Image, height: usize, width: usize) -> Result<Image> {
    let full = (image.height(), image.width());
    let mut scratch = Scratch::default();
    resized_region(image, full, &resize_geometry(full, (height, width)), Filter::Bilinear, &mut scratch)?;
    Ok(scratch.take_image())
}

/// The pixels of a crop.
///
/// # Errors
/// [`Error::Parameter`] when the crop leaves the image or is empty.
pub fn crop(image: &Image, crop: CropBox) -> Result<Image> {
    resized_crop(image, crop, crop.height, crop.width, Filter::Bilinear)
}

/// Size of an image whose shorter side is brought to `side`, as torchvision truncates it.
pub(crate) fn shorter_side_size(height: usize, width: usize, side: usize) -> Result<(usize, usize)> {
    let (short, long) = (height.min(width), height.max(width));
    // Python divides side·long by short in double precision and truncates; the integer division is the same below 2^53.
    let long = (side as u64).checked_mul(long as u64).map(|n| n / (short.max(1) as u64)).unwrap_or(u64::MAX);
    if side == 0 || short == 0 || long > 1 << 24 {
        return Err(Error::Shape(format!(
            "cannot bring the shorter side of a {height}×{width} (height × width) image to {side}: \
             the longer one would be {long}"
        )));
    }
    let long = long as usize;
    Ok(if width <= height { (long, side) } else { (side, long) })
}

/// Where torchvision's `CenterCrop` of size `crop` lies in an image of size `full` (both height, width).
pub(crate) fn resize_geometry(full: (usize, usize), crop: (usize, usize)) -> Region {
    let offset = |full: usize, crop: usize| {
        if crop > full {
            -(((crop - full) / 2) as isize)
        } else {
            ((full - crop) as f64 / 2.0).round_ties_even() as isize
        }
    };
    Region { top: offset(full.0, crop.0), left: offset(full.1, crop.1), height: crop.0, width: crop.1 }
}

/// Writes `region` of the whole image resized to `full` (height, width) into the scratch's image.
pub(crate) fn resized_region(
    image: &Image,
    full: (usize, usize),
    region: &Region,
    filter: Filter,
    scratch: &mut Scratch,
) -> Result<()> {
    let window = CropBox { top: 0, left: 0, height: image.height(), width: image.width() };
    passes::resample(image, window, full, region, filter, scratch)
}

/// Writes the crop, resized to `size` (height, width), into the scratch's image.
pub(crate) fn resized_crop_into(
    image: &Image,
    crop: CropBox,
    size: (usize, usize),
    filter: Filter,
    scratch: &mut Scratch,
) -> Result<()> {
    check_crop(crop, (image.height(), image.width()))?;
    let region = Region { top: 0, left: 0, height: size.0, width: size.1 };
    passes::resample(image, crop, size, &region, filter, scratch)
}

fn check_crop(crop: CropBox, (height, width): (usize, usize)) -> Result<()> {
    let inside =
        |start: usize, len: usize, full: usize| len > 0 && start.checked_add(len).is_some_and(|end| end <= full);
    if inside(crop.top, crop.height, height) && inside(crop.left, crop.width, width) {
        return Ok(());
    }
    let reason = format!("{crop:?} is empty or leaves the image of {height}×{width} (height × width)");
    Err(Error::parameter("crop", reason))
}

//! How images of any size and depth become inputs of one size.

use moco_image::{
    CropBox, Filter, Image, Pixels, PreprocessRule, Raster, Rng, ValueRange, crop_resized, crop_resized_f32,
};
use moco_models::heads::Fit;

use super::placement::{Placement, Visible};
use super::{AugmentOptions, PixelChange};
use crate::task::{Sample, Target};
use crate::{Error, Result};

/// How images become inputs: whose channels, depth, mean and deviation, which size, and how they are brought to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Framing {
    /// Channels, depth, range of values, filter, mean and standard deviation; its `resize` and `crop` are not used.
    pub rule: PreprocessRule,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// How an image of another size gets there.
    pub fit: Fit,
}

/// What became of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The target, in pixels of the input.
    pub target: Target,
    /// Where the image lies in the input.
    pub placement: Placement,
}

/// An image at the depth in which it is resized.
#[derive(Debug)]
pub(super) enum Levels<'a> {
    /// 8 bits in their full range.
    Picture(std::borrow::Cow<'a, Image>),
    /// From black, 0, to white, 1.
    Unit(Image<f32>),
}

impl Framing {
    /// Writes the input of a sample, [height, width, channels], to `out`, and gives its target in pixels of the input.
    /// With `augment` what its options describe is drawn; without, images are framed as [`Framing::prepare_image`] does.
    ///
    /// # Errors
    /// [`Error::Image`] for an image whose channels or depth the rule does not accept, [`Error::Invalid`] for a target
    /// or a buffer that does not fit.
    pub fn prepare(
        &self,
        sample: &Sample,
        augment: Option<(&AugmentOptions, &mut Rng)>,
        out: &mut [f32],
    ) -> Result<Prepared> {
        let size = size_of(&sample.image);
        let none = AugmentOptions::none();
        let (options, placement, changes) = match augment {
            Some((options, rng)) => {
                options.validate()?;
                let placement = Placement::drawn(size, self.size, self.fit, options, rng)?;
                (options, placement, options.draw_pixels(rng))
            }
            None => (&none, Placement::plain(size, self.size, self.fit)?, Vec::new()),
        };
        let levels = self.levels(&sample.image).map_err(|error| in_sample(&sample.name, error))?;
        self.render(&levels, &placement, &changes, out)?;
        Ok(Prepared { target: placement.target(&sample.target, options)?, placement })
    }

    /// Writes the input of an image, [height, width, channels], to `out`; filled borders are 0, the mean.
    ///
    /// # Errors
    /// As [`Framing::prepare`].
    pub fn prepare_image(&self, image: &Raster, out: &mut [f32]) -> Result<Placement> {
        let placement = Placement::plain(size_of(image), self.size, self.fit)?;
        self.render(&self.levels(image)?, &placement, &[], out)?;
        Ok(placement)
    }

    /// The image at the depth in which it is resized, with the rule's channels, or with 1 to be repeated.
    pub(super) fn levels<'a>(&self, image: &'a Raster) -> Result<Levels<'a>> {
        use std::borrow::Cow;
        self.rule.validate()?;
        self.rule.accepts(image.channels())?;
        let range = self.rule.range_of(image)?;
        let to_grey = image.channels() == 3 && self.rule.channels == 1;
        if let (Pixels::U8(picture), ValueRange::Full, false, 8) = (&image.pixels, range, image.inverted, image.bits) {
            let picture = if to_grey { Cow::Owned(picture.to_grey()?) } else { Cow::Borrowed(picture) };
            return Ok(Levels::Picture(picture));
        }
        let mut unit = Image::default();
        image.to_unit(range, &mut unit)?;
        if to_grey {
            // PIL's luma in single precision, as the preprocessing function has it.
            let luma = |p: &[f32]| (p[0] * 19595.0 + p[1] * 38470.0 + p[2] * 7471.0) / 65536.0;
            let grey = unit.data().chunks_exact(3).map(luma).collect();
            unit = Image::from_values(unit.width(), unit.height(), 1, grey)?;
        }
        Ok(Levels::Unit(unit))
    }

    /// Writes the input: what the placement shows of the image, changed and normalised.
    pub(super) fn render(
        &self,
        levels: &Levels<'_>,
        placement: &Placement,
        changes: &[PixelChange],
        out: &mut [f32],
    ) -> Result<()> {
        let channels = self.rule.channels;
        let [height, width] = placement.input_size();
        if out.len() != height * width * channels {
            return Err(Error::Invalid(format!(
                "an input of {height}×{width}×{channels} (height × width × channels) was given {} values of room",
                out.len()
            )));
        }
        out.fill(0.0);
        let Visible { rows, columns } = placement.visible();
        if rows[0] >= rows[1] || columns[0] >= columns[1] {
            return Ok(());
        }
        let start = |first: usize, corner: isize| (first as isize + corner) as usize;
        let part = CropBox {
            top: start(rows[0], placement.corner[0]),
            left: start(columns[0], placement.corner[1]),
            height: rows[1] - rows[0],
            width: columns[1] - columns[0],
        };
        let full = (placement.full[0], placement.full[1]);
        let mut content = match levels {
            Levels::Picture(picture) => unit_of(&crop_resized(picture, full, part, self.rule.filter)?)?,
            Levels::Unit(unit) => {
                let mut content = crop_resized_f32(unit, full, part, self.rule.filter)?;
                if self.rule.filter == Filter::Bicubic {
                    // A cubic overshoots, which 8 bits clip.
                    content.data_mut().iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
                }
                content
            }
        };
        changes.iter().for_each(|change| change.apply(&mut content));
        let given = content.channels();
        for (y, row) in content.data().chunks_exact(part.width * given).enumerate() {
            for (x, pixel) in row.chunks_exact(given).enumerate() {
                let at = placement.index(rows[0] + y, columns[0] + x) * channels;
                let target = out[at..at + channels].iter_mut().zip(self.rule.mean.iter().zip(&self.rule.std));
                // Grey fills all channels.
                for (c, (value, (mean, std))) in target.enumerate() {
                    *value = (pixel[c % given] - mean) / std;
                }
            }
        }
        Ok(())
    }
}

fn unit_of(picture: &Image) -> Result<Image<f32>> {
    let data = picture.data().iter().map(|&v| f32::from(v) / 255.0).collect();
    Ok(Image::from_values(picture.width(), picture.height(), picture.channels(), data)?)
}

/// Names the sample whose image was refused.
fn in_sample(name: &str, error: Error) -> Error {
    match error {
        Error::Image(source) if !name.is_empty() => {
            Error::Image(moco_image::Error::File { path: name.into(), source: Box::new(source) })
        }
        other => other,
    }
}

pub(super) fn size_of(image: &Raster) -> [usize; 2] {
    let (height, width) = image.size();
    [height, width]
}

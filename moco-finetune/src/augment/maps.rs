//! Maps of the input brought back to the image.

use moco_image::{CropBox, Filter, Image, crop_resized_f32};

use super::Placement;
use super::placement::Visible;
use crate::{Error, Result};

impl Placement {
    /// Brings a map over the input, [height, width, channels], to the size of the image: what was filled is cut off, the
    /// rest resized bilinearly. Probabilities stay probabilities: weights sum to 1.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of values, and for inputs that do not show the whole image, or turned.
    pub fn map_to_image(&self, map: &[f32], channels: usize) -> Result<Vec<f32>> {
        let [height, width] = self.input;
        if channels == 0 || map.len() != height * width * channels {
            return Err(Error::Invalid(format!(
                "a map of {height}×{width}×{channels} (height × width × channels) was given {} values",
                map.len()
            )));
        }
        let Visible { rows, columns } = self.visible();
        let whole = [rows[1] - rows[0], columns[1] - columns[0]] == self.full;
        if !whole || self.turns != 0 || self.mirrored {
            return Err(Error::Invalid(
                "the input shows only a part of the image, or shows it turned: a map cannot be brought back to the whole. \
                 Images are to be stretched, fitted, or read in windows"
                    .into(),
            ));
        }
        let image = Image::from_values(width, height, channels, map.to_vec())?;
        let part = CropBox { top: rows[0], left: columns[0], height: self.full[0], width: self.full[1] };
        let content = crop_resized_f32(&image, (height, width), part, Filter::Bilinear)?;
        if self.full == self.image {
            return Ok(content.into_data());
        }
        let [height, width] = self.image;
        Ok(moco_image::resize_f32(&content, width, height, Filter::Bilinear)?.into_data())
    }
}

//! Pixels in memory: height × width × channels values, 8 bits unless said otherwise.

use crate::{Error, Result};

/// An image, rows from top to bottom, channels interleaved (HWC): 1 channel is grey, 3 are RGB.
/// Any other number of channels is carried through geometry and normalisation unchanged.
///
/// `Image` alone is an 8-bit image. Other depths are types of their own, so that none becomes another unasked;
/// [`crate::Raster`] holds whichever a file has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image<T = u8> {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<T>, // [height, width, channels]
}

impl Image {
    /// An 8-bit image over `data`, which holds `height × width × channels` values in that order.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is 0 or the number of values differs.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Result<Self> {
        Self::from_values(width, height, channels, data)
    }

    /// An 8-bit image with every value `value`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is 0 or the size overflows.
    pub fn filled(width: usize, height: usize, channels: usize, value: u8) -> Result<Self> {
        let len = checked_len(width, height, channels)?;
        Ok(Self { width, height, channels, data: vec![value; len] })
    }

    /// The buffer, to be swapped for one of the same length.
    pub(crate) fn buffer_mut(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// Turns this image into one with `channels` (1 or 3) in place: [`Image::to_grey`] and [`Image::to_rgb`] without a copy.
    ///
    /// # Errors
    /// [`Error::Channels`] unless both numbers are 1 or 3, or equal.
    pub fn convert(&mut self, channels: usize) -> Result<()> {
        match (self.channels, channels) {
            (from, to) if from == to => {}
            (1, 3) => {
                let pixels = self.data.len();
                self.data.resize(pixels * 3, 0);
                for i in (0..pixels).rev() {
                    let value = self.data[i];
                    self.data[i * 3..i * 3 + 3].fill(value);
                }
            }
            (3, 1) => {
                let pixels = self.data.len() / 3;
                for i in 0..pixels {
                    self.data[i] = crate::augment::luma(self.data[i * 3], self.data[i * 3 + 1], self.data[i * 3 + 2]);
                }
                self.data.truncate(pixels);
            }
            (from, to) => return Err(Error::Channels(format!("cannot turn {from} channels into {to}, only 1 and 3"))),
        }
        self.channels = channels;
        Ok(())
    }

    /// A copy with one channel: PIL's `convert("L")`, (19595 R + 38470 G + 7471 B + 0x8000) >> 16.
    ///
    /// # Errors
    /// [`Error::Channels`] unless the image has 1 or 3 channels.
    pub fn to_grey(&self) -> Result<Image> {
        let mut copy = self.clone();
        copy.convert(1)?;
        Ok(copy)
    }

    /// A copy with three channels; grey is repeated three times, as PIL's `convert("RGB")` does.
    ///
    /// # Errors
    /// [`Error::Channels`] unless the image has 1 or 3 channels.
    pub fn to_rgb(&self) -> Result<Image> {
        let mut copy = self.clone();
        copy.convert(3)?;
        Ok(copy)
    }
}

impl<T: Copy + Default> Image<T> {
    /// An image of any depth over `data`, which holds `height × width × channels` values in that order.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is 0 or the number of values differs.
    pub fn from_values(width: usize, height: usize, channels: usize, data: Vec<T>) -> Result<Self> {
        let expected = checked_len(width, height, channels)?;
        if data.len() != expected {
            return Err(Error::Shape(format!(
                "{} values given for {height}×{width}×{channels} (height × width × channels), {expected} are needed",
                data.len()
            )));
        }
        Ok(Self { width, height, channels, data })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Values a pixel: 1 grey, 3 RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The values, [height, width, channels].
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The values, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// The buffer itself, for reuse.
    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// Makes this an image of the given shape, keeping its buffer; the values are unspecified afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`] when a dimension is 0 or the size overflows.
    pub fn reshape(&mut self, width: usize, height: usize, channels: usize) -> Result<()> {
        let len = checked_len(width, height, channels)?;
        self.data.resize(len, T::default());
        (self.width, self.height, self.channels) = (width, height, channels);
        Ok(())
    }
}

fn checked_len(width: usize, height: usize, channels: usize) -> Result<usize> {
    if width == 0 || height == 0 || channels == 0 {
        return Err(Error::Shape(format!("{height}×{width}×{channels} (height × width × channels) has no pixels")));
    }
    width
        .checked_mul(height)
        .and_then(|n| n.checked_mul(channels))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| Error::Shape(format!("{height}×{width}×{channels} overflows")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_number_of_values_is_refused() {
        let error = Image::new(4, 3, 3, vec![0; 35]).unwrap_err().to_string();
        assert!(error.contains("35") && error.contains("36"), "{error}");
        assert!(Image::new(0, 3, 1, vec![]).is_err());
        assert!(Image::new(usize::MAX, 2, 1, vec![]).is_err());
    }

    #[test]
    fn grey_and_rgb_convert_as_pil() {
        let rgb = Image::new(2, 1, 3, vec![255, 0, 0, 10, 200, 30]).unwrap();
        // python3 -c "from PIL import Image; print([Image.new('RGB',(1,1),c).convert('L').getpixel((0,0)) for c in [(255,0,0),(10,200,30)]])"
        assert_eq!(rgb.to_grey().unwrap().data(), [76, 124]);
        let grey = Image::new(2, 1, 1, vec![7, 9]).unwrap();
        assert_eq!(grey.to_rgb().unwrap().data(), [7, 7, 7, 9, 9, 9]);
        assert!(Image::filled(1, 1, 4, 0).unwrap().to_rgb().is_err());
    }
}

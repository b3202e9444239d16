//! An image at the depth of its file, with what its values mean; and how it becomes what a network reads.

use crate::{Error, Image, Result, ValueRange};

/// Values of one of the depths that files have.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// 8 bits, 0 to 255.
    U8(Image),
    /// Up to 16 bits.
    U16(Image<u16>),
    /// Up to 16 bits with a sign, as CT has them.
    I16(Image<i16>),
    /// 32-bit floating point.
    F32(Image<f32>),
}

/// An image as its file holds it. Nothing here is scaled or cut: [`Raster::to_8_bits`] and [`Raster::to_unit`] do that,
/// told how.
#[derive(Debug, Clone, PartialEq)]
pub struct Raster {
    /// The values as they are stored.
    pub pixels: Pixels,
    /// Significant bits of a value: 8, 1 to 16, or 32 for floats.
    pub bits: u8,
    /// What stored values mean; `None` = themselves.
    pub rescale: Option<Rescale>,
    /// Values that the file suggests as black and white, in the units after `rescale`.
    pub window: Option<[f32; 2]>,
    /// Small values are bright, as in DICOM's MONOCHROME1: black and white change places at the end.
    pub inverted: bool,
}

/// A linear function from stored values to units: `slope · value + intercept`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescale {
    /// Slope, not 0.
    pub slope: f64,
    /// Intercept.
    pub intercept: f64,
}

impl Default for Raster {
    fn default() -> Self {
        Self::from(Image::default())
    }
}

impl From<Image> for Raster {
    fn from(image: Image) -> Self {
        Self { pixels: Pixels::U8(image), bits: 8, rescale: None, window: None, inverted: false }
    }
}

impl Raster {
    /// Height and width.
    pub fn size(&self) -> (usize, usize) {
        match &self.pixels {
            Pixels::U8(image) => (image.height(), image.width()),
            Pixels::U16(image) => (image.height(), image.width()),
            Pixels::I16(image) => (image.height(), image.width()),
            Pixels::F32(image) => (image.height(), image.width()),
        }
    }

    /// Values a pixel.
    pub fn channels(&self) -> usize {
        match &self.pixels {
            Pixels::U8(image) => image.channels(),
            Pixels::U16(image) => image.channels(),
            Pixels::I16(image) => image.channels(),
            Pixels::F32(image) => image.channels(),
        }
    }

    /// Whether it has the depth of an ordinary picture: up to 8 bits without a sign.
    pub fn is_8_bit(&self) -> bool {
        matches!(self.pixels, Pixels::U8(_))
    }

    /// Its depth in words: `12 bits`, `16 bits with a sign`, `floats`.
    pub fn depth_in_words(&self) -> String {
        match &self.pixels {
            Pixels::F32(_) => "floats".into(),
            Pixels::I16(_) => format!("{} bits with a sign", self.bits),
            _ => format!("{} bits", self.bits),
        }
    }

    /// Turns it into one of `channels` (1 or 3): grey is repeated, colours become PIL's luma.
    ///
    /// # Errors
    /// [`Error::Channels`] unless both numbers are 1 or 3, or equal.
    pub fn convert(&mut self, channels: usize) -> Result<()> {
        if let Pixels::U8(image) = &mut self.pixels {
            return image.convert(channels);
        }
        if self.channels() == channels {
            return Ok(());
        }
        let luma = |p: &[f64]| (p[0] * 19595.0 + p[1] * 38470.0 + p[2] * 7471.0) / 65536.0;
        match &mut self.pixels {
            Pixels::U8(_) => {}
            Pixels::U16(image) => *image = converted(image, channels, |p| luma(p).round() as u16)?,
            Pixels::I16(image) => *image = converted(image, channels, |p| luma(p).round() as i16)?,
            Pixels::F32(image) => *image = converted(image, channels, |p| luma(p) as f32)?,
        }
        Ok(())
    }

    /// The same image with its values in units: a rescale is applied, which makes floats of them, and 8-bit pictures
    /// whose small values are bright are inverted. Deeper inverted images stay so, as [`Raster::inverted`] says.
    ///
    /// # Errors
    /// [`Error::Shape`] never in practice: the shape stays.
    pub fn in_units(mut self) -> Result<Raster> {
        if let Pixels::U8(image) = &mut self.pixels
            && self.bits == 8
            && self.rescale.is_none()
            && self.inverted
        {
            image.data_mut().iter_mut().for_each(|v| *v = 255 - *v);
            self.inverted = false;
        }
        let Some(Rescale { slope, intercept }) = self.rescale.take() else { return Ok(self) };
        let ((height, width), channels) = (self.size(), self.channels());
        let mut data = vec![0.0; height * width * channels];
        map(&self.pixels, &mut data, |value| (value * slope + intercept) as f32);
        let pixels = Pixels::F32(Image::from_values(width, height, channels, data)?);
        Ok(Raster { pixels, bits: 32, ..self })
    }

    /// The 8-bit image itself, if it is one in its full range: what pictures are.
    pub fn into_picture(self) -> std::result::Result<Image, Raster> {
        match self.pixels {
            Pixels::U8(image) if self.bits == 8 && !self.inverted => Ok(image),
            pixels => Err(Raster { pixels, ..self }),
        }
    }

    /// The 8-bit image to decode into, its buffer kept if there is one.
    pub(crate) fn reset_8_bit(&mut self) -> &mut Image {
        let image = match std::mem::replace(&mut self.pixels, Pixels::U8(Image::default())) {
            Pixels::U8(image) => image,
            _ => Image::default(),
        };
        *self = Self::from(image);
        match &mut self.pixels {
            Pixels::U8(image) => image,
            _ => unreachable!("made from an 8-bit image in the line above"),
        }
    }

    /// Brings values to 8 bits: black becomes 0, white 255. An 8-bit image in its full range is copied as it is.
    ///
    /// # Errors
    /// [`Error::Depth`] where the range does not exist in this image (see [`ValueRange`]); [`Error::Parameter`] for a
    /// range that is none and values that are not numbers.
    pub fn to_8_bits(&self, range: ValueRange) -> Result<Image> {
        let mut image = Image::default();
        self.to_8_bits_into(range, &mut image)?;
        Ok(image)
    }

    /// As [`Raster::to_8_bits`], into an image whose buffer is reused.
    ///
    /// # Errors
    /// As [`Raster::to_8_bits`].
    pub fn to_8_bits_into(&self, range: ValueRange, out: &mut Image) -> Result<()> {
        let ((height, width), channels) = (self.size(), self.channels());
        out.reshape(width, height, channels)?;
        if let (Pixels::U8(image), ValueRange::Full) = (&self.pixels, range)
            && self.bits == 8
        {
            out.data_mut().copy_from_slice(image.data());
            if self.inverted {
                out.data_mut().iter_mut().for_each(|v| *v = 255 - *v);
            }
            return Ok(());
        }
        let scale = self.scale(range, 255.0)?;
        // The cast saturates.
        let to_8 = |value: f64| scale.apply(value).round() as u8;
        map(&self.pixels, out.data_mut(), to_8);
        Ok(())
    }

    /// Brings values to floats: black becomes 0, white 1, all others in between.
    ///
    /// # Errors
    /// As [`Raster::to_8_bits`].
    pub fn to_unit(&self, range: ValueRange, out: &mut Image<f32>) -> Result<()> {
        let ((height, width), channels) = (self.size(), self.channels());
        out.reshape(width, height, channels)?;
        let scale = self.scale(range, 1.0)?;
        map(&self.pixels, out.data_mut(), |value| scale.apply(value).clamp(0.0, 1.0) as f32);
        Ok(())
    }

    /// The function from stored values to 0 … `most`.
    fn scale(&self, range: ValueRange, most: f64) -> Result<Scale> {
        range.validate()?;
        if let Pixels::F32(image) = &self.pixels
            && image.data().iter().any(|v| !v.is_finite())
        {
            let text = "hold NaN or infinity; replace such values by the background's";
            return Err(Error::parameter("pixels", text));
        }
        let Rescale { slope, intercept } = self.rescale.unwrap_or(Rescale { slope: 1.0, intercept: 0.0 });
        let stored = |unit: f32| (f64::from(unit) - intercept) / slope;
        let [black, white] = match range {
            ValueRange::Full => self.full_range()?,
            ValueRange::Window([black, white]) => [stored(black), stored(white)],
            ValueRange::File => match self.window {
                Some([black, white]) => [stored(black), stored(white)],
                None => {
                    return Err(Error::Depth(
                        "the file suggests no window: say which values become black and white, e.g. window:-160,240"
                            .into(),
                    ));
                }
            },
            ValueRange::MinMax => self.percentiles(0.0, 100.0, slope < 0.0),
            ValueRange::Percentile([low, high]) => self.percentiles(low, high, slope < 0.0),
        };
        let [black, white] = if self.inverted { [white, black] } else { [black, white] };
        // An image of one value has no range; it becomes black.
        let factor = if black == white { 0.0 } else { most / (white - black) };
        Ok(Scale { black, factor })
    }

    fn full_range(&self) -> Result<[f64; 2]> {
        let levels = f64::from(1u32 << self.bits.min(16));
        match &self.pixels {
            Pixels::U8(_) | Pixels::U16(_) => Ok([0.0, levels - 1.0]),
            Pixels::I16(_) => Ok([-levels / 2.0, levels / 2.0 - 1.0]),
            Pixels::F32(_) => Err(Error::Depth(
                "floats have no full range: say which values become black and white, e.g. window:0,1 or min-max".into(),
            )),
        }
    }

    /// Percentiles of the stored values, as numpy's default; a negative slope turns them round.
    fn percentiles(&self, low: f32, high: f32, turned: bool) -> [f64; 2] {
        let mut values: Vec<f32> = match &self.pixels {
            Pixels::U8(image) => image.data().iter().map(|&v| f32::from(v)).collect(),
            Pixels::U16(image) => image.data().iter().map(|&v| f32::from(v)).collect(),
            Pixels::I16(image) => image.data().iter().map(|&v| f32::from(v)).collect(),
            Pixels::F32(image) => image.data().to_vec(),
        };
        let (low, high) = if turned { (100.0 - low, 100.0 - high) } else { (low, high) };
        [low, high].map(|percent| percentile(&mut values, percent))
    }
}

fn converted<T: Copy + Default + Into<f64>>(
    image: &Image<T>,
    channels: usize,
    luma: impl Fn(&[f64]) -> T,
) -> Result<Image<T>> {
    let data = match (image.channels(), channels) {
        (1, 3) => image.data().iter().flat_map(|&v| [v; 3]).collect(),
        (3, 1) => image.data().chunks_exact(3).map(|p| luma(&[p[0].into(), p[1].into(), p[2].into()])).collect(),
        (from, to) => return Err(Error::Channels(format!("cannot turn {from} channels into {to}, only 1 and 3"))),
    };
    Image::from_values(image.width(), image.height(), channels, data)
}

struct Scale {
    black: f64,
    factor: f64,
}

impl Scale {
    fn apply(&self, value: f64) -> f64 {
        (value - self.black) * self.factor
    }
}

fn map<T>(pixels: &Pixels, out: &mut [T], to: impl Fn(f64) -> T) {
    fn each<S: Copy + Into<f64>, T>(values: &[S], out: &mut [T], to: impl Fn(f64) -> T) {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = to(value.into()));
    }
    match pixels {
        Pixels::U8(image) => each(image.data(), out, to),
        Pixels::U16(image) => each(image.data(), out, to),
        Pixels::I16(image) => each(image.data(), out, to),
        Pixels::F32(image) => each(image.data(), out, to),
    }
}

/// Linear interpolation between the two nearest ranks.
fn percentile(values: &mut [f32], percent: f32) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = f64::from(percent) / 100.0 * last as f64;
    let below = place as usize;
    let (_, &mut first, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(first);
    f64::from(first) + (f64::from(next) - f64::from(first)) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twelve_bits(values: &[u16]) -> Raster {
        let image = Image::from_values(values.len(), 1, 1, values.to_vec()).unwrap();
        Raster { pixels: Pixels::U16(image), bits: 12, ..Raster::default() }
    }

    fn to_8(raster: &Raster, range: ValueRange) -> Vec<u8> {
        raster.to_8_bits(range).unwrap().into_data()
    }

    #[test]
    fn eight_bits_stay_as_they_are_or_are_inverted() {
        let image = Image::new(3, 1, 1, vec![0, 100, 255]).unwrap();
        let raster = Raster::from(image.clone());
        assert_eq!(raster.to_8_bits(ValueRange::Full).unwrap(), image);
        let inverted = Raster { inverted: true, ..raster };
        assert_eq!(to_8(&inverted, ValueRange::Full), [255, 155, 0]);
    }

    #[test]
    fn the_full_range_is_that_of_the_significant_bits() {
        assert_eq!(to_8(&twelve_bits(&[0, 2048, 4095]), ValueRange::Full), [0, 128, 255]);
        let image = Image::from_values(3, 1, 1, vec![-2048i16, 0, 2047]).unwrap();
        let signed = Raster { pixels: Pixels::I16(image), bits: 12, ..Raster::default() };
        assert_eq!(to_8(&signed, ValueRange::Full), [0, 128, 255]);
        let image = Image::from_values(1, 1, 1, vec![0.5f32]).unwrap();
        let floats = Raster { pixels: Pixels::F32(image), bits: 32, ..Raster::default() };
        let error = floats.to_8_bits(ValueRange::Full).unwrap_err().to_string();
        assert!(error.contains("min-max"), "{error}");
    }

    #[test]
    fn windows_are_in_the_file_s_units() {
        // CT: stored 0 is −1024 HU.
        let rescale = Some(Rescale { slope: 1.0, intercept: -1024.0 });
        let ct = Raster { rescale, window: Some([-160.0, 240.0]), ..twelve_bits(&[0, 864, 964, 1264, 4000]) };
        assert_eq!(to_8(&ct, ValueRange::Window([-160.0, 240.0])), [0, 0, 64, 255, 255]);
        assert_eq!(to_8(&ct, ValueRange::File), [0, 0, 64, 255, 255]);
        assert_eq!(to_8(&Raster { inverted: true, ..ct.clone() }, ValueRange::File), [255, 255, 191, 0, 0]);
        assert_eq!(to_8(&ct, ValueRange::Window([240.0, -160.0])), [255, 255, 191, 0, 0]);
        let mut unit = Image::default();
        ct.to_unit(ValueRange::File, &mut unit).unwrap();
        assert_eq!(unit.data(), [0.0, 0.0, 0.25, 1.0, 1.0]);
        let none = Raster { window: None, ..ct };
        assert!(none.to_8_bits(ValueRange::File).unwrap_err().to_string().contains("suggests no window"));
    }

    #[test]
    fn channels_convert_at_every_depth() {
        let mut grey = twelve_bits(&[7, 4000]);
        grey.convert(3).unwrap();
        let Pixels::U16(image) = &grey.pixels else { panic!("{grey:?}") };
        assert_eq!(image.data(), [7, 7, 7, 4000, 4000, 4000]);
        grey.convert(1).unwrap();
        assert_eq!(grey, twelve_bits(&[7, 4000]));
        assert!(grey.convert(4).is_err());
    }

    // python3 -c "import numpy as np; print(np.percentile([5, 1, 9, 7, 100], [10, 90]))"  → [2.6, 63.6]
    #[test]
    fn percentiles_are_numpy_s() {
        let raster = twelve_bits(&[5, 1, 9, 7, 100]);
        let [low, high] = raster.percentiles(10.0, 90.0, false);
        assert!((low - 2.6).abs() < 1e-6 && (high - 63.6).abs() < 1e-5, "{low} {high}");
        assert_eq!(to_8(&raster, ValueRange::MinMax), [10, 0, 21, 15, 255]);
        let negative = Raster { rescale: Some(Rescale { slope: -1.0, intercept: 0.0 }), ..raster };
        assert_eq!(to_8(&negative, ValueRange::MinMax), [245, 255, 234, 240, 0]);
        assert_eq!(to_8(&twelve_bits(&[7, 7]), ValueRange::MinMax), [0, 0]);
    }

    #[test]
    fn values_that_are_no_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let image = Image::from_values(2, 1, 1, vec![0.5f32, bad]).unwrap();
            let floats = Raster { pixels: Pixels::F32(image), bits: 32, ..Raster::default() };
            let error = floats.to_8_bits(ValueRange::Window([0.0, 1.0])).unwrap_err().to_string();
            assert!(error.contains("NaN"), "{error}");
        }
    }
}

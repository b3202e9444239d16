//! Pixels from another program's memory: 8 and 16 bits or floats, rows apart by a stride.

use crate::{Error, Image, Pixels, Raster, Result, ValueRange};

/// Type of a value in a [`RawImage`], in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelType {
    /// 8 bits.
    U8,
    /// 16 bits.
    U16,
    /// 16 bits with a sign.
    I16,
    /// 32-bit floating point.
    F32,
}

impl PixelType {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            PixelType::U8 => 1,
            PixelType::U16 | PixelType::I16 => 2,
            PixelType::F32 => 4,
        }
    }
}

/// An image as it lies in memory: rows from top to bottom, channels interleaved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawImage<'a> {
    /// The bytes, from the first row's first value to at least the last row's last.
    pub bytes: &'a [u8],
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values a pixel.
    pub channels: usize,
    /// Type of the values.
    pub pixel_type: PixelType,
    /// Significant bits of a whole number, e.g. 12; 0 = all of them.
    pub bits: u8,
    /// Small values are bright, as in DICOM's MONOCHROME1: black and white change places.
    pub inverted: bool,
    /// Bytes from one row to the next; 0 = rows follow each other without a gap.
    pub row_stride: usize,
    /// Values that become 0 and 255, between which the scale is linear and outside of which it is clamped: the window
    /// of a radiologist; above each other they invert. `None` = 8 bits as they are, other depths as the network's card
    /// says.
    pub window: Option<[f32; 2]>,
}

impl RawImage<'_> {
    /// Bytes the image reaches over, or why it cannot be.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty or absurd size, or a stride shorter than a row.
    pub fn byte_len(&self) -> Result<usize> {
        let too_large = || Error::Shape(format!("{}×{}×{} is too large", self.height, self.width, self.channels));
        let row = self.width.checked_mul(self.channels).and_then(|n| n.checked_mul(self.pixel_type.size()));
        let row = row.ok_or_else(too_large)?;
        if row == 0 || self.height == 0 {
            return Err(Error::Shape(format!(
                "an image of {}×{}×{} (height × width × channels) has no pixels",
                self.height, self.width, self.channels
            )));
        }
        if self.row_stride != 0 && self.row_stride < row {
            return Err(Error::Shape(format!(
                "the row stride is {} bytes, a row of {} pixels has {row}",
                self.row_stride, self.width
            )));
        }
        self.stride(row).checked_mul(self.height - 1).and_then(|n| n.checked_add(row)).ok_or_else(too_large)
    }

    /// The image: of 8 bits where it has them or a window is given, otherwise of the depth it has.
    ///
    /// # Errors
    /// [`Error::Shape`] as [`RawImage::byte_len`] or for too few bytes; [`Error::Parameter`] for a window that is no
    /// range, values that are not numbers, and values that need more bits than is said.
    pub fn to_raster(&self) -> Result<Raster> {
        let len = self.byte_len()?;
        if self.bytes.len() < len {
            return Err(Error::Shape(format!("the image reaches over {len} bytes, {} were given", self.bytes.len())));
        }
        let pixels = match self.pixel_type {
            PixelType::U8 => Pixels::U8(self.image(|[v]| v)?),
            PixelType::U16 => Pixels::U16(self.image(u16::from_ne_bytes)?),
            PixelType::I16 => Pixels::I16(self.image(i16::from_ne_bytes)?),
            PixelType::F32 => Pixels::F32(self.image(f32::from_ne_bytes)?),
        };
        let raster = Raster { bits: self.bits(&pixels)?, pixels, inverted: self.inverted, ..Raster::default() };
        match self.window {
            Some(window) => raster.to_8_bits(ValueRange::Window(window)).map(Raster::from),
            None => raster.in_units(),
        }
    }

    /// Significant bits, which every value must keep to: the card's range is that of the bits, and what lies outside
    /// would be cut off.
    fn bits(&self, pixels: &Pixels) -> Result<u8> {
        let all = 8 * self.pixel_type.size() as u8;
        let bits = match self.bits {
            0 => all,
            bits if bits == all || (bits < all && self.pixel_type != PixelType::F32) => bits,
            bits => return Err(Error::parameter("bits", format!("{bits} in values of {all} bits"))),
        };
        let outside = match pixels {
            Pixels::U8(image) => image.data().iter().map(|v| i32::from(*v)).find(|v| v >> bits != 0),
            Pixels::U16(image) => image.data().iter().map(|v| i32::from(*v)).find(|v| v >> bits != 0),
            Pixels::I16(image) => {
                image.data().iter().map(|v| i32::from(*v)).find(|v| !matches!(v >> (bits - 1), 0 | -1))
            }
            _ => None,
        };
        match outside {
            Some(value) => {
                Err(Error::parameter("bits", format!("there is a value of {value}, which needs more than {bits}")))
            }
            None => Ok(bits),
        }
    }

    fn image<T: Copy + Default, const N: usize>(&self, value: impl Fn([u8; N]) -> T) -> Result<Image<T>> {
        let row = self.width * self.channels * N;
        let mut data = Vec::with_capacity(self.width * self.height * self.channels);
        for bytes in self.bytes.chunks(self.stride(row)).take(self.height) {
            data.extend(bytes[..row].as_chunks::<N>().0.iter().map(|bytes| value(*bytes)));
        }
        Image::from_values(self.width, self.height, self.channels, data)
    }

    fn stride(&self, row: usize) -> usize {
        if self.row_stride == 0 { row } else { self.row_stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(bytes: &[u8], pixel_type: PixelType, window: Option<[f32; 2]>) -> RawImage<'_> {
        RawImage {
            bytes,
            width: 2,
            height: 2,
            channels: 1,
            pixel_type,
            bits: 0,
            inverted: false,
            row_stride: 0,
            window,
        }
    }

    fn in_8_bits(image: &RawImage<'_>) -> Vec<u8> {
        image.to_raster().unwrap().into_picture().unwrap().into_data()
    }

    fn bytes_of<const N: usize, T>(values: &[T], to: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(to).collect()
    }

    #[test]
    fn strides_are_stepped_over() {
        let bytes = [1, 2, 99, 3, 4];
        let image = RawImage { row_stride: 3, ..raw(&bytes, PixelType::U8, None) }.to_raster().unwrap();
        assert_eq!(image, Raster::from(Image::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap()));
        assert!(RawImage { row_stride: 1, ..raw(&bytes, PixelType::U8, None) }.to_raster().is_err());
        assert!(RawImage { row_stride: 4, ..raw(&bytes, PixelType::U8, None) }.to_raster().is_err());
    }

    #[test]
    fn windows_scale_clamp_and_invert() {
        let values = bytes_of(&[0u16, 1000, 2000, 4095], |v| v.to_ne_bytes());
        let image = |window| in_8_bits(&raw(&values, PixelType::U16, Some(window)));
        assert_eq!(image([1000.0, 2000.0]), [0, 0, 255, 255]);
        assert_eq!(image([0.0, 4000.0]), [0, 64, 128, 255]);
        assert_eq!(image([4000.0, 0.0]), [255, 191, 128, 0]);
        let floats = bytes_of(&[0.0f32, 0.5, 1.0, -3.0], |v| v.to_ne_bytes());
        assert_eq!(in_8_bits(&raw(&floats, PixelType::F32, Some([0.0, 1.0]))), [0, 128, 255, 0]);
        let signed = bytes_of(&[-1000i16, 0, 100, 400], |v| v.to_ne_bytes());
        assert_eq!(in_8_bits(&raw(&signed, PixelType::I16, Some([-100.0, 400.0]))), [0, 51, 102, 255]);
    }

    #[test]
    fn without_a_window_the_depth_is_kept() {
        let values = bytes_of(&[0u16, 1000, 2000, 4095], |v| v.to_ne_bytes());
        let raster = raw(&values, PixelType::U16, None).to_raster().unwrap();
        let Pixels::U16(image) = &raster.pixels else { panic!("{raster:?}") };
        assert_eq!((image.data(), raster.bits), (&[0, 1000, 2000, 4095][..], 16));
    }

    #[test]
    fn significant_bits_and_inversion_are_kept() {
        let values = bytes_of(&[0u16, 1000, 2000, 4095], |v| v.to_ne_bytes());
        let twelve = RawImage { bits: 12, inverted: true, ..raw(&values, PixelType::U16, None) };
        let raster = twelve.to_raster().unwrap();
        assert_eq!((raster.bits, raster.inverted), (12, true));
        assert_eq!(raster.to_8_bits(ValueRange::Full).unwrap().data(), [255, 193, 130, 0]);
        // A window is in the units of the values; what is bright changes places.
        let windowed = RawImage { window: Some([0.0, 4000.0]), ..twelve };
        assert_eq!(in_8_bits(&windowed), [255, 191, 128, 0]);
        let picture = RawImage { inverted: true, ..raw(&[0, 1, 254, 255], PixelType::U8, None) };
        assert_eq!(in_8_bits(&picture), [255, 254, 1, 0]);
        let signed = bytes_of(&[-2048i16, 0, 5, 2047], |v| v.to_ne_bytes());
        assert_eq!(RawImage { bits: 12, ..raw(&signed, PixelType::I16, None) }.to_raster().unwrap().bits, 12);
        let floats = bytes_of(&[0.0f32; 4], |v| v.to_ne_bytes());
        for (bytes, pixel_type, bits, part) in [
            (&values, PixelType::U16, 11, "value of 4095"),
            (&signed, PixelType::I16, 11, "value of -2048"),
            (&values, PixelType::U16, 17, "17 in values of 16 bits"),
            (&values, PixelType::U8, 1, "needs more than 1"),
            (&floats, PixelType::F32, 12, "12 in values of 32 bits"),
        ] {
            let error = RawImage { bits, ..raw(bytes, pixel_type, None) }.to_raster().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let values = bytes_of(&[0u16; 4], |v| v.to_ne_bytes());
        assert!(raw(&values, PixelType::U16, Some([5.0, 5.0])).to_raster().is_err());
        assert!(raw(&values[1..], PixelType::U16, Some([0.0, 5.0])).to_raster().is_err());
        let nan = bytes_of(&[f32::NAN; 4], |v| v.to_ne_bytes());
        assert!(raw(&nan, PixelType::F32, Some([0.0, 1.0])).to_raster().unwrap_err().to_string().contains("NaN"));
        assert!(RawImage { height: usize::MAX, ..raw(&values, PixelType::U8, None) }.to_raster().is_err());
        assert!(RawImage { width: 0, ..raw(&values, PixelType::U8, None) }.to_raster().is_err());
    }
}

//! Pixels from another program's memory: 8 and 16 bits or floats, rows apart by a stride.

use crate::{Error, Image, Result};

/// Type of a value in a [`RawImage`], in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelType {
    /// 8 bits.
    U8,
    /// 16 bits.
    U16,
    /// 32-bit floating point.
    F32,
}

impl PixelType {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            PixelType::U8 => 1,
            PixelType::U16 => 2,
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
    /// Bytes from one row to the next; 0 = rows follow each other without a gap.
    pub row_stride: usize,
    /// Values that become 0 and 255, between which the scale is linear and outside of which it is clamped: the window
    /// of a radiologist. Needed for 16 bits and floats, whose range nobody can guess.
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

    /// The image in 8 bits.
    ///
    /// # Errors
    /// [`Error::Shape`] as [`RawImage::byte_len`] or for too few bytes; [`Error::Parameter`] for 16 bits or floats
    /// without a window, 8 bits with one that is not a range, and values that are not numbers.
    pub fn to_image(&self) -> Result<Image> {
        let len = self.byte_len()?;
        if self.bytes.len() < len {
            return Err(Error::Shape(format!("the image reaches over {len} bytes, {} were given", self.bytes.len())));
        }
        let row = self.width * self.channels * self.pixel_type.size();
        let rows = self.bytes.chunks(self.stride(row)).take(self.height).map(|r| &r[..row]);
        let mut data = Vec::with_capacity(self.width * self.height * self.channels);
        match (self.pixel_type, self.scale()?) {
            (PixelType::U8, None) => rows.for_each(|r| data.extend_from_slice(r)),
            (PixelType::U8, Some(scale)) => {
                rows.for_each(|r| data.extend(r.iter().map(|v| scale.apply(f32::from(*v)))))
            }
            (PixelType::U16, Some(scale)) => {
                let value = |b: &[u8; 2]| scale.apply(f32::from(u16::from_ne_bytes(*b)));
                rows.for_each(|r| data.extend(r.as_chunks().0.iter().map(value)));
            }
            (PixelType::F32, Some(scale)) => {
                for row in rows {
                    for bytes in row.as_chunks().0 {
                        let value = f32::from_ne_bytes(*bytes);
                        if value.is_nan() {
                            return Err(Error::parameter("pixels", "hold NaN; replace it by the background's value"));
                        }
                        data.push(scale.apply(value));
                    }
                }
            }
            (PixelType::U16 | PixelType::F32, None) => {
                return Err(Error::parameter(
                    "window",
                    format!(
                        "{:?} values need the window that becomes 0 to 255, e.g. 0 and 1 for floats of that range or \
                         the window's lower and upper value in Hounsfield units; the network reads 8 bits",
                        self.pixel_type
                    ),
                ));
            }
        }
        Image::new(self.width, self.height, self.channels, data)
    }

    fn stride(&self, row: usize) -> usize {
        if self.row_stride == 0 { row } else { self.row_stride }
    }

    fn scale(&self) -> Result<Option<Scale>> {
        let Some([black, white]) = self.window else { return Ok(None) };
        // Below 0 a window inverts, as MONOCHROME1 wants.
        if !black.is_finite() || !white.is_finite() || black == white {
            return Err(Error::parameter("window", format!("{black} to {white} is not a range")));
        }
        Ok(Some(Scale { black: f64::from(black), factor: 255.0 / (f64::from(white) - f64::from(black)) }))
    }
}

struct Scale {
    black: f64,
    factor: f64,
}

impl Scale {
    fn apply(&self, value: f32) -> u8 {
        // The cast saturates.
        ((f64::from(value) - self.black) * self.factor).round() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(bytes: &[u8], pixel_type: PixelType, window: Option<[f32; 2]>) -> RawImage<'_> {
        RawImage { bytes, width: 2, height: 2, channels: 1, pixel_type, row_stride: 0, window }
    }

    fn bytes_of<const N: usize, T>(values: &[T], to: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(to).collect()
    }

    #[test]
    fn strides_are_stepped_over() {
        let bytes = [1, 2, 99, 3, 4];
        let image = RawImage { row_stride: 3, ..raw(&bytes, PixelType::U8, None) }.to_image().unwrap();
        assert_eq!(image.data(), [1, 2, 3, 4]);
        assert!(RawImage { row_stride: 1, ..raw(&bytes, PixelType::U8, None) }.to_image().is_err());
        assert!(RawImage { row_stride: 4, ..raw(&bytes, PixelType::U8, None) }.to_image().is_err());
    }

    #[test]
    fn windows_scale_clamp_and_invert() {
        let values = bytes_of(&[0u16, 1000, 2000, 4095], |v| v.to_ne_bytes());
        let image = |window| raw(&values, PixelType::U16, Some(window)).to_image().unwrap().into_data();
        assert_eq!(image([1000.0, 2000.0]), [0, 0, 255, 255]);
        assert_eq!(image([0.0, 4000.0]), [0, 64, 128, 255]);
        assert_eq!(image([4000.0, 0.0]), [255, 191, 128, 0]);
        let floats = bytes_of(&[0.0f32, 0.5, 1.0, -3.0], |v| v.to_ne_bytes());
        let image = raw(&floats, PixelType::F32, Some([0.0, 1.0])).to_image().unwrap();
        assert_eq!(image.data(), [0, 128, 255, 0]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let values = bytes_of(&[0u16; 4], |v| v.to_ne_bytes());
        assert!(raw(&values, PixelType::U16, None).to_image().unwrap_err().to_string().contains("window"));
        assert!(raw(&values, PixelType::U16, Some([5.0, 5.0])).to_image().is_err());
        assert!(raw(&values[1..], PixelType::U16, Some([0.0, 5.0])).to_image().is_err());
        let nan = bytes_of(&[f32::NAN; 4], |v| v.to_ne_bytes());
        assert!(raw(&nan, PixelType::F32, Some([0.0, 1.0])).to_image().unwrap_err().to_string().contains("NaN"));
        assert!(RawImage { height: usize::MAX, ..raw(&values, PixelType::U8, None) }.to_image().is_err());
        assert!(RawImage { width: 0, ..raw(&values, PixelType::U8, None) }.to_image().is_err());
    }
}

//! Images whose values are numbers, not brightness: masks of classes, maps of instances.

use super::{Format, ImageFile, png};
use crate::{Error, Image, Pixels, Raster, Result};

/// Reads the numbers that image `frame` of a label file stores, 0 to 65535: palette indices of a PNG, its grey values of
/// 1 to 16 bits unscaled (a mask of 1 bit holds 0 and 1), the values of a TIFF, a DICOM file, a volume or a grey JPEG.
/// An image of three equal channels counts as grey.
///
/// # Errors
/// [`Error::Channels`] for colours, [`Error::Depth`] for values that are no whole numbers from 0 to 65535, and as
/// [`ImageFile::read`].
pub fn read_labels(file: &ImageFile, frame: usize) -> Result<Image<u16>> {
    if file.info().format == Format::Png && frame == 0 {
        let bits = if file.info().bit_depth == 16 { 16 } else { 8 };
        let (info, bytes) = (file.info(), file.bytes());
        file.limits().check_decoded(info.width, info.height, bits * info.channels, bytes.len())?;
        if let Some(image) = png::decode_stored(bytes, info)? {
            return Ok(image);
        }
    }
    // A volume may store its labels under a scale.
    whole_numbers(&file.read(frame)?.in_units()?)
}

fn whole_numbers(raster: &Raster) -> Result<Image<u16>> {
    let (height, width) = raster.size();
    let channels = raster.channels();
    let values: Vec<u16> = match &raster.pixels {
        Pixels::U8(image) => image.data().iter().map(|&v| v.into()).collect(),
        Pixels::U16(image) => image.data().to_vec(),
        Pixels::I16(image) => image.data().iter().map(|&v| whole(f32::from(v))).collect::<Result<_>>()?,
        Pixels::F32(image) => image.data().iter().map(|&v| whole(v)).collect::<Result<_>>()?,
    };
    if channels == 1 {
        return Image::from_values(width, height, 1, values);
    }
    let pixels = values.chunks_exact(channels);
    if pixels.clone().any(|pixel| pixel.iter().any(|v| *v != pixel[0])) {
        return Err(Error::Channels(
            "a label image in colours: its pixels must be numbers, not colours; save it as a grey or palette PNG whose \
             values are the classes"
                .into(),
        ));
    }
    Image::from_values(width, height, 1, pixels.map(|pixel| pixel[0]).collect())
}

fn whole(value: f32) -> Result<u16> {
    if value.fract() == 0.0 && (0.0..=65535.0).contains(&value) {
        return Ok(value as u16);
    }
    Err(Error::Depth(format!("a label image with the value {value}: expected whole numbers from 0 to 65535")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadOptions;

    fn encoded(width: u32, height: u32, color: ::png::ColorType, depth: ::png::BitDepth, data: &[u8]) -> ImageFile {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ::png::ColorType::Indexed {
            encoder.set_palette(vec![9; 3 * 16]);
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        ImageFile::open(bytes, &ReadOptions::default()).unwrap()
    }

    #[test]
    fn stored_numbers_are_read_not_what_they_look_like() {
        use ::png::{BitDepth as Bits, ColorType as Color};
        let numbers = |color, bits, data: &[u8]| {
            read_labels(&encoded(3, 2, color, bits, data), 0).map(|image| image.data().to_vec())
        };
        assert_eq!(numbers(Color::Grayscale, Bits::One, &[0b1010_0000, 0b0110_0000]).unwrap(), [1, 0, 1, 0, 1, 1]);
        assert_eq!(numbers(Color::Indexed, Bits::Four, &[0x3F, 0x10, 0x02, 0x40]).unwrap(), [3, 15, 1, 0, 2, 4]);
        assert_eq!(numbers(Color::Grayscale, Bits::Eight, &[0, 1, 2, 3, 77, 255]).unwrap(), [0, 1, 2, 3, 77, 255]);
        let deep = [1, 0, 0, 7, 255, 255, 0, 0, 0, 1, 2, 2];
        assert_eq!(numbers(Color::Grayscale, Bits::Sixteen, &deep).unwrap(), [256, 7, 65535, 0, 1, 514]);
        let grey: Vec<u8> = (0..6).flat_map(|v| [v; 3]).collect();
        assert_eq!(numbers(Color::Rgb, Bits::Eight, &grey).unwrap(), [0, 1, 2, 3, 4, 5]);
        let colours: Vec<u8> = (0..18).collect();
        let error = numbers(Color::Rgb, Bits::Eight, &colours).unwrap_err().to_string();
        assert!(error.contains("palette PNG"), "{error}");
    }

    #[test]
    fn values_that_are_no_labels_are_refused() {
        let floats = |values: Vec<f32>| Raster {
            pixels: Pixels::F32(Image::from_values(values.len(), 1, 1, values).unwrap()),
            bits: 32,
            ..Raster::default()
        };
        assert_eq!(whole_numbers(&floats(vec![0.0, 3.0])).unwrap().data(), [0, 3]);
        for bad in [0.5, -1.0, f32::NAN, 70000.0] {
            assert!(whole_numbers(&floats(vec![bad])).is_err(), "{bad}");
        }
    }
}

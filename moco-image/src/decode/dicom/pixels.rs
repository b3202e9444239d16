//! From stored values to pixels: words to numbers, planes to interleaved channels, YBR and palettes to RGB.

use super::elements::corrupt;
use super::header::Header;
use crate::{Image, Pixels, Raster, Result};

/// Significant bits of the image that comes out; 32 for floats.
pub(super) fn depth(header: &Header) -> u8 {
    match header.bits_stored {
        _ if header.palette.is_some() => 8,
        17.. => 32,
        bits => bits as u8,
    }
}

/// Bits of an uncompressed frame.
pub(super) fn frame_bits(header: &Header) -> Result<usize> {
    let values = if header.photometric == "YBR_FULL_422" { 2 } else { header.samples };
    let bits = match header.pixels {
        super::PixelData::Floats { double: true, .. } => 64,
        super::PixelData::Floats { .. } => 32,
        _ => header.bits_allocated,
    };
    let pixels = header.rows.checked_mul(header.columns);
    pixels.and_then(|n| n.checked_mul(values)?.checked_mul(bits)).ok_or_else(|| corrupt("an impossible size".into()))
}

/// Stored values of an uncompressed frame, in the file's order.
pub(super) fn native(header: &Header, data: &[u8], words: bool, frame: usize) -> Result<Vec<u32>> {
    let bits = frame_bits(header)?;
    let encoding = header.encoding;
    // In big-endian files bytes lie in words, and change places with their neighbour.
    let swapped = usize::from(words && encoding.big_endian);
    let byte = |i: usize| data.get(i ^ swapped).or_else(|| data.get(i)).copied().unwrap_or(0);
    let start = frame * bits / 8;
    Ok(match header.bits_allocated {
        1 => (frame * bits..(frame + 1) * bits).map(|i| u32::from(byte(i / 8) >> (i % 8) & 1)).collect(),
        8 if header.photometric == "YBR_FULL_422" => {
            // Two pixels share their colour: Y1 Y2 Cb Cr.
            let pixels = header.rows * header.columns;
            let value = |i: usize| {
                let (pixel, channel) = (i / 3, i % 3);
                let at = start + pixel / 2 * 4 + if channel == 0 { pixel % 2 } else { channel + 1 };
                u32::from(byte(at))
            };
            (0..pixels * 3).map(value).collect()
        }
        8 => (start..start + bits / 8).map(|i| u32::from(byte(i))).collect(),
        16 => data[start..start + bits / 8].as_chunks().0.iter().map(|b| u32::from(encoding.u16(*b))).collect(),
        _ => data[start..start + bits / 8].as_chunks().0.iter().map(|b| encoding.u32(*b)).collect(),
    })
}

/// Float Pixel Data and Double Float Pixel Data.
pub(super) fn floats(header: &Header, data: &[u8], double: bool, frame: usize) -> Result<Raster> {
    let bytes = frame_bits(header)? / 8;
    let data = &data[frame * bytes..(frame + 1) * bytes];
    let big = header.encoding.big_endian;
    let values: Vec<f32> = if double {
        let one = |b: &[u8; 8]| if big { f64::from_be_bytes(*b) } else { f64::from_le_bytes(*b) } as f32;
        data.as_chunks().0.iter().map(one).collect()
    } else {
        data.as_chunks().0.iter().map(|b| f32::from_bits(header.encoding.u32(*b))).collect()
    };
    let image = Image::from_values(header.columns, header.rows, header.samples, values)?;
    Ok(Raster { pixels: Pixels::F32(image), bits: 32, ..Raster::default() })
}

/// Values as they are stored to an image; `planar` values come channel after channel.
pub(super) fn finish(header: &Header, mut values: Vec<u32>, planar: bool) -> Result<Raster> {
    if planar && header.samples == 3 && header.photometric != "YBR_FULL_422" {
        let pixels = values.len() / 3;
        values = (0..values.len()).map(|i| values[i % 3 * pixels + i / 3]).collect();
    }
    if header.photometric.starts_with("YBR_FULL") {
        if header.bits_stored != 8 {
            return Err(crate::Error::Unsupported(format!("a DICOM file of YBR with {} bits", header.bits_stored)));
        }
        values.as_chunks_mut().0.iter_mut().for_each(ybr_to_rgb);
    }
    finish_rgb(header, values)
}

/// As [`finish`], for values that are interleaved and RGB or grey already.
pub(super) fn finish_rgb(header: &Header, values: Vec<u32>) -> Result<Raster> {
    let stored = header.bits_stored as u32;
    // Bits above and below the stored ones may hold overlays.
    let low = header.high_bit as u32 + 1 - stored;
    let value = |v: u32| (v >> low) & (u32::MAX >> (32 - stored));
    let signed = |v: u32| ((v >> low) << (32 - stored)) as i32 >> (32 - stored);
    let (width, height, channels) = (header.columns, header.rows, header.samples);
    let bits = header.bits_stored.min(32) as u8;
    if let Some(palette) = &header.palette {
        return apply_palette(header, palette, values.iter().map(|v| value(*v)));
    }
    let pixels = match (stored, header.signed) {
        (..=8, false) => {
            let values = values.iter().map(|v| value(*v) as u8).collect();
            Pixels::U8(Image::from_values(width, height, channels, values)?)
        }
        (9..=16, false) => {
            let values = values.iter().map(|v| value(*v) as u16).collect();
            Pixels::U16(Image::from_values(width, height, channels, values)?)
        }
        (..=16, true) => {
            let values = values.iter().map(|v| signed(*v) as i16).collect();
            Pixels::I16(Image::from_values(width, height, channels, values)?)
        }
        _ => {
            let number = |v: u32| if header.signed { f64::from(signed(v)) } else { f64::from(value(v)) };
            if let Some(lost) = values.iter().find(|v| f64::from(number(**v) as f32) != number(**v)) {
                return Err(crate::Error::Depth(format!(
                    "the value {} has more digits than 32-bit floats keep; store the image with up to 24 bits",
                    number(*lost)
                )));
            }
            let values = values.iter().map(|v| number(*v) as f32).collect();
            Pixels::F32(Image::from_values(width, height, channels, values)?)
        }
    };
    Ok(Raster { bits: if stored > 16 { 32 } else { bits }, pixels, ..Raster::default() })
}

/// PS3.3 C.7.6.3.1.2, rounded as usual.
fn ybr_to_rgb(pixel: &mut [u32; 3]) {
    let [y, b, r] = pixel.map(|v| v as f32);
    let (b, r) = (b - 128.0, r - 128.0);
    let rgb = [y + 1.402 * r, y - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r, y + 1.772 * b];
    *pixel = rgb.map(|v| (v + 0.5).floor().clamp(0.0, 255.0) as u32);
}

fn apply_palette(
    header: &Header,
    palette: &[(usize, i32, Vec<u16>); 3],
    indices: impl Iterator<Item = u32>,
) -> Result<Raster> {
    let mut data = Vec::with_capacity(header.rows * header.columns * 3);
    for index in indices {
        for (entries, first, table) in palette {
            // Indices outside the table take its ends (PS3.3 C.7.6.3.1.5).
            let at = (i64::from(index) - i64::from(*first)).clamp(0, *entries as i64 - 1) as usize;
            data.push(table[at] as u8);
        }
    }
    Ok(Raster::from(Image::new(header.columns, header.rows, 3, data)?))
}

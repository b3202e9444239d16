//! PNG, by the `png` crate.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Reader, Transformations};

use super::{Format, ImageInfo};
use crate::{Error, Image, Result};

pub(super) fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    // Signature, then IHDR: length 13, type, width, height, bit depth, colour type.
    let header = bytes.get(8..26).ok_or_else(|| corrupt("it ends inside the header".into()))?;
    if header[..8] != *b"\0\0\0\x0DIHDR" {
        return Err(corrupt("the first chunk is not IHDR".into()));
    }
    let side = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (width, height, bit_depth) = (side(8), side(12), header[16]);
    if width == 0 || height == 0 || width > i32::MAX as u32 || height > i32::MAX as u32 {
        return Err(corrupt(format!("a size of {width} × {height}")));
    }
    let channels = match header[17] {
        0 | 4 => 1,
        2 | 3 | 6 => 3,
        other => return Err(corrupt(format!("colour type {other}"))),
    };
    // Fewer than 8 bits are scaled up to 8.
    let (width, height, bit_depth) = (width as usize, height as usize, bit_depth.max(8));
    Ok(ImageInfo { width, height, channels, bit_depth, format: Format::Png, frames: 1, modality: None })
}

/// Up to 8 bits.
pub(super) fn decode_into(bytes: &[u8], info: &ImageInfo, image: &mut Image) -> Result<()> {
    let (mut reader, decoded) = open(bytes, info, BitDepth::Eight)?;
    // Expanded with alpha first, then alpha is dropped in place.
    image.reshape(info.width, info.height, decoded)?;
    read_frame(&mut reader, image.data_mut())?;
    if decoded != info.channels {
        drop_alpha(image.data_mut(), decoded, info.channels)?;
        image.reshape(info.width, info.height, info.channels)?;
    }
    Ok(())
}

/// 16 bits.
pub(super) fn decode_16(bytes: &[u8], info: &ImageInfo) -> Result<Image<u16>> {
    let (mut reader, decoded) = open(bytes, info, BitDepth::Sixteen)?;
    let mut data = vec![0; info.width * info.height * decoded * 2];
    read_frame(&mut reader, &mut data)?;
    let mut values: Vec<u16> = data.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect();
    if decoded != info.channels {
        drop_alpha(&mut values, decoded, info.channels)?;
        values.truncate(info.width * info.height * info.channels);
    }
    Image::from_values(info.width, info.height, info.channels, values)
}

/// The stored numbers of a grey or palette image: palette indices, grey values of 1 to 16 bits unscaled. `None` for an
/// image of colours, whose numbers mean nothing.
pub(super) fn decode_stored(bytes: &[u8], info: &ImageInfo) -> Result<Option<Image<u16>>> {
    let mut reader = reader(bytes, info, Transformations::IDENTITY)?;
    let (color, depth) = reader.output_color_type();
    let channels = match color {
        ColorType::Grayscale | ColorType::Indexed => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb | ColorType::Rgba => return Ok(None),
    };
    let bits = depth as usize;
    let row = (info.width * channels * bits).div_ceil(8);
    let mut data = vec![0; row * info.height];
    read_frame(&mut reader, &mut data)?;
    let value = |row: &[u8], i: usize| match bits {
        16 => u16::from_be_bytes([row[2 * i], row[2 * i + 1]]),
        8 => u16::from(row[i]),
        // The first pixel lies in the highest bits.
        _ => u16::from(row[i * bits / 8] >> (8 - bits - i * bits % 8)) & ((1 << bits) - 1),
    };
    let values = data.chunks_exact(row).flat_map(|row| (0..info.width).map(move |x| value(row, x * channels)));
    Image::from_values(info.width, info.height, 1, values.collect()).map(Some)
}

/// A reader of one frame at the depth stated, and the channels it gives, alpha included.
fn open<'a>(bytes: &'a [u8], info: &ImageInfo, wanted: BitDepth) -> Result<(Reader<Cursor<&'a [u8]>>, usize)> {
    let reader = reader(bytes, info, Transformations::EXPAND)?;
    let (color, depth) = reader.output_color_type();
    let decoded = match color {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
        ColorType::Indexed => return Err(corrupt("a palette that could not be expanded".into())),
    };
    if depth != wanted {
        return Err(corrupt("two headers that disagree".into()));
    }
    Ok((reader, decoded))
}

fn reader<'a>(bytes: &'a [u8], info: &ImageInfo, how: Transformations) -> Result<Reader<Cursor<&'a [u8]>>> {
    // Pixels are bounded by our own limits; this bounds what ancillary chunks may take.
    let budget = 64 << 20;
    let row_bytes = info.width.saturating_mul(8);
    let limits = Limits { bytes: row_bytes.saturating_mul(4).saturating_add(budget) };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(how);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder.read_info().map_err(|e| corrupt(e.to_string()))?;
    let header = reader.info();
    if header.width as usize != info.width || header.height as usize != info.height {
        return Err(corrupt("two headers that disagree".into()));
    }
    Ok(reader)
}

fn read_frame(reader: &mut Reader<Cursor<&[u8]>>, data: &mut [u8]) -> Result<()> {
    if reader.output_buffer_size() != Some(data.len()) {
        return Err(corrupt("a frame of another size than the header's".into()));
    }
    reader.next_frame(data).map_err(|e| corrupt(e.to_string()))?;
    // The chunks after the pixels carry check sums too, and a file cut there is cut.
    reader.finish().map_err(|e| corrupt(e.to_string()))
}

fn drop_alpha<T: Copy>(data: &mut [T], from: usize, to: usize) -> Result<()> {
    if from != to + 1 {
        return Err(corrupt(format!("{from} channels where {to} or {} were expected", to + 1)));
    }
    for pixel in 0..data.len() / from {
        data.copy_within(pixel * from..pixel * from + to, pixel * to);
    }
    Ok(())
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { format: "PNG", reason }
}

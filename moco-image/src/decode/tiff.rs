//! TIFF, by the `tiff` crate: grey and RGB of 8 and 16 bits, signed 16 bits and floats, CMYK of 8 bits; each page is an
//! image. The orientation that a page states is applied, as PIL applies it.

use std::io::Cursor;

use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits as TiffLimits};
use tiff::tags::{SampleFormat, Tag};
use tiff::{ColorType, TiffError};

use super::{Format, ImageInfo, Limits};
use crate::{Error, Image, Pixels, Raster, Result};

/// More pages than any honest file has.
const MOST_PAGES: usize = 1 << 16;

/// What the first page says, and the number of pages.
pub(super) fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    caught(|| probe_pages(bytes))
}

/// Decodes a page.
pub(super) fn read(bytes: &[u8], page: usize, limits: &Limits) -> Result<Raster> {
    caught(|| read_page(bytes, page, limits))
}

/// The crate asserts what hostile files contradict.
fn caught<T>(work: impl FnOnce() -> Result<T> + std::panic::UnwindSafe) -> Result<T> {
    std::panic::catch_unwind(work).unwrap_or_else(|_| Err(corrupt("its parts contradict each other".into())))
}

fn probe_pages(bytes: &[u8]) -> Result<ImageInfo> {
    let mut decoder = open(bytes, 0)?;
    let kind = Kind::of(&mut decoder)?;
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    let (width, height) = upright(orientation(&mut decoder)?, width as usize, height as usize);
    let mut frames = 1;
    while decoder.more_images() {
        decoder.next_image().map_err(damaged)?;
        frames += 1;
        if frames > MOST_PAGES {
            return Err(Error::TooLarge { what: "more pages".into(), limit: format!("{MOST_PAGES} pages") });
        }
    }
    let bit_depth = if kind.floats { 32 } else { kind.bits.max(8) };
    Ok(ImageInfo { width, height, channels: kind.channels, bit_depth, format: Format::Tiff, frames, modality: None })
}

fn read_page(bytes: &[u8], page: usize, limits: &Limits) -> Result<Raster> {
    let mut decoder = open(bytes, page)?;
    let kind = Kind::of(&mut decoder)?;
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    let (width, height) = (width as usize, height as usize);
    let bits = usize::from(kind.bits) * kind.stored_channels;
    limits.check_decoded(width, height, bits, bytes.len())?;
    let mut most = TiffLimits::unlimited();
    most.decoding_buffer_size = (width * height * bits).div_ceil(8).saturating_add(8 * height);
    most.intermediate_buffer_size = most.decoding_buffer_size.saturating_add(bytes.len()).max(1 << 20);
    most.ifd_value_size = bytes.len().max(1 << 20);
    let mut decoder = decoder.with_limits(most);
    let layout = decoder.image_buffer_layout().map_err(damaged)?;
    if layout.planes > 1 && decoder.get_chunk_type() == ChunkType::Tile {
        return Err(Error::Unsupported("a TIFF of tiles whose channels lie apart; convert it to PNG".into()));
    }
    let orientation = orientation(&mut decoder)?;
    let mut result = DecodingResult::U8(Vec::new());
    decoder.read_image_to_buffer(&mut result).map_err(damaged)?;
    let shape = Shape { width, height, planar: layout.planes > 1, orientation, kind };
    Ok(match result {
        DecodingResult::U8(values) if shape.kind.bits < 8 => small(&shape, &values)?,
        DecodingResult::U8(values) => {
            Raster::from(shape.image(values, |k, c| ((255 - u32::from(c)) * (255 - u32::from(k)) / 255) as u8)?)
        }
        DecodingResult::U16(values) => {
            let pixels = Pixels::U16(
                shape.image(values, |k, c| ((65535 - u64::from(c)) * (65535 - u64::from(k)) / 65535) as u16)?,
            );
            Raster { pixels, bits: shape.kind.bits, ..Raster::default() }
        }
        DecodingResult::I8(values) => shape.signed(values.into_iter().map(i16::from).collect())?,
        DecodingResult::I16(values) => shape.signed(values)?,
        DecodingResult::F16(values) => shape.floats(values.into_iter().map(f32::from).collect())?,
        DecodingResult::F32(values) => shape.floats(values)?,
        DecodingResult::F64(values) => shape.floats(values.into_iter().map(|v| v as f32).collect())?,
        DecodingResult::U32(values) => shape.floats(exact(values.into_iter().map(f64::from))?)?,
        DecodingResult::I32(values) => shape.floats(exact(values.into_iter().map(f64::from))?)?,
        DecodingResult::U64(_) | DecodingResult::I64(_) => {
            return Err(Error::Unsupported("a TIFF of 64-bit integers".into()));
        }
    })
}

/// Integers as floats, if all of them survive that.
fn exact(values: impl Iterator<Item = f64>) -> Result<Vec<f32>> {
    let one = |value: f64| if f64::from(value as f32) == value { Ok(value as f32) } else { Err(value) };
    values.map(one).collect::<std::result::Result<_, _>>().map_err(|value| {
        Error::Depth(format!("the value {value} has more digits than 32-bit floats keep; store up to 24 bits"))
    })
}

fn open(bytes: &[u8], page: usize) -> Result<Decoder<Cursor<&[u8]>>> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(damaged)?;
    if page > 0 {
        decoder.seek_to_image(page).map_err(damaged)?;
    }
    Ok(decoder)
}

/// What a value is.
#[derive(Clone, Copy)]
struct Kind {
    bits: u8,
    floats: bool,
    stored_channels: usize,
    /// After alpha is dropped and CMYK made RGB.
    channels: usize,
    cmyk: bool,
}

impl Kind {
    fn of(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<Self> {
        let fill_order: Option<u16> = decoder.find_tag_unsigned(Tag::FillOrder).map_err(damaged)?;
        if fill_order == Some(2) {
            return Err(Error::Unsupported("a TIFF whose bytes are filled from the low bit (FillOrder 2)".into()));
        }
        let color = decoder.colortype().map_err(damaged)?;
        let format: Option<u16> = decoder
            .find_tag_unsigned_vec(Tag::SampleFormat)
            .map_err(damaged)?
            .and_then(|f: Vec<u16>| f.first().copied());
        let floats = format == Some(SampleFormat::IEEEFP.to_u16());
        let (bits, stored_channels, channels, cmyk) = match color {
            ColorType::Gray(bits) => (bits, 1, 1, false),
            ColorType::GrayA(bits) => (bits, 2, 1, false),
            ColorType::RGB(bits) | ColorType::YCbCr(bits) => (bits, 3, 3, false),
            ColorType::RGBA(bits) => (bits, 4, 3, false),
            ColorType::CMYK(bits) => (bits, 4, 3, true),
            ColorType::Multiband { bit_depth, num_samples } => {
                (bit_depth, usize::from(num_samples), usize::from(num_samples), false)
            }
            other => return Err(Error::Unsupported(format!("a TIFF of colours {other:?}; convert it to RGB"))),
        };
        if stored_channels == 0 || stored_channels > 64 || bits == 0 || (bits < 8 && stored_channels > 1) {
            return Err(Error::Unsupported(format!("a TIFF of {stored_channels} channels of {bits} bits")));
        }
        if cmyk && !matches!(bits, 8 | 16) {
            return Err(Error::Unsupported(format!("a CMYK TIFF of {bits} bits")));
        }
        Ok(Self { bits, floats: floats || bits > 16, stored_channels, channels, cmyk })
    }
}

struct Shape {
    width: usize,
    height: usize,
    /// Channel after channel.
    planar: bool,
    /// 1 to 8, as in EXIF.
    orientation: u16,
    kind: Kind,
}

impl Shape {
    /// Interleaves planes, drops alpha and turns CMYK into RGB by `mix(black, ink)`.
    fn image<T: Copy + Default>(&self, values: Vec<T>, mix: impl Fn(T, T) -> T) -> Result<Image<T>> {
        let Kind { stored_channels: stored, channels, cmyk, .. } = self.kind;
        let pixels = self.width * self.height;
        if values.len() != pixels * stored {
            return Err(corrupt(format!("{} values for {pixels} pixels of {stored} channels", values.len())));
        }
        let at =
            |pixel: usize, c: usize| if self.planar { values[c * pixels + pixel] } else { values[pixel * stored + c] };
        if !self.planar && stored == channels && self.orientation == 1 {
            return Image::from_values(self.width, self.height, channels, values);
        }
        let mut data = Vec::with_capacity(pixels * channels);
        let (width, height) = upright(self.orientation, self.width, self.height);
        for i in 0..pixels {
            let pixel = self.stored_at(i % width, i / width);
            for c in 0..channels {
                data.push(if cmyk { mix(at(pixel, 3), at(pixel, c)) } else { at(pixel, c) });
            }
        }
        Image::from_values(width, height, channels, data)
    }

    /// Where the pixel of an upright image is stored.
    fn stored_at(&self, x: usize, y: usize) -> usize {
        let (right, bottom) = (self.width - 1, self.height - 1);
        let (x, y) = match self.orientation {
            2 => (right - x, y),
            3 => (right - x, bottom - y),
            4 => (x, bottom - y),
            5 => (y, x),
            6 => (y, bottom - x),
            7 => (right - y, bottom - x),
            8 => (right - y, x),
            _ => (x, y),
        };
        y * self.width + x
    }

    fn signed(&self, values: Vec<i16>) -> Result<Raster> {
        self.no_cmyk()?;
        Ok(Raster { pixels: Pixels::I16(self.image(values, |_, c| c)?), bits: self.kind.bits, ..Raster::default() })
    }

    fn floats(&self, values: Vec<f32>) -> Result<Raster> {
        self.no_cmyk()?;
        Ok(Raster { pixels: Pixels::F32(self.image(values, |_, c| c)?), bits: 32, ..Raster::default() })
    }

    fn no_cmyk(&self) -> Result<()> {
        if self.kind.cmyk { Err(Error::Unsupported("a CMYK TIFF of signed values or floats".into())) } else { Ok(()) }
    }
}

/// Grey of fewer than 8 bits, rows padded to bytes, scaled up to 8 bits as PNG's.
fn small(shape: &Shape, packed: &[u8]) -> Result<Raster> {
    let bits = usize::from(shape.kind.bits);
    if !matches!(bits, 1 | 2 | 4) {
        return Err(Error::Unsupported(format!("a TIFF of {bits} bits a value")));
    }
    let row_bytes = (shape.width * bits).div_ceil(8);
    if packed.len() < row_bytes * shape.height {
        return Err(corrupt("rows are missing".into()));
    }
    let most = (1u16 << bits) - 1;
    let mut data = Vec::with_capacity(shape.width * shape.height);
    for row in packed.chunks_exact(row_bytes).take(shape.height) {
        for x in 0..shape.width {
            let value = u16::from(row[x * bits / 8] >> (8 - bits - x * bits % 8)) & most;
            data.push((value * 255 / most) as u8);
        }
    }
    Ok(Raster::from(shape.image(data, |_, c| c)?))
}

/// Orientation of a page, 1 to 8.
fn orientation(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<u16> {
    let stated: Option<u16> = decoder.find_tag_unsigned(Tag::Orientation).map_err(damaged)?;
    Ok(stated.filter(|o| (1..=8).contains(o)).unwrap_or(1))
}

/// Width and height when it is upright.
fn upright(orientation: u16, width: usize, height: usize) -> (usize, usize) {
    if orientation >= 5 { (height, width) } else { (width, height) }
}

fn damaged(error: TiffError) -> Error {
    match error {
        TiffError::UnsupportedError(what) => Error::Unsupported(format!("a TIFF: {what}; convert it to PNG")),
        TiffError::LimitsExceeded => {
            Error::TooLarge { what: "a TIFF part larger than its page".into(), limit: "its page".into() }
        }
        other => corrupt(other.to_string()),
    }
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { format: "TIFF", reason }
}

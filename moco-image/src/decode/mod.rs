//! JPEG and PNG files to 8-bit grey or RGB pixels, as PIL decodes them.

mod jpeg;
mod png;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::{Error, Image, Result};

/// What a file may cost before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest width × height, checked on the header before any pixel is decoded.
    pub max_pixels: u64,
    /// Largest encoded size in bytes.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// 178 956 970 pixels (where PIL refuses, twice its warning of 1/4 GiB of RGB) and 512 MiB of file.
    fn default() -> Self {
        Self { max_pixels: 178_956_970, max_bytes: 512 << 20 }
    }
}

/// Format of an encoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
}

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels that [`decode`] gives: 1 or 3.
    pub channels: usize,
    /// Bits a value in the file.
    pub bit_depth: u8,
    /// Format.
    pub format: Format,
}

/// Reads a file's header only.
///
/// # Errors
/// [`Error::UnknownFormat`], [`Error::Corrupt`] or [`Error::Unsupported`].
pub fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    match format_of(bytes)? {
        Format::Jpeg => jpeg::probe(bytes),
        Format::Png => png::probe(bytes),
    }
}

/// Decodes a JPEG or PNG to 1 channel (grey files) or 3 (all others), 8 bits.
///
/// - The EXIF orientation is ignored, as PIL ignores it until asked.
/// - PNG: palettes become RGB, 1, 2 and 4 bits grey are scaled to 8, alpha is dropped without blending (as PIL's
///   `convert("RGB")`, `convert("L")`), interlaced files are read. 16 bits are refused, never silently cut.
/// - JPEG: YCbCr and RGB become RGB; CMYK and YCCK become RGB as `(255 − c)(255 − k) / 255`, as PIL's
///   `convert("RGB")`. A few values in a hundred differ from libjpeg-turbo's (PIL's) by two grey levels or, one in a
///   thousand, more: inverse DCT and chroma interpolation round elsewhere. Pictures under 8 pixels wide or high with
///   subsampled chroma are further off.
///
/// # Errors
/// [`Error::TooLarge`] above the limits, [`Error::Corrupt`] for truncated or contradictory files,
/// [`Error::Unsupported`] for kinds not read, [`Error::UnknownFormat`] for anything else. Never panics.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image> {
    let mut image = Image::default();
    decode_into(bytes, limits, &mut image)?;
    Ok(image)
}

/// As [`decode`], into an image whose buffer is reused.
///
/// # Errors
/// As [`decode`]; the image's values are unspecified then.
pub fn decode_into(bytes: &[u8], limits: &Limits, image: &mut Image) -> Result<()> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(Error::TooLarge {
            what: format!("{} encoded bytes", bytes.len()),
            limit: format!("{} bytes", limits.max_bytes),
        });
    }
    let info = probe(bytes)?;
    let pixels = info.width as u64 * info.height as u64;
    if pixels > limits.max_pixels {
        return Err(Error::TooLarge {
            what: format!("{} × {} = {pixels} pixels", info.width, info.height),
            limit: format!("{} pixels", limits.max_pixels),
        });
    }
    match info.format {
        Format::Jpeg => jpeg::decode_into(bytes, &info, image),
        Format::Png => png::decode_into(bytes, &info, image),
    }
}

/// As [`decode`], from a file; errors carry its path.
///
/// # Errors
/// As [`decode`], and [`Error::Io`].
pub fn decode_file(path: &Path, limits: &Limits) -> Result<Image> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io)?.len();
    let in_file = |source| Error::File { path: path.to_owned(), source: Box::new(source) };
    if len > limits.max_bytes {
        let (what, limit) = (format!("{len} encoded bytes"), format!("{} bytes", limits.max_bytes));
        return Err(in_file(Error::TooLarge { what, limit }));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    decode(&bytes, limits).map_err(in_file)
}

fn format_of(bytes: &[u8]) -> Result<Format> {
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        return Ok(Format::Jpeg);
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    let what = match bytes {
        [] => "the file is empty".to_owned(),
        [b'G', b'I', b'F', b'8', ..] => "it is a GIF; convert it to PNG".to_owned(),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            "it is a WebP; convert it to PNG".to_owned()
        }
        [b'B', b'M', ..] => "it looks like a BMP; convert it to PNG".to_owned(),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "it is a TIFF; convert it to PNG".to_owned(),
        [0x89, b'P', b'N', b'G', ..] => "its PNG signature is damaged, as by a transfer in text mode".to_owned(),
        _ => {
            let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("it starts with the bytes {}", start.join(" "))
        }
    };
    Err(Error::UnknownFormat(what))
}

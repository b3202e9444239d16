//! Image files to pixels: JPEG and PNG as PIL decodes them, and where the features are on TIFF, DICOM and NIfTI, at the
//! depth they have.

#[cfg(feature = "dicom")]
mod dicom;
mod file;
mod jpeg;
mod labels;
#[cfg(feature = "nifti")]
mod nifti;
mod png;
#[cfg(test)]
mod tests;
#[cfg(feature = "tiff")]
mod tiff;

use std::path::Path;

use crate::{Error, Image, Result, ValueRange};
pub use file::{Axis, ImageFile, ReadOptions};
pub use labels::read_labels;

/// What a file may cost before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest width × height, checked on the header before any pixel is decoded.
    pub max_pixels: u64,
    /// Largest encoded size in bytes.
    pub max_bytes: u64,
    /// Largest ratio of decoded to encoded bytes, for what takes more than 64 MiB decoded: honest pictures stay far
    /// below, decompression bombs don't.
    pub max_ratio: u64,
}

impl Default for Limits {
    /// 178 956 970 pixels (where PIL refuses, twice its warning of 1/4 GiB of RGB), 512 MiB of file, and a ratio of 500.
    fn default() -> Self {
        Self { max_pixels: 178_956_970, max_bytes: 512 << 20, max_ratio: 500 }
    }
}

impl Limits {
    /// Refuses a file of so many bytes.
    pub(crate) fn check_encoded(&self, bytes: u64) -> Result<()> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        let (what, limit) = (format!("{bytes} encoded bytes"), format!("{} bytes", self.max_bytes));
        Err(Error::TooLarge { what, limit })
    }

    /// Refuses what would be decoded from so many bytes; `bits` are those of a pixel.
    pub(crate) fn check_decoded(&self, width: usize, height: usize, bits: usize, encoded: usize) -> Result<()> {
        let pixels = width as u64 * height as u64;
        if pixels > self.max_pixels {
            let (what, limit) =
                (format!("{width} × {height} = {pixels} pixels"), format!("{} pixels", self.max_pixels));
            return Err(Error::TooLarge { what, limit });
        }
        self.check_unpacked(pixels.saturating_mul(bits as u64) / 8, encoded)
    }

    /// Refuses a header that promises more images than so many bytes can hold, before anyone counts them.
    pub(crate) fn check_frames(&self, info: &ImageInfo, encoded: u64) -> Result<()> {
        if info.frames <= 1 {
            return Ok(());
        }
        if info.frames as u64 > MAX_FRAMES {
            let (what, limit) = (format!("{} frames", info.frames), format!("{MAX_FRAMES} frames"));
            return Err(Error::TooLarge { what, limit });
        }
        let bits = [info.width, info.height, info.channels, info.frames]
            .iter()
            .fold(u64::from(info.bit_depth), |n, &side| n.saturating_mul(side as u64));
        self.check_unpacked(bits / 8, usize::try_from(encoded).unwrap_or(usize::MAX))
    }

    /// Refuses so many bytes from so few.
    pub(crate) fn check_unpacked(&self, decoded: u64, encoded: usize) -> Result<()> {
        let allowed = (encoded as u64).saturating_mul(self.max_ratio).max(64 << 20);
        if decoded > allowed {
            let (what, limit) = (format!("{decoded} bytes out of {encoded}"), format!("{} : 1", self.max_ratio));
            return Err(Error::TooLarge { what, limit });
        }
        Ok(())
    }
}

/// Images in one file.
const MAX_FRAMES: u64 = 1 << 20;

/// Format of an encoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
    /// TIFF; needs the feature `tiff`.
    Tiff,
    /// DICOM; needs the feature `dicom`.
    Dicom,
    /// NIfTI; needs the feature `nifti`.
    Nifti,
}

/// What a file's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels that [`decode`] gives: 1 or 3.
    pub channels: usize,
    /// Significant bits a value in the file; 32 for floats.
    pub bit_depth: u8,
    /// Format.
    pub format: Format,
    /// Images in the file: frames, slices or pages.
    pub frames: usize,
    /// DICOM's modality, e.g. `CT`.
    pub modality: Option<String>,
}

/// Reads a file's header only; what follows the header may be missing, except in a TIFF.
///
/// # Errors
/// [`Error::UnknownFormat`], [`Error::Corrupt`] or [`Error::Unsupported`].
pub fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    probe_start(bytes, &ReadOptions::default())
}

#[cfg_attr(not(any(feature = "dicom", feature = "nifti")), expect(unused_variables, reason = "for volumes"))]
fn probe_start(bytes: &[u8], options: &ReadOptions) -> Result<ImageInfo> {
    match format_of(bytes)? {
        Format::Jpeg => jpeg::probe(bytes),
        Format::Png => png::probe(bytes),
        #[cfg(feature = "tiff")]
        Format::Tiff => tiff::probe(bytes),
        #[cfg(feature = "dicom")]
        Format::Dicom => dicom::probe(bytes, &options.limits),
        #[cfg(feature = "nifti")]
        Format::Nifti => nifti::Nifti::probe(bytes, options.axis).map(|file| file.info()),
        #[cfg(not(all(feature = "tiff", feature = "dicom", feature = "nifti")))]
        other => Err(not_built(other)),
    }
}

#[cfg(not(all(feature = "tiff", feature = "dicom", feature = "nifti")))]
fn not_built(format: Format) -> Error {
    let name = format!("{format:?}");
    Error::Unsupported(format!("{name}: this build lacks the feature `{}` of moco-image", name.to_lowercase()))
}

/// Decodes a file that holds one 8-bit image to 1 channel (grey files) or 3 (all others).
///
/// - The EXIF orientation is ignored, as PIL ignores it until asked.
/// - PNG: palettes become RGB, 1, 2 and 4 bits grey are scaled to 8, alpha is dropped without blending (as PIL's
///   `convert("RGB")`, `convert("L")`), interlaced files are read.
/// - JPEG: YCbCr and RGB become RGB; CMYK and YCCK become RGB as `(255 − c)(255 − k) / 255`, as PIL's
///   `convert("RGB")`. A few values in a hundred differ from libjpeg-turbo's (PIL's) by two grey levels or, one in a
///   thousand, more: inverse DCT and chroma interpolation round elsewhere. Pictures under 8 pixels wide or high with
///   subsampled chroma are further off.
/// - Files of other depths and of several images are refused, never silently cut: [`ImageFile`] reads them.
///
/// # Errors
/// [`Error::TooLarge`] above the limits, [`Error::Corrupt`] for truncated or contradictory files, [`Error::Depth`] for
/// other depths, [`Error::Unsupported`] for kinds not read, [`Error::UnknownFormat`] for anything else. Never panics.
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
    limits.check_encoded(bytes.len() as u64)?;
    let format = format_of(bytes)?;
    if matches!(format, Format::Jpeg | Format::Png) {
        let info = probe(bytes)?;
        if info.bit_depth > 8 {
            return Err(not_8_bits(&format!("{} bits", info.bit_depth)));
        }
        return decode_picture(bytes, &info, limits, image);
    }
    let file = ImageFile::open(bytes.to_vec(), &ReadOptions { limits: *limits, ..ReadOptions::default() })?;
    if file.frames() > 1 {
        return Err(Error::Shape(format!(
            "{} images in one file: open it as an ImageFile and choose one",
            file.frames()
        )));
    }
    let raster = file.read(0)?;
    if !raster.is_8_bit() {
        return Err(not_8_bits(&raster.depth_in_words()));
    }
    raster.to_8_bits_into(ValueRange::Full, image)
}

fn not_8_bits(depth: &str) -> Error {
    Error::Depth(format!(
        "the image has {depth} a value, 8 are read here: open it as an ImageFile and say which values become black and \
         white"
    ))
}

/// JPEG and PNG of up to 8 bits.
fn decode_picture(bytes: &[u8], info: &ImageInfo, limits: &Limits, image: &mut Image) -> Result<()> {
    limits.check_decoded(info.width, info.height, 8 * info.channels, bytes.len())?;
    match info.format {
        Format::Jpeg => jpeg::decode_into(bytes, info, image),
        _ => png::decode_into(bytes, info, image),
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
    limits.check_encoded(len).map_err(in_file)?;
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
    // Before TIFF: a DICOM file's first 128 bytes are free, and some hold a TIFF's header.
    if bytes.get(128..132) == Some(b"DICM") {
        return Ok(Format::Dicom);
    }
    // TIFF and BigTIFF, in either byte order.
    if matches!(bytes, [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..]) {
        return Ok(Format::Tiff);
    }
    #[cfg(feature = "dicom")]
    if dicom::is_dicom(bytes) {
        return Ok(Format::Dicom);
    }
    #[cfg(feature = "nifti")]
    if nifti::is_nifti(bytes) {
        return Ok(Format::Nifti);
    }
    #[cfg(not(feature = "nifti"))]
    if matches!(bytes.get(344..348), Some(b"n+1\0" | b"ni1\0")) {
        return Ok(Format::Nifti);
    }
    let what = match bytes {
        [] => "the file is empty".to_owned(),
        [b'G', b'I', b'F', b'8', ..] => "it is a GIF; convert it to PNG".to_owned(),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            "it is a WebP; convert it to PNG".to_owned()
        }
        [b'B', b'M', ..] => "it looks like a BMP; convert it to PNG".to_owned(),
        [0x1F, 0x8B, ..] => "it is gzip, but no volume (.nii.gz) inside".to_owned(),
        [0, 0, 0, 12, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "it is JPEG 2000; convert it to PNG".to_owned(),
        [0x89, b'P', b'N', b'G', ..] => "its PNG signature is damaged, as by a transfer in text mode".to_owned(),
        _ => {
            let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("it starts with the bytes {}", start.join(" "))
        }
    };
    Err(Error::UnknownFormat(what))
}

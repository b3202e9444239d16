//! JPEG: the frame header read here, so that what is unsupported is said in words; the pixels by `zune-jpeg`.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Format, ImageInfo};
use crate::{Error, Image, Result};

pub(super) fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    let frame = find_frame(bytes)?;
    let unsupported = |kind: &str| Err(Error::Unsupported(format!("{kind} JPEG; convert it to baseline JPEG or PNG")));
    match frame.marker {
        0xC0..=0xC2 => {}
        0xC3 | 0xC7 | 0xCB | 0xCF => return unsupported("a lossless"),
        0xC5 | 0xC6 | 0xCD | 0xCE => return unsupported("a hierarchical"),
        _ => return unsupported("an arithmetic-coded"),
    }
    if frame.precision != 8 {
        return Err(Error::Unsupported(format!("a JPEG of {} bits a value, only 8 are read", frame.precision)));
    }
    let channels = match frame.components {
        1 => 1,
        3 | 4 => 3,
        n => return Err(corrupt(format!("{n} components, expected 1 (grey), 3 (colour) or 4 (CMYK)"))),
    };
    if frame.width == 0 || frame.height == 0 {
        return Err(corrupt(format!("a size of {} × {}", frame.width, frame.height)));
    }
    Ok(ImageInfo {
        width: frame.width,
        height: frame.height,
        channels,
        bit_depth: frame.precision,
        format: Format::Jpeg,
        frames: 1,
        modality: None,
    })
}

pub(super) fn decode_into(bytes: &[u8], info: &ImageInfo, image: &mut Image) -> Result<()> {
    let output = if info.channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    decode_as(bytes, info, output, image)
}

/// As [`decode_into`], for a frame of a DICOM file: three channels without the mark of JFIF or Adobe are what the file
/// says, RGB if `is_rgb`.
#[cfg(feature = "dicom")]
pub(super) fn decode_into_as(bytes: &[u8], info: &ImageInfo, is_rgb: bool, image: &mut Image) -> Result<()> {
    let marked = (Segments { rest: bytes.get(2..).unwrap_or_default() })
        .take_while(|segment| !matches!(segment, Ok((SOS, _)) | Err(_)))
        .any(|segment| match segment {
            Ok((0xE0, data)) => data.starts_with(b"JFIF"),
            Ok((0xEE, data)) => data.len() >= 12 && data.starts_with(b"Adobe"),
            _ => false,
        });
    match info.channels {
        3 if is_rgb && !marked => decode_as(bytes, info, ColorSpace::YCbCr, image),
        _ => decode_into(bytes, info, image),
    }
}

/// Process (the marker's second byte) and bits of the first frame.
#[cfg(feature = "dicom")]
pub(super) fn frame_kind(bytes: &[u8]) -> Option<(u8, u8)> {
    let frame = find_frame(bytes).ok()?;
    Some((frame.marker, frame.precision))
}

/// `output` YCbCr leaves three channels as they are.
fn decode_as(bytes: &[u8], info: &ImageInfo, output: ColorSpace, image: &mut Image) -> Result<()> {
    if !has_end(bytes) {
        return Err(corrupt("it ends before the end marker: the file is truncated".into()));
    }
    // Strict, or damaged data would come out as a picture with a grey end.
    match decode_strictly(bytes, info, output, image) {
        Err(Failure::Header(reason)) => {
            // Stray bytes and odd comments between header segments are harmless and common: once more without them.
            let clean = without_clutter(bytes).ok_or(Error::Corrupt { format: "JPEG", reason })?;
            decode_strictly(&clean, info, output, image).map_err(|failure| corrupt(failure.reason()))
        }
        other => other.map_err(|failure| corrupt(failure.reason())),
    }
}

enum Failure {
    Header(String),
    Data(String),
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Failure::Header(reason) | Failure::Data(reason) => reason,
        }
    }
}

fn decode_strictly(
    bytes: &[u8],
    info: &ImageInfo,
    output: ColorSpace,
    image: &mut Image,
) -> std::result::Result<(), Failure> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(output);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| Failure::Header(e.to_string()))?;
    image.reshape(info.width, info.height, info.channels).map_err(|e| Failure::Data(e.to_string()))?;
    if decoder.output_buffer_size() != Some(image.data().len()) {
        return Err(Failure::Data("two frame headers that disagree".into()));
    }
    decoder.decode_into(image.data_mut()).map_err(|e| Failure::Data(e.to_string()))
}

/// The file with only those header segments that decoding needs: tables, frame, restart interval, Adobe's colour mark.
fn without_clutter(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut clean = vec![0xFF, 0xD8];
    let mut segments = Segments { rest: &bytes[2..] };
    while let Some(Ok((marker, segment))) = segments.next() {
        let needed = match marker {
            0xC0..=0xCF | 0xDB | 0xDD => true,
            0xEE => segment.len() >= 12 && segment.starts_with(b"Adobe"),
            _ => false,
        };
        if marker == SOS {
            clean.extend([0xFF, SOS]);
            clean.extend(segments.rest);
            return Some(clean);
        }
        if needed {
            clean.extend([0xFF, marker]);
            clean.extend(((segment.len() + 2) as u16).to_be_bytes());
            clean.extend(segment);
        }
    }
    None
}

const SOS: u8 = 0xDA;

struct Frame {
    marker: u8,
    precision: u8,
    width: usize,
    height: usize,
    components: u8,
}

/// The first start-of-frame segment (ITU T.81 B.2.2).
fn find_frame(bytes: &[u8]) -> Result<Frame> {
    for segment in (Segments { rest: bytes.get(2..).unwrap_or_default() }) {
        let (marker, segment) = segment?;
        match marker {
            SOS => return Err(corrupt("no frame header before the image data".into())),
            0xC4 | 0xC8 | 0xCC => {}
            0xC0..=0xCF => {
                let [precision, h1, h0, w1, w0, components, ..] = *segment else {
                    return Err(corrupt("a frame header that is too short".into()));
                };
                let (width, height) = (u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
                return Ok(Frame { marker, precision, width, height, components });
            }
            _ => {}
        }
    }
    Err(corrupt("no frame header".into()))
}

/// Whether an end marker follows the header; entropy-coded data cannot contain one. The decoder itself does not miss
/// the last few bytes.
fn has_end(bytes: &[u8]) -> bool {
    let mut segments = Segments { rest: &bytes[2..] };
    let has_data = segments.by_ref().any(|segment| matches!(segment, Ok((SOS, _))));
    has_data && segments.rest.windows(2).any(|pair| pair == [0xFF, 0xD9])
}

/// The header's segments, up to and including the start of scan (whose data is `rest`, from its length on).
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Bytes between segments are skipped as libjpeg does, and a marker may be preceded by any number of FF.
            let start = self.rest.iter().position(|&b| b == 0xFF)?;
            let fill = self.rest[start..].iter().take_while(|&&b| b == 0xFF).count();
            let (&marker, after) = self.rest[start + fill..].split_first()?;
            self.rest = after;
            match marker {
                0x00 | 0x01 | 0xD0..=0xD8 => continue,
                0xD9 => return None,
                SOS => return Some(Ok((SOS, &[]))),
                _ => {}
            }
            let length = match after {
                [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                _ => return Some(Err(corrupt("it ends inside a segment".into()))),
            };
            if length < 2 || length > after.len() {
                self.rest = &[];
                let reason = format!("segment FF{marker:02X} of {length} bytes, {} are left", after.len());
                return Some(Err(corrupt(reason)));
            }
            self.rest = &after[length..];
            return Some(Ok((marker, &after[2..length])));
        }
    }
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { format: "JPEG", reason }
}

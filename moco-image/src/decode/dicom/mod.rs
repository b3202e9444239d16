//! DICOM files: single and multi-frame images, uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000. Elements, RLE, JPEG-LS and
//! the JPEG processes of medical files are read here, so that no length of a file is believed unchecked and no nesting is recursed into.

mod elements;
mod header;
mod jpeg2000;
mod jpeg_huffman;
mod jpeg_ls;
mod pixels;
mod rle;

use std::ops::Range;

use super::{Format, ImageInfo, Limits, jpeg};
use crate::{Error, Image, Pixels, Raster, Result};
use elements::corrupt;
pub(super) use header::is_dicom;
use header::{Header, PixelData};

/// An opened file; its bytes are kept by the caller.
pub(super) struct Dicom {
    header: Header,
    limits: Limits,
    /// Where each frame's compressed bytes are.
    frames: Vec<Vec<Range<usize>>>,
}

impl Dicom {
    /// Reads the header; `bytes` are inflated if they were deflated.
    pub fn open(bytes: &mut Vec<u8>, limits: &Limits) -> Result<Self> {
        let encoded = bytes.len();
        let header = Header::read(bytes, limits, true)?;
        check_kind(&header)?;
        // A run of RLE makes 128 bytes of 2; JPEG and JPEG 2000 have blocks of a bit.
        limits.check_decoded(header.columns, header.rows, header.bits_allocated * header.samples, encoded)?;
        let frames = match &header.pixels {
            PixelData::Encapsulated(fragments) => frames_of(bytes, &header, fragments)?,
            PixelData::Native { range, .. } | PixelData::Floats { range, .. } => {
                let bits = pixels::frame_bits(&header)?.checked_mul(header.frames);
                let needed = bits.map(|bits| bits.div_ceil(8));
                if needed.is_none_or(|n| n > range.len()) {
                    return Err(corrupt(format!(
                        "{} frame(s) of {} × {} need {} bytes, {} are there: the file is truncated or its header wrong",
                        header.frames,
                        header.columns,
                        header.rows,
                        needed.map_or("too many".into(), |n| n.to_string()),
                        range.len()
                    )));
                }
                Vec::new()
            }
            PixelData::Absent => return Err(corrupt("it holds no pixels".into())),
        };
        Ok(Self { header, limits: *limits, frames })
    }

    pub fn info(&self) -> ImageInfo {
        info(&self.header)
    }

    /// Decodes one frame.
    pub fn read(&self, bytes: &[u8], frame: usize) -> Result<Raster> {
        let header = &self.header;
        let mut raster = match &header.pixels {
            PixelData::Encapsulated(_) => self.read_compressed(bytes, frame)?,
            PixelData::Floats { range, double } => pixels::floats(header, &bytes[range.clone()], *double, frame)?,
            PixelData::Native { range, words } => {
                let values = pixels::native(header, &bytes[range.clone()], *words, frame)?;
                pixels::finish(header, values, header.planar)?
            }
            PixelData::Absent => return Err(corrupt("it holds no pixels".into())),
        };
        (raster.rescale, raster.window) = header.units(bytes, frame)?;
        raster.inverted = header.photometric == "MONOCHROME1";
        Ok(raster)
    }

    fn read_compressed(&self, bytes: &[u8], frame: usize) -> Result<Raster> {
        let header = &self.header;
        let joined: Vec<u8>;
        let data = match &self.frames[frame][..] {
            [one] => &bytes[one.clone()],
            several => {
                joined = several.iter().flat_map(|fragment| &bytes[fragment.clone()]).copied().collect();
                &joined
            }
        };
        let size = (header.rows, header.columns);
        match &*header.transfer_syntax {
            RLE => {
                let values = rle::decode(data, size.0 * size.1, header.samples, header.bits_allocated.div_ceil(8))?;
                pixels::finish(header, values, false)
            }
            "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91" => {
                pixels::finish_rgb(header, jpeg2000::decode(data, size, header.samples)?)
            }
            "1.2.840.10008.1.2.4.50"
            | "1.2.840.10008.1.2.4.51"
            | "1.2.840.10008.1.2.4.57"
            | "1.2.840.10008.1.2.4.70" => match jpeg::frame_kind(data) {
                Some((0xC0..=0xC2, 8)) => self.read_picture(data),
                _ => pixels::finish(header, jpeg_huffman::decode(data, size, header.samples)?, false),
            },
            "1.2.840.10008.1.2.4.80" | "1.2.840.10008.1.2.4.81" => {
                pixels::finish(header, jpeg_ls::decode(data, size, header.samples)?, false)
            }
            other => Err(Error::Unsupported(format!("a DICOM file of transfer syntax {}", syntax_name(other)))),
        }
    }

    /// A JPEG as pictures have it.
    fn read_picture(&self, data: &[u8]) -> Result<Raster> {
        let header = &self.header;
        let info = jpeg::probe(data)?;
        if (info.height, info.width) != (header.rows, header.columns) || info.channels != header.samples {
            return Err(corrupt(format!(
                "a JPEG frame of {} × {} of {} channel(s), the file announces {} × {} of {}",
                info.width, info.height, info.channels, header.columns, header.rows, header.samples
            )));
        }
        self.limits.check_decoded(info.width, info.height, 8 * info.channels, data.len())?;
        let mut image = Image::default();
        // Without a mark of its own, colour is what DICOM says.
        jpeg::decode_into_as(data, &info, header.photometric == "RGB", &mut image)?;
        Ok(Raster { pixels: Pixels::U8(image), ..Raster::default() })
    }
}

/// What the header of a file says, of which the end may be missing.
pub(super) fn probe(bytes: &[u8], limits: &Limits) -> Result<ImageInfo> {
    let mut bytes = bytes.to_vec();
    let header = Header::read(&mut bytes, limits, false)?;
    check_kind(&header)?;
    Ok(info(&header))
}

fn info(header: &Header) -> ImageInfo {
    ImageInfo {
        width: header.columns,
        height: header.rows,
        channels: if header.palette.is_some() { 3 } else { header.samples },
        bit_depth: pixels::depth(header),
        format: Format::Dicom,
        frames: header.frames,
        modality: header.modality.clone(),
    }
}

fn check_kind(header: &Header) -> Result<()> {
    let unsupported = |what: String| Err(Error::Unsupported(format!("a DICOM file of {what}")));
    let colour = match &*header.photometric {
        "MONOCHROME1" | "MONOCHROME2" | "PALETTE COLOR" => 1,
        "RGB" | "YBR_FULL" | "YBR_FULL_422" | "YBR_RCT" | "YBR_ICT" => 3,
        other => return unsupported(format!("photometric interpretation {other}")),
    };
    if header.samples != colour {
        return Err(corrupt(format!("{} channels of {}", header.samples, header.photometric)));
    }
    if !matches!(header.bits_allocated, 1 | 8 | 16 | 32) || header.bits_allocated == 1 && header.samples != 1 {
        return unsupported(format!(
            "{} bits allocated for each of {} channels",
            header.bits_allocated, header.samples
        ));
    }
    if header.palette.is_some() && (header.bits_allocated > 16 || header.signed) {
        return unsupported("palette indices that are not unsigned 8 or 16 bits".into());
    }
    Ok(())
}

const RLE: &str = "1.2.840.10008.1.2.5";

/// PS3.6 annex A.
fn syntax_name(uid: &str) -> String {
    let name = match uid {
        "1.2.840.10008.1.2.4.92" | "1.2.840.10008.1.2.4.93" => "JPEG 2000 multi-component",
        "1.2.840.10008.1.2.4.110" | "1.2.840.10008.1.2.4.111" | "1.2.840.10008.1.2.4.112" => "JPEG XL",
        "1.2.840.10008.1.2.4.201" | "1.2.840.10008.1.2.4.202" | "1.2.840.10008.1.2.4.203" => {
            "high-throughput JPEG 2000"
        }
        _ if uid.starts_with("1.2.840.10008.1.2.4.10") => "MPEG video",
        _ => return uid.to_owned(),
    };
    format!("{uid} ({name}); convert it to an uncompressed one")
}

/// Which fragments belong to which frame (PS3.5 A.4).
fn frames_of(bytes: &[u8], header: &Header, fragments: &[Range<usize>]) -> Result<Vec<Vec<Range<usize>>>> {
    let Some((table, fragments)) = fragments.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(corrupt("compressed pixels without a fragment".into()));
    };
    if header.frames == 1 {
        return Ok(vec![fragments.to_vec()]);
    }
    if fragments.len() == header.frames {
        return Ok(fragments.iter().map(|fragment| vec![fragment.clone()]).collect());
    }
    let offsets: Vec<usize> =
        bytes[table.clone()].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
    let first = fragments[0].start;
    let begins = |fragment: &Range<usize>| match offsets.is_empty() {
        // An offset counts from the first fragment's item, 8 bytes before its data.
        false => offsets.contains(&(fragment.start - first)),
        true => matches!(bytes[fragment.clone()], [0xFF, 0xD8, ..] | [0xFF, 0x4F, 0xFF, 0x51, ..]),
    };
    let mut frames: Vec<Vec<Range<usize>>> = Vec::new();
    for fragment in fragments {
        match frames.last_mut() {
            Some(last) if !begins(fragment) => last.push(fragment.clone()),
            _ => frames.push(vec![fragment.clone()]),
        }
    }
    if frames.len() != header.frames {
        return Err(corrupt(format!("{} frames announced, {} found", header.frames, frames.len())));
    }
    Ok(frames)
}

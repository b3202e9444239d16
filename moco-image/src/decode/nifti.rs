//! NIfTI-1 and NIfTI-2 volumes in one file (.nii, .nii.gz): each slice, and each slice of each point in time, is an
//! image. Rows and columns are as they are stored; the first stored row is the image's first.

use std::io::Read;

use super::{Axis, Format, ImageInfo, Limits};
use crate::{Error, Image, Pixels, Raster, Rescale, Result};

/// A volume's header.
pub(super) struct Nifti {
    big_endian: bool,
    /// x, y, z, and everything after.
    dims: [usize; 4],
    kind: Kind,
    offset: usize,
    rescale: Option<Rescale>,
    axis: Axis,
}

/// Type of a voxel.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    F64,
    Rgb,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::Rgb => 3,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }
}

/// Bytes of the larger header.
pub(super) const HEADER: usize = 540;

/// Whether it is a volume, by its magic; also inside gzip.
pub(super) fn is_nifti(bytes: &[u8]) -> bool {
    if bytes.starts_with(&[0x1F, 0x8B]) {
        return Header::parse(&unpack(bytes, HEADER as u64).unwrap_or_default()).is_some();
    }
    Header::parse(bytes).is_some()
}

/// Up to `most` bytes out of gzip.
fn unpack(bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(most)
        .read_to_end(&mut unpacked)
        .map_err(|e| corrupt(format!("its gzip data is damaged or cut short: {e}")))?;
    Ok(unpacked)
}

impl Nifti {
    /// Reads the header of a file of which the end may be missing; `encoded` is its whole length.
    pub fn probe(bytes: &[u8], axis: Axis) -> Result<Self> {
        let unpacked;
        let bytes = if bytes.starts_with(&[0x1F, 0x8B]) {
            unpacked = unpack(bytes, HEADER as u64)?;
            &unpacked
        } else {
            bytes
        };
        let header = Header::parse(bytes).ok_or_else(|| corrupt("its header is no NIfTI header".into()))?;
        header.check(axis)
    }

    /// Reads the header; `bytes` become the unpacked volume.
    pub fn open(bytes: &mut Vec<u8>, limits: &Limits, axis: Axis) -> Result<Self> {
        let this = Self::probe(bytes, axis)?;
        let voxels = this.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let needed = voxels.and_then(|n| n.checked_mul(this.kind.bytes())?.checked_add(this.offset));
        let needed = needed.ok_or_else(|| corrupt(format!("dimensions {:?} overflow", this.dims)))?;
        let (height, width) = this.size();
        limits.check_decoded(width, height, 0, bytes.len())?;
        if bytes.starts_with(&[0x1F, 0x8B]) {
            limits.check_unpacked(needed as u64, bytes.len())?;
            limits.check_encoded(needed as u64 / 8)?;
            *bytes = unpack(bytes, needed as u64)?;
        }
        if bytes.len() < needed {
            return Err(corrupt(format!(
                "dimensions {:?} of {} bytes need {needed} bytes, {} are there: the file is truncated or its header wrong",
                this.dims,
                this.kind.bytes(),
                bytes.len()
            )));
        }
        Ok(this)
    }

    pub fn info(&self) -> ImageInfo {
        let (height, width) = self.size();
        let bit_depth = match self.kind {
            Kind::U8 | Kind::I8 | Kind::Rgb => 8,
            Kind::U16 | Kind::I16 => 16,
            _ => 32,
        };
        ImageInfo {
            width,
            height,
            channels: if self.kind == Kind::Rgb { 3 } else { 1 },
            bit_depth,
            format: Format::Nifti,
            frames: self.slices() * self.dims[3],
            modality: None,
        }
    }

    /// Decodes one slice; those of the first point in time come first.
    pub fn read(&self, bytes: &[u8], frame: usize) -> Result<Raster> {
        let [nx, ny, nz, _] = self.dims;
        let (slice, time) = (frame % self.slices(), frame / self.slices());
        let (height, width) = self.size();
        let voxel = |y: usize, x: usize| {
            let [x, y, z] = match self.axis {
                Axis::Z => [x, y, slice],
                Axis::Y => [x, slice, y],
                Axis::X => [slice, x, y],
            };
            self.offset + (((time * nz + z) * ny + y) * nx + x) * self.kind.bytes()
        };
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| voxel(y, x));
        let big = self.big_endian;
        let pixels = match self.kind {
            Kind::U8 => Pixels::U8(Image::new(width, height, 1, places.map(|at| bytes[at]).collect())?),
            Kind::Rgb => {
                let data = places.flat_map(|at| [bytes[at], bytes[at + 1], bytes[at + 2]]).collect();
                Pixels::U8(Image::new(width, height, 3, data)?)
            }
            Kind::I8 => {
                let values = places.map(|at| i16::from(bytes[at] as i8)).collect();
                Pixels::I16(Image::from_values(width, height, 1, values)?)
            }
            Kind::I16 => {
                let values = places.map(|at| u16_at(bytes, at, big) as i16).collect();
                Pixels::I16(Image::from_values(width, height, 1, values)?)
            }
            Kind::U16 => {
                let values = places.map(|at| u16_at(bytes, at, big)).collect();
                Pixels::U16(Image::from_values(width, height, 1, values)?)
            }
            Kind::F32 => {
                let values = places.map(|at| f32::from_bits(u32_at(bytes, at, big))).collect();
                Pixels::F32(Image::from_values(width, height, 1, values)?)
            }
            Kind::F64 => {
                let values = places.map(|at| f64::from_bits(u64_at(bytes, at, big)) as f32).collect();
                Pixels::F32(Image::from_values(width, height, 1, values)?)
            }
            Kind::U32 | Kind::I32 => {
                let signed = self.kind == Kind::I32;
                let number = |at: usize| match u32_at(bytes, at, big) {
                    value if signed => f64::from(value as i32),
                    value => f64::from(value),
                };
                let exact = |at: usize| Some(number(at) as f32).filter(|v| f64::from(*v) == number(at));
                let values: Option<Vec<f32>> = places.map(exact).collect();
                let values = values.ok_or_else(|| {
                    Error::Depth("32-bit values with more digits than floats keep; store up to 24 bits".into())
                })?;
                Pixels::F32(Image::from_values(width, height, 1, values)?)
            }
        };
        let bits = self.info().bit_depth;
        Ok(Raster { pixels, bits, rescale: self.rescale, ..Raster::default() })
    }

    /// Height and width of an image.
    fn size(&self) -> (usize, usize) {
        let [x, y, z, _] = self.dims;
        match self.axis {
            Axis::Z => (y, x),
            Axis::Y => (z, x),
            Axis::X => (z, y),
        }
    }

    fn slices(&self) -> usize {
        match self.axis {
            Axis::X => self.dims[0],
            Axis::Y => self.dims[1],
            Axis::Z => self.dims[2],
        }
    }
}

struct Header {
    big_endian: bool,
    /// Whether voxels follow in this file and not in a twin.
    single: bool,
    dims: [i64; 8],
    datatype: u16,
    offset: f64,
    slope: f64,
    intercept: f64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let size: [u8; 4] = *bytes.first_chunk()?;
        let (big_endian, second) = match (u32::from_le_bytes(size), u32::from_be_bytes(size)) {
            (348, _) => (false, false),
            (_, 348) => (true, false),
            (540, _) => (false, true),
            (_, 540) => (true, true),
            _ => return None,
        };
        if second {
            let header = bytes.get(..HEADER)?;
            let magic = &header[4..12];
            let double = |at: usize| f64::from_bits(u64_at(header, at, big_endian));
            matches!(magic, b"n+2\0\r\n\x1A\n" | b"ni2\0\r\n\x1A\n").then(|| Self {
                big_endian,
                single: magic[1] == b'+',
                dims: std::array::from_fn(|i| u64_at(header, 16 + 8 * i, big_endian) as i64),
                datatype: u16_at(header, 12, big_endian),
                offset: u64_at(header, 168, big_endian) as i64 as f64,
                slope: double(176),
                intercept: double(184),
            })
        } else {
            let header = bytes.get(..348)?;
            let magic = &header[344..348];
            let float = |at: usize| f64::from(f32::from_bits(u32_at(header, at, big_endian)));
            matches!(magic, b"n+1\0" | b"ni1\0").then(|| Self {
                big_endian,
                single: magic[1] == b'+',
                dims: std::array::from_fn(|i| i64::from(u16_at(header, 40 + 2 * i, big_endian) as i16)),
                datatype: u16_at(header, 70, big_endian),
                offset: float(108),
                slope: float(112),
                intercept: float(116),
            })
        }
    }

    fn check(self, axis: Axis) -> Result<Nifti> {
        if !self.single {
            return Err(Error::Unsupported(
                "a NIfTI header whose voxels are in a .img file; convert it to .nii".into(),
            ));
        }
        let count = self.dims[0];
        let wrong = || corrupt(format!("dimensions {:?}: expected their number, 1 to 7, and sizes above 0", self.dims));
        if !(1..=7).contains(&count) || self.dims[1..=count as usize].iter().any(|&d| d < 1) {
            return Err(wrong());
        }
        let size = |i: i64| if i <= count { self.dims[i as usize] as usize } else { 1 };
        let rest = (4..=7).try_fold(1usize, |n, i| n.checked_mul(size(i))).ok_or_else(wrong)?;
        let kind = match self.datatype {
            2 => Kind::U8,
            4 => Kind::I16,
            8 => Kind::I32,
            16 => Kind::F32,
            64 => Kind::F64,
            128 => Kind::Rgb,
            256 => Kind::I8,
            512 => Kind::U16,
            768 => Kind::U32,
            other => return Err(Error::Unsupported(format!("a NIfTI file of data type {other}"))),
        };
        if !(0.0..=1e12).contains(&self.offset) || self.offset.fract() != 0.0 {
            return Err(corrupt(format!("voxels that begin at byte {}", self.offset)));
        }
        // A slope of 0 says that there is none.
        let scaled = self.slope != 0.0 && self.slope.is_finite() && self.intercept.is_finite();
        let itself = self.slope == 1.0 && self.intercept == 0.0;
        let rescale = Rescale { slope: self.slope, intercept: self.intercept };
        Ok(Nifti {
            big_endian: self.big_endian,
            dims: [size(1), size(2), size(3), rest],
            kind,
            offset: self.offset as usize,
            rescale: (scaled && !itself).then_some(rescale),
            axis,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize, big_endian: bool) -> u16 {
    let bytes = [bytes[at], bytes[at + 1]];
    if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
}

fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let bytes: [u8; 4] = std::array::from_fn(|i| bytes[at + i]);
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

fn u64_at(bytes: &[u8], at: usize, big_endian: bool) -> u64 {
    let bytes: [u8; 8] = std::array::from_fn(|i| bytes[at + i]);
    if big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) }
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { format: "NIfTI", reason }
}

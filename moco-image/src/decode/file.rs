//! An image file of any format, opened once for all the images in it.

use std::path::Path;

use super::{Format, ImageInfo, Limits, decode_picture, format_of, jpeg, png};
use crate::{Error, Pixels, Raster, Result};

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// What a file may cost.
    pub limits: Limits,
    /// Along which axis a volume is cut into images.
    pub axis: Axis,
}

/// An axis of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The first, along which voxels lie side by side in the file.
    X,
    /// The second.
    Y,
    /// The third: slices as most files have them.
    #[default]
    Z,
}

/// An opened image file: a picture, the frames of a DICOM file, the pages of a TIFF, the slices of a volume.
pub struct ImageFile {
    bytes: Vec<u8>,
    info: ImageInfo,
    options: ReadOptions,
    kind: Kind,
}

enum Kind {
    Picture,
    #[cfg(feature = "tiff")]
    Tiff,
    #[cfg(feature = "dicom")]
    Dicom(Box<super::dicom::Dicom>),
    #[cfg(feature = "nifti")]
    Nifti(super::nifti::Nifti),
}

/// Bytes at a file's start that are enough for most headers.
const START: usize = 1 << 18;

impl ImageFile {
    /// Reads the header of a file that lies in memory; volumes are unpacked.
    ///
    /// # Errors
    /// As [`super::decode`], without what only the pixels show.
    #[cfg_attr(not(any(feature = "dicom", feature = "nifti")), expect(unused_mut, reason = "unpacks volumes"))]
    pub fn open(mut bytes: Vec<u8>, options: &ReadOptions) -> Result<Self> {
        options.limits.check_encoded(bytes.len() as u64)?;
        let (info, kind) = match format_of(&bytes)? {
            Format::Jpeg => (jpeg::probe(&bytes)?, Kind::Picture),
            Format::Png => (png::probe(&bytes)?, Kind::Picture),
            #[cfg(feature = "tiff")]
            Format::Tiff => (super::tiff::probe(&bytes)?, Kind::Tiff),
            #[cfg(feature = "dicom")]
            Format::Dicom => {
                let file = super::dicom::Dicom::open(&mut bytes, &options.limits)?;
                (file.info(), Kind::Dicom(Box::new(file)))
            }
            #[cfg(feature = "nifti")]
            Format::Nifti => {
                let file = super::nifti::Nifti::open(&mut bytes, &options.limits, options.axis)?;
                (file.info(), Kind::Nifti(file))
            }
            #[cfg(not(all(feature = "tiff", feature = "dicom", feature = "nifti")))]
            other => return Err(super::not_built(other)),
        };
        options.limits.check_frames(&info, bytes.len() as u64)?;
        Ok(Self { bytes, info, options: *options, kind })
    }

    /// As [`ImageFile::open`], from a file; errors carry its path.
    ///
    /// # Errors
    /// As [`ImageFile::open`], and [`Error::Io`].
    pub fn open_path(path: &Path, options: &ReadOptions) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let len = std::fs::metadata(path).map_err(io)?.len();
        let in_file = |source| Error::File { path: path.to_owned(), source: Box::new(source) };
        options.limits.check_encoded(len).map_err(in_file)?;
        let bytes = std::fs::read(path).map_err(io)?;
        Self::open(bytes, options).map_err(in_file)
    }

    /// What a file's header says, without reading more of it than that needs.
    ///
    /// # Errors
    /// As [`ImageFile::open_path`].
    pub fn probe_path(path: &Path, options: &ReadOptions) -> Result<ImageInfo> {
        use std::io::Read;
        let io = |source| Error::Io { path: path.to_owned(), source };
        let in_file = |source| Error::File { path: path.to_owned(), source: Box::new(source) };
        let mut file = std::fs::File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        options.limits.check_encoded(len).map_err(in_file)?;
        let mut bytes = Vec::new();
        file.by_ref().take(START as u64).read_to_end(&mut bytes).map_err(io)?;
        let info = match super::probe_start(&bytes, options) {
            Err(_) if len > bytes.len() as u64 => {
                file.read_to_end(&mut bytes).map_err(io)?;
                super::probe_start(&bytes, options)
            }
            other => other,
        };
        let info = info.map_err(in_file)?;
        options.limits.check_frames(&info, len).map_err(in_file)?;
        Ok(info)
    }

    /// The buffer, for the next file.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// What the header says.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Bytes that it holds: those of the file, of a volume those it unpacks to.
    pub fn bytes_held(&self) -> usize {
        self.bytes.len()
    }

    /// Number of images: frames, slices or pages.
    pub fn frames(&self) -> usize {
        self.info.frames
    }

    /// Decodes image `frame`.
    ///
    /// # Errors
    /// As [`super::decode`]; [`Error::Parameter`] for a frame that does not exist.
    pub fn read(&self, frame: usize) -> Result<Raster> {
        let mut raster = Raster::default();
        self.read_into(frame, &mut raster)?;
        Ok(raster)
    }

    /// As [`ImageFile::read`], into a value whose buffer is reused where it can be.
    ///
    /// # Errors
    /// As [`ImageFile::read`]; the values are unspecified then.
    pub fn read_into(&self, frame: usize, raster: &mut Raster) -> Result<()> {
        let (info, limits) = (&self.info, &self.options.limits);
        if frame >= info.frames {
            return Err(Error::parameter("frame", format!("{frame}: the file has {}, counted from 0", info.frames)));
        }
        match &self.kind {
            Kind::Picture if info.bit_depth == 16 => {
                limits.check_decoded(info.width, info.height, 16 * info.channels, self.bytes.len())?;
                let pixels = Pixels::U16(png::decode_16(&self.bytes, info)?);
                *raster = Raster { pixels, bits: 16, ..Raster::default() };
            }
            Kind::Picture => decode_picture(&self.bytes, info, limits, raster.reset_8_bit())?,
            #[cfg(feature = "tiff")]
            Kind::Tiff => *raster = super::tiff::read(&self.bytes, frame, limits)?,
            #[cfg(feature = "dicom")]
            Kind::Dicom(file) => *raster = file.read(&self.bytes, frame)?,
            #[cfg(feature = "nifti")]
            Kind::Nifti(file) => *raster = file.read(&self.bytes, frame)?,
        }
        Ok(())
    }
}

impl std::fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFile").field("info", &self.info).field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

//! An image file of any format, opened once for all the images in it.

use std::path::Path;

use super::{Format, ImageInfo, Limits, decode_picture, png, probe};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Axis {
    /// The first, along which voxels lie side by side in the file.
    X,
    /// The second.
    Y,
    /// The third: slices as they were taken in most files.
    #[default]
    Z,
}

/// An opened image file.
pub struct ImageFile {
    bytes: Vec<u8>,
    info: ImageInfo,
    options: ReadOptions,
}

impl ImageFile {
    /// Reads the header of a file that lies in memory.
    ///
    /// # Errors
    /// As [`super::decode`], without what only the pixels show.
    pub fn open(bytes: Vec<u8>, options: &ReadOptions) -> Result<Self> {
        options.limits.check_encoded(bytes.len() as u64)?;
        let info = probe(&bytes)?;
        Ok(Self { bytes, info, options: *options })
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

    /// What the header says.
    pub fn info(&self) -> &ImageInfo {
        &self.info
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
        match info.format {
            Format::Png if info.bit_depth == 16 => {
                limits.check_decoded(info.width, info.height, 16 * info.channels, self.bytes.len())?;
                let pixels = Pixels::U16(png::decode_16(&self.bytes, info)?);
                *raster = Raster { pixels, bits: 16, ..Raster::default() };
                Ok(())
            }
            Format::Jpeg | Format::Png => decode_picture(&self.bytes, info, limits, raster.reset_8_bit()),
        }
    }
}

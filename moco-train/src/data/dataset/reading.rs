//! From a place in a data set to pixels: files opened once for all their images, values brought to 8 bits where views
//! are made of them.

use std::path::{Path, PathBuf};

use moco_image::{Filter, Image, ImageFile, Limits, Raster, ReadOptions};

use super::{Channels, Dataset, Images};
use crate::data::{Error, Result};

/// Buffers that reading keeps from image to image.
#[derive(Debug, Default)]
pub struct ReadBuffers {
    bytes: Vec<u8>,
    /// The last file, if it holds more images.
    open: Option<(PathBuf, ImageFile)>,
}

impl Dataset {
    /// Decodes image `index`, with [`Dataset::channels`] channels and 8 bits.
    ///
    /// # Errors
    /// [`Error::Image`] naming it.
    pub fn load(&self, index: usize) -> Result<Image> {
        let mut image = Image::default();
        self.load_into(index, &mut ReadBuffers::default(), &mut image)?;
        Ok(image)
    }

    /// As [`Dataset::load`], into buffers that are reused.
    ///
    /// # Errors
    /// [`Error::Image`] naming it; the image's values are unspecified then.
    pub fn load_into(&self, index: usize, buffers: &mut ReadBuffers, image: &mut Image) -> Result<()> {
        self.load_8_bits(index, buffers, image).map_err(|source| Error::Image { name: self.name(index), source })
    }

    /// Decodes image `index` at the depth it has, with [`Dataset::channels`] channels: what evaluation reads.
    /// `shrink_to` acts on 8-bit images only.
    ///
    /// # Errors
    /// [`Error::Image`] naming it; the values are unspecified then.
    pub fn load_raster_into(&self, index: usize, buffers: &mut ReadBuffers, raster: &mut Raster) -> Result<()> {
        self.read(index, buffers, raster).map_err(|source| Error::Image { name: self.name(index), source })
    }

    fn load_8_bits(&self, index: usize, buffers: &mut ReadBuffers, image: &mut Image) -> moco_image::Result<()> {
        // The image's own buffer is decoded into.
        let mut raster = Raster::from(std::mem::take(image));
        self.read(index, buffers, &mut raster)?;
        let range = self.depth.range_of(&raster)?;
        match raster.into_picture() {
            Ok(picture) if range.is_full() => *image = picture,
            Ok(picture) => Raster::from(picture).to_8_bits_into(range, image)?,
            Err(raster) => {
                raster.to_8_bits_into(range, image)?;
                self.shrink(image)?;
            }
        }
        Ok(())
    }

    fn read(&self, index: usize, buffers: &mut ReadBuffers, raster: &mut Raster) -> moco_image::Result<()> {
        match &self.images {
            Images::Packed(packed) => {
                let mut image = std::mem::take(raster).into_picture().unwrap_or_default();
                packed.load_into(index, &mut image)?;
                *raster = Raster::from(image);
            }
            Images::Files { paths, images } => {
                let (file, frame) = images[index];
                self.read_frame(&paths[file as usize], frame, buffers, raster)?;
            }
        }
        if raster.channels() == 3 && self.channels == 1 && self.options.channels == Channels::Auto {
            return Err(moco_image::Error::Channels(
                "a colour image in a set that looked grey: say which is meant, channels = \"grey\" or \"rgb\"".into(),
            ));
        }
        raster.convert(self.channels)?;
        match std::mem::take(raster).into_picture() {
            Ok(mut image) => {
                self.shrink(&mut image)?;
                *raster = Raster::from(image);
            }
            Err(deep) => *raster = deep,
        }
        Ok(())
    }

    fn read_frame(
        &self,
        path: &Path,
        frame: u32,
        buffers: &mut ReadBuffers,
        raster: &mut Raster,
    ) -> moco_image::Result<()> {
        if let Some((_, opened)) = buffers.open.as_ref().filter(|(opened, _)| opened == path) {
            return opened.read_into(frame as usize, raster);
        }
        if let Some((_, old)) = buffers.open.take() {
            buffers.bytes = old.into_bytes();
        }
        let options = self.options.read_options();
        read_file(path, &options.limits, &mut buffers.bytes)?;
        let opened = ImageFile::open(std::mem::take(&mut buffers.bytes), &options)?;
        let result = opened.read_into(frame as usize, raster);
        if opened.frames() > 1 {
            buffers.open = Some((path.to_owned(), opened));
        } else {
            buffers.bytes = opened.into_bytes();
        }
        result
    }

    fn shrink(&self, image: &mut Image) -> moco_image::Result<()> {
        match self.options.shrink_to {
            Some(side) if image.width().min(image.height()) > side => {
                *image = moco_image::resize_shorter_side(image, side, Filter::Bilinear)?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl super::DataOptions {
    pub(super) fn read_options(&self) -> ReadOptions {
        ReadOptions { limits: self.limits, axis: self.axis }
    }
}

fn read_file(path: &Path, limits: &Limits, bytes: &mut Vec<u8>) -> moco_image::Result<()> {
    use std::io::Read;
    let io = |source| moco_image::Error::Io { path: path.to_owned(), source };
    bytes.clear();
    let file = std::fs::File::open(path).map_err(io)?;
    // One byte above the limit is enough for the decoder to refuse the file.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(bytes).map_err(io)?;
    Ok(())
}

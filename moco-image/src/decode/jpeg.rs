//! JPEG.

use super::{Format, ImageInfo};
use crate::{Error, Image, Result};

pub(super) fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    let _ = (bytes, Format::Jpeg);
    Err(Error::Unsupported("JPEG is not read yet".into()))
}

pub(super) fn decode_into(_bytes: &[u8], _info: &ImageInfo, _image: &mut Image) -> Result<()> {
    Err(Error::Unsupported("JPEG is not read yet".into()))
}

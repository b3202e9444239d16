//! PNG.

use super::{Format, ImageInfo};
use crate::{Error, Image, Result};

pub(super) fn probe(bytes: &[u8]) -> Result<ImageInfo> {
    let _ = (bytes, Format::Png);
    Err(Error::Unsupported("PNG is not read yet".into()))
}

pub(super) fn decode_into(_bytes: &[u8], _info: &ImageInfo, _image: &mut Image) -> Result<()> {
    Err(Error::Unsupported("PNG is not read yet".into()))
}

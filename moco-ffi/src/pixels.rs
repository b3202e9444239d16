//! Images that lie in the application's memory.

#![expect(unsafe_code, reason = "reads the application's pixels")]

use std::ffi::c_void;

use moco_image::{PixelType, Raster, RawImage};

use crate::boundary::{Result, slice};
use crate::moco_error;

/// Type of a pixel's values, for moco_pixels.type.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum moco_pixel_type {
    /// uint8_t
    U8 = 0,
    /// uint16_t
    U16 = 1,
    /// float
    F32 = 2,
    /// int16_t
    I16 = 3,
}

/// An image in memory: rows from top to bottom, channels interleaved.
///
/// Most backbones read 8 bits. For them uint16_t, int16_t and float values are scaled by a window that the caller must
/// give: values up to `black` become 0, values from `white` on 255, and what lies between is linear; `black` above
/// `white` inverts (MONOCHROME1). Without a window (both 0) the values go to the backbone as they are: one that was
/// trained on more than 8 bits maps them as its card says (in the units it was trained on, e.g. Hounsfield units), any
/// other refuses them with an error that says so. uint8_t without a window is taken as it is.
///
/// 12 bits in uint16_t are said by `type = MOCO_PIXEL_TYPE_U16 | MOCO_PIXEL_BITS(12)`, which a backbone needs whose card
/// maps the whole range of its bits; a value that needs more is an error. `| MOCO_PIXEL_INVERTED` says that small values
/// are bright (MONOCHROME1): black and white then change places, with a window and without.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_pixels {
    /// First value of the first row.
    pub data: *const c_void,
    /// Bytes from one row to the next; 0 = rows follow each other without a gap.
    pub row_stride: usize,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Values a pixel: 3 for RGB (not BGR), 1 for grey.
    pub channels: u32,
    /// A moco_pixel_type, perhaps with MOCO_PIXEL_BITS() and MOCO_PIXEL_INVERTED.
    pub r#type: u32,
    /// Value that becomes 0.
    pub black: f32,
    /// Value that becomes 255.
    pub white: f32,
}

/// Where MOCO_PIXEL_BITS() stands in `type`.
pub(crate) const BITS_SHIFT: u32 = 8;
/// MOCO_PIXEL_INVERTED.
pub(crate) const INVERTED: u32 = 1 << 16;

/// Copies images.
///
/// # Safety
/// `pixels` is NULL or points to `n` structs, whose `data` is NULL or reaches as far as their sizes say.
pub(crate) unsafe fn images(pixels: *const moco_pixels, n: usize, name: &str) -> Result<Vec<Raster>> {
    // SAFETY: forwarded.
    let pixels = unsafe { slice(pixels, n, name)? };
    // SAFETY: forwarded.
    pixels.iter().enumerate().map(|(i, p)| unsafe { image(p, &format!("{name}[{i}]")) }).collect()
}

/// Copies an image.
///
/// # Safety
/// `pixels.data` is NULL or reaches as far as the sizes say.
pub(crate) unsafe fn image(pixels: &moco_pixels, name: &str) -> Result<Raster> {
    let in_image = |e: moco_image::Error| {
        let error = moco_error::from(e);
        moco_error::new(error.code, format!("`{name}`: {}", error.message.to_string_lossy()))
    };
    let (bits, inverted) = (pixels.r#type >> BITS_SHIFT & 0xff, pixels.r#type & INVERTED != 0);
    let pixel_type = match pixels.r#type & !(0xff << BITS_SHIFT | INVERTED) {
        0 => PixelType::U8,
        1 => PixelType::U16,
        2 => PixelType::F32,
        3 => PixelType::I16,
        _ => {
            let message = format!("`{name}.type` is {}, which is no moco_pixel_type", pixels.r#type);
            return Err(moco_error::argument(message));
        }
    };
    let mut raw = RawImage {
        bytes: &[],
        width: pixels.width as usize,
        height: pixels.height as usize,
        channels: pixels.channels as usize,
        pixel_type,
        bits: bits as u8,
        inverted,
        row_stride: pixels.row_stride,
        window: (pixels.black != pixels.white).then_some([pixels.black, pixels.white]),
    };
    let len = raw.byte_len().map_err(in_image)?;
    // SAFETY: the caller's image reaches over this many bytes, by contract.
    raw.bytes = unsafe { slice(pixels.data.cast::<u8>(), len, &format!("{name}.data"))? };
    raw.to_raster().map_err(in_image)
}

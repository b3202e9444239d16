//! Image files for applications without a decoder of their own.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::path::Path;

use ::moco_image::{ImageFile, Pixels, Raster, ReadOptions};

use crate::boundary::{Result, give, guard, required, utf8};
use crate::pixels::{BITS_SHIFT, INVERTED};
use crate::{moco_error, moco_pixel_type, moco_pixels};

/// An image file: JPEG, PNG, TIFF, DICOM or NIfTI (.nii, .nii.gz), of one or several images (pages, frames, slices).
///
/// 1. moco_image_open().
/// 2. moco_image_info() says what it holds.
/// 3. moco_image_read() decodes one image; moco_frame_pixels() lends its pixels to the functions that take moco_pixels.
/// 4. moco_frame_free(), moco_image_free().
pub struct moco_image {
    file: ImageFile,
    modality: CString,
}

/// A decoded image.
pub struct moco_frame {
    raster: Raster,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_image>();
const _: () = shareable::<moco_frame>();

/// What an image file holds.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_image_facts {
    /// DICOM's modality, e.g. "CT"; empty for other formats. Belongs to the moco_image.
    pub modality: *const c_char,
    /// Images in it: pages, frames or slices.
    pub frames: u32,
    /// Columns of the first.
    pub width: u32,
    /// Rows of the first.
    pub height: u32,
    /// Values a pixel.
    pub channels: u32,
    /// Significant bits a value; 32 for floats.
    pub bits: u32,
    /// 0.
    pub reserved: u32,
}

/// Opens an image file and reads its header; volumes are unpacked. The axis along which a volume is cut is its third.
///
/// Parameters: `path`: the file. `out`: receives the image.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_IMAGE for what is damaged, unknown or above the limits.
/// Memory: free it with moco_image_free().
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_image_open(
    path: *const c_char,
    out: Option<&mut MaybeUninit<*mut moco_image>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        let file = ImageFile::open_path(Path::new(path), &ReadOptions::default())?;
        let modality = file.info().modality.as_deref().unwrap_or("").replace('\0', "");
        let modality = CString::new(modality).expect("NUL was removed");
        give(out, moco_image { file, modality });
        Ok(())
    })
}

/// What the file's header says.
///
/// Parameters: `image`: an image. `out`: receives the facts.
/// Returns: NULL, or an error.
/// Memory: the text in it belongs to `image`.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn moco_image_info(
    image: Option<&moco_image>,
    out: Option<&mut MaybeUninit<moco_image_facts>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let image = required(image, "image")?;
        let out = required(out, "out")?;
        let info = image.file.info();
        out.write(moco_image_facts {
            modality: image.modality.as_ptr(),
            frames: to_u32(info.frames, "frames")?,
            width: to_u32(info.width, "columns")?,
            height: to_u32(info.height, "rows")?,
            channels: to_u32(info.channels, "channels")?,
            bits: u32::from(info.bit_depth),
            reserved: 0,
        });
        Ok(())
    })
}

/// Decodes one image of the file.
///
/// Values of 8 bits come as uint8_t, 0 black (MONOCHROME1 is inverted). Deeper ones come in the file's units: as
/// uint16_t or int16_t where these are the stored values, as float where a slope and an intercept are applied (Hounsfield
/// units in CT).
///
/// Parameters: `image`: an image. `frame`: its number, from 0. `out`: receives the decoded image.
/// Returns: NULL, or an error: MOCO_CODE_IMAGE, MOCO_CODE_INVALID_ARGUMENT for a frame that does not exist.
/// Memory: free it with moco_frame_free(); it does not need `image` any more.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn moco_image_read(
    image: Option<&moco_image>,
    frame: usize,
    out: Option<&mut MaybeUninit<*mut moco_frame>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let image = required(image, "image")?;
        let out = required(out, "out")?;
        give(out, moco_frame { raster: image.file.read(frame)?.in_units()? });
        Ok(())
    })
}

/// The pixels of a decoded image. `type` says bits and inversion where they matter: above 8 bits, MOCO_PIXEL_BITS() where
/// fewer than the type has are significant, MOCO_PIXEL_INVERTED for MONOCHROME1; MOCO_PIXEL_TYPE_OF(type) is the
/// moco_pixel_type alone. `black` and `white` are the window that the file suggests, in the units of the values, for
/// backbones that read 8 bits; both 0 if it suggests none. Set them to the window you mean, or to 0 for a backbone whose
/// card maps deeper values itself.
///
/// Parameters: `frame`: a decoded image. `out`: receives the description.
/// Returns: NULL, or an error.
/// Memory: `out->data` belongs to `frame`.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn moco_frame_pixels(
    frame: Option<&moco_frame>,
    out: Option<&mut MaybeUninit<moco_pixels>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let raster = &required(frame, "frame")?.raster;
        let out = required(out, "out")?;
        let (data, pixel_type): (*const c_void, _) = match &raster.pixels {
            Pixels::U8(image) => (image.data().as_ptr().cast(), moco_pixel_type::U8),
            Pixels::U16(image) => (image.data().as_ptr().cast(), moco_pixel_type::U16),
            Pixels::I16(image) => (image.data().as_ptr().cast(), moco_pixel_type::I16),
            Pixels::F32(image) => (image.data().as_ptr().cast(), moco_pixel_type::F32),
        };
        let (height, width) = raster.size();
        let deep = !raster.is_8_bit();
        let [black, white] = raster.window.filter(|_| deep).unwrap_or_default();
        let all = if matches!(pixel_type, moco_pixel_type::U8) { 8 } else { 16 };
        let bits = if raster.bits < all { u32::from(raster.bits) << BITS_SHIFT } else { 0 };
        let inverted = if raster.inverted { INVERTED } else { 0 };
        out.write(moco_pixels {
            data,
            row_stride: 0,
            width: to_u32(width, "columns")?,
            height: to_u32(height, "rows")?,
            channels: to_u32(raster.channels(), "channels")?,
            r#type: pixel_type as u32 | bits | inverted,
            black,
            white,
        });
        Ok(())
    })
}

/// Frees a decoded image.
///
/// Parameters: `frame`: a decoded image or NULL.
/// Thread safety: must be the last call on `frame`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_frame_free(frame: Option<Box<moco_frame>>) {
    drop(frame);
}

/// Closes an image file.
///
/// Parameters: `image`: an image or NULL.
/// Thread safety: must be the last call on `image`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_image_free(image: Option<Box<moco_image>>) {
    drop(image);
}

fn to_u32(number: usize, what: &str) -> Result<u32> {
    u32::try_from(number).map_err(|_| moco_error::argument(format!("{number} {what} are too many")))
}

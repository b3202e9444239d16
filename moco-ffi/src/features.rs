//! Features that a backbone extracted.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use moco_infer::Features;

use crate::boundary::{copy_out, guard, out_slice, required};
use crate::moco_error;

/// Features of a number of images: for each tap that the backbone was opened with, one array of floats.
///
/// 1. moco_backbone_extract_pixels(), …_encoded() or …_paths() gives it.
/// 2. moco_features_shape() says how large the array of a tap is.
/// 3. moco_features_data() lends it, moco_features_copy() copies it.
/// 4. moco_features_free().
pub struct moco_features {
    pub(crate) taps: Vec<(CString, Features)>,
    pub(crate) backbone_sha256: String,
    images: usize,
}

impl moco_features {
    pub(crate) fn new(features: Vec<Features>, images: usize, backbone_sha256: String) -> moco_features {
        let named = |f: Features| (CString::new(f.tap.clone()).expect("names of taps hold no NUL"), f);
        moco_features { taps: features.into_iter().map(named).collect(), backbone_sha256, images }
    }

    pub(crate) fn tap(&self, index: usize) -> Result<&Features, moco_error> {
        self.taps.get(index).map(|(_, features)| features).ok_or_else(|| {
            moco_error::argument(format!("`tap` is {index}, but there are {} taps (from 0)", self.taps.len()))
        })
    }
}

/// Number of images.
///
/// Parameters: `features`: features or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_images(features: Option<&moco_features>) -> usize {
    features.map_or(0, |f| f.images)
}

/// Number of taps.
///
/// Parameters: `features`: features or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_taps(features: Option<&moco_features>) -> usize {
    features.map_or(0, |f| f.taps.len())
}

/// Name of a tap.
///
/// Parameters: `features`: features or NULL. `tap`: index, from 0.
/// Returns: its name; NULL if there is no such tap.
/// Memory: the text belongs to `features`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_tap_name(features: Option<&moco_features>, tap: usize) -> *const c_char {
    features.and_then(|f| f.taps.get(tap)).map_or(std::ptr::null(), |(name, _)| name.as_ptr())
}

/// Shape of a tap's array, row-major: [images, channels] or [images, channels, height, width].
///
/// Parameters: `features`, `tap`: as above. `shape`: array of 4 that receives the sizes, 1 where there is no dimension.
/// `dims`: receives 2 or 4; may be NULL.
/// Returns: NULL, or an error if there is no such tap.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_shape(
    features: Option<&moco_features>,
    tap: usize,
    shape: Option<&mut MaybeUninit<[usize; 4]>>,
    dims: Option<&mut MaybeUninit<usize>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let tap = required(features, "features")?.tap(tap)?;
        let mut sizes = [1; 4];
        sizes[..tap.shape.len()].copy_from_slice(&tap.shape);
        required(shape, "shape")?.write(sizes);
        if let Some(dims) = dims {
            dims.write(tap.shape.len());
        }
        Ok(())
    })
}

/// The array of a tap.
///
/// Parameters: `features`, `tap`: as above. `len`: receives the number of floats; may be NULL.
/// Returns: the first float; NULL if there is no such tap or it is empty.
/// Memory: the array belongs to `features`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_data(
    features: Option<&moco_features>,
    tap: usize,
    len: Option<&mut MaybeUninit<usize>>,
) -> *const f32 {
    let data = features.and_then(|f| f.taps.get(tap)).map_or(&[][..], |(_, f)| &f.data);
    if let Some(len) = len {
        len.write(data.len());
    }
    if data.is_empty() { std::ptr::null() } else { data.as_ptr() }
}

/// Copies the array of a tap.
///
/// Parameters: `features`, `tap`: as above. `out`: array of `out_len` floats, which must be the array's length.
/// Returns: NULL, or an error that says which length was expected; `out` is unchanged then.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_features_copy(
    features: Option<&moco_features>,
    tap: usize,
    out: *mut f32,
    out_len: usize,
) -> Option<Box<moco_error>> {
    guard(|| {
        let tap = required(features, "features")?.tap(tap)?;
        // SAFETY: forwarded from this function's own contract.
        copy_out(&tap.data, unsafe { out_slice(out, out_len, "out")? }, "out")
    })
}

/// Frees features.
///
/// Parameters: `features`: features or NULL.
/// Thread safety: must be the last call on `features`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_features_free(features: Option<Box<moco_features>>) {
    drop(features);
}

//! Backbones: opened from a file, turned on images.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moco_infer::{Backbone, Calibration, Extractor, ExtractorOptions, Features, Precision};

use crate::boundary::{Options, Result, give, guard, optional_utf8, required, slice, texts, utf8, versioned};
use crate::pixels::images;
use crate::{moco_code, moco_error, moco_features, moco_pixels};

/// How a backbone is opened. Start from MOCO_BACKBONE_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_backbone_options {
    /// sizeof(moco_backbone_options).
    pub struct_size: usize,
    /// Features to extract, separated by commas, e.g. "pooled,c5". NULL = "pooled".
    pub taps: *const c_char,
    /// ONNX Runtime's library. NULL = MOCO_ORT_LIB, ORT_DYLIB_PATH, beside libmoco, the system's loader. One library
    /// serves the whole process.
    pub ort_library: *const c_char,
    /// Images worked on at the same time; the number of cores by default.
    pub threads: u32,
    /// Images a thread takes at once; chosen by default. Does not change the features.
    pub batch: u32,
    /// The file that `moco-infer calibrate` wrote for this backbone: the network runs in int8. NULL = f32.
    pub calibration: *const c_char,
    /// Channels of the images: 1, 3 or any number. The first convolution of a backbone that reads another number is
    /// folded or spread, and its card says so. 0 = as the card says.
    pub channels: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<moco_backbone_options>() == 4 * size_of::<usize>() + 16, "no padding");

// SAFETY: repr(C), `struct_size` first, integers and nullable pointers only, no padding by the assertion above.
unsafe impl Options for moco_backbone_options {
    const ZERO: Self = Self {
        struct_size: 0,
        taps: std::ptr::null(),
        ort_library: std::ptr::null(),
        threads: 0,
        batch: 0,
        calibration: std::ptr::null(),
        channels: 0,
        reserved: 0,
    };
}

/// An encoded image (a JPEG or PNG file) in memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_bytes {
    /// First byte.
    pub data: *const u8,
    /// Number of bytes.
    pub len: usize,
}

/// A backbone: what MoCo trains, and what turns an image into features.
///
/// 1. moco_backbone_open().
/// 2. moco_backbone_tap_dim() and the other getters say what it is.
/// 3. moco_backbone_extract_pixels(), …_encoded() or …_paths(), from any number of threads.
/// 4. moco_backbone_free().
pub struct moco_backbone {
    pub(crate) backbone: Backbone,
    pub(crate) extractor: Extractor,
    pub(crate) sha256: String,
    arch: CString,
    method: CString,
    card: CString,
    taps: Vec<CString>,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_backbone>();
const _: () = shareable::<moco_features>();

impl moco_backbone {
    pub(crate) fn features(&self, features: Vec<Features>, images: usize) -> moco_features {
        moco_features::new(features, images, self.sha256.clone())
    }
}

/// Opens a backbone.
///
/// Files of others (MoCo's, torchvision's, timm's, Detectron2's) are converted in memory; what is assumed of them is told
/// to the log callback as warnings (moco_log_set()).
///
/// Parameters: `path`: a backbone.safetensors file, a folder that holds one, or hf://owner/name[@revision][/file] in a Hub
/// of models, which is fetched into the usual cache (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE are
/// read). `options`: or NULL for all defaults. `out`: receives the backbone.
/// Returns: NULL, or an error: MOCO_CODE_IO (also what cannot be fetched), MOCO_CODE_FORMAT (every missing, unknown or
/// misshapen tensor is named), MOCO_CODE_RUNTIME (every place where ONNX Runtime was looked for is named), MOCO_CODE_INVALID_ARGUMENT.
/// Memory: free the backbone with moco_backbone_free().
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_backbone_open(
    path: *const c_char,
    options: *const moco_backbone_options,
    out: Option<&mut MaybeUninit<*mut moco_backbone>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        // SAFETY: as above.
        let options = unsafe { versioned(options, "options")? };
        // SAFETY: as above.
        let taps = unsafe { optional_utf8(options.taps, "options->taps")? };
        // SAFETY: as above.
        let library = unsafe { optional_utf8(options.ort_library, "options->ort_library")? };
        // SAFETY: as above.
        let calibration = unsafe { optional_utf8(options.calibration, "options->calibration")? };
        let precision = match calibration {
            Some(path) => Precision::Int8(Arc::new(Calibration::read(Path::new(path))?)),
            None => Precision::F32,
        };
        if options.reserved != 0 {
            return Err(moco_error::argument(format!("options->reserved is {}, it must be 0", options.reserved)));
        }
        let channels = (options.channels > 0).then_some(options.channels as usize);
        let split = |list: &str| list.split(',').map(|t| t.trim().to_owned()).collect();
        let options = ExtractorOptions {
            taps: taps.map_or_else(Vec::new, split),
            batch: options.batch as usize,
            threads: options.threads as usize,
            ort_library: library.map(PathBuf::from),
            precision,
            ..ExtractorOptions::default()
        };
        give(out, open(Path::new(path), channels, &options)?);
        Ok(())
    })
}

fn open(path: &Path, channels: Option<usize>, options: &ExtractorOptions) -> Result<moco_backbone> {
    let backbone = Backbone::open_for(path, channels)?;
    let extractor = Extractor::new(&backbone, options)?;
    let text = |text: String| CString::new(text.replace('\0', " ")).expect("NUL was replaced");
    let card = backbone.card();
    Ok(moco_backbone {
        arch: text(card.arch.name.clone()),
        method: text(card.method.clone()),
        card: text(card.to_json()),
        taps: backbone.taps().iter().map(|t| text(t.clone())).collect(),
        sha256: backbone.file().sha256(),
        backbone,
        extractor,
    })
}

/// Name of the network, e.g. "resnet50".
///
/// Parameters: `backbone`: a backbone or NULL.
/// Returns: text; NULL for NULL.
/// Memory: the text belongs to `backbone`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_arch(backbone: Option<&moco_backbone>) -> *const c_char {
    backbone.map_or(std::ptr::null(), |b| b.arch.as_ptr())
}

/// How it was trained, e.g. "moco-v2".
///
/// Parameters: `backbone`: a backbone or NULL.
/// Returns: text; NULL for NULL.
/// Memory: the text belongs to `backbone`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_method(backbone: Option<&moco_backbone>) -> *const c_char {
    backbone.map_or(std::ptr::null(), |b| b.method.as_ptr())
}

/// The whole card as JSON: network, preprocessing, training data, recipe, licence.
///
/// Parameters: `backbone`: a backbone or NULL.
/// Returns: text; NULL for NULL.
/// Memory: the text belongs to `backbone`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_card(backbone: Option<&moco_backbone>) -> *const c_char {
    backbone.map_or(std::ptr::null(), |b| b.card.as_ptr())
}

/// Number of taps that the backbone has (not only those it was opened with).
///
/// Parameters: `backbone`: a backbone or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_taps(backbone: Option<&moco_backbone>) -> usize {
    backbone.map_or(0, |b| b.taps.len())
}

/// Name of a tap.
///
/// Parameters: `backbone`: a backbone or NULL. `tap`: index, from 0.
/// Returns: its name; NULL if there is no such tap.
/// Memory: the text belongs to `backbone`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_tap_name(backbone: Option<&moco_backbone>, tap: usize) -> *const c_char {
    backbone.and_then(|b| b.taps.get(tap)).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Channels of a tap: the length of a vector such as "pooled", the depth of a map such as "c5".
///
/// Parameters: `backbone`: a backbone. `tap`: a name. `out`: receives the number.
/// Returns: NULL, or an error that names the taps there are.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_backbone_tap_dim(
    backbone: Option<&moco_backbone>,
    tap: *const c_char,
    out: Option<&mut MaybeUninit<usize>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let backbone = required(backbone, "backbone")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let tap = unsafe { utf8(tap, "tap")? };
        out.write(backbone.backbone.dim(tap)?);
        Ok(())
    })
}

/// Features of images in memory.
///
/// Parameters: `backbone`: a backbone. `pixels`: array of `n` images, which may differ in size and type. `out`: receives
/// the features.
/// Returns: NULL, or an error that names the image.
/// Memory: pixels are copied; free the features with moco_features_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_backbone_extract_pixels(
    backbone: Option<&moco_backbone>,
    pixels: *const moco_pixels,
    n: usize,
    out: Option<&mut MaybeUninit<*mut moco_features>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let backbone = required(backbone, "backbone")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let images = unsafe { images(pixels, n, "pixels")? };
        give(out, backbone.features(backbone.extractor.extract(&images)?, n));
        Ok(())
    })
}

/// Features of encoded images in memory.
///
/// Parameters: `backbone`: a backbone. `images`: array of `n` JPEG or PNG files. `out`: receives the features.
/// Returns: NULL, or an error.
/// Memory: free the features with moco_features_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_backbone_extract_encoded(
    backbone: Option<&moco_backbone>,
    images: *const moco_bytes,
    n: usize,
    out: Option<&mut MaybeUninit<*mut moco_features>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let backbone = required(backbone, "backbone")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let images = unsafe { slice(images, n, "images")? };
        let name = |i: usize| format!("images[{i}].data");
        // SAFETY: as above.
        let bytes = images.iter().enumerate().map(|(i, b)| unsafe { slice(b.data, b.len, &name(i)) });
        let bytes = bytes.collect::<Result<Vec<_>>>()?;
        give(out, backbone.features(backbone.extractor.extract_encoded(&bytes)?, n));
        Ok(())
    })
}

/// Features of image files.
///
/// Parameters: `backbone`: a backbone. `paths`: array of `n` paths to files of one image each (JPEG, PNG, TIFF, DICOM, NIfTI). `out`: receives the features.
/// Returns: NULL, or an error that names the files that cannot be used; there are no features then.
/// Memory: free the features with moco_features_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_backbone_extract_paths(
    backbone: Option<&moco_backbone>,
    paths: *const *const c_char,
    n: usize,
    out: Option<&mut MaybeUninit<*mut moco_features>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let backbone = required(backbone, "backbone")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let paths: Vec<PathBuf> = unsafe { texts(paths, n, "paths")? }.into_iter().map(PathBuf::from).collect();
        let files = backbone.extractor.extract_files(&paths, &mut |_| ())?;
        if !files.failed.is_empty() {
            let total = files.failed.len();
            let (codes, reasons): (Vec<moco_code>, Vec<String>) = files
                .failed
                .into_iter()
                .map(|(_, error)| moco_error::from(error))
                .map(|e| (e.code, e.message.to_string_lossy().into_owned()))
                .unzip();
            let more = if total > 5 { format!(" (and {} more)", total - 5) } else { String::new() };
            let message = format!("{total} of {n} files cannot be used: {}{more}", reasons[..total.min(5)].join("; "));
            return Err(moco_error::new(codes[0], message));
        }
        give(out, backbone.features(files.features, n));
        Ok(())
    })
}

/// Frees a backbone.
///
/// Parameters: `backbone`: a backbone or NULL.
/// Thread safety: must be the last call on `backbone`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_backbone_free(backbone: Option<Box<moco_backbone>>) {
    drop(backbone);
}

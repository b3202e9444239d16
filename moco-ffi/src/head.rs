//! Linear heads: fitted on a frozen backbone's features, in the application's process.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::path::Path;

use moco_finetune::linear::{FitOptions, FitProgress, HeadInfo, LinearHead, Phase};

use crate::boundary::{Options, Result, copy_out, give, guard, out_slice, required, slice, texts, utf8, versioned};
use crate::pixels::images;
use crate::{moco_backbone, moco_error, moco_features, moco_pixels};

/// How far a fit is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_fit_progress {
    /// 1 while learning rates are tried, 0 while the head itself is fitted.
    pub sweeping: u32,
    /// Epochs done in this phase.
    pub epoch: u32,
    /// Epochs of this phase.
    pub epochs: u32,
    /// Mean cross-entropy of the last epoch, in nats.
    pub loss: f32,
}

/// Called after each epoch, in the thread that fits. Anything but 0 cancels the fit, which then returns
/// MOCO_CODE_CANCELLED. Must not unwind.
pub type moco_progress_callback =
    Option<unsafe extern "C" fn(progress: *const moco_fit_progress, user: *mut c_void) -> c_int>;

/// How a head is fitted. Start from MOCO_FIT_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_fit_options {
    /// sizeof(moco_fit_options).
    pub struct_size: usize,
    /// As many names as classes, kept with the head. NULL = none.
    pub class_names: *const *const c_char,
    /// NULL = none.
    pub progress: moco_progress_callback,
    /// Handed to `progress`.
    pub user: *mut c_void,
    /// Order of the images, start, held-out part.
    pub seed: u64,
    /// Passes over the features; 100 by default.
    pub epochs: u32,
    /// Features a step; 256 by default.
    pub batch: u32,
    /// Learning rate; by default several are tried and the best on a held-out tenth is taken.
    pub learning_rate: f32,
    /// L2 penalty; none by default.
    pub weight_decay: f32,
    /// 1 = take features as they are. By default they are brought to mean 0 and deviation 1 while the head is fitted;
    /// the head remains a linear layer on the features as they are.
    pub keep_scale: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<moco_fit_options>() == 4 * size_of::<usize>() + 32, "no padding");

// SAFETY: repr(C), `struct_size` first, integers, floats and nullable pointers only, no padding by the assertion above.
unsafe impl Options for moco_fit_options {
    const ZERO: Self = Self {
        struct_size: 0,
        class_names: std::ptr::null(),
        progress: None,
        user: std::ptr::null_mut(),
        seed: 0,
        epochs: 0,
        batch: 0,
        learning_rate: 0.0,
        weight_decay: 0.0,
        keep_scale: 0,
        reserved: 0,
    };
}

/// A linear head: scores = features · weightᵀ + bias, one score a class.
///
/// 1. moco_head_fit(), moco_head_fit_features() or moco_head_fit_pixels() makes one, moco_head_open() reads one.
/// 2. moco_head_predict_features(), moco_head_predict() or moco_head_predict_pixels(), from any number of threads.
/// 3. moco_head_save().
/// 4. moco_head_free().
pub struct moco_head {
    head: LinearHead,
    tap: CString,
    class_names: Vec<CString>,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_head>();

impl moco_head {
    fn new(head: LinearHead) -> moco_head {
        let text = |text: &String| CString::new(text.replace('\0', " ")).expect("NUL was replaced");
        let class_names = head.info().class_names.iter().map(text).collect();
        moco_head { tap: text(&head.info().tap), class_names, head }
    }
}

/// Fits a head on rows of features.
///
/// Parameters: `features`: `n` rows of `dim` floats. `labels`: `n` classes, each below `classes`. `classes`: 2 or more.
/// `options`: or NULL for all defaults. `out`: receives the head, which does not know its backbone.
/// Returns: NULL, or an error: MOCO_CODE_INVALID_ARGUMENT, MOCO_CODE_CANCELLED.
/// Memory: free the head with moco_head_free(). Features and labels are read during the call only.
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_fit(
    features: *const f32,
    n: usize,
    dim: usize,
    labels: *const u32,
    classes: usize,
    options: *const moco_fit_options,
    out: Option<&mut MaybeUninit<*mut moco_head>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        let len = n.checked_mul(dim).ok_or_else(|| moco_error::argument("`n` × `dim` is impossible"))?;
        // SAFETY: forwarded from this function's own contract.
        let features = unsafe { slice(features, len, "features")? };
        // SAFETY: as above.
        let labels = unsafe { slice(labels, n, "labels")? };
        // SAFETY: as above.
        give(out, unsafe { fit(features, labels, classes, HeadInfo::default(), options)? });
        Ok(())
    })
}

/// Fits a head on extracted features. The head remembers tap and backbone.
///
/// Parameters: `features`: features. `tap`: index of the tap in `features`; maps are flattened. `labels`: a class an
/// image, `n` of them. Others as in moco_head_fit().
/// Returns, memory, thread safety: as moco_head_fit().
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_fit_features(
    features: Option<&moco_features>,
    tap: usize,
    labels: *const u32,
    n: usize,
    classes: usize,
    options: *const moco_fit_options,
    out: Option<&mut MaybeUninit<*mut moco_head>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let features = required(features, "features")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let labels = unsafe { slice(labels, n, "labels")? };
        // SAFETY: as above.
        give(out, unsafe { fit_features(features, tap, labels, classes, options)? });
        Ok(())
    })
}

/// Extracts the features of images, of the first tap that the backbone was opened with, and fits a head on them. The
/// head remembers tap and backbone; the backbone does not change.
///
/// Parameters: `backbone`: a backbone. `pixels`, `labels`: `n` images and their classes. Others as in moco_head_fit().
/// Returns, memory, thread safety: as moco_head_fit().
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_fit_pixels(
    backbone: Option<&moco_backbone>,
    pixels: *const moco_pixels,
    labels: *const u32,
    n: usize,
    classes: usize,
    options: *const moco_fit_options,
    out: Option<&mut MaybeUninit<*mut moco_head>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let backbone = required(backbone, "backbone")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let images = unsafe { images(pixels, n, "pixels")? };
        // SAFETY: as above.
        let labels = unsafe { slice(labels, n, "labels")? };
        let features = backbone.features(backbone.extractor.extract(&images)?, n);
        // SAFETY: as above.
        give(out, unsafe { fit_features(&features, 0, labels, classes, options)? });
        Ok(())
    })
}

/// # Safety
/// `options` as in [`versioned`], what it points to as the header says.
unsafe fn fit_features(
    features: &moco_features,
    tap: usize,
    labels: &[u32],
    classes: usize,
    options: *const moco_fit_options,
) -> Result<moco_head> {
    let tap = features.tap(tap)?;
    let images = tap.shape.first().copied().unwrap_or(0);
    if images != labels.len() {
        return Err(moco_error::argument(format!("`n` is {}, but the features are of {images} images", labels.len())));
    }
    let backbone_sha256 = features.backbone_sha256.clone();
    let info = HeadInfo { tap: tap.tap.clone(), backbone_sha256, ..HeadInfo::default() };
    // SAFETY: forwarded.
    unsafe { fit(&tap.data, labels, classes, info, options) }
}

/// # Safety
/// As [`fit_features`].
unsafe fn fit(
    features: &[f32],
    labels: &[u32],
    classes: usize,
    mut info: HeadInfo,
    options: *const moco_fit_options,
) -> Result<moco_head> {
    // SAFETY: forwarded.
    let options = unsafe { versioned(options, "options")? };
    if !options.class_names.is_null() {
        // SAFETY: as many names as classes, by contract.
        let names = unsafe { texts(options.class_names, classes, "options->class_names")? };
        info.class_names = names.into_iter().map(str::to_owned).collect();
    }
    let defaults = FitOptions::default();
    let or = |given: u32, default: usize| if given == 0 { default } else { given as usize };
    let fit_options = FitOptions {
        epochs: or(options.epochs, defaults.epochs),
        batch: or(options.batch, defaults.batch),
        learning_rate: options.learning_rate,
        weight_decay: options.weight_decay,
        seed: options.seed,
        standardise: options.keep_scale == 0,
        ..defaults
    };
    let mut progress = |p: &FitProgress| {
        let Some(callback) = options.progress else { return ControlFlow::Continue(()) };
        let told = moco_fit_progress {
            sweeping: u32::from(p.phase == Phase::Sweep),
            epoch: p.epoch as u32,
            epochs: p.epochs as u32,
            loss: p.loss,
        };
        // SAFETY: a callback of this signature with its own pointer, by contract.
        if unsafe { callback(&told, options.user) } == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let labels: Vec<usize> = labels.iter().map(|l| *l as usize).collect();
    Ok(moco_head::new(LinearHead::fit(features, &labels, classes, info, &fit_options, &mut progress)?.0))
}

/// Reads a head that moco_head_save() or `moco-train eval linear --save` wrote.
///
/// Parameters: `path`: the file. `out`: receives the head.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_FORMAT.
/// Memory: free the head with moco_head_free().
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_open(
    path: *const c_char,
    out: Option<&mut MaybeUninit<*mut moco_head>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        give(out, moco_head::new(LinearHead::open(Path::new(path))?));
        Ok(())
    })
}

/// Writes a head to a safetensors file, whole or not at all.
///
/// Parameters: `head`: a head. `path`: the file, which is replaced if it exists.
/// Returns: NULL, or an error: MOCO_CODE_IO.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_save(head: Option<&moco_head>, path: *const c_char) -> Option<Box<moco_error>> {
    guard(|| {
        let head = required(head, "head")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        Ok(head.head.save(Path::new(path))?)
    })
}

/// Number of classes.
///
/// Parameters: `head`: a head or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_head_classes(head: Option<&moco_head>) -> usize {
    head.map_or(0, |h| h.head.classes())
}

/// Number of features it reads.
///
/// Parameters: `head`: a head or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_head_dim(head: Option<&moco_head>) -> usize {
    head.map_or(0, |h| h.head.dim())
}

/// The tap whose features it reads, e.g. "pooled".
///
/// Parameters: `head`: a head or NULL.
/// Returns: its name; empty if the head does not know; NULL for NULL.
/// Memory: the text belongs to `head`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_head_tap(head: Option<&moco_head>) -> *const c_char {
    head.map_or(std::ptr::null(), |h| h.tap.as_ptr())
}

/// Name of a class.
///
/// Parameters: `head`: a head or NULL. `label`: the class, from 0.
/// Returns: its name; NULL if there is none.
/// Memory: the text belongs to `head`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_head_class_name(head: Option<&moco_head>, label: usize) -> *const c_char {
    head.and_then(|h| h.class_names.get(label)).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Probabilities and classes for rows of features.
///
/// Parameters: `head`: a head. `features`: `n` rows of `dim` floats, `dim` = moco_head_dim(). `probabilities`: receives
/// `n` rows of moco_head_classes() floats that add up to 1; its length is `probabilities_len`; NULL and 0 if not wanted.
/// `labels`: receives `n` classes, the most probable ones; its length is `labels_len`; NULL and 0 if not wanted.
/// Returns: NULL, or an error; the arrays are unchanged then.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_predict(
    head: Option<&moco_head>,
    features: *const f32,
    n: usize,
    dim: usize,
    probabilities: *mut f32,
    probabilities_len: usize,
    labels: *mut u32,
    labels_len: usize,
) -> Option<Box<moco_error>> {
    guard(|| {
        let head = &required(head, "head")?.head;
        if dim != head.dim() {
            return Err(moco_error::argument(format!("`dim` is {dim}, the head reads {} features", head.dim())));
        }
        let len = n.checked_mul(dim).ok_or_else(|| moco_error::argument("`n` × `dim` is impossible"))?;
        // SAFETY: forwarded from this function's own contract.
        let features = unsafe { slice(features, len, "features")? };
        // SAFETY: as above.
        unsafe { predict(head, features, (probabilities, probabilities_len), (labels, labels_len)) }
    })
}

/// Probabilities and classes for extracted features.
///
/// Parameters: `head`: a head. `features`: features. `tap`: index of the tap in `features`; maps are flattened. Others as in
/// moco_head_predict(), with `n` = moco_features_images().
/// Returns: NULL, or an error, also where the head remembers another tap or backbone than these features are of.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_predict_features(
    head: Option<&moco_head>,
    features: Option<&moco_features>,
    tap: usize,
    probabilities: *mut f32,
    probabilities_len: usize,
    labels: *mut u32,
    labels_len: usize,
) -> Option<Box<moco_error>> {
    guard(|| {
        let head = &required(head, "head")?.head;
        let features = required(features, "features")?;
        let tap = features.tap(tap)?;
        head.check_backbone(&tap.tap, tap.shape[1..].iter().product(), &features.backbone_sha256)?;
        // SAFETY: forwarded from this function's own contract.
        unsafe { predict(head, &tap.data, (probabilities, probabilities_len), (labels, labels_len)) }
    })
}

/// Probabilities and classes for images: features are extracted by the backbone the head was fitted on.
///
/// Parameters: `head`: a head that knows its tap and backbone. `backbone`: the same backbone file, opened with that tap.
/// `pixels`: `n` images. Others as in moco_head_predict().
/// Returns: NULL, or an error, also where head and backbone do not belong together.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_head_predict_pixels(
    head: Option<&moco_head>,
    backbone: Option<&moco_backbone>,
    pixels: *const moco_pixels,
    n: usize,
    probabilities: *mut f32,
    probabilities_len: usize,
    labels: *mut u32,
    labels_len: usize,
) -> Option<Box<moco_error>> {
    guard(|| {
        let head = &required(head, "head")?.head;
        let backbone = required(backbone, "backbone")?;
        let tap = match head.info().tap.as_str() {
            "" => &backbone.extractor.taps()[0],
            tap => tap,
        };
        let taps = backbone.extractor.taps();
        let index = taps.iter().position(|t| t == tap).ok_or_else(|| {
            let message = format!("the head reads tap `{tap}`, the backbone was opened with {}", taps.join(", "));
            moco_error::argument(message)
        })?;
        // SAFETY: forwarded from this function's own contract.
        let images = unsafe { images(pixels, n, "pixels")? };
        let features = &backbone.extractor.extract(&images)?[index];
        head.check_backbone(tap, features.shape[1..].iter().product(), &backbone.sha256)?;
        // SAFETY: as above.
        unsafe { predict(head, &features.data, (probabilities, probabilities_len), (labels, labels_len)) }
    })
}

/// # Safety
/// Each array is NULL or has as many writable elements as is said.
unsafe fn predict(
    head: &LinearHead,
    features: &[f32],
    (probabilities, probabilities_len): (*mut f32, usize),
    (labels, labels_len): (*mut u32, usize),
) -> Result<()> {
    // SAFETY: forwarded.
    let probabilities = unsafe { out_slice(probabilities, probabilities_len, "probabilities")? };
    // SAFETY: forwarded.
    let labels = unsafe { out_slice(labels, labels_len, "labels")? };
    let n = features.len() / head.dim();
    // Both lengths are checked before either array is written.
    if !labels.is_empty() && labels.len() != n {
        return Err(moco_error::argument(format!("`labels_len` is {}, expected {n}", labels.len())));
    }
    if !probabilities.is_empty() {
        copy_out(&head.probabilities(features)?, probabilities, "probabilities")?;
    }
    if !labels.is_empty() {
        let predicted: Vec<u32> = head.predict(features)?.into_iter().map(|l| l as u32).collect();
        copy_out(&predicted, labels, "labels")?;
    }
    Ok(())
}

/// Frees a head.
///
/// Parameters: `head`: a head or NULL.
/// Thread safety: must be the last call on `head`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_head_free(head: Option<Box<moco_head>>) {
    drop(head);
}

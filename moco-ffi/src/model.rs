//! Models: a backbone and a head in one file, turned on images.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use moco_engine::compute::{DeviceChoice, Precision};
use moco_finetune::model::{Model, PredictOptions, Prediction, Predictor};
use moco_image::{ImageFile, Raster, ReadOptions};
use moco_models::onnx::ModelExport;

use crate::boundary::{Options, Result, give, guard, optional_utf8, required, texts, utf8, versioned};
use crate::pixels::images;
use crate::samples::{Expected, Given};
use crate::session_options::device;
use crate::{moco_error, moco_metrics, moco_pixels, moco_prediction, moco_samples, moco_task};

/// How a model is asked. Start from MOCO_PREDICT_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_predict_options {
    /// sizeof(moco_predict_options).
    pub struct_size: usize,
    /// "auto" (the default: a GPU if there is one), "cpu", "cuda:0".
    pub device: *const c_char,
    /// Images, or tiles of a large image, that are computed at once; chosen by default. Changes answers by rounding only.
    pub batch: u32,
    /// Detection: most objects an image; 100 by default.
    pub max_detections: u32,
    /// Detection: objects that are less sure are left out; 0.05 by default.
    pub score: f32,
    /// Detection: of two boxes of a class that overlap by more (intersection over union), the surer is kept; 0.6 by default.
    pub nms_iou: f32,
}

const _: () = assert!(size_of::<moco_predict_options>() == 2 * size_of::<usize>() + 16, "no padding");

// SAFETY: repr(C), `struct_size` first, integers, floats and nullable pointers only, no padding by the assertion above.
unsafe impl Options for moco_predict_options {
    const ZERO: Self =
        Self { struct_size: 0, device: std::ptr::null(), batch: 0, max_detections: 0, score: 0.0, nms_iou: 0.0 };
}

/// A model: a backbone and a head, in one file; it answers with classes, masks or boxes.
///
/// 1. moco_session_model() makes one, moco_model_open() reads one.
/// 2. moco_model_predict() or moco_model_predict_paths(), moco_model_evaluate(), from any number of threads.
/// 3. moco_model_save(), moco_model_export_onnx().
/// 4. moco_model_free().
pub struct moco_model {
    model: Model,
    expected: Expected,
    card: CString,
    head: CString,
    class_names: Vec<CString>,
    /// Networks that are set up on a device; one is taken out while a thread uses it.
    idle: Mutex<Vec<(DeviceChoice, Predictor)>>,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_model>();

/// Reads a model.
///
/// Parameters: `path`: a file that moco_model_save() or `moco-train finetune` wrote, or hf://owner/name[@revision][/file] in
/// a Hub of models. `out`: receives the model.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_FORMAT, also for the file of a backbone or of a linear head alone.
/// Memory: free the model with moco_model_free().
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_open(
    path: *const c_char,
    out: Option<&mut MaybeUninit<*mut moco_model>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        let path = moco_hub::locate(Path::new(path), &mut |_| ())?;
        give(out, moco_model::new(Model::open(&path)?));
        Ok(())
    })
}

/// Writes a model to a safetensors file, whole or not at all: the backbone's tensors under torchvision's names, the head's
/// under head.*, both cards.
///
/// Parameters: `model`: a model. `path`: the file, which is replaced if it exists.
/// Returns: NULL, or an error: MOCO_CODE_IO.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_save(model: Option<&moco_model>, path: *const c_char) -> Option<Box<moco_error>> {
    guard(|| {
        let model = required(model, "model")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        Ok(model.model.save(Path::new(path))?)
    })
}

/// Writes a model to one ONNX file, in which all lies between an image that has been prepared and probabilities, a mask or
/// boxes; a detector's boxes are not thinned out in it.
///
/// Parameters: `model`: a model. `path`: the file, which is replaced if it exists.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_FORMAT for weights above 2 GB.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_export_onnx(
    model: Option<&moco_model>,
    path: *const c_char,
) -> Option<Box<moco_error>> {
    guard(|| {
        let model = required(model, "model")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        Ok(model.model.export_onnx(Path::new(path), &ModelExport::default())?)
    })
}

/// What it says about an image.
///
/// Parameters: `model`: a model or NULL.
/// Returns: a moco_task; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_task(model: Option<&moco_model>) -> u32 {
    model.map_or(0, |m| moco_task::from(m.expected.task) as u32)
}

/// Number of classes.
///
/// Parameters: `model`: a model or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_classes(model: Option<&moco_model>) -> usize {
    model.map_or(0, |m| m.class_names.len())
}

/// Name of a class.
///
/// Parameters: `model`: a model or NULL. `label`: the class, from 0.
/// Returns: its name; NULL if there is no such class.
/// Memory: the text belongs to `model`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_class_name(model: Option<&moco_model>, label: usize) -> *const c_char {
    model.and_then(|m| m.class_names.get(label)).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Channels of the images it reads.
///
/// Parameters: `model`: a model or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_channels(model: Option<&moco_model>) -> usize {
    model.map_or(0, |m| m.expected.channels)
}

/// The card of its backbone as JSON, as moco_backbone_card() gives it.
///
/// Parameters: `model`: a model or NULL.
/// Returns: text; NULL for NULL.
/// Memory: the text belongs to `model`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_card(model: Option<&moco_model>) -> *const c_char {
    model.map_or(std::ptr::null(), |m| m.card.as_ptr())
}

/// The card of its head as JSON: head, classes, size and preparation of images, training options, measures.
///
/// Parameters: `model`: a model or NULL.
/// Returns: text; NULL for NULL.
/// Memory: the text belongs to `model`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_head(model: Option<&moco_model>) -> *const c_char {
    model.map_or(std::ptr::null(), |m| m.head.as_ptr())
}

/// Answers about images in memory, of any size: each in pixels of its image.
///
/// Parameters: `model`: a model. `pixels`: array of `n` images, which may differ in size and type. `options`: or NULL for all
/// defaults. `out`: receives the answers.
/// Returns: NULL, or an error that names the image.
/// Memory: pixels are copied; free the answers with moco_prediction_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_predict(
    model: Option<&moco_model>,
    pixels: *const moco_pixels,
    n: usize,
    options: *const moco_predict_options,
    out: Option<&mut MaybeUninit<*mut moco_prediction>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let model = required(model, "model")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let images = unsafe { images(pixels, n, "pixels")? };
        // SAFETY: as above.
        let asked = unsafe { Asked::new(options)? };
        let images: Vec<_> = images.iter().collect();
        let answers = model.with(&asked, |predictor| Ok(predictor.predict(&images)?))?;
        give(out, moco_prediction::new(answers));
        Ok(())
    })
}

/// Answers about image files, of any size: each in pixels of its image.
///
/// Parameters: `model`: a model. `paths`: array of `n` paths to files of one image each (JPEG, PNG, TIFF, DICOM, NIfTI).
/// `options`: or NULL for all defaults. `out`: receives the answers.
/// Returns: NULL, or an error that names the file.
/// Memory: free the answers with moco_prediction_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_predict_paths(
    model: Option<&moco_model>,
    paths: *const *const c_char,
    n: usize,
    options: *const moco_predict_options,
    out: Option<&mut MaybeUninit<*mut moco_prediction>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let model = required(model, "model")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let paths: Vec<PathBuf> = unsafe { texts(paths, n, "paths")? }.into_iter().map(PathBuf::from).collect();
        // SAFETY: as above.
        let asked = unsafe { Asked::new(options)? };
        let answers = model.with(&asked, |predictor| predict_files(predictor, &paths, asked.options.batch))?;
        give(out, moco_prediction::new(answers));
        Ok(())
    })
}

/// Measures a model on labelled images.
///
/// Parameters: `model`: a model. `samples`: as in moco_samples, of the model's task and classes. `options`: or NULL for all
/// defaults. `out`: receives the measures.
/// Returns: NULL, or an error that names the sample.
/// Memory: samples are read during the call only, from threads of libmoco; free the measures with moco_metrics_free().
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_model_evaluate(
    model: Option<&moco_model>,
    samples: *const moco_samples,
    options: *const moco_predict_options,
    out: Option<&mut MaybeUninit<*mut moco_metrics>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let model = required(model, "model")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let samples = unsafe { Given::new(samples, model.expected.clone(), "samples")? };
        // SAFETY: as above.
        let asked = unsafe { Asked::new(options)? };
        let evaluation =
            model.with(&asked, |predictor| Ok(predictor.evaluate(&samples, &mut |_| ControlFlow::Continue(()))?))?;
        give(out, moco_metrics::new(evaluation));
        Ok(())
    })
}

/// Frees a model.
///
/// Parameters: `model`: a model or NULL.
/// Thread safety: must be the last call on `model`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_model_free(model: Option<Box<moco_model>>) {
    drop(model);
}

impl moco_model {
    pub(crate) fn new(model: Model) -> moco_model {
        let text = |text: &str| CString::new(text.replace('\0', " ")).expect("NUL was replaced");
        let head = model.head_card();
        moco_model {
            expected: Expected::new(model.head().task(), model.class_names(), &head.preprocess),
            card: text(&model.card().to_json()),
            head: text(&head.to_json()),
            class_names: model.class_names().iter().map(|name| text(name)).collect(),
            model,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Uses a network that no other thread uses, a new one if there is none.
    fn with<T>(&self, asked: &Asked, body: impl FnOnce(&mut Predictor) -> Result<T>) -> Result<T> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let mut idle = idle();
            idle.iter().position(|(device, _)| *device == asked.device).map(|at| idle.swap_remove(at).1)
        };
        let mut predictor = match found {
            Some(mut predictor) => {
                predictor.set_options(asked.options)?;
                predictor
            }
            None => self.model.predictor(asked.device, Precision::F32, asked.options)?,
        };
        let result = body(&mut predictor)?;
        idle().push((asked.device, predictor));
        Ok(result)
    }
}

/// What is asked for.
struct Asked {
    device: DeviceChoice,
    options: PredictOptions,
}

impl Asked {
    /// # Safety
    /// `options` as in [`versioned`].
    unsafe fn new(options: *const moco_predict_options) -> Result<Asked> {
        // SAFETY: forwarded.
        let raw = unsafe { versioned(options, "options")? };
        // SAFETY: forwarded.
        let name = unsafe { optional_utf8(raw.device, "options->device")? };
        let mut options = PredictOptions::default();
        for (field, given) in [(&mut options.batch, raw.batch), (&mut options.max_detections, raw.max_detections)] {
            if given > 0 {
                *field = given as usize;
            }
        }
        for (field, given) in [(&mut options.score, raw.score), (&mut options.nms_iou, raw.nms_iou)] {
            if given != 0.0 {
                *field = given;
            }
        }
        options.validate()?;
        Ok(Asked { device: name.map_or(Ok(DeviceChoice::Auto), device)?, options })
    }
}

/// Answers about files, `batch` of which are in memory at a time.
fn predict_files(predictor: &mut Predictor, paths: &[PathBuf], batch: usize) -> Result<Vec<Prediction>> {
    let mut predictions = Vec::with_capacity(paths.len());
    for paths in paths.chunks(batch) {
        let images = paths.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
        match predictor.predict(&images.iter().collect::<Vec<_>>()) {
            Ok(answers) => predictions.extend(answers),
            // Which of them was it?
            Err(error) => {
                for (image, path) in images.iter().zip(paths) {
                    predictor.predict(&[image]).map_err(|e| named(path, e.into()))?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(predictions)
}

fn read(path: &Path) -> Result<Raster> {
    let one = || -> Result<Raster> {
        let file = ImageFile::open_path(path, &ReadOptions::default())?;
        match file.info().frames {
            1 => Ok(file.read(0)?.in_units()?),
            n => Err(moco_error::argument(format!("holds {n} images: open it by moco_image_open() and choose one"))),
        }
    };
    one().map_err(|e| named(path, e))
}

fn named(path: &Path, error: moco_error) -> moco_error {
    let (name, message) = (path.display().to_string(), error.message.to_string_lossy());
    let message = if message.starts_with(&name) { message.into_owned() } else { format!("{name}: {message}") };
    moco_error::new(error.code, message)
}

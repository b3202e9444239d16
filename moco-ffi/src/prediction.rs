//! What a model answers, and how well.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use moco_finetune::model::{Evaluation, Prediction};

use crate::boundary::{guard, required, utf8};
use crate::moco_error;

/// An object that was found. Edges, not pixel indices, in pixels of the image that was given.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_detection {
    /// Left edge.
    pub x0: f32,
    /// Upper edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Lower edge.
    pub y1: f32,
    /// Its class, from 0.
    pub label: u32,
    /// How sure, 0 to 1.
    pub score: f32,
}

/// Answers about a number of images, each in pixels of its image.
///
/// 1. moco_model_predict() or moco_model_predict_paths() gives it.
/// 2. moco_prediction_label() and …_probabilities() for classification, …_mask() and …_confidence() for segmentation,
///    …_detections() for detection.
/// 3. moco_prediction_free().
pub struct moco_prediction {
    images: Vec<Answer>,
}

enum Answer {
    Classes(Vec<f32>),
    Mask { size: [usize; 2], classes: Vec<u8>, confidence: Vec<f32> },
    Boxes(Vec<moco_detection>),
}

/// How well a model does on labelled images: measures by name.
///
/// 1. moco_session_evaluate() or moco_model_evaluate() gives it.
/// 2. moco_metrics_get() by name, or moco_metrics_name() and …_value() for all of them.
/// 3. moco_metrics_free().
pub struct moco_metrics {
    images: usize,
    named: Vec<(CString, f64)>,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_prediction>();
const _: () = shareable::<moco_metrics>();

impl moco_prediction {
    pub(crate) fn new(predictions: Vec<Prediction>) -> moco_prediction {
        let answer = |prediction| match prediction {
            Prediction::Class(probabilities) | Prediction::Classes(probabilities) => Answer::Classes(probabilities),
            Prediction::Mask(mask, confidence) => {
                Answer::Mask { size: [mask.height(), mask.width()], classes: mask.into_data(), confidence }
            }
            Prediction::Boxes(found) => {
                let plain = |d: moco_finetune::task::Detection| moco_detection {
                    x0: d.bbox.x0,
                    y0: d.bbox.y0,
                    x1: d.bbox.x1,
                    y1: d.bbox.y1,
                    label: d.label as u32,
                    score: d.score,
                };
                Answer::Boxes(found.into_iter().map(plain).collect())
            }
        };
        moco_prediction { images: predictions.into_iter().map(answer).collect() }
    }
}

impl moco_metrics {
    pub(crate) fn new(evaluation: Evaluation) -> moco_metrics {
        let text = |text: String| CString::new(text.replace('\0', " ")).expect("NUL was replaced");
        let named = evaluation.metrics.into_iter().map(|(name, value)| (text(name), value)).collect();
        moco_metrics { images: evaluation.images, named }
    }
}

/// Number of images.
///
/// Parameters: `prediction`: answers or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_images(prediction: Option<&moco_prediction>) -> usize {
    prediction.map_or(0, |p| p.images.len())
}

/// The most probable class of an image: the first of them, if several are as probable.
///
/// Parameters: `prediction`: answers of a classifier. `image`: index, from 0. `out`: receives the class.
/// Returns: NULL, or an error if there is no such image or the model is no classifier.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_label(
    prediction: Option<&moco_prediction>,
    image: usize,
    out: Option<&mut MaybeUninit<u32>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let prediction = required(prediction, "prediction")?;
        let out = required(out, "out")?;
        let Some(answer) = prediction.images.get(image) else {
            let n = prediction.images.len();
            return Err(moco_error::argument(format!("`image` is {image}, there are {n} images (from 0)")));
        };
        let Answer::Classes(probabilities) = answer else {
            return Err(moco_error::argument("these are not the answers of a classifier: they hold masks or boxes"));
        };
        let best =
            probabilities.iter().enumerate().fold(0, |best, (i, p)| if *p > probabilities[best] { i } else { best });
        out.write(best as u32);
        Ok(())
    })
}

/// Probabilities of the classes of an image: they add up to 1 for MOCO_TASK_CLASSIFY, and stand each on its own for
/// MOCO_TASK_MULTI_LABEL.
///
/// Parameters: `prediction`: answers. `image`: index, from 0. `len`: receives the number of classes; may be NULL.
/// Returns: the first probability; NULL if there is no such image or the model is no classifier.
/// Memory: the array belongs to `prediction`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_probabilities(
    prediction: Option<&moco_prediction>,
    image: usize,
    len: Option<&mut MaybeUninit<usize>>,
) -> *const f32 {
    match answer(prediction, image) {
        Some(Answer::Classes(probabilities)) => lend(probabilities, len),
        _ => lend(&[], len),
    }
}

/// The most probable class of every pixel of an image: rows from top to bottom, without gaps, as many as the image has.
///
/// Parameters: `prediction`: answers. `image`: index, from 0. `width`, `height`: receive the size of the image; may be NULL.
/// Returns: the first class; NULL, with a size of 0, if there is no such image or the model does not segment.
/// Memory: the array belongs to `prediction`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_mask(
    prediction: Option<&moco_prediction>,
    image: usize,
    width: Option<&mut MaybeUninit<usize>>,
    height: Option<&mut MaybeUninit<usize>>,
) -> *const u8 {
    let (size, classes) = match answer(prediction, image) {
        Some(Answer::Mask { size, classes, .. }) => (*size, &classes[..]),
        _ => ([0, 0], &[][..]),
    };
    for (out, side) in [(height, size[0]), (width, size[1])] {
        if let Some(out) = out {
            out.write(side);
        }
    }
    lend(classes, None)
}

/// How probable the class of every pixel is: as many values as the mask has.
///
/// Parameters: `prediction`: answers. `image`: index, from 0. `len`: receives the number of pixels; may be NULL.
/// Returns: the first probability; NULL if there is no such image or the model does not segment.
/// Memory: the array belongs to `prediction`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_confidence(
    prediction: Option<&moco_prediction>,
    image: usize,
    len: Option<&mut MaybeUninit<usize>>,
) -> *const f32 {
    match answer(prediction, image) {
        Some(Answer::Mask { confidence, .. }) => lend(confidence, len),
        _ => lend(&[], len),
    }
}

/// The objects found in an image, the surest first.
///
/// Parameters: `prediction`: answers. `image`: index, from 0. `len`: receives their number.
/// Returns: the first object; NULL, with a number of 0, if there is none, no such image, or the model does not detect.
/// Memory: the array belongs to `prediction`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_detections(
    prediction: Option<&moco_prediction>,
    image: usize,
    len: Option<&mut MaybeUninit<usize>>,
) -> *const moco_detection {
    match answer(prediction, image) {
        Some(Answer::Boxes(found)) => lend(found, len),
        _ => lend(&[], len),
    }
}

/// Frees answers.
///
/// Parameters: `prediction`: answers or NULL.
/// Thread safety: must be the last call on `prediction`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_prediction_free(prediction: Option<Box<moco_prediction>>) {
    drop(prediction);
}

/// Number of images that were measured.
///
/// Parameters: `metrics`: measures or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_metrics_images(metrics: Option<&moco_metrics>) -> usize {
    metrics.map_or(0, |m| m.images)
}

/// Number of measures. The first is the one by which a session chooses the best weights: accuracy, map (of multi-label
/// classification and of detection, there as COCO defines it), mean_dice.
///
/// Parameters: `metrics`: measures or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_metrics_len(metrics: Option<&moco_metrics>) -> usize {
    metrics.map_or(0, |m| m.named.len())
}

/// Name of a measure.
///
/// Parameters: `metrics`: measures or NULL. `index`: from 0.
/// Returns: its name; NULL if there is no such measure.
/// Memory: the text belongs to `metrics`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_metrics_name(metrics: Option<&moco_metrics>, index: usize) -> *const c_char {
    metrics.and_then(|m| m.named.get(index)).map_or(std::ptr::null(), |(name, _)| name.as_ptr())
}

/// Value of a measure.
///
/// Parameters: `metrics`: measures or NULL. `index`: from 0.
/// Returns: its value; NaN if there is no such measure.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_metrics_value(metrics: Option<&moco_metrics>, index: usize) -> f64 {
    metrics.and_then(|m| m.named.get(index)).map_or(f64::NAN, |(_, value)| *value)
}

/// Value of a measure by its name. Measures that are not defined, such as the recall of a class that no image has, are
/// not there.
///
/// Parameters: `metrics`: measures. `name`: e.g. "accuracy". `out`: receives the value.
/// Returns: NULL, or an error that names the measures there are.
/// Thread safety: const.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_metrics_get(
    metrics: Option<&moco_metrics>,
    name: *const c_char,
    out: Option<&mut MaybeUninit<f64>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let metrics = required(metrics, "metrics")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let name = unsafe { utf8(name, "name")? };
        match metrics.named.iter().find(|(known, _)| known.as_bytes() == name.as_bytes()) {
            Some((_, value)) => out.write(*value),
            None => {
                let known: Vec<_> = metrics.named.iter().map(|(name, _)| name.to_string_lossy()).collect();
                return Err(moco_error::argument(format!("there is no `{name}`, only {}", known.join(", "))));
            }
        };
        Ok(())
    })
}

/// Frees measures.
///
/// Parameters: `metrics`: measures or NULL.
/// Thread safety: must be the last call on `metrics`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_metrics_free(metrics: Option<Box<moco_metrics>>) {
    drop(metrics);
}

fn answer(prediction: Option<&moco_prediction>, image: usize) -> Option<&Answer> {
    prediction.and_then(|p| p.images.get(image))
}

/// The first element of an array that is lent, NULL for an empty one.
fn lend<T>(values: &[T], len: Option<&mut MaybeUninit<usize>>) -> *const T {
    if let Some(len) = len {
        len.write(values.len());
    }
    if values.is_empty() { std::ptr::null() } else { values.as_ptr() }
}

//! `moco-infer`: features of images through ONNX Runtime.
//!
//! A [`Backbone`] is a safetensors file with its card. An [`Extractor`] turns images, files or encoded bytes into the
//! features of any of its taps; preprocessing is [`moco_image::preprocess`] under the card's rule and nothing else, so
//! that trainer, this crate, the C ABI and every binding see the same pixels. The ONNX model is built in memory over
//! the bytes of the weight file; nothing is converted on disk.
//!
//! ```no_run
//! use moco_infer::{Backbone, Extractor, ExtractorOptions};
//! # fn main() -> Result<(), moco_infer::Error> {
//! let backbone = Backbone::open("run/backbone.safetensors".as_ref())?;
//! let extractor = Extractor::new(&backbone, &ExtractorOptions::default())?;
//! let image = moco_image::decode_file("cat.jpg".as_ref(), &moco_image::Limits::default())?;
//! let pooled = &extractor.extract(&[image])?[0]; // shape [1, 512] for a ResNet-18
//! # let _ = pooled; Ok(())
//! # }
//! ```
//!
//! A [`Predictor`] is a fine-tuned model: a model file of `moco-train finetune` or the ONNX file exported from it, asked
//! about images of any size.
//!
//! The library is public interface; the crates below it (`moco-models`, `moco-image`) are not stable.

mod asynchronous;
mod backbone;
mod calibrate;
mod clock;
mod error;
mod extractor;
mod files;
mod folder;
mod input;
mod network;
mod pool;
mod predict;
mod runtime;

pub use asynchronous::AsyncExtractor;
pub use backbone::Backbone;
pub use calibrate::{Calibrated, CalibrationOptions, calibrate};
pub use clock::TimeSpent;
pub use error::{Error, Result};
pub use extractor::{Extractor, ExtractorOptions, Features, Precision};
pub use files::{FileFeatures, FileRow};
pub use folder::{FrameOf, ImagePlace, Reader, frames_of, image_files};
pub use input::Input;
pub use moco_models::calibration::{Accuracy, Calibration, TapAccuracy};
pub use network::{Network, NetworkOptions, NetworkOutput, Values};
pub use predict::{PredictedBox, PredictedMask, Prediction, Predictor, PredictorOptions};
pub use runtime::{LIBRARY_VARIABLES, runtime_info};

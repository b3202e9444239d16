//! `moco-infer predict`: what a fine-tuned model says about a folder of images.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use moco_hub::{Bar, locate};
use moco_image::{Limits, ReadOptions, ValueRange};
use moco_infer::{
    FrameOf, NetworkOptions, PredictedMask, Prediction, Predictor, PredictorOptions, Reader, frames_of, image_files,
};
use moco_models::onnx::Suppress;
use moco_models::write_atomically;
use serde_json::{Map, Value, json};

use super::AxisName;

/// Writes what a fine-tuned model says about all images below DIR: classes, masks or boxes.
///
/// OUT/predictions.jsonl has a JSON object a line for each image: `file`, and `class` with `probabilities`; or `mask`, the
/// name of a PNG below OUT whose grey values are the classes, with the `pixels` of each class; or `boxes` with `x0`, `y0`,
/// `x1`, `y1` in pixels of the image, `class` and `score`; or `error` for an image that cannot be read.
///
/// Example: moco-infer predict photos --model run/model.safetensors --out answers
#[derive(Args)]
pub struct Predict {
    /// Folder of image files (JPEG, PNG, TIFF, DICOM, NIfTI), at any depth. Each frame, page or slice is an image of its
    /// own, named `file#number`.
    dir: PathBuf,
    /// The model: a file that `moco-train finetune` wrote, a folder that holds a model.safetensors, an exported .onnx file, or
    /// hf://owner/name[@revision]/file.
    #[arg(long, value_name = "PLACE")]
    model: PathBuf,
    /// Folder for the answers.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Detectors: leave out boxes of this score or less. An .onnx file has its own.
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    score: f32,
    /// Detectors: of boxes of one class that overlap by more (intersection over union), keep the best. An .onnx file has its own.
    #[arg(long, value_name = "IOU", default_value_t = 0.6)]
    iou: f32,
    /// Detectors: most boxes of an image.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_detections: usize,
    /// Threads [default: the number of cores].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// ONNX Runtime's library; otherwise MOCO_ORT_LIB, ORT_DYLIB_PATH, the folder of the program and the usual places.
    #[arg(long, value_name = "FILE")]
    ort: Option<PathBuf>,
    /// Refuse images of more pixels than this [default: moco-image's limit].
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    /// Which values of images of another depth than the model's become black and white; see `moco-infer embed --help`.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    values: Option<ValueRange>,
    /// Along which axis volumes (NIfTI) are cut into images.
    #[arg(long, value_enum, default_value_t)]
    axis: AxisName,
    /// Give up after this many images that cannot be read.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_skipped: usize,
    /// Write into a folder that holds answers already.
    #[arg(long)]
    force: bool,
}

impl Predict {
    pub fn run(&self) -> Result<()> {
        let answers = self.out.join("predictions.jsonl");
        if answers.exists() && !self.force {
            bail!("{} exists; give another --out, or --force to overwrite", answers.display());
        }
        let files = image_files(&self.dir)?;
        let mut predictor = self.predictor()?;
        let mut limits = Limits::default();
        limits.max_pixels = self.max_pixels.unwrap_or(limits.max_pixels);
        let options = ReadOptions { limits, axis: self.axis.into() };
        let images = frames_of(&files, &options);
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;

        let progress = ProgressBar::new(images.len() as u64);
        let style = "{bar:40} {pos}/{len} images  {per_sec}  {eta} left {msg}";
        progress.set_style(ProgressStyle::with_template(style).context("the progress bar")?);
        let (mut reader, mut lines, mut skipped) = (Reader::default(), Vec::new(), 0);
        let started = std::time::Instant::now();
        for image in &images {
            let name = image.name(&self.dir);
            let answer = match self.answer((&mut reader, &mut predictor), image, &name, &options) {
                Ok(answer) => answer,
                Err(reason) => {
                    skipped += 1;
                    progress.set_message(format!("({skipped} skipped)"));
                    if skipped > self.max_skipped || skipped == images.len() {
                        bail!("{skipped} images cannot be read (--max-skipped); the last: {name}: {reason:#}");
                    }
                    json!({ "file": name, "error": format!("{reason:#}") })
                }
            };
            writeln!(lines, "{answer}").context("the answers")?;
            progress.inc(1);
        }
        progress.finish_and_clear();
        write_atomically(&answers, |out| out.write_all(&lines))?;
        let (seconds, n) = (started.elapsed().as_secs_f64(), images.len() - skipped);
        let rate = n as f64 / seconds;
        println!("{n} images in {seconds:.1} s ({rate:.1} images/s), {skipped} skipped: {}", answers.display());
        Ok(())
    }

    fn predictor(&self) -> Result<Predictor> {
        let mut bar = Bar::default();
        let path = locate(&self.model, &mut |progress| bar.show(progress))?;
        let options = PredictorOptions {
            network: NetworkOptions { threads: self.threads, library: self.ort.clone() },
            suppress: Suppress { iou: self.iou, score: self.score, per_class: self.max_detections },
            max_detections: self.max_detections,
        };
        let mut predictor = Predictor::open(&path, &options)?;
        if let Some(range) = self.values {
            predictor.set_other_depths(range)?;
        }
        Ok(predictor)
    }

    fn answer(
        &self,
        (reader, predictor): (&mut Reader, &mut Predictor),
        place: &FrameOf,
        name: &str,
        options: &ReadOptions,
    ) -> Result<Value> {
        let image = reader.read(place, options)?;
        let prediction = predictor.predict(&image)?;
        let names = &predictor.head().class_names;
        let by_name = |values: &[f32]| -> Map<String, Value> {
            names.iter().zip(values).map(|(name, p)| (name.clone(), json!(p))).collect()
        };
        Ok(match prediction {
            Prediction::Class(p) => {
                let best = (1..p.len()).fold(0, |best, class| if p[class] > p[best] { class } else { best });
                json!({ "file": name, "class": names[best], "probabilities": by_name(&p) })
            }
            Prediction::Classes(p) => {
                let classes: Vec<&String> = names.iter().zip(&p).filter(|(_, p)| **p > 0.5).map(|(n, _)| n).collect();
                json!({ "file": name, "classes": classes, "probabilities": by_name(&p) })
            }
            Prediction::Mask(mask) => {
                let path = format!("masks/{name}.png");
                write_mask(&self.out.join(&path), &mask)?;
                let mut pixels = vec![0_u64; names.len()];
                mask.classes.iter().for_each(|class| pixels[usize::from(*class)] += 1);
                let pixels: Map<String, Value> =
                    names.iter().zip(pixels).map(|(name, n)| (name.clone(), json!(n))).collect();
                json!({ "file": name, "mask": path, "pixels": pixels })
            }
            Prediction::Boxes(boxes) => {
                let object = |b: &moco_infer::PredictedBox| {
                    let [x0, y0, x1, y1] = b.edges;
                    json!({ "x0": x0, "y0": y0, "x1": x1, "y1": y1, "class": names[b.label], "score": b.score })
                };
                json!({ "file": name, "boxes": boxes.iter().map(object).collect::<Vec<_>>() })
            }
        })
    }
}

/// An 8-bit grey PNG whose values are the classes.
fn write_mask(path: &Path, mask: &PredictedMask) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, u32::try_from(mask.width)?, u32::try_from(mask.height)?);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&mask.classes)?;
    writer.finish()?;
    Ok(write_atomically(path, |out| out.write_all(&bytes))?)
}

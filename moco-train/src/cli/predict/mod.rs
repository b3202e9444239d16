//! `moco-train predict`: what a model answers about a folder of images, as files.

mod pictures;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use moco_finetune::model::{Model, PredictOptions, Prediction, Predictor};
use moco_finetune::task::Task;
use moco_hub::Bar;
use moco_image::{PreprocessRule, Raster};
use moco_train::compute::ComputeRecipe;
use moco_train::data::{Channels, DataOptions, Dataset, ReadBuffers, Split};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::compute::ComputeArgs;
use super::depth::DepthArgs;

/// Writes what a fine-tuned model answers about every image of a folder
///
/// Answers are about images of any size and in their pixels. Classification: predictions.csv and predictions.json.
/// Segmentation: masks/ with the number of the class in each pixel, classes.json. Detection: detections.json in the format of
/// COCO results (image_id counts the images from 1 as images.json names them, category_id the classes from 1), with overlays/.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train predict --model runs/cells --data photos --out found --score 0.3")]
pub struct Args {
    /// The model: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(long, value_name = "PLACE")]
    model: PathBuf,

    /// Images: JPEG, PNG, TIFF, DICOM, NIfTI, in a folder or below it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Folder of the answers; must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Draws no pictures with the answers on them
    #[arg(long)]
    no_overlays: bool,

    #[command(flatten)]
    choice: ChoiceArgs,

    #[command(flatten)]
    depth: DepthArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Flags about which answers are given.
#[derive(clap::Args)]
pub struct ChoiceArgs {
    /// Detections below this score are left out
    #[arg(long, default_value_t = 0.05)]
    score: f32,

    /// Of two detections of a class that overlap by more than this (intersection over union), the less sure is left out
    #[arg(long, default_value_t = 0.6, value_name = "IOU")]
    nms: f32,

    /// Most detections an image
    #[arg(long, default_value_t = 100)]
    max_detections: usize,

    /// Images, or windows of one, at once; does not change the answers
    #[arg(long, default_value_t = 8)]
    batch: usize,
}

impl ChoiceArgs {
    /// Opens a model for answers.
    pub fn open(&self, place: &Path, depth: Option<&DepthArgs>, compute: &ComputeArgs) -> Result<(Model, Predictor)> {
        let mut bar = Bar::default();
        let path = moco_hub::locate(place, &mut |progress| bar.show(progress))?;
        let shown = || format!("--model {}", place.display());
        let mut model = Model::open(&path).with_context(shown)?;
        if let Some(depth) = depth {
            let rule = depth.rule(&model.head_card().preprocess);
            model.head_card_mut().preprocess = rule;
        }
        let (compute, note) = compute.wish(ComputeRecipe::default())?.choose()?;
        note.iter().for_each(|note| eprintln!("{note}"));
        let device = moco_train::compute::DeviceChoice::Given(compute.device());
        let predictor = model.predictor(device, compute.precision(), self.options())?;
        Ok((model, predictor))
    }

    fn options(&self) -> PredictOptions {
        let ChoiceArgs { score, nms, max_detections, batch } = *self;
        PredictOptions { batch, score, nms_iou: nms, max_detections }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.out.exists() {
        bail!("--out {}: exists already and is not overwritten", args.out.display());
    }
    args.compute.prepare()?;
    let (model, mut predictor) = args.choice.open(&args.model, Some(&args.depth), &args.compute)?;
    let rule = &model.head_card().preprocess;
    let channels = if rule.channels == 1 { Channels::Grey } else { Channels::Rgb };
    let options = DataOptions { channels, axis: args.depth.axis()?, split: Split::All, ..DataOptions::default() };
    let data = Dataset::open(&args.data, &options).with_context(|| format!("--data {}", args.data.display()))?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("--out {}", args.out.display()))?;

    let bar = ProgressBar::new(data.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} images  {per_sec}  {eta} left")?);
    let mut answers = Answers { out: &args.out, names: model.class_names(), rule, rows: vec![], images: vec![] };
    let indices: Vec<usize> = (0..data.len()).collect();
    for part in indices.chunks(args.choice.batch.max(1)) {
        let images: Vec<Raster> = part.par_iter().map(|&i| read(&data, i)).collect::<Result<_>>()?;
        let predictions = predictor.predict(&images.iter().collect::<Vec<_>>())?;
        for ((&i, image), prediction) in part.iter().zip(&images).zip(&predictions) {
            answers.add(&data.name(i), image, prediction, !args.no_overlays)?;
        }
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    let images = answers.images.len();
    answers.write(model.head().task())?;
    println!("{images} images: {}", args.out.display());
    Ok(())
}

fn read(data: &Dataset, index: usize) -> Result<Raster> {
    let mut image = Raster::default();
    data.load_raster_into(index, &mut ReadBuffers::default(), &mut image).with_context(|| data.name(index))?;
    Ok(image)
}

/// Answers on their way into files.
struct Answers<'a> {
    out: &'a Path,
    names: &'a [String],
    rule: &'a PreprocessRule,
    rows: Vec<Value>,
    images: Vec<Value>,
}

impl Answers<'_> {
    fn add(&mut self, name: &str, image: &Raster, prediction: &Prediction, overlays: bool) -> Result<()> {
        let (height, width) = image.size();
        let id = self.images.len() + 1;
        self.images.push(json!({ "id": id, "file_name": name, "height": height, "width": width }));
        match prediction {
            Prediction::Class(p) | Prediction::Classes(p) => {
                let all: serde_json::Map<_, _> = self.names.iter().cloned().zip(p.iter().map(|p| json!(p))).collect();
                let best = prediction.best_class().map_or("", |(class, _)| &self.names[class]);
                self.rows.push(json!({ "image": name, "class": best, "probabilities": all }));
            }
            Prediction::Mask(mask, _) => {
                let file = pictures::file_for(&self.out.join("masks"), name)?;
                pictures::write_grey(&file, mask.width(), mask.height(), mask.data())?;
                if overlays {
                    let file = pictures::file_for(&self.out.join("overlays"), name)?;
                    pictures::write_mask_overlay(&file, image, self.rule, mask)?;
                }
            }
            Prediction::Boxes(found) => {
                self.rows.extend(found.iter().map(|d| {
                    let bbox = [d.bbox.x0, d.bbox.y0, d.bbox.width(), d.bbox.height()];
                    json!({ "image_id": id, "category_id": d.label + 1, "bbox": bbox, "score": d.score })
                }));
                if overlays {
                    let file = pictures::file_for(&self.out.join("overlays"), name)?;
                    pictures::write_box_overlay(&file, image, self.rule, found)?;
                }
            }
        }
        Ok(())
    }

    fn write(self, task: Task) -> Result<()> {
        let json_file = |name: &str, value: &Value| -> Result<()> {
            let text = serde_json::to_string_pretty(value)?;
            Ok(moco_models::write_atomically(&self.out.join(name), |f| f.write_all(text.as_bytes()))?)
        };
        match task {
            Task::Classify | Task::MultiLabel => {
                let mut csv =
                    format!("image,class,{}\n", self.names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(","));
                for row in &self.rows {
                    let text = |key: &str| quoted(row[key].as_str().unwrap_or_default());
                    let p = self.names.iter().map(|name| row["probabilities"][name].to_string());
                    csv += &format!("{},{},{}\n", text("image"), text("class"), p.collect::<Vec<_>>().join(","));
                }
                moco_models::write_atomically(&self.out.join("predictions.csv"), |f| f.write_all(csv.as_bytes()))?;
                json_file("predictions.json", &Value::Array(self.rows.clone()))
            }
            Task::Segment => json_file("classes.json", &json!({ "classes": self.names, "images": self.images })),
            Task::Detect => {
                let categories: Vec<Value> =
                    self.names.iter().enumerate().map(|(i, name)| json!({ "id": i + 1, "name": name })).collect();
                json_file("images.json", &json!({ "images": self.images, "categories": categories }))?;
                json_file("detections.json", &Value::Array(self.rows.clone()))
            }
        }
    }
}

/// A field of a CSV file (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

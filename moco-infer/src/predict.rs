//! Answers of a fine-tuned model about images of any size: classes, masks and boxes in the image's own pixels.

use std::path::Path;

use moco_image::{Filter, Image, Layout, PreprocessRule, ResizeRule, Scratch, resize_f32};
use moco_models::heads::{Fit, HeadCard, Task};
use moco_models::onnx::{InputSize, ModelExport, Suppress};
use moco_models::weights::{HEAD_KEY, ModelFile};

use crate::network::{Network, NetworkOptions, NetworkOutput, Values};
use crate::{Error, Input, Result};

/// How a [`Predictor`] answers.
#[derive(Clone, Debug)]
pub struct PredictorOptions {
    /// How the network runs.
    pub network: NetworkOptions,
    /// How a detector's boxes are thinned out; an ONNX file holds its own way.
    pub suppress: Suppress,
    /// Most boxes of an image, the best.
    pub max_detections: usize,
}

impl Default for PredictorOptions {
    fn default() -> PredictorOptions {
        PredictorOptions { network: NetworkOptions::default(), suppress: Suppress::default(), max_detections: 100 }
    }
}

/// An answer about an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// Probability of each class; they sum to 1.
    Class(Vec<f32>),
    /// Probability of each class on its own.
    Classes(Vec<f32>),
    /// The likeliest class of every pixel.
    Mask(PredictedMask),
    /// Objects by falling score.
    Boxes(Vec<PredictedBox>),
}

/// Classes of the pixels of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredictedMask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Classes [height, width].
    pub classes: Vec<u8>,
}

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedBox {
    /// Left, upper, right and lower edge in pixels of the image.
    pub edges: [f32; 4],
    /// Its class.
    pub label: usize,
    /// 0 to 1.
    pub score: f32,
}

/// A fine-tuned model in ONNX Runtime. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Predictor {
    network: Network,
    head: HeadCard,
    max_detections: usize,
    scratch: Scratch,
}

/// Where an image lies in the input.
struct Place {
    /// Height and width of the image.
    image: [usize; 2],
    /// Height and width of the input.
    input: [usize; 2],
    /// Height and width that the whole image is resized to.
    full: [usize; 2],
    /// Row and column of the resized image in the input's upper left corner; negative where it is filled.
    corner: [isize; 2],
}

impl Predictor {
    /// Opens a model file, the `model.safetensors` in a folder, or an ONNX file that was exported from one (a detector with
    /// its suppression in it).
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::Session`], [`Error::Runtime`] saying what is wrong with the file;
    /// [`Error::Input`] for a model that reads images in windows.
    pub fn open(path: &Path, options: &PredictorOptions) -> Result<Predictor> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            let network = Network::open(path, &options.network)?;
            let json = network.metadata(HEAD_KEY)?.ok_or_else(|| {
                Error::Input(format!("{}: is no exported model: it has no metadata `{HEAD_KEY}`", path.display()))
            })?;
            return Predictor::new(network, HeadCard::from_json(&json)?, options);
        }
        Predictor::of_model(&ModelFile::open(path)?, options)
    }

    /// As [`Predictor::open`], for a model file that is open.
    ///
    /// # Errors
    /// As [`Predictor::open`].
    pub fn of_model(file: &ModelFile, options: &PredictorOptions) -> Result<Predictor> {
        let suppress = (file.head().task() == Task::Detect).then_some(options.suppress);
        let export = ModelExport { size: InputSize::default(), logits: false, suppress };
        let network = Network::of_model(file, &export, &options.network)?;
        Predictor::new(network, file.head().clone(), options)
    }

    fn new(network: Network, head: HeadCard, options: &PredictorOptions) -> Result<Predictor> {
        if options.max_detections == 0 {
            return Err(Error::Input("max_detections is 0; expected at least 1".into()));
        }
        if let Fit::Tiles { .. } = head.input.fit {
            return Err(Error::Input(
                "this model reads large images in overlapping windows, which `moco-train predict` does".into(),
            ));
        }
        if head.task() == Task::Detect && !network.outputs().iter().any(|name| name == "labels") {
            return Err(Error::Input(
                "this ONNX file gives all boxes of a detector, good and bad; export it with non-maximum suppression, or \
                 give the model file"
                    .into(),
            ));
        }
        Ok(Predictor { network, head, max_detections: options.max_detections, scratch: Scratch::default() })
    }

    /// What the model says about its head.
    pub fn head(&self) -> &HeadCard {
        &self.head
    }

    /// Makes the model read images of another depth than its card's: `range` says which of their values become black and
    /// white.
    ///
    /// # Errors
    /// [`Error::Image`] for a range that is none.
    pub fn set_other_depths(&mut self, range: moco_image::ValueRange) -> Result<()> {
        range.validate()?;
        self.head.preprocess.other_depths = Some(range);
        Ok(())
    }

    /// The answer about an image of any size.
    ///
    /// # Errors
    /// [`Error::Image`] for an image whose channels or depth the model does not read, [`Error::Session`].
    pub fn predict<I: Input>(&mut self, image: &I) -> Result<Prediction> {
        image.check(&self.head.preprocess)?;
        let (place, values) = self.prepare(image)?;
        let [height, width] = place.input;
        let outputs = self.network.run(&values, [1, self.head.preprocess.channels, height, width])?;
        let get = |name: &str| {
            let found = outputs.iter().find(|o| o.name == name);
            found.ok_or_else(|| Error::Session(format!("the model has no output `{name}`")))
        };
        let classes = self.head.head.classes();
        match self.head.task() {
            Task::Classify => Ok(Prediction::Class(f32s(get("probabilities")?, classes)?.to_vec())),
            Task::MultiLabel => Ok(Prediction::Classes(f32s(get("probabilities")?, classes)?.to_vec())),
            Task::Segment => {
                let probabilities = f32s(get("probabilities")?, classes * height * width)?;
                mask(probabilities, classes, &place).map(Prediction::Mask)
            }
            Task::Detect => {
                let Values::I64(labels) = &get("labels")?.values else { return Err(unlike("labels")) };
                let (edges, scores) = (f32s(get("boxes")?, 4 * labels.len())?, f32s(get("scores")?, labels.len())?);
                let mut boxes = Vec::with_capacity(labels.len());
                for ((edges, score), label) in edges.as_chunks::<4>().0.iter().zip(scores).zip(labels) {
                    let label = usize::try_from(*label).ok().filter(|label| *label < classes);
                    let label = label.ok_or_else(|| unlike("labels"))?;
                    boxes.push(PredictedBox { edges: place.to_image(*edges), label, score: *score });
                }
                boxes.retain(|b| b.edges[0] < b.edges[2] && b.edges[1] < b.edges[3]);
                boxes.sort_by(|a, b| b.score.total_cmp(&a.score));
                boxes.truncate(self.max_detections);
                Ok(Prediction::Boxes(boxes))
            }
        }
    }

    /// The input [channels, height, width]; what an image does not fill is 0, the mean.
    fn prepare<I: Input>(&mut self, image: &I) -> Result<(Place, Vec<f32>)> {
        let (height, width) = image.size();
        let input = self.head.input.size;
        let rule = |resize, crop| PreprocessRule { resize, crop, ..self.head.preprocess.clone() };
        let exact = |[height, width]: [usize; 2]| ResizeRule::Exact { height, width };
        let channels = self.head.preprocess.channels;
        let mut place = Place { image: [height, width], input, full: input, corner: [0, 0] };
        let rule = match self.head.input.fit {
            Fit::Stretch => rule(exact(input), None),
            Fit::Letterbox => {
                let scale = (input[0] as f64 / height as f64).min(input[1] as f64 / width as f64);
                place.full = [0, 1].map(|i| ((place.image[i] as f64 * scale).round() as usize).clamp(1, input[i]));
                rule(exact(place.full), None)
            }
            Fit::Cover { shorter } => {
                let full = rule(ResizeRule::ShorterSide(shorter), None).output_size((height, width))?;
                place.full = [full.0, full.1];
                place.corner = [0, 1].map(|i| centre(place.full[i], input[i]));
                rule(ResizeRule::ShorterSide(shorter), Some(input))
            }
            Fit::Tiles { .. } | Fit::Native => {
                (place.input, place.full) = (place.image, place.image);
                rule(ResizeRule::None, None)
            }
        };
        let (rows, columns) = rule.output_size((height, width))?;
        let mut values = vec![0.0; channels * rows * columns];
        image.prepare(&rule, Layout::Nchw, &mut self.scratch, &mut values)?;
        if [rows, columns] == place.input {
            return Ok((place, values));
        }
        let [height, width] = place.input;
        let mut filled = vec![0.0; channels * height * width];
        for (i, row) in values.chunks_exact(columns).enumerate() {
            let at = (i / rows * height + i % rows) * width;
            filled[at..at + columns].copy_from_slice(row);
        }
        Ok((place, filled))
    }
}

impl Place {
    /// Edges in the input as edges in the image, cut off at its border.
    fn to_image(&self, edges: [f32; 4]) -> [f32; 4] {
        let axis = |i: usize, edge: f32| {
            let scale = self.image[i] as f32 / self.full[i] as f32;
            ((edge + self.corner[i] as f32) * scale).clamp(0.0, self.image[i] as f32)
        };
        [axis(1, edges[0]), axis(0, edges[1]), axis(1, edges[2]), axis(0, edges[3])]
    }
}

/// torchvision's `CenterCrop`: offsets round half to even, what is too small is centred.
fn centre(full: usize, input: usize) -> isize {
    if input > full {
        -(((input - full) / 2) as isize)
    } else {
        ((full - input) as f64 / 2.0).round_ties_even() as isize
    }
}

/// The likeliest class of every pixel of the image, from probabilities [classes, height, width] of the input.
fn mask(probabilities: &[f32], classes: usize, place: &Place) -> Result<PredictedMask> {
    let ([rows, columns], [height, width]) = (place.full, place.image);
    if place.corner != [0, 0] {
        return Err(Error::Input(
            "this model sees the centre of an image only: it cannot say what its border is; images are to be stretched \
             or fitted"
                .into(),
        ));
    }
    let [input_rows, input_columns] = place.input;
    let mut shown = vec![0.0; rows * columns * classes];
    for (class, map) in probabilities.chunks_exact(input_rows * input_columns).enumerate() {
        for y in 0..rows {
            for x in 0..columns {
                shown[(y * columns + x) * classes + class] = map[y * input_columns + x];
            }
        }
    }
    let mut map = Image::from_values(columns, rows, classes, shown)?;
    if [rows, columns] != [height, width] {
        map = resize_f32(&map, width, height, Filter::Bilinear)?;
    }
    let likeliest = |p: &[f32]| (1..p.len()).fold(0, |best, class| if p[class] > p[best] { class } else { best }) as u8;
    Ok(PredictedMask { width, height, classes: map.data().chunks_exact(classes).map(likeliest).collect() })
}

fn f32s(output: &NetworkOutput, len: usize) -> Result<&[f32]> {
    output.values.as_f32().filter(|values| values.len() == len).ok_or_else(|| unlike(&output.name))
}

fn unlike(name: &str) -> Error {
    Error::Session(format!("the output `{name}` is not what its model's description says; export the model again"))
}

//! A fine-tuned model: a backbone, a head, and all that is needed to use them.

pub(crate) mod ask;
mod evaluate;
mod prediction;

use std::ops::ControlFlow;
use std::path::Path;

use moco_engine::compute::{Compute, DeviceChoice, Precision};
use moco_image::Raster;
use moco_models::card::Card;
use moco_models::heads::{HeadCard, HeadSpec};
use moco_models::onnx::{ModelExport, export_model};
use moco_models::weights::{ModelFile, save_model};
use moco_models::{Graph, Weights};

use crate::augment::Framing;
use crate::data::LabelledData;
use crate::session::network::{NetworkConfig, Which, open};
use crate::session::stack::Stack;
use crate::{Error, Result};
use ask::Asking;

pub use prediction::{Evaluation, Prediction};

/// A model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    graph: Graph,
    weights: Weights,
    card: Card,
    head: HeadCard,
}

/// How answers are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictOptions {
    /// Images, or windows of one, at once; does not change the answers.
    pub batch: usize,
    /// Detections below this score are left out, 0 to 1.
    pub score: f32,
    /// Of two detections of one class that overlap by more (intersection over union), the less sure one is left out.
    pub nms_iou: f32,
    /// Most detections an image.
    pub max_detections: usize,
}

impl Default for PredictOptions {
    fn default() -> PredictOptions {
        PredictOptions { batch: 8, score: 0.05, nms_iou: 0.6, max_detections: 100 }
    }
}

impl PredictOptions {
    /// # Errors
    /// [`Error::Invalid`] naming the option and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.batch == 0 || self.max_detections == 0 {
            return Err(Error::option("batch, max_detections", "expected 1 or more"));
        }
        for (name, value) in [("score", self.score), ("nms_iou", self.nms_iou)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::option(name, format!("{value}: expected 0 to 1")));
            }
        }
        Ok(())
    }
}

impl Model {
    pub(crate) fn new(graph: Graph, weights: Weights, card: Card, head: HeadCard) -> Result<Model> {
        head.validate()?;
        weights.check(&graph)?;
        Ok(Model { graph, weights, card, head })
    }

    /// Opens a model file.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn open(path: &Path) -> Result<Model> {
        Model::from_file(&ModelFile::open(path)?)
    }

    /// Reads the weights of a model file.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn from_file(file: &ModelFile) -> Result<Model> {
        Model::new(file.graph().clone(), file.weights()?, file.card().clone(), file.head().clone())
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written, or a weight is not finite.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(save_model(path, &self.graph, &self.weights, &self.card, &self.head)?)
    }

    /// Writes it as ONNX with all that lies between an image of its input's size and answers: see
    /// [`export_model`](moco_models::onnx::export_model).
    ///
    /// # Errors
    /// As [`export_model`](moco_models::onnx::export_model).
    pub fn export_onnx(&self, path: &Path, options: &ModelExport) -> Result<()> {
        let file = ModelFile::in_memory("the model", &self.graph, &self.weights, &self.card, &self.head)?;
        Ok(export_model(path, &file, options)?)
    }

    /// Opens it for answers on a device.
    ///
    /// # Errors
    /// If the device is not there, or an option makes no sense.
    pub fn predictor(&self, device: DeviceChoice, precision: Precision, options: PredictOptions) -> Result<Predictor> {
        options.validate()?;
        let (compute, _) = Compute::choose(device, precision)?;
        let outputs = self.head.head.outputs(&self.graph)?;
        let taps = outputs.iter().map(|o| o.tap.clone()).collect();
        let config = NetworkConfig { train: None, taps, moments: 0 };
        // Only what leads to the answers is needed.
        let names: Vec<&str> = outputs.iter().map(|o| o.tap.as_str()).collect();
        let graph = self.graph.keep_taps(&names)?;
        let net = open(&compute, &graph, &config, self.weights.restrict(&self.graph, &graph)?)?;
        let input = self.head.input;
        let framing = Framing { rule: self.head.preprocess.clone(), size: input.size, fit: input.fit };
        let asking = Asking { head: self.head.head.clone(), outputs, framing, fit: input.fit, options };
        Ok(Predictor { asking, stack: Stack::whole(net), class_names: self.head.class_names.clone() })
    }

    /// The backbone in it.
    ///
    /// # Errors
    /// If graph and card contradict each other.
    pub fn backbone(&self) -> Result<(Graph, Weights)> {
        let graph = self.card.arch.build()?;
        let weights = self.weights.restrict(&self.graph, &graph)?;
        Ok((graph, weights))
    }

    /// Backbone and head.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Weights of both.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What the backbone says about itself.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// What the head says about itself.
    pub fn head_card(&self) -> &HeadCard {
        &self.head
    }

    /// To say more about it: data, licence, notes.
    pub fn head_card_mut(&mut self) -> &mut HeadCard {
        &mut self.head
    }

    /// The head.
    pub fn head(&self) -> &HeadSpec {
        &self.head.head
    }

    /// Names of the classes, in the order of the labels.
    pub fn class_names(&self) -> &[String] {
        &self.head.class_names
    }
}

/// A model on a device, ready to answer.
pub struct Predictor {
    asking: Asking,
    stack: Stack,
    class_names: Vec<String>,
}

impl Predictor {
    /// Answers about images of any size, in their pixels.
    ///
    /// # Errors
    /// For an image whose channels or depth the model does not read.
    pub fn predict(&mut self, images: &[&Raster]) -> Result<Vec<Prediction>> {
        self.asking.predict(&mut self.stack, Which::Current, images)
    }

    /// How answers are made from now on.
    ///
    /// # Errors
    /// As [`PredictOptions::validate`].
    pub fn set_options(&mut self, options: PredictOptions) -> Result<()> {
        options.validate()?;
        self.asking.options = options;
        Ok(())
    }

    /// Names of the classes, in the order of the labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The head that answers.
    pub fn head(&self) -> &HeadSpec {
        &self.asking.head
    }

    /// Asks about labelled images; `progress` gets the number of images done and may end it.
    ///
    /// # Errors
    /// For data of another task or other classes, images that cannot be read; [`Error::Cancelled`].
    pub fn evaluate(
        &mut self,
        data: &dyn LabelledData,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Evaluation> {
        if data.classes() != self.class_names {
            return Err(Error::Invalid(format!(
                "the classes of the data are {:?}, those of the model {:?}",
                data.classes(),
                self.class_names
            )));
        }
        self.asking.evaluate(&mut self.stack, Which::Current, data, &self.class_names, progress)
    }
}

//! Heads: what a user trains on a backbone, as functions that append nodes to its graph.
//!
//! A head reads taps of the backbone (`pooled`, or the maps `c1`…`c5`) and names its own results as taps: scores before
//! any softmax or sigmoid, boxes before any decoding. Its parameters begin with [`PREFIX`], which no backbone's do, so
//! one file holds both ([`crate::weights::ModelFile`]) and either can be told from the other.

mod build;
mod card;
mod classify;
mod detect;
mod parse;
mod segment;

use serde::{Deserialize, Serialize};

use self::build::{Builder, strides};
pub use self::card::{Fit, HEAD_FORMAT_VERSION, HeadCard, InputRule};
pub use self::classify::Classify;
pub use self::detect::Detect;
pub use self::segment::{Decoder, Segment};
use crate::init::{Draw, draw, usual};
use crate::{Error, Graph, NodeId, Result, Weights};

/// How the names of a head's nodes and parameters begin.
pub const PREFIX: &str = "head.";

/// Most classes that a head can have: a mask holds a class in one byte, 255 is "ignored".
const MASK_CLASSES: usize = 255;

/// A head and everything that decides its layers; part of the card of a fine-tuned model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum HeadSpec {
    /// Classes of a whole image.
    Classify(Classify),
    /// The class of each pixel.
    Segment(Segment),
    /// Boxes with classes.
    Detect(Detect),
}

/// What a model answers; decides loss, metrics and the shape of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class an image.
    Classify,
    /// Any number of classes an image, each on its own.
    MultiLabel,
    /// One class a pixel.
    Segment,
    /// Boxes.
    Detect,
}

/// One result of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadOutput {
    /// Name of the tap.
    pub tap: String,
    /// What it means.
    pub part: Part,
    /// Channels of a map, length of a vector.
    pub channels: usize,
    /// A map has ⌈height / stride⌉ × ⌈width / stride⌉ pixels for an image of height × width; 0 for a vector.
    pub stride: usize,
}

/// Meaning of a head's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Scores of the classes, before softmax or sigmoid.
    Logits,
    /// Scores of a detector's classes at each place, before the sigmoid.
    Class,
    /// Distances left, top, right and bottom from each place to the edges of its box: `stride · exp(value)` pixels.
    Box,
    /// How central each place is in its box, before the sigmoid.
    Centre,
}

impl HeadSpec {
    /// A linear classifier.
    pub fn classify(classes: usize) -> HeadSpec {
        HeadSpec::Classify(Classify::linear(classes))
    }

    /// A linear classifier whose classes do not exclude each other.
    pub fn multi_label(classes: usize) -> HeadSpec {
        HeadSpec::Classify(Classify { multi_label: true, ..Classify::linear(classes) })
    }

    /// A decoder of the usual width. `classes` counts the background.
    pub fn segment(decoder: Decoder, classes: usize) -> HeadSpec {
        HeadSpec::Segment(Segment::new(decoder, classes))
    }

    /// The usual detector. `classes` does not count the background.
    pub fn detect(classes: usize) -> HeadSpec {
        HeadSpec::Detect(Detect::new(classes))
    }

    /// What it answers.
    pub fn task(&self) -> Task {
        match self {
            HeadSpec::Classify(head) if head.multi_label => Task::MultiLabel,
            HeadSpec::Classify(_) => Task::Classify,
            HeadSpec::Segment(_) => Task::Segment,
            HeadSpec::Detect(_) => Task::Detect,
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            HeadSpec::Classify(head) => head.classes,
            HeadSpec::Segment(head) => head.classes,
            HeadSpec::Detect(head) => head.classes,
        }
    }

    /// Checks that such a head can exist.
    ///
    /// # Errors
    /// [`Error::Arch`] naming the field, what it holds and what is expected.
    pub fn validate(&self) -> Result<()> {
        match self {
            HeadSpec::Classify(head) => head.validate(),
            HeadSpec::Segment(head) => head.validate(),
            HeadSpec::Detect(head) => head.validate(),
        }
    }

    /// The backbone with this head on it: its own projector left out, its other taps kept, the taps of
    /// [`HeadSpec::outputs`] added.
    ///
    /// # Errors
    /// [`Error::Arch`] if the head cannot exist, or for a graph that is no backbone: without the taps the head reads, or
    /// with a head already.
    pub fn attach(&self, backbone: &Graph) -> Result<Graph> {
        self.validate()?;
        if let Some(node) = backbone.nodes().iter().find(|n| n.name.starts_with(PREFIX)) {
            return Err(Error::Arch(format!("the network has a head already (`{}`); give its backbone", node.name)));
        }
        let mut builder = Builder::new(backbone)?;
        match self {
            HeadSpec::Classify(head) => head.append(&mut builder)?,
            HeadSpec::Segment(head) => head.append(&mut builder)?,
            HeadSpec::Detect(head) => head.append(&mut builder)?,
        }
        Ok(builder.finish())
    }

    /// The results of the head in `model`, which [`HeadSpec::attach`] made; those of a detector level by level, the finest
    /// first, each with classes, boxes and centres.
    ///
    /// # Errors
    /// [`Error::Arch`] if `model` lacks one of them.
    pub fn outputs(&self, model: &Graph) -> Result<Vec<HeadOutput>> {
        let strides = strides(model);
        let output = |tap: String, part: Part, channels: usize| {
            let NodeId(node) = model.tap(&tap)?;
            Ok(HeadOutput { tap, part, channels, stride: strides[node] })
        };
        match self {
            HeadSpec::Classify(head) => Ok(vec![output("logits".into(), Part::Logits, head.classes)?]),
            HeadSpec::Segment(head) => Ok(vec![output("logits".into(), Part::Logits, head.classes)?]),
            HeadSpec::Detect(head) => {
                head.taps().into_iter().map(|(tap, part, channels)| output(tap, part, channels)).collect()
            }
        }
    }

    /// Weights to start from: those of the backbone, and the head's drawn from `seed` as its paper's authors do.
    /// - `model`: what [`HeadSpec::attach`] made of `backbone`; `weights` are those of `backbone`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the weights do not belong to `backbone` or `model` is built on another.
    pub fn initialise(&self, model: &Graph, backbone: &Graph, weights: &Weights, seed: u64) -> Result<Weights> {
        weights.check(backbone)?;
        let mut result = Weights::zeros(model);
        let (from_params, from_buffers) = (backbone.parameter_layout(), backbone.buffer_layout());
        for (spec, range) in model.parameter_layout().iter() {
            let target = &mut result.params[range];
            if spec.name.starts_with(PREFIX) {
                draw(spec, seed, self.rule(&spec.name).unwrap_or_else(|| usual(spec)), target);
                continue;
            }
            let place = from_params.range(&spec.name).filter(|place| place.len() == target.len());
            let place = place.ok_or_else(|| differs(&spec.name))?;
            target.copy_from_slice(&weights.params[place]);
        }
        for (spec, range) in model.buffer_layout().iter() {
            let target = &mut result.buffers[range];
            if spec.name.starts_with(PREFIX) {
                draw(spec, seed, usual(spec), target);
                continue;
            }
            let place = from_buffers.range(&spec.name).filter(|place| place.len() == target.len());
            let place = place.ok_or_else(|| differs(&spec.name))?;
            target.copy_from_slice(&weights.buffers[place]);
        }
        result.counters.clone_from(&weights.counters);
        Ok(result)
    }

    /// How a parameter of this head starts, where that is not as in every network of ours.
    fn rule(&self, name: &str) -> Option<Draw> {
        match self {
            HeadSpec::Classify(_) => classify::rule(name),
            HeadSpec::Segment(_) => segment::rule(name),
            HeadSpec::Detect(_) => detect::rule(name),
        }
    }
}

fn differs(name: &str) -> Error {
    Error::Mismatch(format!("`{name}` of the model is not, or has another shape, in the backbone it should start from"))
}

/// Checks a number of a head's description.
fn within(field: &str, value: usize, range: std::ops::RangeInclusive<usize>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Arch(format!("head: {field} is {value}, expected {} to {}", range.start(), range.end())))
}

#[cfg(test)]
mod tests;

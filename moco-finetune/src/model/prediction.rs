//! What a model answers about an image, and how answers are measured.

use moco_models::heads::{HeadSpec, Task};
use serde::{Deserialize, Serialize};

use crate::metrics::{BoxScores, ClassificationScores, MultiLabelScores, SegmentationScores};
use crate::session::criterion::{classes_of, described};
use crate::task::{Detection, Mask, Target};
use crate::{Error, Result};

/// The answer about one image, in pixels of that image.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// Probability of each class; they add up to 1.
    Class(Vec<f32>),
    /// Probability of each class on its own.
    Classes(Vec<f32>),
    /// The most probable class of each pixel, and how probable it is [height, width].
    Mask(Mask, Vec<f32>),
    /// Objects, the surest first.
    Boxes(Vec<Detection>),
}

impl Prediction {
    /// The most probable class of an image and its probability.
    pub fn best_class(&self) -> Option<(usize, f32)> {
        let (Prediction::Class(p) | Prediction::Classes(p)) = self else { return None };
        let best = |best: Option<(usize, f32)>, (i, &p): (usize, &f32)| match best {
            Some((_, highest)) if highest >= p => best,
            _ => Some((i, p)),
        };
        p.iter().enumerate().fold(None, best)
    }
}

/// How a model did on labelled images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Images.
    pub images: usize,
    /// Measures by name, the one that decides first: accuracy, `map` of multi-label and detection, mean Dice.
    pub metrics: Vec<(String, f64)>,
}

impl Evaluation {
    /// The measure that decides which weights are the best: higher is better.
    pub fn deciding(&self) -> Option<(&str, f64)> {
        self.metrics.first().map(|(name, value)| (name.as_str(), *value))
    }

    /// A measure by its name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

/// Compares answers with truths.
pub(crate) enum Scores {
    Class(ClassificationScores),
    Classes(MultiLabelScores),
    Mask(SegmentationScores),
    Boxes(BoxScores),
}

impl Scores {
    pub(crate) fn new(head: &HeadSpec) -> Scores {
        let classes = head.classes();
        match head.task() {
            Task::Classify => Scores::Class(ClassificationScores::new(classes, 5.min(classes))),
            Task::MultiLabel => Scores::Classes(MultiLabelScores::new(classes)),
            Task::Segment => Scores::Mask(SegmentationScores::new(classes)),
            Task::Detect => Scores::Boxes(BoxScores::new(classes)),
        }
    }

    /// Adds an image.
    pub(crate) fn add(&mut self, prediction: &Prediction, target: &Target) -> Result<()> {
        match (self, prediction, target) {
            (Scores::Class(scores), Prediction::Class(p), Target::Class(label)) => scores.add(p, &[*label]),
            (Scores::Classes(scores), Prediction::Classes(p), Target::Class(_) | Target::Classes(_)) => {
                let labels = classes_of(target).expect("both hold classes");
                scores.add(p, &[&labels])
            }
            (Scores::Mask(scores), Prediction::Mask(mask, _), Target::Mask(truth)) => {
                if (mask.width(), mask.height()) != (truth.width(), truth.height()) {
                    return Err(Error::Invalid(format!(
                        "the true mask is {}×{} (height × width), its image {}×{}",
                        truth.height(),
                        truth.width(),
                        mask.height(),
                        mask.width()
                    )));
                }
                scores.add(mask.data(), truth.data())
            }
            (Scores::Boxes(scores), Prediction::Boxes(found), Target::Boxes(truth)) => scores.add(truth, found),
            (_, _, target) => {
                Err(Error::Invalid(format!("a truth is {}, the model answers something else", described(target))))
            }
        }
    }

    pub(crate) fn evaluation(self, images: usize, class_names: &[String]) -> Evaluation {
        let metrics = match self {
            Scores::Class(scores) => scores.report().named(class_names),
            Scores::Classes(scores) => scores.report().named(class_names),
            Scores::Mask(scores) => scores.report().named(class_names),
            Scores::Boxes(scores) => scores.report().named(class_names),
        };
        Evaluation { images, metrics }
    }
}

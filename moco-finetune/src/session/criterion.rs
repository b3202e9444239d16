//! From a head's outputs and the truth to a loss and its gradient, whatever the task.

use moco_models::Graph;
use moco_models::heads::{HeadOutput, HeadSpec};

use super::options::{ClassWeights, LossOptions, Options};
use crate::data::LabelledData;
use crate::detect::{AssignOptions, Level, LevelMaps, assign};
use crate::loss::{
    BinaryCrossEntropy, CrossEntropy, DetectionLoss, LevelGradients, Loss, SegmentationLoss, balanced_weights,
    binary_cross_entropy, cross_entropy, detection, segmentation,
};
use crate::task::{IGNORED, Target};
use crate::{Error, Result};

/// The loss of a training.
#[derive(Clone, Debug)]
pub(crate) struct Criterion {
    classes: usize,
    loss: TaskLoss,
}

#[derive(Clone, Debug)]
enum TaskLoss {
    Classify(CrossEntropy),
    MultiLabel(BinaryCrossEntropy),
    Segment(SegmentationLoss),
    Detect(DetectionLoss, Vec<Level>),
}

impl Criterion {
    /// The loss that validated options describe, with class weights as far as they are known without data.
    pub(crate) fn new(head: &HeadSpec, graph: &Graph, options: &Options) -> Result<Criterion> {
        let loss = match &options.loss {
            LossOptions::Classify { label_smoothing } => {
                TaskLoss::Classify(CrossEntropy { label_smoothing: *label_smoothing, ..CrossEntropy::default() })
            }
            LossOptions::MultiLabel {} => TaskLoss::MultiLabel(BinaryCrossEntropy::default()),
            LossOptions::Segment(loss) => TaskLoss::Segment(loss.clone()),
            LossOptions::Detect(loss) => TaskLoss::Detect(*loss, levels(&head.outputs(graph)?, options.size)),
        };
        let mut criterion = Criterion { classes: head.classes(), loss };
        if let ClassWeights::Given(weights) = &options.class_weights {
            criterion.weigh(weights.clone());
        }
        Ok(criterion)
    }

    /// Takes the weights of the classes from how often they occur in the training data.
    pub(crate) fn balance(&mut self, data: &dyn LabelledData) -> Result<()> {
        let counts = count(data, self.classes)?;
        let weights = match self.loss {
            // What is present weighs as much as what is absent.
            TaskLoss::MultiLabel(_) => counts
                .iter()
                .map(|&n| if n == 0 { 1.0 } else { (data.len() as u64 - n) as f32 / n as f32 })
                .map(|w| if w > 0.0 { w } else { 1.0 })
                .collect(),
            _ => balanced_weights(&counts),
        };
        self.weigh(weights);
        Ok(())
    }

    fn weigh(&mut self, weights: Vec<f32>) {
        match &mut self.loss {
            TaskLoss::Classify(loss) => loss.class_weights = weights,
            TaskLoss::MultiLabel(loss) => loss.positive_weights = weights,
            TaskLoss::Segment(loss) => loss.class_weights = weights,
            TaskLoss::Detect(..) => {}
        }
    }

    /// Loss of a batch whose truths are in pixels of the network's input; `gradients` are overwritten.
    pub(crate) fn judge<'a>(
        &self,
        outputs: &[&[f32]],
        targets: &'a [Target],
        gradients: &mut [Vec<f32>],
    ) -> Result<Loss> {
        let wrong = |target: &Target| {
            Error::Invalid(format!("a truth is {}, which this head does not learn", described(target)))
        };
        match &self.loss {
            TaskLoss::Classify(loss) => {
                let label = |t: &Target| if let Target::Class(label) = t { Ok(*label) } else { Err(wrong(t)) };
                let labels = targets.iter().map(label).collect::<Result<Vec<_>>>()?;
                cross_entropy(outputs[0], self.classes, &labels, loss, &mut gradients[0])
            }
            TaskLoss::MultiLabel(loss) => {
                let labels =
                    targets.iter().map(|t| classes_of(t).ok_or_else(|| wrong(t))).collect::<Result<Vec<_>>>()?;
                let labels: Vec<&[usize]> = labels.iter().map(Vec::as_slice).collect();
                binary_cross_entropy(outputs[0], self.classes, &labels, loss, &mut gradients[0])
            }
            TaskLoss::Segment(loss) => {
                let mask = |t: &'a Target| if let Target::Mask(mask) = t { Ok(mask.data()) } else { Err(wrong(t)) };
                let masks = targets.iter().map(mask).collect::<Result<Vec<_>>>()?;
                segmentation(outputs[0], self.classes, &masks, loss, &mut gradients[0])
            }
            TaskLoss::Detect(loss, levels) => {
                let boxes =
                    |t: &'a Target| if let Target::Boxes(boxes) = t { Ok(boxes.as_slice()) } else { Err(wrong(t)) };
                let boxes = targets.iter().map(boxes).collect::<Result<Vec<_>>>()?;
                let targets = assign(&boxes, levels, self.classes, &AssignOptions::default())?;
                let maps = level_maps(outputs);
                let mut gradients: Vec<LevelGradients<'_>> = gradients
                    .chunks_exact_mut(3)
                    .map(|level| {
                        let [class, boxes, centre] = level else { unreachable!("chunks of three") };
                        LevelGradients { class, boxes, centre }
                    })
                    .collect();
                detection(&maps, &targets, loss, &mut gradients)
            }
        }
    }
}

/// Levels of a detector for an input of this size.
pub(crate) fn levels(outputs: &[HeadOutput], size: [usize; 2]) -> Vec<Level> {
    let strides: Vec<usize> = outputs.iter().step_by(3).map(|output| output.stride).collect();
    Level::over(size, &strides)
}

/// A detector's outputs, level by level: classes, boxes, centres.
pub(crate) fn level_maps<'a>(outputs: &[&'a [f32]]) -> Vec<LevelMaps<'a>> {
    outputs
        .chunks_exact(3)
        .map(|level| {
            let [class, boxes, centre] = *level else { unreachable!("chunks of three") };
            LevelMaps { class, boxes, centre }
        })
        .collect()
}

/// The classes of an image where they do not exclude each other; one class is a set of one.
pub(crate) fn classes_of(target: &Target) -> Option<Vec<usize>> {
    match target {
        Target::Class(label) => Some(vec![*label]),
        Target::Classes(labels) => Some(labels.clone()),
        _ => None,
    }
}

/// A truth in words.
pub(crate) fn described(target: &Target) -> &'static str {
    match target {
        Target::Class(_) => "a class",
        Target::Classes(_) => "a set of classes",
        Target::Mask(_) => "a mask",
        Target::Boxes(_) => "a list of boxes",
    }
}

/// How often each class occurs: images, or pixels of masks.
fn count(data: &dyn LabelledData, classes: usize) -> Result<Vec<u64>> {
    let mut counts = vec![0; classes];
    let mut add = |label: usize| {
        if let Some(count) = counts.get_mut(label) {
            *count += 1;
        }
    };
    for i in 0..data.len() {
        match data.target(i)? {
            Target::Class(label) => add(label),
            Target::Classes(labels) => labels.into_iter().for_each(&mut add),
            Target::Mask(mask) => {
                mask.data().iter().filter(|class| **class != IGNORED).for_each(|class| add(usize::from(*class)));
            }
            Target::Boxes(boxes) => boxes.iter().filter(|b| !b.ignore).for_each(|b| add(b.label)),
        }
    }
    Ok(counts)
}

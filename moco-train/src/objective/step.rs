//! What goes into a step and what comes out of it.

use moco_engine::ops::InfoNce;

/// Two views of each image of a batch, [n, height, width, channels] each, and the images' numbers [n].
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The views.
    pub views: [&'a [f32]; 2],
    /// Which images they show.
    pub images: &'a [u64],
}

/// What a step learns from.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Views on the host.
    Views(&'a Views<'a>),
    /// The views of the batch that was sent first and not used yet; these are its images' numbers [n].
    Sent(&'a [u64]),
    /// The views of the last step once more, on a device that keeps them, which is one that makes views.
    Again(&'a [u64]),
}

impl<'a> Input<'a> {
    /// The images' numbers [n].
    pub fn images(&self) -> &'a [u64] {
        match self {
            Input::Views(views) => views.images,
            Input::Sent(images) | Input::Again(images) => images,
        }
    }
}

/// SGD with momentum, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
}

/// What a step tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Loss as it is minimised, in nats; the sum of both directions when symmetric.
    pub loss: f64,
    /// Share of the queries whose positive is the most similar of K + 1.
    pub accuracy: f64,
    /// Mean q · k over positives.
    pub positive_similarity: f64,
    /// Mean q · k over negatives.
    pub negative_similarity: f64,
}

impl StepReport {
    /// Of the losses of all directions over `n` images.
    pub(super) fn new(directions: &[InfoNce], n: usize) -> StepReport {
        let count = directions.len() as f64;
        let mean = |f: fn(&InfoNce) -> f64| directions.iter().map(f).sum::<f64>() / count;
        StepReport {
            loss: directions.iter().map(|d| d.loss).sum(),
            accuracy: mean(|d| d.correct as f64) / n as f64,
            positive_similarity: mean(|d| d.positive_similarity),
            negative_similarity: mean(|d| d.negative_similarity),
        }
    }
}

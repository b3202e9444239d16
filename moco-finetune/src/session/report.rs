//! What a training tells while it runs and at its end.

use serde::{Deserialize, Serialize};

use crate::model::Evaluation;

/// Something that happened in a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// It begins, or goes on after `step` steps.
    Started {
        /// Steps done.
        step: u64,
        /// Steps of the whole training.
        steps: u64,
        /// Steps of a pass over the training data.
        steps_per_epoch: u64,
    },
    /// Features of a frozen backbone are being computed, once.
    Features {
        /// Images done.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A step was made.
    Step(&'a StepReport),
    /// Labelled images are being asked about.
    Evaluating {
        /// Images done.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// An epoch has ended; its validation, if there was one, is in the report.
    Epoch(&'a EpochReport),
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole training; 0 if nobody knows.
    pub steps: u64,
    /// Loss of the batch.
    pub loss: f64,
    /// Its parts by name, before their weights.
    pub parts: Vec<(&'static str, f64)>,
    /// Learning rate of the head.
    pub lr: f64,
    /// Length of the gradient before it was cut, if `optimiser.clip` is set.
    pub gradient_norm: Option<f64>,
    /// Images of the batch.
    pub images: usize,
    /// Seconds it took, waiting included.
    pub seconds: f64,
    /// Seconds of those that it waited for data.
    pub waited: f64,
}

/// One epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochReport {
    /// Epochs done, this one included.
    pub epoch: u64,
    /// Steps done.
    pub step: u64,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Learning rate of the head at its end.
    pub lr: f64,
    /// How the weights do on the validation data, where they were asked.
    pub validation: Option<Evaluation>,
    /// Whether these are the best weights so far.
    pub best: bool,
}

/// Why a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The validation did not become better for as long as `patience` says.
    StoppedEarly,
    /// The callback asked for it. The session stands where it stopped and can go on.
    Cancelled,
}

/// How a training went.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// Why it ended.
    pub outcome: Outcome,
    /// Steps done, those before a resumption included.
    pub step: u64,
    /// Every epoch so far.
    pub epochs: Vec<EpochReport>,
    /// The epoch whose weights are the result, where there was a validation.
    pub best_epoch: Option<u64>,
    /// Images learnt from per second in this call, validation and loading included.
    pub images_per_second: f64,
    /// SHA-256 over the values of everything that is frozen, the same before and after; none if all of it learns.
    pub frozen_sha256: Option<String>,
}

impl FitReport {
    /// The epoch whose weights are the result.
    pub fn best(&self) -> Option<&EpochReport> {
        self.epochs.iter().find(|e| Some(e.epoch) == self.best_epoch)
    }
}

//! What training makes small: losses of classification, segmentation and detection, each with its gradient.
//!
//! Functions over the logits of a batch as the engine hands them out: `f32`, channels last. Each returns the loss and
//! overwrites `gradient` with the derivative of its total by the logits. Arithmetic and sums are f64 and in a fixed order,
//! so that a result does not depend on the number of threads. Logits that are not finite give a loss that is not finite.

mod boxes;
mod classify;
mod detect;
mod logistic;
mod segment;
mod softmax;
#[cfg(test)]
pub(crate) mod testing;

pub use classify::{BinaryCrossEntropy, CrossEntropy, balanced_weights, binary_cross_entropy, cross_entropy};
pub use detect::{DetectionLoss, LevelGradients, Quality, detection};
pub use segment::{SegmentationLoss, segmentation};

pub(crate) use logistic::sigmoid;

use crate::{Error, Result};

/// The loss of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// What is made small: the weighted sum of the parts.
    pub total: f64,
    /// Each part by name, before its weight.
    pub parts: Vec<(&'static str, f64)>,
}

impl Loss {
    fn of(name: &'static str, value: f64) -> Loss {
        Loss { total: value, parts: vec![(name, value)] }
    }
}

fn check_length(what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::Invalid(format!("{what}: expected {expected} values, got {got}"))) }
}

/// One weight a class, or none at all.
fn check_weights(what: &str, weights: &[f32], classes: usize) -> Result<()> {
    if !weights.is_empty() && weights.len() != classes {
        return Err(Error::Invalid(format!(
            "{what}: {} values for {classes} classes; give one a class",
            weights.len()
        )));
    }
    match weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
        Some(class) => {
            Err(Error::Invalid(format!("{what}: {} for class {class}; 0 or more is expected", weights[class])))
        }
        None => Ok(()),
    }
}

fn check_smoothing(smoothing: f32) -> Result<()> {
    if (0.0..1.0).contains(&smoothing) {
        return Ok(());
    }
    Err(Error::Invalid(format!("label_smoothing is {smoothing}; a value from 0 to below 1 is expected")))
}

fn check_not_negative(what: &str, value: f32) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} is {value}; 0 or more is expected")))
}

fn check_classes(classes: usize, least: usize) -> Result<()> {
    if classes >= least {
        return Ok(());
    }
    Err(Error::Invalid(format!("{classes} classes; at least {least} are needed")))
}

//! Linear evaluation: a linear head on frozen features (arXiv:1911.05722, §4.1), its learning rate swept.

use std::ops::ControlFlow;

use moco_finetune::linear::{FitOptions, FitProgress, FitReport, HeadInfo, LinearHead};
use moco_models::Weights;
use sha2::{Digest, Sha256};

use super::FeatureSet;
use crate::{Error, Result};

/// Outcome of a linear evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeReport {
    /// Accuracy on the test images, 0 to 1.
    pub accuracy: f64,
    /// For each class its test images and the share of them that was right.
    pub per_class: Vec<(usize, f64)>,
    /// How the head was fitted.
    pub fit: FitReport,
}

/// Fits a linear head on `train` and measures it on `test`. Features are computed once and not augmented, where the
/// reference trains on random crops: results are a little lower than its protocol's.
///
/// # Errors
/// [`Error::Invalid`] if a set has no labels or the two do not fit; [`Error::Cancelled`].
pub fn linear_probe(
    train: &FeatureSet,
    test: &FeatureSet,
    options: &FitOptions,
    progress: &mut dyn FnMut(&FitProgress) -> ControlFlow<()>,
) -> Result<(LinearHead, ProbeReport)> {
    if train.labels.len() != train.len() || test.labels.len() != test.len() || test.is_empty() {
        return Err(Error::Invalid(
            "linear evaluation needs images with labels: one folder a class, or CIFAR or IDX files".into(),
        ));
    }
    if train.dim != test.dim {
        return Err(Error::Invalid(format!("training images have {} features, test images {}", train.dim, test.dim)));
    }
    let classes = train.labels.iter().chain(&test.labels).max().map_or(0, |l| l + 1);
    let (head, fit) = LinearHead::fit(&train.data, &train.labels, classes, HeadInfo::default(), options, progress)?;
    let predicted = head.predict(&test.data)?;
    let mut per_class = vec![(0, 0.0); classes];
    for (predicted, label) in predicted.iter().zip(&test.labels) {
        per_class[*label].0 += 1;
        per_class[*label].1 += f64::from(u8::from(predicted == label));
    }
    let accuracy = per_class.iter().map(|(_, hits)| hits).sum::<f64>() / test.len() as f64;
    for (n, share) in &mut per_class {
        *share /= (*n).max(1) as f64;
    }
    Ok((head, ProbeReport { accuracy, per_class, fit }))
}

/// SHA-256 of all parameters and running statistics, in hexadecimal: equal before and after a frozen evaluation.
pub fn fingerprint(weights: &Weights) -> String {
    let mut hash = Sha256::new();
    for values in [&weights.params, &weights.buffers] {
        for value in values {
            hash.update(value.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

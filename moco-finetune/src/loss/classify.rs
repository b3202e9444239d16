//! Losses of classification: one class an image, or any set of classes.

use rayon::prelude::*;

use super::logistic::{sigmoid, softplus};
use super::softmax::{Smoothed, softmax};
use super::{Loss, check_classes, check_length, check_smoothing, check_weights};
use crate::{Error, Result};

/// Rows that one task works on: sums within a chunk, then over chunks, whatever the number of threads.
const ROWS: usize = 256;

/// How classes are compared where an image has exactly one.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossEntropy {
    /// Weight of each class; empty: 1 each. See [`balanced_weights`].
    pub class_weights: Vec<f32>,
    /// Share ε of a label that is spread over all classes, 0 to below 1.
    pub label_smoothing: f32,
}

impl CrossEntropy {
    /// # Errors
    /// [`Error::Invalid`] names the option that does not fit a head of so many classes.
    pub fn validate(&self, classes: usize) -> Result<()> {
        check_classes(classes, 1)?;
        check_weights("class_weights", &self.class_weights, classes)?;
        check_smoothing(self.label_smoothing)
    }
}

/// How classes are compared where an image may have any number of them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BinaryCrossEntropy {
    /// Weight of a class where it is present, against 1 where it is absent; empty: 1 each.
    pub positive_weights: Vec<f32>,
}

impl BinaryCrossEntropy {
    /// # Errors
    /// [`Error::Invalid`] if there is not one weight a class.
    pub fn validate(&self, classes: usize) -> Result<()> {
        check_classes(classes, 1)?;
        check_weights("positive_weights", &self.positive_weights, classes)
    }
}

/// Softmax cross-entropy, in nats.
///
/// The sum over the batch is divided by the weights of its labels, as `torch.nn.functional.cross_entropy` does. Part
/// `cross-entropy`.
/// - `logits`, `gradient` [n, classes].   - `labels` [n], each below `classes`.
///
/// Deviation from PyTorch: where all labels have a weight of 0, loss and gradient are 0 instead of NaN.
///
/// # Errors
/// [`Error::Invalid`] if shapes, labels or options do not fit.
pub fn cross_entropy(
    logits: &[f32],
    classes: usize,
    labels: &[usize],
    options: &CrossEntropy,
    gradient: &mut [f32],
) -> Result<Loss> {
    options.validate(classes)?;
    check_length("logits of cross-entropy", labels.len() * classes, logits.len())?;
    check_length("gradient of cross-entropy", logits.len(), gradient.len())?;
    for (sample, label) in labels.iter().enumerate() {
        check_label(sample, *label, classes)?;
    }
    let rule = Smoothed::new(&options.class_weights, classes, options.label_smoothing);
    let weight: f64 = labels.iter().map(|label| rule.weight(*label)).sum();
    let scale = if weight > 0.0 { 1.0 / weight } else { 0.0 };
    let rows = logits.par_chunks(ROWS * classes).zip(labels.par_chunks(ROWS));
    let sums: Vec<f64> = gradient
        .par_chunks_mut(ROWS * classes)
        .zip(rows)
        .map(|(gradient, (logits, labels))| {
            let mut p = vec![0.0; classes];
            let mut sum = 0.0;
            let rows = gradient.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
            for ((gradient, logits), label) in rows.zip(labels) {
                let lse = softmax(logits, &mut p);
                sum += rule.loss(logits, lse, *label);
                for (k, (g, p)) in gradient.iter_mut().zip(&p).enumerate() {
                    *g = (scale * rule.derivative(*p, k, *label)) as f32;
                }
            }
            sum
        })
        .collect();
    Ok(Loss::of("cross-entropy", scale * sums.iter().sum::<f64>()))
}

/// Binary cross-entropy of every class by itself, averaged over batch and classes, in nats: as
/// `torch.nn.functional.binary_cross_entropy_with_logits` with `pos_weight`. Part `binary-cross-entropy`.
/// - `logits`, `gradient` [n, classes].   - `labels`: for each of the n images the classes it has, each below `classes`.
///
/// # Errors
/// [`Error::Invalid`] if shapes, labels or options do not fit.
pub fn binary_cross_entropy(
    logits: &[f32],
    classes: usize,
    labels: &[&[usize]],
    options: &BinaryCrossEntropy,
    gradient: &mut [f32],
) -> Result<Loss> {
    options.validate(classes)?;
    check_length("logits of binary cross-entropy", labels.len() * classes, logits.len())?;
    check_length("gradient of binary cross-entropy", logits.len(), gradient.len())?;
    for (sample, labels) in labels.iter().enumerate() {
        labels.iter().try_for_each(|label| check_label(sample, *label, classes))?;
    }
    let scale = 1.0 / logits.len().max(1) as f64;
    let positive_weight = |class: usize| options.positive_weights.get(class).map_or(1.0, |w| f64::from(*w));
    let rows = logits.par_chunks(ROWS * classes).zip(labels.par_chunks(ROWS));
    let sums: Vec<f64> = gradient
        .par_chunks_mut(ROWS * classes)
        .zip(rows)
        .map(|(gradient, (logits, labels))| {
            let mut sum = 0.0;
            let rows = gradient.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
            for ((gradient, logits), labels) in rows.zip(labels) {
                for (class, (g, z)) in gradient.iter_mut().zip(logits).enumerate() {
                    let z = f64::from(*z);
                    let (sign, weight) =
                        if labels.contains(&class) { (1.0, positive_weight(class)) } else { (-1.0, 1.0) };
                    sum += weight * softplus(-sign * z);
                    *g = (-scale * sign * weight * sigmoid(-sign * z)) as f32;
                }
            }
            sum
        })
        .collect();
    Ok(Loss::of("binary-cross-entropy", scale * sums.iter().sum::<f64>()))
}

/// Class weights that make every class count the same: samples / (classes · samples of the class), over the classes that
/// occur. 1 for a class without samples.
/// - `counts` [classes]: samples, or pixels, of each class.
pub fn balanced_weights(counts: &[u64]) -> Vec<f32> {
    let total: u64 = counts.iter().sum();
    let present = counts.iter().filter(|n| **n > 0).count();
    let weight = |n: &u64| if *n == 0 { 1.0 } else { (total as f64 / (present as f64 * *n as f64)) as f32 };
    counts.iter().map(weight).collect()
}

fn check_label(sample: usize, label: usize, classes: usize) -> Result<()> {
    if label < classes {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "image {sample} of the batch has label {label}; the head has {classes} classes, from 0"
    )))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Recording, check_gradient, quantised};
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let mut gradient = [9.0; 8];
        let loss = cross_entropy(&[1.5; 8], 4, &[0, 3], &CrossEntropy::default(), &mut gradient).unwrap();
        assert!((loss.total - 4f64.ln()).abs() < 1e-12, "{loss:?}");
        assert_eq!(gradient, [-0.375, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, -0.375]);
        let loss = binary_cross_entropy(&[0.0; 8], 4, &[&[], &[1, 2]], &BinaryCrossEntropy::default(), &mut gradient);
        assert!((loss.unwrap().total - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn gradients_are_the_differences_of_the_loss() {
        let (n, classes) = (300, 5);
        let logits = quantised("classify", n * classes);
        let labels: Vec<usize> = (0..n).map(|i| (i * 7 + i / 3) % classes).collect();
        let options = CrossEntropy { class_weights: vec![1.0, 0.5, 0.0, 2.0, 3.0], label_smoothing: 0.1 };
        check_gradient(&logits, |z, g| cross_entropy(z, classes, &labels, &options, g).unwrap().total);
        let sets: Vec<Vec<usize>> = (0..n).map(|i| (0..classes).filter(|c| (i + c * i) % 3 == 0).collect()).collect();
        let sets: Vec<&[usize]> = sets.iter().map(Vec::as_slice).collect();
        let options = BinaryCrossEntropy { positive_weights: vec![1.0, 4.0, 0.25, 2.0, 0.0] };
        check_gradient(&logits, |z, g| binary_cross_entropy(z, classes, &sets, &options, g).unwrap().total);
    }

    #[test]
    fn classification_is_that_of_pytorch() {
        let file = Recording::open("classification.safetensors");
        let (logits, labels) = (file.f32("logits"), file.indices("labels"));
        let classes = logits.len() / labels.len();
        let cases = [("plain", vec![], 0.0), ("weighted", file.f32("class_weights"), 0.0), ("smoothed", vec![], 0.1)];
        for (name, class_weights, label_smoothing) in
            cases.into_iter().chain([("both", file.f32("class_weights"), 0.1)])
        {
            let options = CrossEntropy { class_weights, label_smoothing };
            file.check(name, |g| cross_entropy(&logits, classes, &labels, &options, g).unwrap().total);
        }
        let present = file.f32("present");
        let sets: Vec<Vec<usize>> =
            present.chunks(classes).map(|row| (0..classes).filter(|c| row[*c] > 0.0).collect()).collect();
        let sets: Vec<&[usize]> = sets.iter().map(Vec::as_slice).collect();
        for (name, positive_weights) in [("binary", vec![]), ("binary_weighted", file.f32("positive_weights"))] {
            let options = BinaryCrossEntropy { positive_weights };
            file.check(name, |g| binary_cross_entropy(&logits, classes, &sets, &options, g).unwrap().total);
        }
    }

    #[test]
    fn huge_logits_stay_finite() {
        let logits = [3e4, -3e4, -3e4, 3e4];
        let mut gradient = [0.0; 4];
        let loss = cross_entropy(&logits, 2, &[0, 0], &CrossEntropy::default(), &mut gradient).unwrap();
        assert_eq!((loss.total, gradient), (3e4, [0.0, 0.0, -0.5, 0.5]));
        let loss = binary_cross_entropy(&logits, 2, &[&[0], &[0]], &BinaryCrossEntropy::default(), &mut gradient);
        assert_eq!((loss.unwrap().total, gradient), (1.5e4, [0.0, 0.0, -0.25, 0.25]));
    }

    #[test]
    fn labels_without_weight_make_neither_loss_nor_gradient() {
        let options = CrossEntropy { class_weights: vec![0.0, 1.0], label_smoothing: 0.0 };
        let mut gradient = [9.0; 2];
        let loss = cross_entropy(&[1.0, 2.0], 2, &[0], &options, &mut gradient).unwrap();
        assert_eq!((loss.total, gradient), (0.0, [0.0; 2]));
        assert_eq!(cross_entropy(&[], 2, &[], &options, &mut []).unwrap().total, 0.0);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut gradient = [0.0; 4];
        let message = |options: &CrossEntropy, labels: &[usize], gradient: &mut [f32]| {
            cross_entropy(&[0.0; 4], 2, labels, options, gradient).unwrap_err().to_string()
        };
        let plain = CrossEntropy::default();
        assert!(message(&plain, &[0, 2], &mut gradient).contains("image 1 of the batch has label 2"));
        assert!(message(&plain, &[0], &mut gradient).contains("expected 2 values, got 4"));
        assert!(message(&plain, &[0, 1], &mut gradient[..3]).contains("gradient"));
        let three = CrossEntropy { class_weights: vec![1.0; 3], ..plain.clone() };
        assert!(message(&three, &[0, 1], &mut gradient).contains("class_weights: 3 values for 2 classes"));
        let negative = CrossEntropy { class_weights: vec![1.0, -1.0], ..plain.clone() };
        assert!(message(&negative, &[0, 1], &mut gradient).contains("class 1"));
        let smooth = CrossEntropy { label_smoothing: 1.0, ..plain };
        assert!(message(&smooth, &[0, 1], &mut gradient).contains("label_smoothing is 1"));
    }

    #[test]
    fn balanced_classes_share_the_weight() {
        assert_eq!(balanced_weights(&[30, 10, 0]), [40.0 / 60.0, 2.0, 1.0]);
        assert_eq!(balanced_weights(&[0, 0]), [1.0, 1.0]);
    }
}

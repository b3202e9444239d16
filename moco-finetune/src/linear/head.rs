//! The linear head itself: what it holds and what it answers.

use std::ops::ControlFlow;

use candle_core::{D, Device, Tensor};

use super::fit::{FitProgress, FitReport, fit};
use super::options::FitOptions;
use crate::{Error, Result};

/// Rows of features multiplied at once when a head predicts.
const ROWS_AT_ONCE: usize = 4096;

/// What a head says about itself; all of it is kept in its file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadInfo {
    /// Name of every class, in the order of the labels; empty if the caller gave none.
    pub class_names: Vec<String>,
    /// The backbone's tap whose features the head reads, e.g. `pooled`; empty if unknown.
    pub tap: String,
    /// SHA-256 of the file of the backbone it was fitted on; empty if unknown.
    pub backbone_sha256: String,
}

/// Softmax regression: `scores = features · Wᵀ + b`, one score (logit) a class.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHead {
    classes: usize,
    dim: usize,
    weight: Vec<f32>, // [classes, dim]
    bias: Vec<f32>,   // [classes]
    info: HeadInfo,
}

impl LinearHead {
    /// A head with given weights.
    /// - `weight` [classes, dim], `bias` [classes].
    ///
    /// # Errors
    /// [`Error::Invalid`] if a length does not fit, a value is not finite, or `info` names another number of classes.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, info: HeadInfo) -> Result<LinearHead> {
        let classes = bias.len();
        if classes == 0 || weight.is_empty() || !weight.len().is_multiple_of(classes) {
            return Err(Error::Invalid(format!(
                "a linear head needs a weight of classes × dim values and a bias of classes values, got {} and {classes}",
                weight.len()
            )));
        }
        if !info.class_names.is_empty() && info.class_names.len() != classes {
            return Err(Error::Invalid(format!(
                "{} class names were given for {classes} classes",
                info.class_names.len()
            )));
        }
        if weight.iter().chain(&bias).any(|x| !x.is_finite()) {
            return Err(Error::Invalid("a linear head holds values that are not finite".into()));
        }
        Ok(LinearHead { classes, dim: weight.len() / classes, weight, bias, info })
    }

    /// Fits a head.
    /// - `features` [n, dim]; `labels` [n], each below `classes`.
    /// - `progress` is called after each epoch; it may end the fit with [`ControlFlow::Break`].
    ///
    /// The initial weights are N(0, 0.01²) and the biases 0, as in `main_lincls.py`. Features are used as they are:
    /// nothing is augmented, so a large head can overfit where the reference, which augments, would not.
    ///
    /// # Errors
    /// [`Error::Invalid`] if sizes, labels, features or options make no sense, or if no learning rate led to finite
    /// weights; [`Error::Cancelled`] if `progress` broke off.
    pub fn fit(
        features: &[f32],
        labels: &[usize],
        classes: usize,
        info: HeadInfo,
        options: &FitOptions,
        progress: &mut dyn FnMut(&FitProgress) -> ControlFlow<()>,
    ) -> Result<(LinearHead, FitReport)> {
        let (weight, bias, report) = fit(features, labels, classes, options, progress)?;
        Ok((LinearHead::new(weight, bias, info)?, report))
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Length of the features it reads.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Weight [classes, dim].
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Bias [classes].
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Class names, tap and backbone.
    pub fn info(&self) -> &HeadInfo {
        &self.info
    }

    /// Scores (logits) [n, classes] of `features` [n, dim].
    ///
    /// # Errors
    /// [`Error::Invalid`] if `features` is not a whole number of rows.
    pub fn scores(&self, features: &[f32]) -> Result<Vec<f32>> {
        if !features.len().is_multiple_of(self.dim) {
            return Err(Error::Invalid(format!(
                "the head reads features of {} values, got {} values in all, which is no whole number of rows",
                self.dim,
                features.len()
            )));
        }
        let weight = Tensor::from_slice(&self.weight, (self.classes, self.dim), &Device::Cpu)?.t()?;
        let bias = Tensor::from_slice(&self.bias, self.classes, &Device::Cpu)?;
        let mut scores = Vec::with_capacity(features.len() / self.dim * self.classes);
        for rows in features.chunks(ROWS_AT_ONCE * self.dim) {
            let x = Tensor::from_slice(rows, (rows.len() / self.dim, self.dim), &Device::Cpu)?;
            scores.extend(x.matmul(&weight)?.broadcast_add(&bias)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(scores)
    }

    /// Probabilities [n, classes]: the softmax of [`LinearHead::scores`].
    ///
    /// # Errors
    /// As [`LinearHead::scores`].
    pub fn probabilities(&self, features: &[f32]) -> Result<Vec<f32>> {
        let scores = self.scores(features)?;
        if scores.is_empty() {
            return Ok(scores);
        }
        let scores = Tensor::from_vec(scores, (features.len() / self.dim, self.classes), &Device::Cpu)?;
        Ok(candle_nn::ops::softmax(&scores, D::Minus1)?.flatten_all()?.to_vec1()?)
    }

    /// The class of the highest score for each row of `features` [n, dim]; the first one where scores are equal.
    ///
    /// # Errors
    /// As [`LinearHead::scores`].
    pub fn predict(&self, features: &[f32]) -> Result<Vec<usize>> {
        Ok(self.scores(features)?.chunks(self.classes).map(argmax).collect())
    }
}

/// Index of the largest value; the first one of equals, 0 if none compares.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> LinearHead {
        LinearHead::new(vec![1.0, 0.0, 0.0, 2.0, -1.0, -1.0], vec![0.0, 0.5, 1.0], HeadInfo::default()).unwrap()
    }

    #[test]
    fn scores_are_features_times_weight_plus_bias() {
        let scores = head().scores(&[1.0, 2.0, 0.0, 0.0]).unwrap();
        assert_eq!(scores, [1.0, 4.5, -2.0, 0.0, 0.5, 1.0]);
        assert_eq!(head().predict(&[1.0, 2.0, 0.0, 0.0]).unwrap(), [1, 2]);
    }

    #[test]
    fn probabilities_sum_to_1_also_for_large_scores() {
        let p = head().probabilities(&[1e4, -1e4, 0.3, 0.1]).unwrap();
        assert_eq!(p.len(), 6);
        for row in p.chunks(3) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let error = head().scores(&[1.0, 2.0, 3.0]).unwrap_err().to_string();
        assert!(error.contains("2 values") && error.contains('3'), "{error}");
        assert!(head().scores(&[]).unwrap().is_empty());
        assert!(head().probabilities(&[]).unwrap().is_empty());
        assert!(LinearHead::new(vec![1.0; 5], vec![0.0; 2], HeadInfo::default()).is_err());
        assert!(LinearHead::new(vec![f32::NAN; 2], vec![0.0; 2], HeadInfo::default()).is_err());
        let info = HeadInfo { class_names: vec!["a".into()], ..HeadInfo::default() };
        assert!(LinearHead::new(vec![1.0; 4], vec![0.0; 2], info).unwrap_err().to_string().contains("1 class names"));
    }
}

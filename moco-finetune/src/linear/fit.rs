//! Softmax regression by SGD with momentum on candle's autograd, for several learning rates at once.

use std::ops::ControlFlow;

use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::log_softmax;
use moco_image::Rng;

use super::head::argmax;
use super::options::{FitOptions, SWEPT_LEARNING_RATES};
use crate::{Error, Result};

/// What a fit is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All learning rates of the sweep are trained side by side on a part of the features.
    Sweep,
    /// The head is trained on all features.
    Fit,
}

/// Told after each epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitProgress {
    /// What is being done.
    pub phase: Phase,
    /// Epochs done in this phase.
    pub epoch: usize,
    /// Epochs of this phase.
    pub epochs: usize,
    /// Mean cross-entropy of the epoch's batches, in nats; the best learning rate's during a sweep.
    pub loss: f32,
}

/// How a fit went.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// The learning rate that was used.
    pub learning_rate: f32,
    /// Held-out accuracy of each learning rate that was tried; empty without a sweep.
    pub sweep: Vec<(f32, f32)>,
    /// Mean cross-entropy of the last epoch's batches, in nats.
    pub loss: f32,
    /// Accuracy on the training features, 0 to 1.
    pub train_accuracy: f32,
}

type Progress<'a> = dyn FnMut(&FitProgress) -> ControlFlow<()> + 'a;

/// Returns weight [classes, dim], bias [classes] and the report.
pub(super) fn fit(
    features: &[f32],
    labels: &[usize],
    classes: usize,
    options: &FitOptions,
    progress: &mut Progress<'_>,
) -> Result<(Vec<f32>, Vec<f32>, FitReport)> {
    options.validate()?;
    let dim = check(features, labels, classes)?;
    let scale = Scale::of(features, dim, options.standardise);
    let data = Data { x: scale.apply(features), labels, dim, classes };
    let all: Vec<usize> = (0..labels.len()).collect();

    let (learning_rate, sweep) = match options.learning_rate {
        0.0 => choose_rate(&data, options, progress)?,
        rate => (rate, vec![]),
    };
    let trained = train(&data, &all, &[learning_rate], options, Phase::Fit, progress)?;
    let (weight, bias) = trained.head(0, &data)?;
    if weight.iter().chain(&bias).any(|x| !x.is_finite()) {
        return Err(Error::Invalid(format!(
            "the fit diverged with learning rate {learning_rate}; give a smaller one, or 0 to have it chosen"
        )));
    }
    let train_accuracy = accuracy(&data, &all, &weight, &bias);
    let report = FitReport { learning_rate, sweep, loss: trained.loss, train_accuracy };
    let (weight, bias) = scale.fold(weight, bias);
    Ok((weight, bias, report))
}

fn check(features: &[f32], labels: &[usize], classes: usize) -> Result<usize> {
    let wrong = |reason: String| Err(Error::Invalid(reason));
    if labels.is_empty() {
        return wrong("there is nothing to fit a head on: no labels were given".into());
    }
    if features.is_empty() || !features.len().is_multiple_of(labels.len()) {
        return wrong(format!("{} feature values do not make equal rows for {} labels", features.len(), labels.len()));
    }
    if classes < 2 {
        return wrong(format!("a head needs at least 2 classes, got {classes}"));
    }
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l >= classes) {
        return wrong(format!("label {i} is {label}, expected less than {classes}, the number of classes"));
    }
    let dim = features.len() / labels.len();
    if let Some(i) = features.iter().position(|x| !x.is_finite()) {
        return wrong(format!("feature {} of row {} is {}, expected finite values", i % dim, i / dim, features[i]));
    }
    Ok(dim)
}

struct Data<'a> {
    x: Vec<f32>, // [n, dim]
    labels: &'a [usize],
    dim: usize,
    classes: usize,
}

/// Shift and scale of every feature.
struct Scale {
    mean: Vec<f32>,
    inverse_deviation: Vec<f32>,
}

impl Scale {
    fn of(features: &[f32], dim: usize, standardise: bool) -> Scale {
        if !standardise {
            return Scale { mean: vec![0.0; dim], inverse_deviation: vec![1.0; dim] };
        }
        let n = (features.len() / dim) as f64;
        let (mut sum, mut squares) = (vec![0f64; dim], vec![0f64; dim]);
        for row in features.chunks(dim) {
            for (j, &x) in row.iter().enumerate() {
                sum[j] += f64::from(x);
                squares[j] += f64::from(x) * f64::from(x);
            }
        }
        let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
        // A feature that never changes says nothing; its deviation of 0 must not become an infinity.
        let inverse = |(j, s): (usize, &f64)| {
            let deviation = (s / n - mean[j] * mean[j]).max(0.0).sqrt();
            if deviation > 1e-6 * mean[j].abs() { (1.0 / deviation) as f32 } else { 0.0 }
        };
        let inverse_deviation = squares.iter().enumerate().map(inverse).collect();
        Scale { mean: mean.into_iter().map(|m| m as f32).collect(), inverse_deviation }
    }

    fn apply(&self, features: &[f32]) -> Vec<f32> {
        let dim = self.mean.len();
        let one = |(i, x): (usize, &f32)| (x - self.mean[i % dim]) * self.inverse_deviation[i % dim];
        features.iter().enumerate().map(one).collect()
    }

    /// The head on unscaled features that answers as this one on scaled features.
    fn fold(&self, mut weight: Vec<f32>, mut bias: Vec<f32>) -> (Vec<f32>, Vec<f32>) {
        for (row, bias) in weight.chunks_mut(self.mean.len()).zip(&mut bias) {
            let mut shift = 0f64;
            for (j, w) in row.iter_mut().enumerate() {
                *w *= self.inverse_deviation[j];
                shift += f64::from(*w) * f64::from(self.mean[j]);
            }
            *bias -= shift as f32;
        }
        (weight, bias)
    }
}

/// The best learning rate on a held-out part and how all did.
fn choose_rate(data: &Data, options: &FitOptions, progress: &mut Progress<'_>) -> Result<(f32, Vec<(f32, f32)>)> {
    let (kept, mut held_out) = split(data, options);
    if held_out.is_empty() {
        // One example a class: there is nothing but the training features to judge by.
        held_out.clone_from(&kept);
    }
    let trained = train(data, &kept, &SWEPT_LEARNING_RATES, options, Phase::Sweep, progress)?;
    let mut sweep = Vec::new();
    for (i, &rate) in SWEPT_LEARNING_RATES.iter().enumerate() {
        let (weight, bias) = trained.head(i, data)?;
        let finite = weight.iter().chain(&bias).all(|x| x.is_finite());
        sweep.push((rate, if finite { accuracy(data, &held_out, &weight, &bias) } else { -1.0 }));
    }
    if sweep.iter().all(|(_, accuracy)| *accuracy < 0.0) {
        return Err(Error::Invalid(
            "the fit diverged with every learning rate of the sweep; are the features far too large? standardise them"
                .into(),
        ));
    }
    sweep.iter_mut().for_each(|(_, accuracy)| *accuracy = accuracy.max(0.0));
    // Of equals the middle one: the edges of a plateau are nearer to failure.
    let best = sweep.iter().map(|(_, a)| *a).fold(0.0, f32::max);
    let plateau: Vec<f32> = sweep.iter().filter(|(_, a)| *a == best).map(|(rate, _)| *rate).collect();
    Ok((plateau[(plateau.len() - 1) / 2], sweep))
}

/// Indices to train on and to hold out: the same share of every class, one image at least of a class that has two.
fn split(data: &Data, options: &FitOptions) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..data.labels.len()).collect();
    Rng::new(options.seed, SPLIT_STREAM).shuffle(&mut order);
    let mut sizes = vec![0usize; data.classes];
    data.labels.iter().for_each(|&l| sizes[l] += 1);
    let mut quota: Vec<usize> = sizes
        .iter()
        .map(|&n| if n < 2 { 0 } else { ((n as f32 * options.held_out).round() as usize).clamp(1, n - 1) })
        .collect();
    let (mut kept, mut held_out) = (vec![], vec![]);
    for i in order {
        let quota = &mut quota[data.labels[i]];
        if *quota > 0 {
            *quota -= 1;
            held_out.push(i);
        } else {
            kept.push(i);
        }
    }
    (kept, held_out)
}

/// Weights of one head a learning rate.
struct Trained {
    weight: Vec<f32>, // [rates, classes, dim]
    bias: Vec<f32>,   // [rates, classes]
    loss: f32,
}

impl Trained {
    fn head(&self, rate: usize, data: &Data) -> Result<(Vec<f32>, Vec<f32>)> {
        let (w, b) = (data.classes * data.dim, data.classes);
        Ok((self.weight[rate * w..][..w].to_vec(), self.bias[rate * b..][..b].to_vec()))
    }
}

const SPLIT_STREAM: u64 = 1;
const INIT_STREAM: u64 = 2;
const ORDER_STREAM: u64 = 3;

/// SGD as in `main_lincls.py`. The heads of all learning rates are rows of one matrix, so that a batch of features is
/// read once for all of them; they do not touch each other.
fn train(
    data: &Data,
    indices: &[usize],
    rates: &[f32],
    options: &FitOptions,
    phase: Phase,
    progress: &mut Progress<'_>,
) -> Result<Trained> {
    let (r, c, dim) = (rates.len(), data.classes, data.dim);
    let mut rng = Rng::new(options.seed, INIT_STREAM);
    // The same start for every rate.
    let start: Vec<f32> = (0..c * dim).map(|_| 0.01 * rng.normal() as f32).collect();
    let device = Device::Cpu;
    let weight = Var::from_vec(start.repeat(r), (r * c, dim), &device)?;
    let bias = Var::from_vec(vec![0f32; r * c], r * c, &device)?;
    let mut weight_velocity = weight.zeros_like()?;
    let mut bias_velocity = bias.zeros_like()?;
    let per_row: Vec<f32> = rates.iter().flat_map(|&rate| vec![rate; c]).collect();
    let per_row = Tensor::from_vec(per_row, r * c, &device)?;

    let mut order = indices.to_vec();
    let mut rng = Rng::new(options.seed, ORDER_STREAM);
    let mut last_loss = f32::NAN;
    for epoch in 0..options.epochs {
        rng.shuffle(&mut order);
        let rate = (&per_row * options.schedule.factor(epoch, options.epochs))?;
        let mut sums = vec![0f64; r];
        for batch in order.chunks(options.batch) {
            let n = batch.len();
            let x: Vec<f32> = batch.iter().flat_map(|&i| &data.x[i * dim..(i + 1) * dim]).copied().collect();
            let x = Tensor::from_vec(x, (n, dim), &device)?;
            let target: Vec<u32> = batch.iter().flat_map(|&i| vec![data.labels[i] as u32; r]).collect();
            let target = Tensor::from_vec(target, (n, r, 1), &device)?;

            let logits = x.matmul(&weight.t()?)?.broadcast_add(&bias)?.reshape((n, r, c))?;
            let losses = log_softmax(&logits, D::Minus1)?.contiguous()?.gather(&target, D::Minus1)?.neg()?.mean(0)?;
            let gradients = losses.sum_all()?.backward()?;
            for (sum, loss) in sums.iter_mut().zip(losses.flatten_all()?.to_vec1::<f32>()?) {
                *sum += f64::from(loss) * n as f64;
            }
            let step = |var: &Var, velocity: &Tensor, rate: &Tensor| -> Result<Tensor> {
                let gradient = gradients.get(var.as_tensor()).ok_or_else(|| Error::Invalid("no gradient".into()))?;
                let penalty = (var.as_tensor() * f64::from(options.weight_decay))?;
                let velocity = ((velocity * f64::from(options.momentum))? + (gradient + penalty)?)?.detach();
                var.set(&(var.as_tensor() - velocity.broadcast_mul(rate)?)?.detach())?;
                Ok(velocity)
            };
            weight_velocity = step(&weight, &weight_velocity, &rate.unsqueeze(1)?)?;
            bias_velocity = step(&bias, &bias_velocity, &rate)?;
        }
        last_loss =
            sums.iter().map(|s| (*s / order.len() as f64) as f32).filter(|l| l.is_finite()).fold(f32::NAN, f32::min);
        let told = FitProgress { phase, epoch: epoch + 1, epochs: options.epochs, loss: last_loss };
        if progress(&told).is_break() {
            return Err(Error::Cancelled);
        }
    }
    let weight = weight.as_tensor().flatten_all()?.to_vec1()?;
    Ok(Trained { weight, bias: bias.as_tensor().to_vec1()?, loss: last_loss })
}

fn accuracy(data: &Data, indices: &[usize], weight: &[f32], bias: &[f32]) -> f32 {
    let dim = data.dim;
    let hits = indices.iter().filter(|&&i| {
        let x = &data.x[i * dim..(i + 1) * dim];
        let score = |(w, b): (&[f32], &f32)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b;
        let scores: Vec<f32> = weight.chunks(dim).zip(bias).map(score).collect();
        argmax(&scores) == data.labels[i]
    });
    hits.count() as f32 / indices.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::super::{HeadInfo, LinearHead};
    use super::*;

    /// Three classes around three corners, far from the origin and on very different scales.
    fn clusters(n: usize) -> (Vec<f32>, Vec<usize>) {
        let mut rng = Rng::new(3, 0);
        let centres = [[0.0, 100.0], [4.0, 100.1], [2.0, 100.3]];
        let labels: Vec<usize> = (0..n).map(|i| i % 3).collect();
        let noise = |rng: &mut Rng, scale: f64| (scale * rng.normal()) as f32;
        let row = |l: &usize, rng: &mut Rng| [centres[*l][0] + noise(rng, 0.3), centres[*l][1] + noise(rng, 0.01)];
        (labels.iter().flat_map(|l| row(l, &mut rng)).collect(), labels)
    }

    fn go_on(_: &FitProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn separable_classes_are_separated_with_a_swept_rate() {
        let (x, labels) = clusters(90);
        let mut phases = vec![];
        let options = FitOptions { batch: 16, epochs: 30, ..FitOptions::default() };
        let mut watch = |p: &FitProgress| {
            phases.push(p.phase);
            ControlFlow::Continue(())
        };
        let (head, report) = LinearHead::fit(&x, &labels, 3, HeadInfo::default(), &options, &mut watch).unwrap();
        assert_eq!(head.predict(&x).unwrap(), labels);
        assert_eq!(report.train_accuracy, 1.0);
        assert_eq!(report.sweep.len(), SWEPT_LEARNING_RATES.len());
        assert_eq!(phases, [[Phase::Sweep; 30], [Phase::Fit; 30]].concat());
    }

    /// Closed form: one step from W = W₀ with learning rate η gives W₀ − η · xᵀ(softmax − onehot) / n.
    #[test]
    fn one_step_is_the_gradient_of_the_mean_cross_entropy() {
        let (x, labels) = (vec![1.0, 2.0, -1.0, 0.5], vec![0, 1]);
        let options =
            FitOptions { learning_rate: 0.5, epochs: 1, batch: 2, standardise: false, ..FitOptions::default() };
        let (weight, bias, _) = fit(&x, &labels, 2, &options, &mut go_on).unwrap();
        let mut rng = Rng::new(0, INIT_STREAM);
        let start: Vec<f64> = (0..4).map(|_| f64::from(0.01 * rng.normal() as f32)).collect();
        let (mut expected_w, mut expected_b) = (start.clone(), [0.0; 2]);
        for (row, label) in x.chunks(2).zip(&labels) {
            let scores: Vec<f64> =
                start.chunks(2).map(|w| w[0] * f64::from(row[0]) + w[1] * f64::from(row[1])).collect();
            let total: f64 = scores.iter().map(|s| s.exp()).sum();
            for c in 0..2 {
                let d = (scores[c].exp() / total - f64::from(u8::from(c == *label))) / 2.0;
                expected_b[c] -= 0.5 * d;
                for j in 0..2 {
                    expected_w[2 * c + j] -= 0.5 * d * f64::from(row[j]);
                }
            }
        }
        let close = |a: &[f32], b: &[f64]| a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6);
        assert!(close(&weight, &expected_w), "{weight:?} {expected_w:?}");
        assert!(close(&bias, &expected_b), "{bias:?} {expected_b:?}");
    }

    #[test]
    fn a_fit_is_the_same_again_and_another_with_another_seed() {
        let (x, labels) = clusters(30);
        let fit_with = |seed| {
            let options = FitOptions { seed, epochs: 3, batch: 7, learning_rate: 0.1, ..FitOptions::default() };
            LinearHead::fit(&x, &labels, 3, HeadInfo::default(), &options, &mut go_on).unwrap().0
        };
        assert_eq!(fit_with(1), fit_with(1));
        assert_ne!(fit_with(1), fit_with(2));
    }

    #[test]
    fn a_fit_can_be_cancelled() {
        let (x, labels) = clusters(30);
        let mut calls = 0;
        let mut stop = |_: &FitProgress| {
            calls += 1;
            if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = LinearHead::fit(&x, &labels, 3, HeadInfo::default(), &FitOptions::default(), &mut stop);
        assert!(matches!(result, Err(Error::Cancelled)));
        assert_eq!(calls, 2);
    }

    #[test]
    fn inputs_that_make_no_sense_are_named() {
        let refused = |x: &[f32], labels: &[usize], classes| {
            fit(x, labels, classes, &FitOptions::default(), &mut go_on).unwrap_err().to_string()
        };
        assert!(refused(&[1.0; 3], &[0, 1], 2).contains("equal rows"));
        assert!(refused(&[1.0; 4], &[0, 2], 2).contains("label 1 is 2"));
        assert!(refused(&[1.0, f32::NAN], &[0, 1], 2).contains("row 1 is NaN"));
        assert!(refused(&[], &[], 2).contains("no labels"));
        assert!(refused(&[1.0], &[0], 1).contains("at least 2 classes"));
    }

    #[test]
    fn tiny_features_and_one_example_a_class_are_fine() {
        let (x, labels) = (vec![1e-9, 0.0, 0.0, 1e-9], vec![0, 1]);
        let (head, report) =
            LinearHead::fit(&x, &labels, 2, HeadInfo::default(), &FitOptions::default(), &mut go_on).unwrap();
        assert_eq!(head.predict(&x).unwrap(), labels);
        assert!(report.sweep.iter().any(|(_, accuracy)| *accuracy == 1.0), "{:?}", report.sweep);
    }

    #[test]
    fn a_constant_feature_and_a_class_of_one_are_fine() {
        let (x, labels) = (vec![5.0, 0.0, 5.0, 0.1, 5.0, 9.0], vec![0, 0, 1]);
        let (head, _) =
            LinearHead::fit(&x, &labels, 2, HeadInfo::default(), &FitOptions::default(), &mut go_on).unwrap();
        assert_eq!(head.predict(&x).unwrap(), labels);
    }
}

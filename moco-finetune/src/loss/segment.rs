//! Losses of segmentation: cross-entropy, soft Dice and focal loss over the pixels of a batch, and sums of them.

mod options;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub use options::SegmentationLoss;

use super::logistic::power;
use super::softmax::{Smoothed, softmax};
use super::{Loss, check_length};
use crate::task::IGNORED;
use crate::{Error, Result};

/// Pixels that one task works on: sums within a chunk, then over chunks, whatever the number of threads.
const PIXELS: usize = 2048;

/// Keeps Dice defined where nothing is: as nnU-Net and MONAI set it.
const SMOOTH: f64 = 1e-5;

/// The loss of class maps, as `options` combine it. Pixels of value 255 make neither loss nor gradient.
///
/// With p the softmax over classes, y the class of a pixel and w the class weights:
/// - part `cross-entropy`: Σ −w_y ln p_y / Σ w_y over the pixels of the batch, labels smoothed if the options say so, as
///   `torch.nn.functional.cross_entropy` with `ignore_index`;
/// - part `focal`: Σ −w_y (1−p_y)^γ ln p_y / Σ w_y (arXiv:1708.02002 over a softmax; γ = 0 is cross-entropy);
/// - part `dice`: 1 − (2 Σ p_k·[y = k] + s) / (Σ p_k + Σ [y = k] + s) with s = 1e-5, averaged over the classes that occur,
///   each over the pixels of the whole batch or of one image (arXiv:1606.04797, without squares, as nnU-Net has it). Class
///   weights do not change it. A class that occurs nowhere would cost 1 whatever the network says, so it is left out.
///
/// - `logits`, `gradient` [n, height, width, classes].   - `masks`: n of [height · width].
///
/// # Errors
/// [`Error::Invalid`] if shapes, classes or options do not fit.
pub fn segmentation(
    logits: &[f32],
    classes: usize,
    masks: &[&[u8]],
    options: &SegmentationLoss,
    gradient: &mut [f32],
) -> Result<Loss> {
    options.validate(classes)?;
    let pixels = check(logits, classes, masks, gradient)?;
    if pixels == 0 {
        return Ok(Loss { total: 0.0, parts: options.named([0.0; 3]) });
    }
    let terms = Terms {
        rule: Smoothed::new(&options.class_weights, classes, options.label_smoothing),
        classes,
        gamma: f64::from(options.focal_gamma),
    };
    let images = gradient.par_chunks_exact_mut(pixels * classes).zip(logits.par_chunks_exact(pixels * classes));
    let sums: Vec<Sums> = images.zip(masks).map(|((p, logits), mask)| terms.sums_of_image(p, logits, mask)).collect();

    let weight: f64 = sums.iter().map(|s| s.weight).sum();
    let scale = if weight > 0.0 { 1.0 / weight } else { 0.0 };
    let (dice, slopes) = dice(&sums, classes, options);
    let slope_of = |image: usize| &slopes[if options.dice_per_image { image } else { 0 }];
    let [ce, focal] = [options.cross_entropy, options.focal].map(|w| f64::from(w) * scale);
    gradient.par_chunks_exact_mut(pixels * classes).zip(masks).enumerate().for_each(|(image, (p, mask))| {
        let chunks = p.par_chunks_mut(PIXELS * classes).zip(mask.par_chunks(PIXELS));
        chunks.for_each(|(p, mask)| terms.to_gradient(p, mask, ce, focal, slope_of(image)));
    });
    let parts = [
        scale * sums.iter().map(|s| s.cross_entropy).sum::<f64>(),
        dice,
        scale * sums.iter().map(|s| s.focal).sum::<f64>(),
    ];
    Ok(Loss { total: options.total(parts), parts: options.named(parts) })
}

/// The number of pixels of an image, after everything was found to fit.
fn check(logits: &[f32], classes: usize, masks: &[&[u8]], gradient: &[f32]) -> Result<usize> {
    let pixels = masks.first().map_or(0, |mask| mask.len());
    for (image, mask) in masks.iter().enumerate() {
        check_length(&format!("mask of image {image} of the batch"), pixels, mask.len())?;
        if let Some(at) = mask.iter().position(|class| *class != IGNORED && usize::from(*class) >= classes) {
            return Err(Error::Invalid(format!(
                "the mask of image {image} of the batch has class {} at pixel {at}; the head has {classes} classes, from 0, \
                 and {IGNORED} is what is ignored",
                mask[at]
            )));
        }
    }
    check_length("logits of segmentation", masks.len() * pixels * classes, logits.len())?;
    check_length("gradient of segmentation", logits.len(), gradient.len())?;
    Ok(pixels)
}

/// What the pixels of an image add up to.
struct Sums {
    weight: f64,
    cross_entropy: f64,
    focal: f64,
    both: Vec<f64>,      // [classes] probability where the class is
    predicted: Vec<f64>, // [classes] probability everywhere
    present: Vec<f64>,   // [classes] pixels
}

impl Sums {
    fn new(classes: usize) -> Sums {
        let zeros = || vec![0.0; classes];
        Sums { weight: 0.0, cross_entropy: 0.0, focal: 0.0, both: zeros(), predicted: zeros(), present: zeros() }
    }

    fn add(&mut self, other: &Sums) {
        self.weight += other.weight;
        self.cross_entropy += other.cross_entropy;
        self.focal += other.focal;
        let vectors = [
            (&mut self.both, &other.both),
            (&mut self.predicted, &other.predicted),
            (&mut self.present, &other.present),
        ];
        for (to, from) in vectors {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

/// What is the same for all pixels.
struct Terms {
    rule: Smoothed,
    classes: usize,
    gamma: f64,
}

impl Terms {
    /// Writes the softmax to `probabilities` and sums up the image, chunk by chunk.
    fn sums_of_image(&self, probabilities: &mut [f32], logits: &[f32], mask: &[u8]) -> Sums {
        let values = PIXELS * self.classes;
        let chunks = probabilities.par_chunks_mut(values).zip(logits.par_chunks(values)).zip(mask.par_chunks(PIXELS));
        let chunks: Vec<Sums> = chunks.map(|((p, logits), mask)| self.sums_of_chunk(p, logits, mask)).collect();
        let mut sums = Sums::new(self.classes);
        chunks.iter().for_each(|chunk| sums.add(chunk));
        sums
    }

    fn sums_of_chunk(&self, probabilities: &mut [f32], logits: &[f32], mask: &[u8]) -> Sums {
        let mut sums = Sums::new(self.classes);
        let mut p = vec![0.0; self.classes];
        let rows = probabilities.chunks_exact_mut(self.classes).zip(logits.chunks_exact(self.classes));
        for ((row, logits), label) in rows.zip(mask) {
            if *label == IGNORED {
                continue;
            }
            let label = usize::from(*label);
            let lse = softmax(logits, &mut p);
            let weight = self.rule.weight(label);
            sums.weight += weight;
            sums.cross_entropy += self.rule.loss(logits, lse, label);
            sums.focal += weight * power(1.0 - p[label], self.gamma) * (lse - f64::from(logits[label]));
            sums.both[label] += p[label];
            sums.present[label] += 1.0;
            for ((row, sum), p) in row.iter_mut().zip(&mut sums.predicted).zip(&p) {
                *row = *p as f32;
                *sum += p;
            }
        }
        sums
    }

    /// Turns the probabilities of some pixels into the gradient by their logits.
    fn to_gradient(&self, p: &mut [f32], mask: &[u8], ce: f64, focal: f64, dice: &Slopes) {
        for (row, label) in p.chunks_exact_mut(self.classes).zip(mask) {
            if *label == IGNORED {
                row.fill(0.0);
                continue;
            }
            let label = usize::from(*label);
            let focal = focal * self.rule.weight(label) * focal_slope(f64::from(row[label]), self.gamma);
            let by_p = |k: usize| dice.everywhere[k] + if k == label { dice.at_label[k] } else { 0.0 };
            let mean: f64 = row.iter().enumerate().map(|(k, p)| by_p(k) * f64::from(*p)).sum();
            for (k, value) in row.iter_mut().enumerate() {
                let p = f64::from(*value);
                let ce = if ce == 0.0 { 0.0 } else { ce * self.rule.derivative(p, k, label) };
                let focal = focal * (p - f64::from(u8::from(k == label)));
                *value = (ce + focal + p * (by_p(k) - mean)) as f32;
            }
        }
    }
}

/// F where F·(p_k − [k = y]) is the derivative of −(1−p_y)^γ ln p_y by logit k.
fn focal_slope(p: f64, gamma: f64) -> f64 {
    let rest = 1.0 - p;
    if gamma == 0.0 {
        return 1.0;
    }
    if rest <= 0.0 {
        return 0.0;
    }
    let minus_ln = -p.max(f64::from(f32::MIN_POSITIVE)).ln();
    power(rest, gamma) * (1.0 + gamma * p * minus_ln / rest)
}

/// Derivative of the weighted Dice part by the probability of class k: everywhere, and in addition where k is.
struct Slopes {
    everywhere: Vec<f64>, // [classes]
    at_label: Vec<f64>,   // [classes]
}

/// The Dice part, and its slopes for the whole batch or for each image.
fn dice(images: &[Sums], classes: usize, options: &SegmentationLoss) -> (f64, Vec<Slopes>) {
    let mut batch = Sums::new(classes);
    images.iter().for_each(|image| batch.add(image));
    let groups: Vec<&Sums> = if options.dice_per_image { images.iter().collect() } else { vec![&batch] };
    let counts = |sums: &Sums, k: usize| sums.present[k] > 0.0 && (k > 0 || options.dice_background);
    let counted: usize = groups.iter().map(|sums| (0..classes).filter(|k| counts(sums, *k)).count()).sum();
    let share = 1.0 / counted.max(1) as f64;
    let mut loss = 0.0;
    let slopes = groups.iter().map(|sums| {
        let mut slopes = Slopes { everywhere: vec![0.0; classes], at_label: vec![0.0; classes] };
        for k in (0..classes).filter(|k| counts(sums, *k)) {
            let below = sums.predicted[k] + sums.present[k] + SMOOTH;
            let dice = (2.0 * sums.both[k] + SMOOTH) / below;
            loss += share * (1.0 - dice);
            slopes.everywhere[k] = f64::from(options.dice) * share * dice / below;
            slopes.at_label[k] = -f64::from(options.dice) * share * 2.0 / below;
        }
        slopes
    });
    let slopes = slopes.collect();
    (loss, slopes)
}

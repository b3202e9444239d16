//! Which losses of segmentation are added up, as a user writes it: `ce+dice`, `0.5*ce+focal`.

use std::fmt;
use std::str::FromStr;

use super::super::{check_classes, check_not_negative, check_smoothing, check_weights};
use crate::{Error, Result};

/// How class maps are compared. Its text, parsed and displayed, holds the weights of the parts: `ce+dice`, `dice`,
/// `0.5*ce+focal`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentationLoss {
    /// Weight of the cross-entropy, `ce`.
    pub cross_entropy: f32,
    /// Weight of the soft Dice loss, `dice`.
    pub dice: f32,
    /// Weight of the focal loss, `focal`.
    pub focal: f32,
    /// Exponent γ of the focal loss, 0 or more; 2 in its paper.
    pub focal_gamma: f32,
    /// Share of a label that cross-entropy spreads over all classes, 0 to below 1.
    pub label_smoothing: f32,
    /// Weight of each class in cross-entropy and focal loss; empty: 1 each.
    pub class_weights: Vec<f32>,
    /// Whether Dice is taken of each image and averaged, instead of over the pixels of the batch.
    pub dice_per_image: bool,
    /// Whether class 0 counts in Dice.
    pub dice_background: bool,
}

/// Cross-entropy and Dice, equally: what most of medical segmentation uses.
impl Default for SegmentationLoss {
    fn default() -> SegmentationLoss {
        SegmentationLoss {
            cross_entropy: 1.0,
            dice: 1.0,
            focal: 0.0,
            focal_gamma: 2.0,
            label_smoothing: 0.0,
            class_weights: Vec::new(),
            dice_per_image: false,
            dice_background: true,
        }
    }
}

impl SegmentationLoss {
    /// # Errors
    /// [`Error::Invalid`] names the option that makes no sense, or does not fit a head of so many classes.
    pub fn validate(&self, classes: usize) -> Result<()> {
        check_classes(classes, 2)?;
        check_not_negative("cross_entropy", self.cross_entropy)?;
        check_not_negative("dice", self.dice)?;
        check_not_negative("focal", self.focal)?;
        check_not_negative("focal_gamma", self.focal_gamma)?;
        if self.weights().iter().all(|w| *w == 0.0) {
            return Err(Error::Invalid("cross_entropy, dice and focal are all 0: give one a weight".into()));
        }
        check_smoothing(self.label_smoothing)?;
        check_weights("class_weights", &self.class_weights, classes)
    }

    /// The weighted sum of cross-entropy, Dice and focal loss.
    pub(super) fn total(&self, parts: [f64; 3]) -> f64 {
        let weighted = self.weights().into_iter().zip(parts).filter(|(w, _)| *w > 0.0);
        weighted.map(|(w, part)| f64::from(w) * part).sum()
    }

    /// The parts that have a weight.
    pub(super) fn named(&self, parts: [f64; 3]) -> Vec<(&'static str, f64)> {
        let names = ["cross-entropy", "dice", "focal"].into_iter().zip(parts).zip(self.weights());
        names.filter(|(_, w)| *w > 0.0).map(|(part, _)| part).collect()
    }

    fn weights(&self) -> [f32; 3] {
        [self.cross_entropy, self.dice, self.focal]
    }
}

impl FromStr for SegmentationLoss {
    type Err = Error;

    fn from_str(text: &str) -> Result<SegmentationLoss> {
        let mut loss = SegmentationLoss { cross_entropy: 0.0, dice: 0.0, ..SegmentationLoss::default() };
        for term in text.split('+').map(str::trim) {
            let (weight, name) = match term.split_once('*') {
                Some((weight, name)) => (weight.trim().parse::<f32>().ok(), name.trim()),
                None => (Some(1.0), term),
            };
            let part = match name {
                "ce" => Some(&mut loss.cross_entropy),
                "dice" => Some(&mut loss.dice),
                "focal" => Some(&mut loss.focal),
                _ => None,
            };
            let weight = weight.filter(|w| *w > 0.0 && w.is_finite());
            match (part, weight) {
                (Some(part), Some(weight)) if *part == 0.0 => *part = weight,
                _ => {
                    return Err(Error::Invalid(format!(
                        "`{term}` in the loss `{text}`: a sum of `ce`, `dice` and `focal` is expected, each at most once and \
                         with a weight above 0 if any, such as `ce+dice` or `0.5*ce+focal`"
                    )));
                }
            }
        }
        Ok(loss)
    }
}

impl fmt::Display for SegmentationLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = ["ce", "dice", "focal"].into_iter().zip(self.weights()).filter(|(_, w)| *w != 0.0);
        let terms: Vec<String> =
            terms.map(|(name, w)| if w == 1.0 { name.to_string() } else { format!("{w}*{name}") }).collect();
        f.write_str(&terms.join("+"))
    }
}

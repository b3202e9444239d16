//! How good answers are: accuracy, average precision, Dice, overlap.
//!
//! Each accumulator takes answers and truths, any number at a time, and reports at any moment; what came in which order does
//! not matter but for boxes of equal score. A report holds its values and can list them by name: the first is the one that
//! decides which of two models is better. What is not defined, such as the recall of a class that does not occur, is `None` and
//! left out of means and lists.

mod boxes;
mod classes;
mod labels;
mod pixels;

pub use boxes::{BoxReport, BoxScores, ClassPrecision};
pub use classes::{ClassReport, ClassificationReport, ClassificationScores};
pub use labels::{LabelReport, MultiLabelReport, MultiLabelScores};
pub use pixels::{PixelReport, SegmentationReport, SegmentationScores};

use crate::{Error, Result};

/// Mean of what is defined.
fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values.into_iter().flatten() {
        sum += value;
        count += 1;
    }
    ratio(sum, f64::from(count))
}

/// `part / whole` if there is a whole.
fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// 2tp / (2tp + fp + fn), which is both Dice and F1: undefined where nothing is and nothing was found.
fn harmonic(found_right: u64, found: u64, present: u64) -> Option<f64> {
    ratio(2.0 * found_right as f64, (found + present) as f64)
}

/// Values by name, for lists and files.
struct Names<'a> {
    classes: &'a [String],
    values: Vec<(String, f64)>,
}

impl<'a> Names<'a> {
    fn new(classes: &'a [String]) -> Names<'a> {
        Names { classes, values: Vec::new() }
    }

    fn add(&mut self, name: &str, value: Option<f64>) {
        self.values.extend(value.map(|value| (name.to_string(), value)));
    }

    /// `name:class` for each class, its number where it has no name.
    fn add_each(&mut self, name: &str, values: impl Iterator<Item = Option<f64>>) {
        for (class, value) in values.enumerate() {
            let class = self.classes.get(class).cloned().unwrap_or_else(|| class.to_string());
            self.add(&format!("{name}:{class}"), value);
        }
    }
}

/// A score by which one can sort: what is not a number is the lowest.
fn sortable(score: f32) -> f32 {
    if score.is_nan() { f32::NEG_INFINITY } else { score }
}

fn check_label(label: usize, classes: usize) -> Result<()> {
    if label < classes {
        return Ok(());
    }
    Err(Error::Invalid(format!("a label is {label}; there are {classes} classes, from 0")))
}

fn check_length(what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::Invalid(format!("{what}: expected {expected} values, got {got}"))) }
}

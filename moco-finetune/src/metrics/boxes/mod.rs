//! Detection: average precision as COCO defines it, with the arithmetic of pycocotools.

mod curve;
mod matching;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use curve::Curves;
use matching::{Found, Truth, match_boxes};

use super::{Names, check_label, check_length, mean};
use crate::task::{Detection, LabelledBox};
use crate::{Error, Result};

/// Overlaps at which a detection may be right, .50 to .95.
const THRESHOLDS: usize = 10;
/// Ranges of area: all, small, medium, large.
const AREAS: usize = 4;
/// Detections of an image and a class that count, by score.
const LIMITS: [usize; 3] = [1, 10, 100];

/// Collects detections with what is there.
#[derive(Clone, Debug)]
pub struct BoxScores {
    images: u64,
    classes: Vec<Class>,
}

/// What is known of one class over all images.
#[derive(Clone, Debug, Default)]
struct Class {
    objects: [u64; AREAS], // objects that count
    found: Vec<Found>,     // in the order of the images, by falling score within each
}

/// How good a detector is. `None` where no object counts.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxReport {
    /// Images.
    pub images: u64,
    /// Objects that count.
    pub objects: u64,
    /// Average precision, AP: mean over classes, 101 recalls and overlaps of .50, .55, … .95; at most 100 detections of an image
    /// and class.
    pub ap: Option<f64>,
    /// At an overlap of .50.
    pub ap50: Option<f64>,
    /// At an overlap of .75.
    pub ap75: Option<f64>,
    /// AP of objects up to 32² pixels, to 96², and above.
    pub ap_by_area: [Option<f64>; 3],
    /// Average recall, AR: mean over classes and overlaps, with at most 1, 10 and 100 detections of an image and class.
    pub ar: [Option<f64>; 3],
    /// AR of objects up to 32² pixels, to 96², and above, with at most 100 detections.
    pub ar_by_area: [Option<f64>; 3],
    /// Each class by itself.
    pub per_class: Vec<ClassPrecision>,
}

/// How good a detector is at one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassPrecision {
    /// Objects that count.
    pub objects: u64,
    /// AP.
    pub ap: Option<f64>,
    /// AP at an overlap of .50.
    pub ap50: Option<f64>,
    /// AR with at most 100 detections.
    pub ar: Option<f64>,
}

impl BoxScores {
    /// For a detector of so many classes.
    pub fn new(classes: usize) -> BoxScores {
        BoxScores { images: 0, classes: vec![Class::default(); classes] }
    }

    /// Adds one image; the area that decides whether an object is small, medium or large is that of its box.
    ///
    /// An ignored object is what COCO calls a crowd: missing it does not count, neither does any number of detections of its
    /// class that lie within it. Images are to come in the same order for the same result to the last digit: detections of equal
    /// score are taken in the order of their images.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a label is not below the number of classes, or a coordinate or score is not finite; nothing was added
    /// then.
    pub fn add(&mut self, truths: &[LabelledBox], found: &[Detection]) -> Result<()> {
        let areas: Vec<f64> = truths.iter().map(|truth| matching::area(&truth.bbox)).collect();
        self.add_with_areas(truths, &areas, found)
    }

    /// [`BoxScores::add`] with the area of each object, as COCO's annotations give it: that of its outline, not of its box.
    ///
    /// # Errors
    /// As [`BoxScores::add`], and if there are not as many areas as objects.
    pub fn add_with_areas(&mut self, truths: &[LabelledBox], areas: &[f64], found: &[Detection]) -> Result<()> {
        check_length("areas of objects", truths.len(), areas.len())?;
        for truth in truths {
            check_label(truth.label, self.classes.len())?;
            check_finite("an object", &truth.bbox, 0.0)?;
        }
        for detection in found {
            check_label(detection.label, self.classes.len())?;
            check_finite("a detection", &detection.bbox, detection.score)?;
        }
        self.images += 1;
        for (label, class) in self.classes.iter_mut().enumerate() {
            let truths = truths.iter().zip(areas).filter(|(truth, _)| truth.label == label);
            let truths: Vec<Truth> =
                truths.map(|(truth, area)| Truth { bbox: truth.bbox, crowd: truth.ignore, area: *area }).collect();
            let found: Vec<&Detection> = found.iter().filter(|detection| detection.label == label).collect();
            if !truths.is_empty() || !found.is_empty() {
                match_boxes(&truths, found, class);
            }
        }
        Ok(())
    }

    /// What the images so far give.
    pub fn report(&self) -> BoxReport {
        let curves: Vec<Curves> = self.classes.par_iter().map(Curves::of).collect();
        let precision = |area: usize, thresholds: std::ops::Range<usize>| {
            mean(
                curves
                    .iter()
                    .flat_map(|class| class.precision[area][LIMITS.len() - 1][thresholds.clone()].iter().copied()),
            )
        };
        let recall =
            |area: usize, limit: usize| mean(curves.iter().flat_map(|class| class.recall[area][limit].iter().copied()));
        let per_class = self.classes.iter().zip(&curves).map(|(class, curves)| {
            let precision = &curves.precision[0][LIMITS.len() - 1];
            ClassPrecision {
                objects: class.objects[0],
                ap: mean(precision.iter().copied()),
                ap50: precision[0],
                ar: mean(curves.recall[0][LIMITS.len() - 1].iter().copied()),
            }
        });
        BoxReport {
            images: self.images,
            objects: self.classes.iter().map(|class| class.objects[0]).sum(),
            ap: precision(0, 0..THRESHOLDS),
            ap50: precision(0, 0..1),
            ap75: precision(0, 5..6),
            ap_by_area: [1, 2, 3].map(|area| precision(area, 0..THRESHOLDS)),
            ar: [0, 1, 2].map(|limit| recall(0, limit)),
            ar_by_area: [1, 2, 3].map(|area| recall(area, LIMITS.len() - 1)),
            per_class: per_class.collect(),
        }
    }
}

impl BoxReport {
    /// `map`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar1`, `ar10`, `ar100`, `ar_small`, `ar_medium`, `ar_large`, then
    /// `ap:` and `ap50:` with the name of each class, or its number.
    pub fn named(&self, class_names: &[String]) -> Vec<(String, f64)> {
        let mut names = Names::new(class_names);
        names.add("map", self.ap);
        names.add("ap50", self.ap50);
        names.add("ap75", self.ap75);
        for (name, value) in ["ap_small", "ap_medium", "ap_large"].into_iter().zip(self.ap_by_area) {
            names.add(name, value);
        }
        for (name, value) in ["ar1", "ar10", "ar100"].into_iter().zip(self.ar) {
            names.add(name, value);
        }
        for (name, value) in ["ar_small", "ar_medium", "ar_large"].into_iter().zip(self.ar_by_area) {
            names.add(name, value);
        }
        names.add_each("ap", self.per_class.iter().map(|class| class.ap));
        names.add_each("ap50", self.per_class.iter().map(|class| class.ap50));
        names.values
    }
}

fn check_finite(what: &str, bbox: &crate::task::BBox, score: f32) -> Result<()> {
    if [bbox.x0, bbox.y0, bbox.x1, bbox.y1, score].iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} has a coordinate or score that is not finite: {bbox:?}, score {score}")))
}

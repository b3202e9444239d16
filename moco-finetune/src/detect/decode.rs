//! From the maps of a batch to boxes.

use rayon::prelude::*;

use super::nms::{falling, nms_by_class};
use super::{LARGEST_LOG_DISTANCE, Level, LevelMaps, check_levels, check_maps};
use crate::loss::sigmoid;
use crate::task::{BBox, Detection};
use crate::{Error, Result};

/// Which boxes are worth an answer.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Scores must be above, 0 to 1.
    pub score: f32,
    /// Of two boxes of a class that overlap by more, the better stays: intersection over union, 0 to 1.
    pub nms_iou: f32,
    /// Boxes of a level, the best, that go into suppression.
    pub per_level: usize,
    /// Boxes of an image that come out, the best.
    pub max_detections: usize,
}

/// As FCOS is evaluated: average precision wants many boxes, also poor ones; a program that draws them wants a score of 0.3
/// or more.
impl Default for DecodeOptions {
    fn default() -> DecodeOptions {
        DecodeOptions { score: 0.05, nms_iou: 0.6, per_level: 1000, max_detections: 100 }
    }
}

impl DecodeOptions {
    /// # Errors
    /// [`Error::Invalid`] names the option that makes no sense.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("score", self.score), ("nms_iou", self.nms_iou)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::Invalid(format!("{name} is {value}; a value from 0 to 1 is expected")));
            }
        }
        for (name, value) in [("per_level", self.per_level), ("max_detections", self.max_detections)] {
            if value == 0 {
                return Err(Error::Invalid(format!("{name} is 0; a number of boxes above 0 is expected")));
            }
        }
        Ok(())
    }
}

/// What the maps find in each image, by falling score: √(class probability · centre-ness) above the least score, the best of
/// each level, suppressed within each class, the best of all. Boxes are in pixels of the network's input and end at its
/// border; empty ones are dropped. Logits that are not numbers find nothing.
/// - `maps`, `levels`: from fine to coarse, of `images` images.   - `size`: [height, width] of the network's input.
///
/// # Errors
/// [`Error::Invalid`] if maps or options do not fit.
pub fn decode(
    maps: &[LevelMaps],
    levels: &[Level],
    images: usize,
    classes: usize,
    size: [usize; 2],
    options: &DecodeOptions,
) -> Result<Vec<Vec<Detection>>> {
    options.validate()?;
    check_levels(levels)?;
    check_maps(maps, levels, images, classes)?;
    let of_image = |image: usize| {
        let found =
            maps.iter().zip(levels).flat_map(|(maps, level)| of_level(maps, level, image, classes, size, options));
        nms_by_class(&found.collect::<Vec<_>>(), options.nms_iou, options.max_detections)
    };
    Ok((0..images).into_par_iter().map(of_image).collect())
}

/// The best boxes of an image at a level, by falling score.
fn of_level(
    maps: &LevelMaps,
    level: &Level,
    image: usize,
    classes: usize,
    size: [usize; 2],
    options: &DecodeOptions,
) -> Vec<Detection> {
    // Both factors of a score above s are above s², which a class logit shows without an exponential.
    let least = f64::from(options.score).powi(2);
    let least_logit = (least / (1.0 - least)).ln() as f32 - 1e-3;
    let first = image * level.cells();
    let mut found: Vec<(f32, usize)> = Vec::new();
    for cell in 0..level.cells() {
        let centre = sigmoid(f64::from(maps.centre[first + cell]));
        if centre <= least {
            continue;
        }
        let logits = &maps.class[(first + cell) * classes..][..classes];
        for (class, logit) in logits.iter().enumerate().filter(|(_, logit)| **logit >= least_logit) {
            let score = (sigmoid(f64::from(*logit)) * centre).sqrt() as f32;
            if score > options.score {
                found.push((score, cell * classes + class));
            }
        }
    }
    found.sort_by(|a, b| falling(a.0, b.0));
    found.truncate(options.per_level);
    let boxes = found.into_iter().filter_map(|(score, at)| {
        let (cell, label) = (at / classes, at % classes);
        let bbox = box_of(&maps.boxes[(first + cell) * 4..][..4], level, cell)?.clipped(size[1], size[0]);
        (bbox.area() > 0.0).then_some(Detection { bbox, label, score })
    });
    boxes.collect()
}

/// The box that a cell speaks of, if it is one.
fn box_of(logs: &[f32], level: &Level, cell: usize) -> Option<BBox> {
    if logs.iter().any(|log| log.is_nan()) {
        return None;
    }
    let (x, y) = level.location(cell / level.width, cell % level.width);
    let pixels = |k: usize| logs[k].min(LARGEST_LOG_DISTANCE).exp() * level.stride as f32;
    Some(BBox { x0: x - pixels(0), y0: y - pixels(1), x1: x + pixels(2), y1: y + pixels(3) })
}

#[cfg(test)]
mod tests {
    use super::super::{AssignOptions, Cell, Targets, assign};
    use super::*;
    use crate::task::LabelledBox;

    /// The maps of a network that has learned its targets, sure of what it says.
    fn perfect(targets: &Targets) -> Vec<[Vec<f32>; 3]> {
        let level = |cells: &Vec<Cell>| {
            let (mut class, mut boxes, mut centre) = (vec![], vec![], vec![]);
            for cell in cells {
                let mut logits = vec![-20.0; targets.classes];
                let mut logs = [0.0; 4];
                let mut near = -20.0;
                if let Cell::Object { label, distances } = cell {
                    logits[*label] = 20.0;
                    logs = distances.map(f32::ln);
                    let c = Cell::centreness(*distances);
                    near = (c / (1.0 - c)).ln().min(20.0) as f32;
                }
                class.extend(logits);
                boxes.extend(logs);
                centre.push(near);
            }
            [class, boxes, centre]
        };
        targets.cells.iter().map(level).collect()
    }

    fn views(maps: &[[Vec<f32>; 3]]) -> Vec<LevelMaps<'_>> {
        maps.iter().map(|[class, boxes, centre]| LevelMaps { class, boxes, centre }).collect()
    }

    #[test]
    fn maps_that_say_their_targets_give_the_boxes_back() {
        let size = [300, 420];
        let object = |x0: f32, y0: f32, w: f32, h: f32, label: usize| LabelledBox {
            bbox: BBox { x0, y0, x1: x0 + w, y1: y0 + h },
            label,
            ignore: false,
        };
        let images = [
            vec![
                object(10.25, 20.5, 30.0, 24.75, 0),
                object(60.0, 60.0, 200.0, 180.0, 1),
                object(300.5, 5.0, 17.0, 90.0, 2),
                object(0.0, 0.0, 420.0, 300.0, 2),
                object(290.0, 200.0, 60.0, 40.0, 1),
            ],
            vec![],
            vec![object(200.0, 100.0, 12.0, 12.0, 1), object(200.0, 100.0, 13.0, 13.0, 2)],
        ];
        let levels = Level::over(size, &[8, 16, 32, 64]);
        let lists: Vec<&[LabelledBox]> = images.iter().map(Vec::as_slice).collect();
        let targets = assign(&lists, &levels, 3, &AssignOptions::default()).unwrap();
        let maps = perfect(&targets);
        let found = decode(&views(&maps), &levels, 3, 3, size, &DecodeOptions::default()).unwrap();
        for (found, objects) in found.iter().zip(&images) {
            assert_eq!(found.len(), objects.len(), "{found:?}");
            for object in objects {
                let near = |a: f32, b: f32| (a - b).abs() <= 1e-3;
                let same = |d: &&Detection| {
                    let (a, b) = (d.bbox, object.bbox);
                    near(a.x0, b.x0) && near(a.y0, b.y0) && near(a.x1, b.x1) && near(a.y1, b.y1)
                };
                let detection = found.iter().find(same).unwrap_or_else(|| panic!("{object:?} in {found:?}"));
                assert_eq!(detection.label, object.label);
            }
            assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        }
        let two = DecodeOptions { max_detections: 2, ..DecodeOptions::default() };
        let best = decode(&views(&maps), &levels, 3, 3, size, &two).unwrap();
        assert_eq!(best[0], found[0][..2]);
    }

    #[test]
    fn the_score_is_the_mean_of_class_and_centre_and_must_be_above_the_least() {
        let level = [Level { stride: 8, height: 1, width: 2 }];
        let maps = [LevelMaps { class: &[0.0, 3.0, -1.0, -9.0], boxes: &[0.0; 8], centre: &[1.0, 0.5] }];
        let found = |score: f32| {
            let options = DecodeOptions { score, nms_iou: 1.0, ..DecodeOptions::default() };
            decode(&maps, &level, 1, 2, [8, 16], &options).unwrap().remove(0)
        };
        let score = |class: f64, centre: f64| (sigmoid(class) * sigmoid(centre)).sqrt() as f32;
        let scores: Vec<(usize, f32)> = found(0.1).iter().map(|d| (d.label, d.score)).collect();
        assert_eq!(scores, [(1, score(3.0, 1.0)), (0, score(0.0, 1.0)), (0, score(-1.0, 0.5))]);
        assert_eq!(found(score(0.0, 1.0)).len(), 1, "above, not equal");
        assert_eq!(found(0.0).len(), 4);
        // One stride in each direction around (4, 4), cut at the border.
        assert_eq!(found(0.8)[0].bbox, BBox { x0: 0.0, y0: 0.0, x1: 12.0, y1: 8.0 });
    }

    #[test]
    fn logits_that_are_no_numbers_or_huge_do_no_harm() {
        let level = [Level { stride: 8, height: 1, width: 3 }];
        let boxes = [[f32::NAN; 4], [f32::INFINITY; 4], [f32::NEG_INFINITY; 4]].concat();
        let maps = [LevelMaps { class: &[9.0, f32::INFINITY, f32::NAN], boxes: &boxes, centre: &[9.0, 9.0, 9.0] }];
        let found = decode(&maps, &level, 1, 1, [8, 24], &DecodeOptions::default()).unwrap();
        let whole = BBox { x0: 0.0, y0: 0.0, x1: 24.0, y1: 8.0 };
        assert!(found[0].len() == 1 && found[0][0].bbox == whole && found[0][0].score <= 1.0, "{found:?}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let level = [Level { stride: 8, height: 1, width: 2 }];
        let maps = [LevelMaps { class: &[0.0; 4], boxes: &[0.0; 7], centre: &[0.0; 2] }];
        let message = |maps: &[LevelMaps], options: DecodeOptions| {
            decode(maps, &level, 1, 2, [8, 16], &options).unwrap_err().to_string()
        };
        let options = DecodeOptions::default();
        assert!(message(&maps, options).contains("box map of stride 8: expected [1, 1, 2, 4], 8 values, got 7"));
        assert!(message(&[], options).contains("0 levels"));
        assert!(message(&maps, DecodeOptions { score: 1.5, ..options }).contains("score is 1.5"));
        assert!(message(&maps, DecodeOptions { per_level: 0, ..options }).contains("per_level"));
    }
}

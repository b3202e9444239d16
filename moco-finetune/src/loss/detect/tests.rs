//! The loss of a detector against PyTorch and torchvision, finite differences and closed forms.

use super::super::testing::{Recording, check_gradient, close, quantised};
use super::*;
use crate::detect::{AssignOptions, Level, assign};
use crate::task::{BBox, LabelledBox};

const CLASSES: usize = 3;

fn targets() -> Targets {
    let object = |x0: f32, y0: f32, x1: f32, y1: f32, label: usize, ignore: bool| LabelledBox {
        bbox: BBox { x0, y0, x1, y1 },
        label,
        ignore,
    };
    let first = [object(3.0, 5.0, 31.0, 41.0, 0, false), object(20.0, 10.0, 90.0, 70.0, 2, false)];
    let second = [object(40.0, 8.0, 60.0, 30.0, 1, false), object(0.0, 30.0, 50.0, 60.0, 0, true)];
    let levels = Level::over([80, 96], &[8, 16]);
    assign(&[&first, &second], &levels, CLASSES, &AssignOptions::default()).unwrap()
}

/// Lengths of the maps of all levels, one after the other.
fn lengths(targets: &Targets) -> Vec<[usize; 3]> {
    let length = |level: &Level| [CLASSES, 4, 1].map(|channels| targets.images * level.cells() * channels);
    targets.levels.iter().map(length).collect()
}

/// The loss over maps that lie one after the other.
fn loss_of(all: &[f32], targets: &Targets, options: &DetectionLoss, gradient: &mut [f32]) -> Loss {
    let (mut maps, mut gradients) = (vec![], vec![]);
    let (mut all, mut rest) = (all, gradient);
    for lengths in lengths(targets) {
        let [class, boxes, centre] = lengths.map(|n| {
            let (head, tail) = all.split_at(n);
            all = tail;
            head
        });
        maps.push(LevelMaps { class, boxes, centre });
        let [class, boxes, centre] = lengths.map(|n| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            head
        });
        gradients.push(LevelGradients { class, boxes, centre });
    }
    detection(&maps, targets, options, &mut gradients).unwrap()
}

#[test]
fn gradients_are_the_differences_of_the_loss() {
    let targets = targets();
    let maps = quantised("detect", lengths(&targets).iter().flatten().sum());
    // What a cell overlaps is a constant to the quality, so the two are compared one at a time.
    let whole = DetectionLoss { boxes: 1.5, quality: 0.5, ..DetectionLoss::default() };
    let curved = DetectionLoss { focal_gamma: 0.7, focal_alpha: 0.6, ..whole };
    for options in [whole, curved] {
        check_gradient(&maps, |z, g| loss_of(z, &targets, &options, g).total);
    }
    // Each part by itself, at the cells that learn an object: few of the places above.
    let mut gradient = vec![0.0; maps.len()];
    loss_of(&maps, &targets, &whole, &mut gradient);
    let [class, boxes, _] = lengths(&targets)[0];
    let places = (class..class + boxes).filter(|i| gradient[*i] != 0.0).collect::<Vec<_>>();
    assert!(places.len() >= 4 * 9, "{}", places.len());
    let mut moved = maps.clone();
    let step = 1.0 / 1024.0;
    for i in places {
        let mut at = |value: f32| {
            moved[i] = value;
            let total = loss_of(&moved, &targets, &whole, &mut vec![0.0; maps.len()]).total;
            moved[i] = maps[i];
            total
        };
        // The overlap has a kink where an edge of the box found meets the object's: none of these is so near.
        let difference = (at(maps[i] + step) - at(maps[i] - step)) / (2.0 * f64::from(step));
        close("box gradient", f64::from(gradient[i]), difference, 1e-6);
    }
}

#[test]
fn detection_is_that_of_torchvision_and_pytorch() {
    let file = Recording::open("detection_loss.safetensors");
    let shape = file.indices("levels");
    let levels: Vec<Level> = shape.chunks(3).map(|l| Level { stride: l[0], height: l[1], width: l[2] }).collect();
    let (labels, distances) = (file.i32("targets"), file.f32("distances"));
    let classes = file.indices("classes")[0];
    let mut cells = labels.iter().zip(distances.chunks(4)).map(|(label, d)| match label {
        -1 => Cell::Background,
        -2 => Cell::Ignored,
        label => Cell::Object { label: *label as usize, distances: [d[0], d[1], d[2], d[3]] },
    });
    let images = 2;
    let cells = levels.iter().map(|level| cells.by_ref().take(images * level.cells()).collect()).collect();
    let targets = Targets { images, classes, levels, cells };
    let maps: Vec<[Vec<f32>; 3]> =
        (0..2).map(|l| ["class", "boxes", "centre"].map(|name| file.f32(&format!("{name}{l}")))).collect();
    let views: Vec<LevelMaps> = maps.iter().map(|[class, boxes, centre]| LevelMaps { class, boxes, centre }).collect();
    let cases = [
        ("fcos", DetectionLoss::default()),
        (
            "overlap",
            DetectionLoss { quality_target: Quality::Overlap, boxes: 2.0, quality: 0.5, ..DetectionLoss::default() },
        ),
        ("focal", DetectionLoss { focal_alpha: 0.4, focal_gamma: 1.5, ..DetectionLoss::default() }),
    ];
    for (name, options) in cases {
        let mut gradients: Vec<[Vec<f32>; 3]> =
            maps.iter().map(|m| m.each_ref().map(|v| vec![f32::NAN; v.len()])).collect();
        let mut into: Vec<LevelGradients> =
            gradients.iter_mut().map(|[class, boxes, centre]| LevelGradients { class, boxes, centre }).collect();
        let loss = detection(&views, &targets, &options, &mut into).unwrap();
        close(name, loss.total, file.f64(&format!("{name}.loss"))[0], 1e-9);
        for ((part, value), expected) in loss.parts.iter().zip(file.f64(&format!("{name}.parts"))) {
            close(&format!("{name} {part}"), *value, expected, 1e-9);
        }
        for (l, gradients) in gradients.iter().enumerate() {
            for (kind, gradient) in ["class", "boxes", "centre"].into_iter().zip(gradients) {
                file.check_gradient(&format!("{name}.{kind}{l}"), gradient);
            }
        }
    }
}

#[test]
fn an_image_without_objects_teaches_absence_and_an_ignored_one_nothing() {
    let levels = Level::over([16, 16], &[8]);
    let run = |objects: &[LabelledBox]| {
        let targets = assign(&[objects], &levels, 1, &AssignOptions::default()).unwrap();
        let mut gradient = vec![f32::NAN; 4 * 6];
        let (class, rest) = gradient.split_at_mut(4);
        let (boxes, centre) = rest.split_at_mut(16);
        let maps = [LevelMaps { class: &[0.0; 4], boxes: &[0.5; 16], centre: &[0.3; 4] }];
        let loss =
            detection(&maps, &targets, &DetectionLoss::default(), &mut [LevelGradients { class, boxes, centre }])
                .unwrap();
        (loss, gradient)
    };
    let (loss, gradient) = run(&[]);
    assert!((loss.total - 4.0 * 0.75 * 0.25 * 2f64.ln()).abs() < 1e-12, "{loss:?}");
    assert!(gradient[..4].iter().all(|g| *g > 0.0) && gradient[4..].iter().all(|g| *g == 0.0));
    let whole = BBox { x0: 0.0, y0: 0.0, x1: 16.0, y1: 16.0 };
    let (loss, gradient) = run(&[LabelledBox { bbox: whole, label: 0, ignore: true }]);
    assert!(loss.total == 0.0 && gradient.iter().all(|g| *g == 0.0));
}

#[test]
fn overlap_of_boxes_around_a_point_is_that_of_areas() {
    let same = overlap([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]);
    assert!(same.loss.abs() < 1e-7 && (same.iou - 1.0).abs() < 1e-7);
    // [-1, 1]² in [-2, 1]×[-1, 3]: 4 of 12, and the larger one is the hull.
    let part = overlap([1.0; 4], [2.0, 1.0, 1.0, 3.0]);
    assert!((part.iou - 1.0 / 3.0).abs() < 1e-7 && (part.loss - 2.0 / 3.0).abs() < 1e-7, "{part:?}");
    // Crossed bars, 4×2 and 2×4: 4 of 12, in a hull of 16.
    let crossed = overlap([2.0, 1.0, 2.0, 1.0], [1.0, 2.0, 1.0, 2.0]);
    assert!((crossed.loss - (1.0 - 1.0 / 3.0 + 0.25)).abs() < 1e-7);
}

#[test]
fn what_does_not_fit_is_named() {
    let targets = targets();
    let message = |options: &DetectionLoss| detection(&[], &targets, options, &mut []).unwrap_err().to_string();
    let options = DetectionLoss::default();
    assert!(message(&options).contains("maps of 0 levels were given for 2 levels"));
    assert!(message(&DetectionLoss { focal_alpha: 2.0, ..options }).contains("focal_alpha is 2"));
    assert!(message(&DetectionLoss { quality: -1.0, ..options }).contains("quality is -1"));
}

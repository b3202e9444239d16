//! Losses of segmentation against PyTorch, MONAI, finite differences and closed forms.

use super::super::testing::{Recording, check_gradient, quantised};
use super::*;

/// Two images of 41×60 pixels, more than one chunk each; every fifth pixel ignored, class 2 in the first image only.
fn masks() -> [Vec<u8>; 2] {
    let class = |image: usize, i: usize| match (i % 5, i % 3) {
        (4, _) => IGNORED,
        (_, 2) if image == 1 => 0,
        (_, class) => class as u8,
    };
    [0, 1].map(|image| (0..41 * 60).map(|i| class(image, i)).collect())
}

fn options(text: &str) -> SegmentationLoss {
    text.parse().expect("a loss")
}

#[test]
fn gradients_are_the_differences_of_the_loss() {
    let masks = masks();
    let masks = [&*masks[0], &*masks[1]];
    let logits = quantised("segment", 2 * 41 * 60 * 3);
    let base = options("ce+dice");
    let losses = [
        options("ce"),
        options("dice"),
        options("focal"),
        SegmentationLoss { focal_gamma: 0.5, ..options("focal") },
        SegmentationLoss { label_smoothing: 0.2, class_weights: vec![0.5, 2.0, 1.0], ..options("ce+0.5*dice+2*focal") },
        SegmentationLoss { dice_per_image: true, dice_background: false, ..base },
    ];
    for loss in losses {
        check_gradient(&logits, |z, g| segmentation(z, 3, &masks, &loss, g).unwrap().total);
    }
}

#[test]
fn segmentation_is_that_of_pytorch_and_monai() {
    let file = Recording::open("segmentation.safetensors");
    let shape = file.shape("logits");
    let (classes, pixels) = (shape[3], shape[1] * shape[2]);
    let logits = file.f32("logits");
    let labels: Vec<u8> = file.i32("masks").into_iter().map(|v| v as u8).collect();
    let masks: Vec<&[u8]> = labels.chunks(pixels).collect();
    let class_weights = file.f32("class_weights");
    let weighted = |text: &str| SegmentationLoss { class_weights: class_weights.clone(), ..options(text) };
    let cases = [
        ("ce", options("ce")),
        ("ce_weighted", weighted("ce")),
        ("ce_smoothed", SegmentationLoss { label_smoothing: 0.1, ..weighted("ce") }),
        ("focal", options("focal")),
        ("focal_weighted", SegmentationLoss { focal_gamma: 1.5, ..weighted("focal") }),
        ("sum", weighted("0.5*ce+2*dice+focal")),
    ];
    for (name, options) in cases {
        file.check(name, |g| segmentation(&logits, classes, &masks, &options, g).unwrap().total);
    }
    // MONAI knows no ignored pixels: its recordings are over masks without.
    let whole: Vec<u8> = file.i32("whole_masks").into_iter().map(|v| v as u8).collect();
    let masks: Vec<&[u8]> = whole.chunks(pixels).collect();
    let cases = [
        ("dice_batch", options("dice")),
        ("dice_image", SegmentationLoss { dice_per_image: true, ..options("dice") }),
        ("dice_foreground", SegmentationLoss { dice_background: false, ..options("dice") }),
        ("focal_monai", options("focal")),
    ];
    for (name, options) in cases {
        file.check(name, |g| segmentation(&logits, classes, &masks, &options, g).unwrap().total);
    }
}

#[test]
fn ignored_pixels_make_neither_loss_nor_gradient() {
    let masks = masks();
    let mut logits = quantised("ignored", 2 * 41 * 60 * 3);
    let run = |logits: &[f32]| {
        let mut gradient = vec![f32::NAN; logits.len()];
        let loss = segmentation(logits, 3, &[&masks[0], &masks[1]], &options("ce+dice+focal"), &mut gradient).unwrap();
        (loss, gradient)
    };
    let before = run(&logits);
    for (row, label) in logits.chunks_exact_mut(3).zip(masks.iter().flatten()) {
        if *label == IGNORED {
            row.copy_from_slice(&[50.0, -50.0, 7.0]);
        }
    }
    let (loss, gradient) = run(&logits);
    assert_eq!((&loss, &gradient), (&before.0, &before.1));
    for (row, label) in gradient.chunks_exact(3).zip(masks.iter().flatten()) {
        assert_eq!(row == [0.0; 3], *label == IGNORED);
    }
    let mut gradient = [9.0; 4];
    let nothing = segmentation(&[1.0; 4], 2, &[&[IGNORED; 2]], &options("ce+dice+focal"), &mut gradient).unwrap();
    assert_eq!((nothing.total, gradient), (0.0, [0.0; 4]));
}

#[test]
fn a_perfect_map_costs_nothing_and_parts_add_up() {
    let mask = [0, 1, 2, 1];
    let logits: Vec<f32> = mask.iter().flat_map(|y| (0..3).map(move |k| if k == *y { 200.0 } else { 0.0 })).collect();
    let mask = mask.map(|y| y as u8);
    let mut gradient = vec![0.0; 12];
    let loss = segmentation(&logits, 3, &[&mask], &options("ce+dice+focal"), &mut gradient).unwrap();
    assert!(loss.total.abs() < 1e-9 && gradient.iter().all(|g| g.abs() < 1e-9), "{loss:?} {gradient:?}");

    let half = SegmentationLoss { cross_entropy: 0.5, ..options("dice") };
    let loss = segmentation(&[0.0; 12], 3, &[&mask], &half, &mut gradient).unwrap();
    assert_eq!(loss.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["cross-entropy", "dice"]);
    // Of 4 pixels one third each: classes of 1, 2 and 1 pixels have Dice 2·n/3 over 4/3 + n.
    let dice = 1.0 - (2.0 * (2.0 / 3.0) / (7.0 / 3.0) + (4.0 / 3.0) / (10.0 / 3.0)) / 3.0;
    assert!((loss.parts[0].1 - 3f64.ln()).abs() < 1e-12 && (loss.parts[1].1 - dice).abs() < 1e-5, "{loss:?}");
    assert!((loss.total - (0.5 * loss.parts[0].1 + loss.parts[1].1)).abs() < 1e-12);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let masks = masks();
    let logits = quantised("threads", 2 * 41 * 60 * 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut gradient = vec![0.0; logits.len()];
        let loss = pool
            .install(|| segmentation(&logits, 3, &[&masks[0], &masks[1]], &options("ce+dice+focal"), &mut gradient));
        (loss.unwrap(), gradient)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn losses_are_written_as_sums() {
    assert_eq!(options("ce+dice"), SegmentationLoss::default());
    let loss = options(" 0.5*ce + focal");
    assert_eq!((loss.cross_entropy, loss.dice, loss.focal), (0.5, 0.0, 1.0));
    assert_eq!(loss.to_string(), "0.5*ce+focal");
    for wrong in ["", "ce+", "bce", "ce+ce", "x*ce", "-1*ce", "0*ce", "ce*2"] {
        let message = wrong.parse::<SegmentationLoss>().unwrap_err().to_string();
        assert!(message.contains("`ce+dice`"), "{wrong}: {message}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |masks: &[&[u8]], loss: &SegmentationLoss| {
        segmentation(&[0.0; 8], 2, masks, loss, &mut [0.0; 8]).unwrap_err().to_string()
    };
    let plain = SegmentationLoss::default();
    assert!(message(&[&[0, 1], &[0, 2]], &plain).contains("image 1 of the batch has class 2 at pixel 1"));
    assert!(message(&[&[0, 1], &[0]], &plain).contains("mask of image 1"));
    assert!(message(&[&[0, 1]], &plain).contains("expected 4 values, got 8"));
    let none = SegmentationLoss { cross_entropy: 0.0, dice: 0.0, ..plain.clone() };
    assert!(message(&[&[0, 1], &[0, 1]], &none).contains("all 0"));
    let gamma = SegmentationLoss { focal_gamma: f32::NAN, ..plain };
    assert!(message(&[&[0, 1], &[0, 1]], &gamma).contains("focal_gamma"));
}

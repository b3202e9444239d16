//! Held-out shares, fractions of the labels, and samples in memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use moco_image::{Image, Raster};

use super::*;
use crate::task::{BBox, LabelledBox, Mask};

fn sample(target: Target) -> Sample {
    Sample { image: Raster::from(Image::filled(4, 4, 1, 9).unwrap()), target, name: "here".into() }
}

/// 40 of class 0, 10 of class 1, 3 of class 2, one of class 3.
fn uneven() -> Arc<dyn LabelledData> {
    let classes = (0..54).map(|i| match i {
        0..40 => 0,
        40..50 => 1,
        50..53 => 2,
        _ => 3,
    });
    let samples = classes.map(|class| sample(Target::Class(class))).collect();
    Arc::new(InMemory::new(["a", "b", "c", "d"].map(String::from).to_vec(), samples).unwrap())
}

fn counts(part: &Subset) -> [usize; 4] {
    let mut counts = [0; 4];
    (0..part.len()).for_each(|i| counts[part.strata(i).unwrap()[0]] += 1);
    counts
}

#[test]
fn a_tenth_of_the_labels_has_every_class_and_lies_within_a_fifth() {
    let tenth = take(uneven(), 0.1, 7).unwrap();
    let fifth = take(uneven(), 0.2, 7).unwrap();
    assert_eq!((counts(&tenth), counts(&fifth)), ([4, 1, 1, 1], [8, 2, 1, 1]));
    let within: BTreeSet<_> = fifth.indices().iter().collect();
    assert!(tenth.indices().iter().all(|i| within.contains(i)));
    assert_eq!(take(uneven(), 0.1, 7).unwrap().indices(), tenth.indices());
    assert_ne!(take(uneven(), 0.1, 8).unwrap().indices(), tenth.indices());
    assert_eq!(take(uneven(), 1.0, 7).unwrap().len(), 54);
    for bad in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(take(uneven(), bad, 0).is_err(), "{bad}");
    }
}

#[test]
fn a_held_out_share_is_drawn_class_by_class_and_shares_nothing() {
    let (train, validation) = split(uneven(), 0.2, 3).unwrap();
    assert_eq!((counts(&train), counts(&validation)), ([32, 8, 2, 1], [8, 2, 1, 0]));
    let both: BTreeSet<_> = train.indices().iter().chain(validation.indices()).collect();
    assert_eq!(both.len(), 54);
    assert!(split(uneven(), 1.0, 3).is_err());
    let one: Arc<dyn LabelledData> = Arc::new(Subset::new(uneven(), vec![53]).unwrap());
    assert!(error_of(split(one, 0.5, 0)).contains("too few"));
}

#[test]
fn images_of_several_classes_count_for_the_rarest() {
    let boxes = |labels: &[usize]| {
        let bbox = BBox { x0: 0.0, y0: 0.0, x1: 2.0, y1: 2.0 };
        Target::Boxes(labels.iter().map(|&label| LabelledBox { bbox, label, ignore: false }).collect())
    };
    let mut samples: Vec<Sample> = (0..20).map(|_| sample(boxes(&[0, 0]))).collect();
    samples.extend((0..10).map(|_| sample(boxes(&[0, 1]))));
    samples.extend((0..10).map(|_| sample(boxes(&[]))));
    let data: Arc<dyn LabelledData> = Arc::new(InMemory::new(vec!["x".into(), "y".into()], samples).unwrap());
    let taken = take(data, 0.2, 1).unwrap();
    let of = |range: std::ops::Range<usize>| taken.indices().iter().filter(|i| range.contains(i)).count();
    assert_eq!((of(0..20), of(20..30), of(30..40)), (4, 2, 2));
}

#[test]
fn samples_in_memory_are_checked_and_named() {
    let refused = |target: Target| error_of(InMemory::new(vec!["x".into(), "y".into()], vec![sample(target)]));
    assert!(refused(Target::Class(2)).contains("sample 0 (`here`): the label 2: expected 0 to 1"));
    assert!(refused(Target::Mask(Mask::new(4, 3, vec![0; 12]).unwrap())).contains("4 × 3"));
    assert!(refused(Target::Mask(Mask::new(4, 4, vec![7; 16]).unwrap())).contains("label 7"));
    for (x0, x1) in [(3.0, 3.0), (f32::NAN, 2.0), (5.0, 9.0), (2.0, 1.0)] {
        let bbox = BBox { x0, y0: 0.0, x1, y1: 2.0 };
        let text = refused(Target::Boxes(vec![LabelledBox { bbox, label: 0, ignore: false }]));
        assert!(text.contains("box 0"), "{text}");
    }
    let mixed = vec![sample(Target::Class(0)), sample(Target::Classes(vec![]))];
    assert!(error_of(InMemory::new(vec!["x".into()], mixed)).contains("sample 1"));
}

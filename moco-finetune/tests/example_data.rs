//! The data of the examples, opened, read and varied as a training does.

use std::path::PathBuf;

use moco_finetune::augment::{AugmentOptions, Framing};
use moco_finetune::data::{DataOptions, LabelledData, MaskMeaning, open, take};
use moco_finetune::task::{Target, Task};
use moco_image::{PreprocessRule, Rng};
use moco_models::heads::Fit;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data").join(name)
}

/// Reads every sample, plain and varied; gives back how many targets of each image are left.
fn read_all(data: &dyn LabelledData) {
    let mut rule = PreprocessRule::imagenet(96, 96);
    if data.channels() == 1 {
        (rule.mean, rule.std) = (vec![0.5; 3], vec![0.2; 3]);
    }
    let framing = Framing { rule, size: [96, 96], fit: Fit::Stretch };
    let mut input = vec![0.0; 96 * 96 * 3];
    let options = AugmentOptions::microscopy();
    for i in 0..data.len() {
        let sample = data.get(i).unwrap();
        framing.prepare(&sample, None, &mut input).unwrap();
        let mut rng = Rng::for_sample(1, 0, i as u64, 0);
        let varied = framing.prepare(&sample, Some((&options, &mut rng)), &mut input).unwrap();
        assert!(input.iter().all(|v| v.is_finite()), "{}", data.name(i));
        match (&sample.target, &varied.target) {
            (Target::Boxes(before), Target::Boxes(after)) => {
                assert!(!before.is_empty() && after.len() <= before.len(), "{}", data.name(i));
                assert!(after.iter().all(|b| b.bbox.clipped(96, 96) == b.bbox && b.bbox.area() > 0.0));
            }
            (Target::Mask(_), Target::Mask(mask)) => assert_eq!((mask.width(), mask.height()), (96, 96)),
            (before, after) => assert_eq!(before, after),
        }
    }
}

#[test]
fn blood_cells_are_boxes_of_three_classes() {
    let opened = open(&folder("blood_cells"), Task::Detect, &DataOptions::default()).unwrap();
    assert_eq!(opened.train.classes(), ["Platelets", "RBC", "WBC"]);
    read_all(&*opened.train);
    read_all(&*opened.validation.unwrap());
    let tenth = take(opened.train.clone(), 0.1, 0).unwrap();
    assert!(tenth.len() >= 3 && tenth.len() * 5 < opened.train.len() + 15, "{} of {}", tenth.len(), opened.train.len());
}

#[test]
fn nuclei_are_masks_of_classes_or_of_foreground() {
    let opened = open(&folder("nuclei"), Task::Segment, &DataOptions::default()).unwrap();
    read_all(&*opened.train);
    read_all(&*opened.validation.unwrap());
    let options = DataOptions { masks: MaskMeaning::Foreground, ..DataOptions::default() };
    let opened = open(&folder("nuclei"), Task::Segment, &options).unwrap();
    assert_eq!(opened.train.classes(), ["background", "foreground"]);
}

#[test]
fn groceries_are_twelve_class_folders() {
    let opened = open(&folder("groceries"), Task::Classify, &DataOptions::default()).unwrap();
    let validation = opened.validation.unwrap();
    assert_eq!((opened.train.len(), validation.len(), validation.classes().len()), (288, 192, 12));
    let tenth = take(opened.train, 0.1, 0).unwrap();
    let classes: std::collections::BTreeSet<_> = (0..tenth.len()).flat_map(|i| tenth.strata(i).unwrap()).collect();
    assert_eq!((tenth.len(), classes.len()), (24, 12));
}

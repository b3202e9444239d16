//! Segmentation and detection: small networks that learn a handful of real images by heart.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use moco_image::{PreprocessRule, Raster};
use moco_models::arch::ArchSpec;
use moco_models::heads::{Decoder, Detect, Fit, HeadSpec, Segment};

use super::*;
use crate::augment::AugmentOptions;
use crate::data::{DataOptions, MaskMeaning, Subset, open};

fn example(name: &str, task: Task, options: &DataOptions, images: &[usize]) -> Subset {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data").join(name);
    let data = open(&root, task, options).unwrap().train;
    Subset::new(data, images.to_vec()).unwrap()
}

fn start() -> Start {
    let arch = ArchSpec { width: 0.25, ..ArchSpec::new("resnet18") };
    Start::random(arch, Some(PreprocessRule::imagenet(64, 64)), 1).unwrap()
}

fn options(head: &HeadSpec, size: usize, epochs: u64) -> Options {
    let mut options = Options::for_head(head, false);
    (options.size, options.batch, options.epochs) = ([size, size], 2, epochs);
    options.augment = AugmentOptions::none();
    options.optimiser.lr = 5e-3;
    options
}

fn quiet(_: &Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn learn(data: &Subset, head: HeadSpec, options: Options) -> Session {
    let mut session = Session::new(start(), head, data.classes().to_vec(), options).unwrap();
    let fit = FitData { train: data, validation: None, checkpoint: None, threads: 2 };
    assert_eq!(session.fit(&fit, &mut quiet).unwrap().outcome, Outcome::Finished);
    session
}

/// Four images with large nuclei, which are still there when the images are made small.
fn nuclei() -> Subset {
    let options = DataOptions { masks: MaskMeaning::Foreground, ..DataOptions::default() };
    example("nuclei", Task::Segment, &options, &[4, 12, 13, 15])
}

#[test]
fn a_segmenter_learns_its_images_whole_and_in_windows() {
    let data = nuclei();
    for (decoder, fit) in [(Decoder::Unet, Fit::Letterbox), (Decoder::Fpn, Fit::Tiles { overlap: 16 })] {
        let head = HeadSpec::Segment(Segment { width: 16, ..Segment::new(decoder, 2) });
        let mut session = learn(&data, head.clone(), Options { fit, ..options(&head, 96, 90) });
        let evaluation = session.evaluate(&data, &mut quiet).unwrap();
        assert!(evaluation.get("mean_dice").unwrap() > 0.9, "{decoder:?}: {evaluation:?}");

        let image = data.image(0).unwrap();
        let Prediction::Mask(mask, sure) = session.predict(&[&image]).unwrap().remove(0) else { panic!("a mask") };
        assert_eq!((mask.height(), mask.width()), image.size());
        assert!(sure.iter().all(|p| (0.5..=1.0).contains(p)));
        // The same from a file.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        session.model().unwrap().save(&path).unwrap();
        let predictor = Model::open(&path).unwrap();
        let mut predictor =
            predictor.predictor(session.options.device, session.options.precision, PredictOptions::default()).unwrap();
        let Prediction::Mask(again, _) = predictor.predict(&[&image]).unwrap().remove(0) else { panic!("a mask") };
        assert_eq!(again, mask);
    }
}

#[test]
fn a_detector_learns_its_images_and_answers_in_their_pixels() {
    let data = example("blood_cells", Task::Detect, &DataOptions::default(), &[0, 1, 2, 3]);
    let head = HeadSpec::Detect(Detect { width: 24, convs: 1, levels: [2, 4], ..Detect::new(data.classes().len()) });
    let mut session = learn(&data, head.clone(), options(&head, 128, 120));
    let evaluation = session.evaluate(&data, &mut quiet).unwrap();
    // Platelets are five in these images, of 7 pixels each at this size: too little for so short a training.
    for class in ["ap50:RBC", "ap50:WBC"] {
        assert!(evaluation.get(class).unwrap() > 0.9, "{evaluation:?}");
    }

    let image = data.image(0).unwrap();
    let Prediction::Boxes(found) = session.predict(&[&image]).unwrap().remove(0) else { panic!("boxes") };
    let (height, width) = image.size();
    assert!(!found.is_empty() && found.windows(2).all(|w| w[0].score >= w[1].score));
    assert!(found.iter().all(|d| d.bbox == d.bbox.clipped(width, height)));
    let none = PredictOptions { score: 1.0, ..PredictOptions::default() };
    session.set_predict_options(none).unwrap();
    assert_eq!(session.predict(&[&image]).unwrap(), [Prediction::Boxes(vec![])]);
}

#[test]
fn a_dense_training_resumes_to_the_bit_over_varied_images_and_a_frozen_stem() {
    let data = nuclei();
    let head = HeadSpec::Segment(Segment { width: 8, ..Segment::new(Decoder::Unet, 2) });
    let mut options = Options { freeze: Freeze::Stages(2), average: 0.9, ..options(&head, 64, 3) };
    options.augment = AugmentOptions::default();
    options.optimiser.clip = 1.0;
    let new = || Session::new(start(), head.clone(), data.classes().to_vec(), options.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let fit = FitData { train: &data, validation: Some(&data), checkpoint: Some(&path), threads: 1 };
    let mut whole = new();
    let report = whole.fit(&fit, &mut quiet).unwrap();
    let mut first = new();
    let cancelled = first.fit(&fit, &mut |event| match event {
        Event::Step(step) if step.step == 3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(cancelled.unwrap().outcome, Outcome::Cancelled);
    let mut second = Session::resume(&path, None).unwrap();
    // Another number of threads makes the same batches.
    let resumed = second.fit(&FitData { threads: 3, ..fit }, &mut quiet).unwrap();
    assert_eq!(resumed.epochs, report.epochs);
    assert_eq!(second.stack.net.state().unwrap(), whole.stack.net.state().unwrap());
    assert_eq!(second.frozen_sha256().unwrap(), new().frozen_sha256().unwrap());
    let other = Arc::new(data.clone());
    let other = Subset::new(other, vec![0, 1]).unwrap();
    let mut third = Session::resume(&path, None).unwrap();
    let refused = third.fit(&FitData { train: &other, ..fit }, &mut quiet).unwrap_err().to_string();
    assert!(refused.contains("4 images") && refused.contains("the same"), "{refused}");
}

#[test]
fn an_image_of_other_channels_or_depth_is_refused_in_words() {
    let data = nuclei();
    let head = HeadSpec::Segment(Segment { width: 8, ..Segment::new(Decoder::Fpn, 2) });
    let mut session = Session::new(start(), head.clone(), data.classes().to_vec(), options(&head, 64, 1)).unwrap();
    let deep = moco_image::Image::from_values(32, 32, 3, vec![300u16; 32 * 32 * 3]).unwrap();
    let deep = Raster { pixels: moco_image::Pixels::U16(deep), bits: 16, ..data.image(0).unwrap() };
    assert!(session.predict(&[&deep]).unwrap_err().to_string().contains("16"));
    let image = moco_image::Image::new(32, 32, 2, vec![0; 32 * 32 * 2]).unwrap();
    assert!(session.predict(&[&Raster::from(image)]).unwrap_err().to_string().contains("channel"));
}

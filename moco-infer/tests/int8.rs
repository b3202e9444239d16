//! Int8 beside f32 on photographs, through ONNX Runtime (which set-up provides).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moco_image::ResizeRule;
use moco_infer::{
    Backbone, Calibration, CalibrationOptions, Extractor, ExtractorOptions, Features, Precision, calibrate, image_files,
};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::{card::Card, init::initialise, weights::save_backbone};

/// Random weights and, as after training, running statistics and scales that differ from channel to channel.
fn backbone(folder: &Path, arch: ArchSpec, side: usize) -> Backbone {
    let graph = arch.build().unwrap();
    let mut weights = initialise(&graph, 7);
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 8) as u8 as f32 / 256.0;
    for (spec, range) in graph.buffer_layout().iter() {
        let centre = if spec.name.ends_with("running_var") { 0.5 } else { -0.5 };
        weights.buffers[range].iter_mut().enumerate().for_each(|(i, v)| *v = centre + value(i));
    }
    let mut card = Card::new(arch, "random").unwrap();
    card.preprocess.resize = ResizeRule::ShorterSide(side + side / 8);
    card.preprocess.crop = Some([side, side]);
    let path = folder.join("backbone.safetensors");
    save_backbone(&path, &graph, &weights, &card).unwrap();
    Backbone::open(&path).unwrap()
}

fn photographs(n: usize) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/groceries/train");
    let files = image_files(&folder).unwrap();
    (0..n).map(|i| files[i * files.len() / n].clone()).collect()
}

fn extractor(backbone: &Backbone, precision: Precision, [batch, threads]: [usize; 2]) -> Extractor {
    let taps = backbone.taps().to_vec();
    let options = ExtractorOptions { taps, batch, threads, precision, ..ExtractorOptions::default() };
    Extractor::new(backbone, &options).unwrap()
}

fn relative_error(got: &Features, exact: &Features) -> f64 {
    assert_eq!((&got.tap, &got.shape), (&exact.tap, &exact.shape));
    let pairs = || got.data.iter().zip(&exact.data).map(|(g, e)| (f64::from(*g), f64::from(*e)));
    (pairs().map(|(g, e)| (g - e).powi(2)).sum::<f64>() / pairs().map(|(_, e)| e * e).sum::<f64>()).sqrt()
}

/// Rounding to 256 levels alone is an error near 1 % of a map; a wrong scale, fold or zero point is one of 20 % and more,
/// as the last lines show.
#[test]
fn every_tap_of_every_kind_of_network_is_close_to_f32_on_unseen_photographs() {
    let spec = ArchSpec::new;
    let kinds = [
        (ArchSpec { width: 0.5, ..spec("resnet18") }, 64),
        (ArchSpec { width: 0.25, stem: Stem::Cifar, ..spec("resnet34") }, 32),
        (ArchSpec { width: 0.25, ..spec("resnet50") }, 64),
        (ArchSpec { width: 0.25, ..spec("wide_resnet50_2") }, 64),
        (ArchSpec { width: 0.5, ..spec("resnext50_32x4d") }, 64),
        (ArchSpec { width: 0.33, in_channels: 1, ..spec("resnet18") }, 64),
    ];
    let photographs = photographs(30);
    for (spec, side) in kinds {
        let folder = tempfile::tempdir().unwrap();
        let backbone = backbone(folder.path(), spec, side);
        let options = CalibrationOptions { taps: backbone.taps().to_vec(), ..CalibrationOptions::default() };
        let mut done = Vec::new();
        let calibrated = calibrate(&backbone, &photographs, &options, &mut |n, total| done.push((n, total))).unwrap();
        assert!(calibrated.skipped.is_empty());
        assert_eq!(done.len(), 30);
        assert_eq!(done.last(), Some(&(30, 30)));
        let name = &calibrated.calibration.arch;
        let accuracy = calibrated.calibration.accuracy.as_ref().unwrap();
        assert_eq!((calibrated.calibration.images, accuracy.images), (20, 10));
        for (tap, accuracy) in &accuracy.taps {
            let worst = accuracy.worst_cosine;
            assert!(worst > 0.99 && worst < 1.0, "{tap} of {name}: cosine {worst}");
        }
        let pooled = &accuracy.taps["pooled"];
        // Untrained features hardly differ between images, so nothing is asked of what is left without their mean.
        assert!(pooled.mean_cosine > 0.999 && pooled.mean_centred_cosine.is_some(), "{name}: {pooled:?}");
        assert!(pooled.same_nearest_neighbour.is_some());

        let exact = extractor(&backbone, Precision::F32, [0, 0]).extract_files(&photographs[..6], &mut |_| ()).unwrap();
        let in_int8 = |calibration: Calibration| {
            let extractor = extractor(&backbone, Precision::Int8(Arc::new(calibration)), [0, 0]);
            extractor.extract_files(&photographs[..6], &mut |_| ()).unwrap()
        };
        let int8 = in_int8(calibrated.calibration.clone());
        for (int8, exact) in int8.features.iter().zip(&exact.features) {
            let error = relative_error(int8, exact);
            assert!(error > 0.0 && error < 0.1, "{} of {name}: relative error {error}", int8.tap);
        }
        let mut narrow = calibrated.calibration;
        narrow.ranges.values_mut().for_each(|range| *range = range.map(|v| v * 0.3));
        let error = relative_error(in_int8(narrow).features.last().unwrap(), exact.features.last().unwrap());
        assert!(error > 0.2, "ranges of a third clip, {error}");
    }
}

#[test]
fn neither_threads_nor_batches_change_calibration_and_features() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), ArchSpec { width: 0.25, ..ArchSpec::new("resnet18") }, 64);
    let photographs = photographs(12);
    let with_threads = |threads| {
        let options = CalibrationOptions { threads, images: 8, held_out: 4, ..CalibrationOptions::default() };
        calibrate(&backbone, &photographs, &options, &mut |_, _| ()).unwrap().calibration
    };
    let calibration = with_threads(1);
    assert_eq!(with_threads(3), calibration);
    let precision = Precision::Int8(Arc::new(calibration));
    let features = |shape| {
        extractor(&backbone, precision.clone(), shape).extract_files(&photographs, &mut |_| ()).unwrap().features
    };
    let expected = features([1, 1]);
    for shape in [[2, 1], [5, 2], [12, 3]] {
        assert_eq!(features(shape), expected, "batch and threads {shape:?}");
    }
}

#[test]
fn a_calibration_serves_its_own_backbone_only() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = backbone(folder.path(), ArchSpec { width: 0.125, ..ArchSpec::new("resnet18") }, 32);
    let other = backbone(other.path(), ArchSpec { width: 0.25, ..ArchSpec::new("resnet18") }, 32);
    let calibrated = calibrate(&own, &photographs(3), &CalibrationOptions::default(), &mut |_, _| ()).unwrap();
    let path = folder.path().join("int8.json");
    calibrated.calibration.write(&path).unwrap();
    let read = Calibration::read(&path).unwrap();
    assert_eq!(read, calibrated.calibration);
    let options = ExtractorOptions { precision: Precision::Int8(Arc::new(read)), ..ExtractorOptions::default() };
    assert!(Extractor::new(&own, &options).is_ok());
    let error = Extractor::new(&other, &options).err().unwrap().to_string();
    assert!(error.contains("another backbone") && error.contains("moco-infer calibrate"), "{error}");
}

#[test]
fn unreadable_images_are_passed_over_and_named_until_none_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), ArchSpec { width: 0.125, ..ArchSpec::new("resnet18") }, 32);
    let broken = folder.path().join("broken.jpg");
    std::fs::write(&broken, b"no image").unwrap();
    let mut files = photographs(6);
    files[0] = broken.clone();
    let calibrated = calibrate(&backbone, &files, &CalibrationOptions::default(), &mut |_, _| ()).unwrap();
    assert_eq!(calibrated.calibration.images, 3);
    assert_eq!(calibrated.skipped.len(), 1);
    assert!(calibrated.skipped[0].0 == broken && calibrated.skipped[0].1.to_string().contains("broken.jpg"));
    let none = calibrate(&backbone, &[broken], &CalibrationOptions::default(), &mut |_, _| ()).unwrap_err();
    assert!(none.to_string().contains("broken.jpg"), "{none}");
    let empty = CalibrationOptions { images: 0, ..CalibrationOptions::default() };
    assert!(calibrate(&backbone, &files, &empty, &mut |_, _| ()).unwrap_err().to_string().contains("at least one"));
}

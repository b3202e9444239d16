//! The engine that trains and ONNX Runtime compute the same features from one file.

use moco_engine::{Mode, Plan, PlanConfig};
use moco_image::{ChannelMismatch, ChannelOrder, Image, Layout, PreprocessRule, ResizeRule, Rng, preprocess};
use moco_infer::{Backbone, Extractor, ExtractorOptions};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::card::Card;
use moco_models::weights::{BackboneFile, save_backbone};
use moco_models::{Shape, init};
use moco_tests::tolerance::{FEATURES, relative_l2};

const IMAGES: usize = 3;

#[test]
fn every_tap_agrees_for_every_kind_of_network() {
    let spec = |name: &str| ArchSpec::new(name);
    let kinds = [
        (spec("resnet18"), 64),
        (ArchSpec { stem: Stem::Cifar, ..spec("resnet18") }, 32),
        (ArchSpec { width: 0.25, in_channels: 1, ..spec("resnet34") }, 64),
        (ArchSpec { width: 0.5, ..spec("resnet50") }, 64),
        (ArchSpec { width: 0.5, ..spec("wide_resnet50_2") }, 32),
        (spec("resnext50_32x4d"), 32),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (spec, side) in kinds {
        let path = folder.path().join("backbone.safetensors");
        write(&path, &spec, side);
        let images: Vec<Image> =
            (0..IMAGES).map(|i| noise(spec.in_channels, side + 9, side + 5 + i, i as u64)).collect();
        let expected = by_the_engine(&path, &images, side);
        let backbone = Backbone::open(&path).unwrap();
        let options = ExtractorOptions { taps: backbone.taps().to_vec(), ..ExtractorOptions::default() };
        let got = Extractor::new(&backbone, &options).unwrap().extract(&images).unwrap();
        assert_eq!(got.len(), expected.len());
        for (got, (tap, shape, values)) in got.iter().zip(&expected) {
            assert_eq!((&got.tap, &got.shape), (tap, shape), "{spec:?}");
            let error = relative_l2(&got.data, values);
            assert!(error < FEATURES, "{tap} of {spec:?}: relative error {error:.1e}");
        }
    }
}

/// A file with random weights and running statistics.
fn write(path: &std::path::Path, spec: &ArchSpec, side: usize) {
    let graph = spec.build().unwrap();
    let mut weights = init::initialise(&graph, 1);
    let mut rng = Rng::new(2, 0);
    // Means around 0 and variances around 1, all different: at their start they would hide a mix-up.
    for (spec, range) in graph.buffer_layout().iter() {
        let centre = if spec.name.ends_with("running_var") { 1.0 } else { 0.0 };
        weights.buffers[range].iter_mut().for_each(|v| *v = centre + 0.2 * (rng.unit() as f32 - 0.5));
    }
    let mut card = Card::new(spec.clone(), "untrained").unwrap();
    card.preprocess = PreprocessRule {
        channels: spec.in_channels,
        channel_order: if spec.in_channels == 1 { ChannelOrder::Grey } else { ChannelOrder::Rgb },
        on_mismatch: ChannelMismatch::Error,
        resize: ResizeRule::ShorterSide(side + 2),
        crop: Some([side, side]),
        mean: vec![0.45; spec.in_channels],
        std: vec![0.25; spec.in_channels],
        ..PreprocessRule::imagenet(256, 224)
    };
    save_backbone(path, &graph, &weights, &card).unwrap();
}

fn noise(channels: usize, width: usize, height: usize, seed: u64) -> Image {
    let mut rng = Rng::new(seed, 7);
    let data = (0..width * height * channels).map(|_| rng.below(256) as u8).collect();
    Image::new(width, height, channels, data).unwrap()
}

/// Taps with shapes and values as inference gives them: maps with channels before height and width.
fn by_the_engine(path: &std::path::Path, images: &[Image], side: usize) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let file = BackboneFile::open(path).unwrap();
    let rule = &file.card().preprocess;
    let numel = side * side * rule.channels;
    let mut pixels = vec![0.0; images.len() * numel];
    for (image, pixels) in images.iter().zip(pixels.chunks_mut(numel)) {
        preprocess(image, rule, Layout::Nhwc, pixels).unwrap();
    }
    let mut weights = file.weights().unwrap();
    let mut plan = Plan::compile(file.graph(), &PlanConfig::new(images.len(), side, side, Mode::Eval)).unwrap();
    plan.forward(&weights.params, &mut weights.buffers, &pixels, images.len()).unwrap();
    let one = |tap: &String| {
        let values: Vec<f64> = plan.output(tap).unwrap().iter().map(|v| f64::from(*v)).collect();
        match plan.output_shape(tap).unwrap() {
            Shape::Vector(len) => (tap.clone(), vec![images.len(), len], values),
            Shape::Map { channels, height, width } => {
                let mut moved = vec![0.0; values.len()];
                for (i, value) in values.iter().enumerate() {
                    let (pixel, channel) = (i / channels, i % channels);
                    let (image, place) = (pixel / (height * width), pixel % (height * width));
                    moved[(image * channels + channel) * height * width + place] = *value;
                }
                (tap.clone(), vec![images.len(), channels, height, width], moved)
            }
        }
    };
    file.card().taps.iter().map(one).collect()
}

//! Heads on every kind of backbone: sizes, strides, names, starts, descriptions.

use super::*;
use crate::arch::{self, ArchSpec, Projector, Stem};
use crate::init::initialise;
use crate::{Op, Shape};

fn heads() -> Vec<HeadSpec> {
    let texts = [
        (Task::Classify, "linear"),
        (Task::MultiLabel, "mlp:8,4"),
        (Task::Segment, "fpn:16"),
        (Task::Segment, "unet:4"),
        (Task::Detect, "fcos:width=8,convs=2,levels=3-7"),
        (Task::Detect, "fcos:width=8,convs=0,levels=2-4"),
        (Task::Detect, "fcos:width=8,convs=1,levels=5-5"),
    ];
    texts.map(|(task, text)| HeadSpec::parse(task, text, 3).unwrap()).to_vec()
}

fn narrow(name: &str, stem: Stem, in_channels: usize) -> ArchSpec {
    let width = if name.starts_with("resnext") { 0.25 } else { 0.0625 };
    ArchSpec { width, stem, in_channels, ..ArchSpec::new(name) }
}

#[test]
fn every_head_fits_every_backbone_at_any_size() {
    for name in arch::names() {
        for (stem, channels) in [(Stem::ImageNet, 3), (Stem::Cifar, 1)] {
            let backbone = narrow(name, stem, channels).build().unwrap();
            for head in heads() {
                let model = head.attach(&backbone).unwrap();
                let outputs = head.outputs(&model).unwrap();
                for (height, width) in [(64, 64), (37, 53), (1, 1)] {
                    let shapes = model.shapes(height, width).unwrap();
                    for output in &outputs {
                        let expected = match output.stride {
                            0 => Shape::Vector(output.channels),
                            stride => Shape::Map {
                                channels: output.channels,
                                height: height.div_ceil(stride),
                                width: width.div_ceil(stride),
                            },
                        };
                        let NodeId(node) = model.tap(&output.tap).unwrap();
                        assert_eq!(shapes[node], expected, "{} of {head} on {name} at {height}×{width}", output.tap);
                    }
                }
            }
        }
    }
}

#[test]
fn strides_follow_the_stem() {
    let strides = |stem| {
        let head = HeadSpec::parse(Task::Detect, "fcos:levels=2-7", 1).unwrap();
        let model = head.attach(&narrow("resnet18", stem, 3).build().unwrap()).unwrap();
        head.outputs(&model).unwrap().iter().step_by(3).map(|o| o.stride).collect::<Vec<_>>()
    };
    assert_eq!(strides(Stem::ImageNet), [4, 8, 16, 32, 64, 128]);
    assert_eq!(strides(Stem::Cifar), [1, 2, 4, 8, 16, 32]);
}

#[test]
fn the_backbone_keeps_its_names_and_loses_its_projector() {
    let plain = narrow("resnet18", Stem::ImageNet, 3);
    let backbone = plain.build().unwrap();
    let projected = ArchSpec { projector: Projector::Mlp { dim: 8 }, ..plain }.build().unwrap();
    for head in heads() {
        let model = head.attach(&projected).unwrap();
        assert_eq!(model, head.attach(&backbone).unwrap());
        let (heads, others): (Vec<_>, Vec<_>) =
            model.parameters().into_iter().partition(|spec| spec.name.starts_with(PREFIX));
        assert_eq!(others, backbone.parameters());
        assert!(!heads.is_empty());
        for tap in backbone.taps() {
            assert!(model.tap(&tap.name).is_ok(), "{}", tap.name);
        }
        assert!(model.nodes()[backbone.nodes().len()..].iter().all(|n| n.name.starts_with(PREFIX)));
        assert!(head.attach(&model).unwrap_err().to_string().contains("has a head already"));
    }
}

#[test]
fn levels_of_a_detector_share_their_layers() {
    let head = HeadSpec::parse(Task::Detect, "fcos:width=8,convs=2,levels=3-7", 2).unwrap();
    let model = head.attach(&narrow("resnet18", Stem::ImageNet, 3).build().unwrap()).unwrap();
    let towers: Vec<_> = model.nodes().iter().filter(|n| matches!(n.op, Op::GroupNorm { .. })).collect();
    assert_eq!(towers.len(), 2 * 2 * 5);
    assert_eq!(towers.iter().filter(|n| n.tied.is_none()).count(), 4);
    let owned = model.parameters().into_iter().filter(|p| p.name.contains(".cls.") || p.name.contains(".box."));
    // Per tower two convolutions of 8·8·9 + 8 and two normalisations of 16; results of 8·9·c + c.
    assert_eq!(owned.map(|p| p.numel()).sum::<usize>(), 2 * 2 * (8 * 8 * 9 + 8 + 16) + (8 * 9 + 1) * (2 + 4 + 1));
}

#[test]
fn a_classifier_needs_pooled_features_only() {
    let mut graph = Graph::new(5);
    let pooled = graph.push("pool", Op::GlobalAvgPool, &[graph.input()]);
    graph.add_tap("pooled", pooled);
    let model = HeadSpec::classify(2).attach(&graph).unwrap();
    assert_eq!(model.shapes(1, 1).unwrap().last(), Some(&Shape::Vector(2)));
    let error = HeadSpec::segment(Decoder::Unet, 2).attach(&graph).unwrap_err().to_string();
    assert!(error.contains("no tap `c5`"), "{error}");
}

#[test]
fn a_start_takes_the_backbone_over_and_draws_the_head() {
    let backbone = narrow("resnet18", Stem::ImageNet, 3).build().unwrap();
    let mut weights = initialise(&backbone, 1);
    weights.buffers.fill(0.5);
    weights.counters.insert("bn1".into(), 7);
    for head in heads() {
        let model = head.attach(&backbone).unwrap();
        let start = head.initialise(&model, &backbone, &weights, 3).unwrap();
        assert_eq!(start.restrict(&model, &backbone).unwrap(), weights);
        assert_eq!(start, head.initialise(&model, &backbone, &weights, 3).unwrap());
        assert_ne!(start, head.initialise(&model, &backbone, &weights, 4).unwrap());
        for (spec, range) in model.parameter_layout().iter().filter(|(s, _)| s.name.starts_with(PREFIX)) {
            let constant = start.params[range].iter().all(|v| *v == start.params[0]);
            assert!(spec.shape.len() == 1 || !constant, "{} is constant", spec.name);
        }
    }
    let other = narrow("resnet34", Stem::ImageNet, 3).build().unwrap();
    let model = HeadSpec::classify(2).attach(&other).unwrap();
    assert!(HeadSpec::classify(2).initialise(&model, &backbone, &weights, 1).is_err());
}

#[test]
fn a_detector_starts_by_answering_one_percent() {
    let backbone = narrow("resnet50", Stem::ImageNet, 3).build().unwrap();
    let head = HeadSpec::detect(2);
    let model = head.attach(&backbone).unwrap();
    let start = head.initialise(&model, &backbone, &initialise(&backbone, 1), 1).unwrap();
    let get = |name: &str| start.param(&model, name).unwrap();
    for bias in get("head.cls.logits.bias") {
        assert!((1.0 / (1.0 + (-bias).exp()) - 0.01).abs() < 1e-6);
    }
    assert!(get("head.box.distances.bias").iter().chain(get("head.fpn3.bias")).all(|v| *v == 0.0));
    assert!(get("head.cls.0.norm.weight").iter().all(|v| *v == 1.0));
    let deviation = |name: &str| {
        let values = get(name);
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    assert!((deviation("head.cls.0.conv.weight") / 0.01 - 1.0).abs() < 0.02);
    let fan_in = 128.0 * 9.0;
    assert!((deviation("head.fpn6.weight") * f64::sqrt(fan_in) - 1.0).abs() < 0.02);
}

#[test]
fn a_description_survives_json_and_may_leave_out_what_is_usual() {
    for head in heads() {
        let json = serde_json::to_string(&head).unwrap();
        assert_eq!(serde_json::from_str::<HeadSpec>(&json).unwrap(), head, "{json}");
    }
    let read = |json: &str| serde_json::from_str::<HeadSpec>(json);
    assert_eq!(read(r#"{"kind":"detect","classes":3}"#).unwrap(), HeadSpec::detect(3));
    assert_eq!(
        read(r#"{"kind":"segment","decoder":"unet","classes":3}"#).unwrap(),
        HeadSpec::segment(Decoder::Unet, 3)
    );
    assert_eq!(read(r#"{"kind":"classify","classes":3}"#).unwrap(), HeadSpec::classify(3));
    for unknown in [
        r#"{"kind":"detect","classes":3,"depth":1}"#,
        r#"{"kind":"segment","classes":3,"depth":1}"#,
        r#"{"kind":"classify","classes":3,"depth":1}"#,
        r#"{"kind":"count","classes":3}"#,
        r#"{"kind":"detect"}"#,
    ] {
        assert!(read(unknown).is_err(), "{unknown}");
    }
}

#[test]
fn heads_that_cannot_be_are_refused_by_field() {
    let classify = |classes, hidden| HeadSpec::Classify(Classify { hidden, ..Classify::linear(classes) });
    let detect = |levels| HeadSpec::Detect(Detect { levels, ..Detect::new(1) });
    for (head, word) in [
        (classify(1, vec![]), "classes is 1, expected 2"),
        (classify(3, vec![0]), "hidden layer is 0"),
        (HeadSpec::segment(Decoder::Fpn, 1), "classes (with the background) is 1"),
        (HeadSpec::segment(Decoder::Fpn, 256), "expected 2 to 255"),
        (HeadSpec::Segment(Segment { width: 0, ..Segment::new(Decoder::Unet, 2) }), "width is 0"),
        (HeadSpec::detect(0), "classes is 0"),
        (detect([1, 5]), "first level is 1"),
        (detect([3, 8]), "last level is 8"),
    ] {
        let backbone = narrow("resnet18", Stem::ImageNet, 3).build().unwrap();
        let error = head.attach(&backbone).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(HeadSpec::multi_label(1).validate().is_ok());
}

#[test]
fn a_head_tells_which_taps_it_reads() {
    let backbone = narrow("resnet18", Stem::ImageNet, 3).build().unwrap();
    for (task, text, expected) in [
        (Task::Classify, "linear", &["pooled"][..]),
        (Task::Segment, "fpn:16", &["c2", "c3", "c4", "c5"]),
        (Task::Segment, "unet:4", &["c1", "c2", "c3", "c4", "c5"]),
        (Task::Detect, "fcos:width=8,convs=1,levels=3-7", &["c3", "c4", "c5"]),
    ] {
        let model = HeadSpec::parse(task, text, 3).unwrap().attach(&backbone).unwrap();
        assert_eq!(model.taps_read_by(PREFIX).unwrap(), expected, "{text}");
    }
    let error = backbone.taps_read_by("layer2.1.").unwrap_err().to_string();
    assert!(error.contains("`layer2.1.conv1` reads `layer2.0.") && error.contains("has no tap"), "{error}");
}

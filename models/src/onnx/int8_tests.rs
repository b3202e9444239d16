//! The model in 8 bits, read back: its structure, and the weights in it against the network's.

use std::collections::HashMap;
use std::path::Path;

use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tests::{assert_well_formed, dimensions};
use super::*;
use crate::arch::{ArchSpec, Projector, Stem};
use crate::calibration::{CALIBRATION_VERSION, Calibration};
use crate::init::initialise;
use crate::weights::save_backbone;

/// A file with random weights, and running statistics and scales that all differ.
fn backbone(folder: &Path, spec: &ArchSpec) -> BackboneFile {
    let graph = spec.build().unwrap();
    let mut weights = initialise(&graph, 1);
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 8) as u8 as f32 / 256.0;
    for (spec, range) in graph.buffer_layout().iter() {
        let centre = if spec.name.ends_with("running_var") { 0.7 } else { -0.4 };
        weights.buffers[range].iter_mut().enumerate().for_each(|(i, v)| *v = centre + value(i));
    }
    for (spec, range) in graph.parameter_layout().iter().filter(|(s, _)| s.name.contains("bn")) {
        let centre = if spec.name.ends_with("weight") { 0.6 } else { -0.5 };
        weights.params[range].iter_mut().enumerate().for_each(|(i, v)| *v = centre + value(i + 7));
    }
    let path = folder.join("b.safetensors");
    save_backbone(&path, &graph, &weights, &Card::new(spec.clone(), "x").unwrap()).unwrap();
    BackboneFile::open(&path).unwrap()
}

fn calibration(file: &BackboneFile) -> Calibration {
    let nodes = observed_nodes(file.graph()).unwrap();
    let range = |name: &str| if name.contains("relu") { [0.0, 5.1] } else { [-2.0, 3.1] };
    Calibration {
        moco_calibration: CALIBRATION_VERSION,
        backbone_sha256: file.sha256(),
        arch: file.card().arch.name.clone(),
        images: 1,
        method: "by hand".into(),
        tool_version: "test".into(),
        accuracy: None,
        ranges: nodes.into_iter().map(|n| (n.clone(), range(&n))).collect(),
    }
}

fn written(file: &BackboneFile, taps: &[&str], weight_bits: WeightBits) -> Result<GraphProto> {
    let int8 = Int8 { calibration: &calibration(file), weight_bits };
    let bytes = int8_model(file, taps, InputSize::default(), &int8)?;
    let model = ModelProto::decode(&bytes[..]).unwrap();
    assert_well_formed(&model);
    Ok(model.graph.unwrap())
}

fn makers(graph: &GraphProto) -> HashMap<&str, &NodeProto> {
    graph.node.iter().map(|n| (n.output[0].as_str(), n)).collect()
}

fn tensor<'a>(graph: &'a GraphProto, name: &str) -> &'a TensorProto {
    graph.initializer.iter().find(|t| t.name.as_deref() == Some(name)).unwrap_or_else(|| panic!("no {name}"))
}

fn floats(graph: &GraphProto, name: &str) -> Vec<f32> {
    let bytes = tensor(graph, name).raw_data.as_ref().unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// What the runtimes match: every convolution and sum reads DequantizeLinear and is read, through at most a ReLU, by
/// one QuantizeLinear; no batch normalisation is left.
#[test]
fn every_network_is_quantised_from_the_image_to_its_last_map() {
    for name in crate::arch::names() {
        for (stem, projector) in [(Stem::ImageNet, Projector::None), (Stem::Cifar, Projector::Mlp { dim: 4 })] {
            let folder = tempfile::tempdir().unwrap();
            let width = if name.starts_with("resnext") { 0.25 } else { 0.0625 };
            let spec = ArchSpec { width, stem, projector, in_channels: 2, ..ArchSpec::new(name) };
            let file = backbone(folder.path(), &spec);
            let graph = written(&file, &[], WeightBits::Eight).unwrap();
            let makers = makers(&graph);
            let op = |value: &str| makers.get(value).map_or("", |n| n.op_type.as_deref().unwrap());
            for node in &graph.node {
                let readers = || graph.node.iter().filter(|n| n.input.contains(&node.output[0]));
                match node.op_type.as_deref().unwrap() {
                    "Conv" | "Add" => {
                        assert!(node.input.iter().all(|i| op(i) == "DequantizeLinear"), "{node:?}");
                        let mut next = readers().collect::<Vec<_>>();
                        if next[0].op_type.as_deref() == Some("Relu") {
                            next = graph.node.iter().filter(|n| n.input.contains(&next[0].output[0])).collect();
                        }
                        assert_eq!(next.len(), 1);
                        assert_eq!(next[0].op_type.as_deref(), Some("QuantizeLinear"));
                    }
                    "DequantizeLinear" => assert!(readers().count() <= 1, "{node:?}"),
                    "BatchNormalization" => panic!("{node:?}"),
                    _ => (),
                }
            }
            let of = |op: &str| graph.node.iter().filter(|n| n.op_type.as_deref() == Some(op)).count();
            let in_network = |is: fn(&crate::Op) -> bool| file.graph().nodes().iter().filter(|n| is(&n.op)).count();
            assert_eq!(of("Conv"), in_network(|op| matches!(op, crate::Op::Conv2d { .. })));
            assert_eq!(of("Gemm"), in_network(|op| matches!(op, crate::Op::Linear { .. })));
            assert_eq!(graph.output.len(), file.card().taps.len());
            assert_eq!(
                dimensions(&graph.output[0]),
                ["batch".into(), (64.0 * width).to_string(), "c1_height".into(), "c1_width".into()]
            );
        }
    }
}

/// W·γ/√(v+ε) within half a level of the stored weights, β − μ·γ/√(v+ε) within half a level of the stored bias.
#[test]
fn weights_hold_the_folded_normalisation() {
    let folder = tempfile::tempdir().unwrap();
    let file = backbone(folder.path(), &ArchSpec { width: 0.25, ..ArchSpec::new("resnext50_32x4d") });
    let weights = file.weights().unwrap();
    let read = |name: &str| weights.param(file.graph(), name).unwrap();
    for (bits, largest) in [(WeightBits::Eight, 127), (WeightBits::Seven, 63)] {
        let graph = written(&file, &["c3"], bits).unwrap();
        for (conv, norm) in
            [("conv1", "bn1"), ("layer1.0.conv2", "layer1.0.bn2"), ("layer2.0.downsample.0", "layer2.0.downsample.1")]
        {
            let [gamma, beta, mean, variance] =
                ["weight", "bias", "running_mean", "running_var"].map(|part| read(&format!("{norm}.{part}")));
            let exact = read(&format!("{conv}.weight"));
            let stored: &[i8] =
                bytemuck::cast_slice(tensor(&graph, &format!("{conv}.weight")).raw_data.as_ref().unwrap());
            assert_eq!(stored.len(), exact.len());
            assert_eq!(stored.iter().map(|v| v.unsigned_abs()).max(), Some(largest));
            let scales = floats(&graph, &format!("{conv}.weight/scale"));
            let bias_scales = floats(&graph, &format!("{conv}.bias/scale"));
            let bias = tensor(&graph, &format!("{conv}.bias")).raw_data.as_ref().unwrap();
            for (c, bias) in bias.chunks_exact(4).enumerate() {
                let scale = f64::from(gamma[c]) / (f64::from(variance[c]) + 1e-5).sqrt();
                let n = exact.len() / gamma.len();
                for (exact, stored) in exact[c * n..][..n].iter().zip(&stored[c * n..][..n]) {
                    let error = f64::from(*exact) * scale - f64::from(*stored) * f64::from(scales[c]);
                    assert!(error.abs() <= 0.5001 * f64::from(scales[c]), "{conv} {c}: {error}");
                }
                let stored = f64::from(i32::from_le_bytes(bias.try_into().unwrap())) * f64::from(bias_scales[c]);
                let exact = f64::from(beta[c]) - f64::from(mean[c]) * scale;
                // The stored scale is rounded to f32, and a bias is many of its levels.
                assert!((stored - exact).abs() <= 0.51 * f64::from(bias_scales[c]) + 1e-6 * exact.abs());
            }
        }
    }
}

#[test]
fn a_channel_without_weight_keeps_its_bias() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let spec = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
    let graph = spec.build().unwrap();
    let mut weights = initialise(&graph, 1);
    let range = graph.parameter_layout().range("conv1.weight").unwrap();
    weights.params[range][..147].fill(0.0); // One channel of 3 × 7 × 7.
    let bias = graph.parameter_layout().range("bn1.bias").unwrap();
    weights.params[bias].fill(0.75);
    save_backbone(&path, &graph, &weights, &Card::new(spec, "x").unwrap()).unwrap();
    let model = written(&BackboneFile::open(&path).unwrap(), &["c1"], WeightBits::Eight).unwrap();
    let bias = tensor(&model, "conv1.bias").raw_data.as_ref().unwrap();
    let level = f64::from(i32::from_le_bytes(bias[..4].try_into().unwrap()));
    assert!((level * f64::from(floats(&model, "conv1.bias/scale")[0]) - 0.75).abs() < 1e-6);
    let stored: &[i8] = bytemuck::cast_slice(tensor(&model, "conv1.weight").raw_data.as_ref().unwrap());
    assert!(stored[..147].iter().all(|v| *v == 0));
}

#[test]
fn levels_cover_the_range_and_zero_is_one() {
    assert_eq!(grid([0.0, 2.55]), (0.01, 0));
    let (scale, zero) = grid([-1.0, 3.0]);
    assert_eq!((scale, zero), ((4.0 / 255.0) as f32, 64));
    assert_eq!(grid([0.0, 0.0]), (1.0, 0));
    assert_eq!(grid([-3.0, 0.0]).1, 255);
}

#[test]
fn another_backbones_calibration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = backbone(folder.path(), &ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") });
    let mut foreign = calibration(&file);
    foreign.backbone_sha256 = "0".repeat(64);
    let int8 = Int8 { calibration: &foreign, weight_bits: WeightBits::Eight };
    let path = folder.path().join("m.onnx");
    let error = export_int8(&path, &file, &[], InputSize::default(), &int8).unwrap_err().to_string();
    assert!(error.contains("another backbone") && !path.exists(), "{error}");
}

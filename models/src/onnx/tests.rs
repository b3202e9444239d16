//! The written model, read back: what the `onnx` package's checker and the runtimes look at.

use std::collections::HashSet;

use super::proto::{DataLocation, DataType, Dimension, ValueInfoProto};
use super::*;
use crate::arch::{ArchSpec, Projector, Stem};
use crate::init::initialise;
use crate::weights::save_backbone;

fn tiny() -> ArchSpec {
    ArchSpec { width: 0.0625, ..ArchSpec::new("resnet50") }
}

fn exported(spec: &ArchSpec, options: &ExportOptions) -> Result<ModelProto> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let graph = spec.build()?;
    export(&path, &graph, &initialise(&graph, 1), options)?;
    Ok(ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap())
}

pub(super) fn dimensions(value: &ValueInfoProto) -> Vec<String> {
    let shape = value.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
    let text = |d: &Dimension| match d {
        Dimension::Value(n) => n.to_string(),
        Dimension::Param(name) => name.clone(),
    };
    shape.dim.iter().map(|d| text(d.value.as_ref().unwrap())).collect()
}

/// Every input is made before it is read, every result once.
pub(super) fn assert_well_formed(model: &ModelProto) {
    let graph = model.graph.as_ref().unwrap();
    let mut known: HashSet<String> = graph.input.iter().map(|v| v.name.clone().unwrap()).collect();
    for tensor in &graph.initializer {
        assert!(known.insert(tensor.name.clone().unwrap()), "{:?} twice", tensor.name);
    }
    for node in &graph.node {
        // An empty name is an input that is left out.
        assert!(node.input.iter().all(|i| i.is_empty() || known.contains(i)), "{node:?} reads what is not there");
        assert!(node.output.iter().all(|o| known.insert(o.clone())), "{node:?} writes a known name");
    }
    assert!(graph.output.iter().all(|o| known.contains(o.name.as_ref().unwrap())));
}

#[test]
fn every_architecture_and_projector_gives_a_well_formed_graph() {
    for name in crate::arch::names() {
        for (stem, projector) in
            [(Stem::ImageNet, Projector::Linear { dim: 4 }), (Stem::Cifar, Projector::Mlp { dim: 4 })]
        {
            let width = if name.starts_with("resnext") { 0.25 } else { 0.0625 };
            let spec = ArchSpec { width, stem, projector, in_channels: 2, ..ArchSpec::new(name) };
            let model = exported(&spec, &ExportOptions::default()).unwrap();
            assert_well_formed(&model);
            assert_eq!(model.graph.unwrap().output.len(), 7);
        }
    }
}

#[test]
fn sizes_are_open_unless_fixed() {
    let open = exported(&tiny(), &ExportOptions::default()).unwrap().graph.unwrap();
    assert_eq!(dimensions(&open.input[0]), ["batch", "3", "height", "width"]);
    assert_eq!(dimensions(&open.output[0]), ["batch", "4", "c1_height", "c1_width"]);
    let size = InputSize { batch: None, image: Some([64, 96]) };
    let fixed = exported(&tiny(), &ExportOptions { size, ..Default::default() }).unwrap().graph.unwrap();
    assert_eq!(dimensions(&fixed.input[0]), ["batch", "3", "64", "96"]);
    assert_eq!(dimensions(&fixed.output[0]), ["batch", "4", "32", "48"]);
    assert_eq!(dimensions(&fixed.output[5]), ["batch", "128"]);
}

#[test]
fn only_what_the_taps_need_is_written() {
    let options = ExportOptions { taps: vec!["c1".into()], ..Default::default() };
    let graph = exported(&tiny(), &options).unwrap().graph.unwrap();
    assert_eq!(graph.node.len(), 3);
    assert_eq!(graph.initializer.len(), 5);
    let twice = ExportOptions { taps: vec!["c1".into(), "c1".into()], ..Default::default() };
    assert!(exported(&tiny(), &twice).unwrap_err().to_string().contains("twice"));
    let unknown = ExportOptions { taps: vec!["c9".into()], ..Default::default() };
    assert!(exported(&tiny(), &unknown).unwrap_err().to_string().contains("pooled"));
}

#[test]
fn external_data_points_at_each_tensors_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let graph = tiny().build().unwrap();
    let weights = initialise(&graph, 1);
    save_backbone(&path, &graph, &weights, &Card::new(tiny(), "x").unwrap()).unwrap();
    let file = BackboneFile::open(&path).unwrap();
    let external = model_with_external_data(&file, &["pooled"], InputSize::default()).unwrap();
    let model = ModelProto::decode(&external.model[..]).unwrap();
    assert_well_formed(&model);
    let tensors = model.graph.unwrap().initializer;
    assert_eq!(tensors.len(), graph.parameters().len() + graph.buffers().len());
    for tensor in tensors {
        assert_eq!(tensor.data_location, Some(DataLocation::External as i32));
        assert_eq!(tensor.data_type, Some(DataType::Float as i32));
        let get = |key: &str| {
            tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key)).unwrap().value.clone().unwrap()
        };
        assert_eq!(get("location"), external.location);
        let (offset, length): (usize, usize) = (get("offset").parse().unwrap(), get("length").parse().unwrap());
        let values = weights.param(&graph, tensor.name.as_ref().unwrap()).unwrap();
        assert_eq!(&file.bytes()[offset..offset + length], bytemuck::cast_slice::<f32, u8>(values));
    }
}

#[test]
fn the_card_is_in_the_metadata() {
    let card = Card::new(tiny(), "moco-v2").unwrap();
    let model = exported(&tiny(), &ExportOptions { card: Some(card.clone()), ..Default::default() }).unwrap();
    let entry = &model.metadata_props[0];
    assert_eq!(entry.key.as_deref(), Some(CARD_KEY));
    assert_eq!(Card::from_json(entry.value.as_ref().unwrap()).unwrap(), card);
    assert_eq!((model.ir_version, model.opset_import[0].version), (Some(8), Some(17)));
}

#[test]
fn weights_beyond_two_gigabytes_are_refused() {
    let wide = ArchSpec { width: 6.0, ..ArchSpec::new("wide_resnet50_2") }.build().unwrap();
    assert!(check_inline_size(&wide).unwrap_err().to_string().contains("2 GB"));
}

//! Exported models, read back: well formed, open and fixed sizes, layers that are shared.

use super::proto::{DataType, ModelProto, ValueInfoProto};
use super::tests::{assert_well_formed, dimensions};
use super::*;
use crate::arch::ArchSpec;
use crate::heads::{HeadCard, HeadSpec, Task};
use crate::init::initialise;
use crate::weights::{ModelFile, save_model};

fn model(task: Task, text: &str) -> ModelFile {
    let arch = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
    let backbone = arch.build().unwrap();
    let head = HeadSpec::parse(task, text, 3).unwrap();
    let graph = head.attach(&backbone).unwrap();
    let weights = head.initialise(&graph, &backbone, &initialise(&backbone, 1), 2).unwrap();
    let card = Card::new(arch, "test").unwrap();
    let names = ["a", "b", "c"].map(String::from).to_vec();
    let head = HeadCard::new(head, names, &card, [64, 96]).unwrap();
    ModelFile::in_memory("model", &graph, &weights, &card, &head).unwrap()
}

fn exported(file: &ModelFile, options: &ModelExport) -> ModelProto {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    export_model(&path, file, options).unwrap();
    ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap()
}

fn heads() -> [(Task, &'static str); 6] {
    [
        (Task::Classify, "linear"),
        (Task::MultiLabel, "mlp:8"),
        (Task::Segment, "fpn:8"),
        (Task::Segment, "unet:2"),
        (Task::Detect, "fcos:width=8,convs=2,levels=3-7"),
        (Task::Detect, "fcos:width=8,convs=0,levels=5-5"),
    ]
}

#[test]
fn every_head_gives_a_well_formed_graph() {
    for (task, text) in heads() {
        let file = model(task, text);
        let fixed = InputSize { batch: Some(2), image: Some([64, 96]) };
        for size in [InputSize::default(), fixed, InputSize { batch: None, ..fixed }] {
            assert_well_formed(&exported(&file, &ModelExport { size, ..ModelExport::default() }));
        }
        let external = answering_model(&file, &ModelExport::default()).unwrap();
        assert_well_formed(&ModelProto::decode(&external.model[..]).unwrap());
    }
    let suppress = Some(Suppress::default());
    let file = model(Task::Detect, "");
    assert_well_formed(&exported(&file, &ModelExport { suppress, ..ModelExport::default() }));
}

#[test]
fn outputs_carry_the_names_of_open_sizes() {
    let outputs = |task, text, options: &ModelExport| {
        let graph = exported(&model(task, text), options).graph.unwrap();
        let described = |v: &ValueInfoProto| {
            let kind = v.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().elem_type.unwrap();
            format!("{} {} {kind}", v.name.as_ref().unwrap(), dimensions(v).join("×"))
        };
        graph.output.iter().map(described).collect::<Vec<_>>()
    };
    let (open, f32s) = (ModelExport::default(), DataType::Float as i32);
    let logits = ModelExport { logits: true, ..open };
    assert_eq!(
        outputs(Task::Classify, "linear", &logits),
        [format!("probabilities batch×3 {f32s}"), format!("logits batch×3 {f32s}")]
    );
    assert_eq!(
        outputs(Task::Segment, "unet:2", &open),
        [
            format!("probabilities batch×3×height×width {f32s}"),
            format!("mask batch×height×width {}", DataType::Uint8 as i32)
        ]
    );
    let text = "fcos:width=8,convs=1,levels=3-4";
    let places = |places: &str| [format!("boxes batch×{places}×4 {f32s}"), format!("scores batch×{places}×3 {f32s}")];
    assert_eq!(outputs(Task::Detect, text, &open), places("places"));
    let size = InputSize { batch: None, image: Some([64, 96]) };
    assert_eq!(outputs(Task::Detect, text, &ModelExport { size, ..open }), places(&(8 * 12 + 4 * 6).to_string()));
    let suppressed = outputs(Task::Detect, text, &ModelExport { suppress: Some(Suppress::default()), ..open });
    assert_eq!(
        suppressed.iter().map(|o| o.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["boxes", "scores", "labels", "image_index"]
    );
}

#[test]
fn shared_layers_are_one_initialiser() {
    let file = model(Task::Detect, "fcos:width=8,convs=1,levels=3-7");
    let graph = exported(&file, &ModelExport::default()).graph.unwrap();
    let readers = |name: &str| graph.node.iter().filter(|n| n.input.iter().any(|i| i == name)).count();
    for name in ["head.cls.0.conv.weight", "head.cls.0.norm.bias", "head.box.distances.bias"] {
        assert_eq!(graph.initializer.iter().filter(|t| t.name.as_deref() == Some(name)).count(), 1, "{name}");
        assert_eq!(readers(name), 5, "{name}");
    }
    let tensors = file.graph().parameters().len() + file.graph().buffers().len();
    assert_eq!(graph.initializer.iter().filter(|t| !is_constant(t.name.as_deref().unwrap())).count(), tensors);
}

fn is_constant(name: &str) -> bool {
    name.starts_with("const/") || name.starts_with("decode/")
}

#[test]
fn decoders_and_detectors_stay_in_f32() {
    let (file, folder) = (model(Task::Segment, "fpn:8"), tempfile::tempdir().unwrap());
    let error = observed_nodes(file.graph()).unwrap_err().to_string();
    assert!(error.contains("head.") && error.contains("f32 only"), "{error}");
    // The backbone in such a file is a backbone like any other.
    let path = folder.path().join("model.safetensors");
    save_model(&path, file.graph(), &file.weights().unwrap(), file.card(), file.head()).unwrap();
    let backbone = BackboneFile::open(&path).unwrap();
    assert!(observed_nodes(backbone.graph()).unwrap().iter().all(|node| !node.starts_with("head.")));
}

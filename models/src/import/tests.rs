//! Files of `fixtures/make.py`, all around one ResNet-18 of width 1/64.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::arch::Stem;
use crate::export::torchvision;
use crate::init::initialise;
use crate::weights::{BackboneFile, SafetensorsFile, TensorOut, save_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn network() -> (ArchSpec, Weights) {
    let spec = ArchSpec { width: 1.0 / 64.0, ..ArchSpec::new("resnet18") };
    let file = SafetensorsFile::open(&fixture("network.safetensors")).unwrap();
    let weights = load_strict(&file, &spec.build().unwrap(), "network", str::to_owned, |_| true).unwrap();
    (spec, weights)
}

fn options() -> ImportOptions {
    ImportOptions::default()
}

fn refusal(name: &str, options: &ImportOptions) -> String {
    import(&fixture(name), options).expect_err(name).to_string()
}

#[test]
fn moco_files_give_the_query_encoder_without_projector() {
    let (spec, weights) = network();
    for (name, kind, method) in [
        ("moco_v1.pth.tar", SourceKind::MocoV1, "moco-v1"),
        ("moco_v2_no_module.pth.tar", SourceKind::MocoV2, "moco-v2"),
        ("network.safetensors", SourceKind::Plain, "unknown"),
    ] {
        let imported = import(&fixture(name), &options()).unwrap();
        assert_eq!((imported.kind, imported.card.method.as_str()), (kind, method));
        assert_eq!(imported.card.arch, spec);
        assert_eq!(imported.weights, weights, "{name}");
        assert_eq!(imported.card.parent_sha256, Some(sha256_of_file(&fixture(name)).unwrap()));
        assert!(imported.card.source.unwrap().starts_with(name));
    }
}

#[test]
fn notes_say_what_was_taken_and_what_was_left_out() {
    let notes = import(&fixture("moco_v1.pth.tar"), &options()).unwrap().notes.join("\n");
    for part in [
        "MoCo v1",
        "legacy",
        "resnet18 of width",
        "200 epochs",
        "`module.encoder_q.`",
        "`fc` was left out",
        "module.encoder_k, module.queue, module.queue_ptr",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn the_key_encoder_comes_on_request_and_its_absence_is_told() {
    let key = ImportOptions { encoder: EncoderChoice::Key, ..options() };
    let (_, weights) = network();
    let imported = import(&fixture("moco_v1.pth.tar"), &key).unwrap();
    // The fixture's key encoder is the query encoder plus 1.
    assert!(imported.weights.params.iter().zip(&weights.params).all(|(k, q)| *k == q + 1.0));
    let error = refusal("moco_v2_no_module.pth.tar", &key);
    assert!(error.contains("no `encoder_k`") && error.contains("`encoder_q.`"), "{error}");
    assert!(refusal("torchvision_half.pth", &key).contains("no MoCo checkpoint"));
}

#[test]
fn projectors_are_kept_on_request() {
    let keep = ImportOptions { keep_projector: true, ..options() };
    for (name, projector) in
        [("moco_v1.pth.tar", Projector::Linear { dim: 4 }), ("moco_v2_no_module.pth.tar", Projector::Mlp { dim: 4 })]
    {
        let imported = import(&fixture(name), &keep).unwrap();
        assert_eq!(imported.card.arch.projector, projector);
        assert!(imported.card.taps.contains(&"projection".to_owned()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        imported.save(&path).unwrap();
        assert_eq!(BackboneFile::open(&path).unwrap().weights().unwrap(), imported.weights);
    }
    assert!(refusal("network.safetensors", &keep).contains("no projector"));
}

#[test]
fn linear_evaluations_are_refused_unless_allowed() {
    let error = refusal("linear_evaluation.pth.tar", &options());
    assert!(error.contains("linear evaluation") && error.contains("10 classes"), "{error}");
    let allowed = ImportOptions { allow_linear_evaluation: true, ..options() };
    let imported = import(&fixture("linear_evaluation.pth.tar"), &allowed).unwrap();
    assert_eq!((imported.kind, imported.weights), (SourceKind::LinearEvaluation, network().1));
}

#[test]
fn supervised_training_is_told_from_linear_evaluation_by_what_its_optimiser_moved() {
    let imported = import(&fixture("supervised.pth.tar"), &options()).unwrap();
    assert_eq!((imported.kind, imported.card.method.as_str()), (SourceKind::Classifier, "supervised"));
    assert_eq!(imported.weights.params, network().1.params);
    assert!(imported.weights.counters.len() == 20 && imported.weights.counters.values().all(|n| *n == 1234));
    let error = refusal("linear_evaluation.pth.tar", &options());
    assert!(error.contains("is the checkpoint of a linear evaluation") && error.contains("moved 2 tensors"), "{error}");
    let error = refusal("trained_without_optimizer.pth.tar", &options());
    assert!(error.contains("cannot be told") && error.contains("--force"), "{error}");
}

#[test]
fn moco_v3_gives_its_base_encoder_with_the_counters_it_has() {
    let imported = import(&fixture("moco_v3.pth.tar"), &options()).unwrap();
    assert_eq!((imported.kind, imported.card.method.as_str()), (SourceKind::MocoV3, "moco-v3"));
    assert_eq!(imported.weights.params, network().1.params);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    imported.save(&path).unwrap();
    let file = BackboneFile::open(&path).unwrap();
    let counter = file.tensors().tensor("layer2.0.downsample.1.num_batches_tracked").unwrap();
    assert_eq!(*counter.data, 1234i64.to_le_bytes());
    assert_eq!(file.weights().unwrap(), imported.weights);
    let key = ImportOptions { encoder: EncoderChoice::Key, ..options() };
    let imported = import(&fixture("moco_v3.pth.tar"), &key).unwrap();
    assert!(imported.weights.params.iter().zip(&network().1.params).all(|(k, q)| *k == q + 1.0));
}

#[test]
fn detectron2_files_are_read_back() {
    let (spec, weights) = network();
    for (name, kind) in [
        ("detectron2_protocol3.pkl", SourceKind::MocoV2),
        ("detectron2_protocol4.pkl", SourceKind::MocoV2),
        ("detectron2_protocol5.pkl", SourceKind::MocoV2),
        ("detectron2_detector.pth", SourceKind::Plain),
    ] {
        let imported = import(&fixture(name), &options()).unwrap();
        assert_eq!((imported.kind, &imported.card.arch), (kind, &spec), "{name}");
        assert_eq!(imported.weights.params, weights.params, "{name}");
        assert!(imported.notes.join("\n").contains("Detectron2's names were translated"));
        let stem = imported.map.iter().find(|m| m.to.as_deref() == Ok("conv1.weight")).unwrap();
        assert!(stem.from.ends_with("stem.conv1.weight"), "{stem}");
    }
    let error = refusal("caffe2_names.pkl", &options());
    assert!(error.contains("Caffe2"), "{error}");
    assert!(refusal("object_array.pkl", &options()).contains("without numpy arrays"));

    // What we write for Detectron2 comes back, too.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pkl");
    crate::export::detectron2(&path, &spec.build().unwrap(), &weights).unwrap();
    assert_eq!(import(&path, &options()).unwrap().weights, weights);
}

#[test]
fn the_key_map_accounts_for_every_tensor_of_the_file() {
    let imported = import(&fixture("moco_v3.pth.tar"), &options()).unwrap();
    let taken: Vec<&str> = imported.map.iter().filter_map(|m| m.to.as_deref().ok()).collect();
    let tensors = crate::weights::torchvision_tensors(&imported.graph, &imported.weights).unwrap();
    assert_eq!(taken.len(), tensors.len());
    assert!(tensors.iter().all(|t| taken.contains(&t.name.as_str())));
    let lines: Vec<String> = imported.map.iter().map(Mapping::to_string).collect();
    for line in [
        "module.base_encoder.conv1.weight [1, 3, 7, 7] F32 → conv1.weight",
        "module.base_encoder.fc.0.weight [8, 8] F32 left out: a projector or classifier on top of the features",
        "module.predictor.0.weight [8, 4] F32 left out: not of this network",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
    }
}

#[test]
fn preprocessing_is_told_in_parts() {
    let told = PreprocessChange { crop: Some(Some([160, 160])), mean: Some(vec![0.5]), ..PreprocessChange::default() };
    let imported = import(&fixture("moco_v1.pth.tar"), &ImportOptions { preprocess: told, ..options() }).unwrap();
    let rule = &imported.card.preprocess;
    assert_eq!(
        (rule.crop, &rule.mean[..], rule.resize),
        (Some([160, 160]), &[0.5; 3][..], ResizeRule::ShorterSide(256))
    );
    assert!(imported.notes.join("\n").contains("assumed for resize, filter, standard deviation"));
    let wrong = PreprocessChange { std: Some(vec![0.5, 0.5]), ..PreprocessChange::default() };
    let error = refusal("moco_v1.pth.tar", &ImportOptions { preprocess: wrong, ..options() });
    assert!(error.contains("mean/std"), "{error}");
}

#[test]
fn a_backbone_for_other_channels_says_so_in_its_card() {
    let grey = ImportOptions { channels: Some(1), ..options() };
    let imported = import(&fixture("moco_v1.pth.tar"), &grey).unwrap();
    assert_eq!((imported.card.arch.in_channels, imported.card.preprocess.channels), (1, 1));
    assert!(imported.card.notes.join("\n").contains("for 1 channels instead of 3: the first convolution was summed"));
    assert_eq!(imported.weights.params.len() + 2 * 49, network().1.params.len());
    let five = ImportOptions { channels: Some(5), ..options() };
    assert_eq!(import(&fixture("moco_v1.pth.tar"), &five).unwrap().card.preprocess.mean.len(), 5);
    let pointless = ImportOptions { first_convolution: Some(FirstConvolution::Sum), ..options() };
    assert!(refusal("moco_v1.pth.tar", &pointless).contains("3 channels already"));
    let impossible = ImportOptions { first_convolution: Some(FirstConvolution::Sum), ..five };
    assert!(refusal("moco_v1.pth.tar", &impossible).contains("to 5 channels"));
}

#[test]
fn any_file_is_opened_as_a_backbone_with_a_warning_on_what_is_assumed() {
    let (spec, weights) = network();
    for name in
        ["moco_v1.pth.tar", "moco_v3.pth.tar", "detectron2_protocol4.pkl", "network.safetensors", "supervised.pth.tar"]
    {
        let opened = open(&fixture(name), None).unwrap();
        assert!(opened.file.is_converted() && opened.file.card().arch == spec, "{name}");
        assert_eq!(opened.file.weights().unwrap().params, weights.params, "{name}");
        assert_eq!(opened.file.sha256(), sha256_of_file(&fixture(name)).unwrap());
        assert!(opened.warnings[0].contains("has no card") && opened.warnings[0].contains("shorter side 256"));
        let span = opened.file.span("conv1.weight").unwrap();
        let bytes: &[u8] = bytemuck::cast_slice(weights.param(&spec.build().unwrap(), "conv1.weight").unwrap());
        assert_eq!(&opened.file.bytes()[span], bytes);
    }
    assert!(
        open(&fixture("linear_evaluation.pth.tar"), None)
            .unwrap_err()
            .to_string()
            .contains("moco-train import --force")
    );
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path(), None).unwrap_err().to_string().contains("has no file of weights"));
    let graph = spec.build().unwrap();
    let own = folder.path().join("backbone.safetensors");
    save_backbone(&own, &graph, &weights, &Card::new(spec, "moco-v2").unwrap()).unwrap();
    let opened = open(folder.path(), None).unwrap();
    assert!(opened.warnings.is_empty() && !opened.file.is_converted());
    assert_eq!(opened.file.sha256(), sha256_of_file(&own).unwrap());
    assert!(!open(&own, Some(3)).unwrap().file.is_converted());

    let grey = open(&own, Some(1)).unwrap();
    assert_eq!((grey.file.card().arch.in_channels, grey.file.card().method.as_str()), (1, "moco-v2"));
    assert!(
        grey.warnings.len() == 1 && grey.warnings[0].contains("for 1 channels instead of 3"),
        "{:?}",
        grey.warnings
    );
    // A head fitted on the one does not fit the other.
    assert_ne!(grey.file.sha256(), opened.file.sha256());
    assert_eq!(open(&fixture("moco_v1.pth.tar"), Some(5)).unwrap().file.card().preprocess.channels, 5);
}

#[test]
fn torchvision_classifiers_are_welcome_in_any_precision() {
    let imported = import(&fixture("torchvision_half.pth"), &options()).unwrap();
    assert_eq!((imported.kind, imported.card.method.as_str()), (SourceKind::Classifier, "supervised"));
    let notes = imported.notes.join("\n");
    assert!(notes.contains("converted to F32, e.g. from F16") && notes.contains("`fc` on top"), "{notes}");
    let (_, weights) = network();
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 1024.0 + 1e-7;
    assert!(imported.weights.params.iter().zip(&weights.params).all(close));
}

#[test]
fn every_architecture_is_recognised_from_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    for name in crate::arch::names() {
        // As narrow as the groups of a ResNeXt allow: shapes alone must tell the variants apart.
        let width = if name.starts_with("resnext") { 0.25 } else { 0.0625 };
        for stem in [Stem::ImageNet, Stem::Cifar] {
            let spec = ArchSpec { width, stem, in_channels: 1, ..ArchSpec::new(name) };
            let graph = spec.build().unwrap();
            let path = folder.path().join("x.safetensors");
            torchvision(&path, &graph, &initialise(&graph, 1), None).unwrap();
            assert_eq!(import(&path, &options()).unwrap().card.arch, spec);
        }
    }
}

#[test]
fn missing_and_unknown_tensors_are_all_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let (spec, weights) = network();
    let graph = spec.build().unwrap();
    let mut tensors = crate::weights::torchvision_tensors(&graph, &weights).unwrap();
    tensors.retain(|t| t.name != "layer3.0.bn2.bias" && t.name != "bn1.running_var");
    tensors.push(TensorOut::f32("layer3.0.se.weight", &[1], &[0.0]));
    save_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let error = import(&path, &options()).unwrap_err().to_string();
    for part in ["`layer3.0.bn2.bias`", "`bn1.running_var`", "unknown (1): `layer3.0.se.weight`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn files_that_are_no_resnet_of_ours_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let save = |tensors: &[TensorOut]| save_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
    save(&[TensorOut::f32("blocks.0.attn.qkv.weight", &[1], &[0.0])]);
    assert!(import(&path, &options()).unwrap_err().to_string().contains("`blocks.0.attn.qkv.weight`"));

    let zeros = vec![0.0; 64 * 3 * 49];
    let odd = [
        TensorOut::f32("conv1.weight", &[64, 3, 7, 7], &zeros),
        TensorOut::f32("bn1.weight", &[64], &zeros[..64]),
        TensorOut::f32("layer1.0.conv1.weight", &[64, 64, 1, 1], &zeros[..4096]),
    ];
    save(&odd);
    let error = import(&path, &options()).unwrap_err().to_string();
    assert!(error.contains("[1, 0, 0, 0] basic blocks"), "{error}");

    for (content, reason) in [
        ("<!DOCTYPE html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("", "empty"),
        ("hello hello hello", "neither"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = import(&path, &options()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(import(&folder.path().join("none"), &options()).unwrap_err().to_string().contains("none"));
}

#[test]
fn several_networks_need_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let (spec, weights) = network();
    let graph = spec.build().unwrap();
    let tensors = crate::weights::torchvision_tensors(&graph, &weights).unwrap();
    let both: Vec<TensorOut> = ["student.", "teacher."]
        .iter()
        .flat_map(|prefix| tensors.iter().map(move |t| TensorOut { name: format!("{prefix}{}", t.name), ..t.clone() }))
        .collect();
    save_safetensors(&path, &both, &BTreeMap::new()).unwrap();
    let error = import(&path, &options()).unwrap_err().to_string();
    assert!(error.contains("`student.`, `teacher.`"), "{error}");
    let teacher = ImportOptions { prefix: Some("teacher".into()), ..options() };
    assert_eq!(import(&path, &teacher).unwrap().weights, weights);
    let nobody = ImportOptions { prefix: Some("nobody".into()), ..options() };
    assert!(import(&path, &nobody).unwrap_err().to_string().contains("`student.`"));
}

#[test]
fn a_backbone_file_keeps_its_card() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let (spec, weights) = network();
    let mut card = Card::new(spec.clone(), "moco-v2").unwrap();
    card.data = Some("ten images".into());
    save_backbone(&path, &spec.build().unwrap(), &weights, &card).unwrap();
    let imported = import(&path, &ImportOptions { licence: Some("MIT".into()), ..options() }).unwrap();
    assert_eq!(imported.kind, SourceKind::Backbone);
    assert_eq!((imported.card.method.as_str(), imported.card.data.as_deref()), ("moco-v2", Some("ten images")));
    assert_eq!(imported.card.licence.as_deref(), Some("MIT"));
}

#[test]
fn tensors_larger_than_their_file_are_refused() {
    let graph = ArchSpec::new("wide_resnet101_2").build().unwrap();
    let source = Source::open(&fixture("moco_v1.pth.tar"), None).unwrap();
    assert!(check_size(&source, &graph).unwrap_err().contains("cannot hold"));
    assert!(check_size(&source, &network().0.build().unwrap()).is_ok());
}

//! The other commands, and errors that name what is wrong.

use std::path::Path;

use moco_models::weights::BackboneFile;

use super::support::{fail, moco_train, photographs, pretrain, succeed};

#[test]
fn errors_name_the_key_or_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    for (more, parts) in [
        (&["--set", "optim.speed=3"][..], &["optim.speed", "weight_decay"][..]),
        (&["--set", "optim.lr=fast"], &["optim.lr", "float"]),
        (&["--temperature", "0"], &["method.temperature"]),
        (&["--virtual-ranks", "9"], &["batch_norm.count", "--virtual-ranks"]),
        (&["--device", "cuda"], &["--device cuda", "cpu"]),
        (&["--recipe", "moco-v9"], &["moco-v9", "moco-v2"]),
        (&["--arch", "resnet19"], &["resnet19", "resnet18"]),
        (&["--size", "0"], &["--size"]),
        (&["--queue", "-5"], &["method.queue"]),
    ] {
        fail(&mut pretrain(&photographs(), &path, more), parts);
        assert!(!path.exists(), "{more:?} left a folder");
    }
}

#[test]
fn a_printed_recipe_is_a_recipe_file_and_its_mistakes_have_lines() {
    let folder = tempfile::tempdir().unwrap();
    let text = succeed(moco_train().args(["recipes", "moco-v2"]));
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, text.replace("epochs = 200", "epochs = 1")).unwrap();
    let more = ["--recipe", file.to_str().unwrap()];
    succeed(&mut pretrain(&photographs(), &folder.path().join("run"), &more));
    std::fs::write(&file, text.replace("[optim]", "[optim]\nwarmup = 3")).unwrap();
    fail(&mut pretrain(&photographs(), &folder.path().join("other"), &more), &["mine.toml", "warmup", "line"]);
}

#[test]
fn check_judges_before_a_run() {
    let args =
        ["check", "--arch", "resnet18", "--width", "0.125", "--size", "32", "--batch", "16", "--virtual-ranks", "4"];
    let text = succeed(moco_train().args(args).args(["--queue", "500", "--data"]).arg(photographs()));
    for part in [
        "288 images",
        "12 classes",
        "larger than the set of 288 images",
        "memory",
        "an epoch",
        "linear rule",
        "ready to train",
    ] {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
}

#[test]
fn bench_prints_one_json_line() {
    let args =
        ["bench", "--arch", "resnet18", "--size", "32", "--batch", "4", "--steps", "2", "--queue", "64", "--json"];
    let text = succeed(moco_train().args(args));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(line["img_per_s"].as_f64().unwrap() > 0.0);
    for key in ["min", "median", "max"] {
        assert!(line["step_ms"][key].as_f64().unwrap() > 0.0);
    }
    assert_eq!(line["arch"], "resnet18");
}

#[test]
fn a_trained_backbone_can_be_exported_and_imported_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    succeed(&mut pretrain(&photographs(), &path, &["--epochs", "1", "--keep-projector"]));
    let backbone = path.join("backbone.safetensors");
    assert!(path.join("backbone-with-projector.safetensors").exists() && path.join("README.md").exists());
    let original = BackboneFile::open(&backbone).unwrap();
    assert_eq!((original.card().method.as_str(), original.card().images), ("moco-v2", Some(288)));

    for (format, name) in [("onnx", "b.onnx"), ("detectron2", "b.pkl"), ("torchvision", "b.pth")] {
        let out = folder.path().join(name);
        let export = || {
            let mut command = moco_train();
            command.arg("export").arg(&backbone).args(["--to", format, "--out"]).arg(&out);
            command
        };
        succeed(&mut export());
        fail(&mut export(), &["not overwritten"]);
    }
    let again = folder.path().join("again.safetensors");
    succeed(moco_train().arg("import").arg(folder.path().join("b.pth")).arg("--out").arg(&again));
    let again = BackboneFile::open(&again).unwrap();
    assert_eq!(again.weights().unwrap(), original.weights().unwrap());
}

#[test]
fn an_import_explains_itself_and_takes_what_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fixtures/moco_v3.pth.tar");
    let said = succeed(moco_train().arg("import").arg(&file).arg("--explain"));
    for line in ["module.base_encoder.conv1.weight [1, 3, 7, 7] F32 → conv1.weight", "module.predictor.0.weight"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let out = folder.path().join("grey.safetensors");
    let mut command = moco_train();
    command.arg("import").arg(&file).arg("--out").arg(&out).args(["--channels", "1", "--resize", "none"]);
    succeed(command.args(["--crop", "64", "--filter", "bicubic", "--mean", "0.5", "--std", "0.25"]));
    let opened = BackboneFile::open(&out).unwrap();
    let rule = &opened.card().preprocess;
    assert_eq!((rule.channels, rule.crop, rule.resize), (1, Some([64, 64]), moco_image::ResizeRule::None));
    assert_eq!((&rule.mean[..], &rule.std[..], rule.filter), (&[0.5][..], &[0.25][..], moco_image::Filter::Bicubic));
    assert!(!opened.card().notes.join(" ").contains("assumed"), "{:?}", opened.card().notes);
    fail(moco_train().arg("import").arg(&file), &["--out"]);
}

//! The programs and the C ABI meet the Hub: a backbone is pushed by one, opened by the others.

use std::path::Path;
use std::process::{Command, Output};

use moco_tests::hub::{HubServer, TOKEN, sha256};

use moco_models::arch::ArchSpec;
use moco_models::card::Card;
use moco_models::heads::{HeadCard, HeadSpec};
use moco_models::init::initialise;
use moco_models::weights::{MODEL_FILE, save_model};

use super::backbone;
use crate::abi::{compile, library, root};

/// A program with a cache, a Hub and a token of its own.
fn program(path: &Path, server: &HubServer, home: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
    command.env("HF_HOME", home).env("HF_ENDPOINT", server.endpoint()).env("HF_TOKEN", TOKEN);
    command
}

fn outcome(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn a_backbone_is_pushed_and_opened_through_every_door() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let [train, infer] = ["moco-train", "moco-infer"].map(|name| library().join(name));
    let file = home.path().join("b.safetensors");
    std::fs::write(&file, backbone(1)).unwrap();

    let push = |home: &Path, more: &[&str]| {
        outcome(program(&train, &server, home).arg("push").arg(&file).arg("hf://some/cells").args(more))
    };
    let (success, said) = push(home.path(), &[]);
    assert!(!success && said.contains("no such repository") && said.contains("--create"), "{said}");
    let (success, said) = push(home.path(), &["--create", "--private"]);
    assert!(success && said.contains("pushed: hf://some/cells"), "{said}");
    assert!(server.file("some/cells", "main", "backbone.safetensors").unwrap() == backbone(1));
    let card = String::from_utf8(server.file("some/cells", "main", "README.md").unwrap()).unwrap();
    assert!(card.starts_with("---\nlicense: \"cc0-1.0\"\n"), "{card}");
    let model = server.file("some/cells", "main", "backbone.onnx").unwrap();
    assert!(model.windows(8).any(|w| w == b"pooled\"\x04" || &w[..6] == b"pooled"));

    let (success, said) = outcome(program(&infer, &server, home.path()).args(["info", "hf://some/cells", "--json"]));
    assert!(success && said.contains(&sha256(&backbone(1))), "{said}");
    assert!(!said.contains('%'), "no progress bar where there is no terminal: {said}");

    // Offline from now on: the cache is enough, for C as well.
    let embed = home.path().join("embed");
    compile("cc", &["-std=c99"], &["../examples/embed.c"], &embed);
    let pictures = &moco_infer::image_files(&root().join("examples/data/groceries/test")).unwrap()[..2];
    let run = |place: &str| {
        outcome(program(&embed, &server, home.path()).env("HF_HUB_OFFLINE", "1").arg(place).args(pictures))
    };
    let (success, said) = run("hf://some/cells");
    assert!(success, "{said}");
    assert_eq!((success, said), run(file.to_str().unwrap()));
    let (success, said) = run("hf://some/others");
    assert!(!success && said.contains("HF_HUB_OFFLINE") && said.contains("hf://some/others"), "{said}");
}

#[test]
fn a_model_is_pushed_and_exported_with_its_head() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let [train, infer] = ["moco-train", "moco-infer"].map(|name| library().join(name));
    let path = home.path().join(MODEL_FILE);
    let arch = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
    let (backbone, head) = (arch.build().unwrap(), HeadSpec::detect(2));
    let graph = head.attach(&backbone).unwrap();
    let weights = head.initialise(&graph, &backbone, &initialise(&backbone, 1), 2).unwrap();
    let card = Card::new(arch, "test").unwrap();
    let head = HeadCard::new(head, vec!["red cell".into(), "platelet".into()], &card, [96, 128]).unwrap();
    save_model(&path, &graph, &weights, &card, &head).unwrap();

    let push = ["push", home.path().to_str().unwrap(), "hf://some/cells", "--create"];
    let (success, said) = outcome(program(&train, &server, home.path()).args(push));
    assert!(success && said.contains("pushed"), "{said}");
    assert!(server.file("some/cells", "main", MODEL_FILE).unwrap() == std::fs::read(&path).unwrap());
    let readme = String::from_utf8(server.file("some/cells", "main", "README.md").unwrap()).unwrap();
    assert!(readme.contains("pipeline_tag: object-detection") && readme.contains("red cell, platelet"), "{readme}");
    let pushed = server.file("some/cells", "main", "model.onnx").unwrap();

    let (success, said) = outcome(program(&infer, &server, home.path()).args(["info", "hf://some/cells"]));
    assert!(success && said.contains("fcos:") && said.contains("red cell, platelet"), "{said}");

    let out = home.path().join("m.onnx");
    let export = |more: &[&str]| {
        let mut command = program(&train, &server, home.path());
        outcome(command.arg("export").arg(&path).args(["--to", "onnx", "--out"]).arg(&out).args(more))
    };
    let (success, said) = export(&["--logits"]);
    assert!(!success && said.contains("detector"), "{said}");
    let (success, said) = export(&["--nms", "--tap", "c5"]);
    assert!(!success && said.contains("--tap"), "{said}");
    let (success, said) = export(&["--nms"]);
    assert!(success, "{said}");
    assert!(std::fs::read(&out).unwrap() == pushed);
    std::fs::remove_file(&out).unwrap();
    let (success, said) = export(&["--tap", "c5"]);
    assert!(success && said.contains("its backbone alone"), "{said}");
    assert!(std::fs::metadata(&out).unwrap().len() < pushed.len() as u64);
}

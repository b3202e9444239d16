//! Every recorded reference, reproduced: `cargo test --release -p moco-tests parity`.
//!
//! The folder is `tests/fixtures/parity`, or `MOCO_PARITY_DIR`. Every file in it is opened, told by its content what
//! kind it is and given to the checker of that kind. A file of a kind nobody knows fails, as does a folder in which
//! nothing is checked; kinds that this version cannot reproduce yet are listed in [`kind`] and printed as such.

mod augment;
mod backbones;
mod checkpoints;
mod generator;
mod kind;
mod losses;
mod traces;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use kind::Kind;
use moco_tests::reference::Reference;

#[test]
fn every_recorded_file_is_reproduced() {
    let folder = std::env::var_os("MOCO_PARITY_DIR").map_or_else(fixtures, PathBuf::from);
    let report = check_folder(&folder);
    println!("{report}");
    assert!(report.passed(), "{} in {}:\n{report}", report.summary(), folder.display());
}

#[test]
fn a_file_of_unknown_kind_fails() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join("generator.json"), folder.path().join("generator.json")).unwrap();
    assert!(check_folder(folder.path()).passed());
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    let metadata = [("kind".to_owned(), "\"v9\"".to_owned()), ("arch".to_owned(), "\"resnet18\"".to_owned())];
    let planted: [(&str, Vec<u8>); 5] = [
        ("deep/er/v9.safetensors", safetensors::serialize([("loss", tensor)], Some(metadata.into())).unwrap()),
        ("trace.npz", b"PK".to_vec()),
        ("numbers.json", b"[1, 2]".to_vec()),
        ("nothing_expected_of_it.pth", b"\x80\x02.".to_vec()),
        ("orphan.expected.safetensors", std::fs::read(fixtures().join("losses.safetensors")).unwrap()),
    ];
    for (name, bytes) in planted {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let report = check_folder(folder.path());
        assert!(!report.passed() && report.failed.len() == 1, "{name} was passed over:\n{report}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_folder_without_references_fails() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!check_folder(folder.path()).passed());
    std::fs::write(folder.path().join("README.md"), "nothing").unwrap();
    assert!(!check_folder(folder.path()).passed());
    assert!(!check_folder(&folder.path().join("absent")).passed());
}

#[test]
fn a_recording_that_says_something_else_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.json");
    let text = std::fs::read_to_string(fixtures().join("generator.json")).unwrap();
    std::fs::write(&path, text.replacen("0.70364", "0.70365", 1)).unwrap();
    assert!(!check_folder(folder.path()).passed());
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity")
}

/// What became of each file of a folder.
#[derive(Default)]
struct Report {
    passed: Vec<(String, String)>,
    not_yet: Vec<(String, String)>,
    failed: Vec<(String, String)>,
}

impl Report {
    fn passed(&self) -> bool {
        self.failed.is_empty() && !self.passed.is_empty()
    }

    fn summary(&self) -> String {
        let (passed, not_yet, failed) = (self.passed.len(), self.not_yet.len(), self.failed.len());
        format!("{passed} files reproduced, {not_yet} of a kind not supported yet, {failed} failed")
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let groups = [("ok", &self.passed), ("not yet", &self.not_yet), ("FAILED", &self.failed)];
        for (word, files) in groups {
            for (file, text) in files {
                writeln!(f, "{word:8}{file}: {text}")?;
            }
        }
        write!(f, "{}", self.summary())
    }
}

fn check_folder(folder: &Path) -> Report {
    let mut report = Report::default();
    let mut files = Vec::new();
    if let Err(e) = list(folder, &mut files) {
        report.failed.push((folder.display().to_string(), e.to_string()));
    }
    files.sort();
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        let outcome = kind::of(&path).and_then(|kind| match kind {
            Kind::Text => Ok(None),
            Kind::NotYet(why) => {
                report.not_yet.push((name.clone(), why));
                Ok(None)
            }
            kind => {
                catch_unwind(AssertUnwindSafe(|| check(&path, kind))).unwrap_or_else(|e| Err(panic_text(&*e))).map(Some)
            }
        });
        match outcome {
            Ok(Some(text)) => report.passed.push((name, text)),
            Ok(None) => {}
            Err(text) => report.failed.push((name, text)),
        }
    }
    if report.passed.is_empty() && report.failed.is_empty() {
        report.failed.push((folder.display().to_string(), "nothing to check in this folder".into()));
    }
    report
}

fn check(path: &Path, kind: Kind) -> Result<String, String> {
    match kind {
        Kind::Augment => augment::check(path),
        Kind::Backbone => backbones::check(path),
        Kind::Checkpoint => checkpoints::check(path),
        Kind::Expected => checkpoints::check_expected_has_a_checkpoint(path),
        Kind::KeyMap => checkpoints::check_key_map(path),
        Kind::Generator => generator::check(path),
        Kind::Losses => {
            let file = Reference::open(path)?;
            losses::check(&file.tensors(), file.metadata())
        }
        Kind::Trace => {
            let file = Reference::open(path)?;
            traces::check(&file.tensors(), file.metadata())
        }
        Kind::Text | Kind::NotYet(_) => unreachable!("sorted out before"),
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { list(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("no text"))
}

//! Running the real binary on real photographs, in seconds.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use moco_train::run::{Record, StepRecord, read_metrics};

/// The binary of this build.
pub fn moco_train() -> Command {
    Command::new(env!("CARGO_BIN_EXE_moco-train"))
}

/// 288 photographs in 12 folders.
pub fn photographs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/groceries/train")
}

/// A training that takes a few milliseconds a step.
pub fn pretrain(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = moco_train();
    command.args(["pretrain", "--arch", "resnet18", "--width", "0.125", "--size", "32", "--batch", "16"]);
    command.args(["--virtual-ranks", "4", "--queue", "100", "--lr", "0.01"]);
    command.arg("--data").arg(data).arg("--out").arg(out).args(more);
    command
}

/// Runs to the end; both streams as text.
pub fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

/// Runs to a good end.
pub fn succeed(command: &mut Command) -> String {
    let (output, text) = run(command);
    assert!(output.status.success(), "{command:?} failed:\n{text}");
    text
}

/// Runs to an error that names all of `parts`.
pub fn fail(command: &mut Command, parts: &[&str]) -> String {
    let (output, text) = run(command);
    assert!(!output.status.success(), "{command:?} succeeded:\n{text}");
    assert!(text.contains("error:"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{command:?} does not say `{part}`:\n{text}");
    }
    text
}

/// All lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<Record> {
    read_metrics(&run.join("metrics.jsonl")).unwrap()
}

/// The steps among them.
pub fn steps(run: &Path) -> Vec<StepRecord> {
    let step = |r| match r {
        Record::Step(s) => Some(s),
        _ => None,
    };
    metrics(run).into_iter().filter_map(step).collect()
}

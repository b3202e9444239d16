//! Killed anywhere, a run goes on as if nothing had happened.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moco_train::run::Record;

use super::support::{fail, metrics, moco_train, photographs, pretrain, run, steps, succeed};

/// Six epochs of 18 steps, with a last batch of an odd number of images left in, checkpoints that fit no epoch, a queue
/// that no batch divides, and health reports that fit no checkpoint.
const LONG: [&str; 14] = [
    "--epochs",
    "6",
    "--batch",
    "17",
    "--drop-last",
    "false",
    "--checkpoint-every-steps",
    "7",
    "--health-every-steps",
    "10",
    "--monitor-every-epochs",
    "2",
    "--seed",
    "3",
];

fn wait_for_steps(path: &Path, child: &mut Child, count: usize) {
    let begin = Instant::now();
    loop {
        let lines = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default();
        if lines.lines().filter(|l| l.contains("\"kind\":\"step\"")).count() >= count {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run ended before step {count}");
        assert!(begin.elapsed() < Duration::from_secs(120), "no step {count} within two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn resume(path: &Path, threads: &str) -> Command {
    let mut command = moco_train();
    command.arg("resume").arg(path).args(["--threads", threads]);
    command
}

/// What must not depend on interruptions: all but the clock.
fn without_time(path: &Path) -> Vec<Record> {
    let mut records = metrics(path);
    for record in &mut records {
        match record {
            Record::Step(s) => (s.images_per_s, s.data_wait) = (0.0, 0.0),
            Record::Eval(e) => e.seconds = 0.0,
            Record::Health(_) => {}
        }
    }
    records
}

#[test]
fn resume_after_sigkill_is_bit_exact() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    succeed(&mut pretrain(&photographs(), &whole, &LONG));

    let mut child = quiet(&mut pretrain(&photographs(), &killed, &LONG));
    wait_for_steps(&killed, &mut child, 12);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    for (threads, count) in [("1", 40), ("2", 75)] {
        let mut child = quiet(&mut resume(&killed, threads));
        wait_for_steps(&killed, &mut child, count);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(&mut resume(&killed, "0"));

    let numbers: Vec<u64> = steps(&killed).iter().map(|s| s.step).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "steps are missing or doubled");
    assert_eq!(without_time(&killed), without_time(&whole));
    assert_eq!(metrics(&whole).iter().filter(|r| matches!(r, Record::Eval(_))).count(), 3);
    let backbone = |run: &Path| std::fs::read(run.join("backbone.safetensors")).unwrap();
    assert_eq!(backbone(&killed), backbone(&whole));
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut command = pretrain(&photographs(), &path, &["--epochs", "40"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_steps(&path, &mut child, 5);
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("moco-train resume") && text.contains("saved"), "{text}");

    let done = steps(&path).last().unwrap().step;
    let newest = path.join(format!("checkpoints/step-{done:010}.safetensors"));
    assert!(newest.exists(), "no checkpoint of step {done}");
    assert!(!path.join("backbone.safetensors").exists());
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    succeed(&mut pretrain(&photographs(), &path, &["--epochs", "1"]));
    let before = (std::fs::read(path.join("backbone.safetensors")).unwrap(), without_time(&path));
    succeed(&mut resume(&path, "0"));
    assert_eq!(before, (std::fs::read(path.join("backbone.safetensors")).unwrap(), without_time(&path)));
    fail(&mut pretrain(&photographs(), &path, &["--epochs", "1"]), &["holds a run already", "moco-train resume"]);
    assert_eq!(before.1, without_time(&path));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_a_run_without_any_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    succeed(&mut pretrain(&photographs(), &path, &["--epochs", "2", "--checkpoint-every-steps", "20"]));
    let before = (std::fs::read(path.join("backbone.safetensors")).unwrap(), without_time(&path));
    let newest = path.join("checkpoints/step-0000000036.safetensors");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let text = succeed(&mut resume(&path, "0"));
    assert!(text.contains("passed over") && text.contains("after step 20"), "{text}");
    assert_eq!(before, (std::fs::read(path.join("backbone.safetensors")).unwrap(), without_time(&path)));

    std::fs::remove_dir_all(path.join("checkpoints")).unwrap();
    succeed(&mut resume(&path, "0"));
    assert_eq!(before, (std::fs::read(path.join("backbone.safetensors")).unwrap(), without_time(&path)));
}

#[test]
fn what_is_no_run_or_has_other_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fail(&mut resume(&folder.path().join("absent"), "0"), &["absent", "config.toml"]);
    let path = folder.path().join("run");
    succeed(&mut pretrain(&photographs(), &path, &["--epochs", "1"]));
    let other = photographs().join("../test");
    fail(resume(&path, "0").arg("--data").arg(other), &["288 images", "192"]);
}

#[test]
fn divergence_stops_and_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let text = fail(
        &mut pretrain(&photographs(), &path, &["--epochs", "20", "--lr", "1e30", "--checkpoint-every-steps", "1"]),
        &["diverged", "--lr"],
    );
    let (_, text_after) = run(&mut resume(&path, "0"));
    assert!(text_after.contains("diverged"), "{text} then {text_after}");
    assert!(steps(&path).iter().all(|s| s.loss.is_finite()));
}

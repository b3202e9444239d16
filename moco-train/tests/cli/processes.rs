//! One training by several processes: the same result as in one, and nobody waits for a process that is lost.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::support::{fail, moco_train, photographs, pretrain, steps, succeed};

/// Two epochs of 18 steps; four groups of statistics, two a process.
const SHORT: [&str; 8] =
    ["--epochs", "2", "--seed", "3", "--checkpoint-every-steps", "7", "--monitor-every-epochs", "0"];

fn two(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = pretrain(data, out, &SHORT);
    command.args(["--nproc", "2"]).args(more);
    command
}

#[test]
fn two_processes_learn_what_one_learns_with_virtual_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let (one, several) = (folder.path().join("one"), folder.path().join("several"));
    succeed(&mut pretrain(&photographs(), &one, &SHORT));
    let text = succeed(&mut two(&photographs(), &several, &[]));
    assert_eq!(text.matches("backbone:").count(), 1, "only the first process speaks:\n{text}");

    let (one, several) = (steps(&one), steps(&several));
    assert_eq!(several.len(), one.len());
    for (i, (a, b)) in one.iter().zip(&several).enumerate() {
        assert_eq!((a.step, a.epoch, a.images, a.lr), (b.step, b.epoch, b.images, b.lr));
        // Sums of gradients are rounded in another order, which statistics over so few values enlarge step by step.
        let bound = [1e-6, 5e-5].get(i).unwrap_or(&0.15);
        assert!((a.loss - b.loss).abs() <= bound * a.loss, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
}

#[test]
fn a_killed_run_of_two_processes_goes_on_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    succeed(&mut two(&photographs(), &whole, &[]));
    let port = free_port();
    let mut parts = [0, 1].map(|rank| of_two(pretrain(&photographs(), &killed, &SHORT), rank, port));
    wait_for_step(&killed, &mut parts[0], 10);
    parts[1].kill().unwrap(); // SIGKILL
    let begin = Instant::now();
    let [first, second] = parts.map(|part| part.wait_with_output().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(20), "the other process waited {:?}", begin.elapsed());
    assert!(!first.status.success() && !second.status.success());
    assert!(errors(&first).contains("process 1 has gone away"), "{}", errors(&first));

    succeed(moco_train().arg("resume").arg(&killed).args(["--nproc", "2"]));
    let losses = |run: &Path| steps(run).iter().map(|s| (s.step, s.loss)).collect::<Vec<_>>();
    assert_eq!(losses(&killed), losses(&whole));
    let backbone = |run: &Path| std::fs::read(run.join("backbone.safetensors")).unwrap();
    assert_eq!(backbone(&killed), backbone(&whole));
}

#[test]
fn ctrl_c_at_one_process_stops_all_after_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut child = two(&photographs(), &path, &["--epochs", "400"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_step(&path, &mut child, 5);
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    let done = steps(&path).last().unwrap().step;
    assert!(path.join(format!("checkpoints/step-{done:010}.safetensors")).exists(), "no checkpoint of step {done}");
}

#[test]
fn processes_that_do_not_fit_together_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let data = photographs();
    fail(&mut two(&data, &path, &["--nproc", "3"]), &["batch_norm.count", "4 groups", "3 processes"]);
    fail(&mut two(&data, &path, &["--drop-last", "false"]), &["--drop-last true"]);
    fail(&mut two(&data, &path, &["--set", "batch_norm.groups=interleaved"]), &["interleaved", "--virtual-ranks"]);
    fail(two(&data, &path, &[]).env("WORLD_SIZE", "4"), &["RANK is not"]);
    let alone = [("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "::1"), ("MASTER_PORT", "1")];
    fail(two(&data, &path, &[]).envs(alone), &["--nproc 2", "WORLD_SIZE is 4"]);
    assert!(!path.exists());

    let port = free_port();
    let first = of_two(pretrain(&data, &path, &SHORT), 0, port);
    let second = of_two(pretrain(&data, &path, &[&SHORT[..], &["--lr", "0.5"]].concat()), 1, port);
    for output in [first, second].map(|part| part.wait_with_output().unwrap()) {
        assert!(errors(&output).contains("process 1 was started with another recipe"), "{}", errors(&output));
    }
    assert!(!path.exists());
}

/// Starts one of two processes as `torchrun` would.
fn of_two(mut command: Command, rank: usize, port: u16) -> Child {
    command.envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string()), ("MASTER_PORT", port.to_string())]);
    command.envs([("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_for_step(path: &Path, child: &mut Child, step: usize) {
    let begin = Instant::now();
    while std::fs::read_to_string(path.join("metrics.jsonl")).unwrap_or_default().lines().count() < step {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before step {step}");
        assert!(begin.elapsed() < Duration::from_secs(120), "no step {step} within two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

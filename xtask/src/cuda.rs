//! `cargo xtask cuda`: `moco-train` for NVIDIA GPUs, built on a machine that has neither a GPU nor a CUDA toolkit.
//!
//! The compiler comes as the Python packages of NVIDIA; the program opens driver and cuDNN when it runs, so nothing of
//! them is needed to link it, and it starts where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{setup, shell};

/// Compiler, its parts and the headers, of one release: a driver compiles what its own release or an older one emits, and
/// pip alone would pair the compiler with a newer back end.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// How to build for GPUs.
#[derive(Args)]
pub struct Options {
    /// Also makes a folder to carry to a machine with a GPU and without Rust: `gpu-check` and all it needs.
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
}

/// Fetches the compiler where there is none, builds, strips and tries the program.
pub fn run(options: &Options) -> Result<()> {
    setup::packages::provide()?;
    let home = toolkit()?;
    shell::step("moco-train for GPUs");
    shell::run(&mut cargo(&home, &["build", "--bin", "moco-train"])?)?;
    let folder = shell::target()?.join("cuda");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let program = folder.join("moco-train");
    strip(&shell::target()?.join("release/moco-train"), &program)?;
    try_out(&program)?;
    match &options.pack {
        Some(folder) => pack(&program, &conformance(cargo(&home, &LIST_TESTS)?)?, folder),
        None => Ok(()),
    }
}

/// [`run`], where the compiler can be had; says so where it cannot.
pub fn compile_where_possible() -> Result<()> {
    if std::env::var_os("CUDA_HOME").is_none() && !fetched_here() {
        println!("note: no CUDA compiler for this platform, so the build for GPUs is not tried");
        return Ok(());
    }
    run(&Options { pack: None })
}

/// Whether the compiler can be fetched for this platform.
fn fetched_here() -> bool {
    (std::env::consts::OS, std::env::consts::ARCH) == ("linux", "x86_64")
}

/// Cargo with the features of all packages, as every other build has them: nothing else is compiled twice.
fn cargo(home: &Path, task: &[&str]) -> Result<Command> {
    let mut command = shell::cargo(task)?;
    command.args(["--release", "--workspace", "--exclude", "xtask", "--features", "moco-train/nccl"]);
    command.env("CUDA_HOME", home).env("NVCC", home.join("bin/nvcc"));
    Ok(command)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    shell::run(Command::new("strip").arg("-o").arg(to).arg(from))?;
    let mib = std::fs::metadata(to)?.len() as f64 / f64::from(1 << 20);
    println!("{} ({mib:.1} MiB)", to.display());
    Ok(())
}

/// What cargo builds of the tests, told as JSON.
const LIST_TESTS: [&str; 6] = ["test", "--no-run", "--test", "all", "--message-format", "json"];

/// The program with the tests that cross crates, among them the recorded trainings.
fn conformance(mut list: Command) -> Result<PathBuf> {
    let messages = shell::capture(&mut list)?;
    let executables = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "all");
    executables
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo built no test program `all`")
}

/// Puts programs, recordings, images and scripts into a folder, which must be new or empty.
fn pack(program: &Path, conformance: &Path, folder: &Path) -> Result<()> {
    shell::step(&format!("pack → {}", folder.display()));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let empty = std::fs::read_dir(folder)?.next().is_none();
    ensure!(empty, "{} is not empty; give --pack a new folder", folder.display());
    strip(program, &folder.join("moco-train"))?;
    strip(conformance, &folder.join("conformance"))?;
    let root = shell::root();
    for (from, to) in [
        ("tests/fixtures/parity/traces", "parity"),
        ("examples/data/groceries/train", "photos"),
        ("benches/peers/moco_step_torch.py", "moco_step_torch.py"),
        ("scripts/gpu-check", "gpu-check"),
    ] {
        shell::run(Command::new("cp").args(["-r", "-T"]).arg(root.join(from)).arg(folder.join(to)))?;
    }
    let bytes = size(folder)?;
    ensure!(bytes < MOST_BYTES, "the pack has {} MiB, more than the {} that it should", bytes >> 20, MOST_BYTES >> 20);
    println!("{} MiB; carry it over and run {}", bytes.div_ceil(1 << 20), folder.join("gpu-check").display());
    Ok(())
}

/// What a pack may weigh, to be carried anywhere.
const MOST_BYTES: u64 = 64 << 20;

fn size(path: &Path) -> Result<u64> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    std::fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// A pack of the release build, carried to another folder and run there without Rust in reach: `gpu-check` at toy sizes
/// on the CPU.
pub fn check_on_cpu() -> Result<()> {
    shell::step("gpu-check on the CPU, from a pack");
    let work = tempfile::tempdir()?;
    let (made, carried) = (work.path().join("made"), work.path().join("carried"));
    let mut list = shell::cargo(&LIST_TESTS)?;
    list.args(["--release", "--workspace", "--exclude", "xtask"]);
    pack(&shell::target()?.join("release/moco-train"), &conformance(list)?, &made)?;
    std::fs::rename(&made, &carried)?;
    let results = work.path().join("results");
    let mut check = Command::new(carried.join("gpu-check"));
    check.arg("--cpu").arg("--out").arg(&results).current_dir(work.path());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let without_rust = std::env::split_paths(&path).filter(|folder| !folder.join("cargo").exists());
    check.env("PATH", std::env::join_paths(without_rust)?);
    shell::run(&mut check)?;
    let summary: serde_json::Value = serde_json::from_reader(std::fs::File::open(results.join("summary.json"))?)?;
    let jobs = summary["jobs"].as_array().context("summary.json has no jobs")?;
    let done = |name: &str| jobs.iter().any(|job| job["name"] == name && !job["result"].is_null());
    for name in ["conformance f32", "step resnet18 cifar", "two processes", "with data cifar", "training"] {
        ensure!(done(name), "gpu-check has not done `{name}`: {summary}");
    }
    Ok(())
}

/// The folder of a CUDA toolkit: that of `CUDA_HOME`, or the one below `third_party`, which is fetched once.
fn toolkit() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CUDA_HOME").map(PathBuf::from) {
        ensure!(home.join("bin/nvcc").is_file(), "CUDA_HOME is {}, which has no bin/nvcc", home.display());
        println!("the compiler of {}", home.display());
        return Ok(home);
    }
    let folder = shell::root().join("third_party/cuda");
    let home = folder.join("nvidia/cu13");
    let made_of = folder.join("packages.txt");
    let wanted = PACKAGES.join("\n") + "\n";
    if std::fs::read_to_string(&made_of).is_ok_and(|found| found == wanted) {
        return Ok(home);
    }
    if !fetched_here() {
        bail!("the compiler is fetched for Linux on x86-64 only; install CUDA 13.0 and set CUDA_HOME to its folder");
    }
    shell::step(&format!("CUDA compiler → {}", folder.display()));
    let parent = folder.parent().expect("it lies below the root");
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let work = tempfile::tempdir_in(parent)?;
    let unpacked = work.path().join("cuda");
    fetch(&unpacked)?;
    complete(&unpacked.join("nvidia/cu13"))?;
    std::fs::write(unpacked.join("packages.txt"), wanted)?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::rename(&unpacked, &folder).with_context(|| format!("cannot move the compiler to {}", folder.display()))?;
    Ok(home)
}

fn fetch(folder: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.arg("--target").arg(folder).args(PACKAGES);
    shell::run(&mut pip).with_context(|| {
        format!(
            "the CUDA compiler comes as the Python packages {}. This needs python3 with pip (Debian: apt-get install \
             python3 python3-pip) and a network, once. Or install CUDA 13.0 and set CUDA_HOME to its folder",
            PACKAGES.join(", ")
        )
    })
}

/// What the packages leave to an installer: the folder in which the compiler looks for libraries, and the permission to
/// run its programs.
#[cfg(unix)]
fn complete(home: &Path) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let lib64 = home.join("lib64");
    if !lib64.exists() {
        symlink("lib", &lib64)?;
    }
    for programs in ["bin", "nvvm/bin"].map(|folder| home.join(folder)) {
        let entries = std::fs::read_dir(&programs).with_context(|| format!("{} is missing", programs.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_file() {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn complete(_home: &Path) -> Result<()> {
    Ok(())
}

/// The program starts and computes on the CPU without driver and libraries, and says clearly what `--device cuda` lacks,
/// or uses the GPU that is there.
fn try_out(program: &Path) -> Result<()> {
    shell::step("the program for GPUs on this machine");
    let bench = |device: &str| {
        let mut command = Command::new(program);
        command.args(["bench", "--arch", "resnet18", "--size", "32", "--batch", "4", "--queue", "64", "--steps", "1"]);
        command.args(["--warmup", "1", "--device", device]);
        command
    };
    println!("--device cpu: {}", shell::capture(&mut bench("cpu"))?.trim_end());
    let output = bench("cuda").output().with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        println!("--device cuda: {}", String::from_utf8_lossy(&output.stdout).trim_end());
    } else {
        ensure!(
            output.status.code() == Some(1) && said.starts_with("error: --device cuda:0: "),
            "--device cuda should work or say what is missing; it ended with {} and said:\n{said}",
            output.status
        );
        println!("--device cuda: {}", said.trim_end());
    }
    Ok(())
}

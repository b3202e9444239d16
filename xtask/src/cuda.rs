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
        Some(pack) => self::pack(&home, &program, pack),
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

/// Puts programs, recordings, images and scripts into a folder.
fn pack(home: &Path, program: &Path, folder: &Path) -> Result<()> {
    shell::step(&format!("pack → {}", folder.display()));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    std::fs::copy(program, folder.join("moco-train"))?;
    let list = ["test", "--no-run", "--test", "all", "--message-format", "json"];
    let messages = shell::capture(&mut cargo(home, &list)?)?;
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "all")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no test program `all`")?;
    strip(&executable, &folder.join("conformance"))?;
    let root = shell::root();
    for (from, to) in [
        ("tests/fixtures/parity/traces", "parity"),
        ("examples/data/groceries/train", "photos"),
        ("benches/peers/moco_step_torch.py", "moco_step_torch.py"),
        ("scripts/gpu-check", "gpu-check"),
    ] {
        shell::run(Command::new("cp").args(["-r", "-T"]).arg(root.join(from)).arg(folder.join(to)))?;
    }
    println!("carry it over and run {}", folder.join("gpu-check").display());
    Ok(())
}

/// `scripts/gpu-check` at toy sizes, with the program of the release build and without a GPU.
pub fn check_on_cpu() -> Result<()> {
    shell::step("gpu-check on the CPU");
    let work = shell::target()?.join("xtask-gpu-check");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot empty {}", work.display()))?;
    }
    let pack = work.join("pack");
    std::fs::create_dir_all(&pack)?;
    let root = shell::root();
    std::fs::copy(shell::target()?.join("release/moco-train"), pack.join("moco-train"))?;
    std::fs::copy(root.join("benches/peers/moco_step_torch.py"), pack.join("moco_step_torch.py"))?;
    let results = work.join("results");
    let mut check = Command::new("python3");
    check.arg(root.join("scripts/gpu-check")).arg("--cpu").arg("--pack").arg(&pack).arg("--out").arg(&results);
    shell::run(&mut check)?;
    let summary: serde_json::Value = serde_json::from_reader(std::fs::File::open(results.join("summary.json"))?)?;
    let jobs = summary["jobs"].as_array().context("summary.json has no jobs")?;
    ensure!(jobs.len() >= 3 && jobs.iter().all(|job| !job["result"].is_null()), "gpu-check left {summary}");
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

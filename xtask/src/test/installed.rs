//! The installed library as a stranger uses it: moved to another folder, found by CMake, by pkg-config and by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::Tools;
use crate::{install, shell};

/// Variables that would lead a program to ONNX Runtime although it does not lie beside it.
const HELP: [&str; 6] =
    ["MOCO_ORT_LIB", "ORT_DYLIB_PATH", "MOCO_ORT_DIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH"];

/// What was installed and made with it, for others to compare with.
pub struct Installed {
    pub prefix: PathBuf,
    pub backbone: PathBuf,
    /// Labelled, in `train` and `test`.
    pub images: PathBuf,
    pub pictures: Vec<PathBuf>,
    /// What `embed` printed about the pictures.
    pub embed: String,
    /// What `finetune` printed, and the head it saved.
    pub finetune: String,
    pub head: PathBuf,
}

/// Installs, moves the prefix, builds the examples against it, and runs them from another folder.
pub fn run(tools: &Tools) -> Result<Installed> {
    shell::step("the installed library");
    let work = shell::target()?.join("xtask-installed");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot empty {}", work.display()))?;
    }
    let (first, prefix) = (work.join("first"), work.join("moved"));
    install::copy(&first)?;
    std::fs::rename(&first, &prefix)?;
    let images = shell::root().join("examples/data/groceries");
    let run = work.join("run");
    let mut train = alone(&prefix.join("bin/moco-train"));
    train.arg("pretrain").arg("--quiet").arg("--data").arg(&images).args(["--set", "optim.epochs=1"]);
    train.args(["--set", "run.monitor_every_epochs=0"]).arg("--out").arg(&run);
    shell::run(train.arg("--recipe").arg(shell::root().join("examples/groceries.toml")))?;
    let backbone = run.join("backbone.safetensors");

    let build = work.join("cmake");
    cmake(tools, &prefix, &build)?;
    let classes = ["Banana", "Kiwi"];
    let pictures: Vec<PathBuf> =
        classes.iter().map(|class| first_file(&images.join("test").join(class))).collect::<Result<_>>()?;
    let embed = |program: &Path| shell::capture(alone(program).arg(&backbone).args(&pictures));
    let by_cmake = embed(&build.join("embed"))?;
    ensure!(by_cmake.lines().count() == 2 && by_cmake.starts_with("1.0000"), "embed printed:\n{by_cmake}");
    let head = work.join("head.safetensors");
    let mut fit = alone(&build.join("finetune"));
    fit.arg(&backbone).arg(images.join("train")).arg(images.join("test")).arg(&head);
    let finetune = shell::capture(&mut fit)?;
    ensure!(finetune.contains("accuracy"), "finetune printed no accuracy");

    let by_pkg_config = pkg_config(&prefix, &work)?;
    if let Some(program) = by_pkg_config {
        ensure!(embed(&program)? == by_cmake, "the program built by pkg-config prints something else");
    }
    ensure!(embed(&by_hand(&prefix)?)? == by_cmake, "the program with the static library prints something else");
    println!("shared and static library work from {}", prefix.display());
    Ok(Installed { prefix, backbone, images, pictures, embed: by_cmake, finetune, head })
}

/// A program that gets no help in finding ONNX Runtime, started elsewhere.
pub fn alone(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(std::env::temp_dir());
    HELP.iter().for_each(|variable| {
        command.env_remove(variable);
    });
    command
}

fn cmake(tools: &Tools, prefix: &Path, build: &Path) -> Result<()> {
    let mut configure = Command::new(&tools.cmake);
    configure.arg("-S").arg(shell::root().join("examples")).arg("-B").arg(build).arg("-DCMAKE_BUILD_TYPE=Release");
    shell::run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())))?;
    shell::run(Command::new(&tools.cmake).arg("--build").arg(build))
}

/// None if there is no pkg-config.
fn pkg_config(prefix: &Path, work: &Path) -> Result<Option<PathBuf>> {
    if !shell::exists("pkg-config") {
        println!("note: no pkg-config here, so moco.pc is not tried");
        return Ok(None);
    }
    let mut ask = Command::new("pkg-config");
    ask.args(["--cflags", "--libs", "moco"]).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let flags = shell::capture(&mut ask)?;
    let program = work.join("embed_pkg_config");
    let mut cc = Command::new("cc");
    cc.arg(shell::root().join("examples/embed.c")).arg("-o").arg(&program);
    shell::run(cc.args(flags.split_whitespace()).arg("-lm"))?;
    Ok(Some(program))
}

/// Links the static library with the compiler alone; the program lies in `bin`, ONNX Runtime in `lib` beside it.
fn by_hand(prefix: &Path) -> Result<PathBuf> {
    let program = prefix.join("bin/embed_static");
    let mut cc = Command::new("cc");
    cc.arg(shell::root().join("examples/embed.c")).arg("-I").arg(prefix.join("include")).arg("-o").arg(&program);
    shell::run(cc.arg(prefix.join("lib/libmoco.a")).args(["-lpthread", "-ldl", "-lm", "-lgcc_s"]))?;
    Ok(program)
}

fn first_file(folder: &Path) -> Result<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files.into_iter().next().with_context(|| format!("{} is empty", folder.display()))
}

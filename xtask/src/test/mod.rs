//! Every test, in the order in which failures are cheapest to find.

mod applications;
mod installed;
mod python;

use anyhow::Result;
use clap::Args;

use crate::{cuda, header, install, setup, shell, tidy};

/// What to leave out.
#[derive(Args)]
pub struct Options {
    /// Without formatting and lints: only what can fail at run time.
    #[arg(long)]
    no_lint: bool,
    /// Only the installed library, the applications and the Python package, as a stranger uses them.
    #[arg(long)]
    only_installed: bool,
}

/// Set-up, lints, tests.
///
/// Everything is compiled in one profile with one set of features, so nothing is compiled twice; only xtask, which
/// runs before all else, has its own.
pub fn run(options: &Options) -> Result<()> {
    let tools = setup::run()?;
    setup::packages::provide_libraries()?;
    if options.only_installed {
        install::build()?;
        return strangers(&tools);
    }
    shell::step("tidy");
    tidy::run()?;
    header::run(true)?;
    if !options.no_lint {
        shell::step("rustfmt");
        shell::run(&mut shell::cargo(&["fmt", "--all", "--check"])?)?;
        shell::step("clippy");
        shell::run(&mut shell::cargo(&[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])?)?;
    }
    shell::step("tests of xtask");
    shell::run(&mut shell::cargo(&["test", "-p", "xtask"])?)?;
    // Before the release build, which then puts the program for the CPU back into its place.
    cuda::compile_where_possible()?;
    shell::step("release build");
    shell::run(&mut shell::cargo(&["build", "--release", "--workspace", "--exclude", "xtask"])?)?;
    shell::step("tests");
    shell::run(&mut shell::cargo(&["test", "--release", "--workspace", "--exclude", "xtask"])?)?;
    shell::step("kernels for GPUs, on the emulated device");
    let mut emulated = shell::cargo(&["test", "--release", "-p", "moco-engine", "-p", "moco-train", "--lib"])?;
    emulated.args(["--features", "moco-engine/cuda-emulation,moco-train/cuda-emulation", "--", "emulated", "cuda::"]);
    shell::run(&mut emulated)?;
    cuda::check_on_cpu()?;
    strangers(&tools)
}

/// Who uses what is installed: programs in C and C++, the applications, Python.
fn strangers(tools: &setup::Tools) -> Result<()> {
    let installed = installed::run(tools)?;
    applications::run(tools, &installed)?;
    python::run(&installed)
}

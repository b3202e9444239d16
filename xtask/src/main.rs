//! `cargo xtask <task>`: set-up, tests, the demo and installation, as a Makefile would hold them.
//!
//! Built in the dev profile before anything else, so it depends on little and never on the crates it builds.

mod cuda;
mod demo;
mod header;
mod install;
mod setup;
mod shell;
mod test;
mod tidy;
mod wheel;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Fetches what the other tasks need: ONNX Runtime, and where they are missing a C++ compiler, CMake, valgrind and
    /// python3-venv.
    ///
    /// Does nothing, without network, when everything is there.
    Setup,
    /// Runs the whole line on real images: pre-train, evaluate, extract through ONNX Runtime, fine-tune from C++.
    Demo(demo::Options),
    /// Set-up, formatting, lints, then every test: Rust, C, C++ and Python.
    Test(test::Options),
    /// Builds in release and installs programs, library, headers, CMake package and pkg-config file.
    Install {
        /// Where to: `bin`, `lib` and `include` go below this folder, which can be moved afterwards.
        #[arg(long)]
        prefix: PathBuf,
    },
    /// Builds moco-train for NVIDIA GPUs; fetches the compiler where there is none. Needs no GPU.
    ///
    /// The program lies in `cuda/moco-train` of the target folder. It opens driver and cuDNN when it runs.
    Cuda(cuda::Options),
    /// Builds the Python wheel, with libmoco and ONNX Runtime in it, into `dist`.
    Wheel,
    /// Writes moco-ffi/include/moco.h from the Rust source, and the Python package's declarations from it.
    Header {
        /// Only says whether they are up to date.
        #[arg(long)]
        check: bool,
    },
    /// Checks what compilers do not: a first line in every file, paths named in documents, forbidden crates and hosts.
    Tidy,
}

fn main() -> ExitCode {
    match run(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    match task {
        Task::Setup => setup::run().and_then(|_| setup::packages::provide_libraries()),
        Task::Demo(options) => demo::run(options),
        Task::Test(options) => test::run(options),
        Task::Install { prefix } => {
            setup::onnxruntime::provide()?;
            install::run(prefix)
        }
        Task::Cuda(options) => cuda::run(options),
        Task::Wheel => wheel::run(),
        Task::Header { check } => header::run(*check),
        Task::Tidy => tidy::run(),
    }
}

//! Compiles `cuda/*.cu`: with nvcc for GPUs (feature `cuda`), with the host's C++ compiler for the emulated device (feature
//! `cuda-emulation`). Without these features it does nothing.
use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Machine code for A100 and for H100 and H200; the last is what newer drivers compile for newer GPUs.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    if !feature("CUDA") && !feature("CUDA_EMULATION") {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("cuda");
    let source = out.join("kernels.cu");
    if let Err(error) = unite(&folder, &source) {
        fail(&format!("cannot read the kernels in {}: {error}", folder.display()));
    }
    if feature("CUDA") {
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        compile_for_gpus(&folder, &source, &out.join("kernels.fatbin"));
    }
    #[cfg(feature = "cuda-emulation")]
    compile_for_host(&folder, &source, &out.join("emulated.cpp"));
}

/// One translation unit with what runs the kernels: their names register themselves, and a linker would leave out an object
/// that nobody calls by name.
#[cfg(feature = "cuda-emulation")]
fn compile_for_host(folder: &Path, source: &Path, emulated: &Path) {
    let text = format!("#include \"{}\"\n#include \"emulation/fibers.cpp\"\n", source.display());
    if let Err(error) = std::fs::write(emulated, text) {
        fail(&format!("cannot write {}: {error}", emulated.display()));
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("MOCO_EMULATION", None)
        // Its longjmp does not allow jumping between stacks, which is what fibers do.
        .flag("-U_FORTIFY_SOURCE")
        .flag_if_supported("-Wno-unknown-pragmas")
        .include(folder)
        .file(emulated)
        .compile("moco_emulation");
}

/// One file that includes every kernel: one module to load.
fn unite(folder: &Path, source: &Path) -> std::io::Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    names.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    names.sort();
    let text = names.iter().fold(String::new(), |mut text, name| {
        let _ = writeln!(text, "#include \"{}\"", name.display());
        text
    });
    std::fs::write(source, text)
}

fn compile_for_gpus(folder: &Path, source: &Path, fatbin: &Path) {
    let nvcc = nvcc();
    let status = Command::new(&nvcc)
        .args(["-std=c++17", "-O3", "-fatbin", "-I"])
        .arg(folder)
        .args(TARGETS)
        .arg(source)
        .arg("-o")
        .arg(fatbin)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{} ended with {status}", nvcc.display())),
        Err(error) => fail(&format!(
            "feature `cuda` needs nvcc, and {} cannot be run: {error}. `cargo xtask cuda` fetches a compiler and builds with \
             it; an installed one is found through NVCC, CUDA_HOME or PATH",
            nvcc.display()
        )),
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin/nvcc"));
    homes.into_iter().find(|path| path.exists()).unwrap_or_else(|| "nvcc".into())
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}

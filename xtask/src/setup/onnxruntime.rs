//! ONNX Runtime's shared library, out of the wheel that Python users install.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::shell;

const VERSION: &str = "1.24.4";

/// A wheel, and the library in it.
struct Wheel {
    platforms: &'static [&'static str],
    sha256: &'static str,
    library: &'static str,
    /// What the library is called where it is used: the name other libraries ask the system for.
    name: &'static str,
}

/// The folder that holds the library; programs started by cargo find it through `.cargo/config.toml`.
pub fn folder() -> PathBuf {
    shell::root().join("third_party/onnxruntime")
}

/// Path of the library of this platform.
pub fn library() -> Result<PathBuf> {
    Ok(folder().join(wheel()?.name))
}

/// Makes sure that the library is there; returns its folder.
pub fn provide() -> Result<PathBuf> {
    let wheel = wheel()?;
    let folder = folder();
    if folder.join(wheel.name).is_file() {
        return Ok(folder);
    }
    shell::step(&format!("ONNX Runtime {VERSION} → {}", folder.display()));
    let parent = folder.parent().expect("it lies below the root");
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let work = tempfile::tempdir_in(parent)?;
    let file = download(&wheel, work.path())?;
    let unpacked = work.path().join("unpacked");
    unpack(&wheel, &file, &unpacked)?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::rename(&unpacked, &folder).with_context(|| format!("cannot move the library to {}", folder.display()))?;
    Ok(folder)
}

fn wheel() -> Result<Wheel> {
    let (platforms, sha256, library, name): (&[&str], _, _, _) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => (
            &["manylinux_2_28_x86_64", "manylinux_2_27_x86_64"],
            "0d640eb9f3782689b55cfa715094474cd5662f2f137be6a6f847a594b6e9705c",
            "libonnxruntime.so.1.24.4",
            "libonnxruntime.so.1",
        ),
        ("linux", "aarch64") => (
            &["manylinux_2_28_aarch64", "manylinux_2_27_aarch64"],
            "1a5c5a544b22f90859c88617ecb30e161ee3349fcc73878854f43d77f00558b5",
            "libonnxruntime.so.1.24.4",
            "libonnxruntime.so.1",
        ),
        (os, arch) => bail!(
            "set-up knows no ONNX Runtime for {os} on {arch}: install ONNX Runtime {VERSION} yourself and set \
             MOCO_ORT_LIB to its library"
        ),
    };
    Ok(Wheel { platforms, sha256, library, name })
}

/// Fetches the wheel with pip and checks its sha256.
fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.12", "--implementation", "cp"]);
    for platform in wheel.platforms {
        pip.args(["--platform", platform]);
    }
    pip.arg("-d").arg(folder).arg(format!("onnxruntime=={VERSION}"));
    shell::run(&mut pip).with_context(|| {
        format!(
            "ONNX Runtime comes as the Python package onnxruntime {VERSION}. This needs python3 with pip (Debian: \
             apt-get install python3 python3-pip) and a network, once. Or put {} into {} yourself",
            wheel.name,
            super::onnxruntime::folder().display()
        )
    })?;
    let mut files = std::fs::read_dir(folder)?.filter_map(|e| Some(e.ok()?.path()));
    let file = files.find(|p| p.extension().is_some_and(|e| e == "whl")).context("pip left no wheel")?;
    let found = sha256(&file)?;
    if found != wheel.sha256 {
        bail!("{} has sha256 {found}, expected {}: not used", file.display(), wheel.sha256);
    }
    Ok(file)
}

/// Takes the library and the licences out of the wheel.
fn unpack(wheel: &Wheel, file: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    let mut archive = zip::ZipArchive::new(std::fs::File::open(file)?)?;
    let library = format!("onnxruntime/capi/{}", wheel.library);
    let wanted = [
        (library.as_str(), wheel.name),
        ("onnxruntime/LICENSE", "LICENSE"),
        ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
    ];
    for (inside, outside) in wanted {
        let mut entry = archive.by_name(inside).with_context(|| format!("no {inside} in {}", file.display()))?;
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes)?;
        std::fs::write(folder.join(outside), bytes)?;
    }
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

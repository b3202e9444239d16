//! A prefix with programs, library, headers, CMake package and pkg-config file, and ONNX Runtime beside the library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{setup, shell};

/// The number that changes when the C ABI breaks; part of the library's file name.
pub const ABI: u32 = 0;

/// Builds in release and installs below `prefix`.
pub fn run(prefix: &Path) -> Result<()> {
    build()?;
    copy(prefix)
}

/// Builds what is installed.
pub fn build() -> Result<()> {
    shell::step("release build");
    shell::run(&mut shell::cargo(&["build", "--release", "--workspace", "--exclude", "xtask"])?)
}

/// Installs what has been built.
pub fn copy(prefix: &Path) -> Result<()> {
    shell::step(&format!("install → {}", prefix.display()));
    let (root, built) = (shell::root(), shell::target()?.join("release"));
    let library = format!("libmoco.so.{ABI}");
    let stripped = stripped_library()?;
    let files = [
        (built.join("moco-train"), "bin/moco-train"),
        (built.join("moco-infer"), "bin/moco-infer"),
        (stripped, &*format!("lib/{library}")),
        (built.join("libmoco.a"), "lib/libmoco.a"),
        (setup::onnxruntime::library()?, "lib/libonnxruntime.so.1"),
        (root.join("moco-ffi/include/moco.h"), "include/moco.h"),
        (root.join("bindings/cpp/include/moco.hpp"), "include/moco.hpp"),
        (root.join("bindings/cpp/include/moco_session.hpp"), "include/moco_session.hpp"),
        (root.join("LICENSE-MIT"), "share/licenses/moco/LICENSE-MIT"),
        (root.join("LICENSE-APACHE"), "share/licenses/moco/LICENSE-APACHE"),
        (setup::onnxruntime::folder().join("LICENSE"), "share/licenses/moco/onnxruntime/LICENSE"),
        (
            setup::onnxruntime::folder().join("ThirdPartyNotices.txt"),
            "share/licenses/moco/onnxruntime/ThirdPartyNotices.txt",
        ),
    ];
    for (from, to) in files {
        place(&std::fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?, &prefix.join(to))?;
        let permissions = std::fs::metadata(&from)?.permissions();
        std::fs::set_permissions(prefix.join(to), permissions)?;
    }
    let link = prefix.join("lib/libmoco.so");
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(&library, &link)?;
    for (template, to) in [
        (include_str!("install/mocoConfig.cmake.in"), "lib/cmake/moco/mocoConfig.cmake"),
        (include_str!("install/mocoConfigVersion.cmake.in"), "lib/cmake/moco/mocoConfigVersion.cmake"),
        (include_str!("install/moco.pc.in"), "lib/pkgconfig/moco.pc"),
    ] {
        let text = template.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@LIBRARY@", &library);
        place(text.as_bytes(), &prefix.join(to))?;
    }
    Ok(())
}

/// libmoco.so as it has been built, without the names of what it does not export (a sixth of it).
pub fn stripped_library() -> Result<PathBuf> {
    let built = shell::target()?.join("release/libmoco.so");
    let stripped = shell::target()?.join("xtask-stripped/libmoco.so");
    std::fs::create_dir_all(stripped.parent().expect("it lies in a folder"))?;
    shell::run(Command::new("strip").arg("--strip-unneeded").arg("-o").arg(&stripped).arg(&built))
        .context("strip comes with the C compiler (Debian: binutils)")?;
    Ok(stripped)
}

/// Writes a file beside its place and moves it there: a program that runs keeps the file it has mapped.
pub fn place(bytes: &[u8], path: &Path) -> Result<()> {
    let folder = path.parent().expect("it lies below the prefix");
    let write = || -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_all()?;
        #[cfg(unix)]
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

//! Programs from the system: a C++ compiler, CMake, valgrind, and Python's virtual environments. Libraries of others, with
//! which the applications in `bindings/cpp/examples` are built.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

/// What is needed: the program or the header, the Debian package it comes from, what it is for.
type Needed = (&'static str, &'static str, &'static str);

const PROGRAMS: [Needed; 5] = [
    ("cc", "gcc", "compiles the C programs"),
    ("c++", "g++", "compiles the C++ programs"),
    ("cmake", "cmake", "builds programs against the installed library"),
    ("valgrind", "valgrind", "watches the memory of the C and C++ tests"),
    (VENV, "python3-venv", "builds and tests the Python wheel"),
];

const LIBRARIES: [Needed; 3] = [
    ("opencv2/imgcodecs.hpp", "libopencv-imgcodecs-dev", "reads and writes pictures of the applications"),
    ("opencv2/imgproc.hpp", "libopencv-imgproc-dev", "draws in them"),
    ("dcmtk/dcmimgle/dcmimage.h", "libdcmtk-dev", "reads DICOM in the applications"),
];

/// Not a program: the module with which Python makes virtual environments.
const VENV: &str = "python3 -m venv";

/// Makes sure that the programs are there: by apt-get as root, CMake else by pip; returns CMake.
///
/// # Errors
/// A message that names the missing packages.
pub fn provide() -> Result<PathBuf> {
    install(&PROGRAMS);
    if find("cmake").is_none()
        && let Err(error) = cmake_by_pip()
    {
        println!("{error:#}");
    }
    complain(&PROGRAMS)?;
    find("cmake").context("CMake was there a moment ago")
}

/// Makes sure that the libraries are there: by apt-get as root.
///
/// # Errors
/// A message that names the missing packages.
pub fn provide_libraries() -> Result<()> {
    install(&LIBRARIES);
    complain(&LIBRARIES)
}

/// Installs what is missing, where that can be done; what fails is said, and missed later.
fn install(needed: &[Needed]) {
    let packages: Vec<&str> = missing(needed).into_iter().map(|(_, package, _)| package).collect();
    if packages.is_empty() || !is_root() || !shell::exists("apt-get") {
        return;
    }
    shell::step(&format!("Debian packages: {}", packages.join(" ")));
    if let Err(error) = apt(&packages) {
        println!("{error:#}");
    }
}

fn complain(needed: &[Needed]) -> Result<()> {
    let still = missing(needed);
    if still.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> =
        still.iter().map(|(name, package, why)| format!("  {name} ({why}): package {package}")).collect();
    let packages: Vec<&str> = still.iter().map(|(_, package, _)| *package).collect();
    bail!(
        "these programs or headers are missing:\n{}\ninstall them, on Debian or Ubuntu by\n  sudo apt-get install {}\nand \
         run this again",
        lines.join("\n"),
        packages.join(" ")
    );
}

fn missing(needed: &[Needed]) -> Vec<Needed> {
    let there = |name: &str| if name.contains('/') { header(name) } else { find(name).is_some() };
    needed.iter().filter(|(name, ..)| !there(name)).copied().collect()
}

/// Whether the compiler finds a header. OpenCV's lie in a folder of their own on Debian.
fn header(name: &str) -> bool {
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-isystem", "/usr/include/opencv4", "-E", "-x", "c++", "-"]);
    let Ok(mut child) = compiler.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return false;
    };
    let question = format!("#if !__has_include(<{name}>)\n#error missing\n#endif\n");
    let written = child.stdin.take().is_some_and(|mut input| input.write_all(question.as_bytes()).is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}

/// The program on the PATH, or in the folder that [`cmake_by_pip`] fills.
fn find(program: &str) -> Option<PathBuf> {
    let own = python_folder().join("cmake/data/bin").join(program);
    if program == "cmake" && own.is_file() {
        return Some(own);
    }
    if program == VENV {
        // Debian has `venv` without its package too, and lacks only what it installs pip from.
        let asked = Command::new("python3").args(["-c", "import ensurepip, venv"]).stderr(Stdio::null()).status();
        return asked.is_ok_and(|status| status.success()).then(|| PathBuf::from("python3"));
    }
    shell::exists(program).then(|| PathBuf::from(program))
}

fn apt(packages: &[&str]) -> Result<()> {
    let apt = |arguments: &[&str]| {
        shell::run(
            Command::new("apt-get")
                .args(["-qq", "-o=Dpkg::Use-Pty=0"])
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())
}

/// CMake's wheel, for who is not root: unpacked below `third_party`.
fn cmake_by_pip() -> Result<()> {
    let folder = python_folder();
    shell::step(&format!("CMake by pip → {}", folder.display()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .arg("--target")
        .arg(&folder)
        .arg("cmake==3.31.6");
    let made = shell::run(&mut pip);
    if made.is_err() {
        std::fs::remove_dir_all(&folder).ok();
    }
    made
}

fn python_folder() -> PathBuf {
    shell::root().join("third_party/python")
}

#[expect(unsafe_code, reason = "who we are is asked of the C library")]
fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail (POSIX).
    unsafe { libc::geteuid() == 0 }
}

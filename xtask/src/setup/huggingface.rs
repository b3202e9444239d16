//! The official Python client of the Hub, against which the tests hold ours.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

const VERSION: &str = "2.4.0";

/// Makes sure that the package and what it needs lie below `third_party`.
pub fn provide() -> Result<()> {
    let folder = folder();
    let marker = folder.join(format!("huggingface_hub-{VERSION}.dist-info"));
    if marker.is_dir() {
        return Ok(());
    }
    shell::step(&format!("huggingface_hub {VERSION} → {}", folder.display()));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"])
        .arg("--target")
        .arg(&folder)
        .arg(format!("huggingface_hub=={VERSION}"));
    let made = shell::run(&mut pip).context(
        "the tests of the Hub need the Python package huggingface_hub. This needs python3 with pip (Debian: apt-get \
         install python3 python3-pip) and a network, once",
    );
    if made.is_err() {
        std::fs::remove_dir_all(&folder).ok();
    }
    made
}

fn folder() -> PathBuf {
    shell::root().join("third_party/huggingface_hub")
}

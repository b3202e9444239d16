//! Set-up: everything the tests and the demo need beyond cargo and python3. Fetches only what is missing.

pub mod onnxruntime;
pub mod packages;

use std::path::PathBuf;

use anyhow::Result;

/// Where the things are that set-up provides.
pub struct Tools {
    /// CMake, 3.16 or newer.
    pub cmake: PathBuf,
    /// The folder with ONNX Runtime's library.
    pub onnxruntime: PathBuf,
}

/// Provides everything, or says what is missing and how to get it.
pub fn run() -> Result<Tools> {
    let onnxruntime = onnxruntime::provide()?;
    let cmake = packages::provide()?;
    Ok(Tools { cmake, onnxruntime })
}

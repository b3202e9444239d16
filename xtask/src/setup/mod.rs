//! Set-up: everything the tests and the demo need beyond cargo and python3. Fetches only what is missing.

pub mod huggingface;
pub mod onnxruntime;
pub mod packages;

use std::path::PathBuf;

use anyhow::Result;

/// Programs that set-up found or provided.
pub struct Tools {
    /// CMake, 3.16 or newer.
    pub cmake: PathBuf,
}

/// Provides everything, or says what is missing and how to get it.
pub fn run() -> Result<Tools> {
    onnxruntime::provide()?;
    huggingface::provide()?;
    Ok(Tools { cmake: packages::provide()? })
}

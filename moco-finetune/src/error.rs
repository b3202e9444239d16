//! The errors of this crate: what was given, what was expected, what to do.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a head is trained or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name or its reader claims.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// Arguments that make no sense or do not fit together.
    #[error("{0}")]
    Invalid(String),
    /// A training that cannot go on.
    #[error(
        "the loss is {loss}: the training has diverged; a third of the learning rate, or optimiser.clip = 1, may help"
    )]
    Diverged {
        /// The loss.
        loss: f64,
    },
    /// A progress callback asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] moco_engine::Error),
    /// A model or weight file was refused.
    #[error(transparent)]
    Model(#[from] moco_models::Error),
    /// An image was refused.
    #[error(transparent)]
    Image(#[from] moco_image::Error),
    /// The small-tensor library refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An option by its name, what it holds and what was expected.
    pub(crate) fn option(name: &str, reason: impl Into<String>) -> Error {
        Error::Invalid(format!("option `{name}`: {}", reason.into()))
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), reason: reason.into() }
    }
}

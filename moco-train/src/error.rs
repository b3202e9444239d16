//! The errors of this crate: what was read, what was expected, what to do.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a model is trained, evaluated or fine-tuned.
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
    /// A value of a recipe that does not exist or makes no sense.
    #[error("recipe, `{key}`: {reason}")]
    Recipe {
        /// Dotted key, e.g. `optim.lr`.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A data set that cannot be used as it is.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// Arguments that do not fit together.
    #[error("{0}")]
    Invalid(String),
    /// A training that cannot go on.
    #[error("{0}")]
    Run(String),
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
    /// A head could not be trained or used.
    #[error(transparent)]
    Finetune(moco_finetune::Error),
}

impl From<moco_finetune::Error> for Error {
    fn from(error: moco_finetune::Error) -> Error {
        match error {
            moco_finetune::Error::Cancelled => Error::Cancelled,
            other => Error::Finetune(other),
        }
    }
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), reason: reason.into() }
    }
}

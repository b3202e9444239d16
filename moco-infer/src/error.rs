//! The errors of this crate.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a backbone file and its features.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ONNX Runtime was not found or cannot be used; names every place that was tried.
    #[error("{0}")]
    Runtime(String),
    /// A backbone file that cannot be opened.
    #[error(transparent)]
    Model(#[from] moco_models::Error),
    /// A backbone that cannot be fetched from a Hub.
    #[error(transparent)]
    Hub(moco_hub::Error),
    /// An image that cannot be decoded or prepared.
    #[error("{}: {source}", path.display())]
    File {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: moco_image::Error,
    },
    /// One of several images in memory that cannot be decoded or prepared.
    #[error("image {index}: {source}")]
    ImageAt {
        /// Its place among the images of the call, from 0.
        index: usize,
        /// What is wrong with it.
        source: moco_image::Error,
    },
    /// An image that cannot be prepared.
    #[error(transparent)]
    Image(#[from] moco_image::Error),
    /// Options or inputs that contradict each other.
    #[error("{0}")]
    Input(String),
    /// ONNX Runtime refused the model or failed to run it.
    #[error("ONNX Runtime: {0}")]
    Session(String),
    /// A file or folder could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<moco_hub::Error> for Error {
    fn from(error: moco_hub::Error) -> Error {
        match error {
            moco_hub::Error::Model(error) => Error::Model(error),
            error => Error::Hub(error),
        }
    }
}

impl<T> From<ort::Error<T>> for Error {
    fn from(error: ort::Error<T>) -> Error {
        Error::Session(error.to_string())
    }
}

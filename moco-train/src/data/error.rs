//! What can go wrong while images are found and read.

use std::path::PathBuf;

/// Result with the data room's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A data set that cannot be used as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A path that could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A folder in which no image was found.
    #[error("{0}")]
    Empty(String),
    /// A CIFAR or IDX file that is not what its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// An option that does not fit the data.
    #[error("{0}")]
    Option(String),
    /// One image that could not be read.
    #[error("{name}: {source}")]
    Image {
        /// The image's name within the data set.
        name: String,
        /// Why.
        source: moco_image::Error,
    },
    /// More unreadable images than allowed.
    #[error(
        "{count} of {total} images cannot be read, more than the {allowed} allowed (max_corrupt); the last: {last}. \
         Run `moco-train check --data …` for the list, mend or remove them, or raise the limit"
    )]
    TooManyCorrupt {
        /// How many so far.
        count: usize,
        /// How many are allowed.
        allowed: usize,
        /// Size of the data set.
        total: usize,
        /// Name of the last and why.
        last: String,
    },
    /// A failure inside `moco-image` that is no image's fault.
    #[error(transparent)]
    Pixels(#[from] moco_image::Error),
    /// A worker thread ended unexpectedly.
    #[error("a loader thread ended unexpectedly: {0}")]
    Worker(String),
}

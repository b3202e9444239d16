//! What can go wrong with pixels: one error for the crate.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An image, rule or parameter that cannot be used as asked. Messages say what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that could not be read at all.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An error about one file, with its path.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// Bytes that are none of the formats that are read.
    #[error("not an image of a known format: {0}")]
    UnknownFormat(String),
    /// An image that ends early or contradicts itself.
    #[error("corrupt {format} image: {reason}")]
    Corrupt {
        /// `JPEG`, `PNG`, `TIFF`, `DICOM` or `NIfTI`.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// A sound file of a kind this version does not read.
    #[error("unsupported image: {0}")]
    Unsupported(String),
    /// A file larger than [`crate::Limits`] allows, refused before its pixels are decoded.
    #[error("image of {what} is above the limit of {limit}; raise the limit if the file can be trusted")]
    TooLarge {
        /// What was found.
        what: String,
        /// What is allowed.
        limit: String,
    },
    /// Pixels whose number does not fit the stated size, or a size of zero.
    #[error("bad image shape: {0}")]
    Shape(String),
    /// An image whose channels are not those the rule or the configuration asks for.
    #[error("{0}")]
    Channels(String),
    /// An image whose depth (bits a value) is not what the rule or the configuration asks for, or a range of values
    /// that it does not have.
    #[error("{0}")]
    Depth(String),
    /// A parameter outside its range.
    #[error("bad {name}: {reason}")]
    Parameter {
        /// Which parameter.
        name: &'static str,
        /// Why, and what would be right.
        reason: String,
    },
    /// An output buffer of the wrong length.
    #[error("output buffer holds {got} values, {expected} are needed ({what})")]
    OutputLength {
        /// Length of the buffer.
        got: usize,
        /// Length needed.
        expected: usize,
        /// The shape that needs it.
        what: String,
    },
}

impl Error {
    /// Shorthand for [`Error::Parameter`].
    pub(crate) fn parameter(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Parameter { name, reason: reason.into() }
    }
}

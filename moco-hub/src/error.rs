//! The errors of this crate.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a reference and a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that is no reference to a file in a Hub.
    #[error("`{text}`: {reason}; expected hf://owner/name[@revision][/file]")]
    Reference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The environment says something that cannot be used.
    #[error("{0}")]
    Settings(String),
    /// No such repository, revision or file.
    #[error("{what}: not found: {reason}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The Hub wants a token, or another one.
    #[error("{what}: access denied: {reason}")]
    Denied {
        /// What was asked for.
        what: String,
        /// What the Hub said, and what to do.
        reason: String,
    },
    /// The Hub could not be reached, or broke off.
    #[error("{what}: {reason}")]
    Network {
        /// What was asked for.
        what: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// The Hub answered something unexpected.
    #[error("{what}: {reason}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// What arrived is not what the Hub announced.
    #[error("{what}: {reason}")]
    Damaged {
        /// What was asked for.
        what: String,
        /// Both hashes or sizes.
        reason: String,
    },
    /// Neither the network nor the cache has it.
    #[error("{reference}: {reason}")]
    NotCached {
        /// What was asked for.
        reference: String,
        /// Why there is no network, and what the cache has.
        reason: String,
    },
    /// A file of the cache, or one to upload, could not be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file that is no backbone.
    #[error(transparent)]
    Model(#[from] moco_models::Error),
}

impl Error {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |cause| Error::Io { path: path.to_owned(), cause }
    }
}

//! The errors of this crate: what was read, what was expected, what to do.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a model is described, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file is not what its name or its reader claims.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// An architecture or an option of one that does not exist.
    #[error("{0}")]
    Arch(String),
    /// A card that describes nothing that exists, or that is damaged.
    #[error("{0}")]
    Card(String),
    /// A file of weights that can be read, but not taken as asked.
    #[error("{}: {reason}", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A graph that cannot be built, or does not fit its input.
    #[error("node `{node}`: {reason}")]
    Graph {
        /// Name of the node.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// Weights that do not fit a graph; every mismatch is listed.
    #[error("{0}")]
    Mismatch(String),
}

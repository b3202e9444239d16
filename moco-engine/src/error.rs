//! The errors of this crate.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a plan is compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph does not fit the image size, or a tap does not exist.
    #[error(transparent)]
    Graph(#[from] moco_models::Error),
    /// An option that makes no sense.
    #[error("{0}")]
    Config(String),
    /// A slice of the wrong length.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Which slice.
        what: String,
        /// The length that fits.
        expected: usize,
        /// The length that came.
        got: usize,
    },
    /// More images than the plan was compiled for, or none.
    #[error("a plan for at most {batch} images was given {got}")]
    Batch {
        /// The plan's batch.
        batch: usize,
        /// Images that came.
        got: usize,
    },
    /// Batch normalisation over a single value: its variance is not defined, and PyTorch refuses it as well.
    #[error(
        "batch norm `{node}`: a group holds one value per channel, and batch statistics need at least two; use larger \
         batches, larger images or fewer groups"
    )]
    OneValuePerChannel {
        /// The batch normalisation.
        node: String,
    },
    /// The buffers do not fit into memory.
    #[error("cannot allocate {bytes} bytes; use a smaller batch, smaller images or fewer taps")]
    Memory {
        /// Size of the buffer that did not fit.
        bytes: usize,
    },
    /// A device that is not there, or that failed: what was tried, what it said and what to do.
    #[error("{0}")]
    Device(String),
    /// A step that the device does not compute.
    #[error("`{node}` is {what}, which {device} does not compute; use the CPU for this network")]
    Unsupported {
        /// The node of the graph.
        node: String,
        /// The step.
        what: String,
        /// The device.
        device: String,
    },
    /// Processes of a training that do not find each other, or of which one is lost.
    #[error("{0}")]
    Group(String),
    /// A call out of order, e.g. a backward pass without its forward pass.
    #[error("{0}")]
    State(String),
}

impl Error {
    /// [`Error::Length`] unless `got` is `expected`.
    pub(crate) fn check_len(what: &str, expected: usize, got: usize) -> Result<()> {
        if expected == got { Ok(()) } else { Err(Error::Length { what: what.into(), expected, got }) }
    }
}

//! Which image, when: data sets on disk, and the loader that decodes and augments them on all cores ahead of the trainer.

mod dataset;
mod error;
mod loader;
mod summary;
#[cfg(test)]
pub(crate) mod testing;

pub use dataset::{Channels, DataOptions, Dataset, DatasetKind, FileKind, Labels, ReadBuffers, Split};
pub use error::{Error, Result};
pub use loader::{Batch, Corrupt, Decoded, Loader, LoaderOptions, LoaderStats, Share, batches_per_epoch};
pub use summary::{SizeBucket, Summary, summarise};

//! Batches of augmented views, made ahead of the trainer on all cores. What a batch holds depends on the seed, the
//! epoch and its number alone.

use std::sync::Arc;
use std::time::Duration;

use moco_image::AugmentConfig;

use super::{Dataset, Error, Result};

/// How batches are made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Images a batch.
    pub batch: usize,
    /// Leaves out a last batch that is not full; otherwise it comes with `n < batch`.
    pub drop_last: bool,
    /// Fixes the order of images and every view.
    pub seed: u64,
    /// How each of the two views is drawn.
    pub views: [AugmentConfig; 2],
    /// Threads that decode and augment; 0 takes one a core.
    pub threads: usize,
    /// Batches made ahead, at least 1. Memory is [`Loader::memory_bytes`].
    pub prefetch: usize,
    /// Bytes of decoded images that are kept in memory; 0 keeps none. Does not change what a batch holds.
    pub cache_bytes: u64,
    /// How many different images may be unreadable before it is an error. Each is replaced by another, drawn from the seed.
    pub max_corrupt: usize,
}

/// One batch; its buffers return to the loader when it is dropped.
#[derive(Debug)]
pub struct Batch {
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Number within the epoch.
    pub step: usize,
    /// Images.
    pub n: usize,
    /// Index of each image in the data set.
    pub indices: Vec<usize>,
    /// The views, each n × height × width × channels.
    pub views: [Vec<f32>; 2],
}

/// An image that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupt {
    /// Index in the data set.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Where the loader's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoaderStats {
    /// How long the consumer waited in [`Loader::next_batch`].
    pub waited: Duration,
    /// Since the loader was started.
    pub elapsed: Duration,
    /// Processor time of reading and decoding, summed over threads.
    pub decoding: Duration,
    /// Processor time of augmentation, summed over threads.
    pub augmenting: Duration,
    /// Batches handed out.
    pub batches: u64,
}

impl LoaderStats {
    /// Share of the time that the consumer spent waiting for data, 0 to 1.
    pub fn wait_share(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.waited.as_secs_f64() / self.elapsed.as_secs_f64() }
    }
}

/// Makes the batches of one epoch after another.
#[derive(Debug)]
pub struct Loader {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
}

impl Loader {
    /// Starts the threads at batch `step` of epoch `epoch`, and goes on through all following epochs.
    ///
    /// # Errors
    /// [`Error::Option`] when the batch is larger than the set and partial batches are dropped, or an option is out of range.
    pub fn start(dataset: Arc<Dataset>, options: LoaderOptions, epoch: u64, step: usize) -> Result<Self> {
        let _ = (epoch, step);
        Ok(Self { dataset, options })
    }

    /// Batches an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        batches_per_epoch(self.dataset.len(), self.options.batch, self.options.drop_last)
    }

    /// The next batch, in order; epochs follow each other without end. Waits until it is ready.
    ///
    /// # Errors
    /// [`Error::TooManyCorrupt`], or what a thread met.
    pub fn next_batch(&mut self) -> Result<Batch> {
        Err(Error::Option("the loader makes no batches yet".into()))
    }

    /// Where the time went so far.
    pub fn stats(&self) -> LoaderStats {
        LoaderStats::default()
    }

    /// Images that could not be read so far, in the order of their indices.
    pub fn corrupt(&self) -> Vec<Corrupt> {
        Vec::new()
    }

    /// Memory of the loader's batch buffers and cache, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        0
    }
}

/// Batches of an epoch over `images` images.
pub fn batches_per_epoch(images: usize, batch: usize, drop_last: bool) -> usize {
    if drop_last { images / batch.max(1) } else { images.div_ceil(batch.max(1)) }
}

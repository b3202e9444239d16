//! Batches of augmented views, made ahead of the trainer on all cores. What a batch holds depends on the seed, the
//! epoch and its number alone.

mod decoded;
mod maker;
mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use moco_engine::device::HostMemory;
use moco_image::AugmentConfig;

use super::{Dataset, Error, Result};
pub use decoded::Decoded;
use maker::Maker;
pub use order::batches_per_epoch;

/// How batches are made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Images a batch, over all processes.
    pub batch: usize,
    /// The part of every batch that is made here.
    pub share: Share,
    /// Leaves out a last batch that is not full; otherwise it comes with `n < batch`.
    pub drop_last: bool,
    /// Fixes the order of images and every view.
    pub seed: u64,
    /// How each of the two views is drawn.
    pub views: [AugmentConfig; 2],
    /// Threads that decode and augment; 0 takes one a core.
    pub threads: usize,
    /// Batches made ahead, at least 1. Memory is [`LoaderOptions::buffer_bytes`].
    pub prefetch: usize,
    /// Bytes of decoded images that are kept in memory; 0 keeps none. Does not change what a batch holds.
    pub cache_bytes: u64,
    /// How many different images may be unreadable before it is an error. Each is replaced by another, drawn from the
    /// seed.
    pub max_corrupt: usize,
}

/// The part of one of several processes that train together: an equal slice of every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of the process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

impl Share {
    /// Whole batches.
    pub const WHOLE: Share = Share { rank: 0, world: 1 };
}

impl LoaderOptions {
    /// Bytes of the batch buffers: those made ahead and the one in use.
    pub fn buffer_bytes(&self, channels: usize) -> u64 {
        let values: u64 = self.views.iter().map(|view| (view.size[0] * view.size[1] * channels) as u64).sum();
        (self.prefetch as u64 + 1) * (self.batch / self.share.world.max(1)) as u64 * values * 4
    }
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
    /// The views, each n × height × width × channels; empty where a device makes them of …
    pub views: [Vec<f32>; 2],
    /// … these decoded images.
    pub decoded: Option<Decoded>,
    home: Option<Sender<Option<Buffers>>>,
    _outstanding: Arc<()>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let (indices, views) = (std::mem::take(&mut self.indices), std::mem::take(&mut self.views));
            let buffers = Buffers { indices, views, decoded: self.decoded.take() };
            // The loader may be gone already; then the buffers are simply freed.
            let _ = home.send(Some(buffers));
        }
    }
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
    /// Time spent reading and decoding, summed over threads.
    pub decoding: Duration,
    /// Time spent on augmentation, summed over threads.
    pub augmenting: Duration,
    /// Batches handed out.
    pub batches: u64,
    /// Images handed out.
    pub images: u64,
}

impl LoaderStats {
    /// Share of the time that the consumer spent waiting for data, 0 to 1.
    pub fn wait_share(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.waited.as_secs_f64() / self.elapsed.as_secs_f64() }
    }
}

/// Makes the batches of one epoch after another, on threads of its own.
#[derive(Debug)]
pub struct Loader {
    maker: Arc<Maker>,
    producers: Vec<JoinHandle<()>>,
    ready: Option<Receiver<Made>>,
    free: Sender<Option<Buffers>>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Made>,
    next: u64,
    outstanding: Arc<()>,
    buffers: usize,
    started: Instant,
    stats: LoaderStats,
}

/// Buffers of one batch.
#[derive(Debug, Default)]
struct Buffers {
    indices: Vec<usize>,
    views: [Vec<f32>; 2],
    decoded: Option<Decoded>,
}

/// A batch, or why it could not be made.
#[derive(Debug)]
struct Made {
    ticket: u64,
    epoch: u64,
    step: usize,
    buffers: Result<Buffers>,
}

impl Loader {
    /// Starts the threads at batch `step` of epoch `epoch`, and goes on through all following epochs.
    ///
    /// # Errors
    /// [`Error::Option`] when the set is smaller than a batch and partial batches are dropped, or an option is out of
    /// range; [`Error::Pixels`] for an augmentation that contradicts itself or the images' channels.
    pub fn start(dataset: Arc<Dataset>, options: LoaderOptions, epoch: u64, step: usize) -> Result<Self> {
        Self::start_with(dataset, options, None, epoch, step)
    }

    /// As [`Loader::start`], for a device that makes the views itself: batches hold decoded images, in memory of `memory`.
    ///
    /// # Errors
    /// As [`Loader::start`], and [`Error::Pixels`] for views that devices cannot make.
    pub fn start_decoded(
        dataset: Arc<Dataset>,
        options: LoaderOptions,
        memory: Arc<dyn HostMemory>,
        epoch: u64,
        step: usize,
    ) -> Result<Self> {
        let plan = decoded::Plan::new(&options, dataset.channels(), memory)?;
        Self::start_with(dataset, options, Some(Arc::new(plan)), epoch, step)
    }

    fn start_with(
        dataset: Arc<Dataset>,
        options: LoaderOptions,
        decoded: Option<Arc<decoded::Plan>>,
        epoch: u64,
        step: usize,
    ) -> Result<Self> {
        check(&dataset, &options, step)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { cores } else { options.threads };
        let worker = |e: &dyn std::fmt::Display| Error::Worker(format!("it could not be started: {e}"));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("loader-{i}"))
            .build()
            .map_err(|e| worker(&e))?;
        let prefetch = options.prefetch;
        let maker = Arc::new(Maker::new(dataset, options, decoded, pool, epoch, step));
        let (free, free_buffers) = unbounded();
        let (made, ready) = bounded(prefetch + 1);
        // Two batches in the making, so that no thread idles while the last images of one are finished.
        let mut producers = Vec::new();
        for i in 0..prefetch.min(2) {
            let (maker, free_buffers, made) = (maker.clone(), free_buffers.clone(), made.clone());
            let thread = std::thread::Builder::new().name(format!("loader-batch-{i}"));
            producers.push(thread.spawn(move || produce(&maker, &free_buffers, &made)).map_err(|e| worker(&e))?);
        }
        let buffers = prefetch + 1;
        for _ in 0..buffers {
            free.send(Some(Buffers::default())).expect("a producer holds the other end");
        }
        Ok(Self {
            maker,
            producers,
            ready: Some(ready),
            free,
            early: BTreeMap::new(),
            next: 0,
            outstanding: Arc::new(()),
            buffers,
            started: Instant::now(),
            stats: LoaderStats::default(),
        })
    }

    /// Batches an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.maker.batches_per_epoch()
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        self.maker.dataset()
    }

    /// The next batch, in order; epochs follow each other without end. Waits until it is ready. A batch that is kept
    /// keeps its buffers: the loader then makes new ones.
    ///
    /// # Errors
    /// [`Error::TooManyCorrupt`], or what a thread met.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let begin = Instant::now();
        let batch = self.take(true);
        self.stats.waited += begin.elapsed();
        batch.and_then(|batch| batch.ok_or_else(|| Error::Worker("no thread is left to make batches".into())))
    }

    /// The next batch if it is ready.
    ///
    /// # Errors
    /// As [`Loader::next_batch`].
    pub fn try_next_batch(&mut self) -> Result<Option<Batch>> {
        self.take(false)
    }

    /// The next batch, or none if it is not ready and `wait` is false, or if nobody makes batches any more.
    fn take(&mut self, wait: bool) -> Result<Option<Batch>> {
        // One count is the loader's own.
        while Arc::strong_count(&self.outstanding) > self.buffers {
            self.buffers += 1;
            let _ = self.free.send(Some(Buffers::default()));
        }
        let made = loop {
            if let Some(made) = self.early.remove(&self.next) {
                break made;
            }
            let received = self.ready.as_ref().and_then(|ready| match wait {
                true => ready.recv().ok(),
                false => ready.try_recv().ok(),
            });
            let Some(made) = received else { return Ok(None) };
            self.early.insert(made.ticket, made);
        };
        self.next += 1;
        let mut buffers = made.buffers?;
        self.stats.batches += 1;
        self.stats.images += buffers.indices.len() as u64;
        Ok(Some(Batch {
            epoch: made.epoch,
            step: made.step,
            n: buffers.indices.len(),
            indices: std::mem::take(&mut buffers.indices),
            views: std::mem::take(&mut buffers.views),
            decoded: buffers.decoded.take(),
            home: Some(self.free.clone()),
            _outstanding: self.outstanding.clone(),
        }))
    }

    /// Where the time went so far.
    pub fn stats(&self) -> LoaderStats {
        let nanos = |counter: &std::sync::atomic::AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        LoaderStats {
            elapsed: self.started.elapsed(),
            decoding: nanos(&self.maker.decoding),
            augmenting: nanos(&self.maker.augmenting),
            ..self.stats
        }
    }

    /// Images that could not be read so far, in the order of their indices.
    pub fn corrupt(&self) -> Vec<Corrupt> {
        self.maker.corrupt()
    }

    /// Memory of the batch buffers and of the cache as it stands, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.maker.memory_bytes()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.maker.stop.store(true, Ordering::Relaxed);
        // A producer waits either for buffers or for room in the channel of ready batches.
        self.ready = None;
        for _ in &self.producers {
            let _ = self.free.send(None);
        }
        for producer in self.producers.drain(..) {
            let _ = producer.join();
        }
    }
}

/// Takes buffers, then the next batch's ticket, so that every ticket taken gets made; until told to stop.
fn produce(maker: &Maker, free: &Receiver<Option<Buffers>>, made: &Sender<Made>) {
    while let Ok(Some(buffers)) = free.recv() {
        let plan = maker.next_plan();
        let (ticket, epoch, step) = (plan.ticket, plan.epoch, plan.step);
        let buffers = maker.make(plan, buffers);
        let failed = buffers.is_err();
        if made.send(Made { ticket, epoch, step, buffers }).is_err() || failed {
            return;
        }
    }
}

fn check(dataset: &Dataset, options: &LoaderOptions, step: usize) -> Result<()> {
    let option = |text: String| Err(Error::Option(text));
    if options.batch == 0 || options.prefetch == 0 {
        return option("batch and prefetch must be at least 1".into());
    }
    let Share { rank, world } = options.share;
    if world == 0 || rank >= world || (world > 1 && !(options.drop_last && options.batch.is_multiple_of(world))) {
        return option(format!(
            "process {rank} of {world} has no equal part of every batch of {}: take a batch that can be divided by {world}, and \
             leave out a last one that is not full (drop_last = true)",
            options.batch
        ));
    }
    let batches = batches_per_epoch(dataset.len(), options.batch, options.drop_last);
    if batches == 0 {
        return option(format!(
            "{} images do not fill one batch of {}: take a smaller batch, or keep partial batches (drop_last = false)",
            dataset.len(),
            options.batch
        ));
    }
    if step >= batches {
        return option(format!("cannot start at batch {step} of an epoch of {batches} batches"));
    }
    for view in &options.views {
        view.validate()?;
        if view.mean.len() != dataset.channels() {
            return option(format!(
                "the images have {} channel(s), the augmentation's mean and std {}: give as many as there are channels, \
                 or read the images with channels = \"{}\"",
                dataset.channels(),
                view.mean.len(),
                if view.mean.len() == 1 { "grey" } else { "rgb" }
            ));
        }
    }
    Ok(())
}

//! Makes one batch after another on a pool of threads: read, decode, draw and render both views of each image.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use moco_image::{Image, Rng, Scratch, augment_with};
use rayon::prelude::*;

use super::decoded::{Decoded, Plan, Sample};
use super::order::{BatchPlan, Order};
use super::{Buffers, Corrupt, LoaderOptions};
use crate::data::{Dataset, Error, ReadBuffers, Result};

/// What the loader's threads share.
#[derive(Debug)]
pub(super) struct Maker {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
    /// For a device that makes the views.
    decoded: Option<Arc<Plan>>,
    pool: rayon::ThreadPool,
    order: Mutex<Order>,
    cache: Cache,
    corrupt: Mutex<BTreeMap<usize, Corrupt>>,
    pub stop: AtomicBool,
    pub decoding: AtomicU64,   // nanoseconds
    pub augmenting: AtomicU64, // nanoseconds
}

/// What each thread of the pool keeps.
#[derive(Default)]
struct Worker {
    buffers: ReadBuffers,
    image: Image,
    scratch: Scratch,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::default();
}

impl Maker {
    pub fn new(
        dataset: Arc<Dataset>,
        options: LoaderOptions,
        decoded: Option<Arc<Plan>>,
        pool: rayon::ThreadPool,
        epoch: u64,
        step: usize,
    ) -> Self {
        let order = Order::new(&options, dataset.len(), epoch, step);
        let cached = options.cache_bytes > 0 && !dataset.in_memory();
        let cache = Cache::new(if cached { dataset.len() } else { 0 }, options.cache_bytes);
        Self {
            dataset,
            options,
            decoded,
            pool,
            order: Mutex::new(order),
            cache,
            corrupt: Mutex::default(),
            stop: AtomicBool::new(false),
            decoding: AtomicU64::new(0),
            augmenting: AtomicU64::new(0),
        }
    }

    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    pub fn batches_per_epoch(&self) -> usize {
        super::batches_per_epoch(self.dataset.len(), self.options.batch, self.options.drop_last)
    }

    pub fn next_plan(&self) -> BatchPlan {
        // A poisoned order is still an order: taking the next plan cannot leave it half changed.
        self.order.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    pub fn corrupt(&self) -> Vec<Corrupt> {
        self.corrupt.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn memory_bytes(&self) -> u64 {
        self.options.buffer_bytes(self.dataset.channels()) + self.cache.used.load(Ordering::Relaxed)
    }

    /// Fills the buffers with the planned batch.
    pub fn make(&self, plan: BatchPlan, mut buffers: Buffers) -> Result<Buffers> {
        buffers.indices.clear();
        buffers.indices.extend(plan.indices());
        let epoch = plan.epoch;
        if let Some(plan) = &self.decoded {
            let mut decoded = buffers.decoded.take().unwrap_or_else(|| Decoded::new(plan.clone()));
            self.make_decoded(epoch, &mut buffers.indices, &mut decoded)?;
            buffers.decoded = Some(decoded);
            return Ok(buffers);
        }
        let n = buffers.indices.len();
        let lens = [0, 1].map(|v| self.options.views[v].size.iter().product::<usize>() * self.dataset.channels());
        let Buffers { indices, views: [first, second], .. } = &mut buffers;
        first.resize(n * lens[0], 0.0);
        second.resize(n * lens[1], 0.0);
        self.on_the_pool(|| {
            let views = first.par_chunks_exact_mut(lens[0]).zip(second.par_chunks_exact_mut(lens[1]));
            indices.par_iter_mut().zip(views).with_max_len(1).try_for_each(|(index, (first, second))| {
                WORKER.with_borrow_mut(|worker| self.views(epoch, index, [first, second], worker))
            })
        })?;
        Ok(buffers)
    }

    /// As [`Maker::make`], with decoded images in place of views.
    fn make_decoded(&self, epoch: u64, indices: &mut [usize], decoded: &mut Decoded) -> Result<()> {
        decoded.samples.resize_with(indices.len(), Sample::default);
        self.on_the_pool(|| {
            let samples = decoded.samples.par_iter_mut();
            indices.par_iter_mut().zip(samples).with_max_len(1).try_for_each(|(index, sample)| {
                WORKER.with_borrow_mut(|worker| self.sample(epoch, index, sample, worker))
            })?;
            decoded.assemble()
        })
    }

    /// Runs a part of a batch on the threads of the loader; a panic there is an error.
    fn on_the_pool(&self, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let work = || self.pool.install(work);
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::Worker(panic_text(&*panic))))
    }

    /// Both views of image `index`, or of another in its place when it cannot be read; `index` then names that one.
    fn views(&self, epoch: u64, index: &mut usize, views: [&mut [f32]; 2], worker: &mut Worker) -> Result<()> {
        let rngs = self.rngs(epoch, *index);
        self.with_image(epoch, index, worker, |image, scratch| {
            for ((config, out), mut rng) in self.options.views.iter().zip(views).zip(rngs) {
                augment_with(image, config, &mut rng, scratch, out)?;
            }
            Ok(())
        })
    }

    /// The same image with both views only drawn.
    fn sample(&self, epoch: u64, index: &mut usize, sample: &mut Sample, worker: &mut Worker) -> Result<()> {
        let rngs = self.rngs(epoch, *index);
        self.with_image(epoch, index, worker, |image, _| sample.draw(image, &self.options.views, rngs))
    }

    /// The streams of both views of image `index`.
    fn rngs(&self, epoch: u64, index: usize) -> [Rng; 2] {
        [0, 1].map(|view| Rng::for_sample(self.options.seed, epoch, index as u64, view))
    }

    /// Does something with image `index`, or with another in its place.
    fn with_image(
        &self,
        epoch: u64,
        index: &mut usize,
        worker: &mut Worker,
        augment: impl FnOnce(&Image, &mut Scratch) -> Result<()>,
    ) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Worker("the loader was stopped".into()));
        }
        let wanted = *index as u64;
        let Worker { buffers, image, scratch } = worker;
        let begin = Instant::now();
        let mut replacement = Rng::for_sample(self.options.seed, epoch, wanted, REPLACEMENT);
        let image = loop {
            match self.load(*index, buffers, image) {
                Ok(cached) => break cached.unwrap_or(image),
                Err(error) => {
                    self.note_corrupt(*index, error)?;
                    *index = replacement.below(self.dataset.len());
                }
            }
        };
        let decoded = Instant::now();
        augment(image, scratch)?;
        let nanos = |from: Instant, to: Instant| (to - from).as_nanos() as u64;
        self.decoding.fetch_add(nanos(begin, decoded), Ordering::Relaxed);
        self.augmenting.fetch_add(nanos(decoded, Instant::now()), Ordering::Relaxed);
        Ok(())
    }

    /// The image from the cache, or decoded into `image`.
    fn load(&self, index: usize, buffers: &mut ReadBuffers, image: &mut Image) -> Result<Option<&Image>> {
        if let Some(cached) = self.cache.get(index) {
            return Ok(Some(cached));
        }
        if let Some(known) = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return Err(Error::Option(known.reason.clone()));
        }
        self.dataset.load_into(index, buffers, image)?;
        self.cache.offer(index, image);
        Ok(None)
    }

    fn note_corrupt(&self, index: usize, error: Error) -> Result<()> {
        let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = corrupt.entry(index).or_insert_with(|| {
            let name = self.dataset.name(index);
            let reason = match error {
                Error::Image { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            log::warn!("{name} cannot be read and is replaced by another image: {reason}");
            Corrupt { index, name, reason }
        });
        let last = format!("{}: {}", noted.name, noted.reason);
        let (count, total, allowed) = (corrupt.len(), self.dataset.len(), self.options.max_corrupt);
        // With every image unreadable there is nothing to take instead.
        if count > allowed || count == total {
            return Err(Error::TooManyCorrupt { count, allowed, total, last });
        }
        Ok(())
    }
}

/// Number of the stream that chooses a replacement; 0 and 1 are the views'.
const REPLACEMENT: u64 = 2;

/// Decoded images, as many as fit the budget, each decoded once.
#[derive(Debug)]
struct Cache {
    images: Vec<OnceLock<Image>>,
    budget: u64,
    used: AtomicU64,
}

impl Cache {
    fn new(images: usize, budget: u64) -> Self {
        Self { images: (0..images).map(|_| OnceLock::new()).collect(), budget, used: AtomicU64::new(0) }
    }

    fn get(&self, index: usize) -> Option<&Image> {
        self.images.get(index)?.get()
    }

    /// Keeps a copy if there is room for it.
    fn offer(&self, index: usize, image: &Image) {
        let Some(place) = self.images.get(index) else { return };
        let bytes = image.data().len() as u64;
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.budget || place.set(image.clone()).is_err() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").to_owned()
}

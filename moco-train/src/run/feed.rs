//! Batches on their way from the loader to the learner. Where a device makes the views itself, the next batch is copied to it
//! while it computes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Result;
use crate::data::{Batch, Corrupt, Dataset, Loader, LoaderOptions, LoaderStats};
use crate::objective::{Input, Learner, Sgd, Shuffle, StepReport, Views};

/// Hands batches to a learner.
pub struct Feed {
    loader: Loader,
    /// A batch that was sent to the device and not used yet.
    sent: Option<Batch>,
    least_batch: usize,
}

impl Feed {
    /// Starts a loader of views, or of decoded images if the learner makes views and `on_device` wants it to.
    ///
    /// # Errors
    /// As [`Loader::start`] and [`Loader::start_decoded`].
    pub fn start(
        dataset: Arc<Dataset>,
        options: LoaderOptions,
        learner: &dyn Learner,
        on_device: bool,
        place: (u64, usize),
    ) -> Result<Feed> {
        let (epoch, step) = place;
        let loader = match on_device && learner.makes_views() {
            true => Loader::start_decoded(dataset, options, learner.host_memory(), epoch, step)?,
            false => Loader::start(dataset, options, epoch, step)?,
        };
        Ok(Feed { loader, sent: None, least_batch: learner.config().least_batch() })
    }

    /// The next batch that is large enough for batch statistics, and how long it was waited for.
    ///
    /// # Errors
    /// As [`Loader::next_batch`] and [`Learner::send`].
    pub fn next(&mut self, learner: &mut dyn Learner) -> Result<(Batch, Duration)> {
        if let Some(batch) = self.sent.take() {
            return Ok((batch, Duration::ZERO));
        }
        let begin = Instant::now();
        let batch = loop {
            let batch = self.loader.next_batch()?;
            if batch.n >= self.least_batch {
                break batch;
            }
        };
        let waited = begin.elapsed();
        send(&batch, learner)?;
        Ok((batch, waited))
    }

    /// One step with a batch that [`Feed::next`] gave. `images` are the numbers of its images.
    ///
    /// # Errors
    /// As [`Learner::launch`], [`Learner::finish`], and [`Loader::next_batch`] for the batch after it.
    pub fn step(
        &mut self,
        batch: &Batch,
        images: &[u64],
        learner: &mut dyn Learner,
        shuffles: &[Shuffle],
        sgd: &Sgd,
    ) -> Result<StepReport> {
        let views = Views { views: [&batch.views[0], &batch.views[1]], images };
        if batch.decoded.is_some() {
            // Copies run beside what is launched after them.
            self.send_ahead(learner)?;
        }
        learner.launch(input(batch, &views), shuffles, sgd)?;
        learner.finish()
    }

    /// Images that could not be read so far.
    pub fn corrupt(&self) -> Vec<Corrupt> {
        self.loader.corrupt()
    }

    /// Where the loader's time went so far.
    pub fn stats(&self) -> LoaderStats {
        self.loader.stats()
    }

    /// Begins to copy the next batch if it is ready.
    fn send_ahead(&mut self, learner: &mut dyn Learner) -> Result<()> {
        while let Some(batch) = self.loader.try_next_batch()? {
            if batch.n >= self.least_batch {
                send(&batch, learner)?;
                self.sent = Some(batch);
                break;
            }
        }
        Ok(())
    }
}

/// What a step learns from: the views of the batch, or what was sent of it.
pub fn input<'a>(batch: &Batch, views: &'a Views<'a>) -> Input<'a> {
    match batch.decoded {
        Some(_) => Input::Sent(views.images),
        None => Input::Views(views),
    }
}

fn send(batch: &Batch, learner: &mut dyn Learner) -> Result<()> {
    match &batch.decoded {
        Some(decoded) => learner.send(&decoded.as_batch()),
        None => Ok(()),
    }
}

#[cfg(all(test, feature = "cuda-emulation"))]
mod tests {
    use moco_engine::cuda::EmulatedCuda;
    use moco_engine::{BnGroups, Recompute};
    use moco_image::AugmentConfig;
    use moco_models::arch::{ArchSpec, Projector, Stem};
    use moco_models::init::initialise;

    use super::*;
    use crate::data::testing::write_png;
    use crate::data::{DataOptions, Share};
    use crate::objective::{Moco, MocoConfig, MocoState};

    #[test]
    fn an_emulated_gpu_learns_from_decoded_images_what_it_learns_from_views() {
        let root = tempfile::tempdir().unwrap();
        (0..21).for_each(|i| write_png(&root.path().join(format!("{i:03}.png")), 20 + i % 7, 24, 3, i as u64));
        let spec = ArchSpec { width: 0.125, stem: Stem::Cifar, ..ArchSpec::new("resnet18") };
        let graph = ArchSpec { projector: Projector::Linear { dim: 8 }, ..spec }.build().unwrap();
        let view = AugmentConfig { size: [16, 16], ..AugmentConfig::moco_v2() };
        let options = LoaderOptions {
            batch: 8,
            share: Share::WHOLE,
            drop_last: false,
            seed: 3,
            views: [view.clone(), view],
            threads: 2,
            prefetch: 2,
            cache_bytes: 0,
            max_corrupt: 0,
        };
        let losses = |on_device: bool| -> Vec<f64> {
            let config = MocoConfig {
                batch: 8,
                size: [16, 16],
                temperature: 0.2,
                key_momentum: 0.9,
                symmetric: false,
                mask_same_image: false,
                bn_groups: BnGroups::Whole,
                recompute: Recompute::Nothing,
            };
            let state = MocoState::new(initialise(&graph, 1), 40, 8, 1);
            let device = EmulatedCuda::<f32>::emulated().unwrap();
            let mut moco: Box<dyn Learner> = Box::new(Moco::on(device, &graph, config, state).unwrap());
            let dataset = Arc::new(Dataset::open(root.path(), &DataOptions::default()).unwrap());
            let mut feed = Feed::start(dataset, options.clone(), &*moco, on_device, (0, 0)).unwrap();
            let sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 1e-4 };
            let mut step = || {
                let (batch, _) = feed.next(&mut *moco).unwrap();
                assert_eq!(batch.decoded.is_some(), on_device);
                let images: Vec<u64> = batch.indices.iter().map(|&i| i as u64).collect();
                feed.step(&batch, &images, &mut *moco, &[], &sgd).unwrap().loss
            };
            (0..4).map(|_| step()).collect()
        };
        // The views are the same to the bit, so everything is.
        assert_eq!(losses(true), losses(false));
    }
}

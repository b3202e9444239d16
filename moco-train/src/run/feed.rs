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

//! Training batches, made ahead on threads of their own. What a batch holds depends on the seed, the epoch and its number
//! alone.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use moco_image::Rng;

use super::options::Options;
use crate::augment::{AugmentOptions, Framing};
use crate::data::LabelledData;
use crate::task::{Sample, Target};
use crate::{Error, Result};

/// Purpose of a stream of random numbers: the order of an epoch.
const ORDER: u64 = 0x006f_7264_6572;

/// Purpose of a stream of random numbers: the variation of an image.
const VARIATION: u64 = 0;

/// Images as the network reads them, with their truths.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// [n, height, width, channels].
    pub images: Vec<f32>,
    /// In pixels of the network's input.
    pub targets: Vec<Target>,
}

/// How samples become batches.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub framing: Framing,
    pub augment: AugmentOptions,
    pub seed: u64,
    pub batch: usize,
}

impl Recipe {
    pub(crate) fn new(framing: &Framing, options: &Options) -> Recipe {
        let Options { augment, seed, batch, .. } = options;
        Recipe { framing: framing.clone(), augment: augment.clone(), seed: *seed, batch: *batch }
    }

    /// Prepares the samples of a batch; `place` is where each gets its random numbers from.
    pub(crate) fn prepare(&self, samples: &[(Sample, [u64; 2])]) -> Result<Batch> {
        let len = values(&self.framing);
        let mut batch = Batch { images: vec![0.0; samples.len() * len], targets: Vec::with_capacity(samples.len()) };
        for ((sample, [epoch, index]), out) in samples.iter().zip(batch.images.chunks_exact_mut(len)) {
            let mut rng = Rng::for_sample(self.seed, *epoch, *index, VARIATION);
            let prepared = self.framing.prepare(sample, Some((&self.augment, &mut rng)), out)?;
            batch.targets.push(prepared.target);
        }
        Ok(batch)
    }
}

/// Values of one image as the network reads it.
pub(crate) fn values(framing: &Framing) -> usize {
    framing.size[0] * framing.size[1] * framing.rule.channels
}

/// Batches of an epoch of `len` images: all of nearly the same size, none larger than `batch`.
pub(crate) fn batches(len: usize, batch: usize) -> usize {
    len.div_ceil(batch)
}

/// Places in the order of an epoch that batch `k` of `count` takes.
pub(crate) fn part(len: usize, count: usize, k: usize) -> Range<usize> {
    k * len / count..(k + 1) * len / count
}

/// Order of the images in an epoch.
pub(crate) fn order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    Rng::for_sample(seed, epoch, ORDER, 1).shuffle(&mut order);
    order
}

/// Batches in order, one step after the other.
pub(crate) struct Feed {
    /// Batch `step` comes from `step % threads`.
    made: Vec<Receiver<Result<Batch>>>,
}

impl Feed {
    /// Starts the threads at a step; they end when the feed is dropped, or with the last step.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        data: &'scope dyn LabelledData,
        recipe: &Recipe,
        steps: Range<u64>,
        threads: usize,
    ) -> Result<Feed> {
        let threads = (threads as u64).clamp(1, (steps.end - steps.start).max(1));
        let mut made: Vec<Option<Receiver<_>>> = (0..threads).map(|_| None).collect();
        for i in 0..threads {
            let first = steps.start + i;
            let (sender, receiver) = sync_channel(1);
            made[(first % threads) as usize] = Some(receiver);
            let (recipe, end) = (recipe.clone(), steps.end);
            std::thread::Builder::new()
                .name(format!("batches-{i}"))
                .spawn_scoped(scope, move || produce(data, &recipe, (first..end).step_by(threads as usize), &sender))
                .map_err(|e| Error::Invalid(format!("a thread for loading images cannot be started: {e}")))?;
        }
        Ok(Feed { made: made.into_iter().flatten().collect() })
    }

    /// The batch of a step, and how long it was waited for.
    pub(crate) fn batch(&mut self, step: u64) -> Result<(Batch, Duration)> {
        let begin = Instant::now();
        let place = (step % self.made.len() as u64) as usize;
        let batch = self.made[place]
            .recv()
            .map_err(|_| Error::Invalid("a thread that loads images has ended too early".into()))?;
        Ok((batch?, begin.elapsed()))
    }
}

fn produce(
    data: &dyn LabelledData,
    recipe: &Recipe,
    steps: impl Iterator<Item = u64>,
    made: &SyncSender<Result<Batch>>,
) {
    let count = batches(data.len(), recipe.batch) as u64;
    let mut epoch_order = (u64::MAX, vec![]);
    for step in steps {
        let (epoch, k) = (step / count, (step % count) as usize);
        if epoch_order.0 != epoch {
            epoch_order = (epoch, order(data.len(), recipe.seed, epoch));
        }
        let indices = &epoch_order.1[part(data.len(), count as usize, k)];
        let samples = indices.iter().map(|&i| Ok((data.get(i)?, [epoch, i as u64]))).collect::<Result<Vec<_>>>();
        let batch = samples.and_then(|samples| recipe.prepare(&samples));
        let failed = batch.is_err();
        // Nobody listens any more where the training has ended early.
        if made.send(batch).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_cut_into_batches_of_nearly_equal_size() {
        for (len, batch, sizes) in
            [(10, 8, vec![5, 5]), (9, 8, vec![4, 5]), (8, 8, vec![8]), (1, 8, vec![1]), (7, 3, vec![2, 2, 3])]
        {
            let count = batches(len, batch);
            let parts: Vec<_> = (0..count).map(|k| part(len, count, k)).collect();
            assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), sizes);
            assert_eq!((parts[0].start, parts[count - 1].end), (0, len));
            assert!(parts.windows(2).all(|w| w[0].end == w[1].start));
        }
    }

    #[test]
    fn every_epoch_has_an_order_of_its_own() {
        let (a, b) = (order(50, 1, 0), order(50, 1, 1));
        assert_ne!(a, b);
        assert_ne!(a, order(50, 2, 0));
        assert_eq!(a, order(50, 1, 0));
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}

//! The order of images: a new permutation every epoch, from the seed alone.

use std::sync::Arc;

use moco_image::Rng;

use super::{LoaderOptions, Share};

/// Batches of an epoch over `images` images.
pub fn batches_per_epoch(images: usize, batch: usize, drop_last: bool) -> usize {
    if drop_last { images / batch.max(1) } else { images.div_ceil(batch.max(1)) }
}

/// What one batch consists of.
#[derive(Debug)]
pub(super) struct BatchPlan {
    /// Batches before it since the loader was started.
    pub ticket: u64,
    pub epoch: u64,
    pub step: usize,
    order: Arc<Vec<u32>>,
    from: usize,
    to: usize,
}

impl BatchPlan {
    /// Indices of its images in the data set.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.order[self.from..self.to].iter().map(|&index| index as usize)
    }
}

/// Hands out the batches of all epochs in order.
#[derive(Debug)]
pub(super) struct Order {
    seed: u64,
    images: usize,
    batch: usize,
    share: Share,
    batches: usize,
    epoch: u64,
    step: usize,
    ticket: u64,
    current: Arc<Vec<u32>>,
}

impl Order {
    pub fn new(options: &LoaderOptions, images: usize, epoch: u64, step: usize) -> Self {
        let LoaderOptions { seed, batch, share, drop_last, .. } = *options;
        let batches = batches_per_epoch(images, batch, drop_last);
        let current = Arc::new(permutation(seed, epoch, images));
        Self { seed, images, batch, share, batches, epoch, step, ticket: 0, current }
    }

    pub fn next(&mut self) -> BatchPlan {
        if self.step == self.batches {
            self.epoch += 1;
            self.step = 0;
            self.current = Arc::new(permutation(self.seed, self.epoch, self.images));
        }
        let each = self.batch / self.share.world;
        let from = self.step * self.batch + self.share.rank * each;
        let plan = BatchPlan {
            ticket: self.ticket,
            epoch: self.epoch,
            step: self.step,
            order: self.current.clone(),
            from,
            to: (from + each).min(self.images),
        };
        self.step += 1;
        self.ticket += 1;
        plan
    }
}

fn permutation(seed: u64, epoch: u64, images: usize) -> Vec<u32> {
    // No image has this index, so no view shares the stream.
    let mut rng = Rng::for_sample(seed, epoch, u64::MAX, 0);
    let mut order: Vec<u32> = (0..images as u32).collect();
    rng.shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use moco_image::AugmentConfig;

    use super::*;

    fn options(drop_last: bool) -> LoaderOptions {
        let (view, share) = (AugmentConfig::cifar_demo(), Share::WHOLE);
        let views = [view.clone(), view];
        LoaderOptions {
            batch: 10,
            share,
            drop_last,
            seed: 5,
            views,
            threads: 1,
            prefetch: 1,
            cache_bytes: 0,
            max_corrupt: 0,
        }
    }

    #[test]
    fn the_slices_of_all_processes_are_the_batch() {
        let mut whole = Order::new(&options(true), 103, 0, 0);
        let share = |rank| LoaderOptions { share: Share { rank, world: 5 }, ..options(true) };
        let mut parts: Vec<_> = (0..5).map(|rank| Order::new(&share(rank), 103, 0, 0)).collect();
        for _ in 0..25 {
            let plan = whole.next();
            let slices: Vec<_> = parts.iter_mut().map(Order::next).collect();
            assert!(slices.iter().all(|s| (s.epoch, s.step) == (plan.epoch, plan.step) && s.indices().count() == 2));
            let together: Vec<usize> = slices.iter().flat_map(|s| s.indices().collect::<Vec<_>>()).collect();
            assert_eq!(together, plan.indices().collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_epoch_sees_every_image_once_in_another_order() {
        let mut order = Order::new(&options(false), 103, 0, 0);
        let mut epoch = || -> Vec<usize> { (0..11).flat_map(|_| order.next().indices().collect::<Vec<_>>()).collect() };
        let (first, second) = (epoch(), epoch());
        assert_ne!(first, second);
        for mut seen in [first, second] {
            seen.sort_unstable();
            assert_eq!(seen, (0..103).collect::<Vec<_>>());
        }
    }

    #[test]
    fn starting_in_the_middle_continues_the_same_order() {
        let mut whole = Order::new(&options(true), 103, 0, 0);
        let all: Vec<Vec<usize>> = (0..25).map(|_| whole.next().indices().collect()).collect();
        let mut resumed = Order::new(&options(true), 103, 1, 3);
        let plan = resumed.next();
        assert_eq!((plan.epoch, plan.step), (1, 3));
        assert_eq!(plan.indices().collect::<Vec<_>>(), all[13]);
        assert_eq!(resumed.next().indices().collect::<Vec<_>>(), all[14]);
    }
}

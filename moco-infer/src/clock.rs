//! Where the time of an extraction goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time spent on each part of the work, summed over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSpent {
    /// Reading and decoding files.
    pub decode: Duration,
    /// Resizing, cropping and normalising.
    pub preprocess: Duration,
    /// Running the network.
    pub inference: Duration,
}

impl TimeSpent {
    /// What was spent since `earlier`.
    pub fn since(self, earlier: TimeSpent) -> TimeSpent {
        TimeSpent {
            decode: self.decode.saturating_sub(earlier.decode),
            preprocess: self.preprocess.saturating_sub(earlier.preprocess),
            inference: self.inference.saturating_sub(earlier.inference),
        }
    }
}

/// Sums that all threads add to.
#[derive(Default)]
pub(crate) struct Clock {
    pub(crate) decode: Sum,
    pub(crate) preprocess: Sum,
    pub(crate) inference: Sum,
}

impl Clock {
    pub(crate) fn spent(&self) -> TimeSpent {
        TimeSpent { decode: self.decode.get(), preprocess: self.preprocess.get(), inference: self.inference.get() }
    }
}

/// Nanoseconds.
#[derive(Default)]
pub(crate) struct Sum(AtomicU64);

impl Sum {
    pub(crate) fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

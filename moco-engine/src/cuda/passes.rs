//! Passes of a plan recorded and launched as a whole.
//!
//! A pass over small images is hundreds of kernels of a few microseconds each, and launching them one by one takes longer
//! than computing. The first pass runs as it is (which also lets the library choose its algorithms), the second is recorded,
//! the following ones are replayed, as long as they read and write the same memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::Driver;

/// Where a convolution of the plan writes fewer bytes than this on average, launching is worth saving: the time to write
/// them is some ten microseconds.
const SMALL: usize = 32 << 20;
/// Most different passes that are kept: forward and backward, for a full and a partial batch, from a few buffers of images.
const MOST: usize = 16;

/// The passes of one plan.
pub(super) struct Passes<D: Driver> {
    known: HashMap<Vec<u64>, Known<D>>,
    /// The pass that is being recorded.
    recording: Option<Vec<u64>>,
    convolutions: usize,
    bytes: usize,
}

enum Known<D: Driver> {
    /// It has run once.
    Seen,
    /// It cannot be recorded.
    Plain,
    Recorded {
        recording: D::Recording,
        generation: u64,
    },
}

impl<D: Driver> Default for Passes<D> {
    fn default() -> Passes<D> {
        Passes { known: HashMap::new(), recording: None, convolutions: 0, bytes: 0 }
    }
}

impl<D: Driver> Passes<D> {
    /// Announces a convolution that writes so many bytes.
    pub(super) fn expect(&mut self, bytes: usize) {
        self.convolutions += 1;
        self.bytes += bytes;
    }

    /// Whether the caller is to run the steps; otherwise they have been replayed.
    pub(super) fn begin(&mut self, driver: &Arc<D>, key: Vec<u64>) -> bool {
        if self.bytes > self.convolutions * SMALL {
            return true;
        }
        match self.known.get(&key) {
            None => {
                if self.known.len() < MOST {
                    self.known.insert(key, Known::Seen);
                }
            }
            Some(Known::Plain) => {}
            Some(Known::Recorded { recording, generation }) if *generation == driver.generation() => {
                driver.replay(recording);
                return false;
            }
            Some(Known::Seen | Known::Recorded { .. }) => {
                if driver.begin_recording() {
                    self.recording = Some(key);
                }
            }
        }
        true
    }

    /// Whether the pass is done; otherwise it could not be recorded, has not run, and the caller is to run its steps again.
    pub(super) fn end(&mut self, driver: &Arc<D>) -> bool {
        let Some(key) = self.recording.take() else { return true };
        match driver.end_recording() {
            Some(recording) => {
                driver.replay(&recording);
                self.known.insert(key, Known::Recorded { recording, generation: driver.generation() });
                true
            }
            None => {
                self.known.insert(key, Known::Plain);
                false
            }
        }
    }
}

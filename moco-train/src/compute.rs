//! Where a training computes and in which precision, as a recipe wishes for it; [`Compute`] is what it gets.

use serde::{Deserialize, Serialize};

pub use moco_engine::compute::{Compute, DeviceChoice, DeviceId, OnDevice, Precision};

use crate::Result;

/// `[compute]` of a recipe: what is wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeRecipe {
    /// Where.
    pub device: DeviceChoice,
    /// In which precision feature maps are stored; weights, statistics and sums are f32 always.
    pub precision: Precision,
    /// Whether the inside of residual blocks is computed again in the backward pass instead of kept: less memory for
    /// more time, the same result.
    pub checkpoint_activations: bool,
    /// Whether a device that can makes the views; else the CPU makes them.
    pub augment_on_device: bool,
}

impl Default for ComputeRecipe {
    fn default() -> ComputeRecipe {
        ComputeRecipe {
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            checkpoint_activations: false,
            augment_on_device: true,
        }
    }
}

impl ComputeRecipe {
    /// What is wished for, if it can be had; with a sentence where the choice may surprise.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::Error::Engine) saying what is missing.
    pub fn choose(&self) -> Result<(Compute, Option<String>)> {
        Ok(Compute::choose(self.device, self.precision)?)
    }

    /// [`ComputeRecipe::choose`] for one of several processes on this machine: GPUs are counted from the one that is wished
    /// for.
    ///
    /// # Errors
    /// As [`ComputeRecipe::choose`].
    pub fn choose_for(&self, local_rank: usize) -> Result<(Compute, Option<String>)> {
        let own = |device| {
            DeviceChoice::Given(match device {
                DeviceId::Cuda(first) => DeviceId::Cuda(first + local_rank),
                DeviceId::Cpu => DeviceId::Cpu,
            })
        };
        if let DeviceChoice::Given(device) = self.device {
            return ComputeRecipe { device: own(device), ..*self }.choose();
        }
        let (compute, note) = self.choose()?;
        if local_rank == 0 || compute.device() == DeviceId::Cpu {
            return Ok((compute, note));
        }
        ComputeRecipe { device: own(compute.device()), ..*self }.choose()
    }

    /// The same with nothing left to choose.
    pub fn on(self, compute: &Compute) -> ComputeRecipe {
        ComputeRecipe { device: DeviceChoice::Given(compute.device()), precision: compute.precision(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_count_gpus_from_the_one_that_is_wished_for() {
        let wish = |device| ComputeRecipe { device: DeviceChoice::Given(device), ..ComputeRecipe::default() };
        let error = wish(DeviceId::Cuda(40)).choose_for(3).unwrap_err().to_string();
        assert!(error.contains("cuda:43"), "{error}");
        assert_eq!(wish(DeviceId::Cpu).choose_for(3).unwrap().0.device(), DeviceId::Cpu);
    }

    #[test]
    fn what_was_chosen_can_be_written_down() {
        for precision in [Precision::F32, Precision::Bf16] {
            let device = DeviceChoice::Given(DeviceId::Cpu);
            let wish = ComputeRecipe { device, precision, ..ComputeRecipe::default() };
            assert_eq!(ComputeRecipe::default().on(&wish.choose().unwrap().0), wish);
        }
    }
}

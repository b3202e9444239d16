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

    /// The same with nothing left to choose.
    pub fn on(self, compute: &Compute) -> ComputeRecipe {
        ComputeRecipe { device: DeviceChoice::Given(compute.device()), precision: compute.precision(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_can_be_written_down() {
        for precision in [Precision::F32, Precision::Bf16] {
            let device = DeviceChoice::Given(DeviceId::Cpu);
            let wish = ComputeRecipe { device, precision, ..ComputeRecipe::default() };
            assert_eq!(ComputeRecipe::default().on(&wish.choose().unwrap().0), wish);
        }
    }
}

//! Learning rate over a training: warm-up, then a cosine or a plateau.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Form of the schedule behind the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Half a cosine from 1 to [`Schedule::floor`] (arXiv:1608.03983, without restarts).
    #[default]
    Cosine,
    /// Stays.
    Constant,
}

/// Factor on all learning rates over the course of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Share of the training in which the factor rises linearly from 0 to 1, in [0, 1).
    pub warmup: f64,
    /// What follows.
    pub decay: Decay,
    /// Factor at the end of a cosine, in [0, 1].
    pub floor: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { warmup: 0.05, decay: Decay::Cosine, floor: 0.0 }
    }
}

impl Schedule {
    /// Factor of step `step` (from 0) of `steps`; of a training without end (`steps` = 0) always 1.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if steps == 0 {
            return 1.0;
        }
        let (step, steps) = (step as f64, steps as f64);
        let warm = (self.warmup * steps).floor();
        if step < warm {
            // The first step moves already.
            return (step + 1.0) / (warm + 1.0);
        }
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => {
                let progress = ((step - warm) / (steps - warm).max(1.0)).min(1.0);
                self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * progress).cos())
            }
        }
    }

    /// Whether it has to know how many steps there will be.
    pub fn needs_end(&self) -> bool {
        self.warmup > 0.0 || self.decay == Decay::Cosine
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.warmup) {
            return Err(Error::option(
                "schedule.warmup",
                format!("{}: expected a share of the training, 0 ≤ … < 1", self.warmup),
            ));
        }
        if !(0.0..=1.0).contains(&self.floor) {
            return Err(Error::option("schedule.floor", format!("{}: expected a factor within [0, 1]", self.floor)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_then_falls_along_half_a_cosine() {
        let schedule = Schedule { warmup: 0.1, ..Schedule::default() };
        let at: Vec<f64> = (0..100).map(|step| schedule.factor(step, 100)).collect();
        assert!((at[0] - 1.0 / 11.0).abs() < 1e-12 && at[9] < 1.0 && at[10] == 1.0, "{:?}", &at[..12]);
        assert!((at[55] - 0.5).abs() < 1e-12, "{}", at[55]);
        assert!(at[10..].windows(2).all(|w| w[1] < w[0]) && at[99] > 0.0);
    }

    #[test]
    fn a_floor_and_a_plateau_are_kept() {
        let floor = Schedule { warmup: 0.0, floor: 0.2, ..Schedule::default() };
        assert!((floor.factor(1_000, 1_000) - 0.2).abs() < 1e-12);
        let constant = Schedule { warmup: 0.0, decay: Decay::Constant, floor: 0.0 };
        assert!((0..10).all(|step| constant.factor(step, 10) == 1.0 && constant.factor(step, 0) == 1.0));
        assert!(!constant.needs_end() && floor.needs_end());
    }
}

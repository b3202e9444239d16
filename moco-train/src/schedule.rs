//! Learning rate over the course of a training.

use serde::{Deserialize, Serialize};

/// Form of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The learning rate stays.
    Constant,
    /// Multiplied by a factor at each milestone (MoCo v1).
    Step,
    /// lr · ½(1 + cos(π·t/T)), without warm-up (MoCo v2).
    Cosine,
}

/// How often the learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// Once, at the start of each epoch, as the reference does.
    Epoch,
    /// At every step.
    Step,
}

/// The schedule of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Form.
    pub kind: Kind,
    /// Epochs at which [`Kind::Step`] multiplies; unused otherwise.
    pub milestones: Vec<f64>,
    /// The factor of [`Kind::Step`].
    pub factor: f64,
    /// How often the rate is set.
    pub per: Per,
}

impl Schedule {
    /// Learning rate of step `step` (from 0) of `steps_per_epoch · epochs`.
    pub fn lr(&self, base: f64, step: u64, steps_per_epoch: u64, epochs: u64) -> f64 {
        let now = match self.per {
            Per::Epoch => (step / steps_per_epoch) as f64,
            Per::Step => step as f64 / steps_per_epoch as f64,
        };
        match self.kind {
            Kind::Constant => base,
            Kind::Step => base * self.factor.powi(self.milestones.iter().filter(|&&m| now >= m).count() as i32),
            Kind::Cosine => base * 0.5 * (1.0 + (std::f64::consts::PI * now / epochs as f64).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: Kind, per: Per) -> Schedule {
        Schedule { kind, per, milestones: vec![120.0, 160.0], factor: 0.1 }
    }

    #[test]
    fn step_schedule_drops_at_the_milestones_of_the_reference() {
        let s = schedule(Kind::Step, Per::Epoch);
        let at = |epoch: u64| s.lr(0.03, epoch * 10 + 9, 10, 200);
        for (epoch, lr) in [(0, 0.03), (119, 0.03), (120, 0.003), (159, 0.003), (160, 0.0003), (199, 0.0003)] {
            assert!((at(epoch) - lr).abs() < 1e-15, "epoch {epoch}: {} instead of {lr}", at(epoch));
        }
    }

    #[test]
    fn cosine_per_epoch_is_constant_within_an_epoch_and_never_reaches_zero() {
        let s = schedule(Kind::Cosine, Per::Epoch);
        assert_eq!(s.lr(0.03, 0, 10, 200), s.lr(0.03, 9, 10, 200));
        assert!((s.lr(0.03, 1000, 10, 200) - 0.015).abs() < 1e-15);
        assert!(s.lr(0.03, 1999, 10, 200) > 0.0);
    }

    #[test]
    fn cosine_per_step_moves_every_step() {
        let s = schedule(Kind::Cosine, Per::Step);
        let expected = |i: f64| 0.003 * 0.5 * (1.0 + (std::f64::consts::PI * i / 4.0).cos());
        for i in 0..4 {
            assert!((s.lr(0.003, i, 4, 1) - expected(i as f64)).abs() < 1e-15);
        }
    }
}

//! How a head is fitted.

use crate::{Error, Result};

/// Learning rates that the sweep tries: half decades from 0.001 to 100. The reference's 30 for raw ImageNet features
/// lies inside, as does 0.1, which suits standardised ones.
pub const SWEPT_LEARNING_RATES: [f32; 11] = [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// How the learning rate falls, set once per epoch as the reference does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Schedule {
    /// `lr / 2 · (1 + cos(π · epoch / epochs))`.
    #[default]
    Cosine,
    /// × 0.1 at 60 % and at 80 % of the epochs (60 and 80 of 100 in `main_lincls.py`).
    Step,
}

impl Schedule {
    /// The learning rate of `epoch` (from 0) out of `epochs`, as a multiple of the initial one.
    pub fn factor(self, epoch: usize, epochs: usize) -> f64 {
        let passed = epoch as f64 / epochs as f64;
        match self {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * passed).cos()),
            Schedule::Step if epoch * 10 >= epochs * 8 => 0.01,
            Schedule::Step if epoch * 10 >= epochs * 6 => 0.1,
            Schedule::Step => 1.0,
        }
    }
}

/// Options of [`LinearHead::fit`](super::LinearHead::fit). The defaults are those of MoCo's linear evaluation
/// (`main_lincls.py`: SGD, momentum 0.9, no weight decay, batch 256, 100 epochs), except that the learning rate is
/// swept, the schedule is a cosine and features are standardised.
#[derive(Clone, Debug, PartialEq)]
pub struct FitOptions {
    /// Passes over the training features, at least 1.
    pub epochs: usize,
    /// Initial learning rate; 0 tries [`SWEPT_LEARNING_RATES`] and keeps the one with the best accuracy on a held-out
    /// part of the training features, then fits on all of them.
    pub learning_rate: f32,
    /// Momentum of SGD, within [0, 1).
    pub momentum: f32,
    /// L2 penalty on weights and bias, as torch's SGD applies it; 0 or more.
    pub weight_decay: f32,
    /// Features a step, at least 1; the last batch of an epoch may be smaller.
    pub batch: usize,
    /// Order of the features, initial weights and the held-out part.
    pub seed: u64,
    /// Whether features are shifted and scaled to mean 0 and deviation 1 before the fit; the transform is folded into
    /// the head, which remains one linear layer.
    pub standardise: bool,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Share of the training features held out while learning rates are compared, within (0, 0.5].
    pub held_out: f32,
}

impl Default for FitOptions {
    fn default() -> FitOptions {
        FitOptions {
            epochs: 100,
            learning_rate: 0.0,
            momentum: 0.9,
            weight_decay: 0.0,
            batch: 256,
            seed: 0,
            standardise: true,
            schedule: Schedule::Cosine,
            held_out: 0.1,
        }
    }
}

impl FitOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first option that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let wrong = |option: &str, got: f64, expected: &str| {
            Err(Error::Invalid(format!("fit option `{option}` is {got}, expected {expected}")))
        };
        let at_least_0 = |x: f32| x.is_finite() && x >= 0.0;
        if self.epochs == 0 {
            return wrong("epochs", 0.0, "at least 1");
        }
        if self.batch == 0 {
            return wrong("batch", 0.0, "at least 1");
        }
        if !at_least_0(self.learning_rate) {
            return wrong("learning_rate", self.learning_rate.into(), "a positive number, or 0 for a sweep");
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return wrong("momentum", self.momentum.into(), "a number in [0, 1)");
        }
        if !at_least_0(self.weight_decay) {
            return wrong("weight_decay", self.weight_decay.into(), "0 or more");
        }
        if !(self.held_out > 0.0 && self.held_out <= 0.5) {
            return wrong("held_out", self.held_out.into(), "a share in (0, 0.5]");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_at_1_and_fall_where_the_reference_does() {
        assert_eq!(Schedule::Cosine.factor(0, 100), 1.0);
        assert!((Schedule::Cosine.factor(50, 100) - 0.5).abs() < 1e-12);
        let step: Vec<f64> = [0, 59, 60, 79, 80, 99].map(|e| Schedule::Step.factor(e, 100)).to_vec();
        assert_eq!(step, [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]);
    }

    #[test]
    fn options_that_make_no_sense_are_named() {
        let base = FitOptions::default();
        assert!(base.validate().is_ok());
        for (options, name) in [
            (FitOptions { epochs: 0, ..base.clone() }, "epochs"),
            (FitOptions { batch: 0, ..base.clone() }, "batch"),
            (FitOptions { learning_rate: -1.0, ..base.clone() }, "learning_rate"),
            (FitOptions { learning_rate: f32::NAN, ..base.clone() }, "learning_rate"),
            (FitOptions { momentum: 1.0, ..base.clone() }, "momentum"),
            (FitOptions { weight_decay: -0.1, ..base.clone() }, "weight_decay"),
            (FitOptions { held_out: 0.0, ..base.clone() }, "held_out"),
        ] {
            assert!(options.validate().unwrap_err().to_string().contains(name), "{name}");
        }
    }
}

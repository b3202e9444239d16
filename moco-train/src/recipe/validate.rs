//! Values that make no sense, named before anything is read or computed.

use std::fmt::Display;

use super::{GroupKind, Recipe};
use crate::schedule::Kind;
use crate::{Error, Result};

/// TOML integers are signed and 64 bits long; the resolved configuration must be writable.
const MOST: u64 = i64::MAX as u64;

impl Recipe {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the first key that makes no sense, and what would.
    pub fn validate(&self) -> Result<()> {
        let (m, o, r) = (&self.method, &self.optim, &self.run);
        self.augment.validate().map_err(|e| wrong("augment", e.to_string()))?;
        // Building tells an unknown name or an impossible width; no weight is allocated.
        let graph = self.arch(3).build().map_err(|e| wrong("model", e.to_string()))?;
        let [height, width] = self.augment.size;
        graph.shapes(height, width).map_err(|e| wrong("augment.size", e.to_string()))?;
        graph.tap(&r.monitor_tap).map_err(|e| wrong("run.monitor_tap", e.to_string()))?;
        positive("method.temperature", m.temperature)?;
        at_least("method.queue", m.queue, 1)?;
        if m.queue > u32::MAX as usize {
            return Err(wrong("method.queue", format!("{} keys; at most {} are supported", m.queue, u32::MAX)));
        }
        share("method.key_momentum", m.key_momentum, true)?;
        at_least("batch_norm.count", self.batch_norm.count, 1)?;
        at_least("optim.batch", o.batch, 2)?;
        if self.batch_norm.groups != GroupKind::Whole && o.batch < 2 * self.batch_norm.count {
            let reason = format!(
                "{} groups of a batch of {} would hold fewer than 2 images each, which has no statistics; use at most {} \
                 (`--virtual-ranks`, `--bn-splits`) or a larger `--batch`",
                self.batch_norm.count,
                o.batch,
                o.batch / 2
            );
            return Err(wrong("batch_norm.count", reason));
        }
        if o.epochs == 0 || o.epochs > 1_000_000 {
            return Err(wrong("optim.epochs", format!("{} is outside 1 to 1000000", o.epochs)));
        }
        if !(o.lr.is_finite() && o.lr >= 0.0) {
            return Err(wrong("optim.lr", format!("{} is not a learning rate", o.lr)));
        }
        positive("optim.reference_lr", o.reference_lr)?;
        at_least("optim.reference_batch", o.reference_batch, 1)?;
        share("optim.momentum", o.momentum, false)?;
        if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) {
            return Err(wrong("optim.weight_decay", format!("{} is not a weight decay (0 or more)", o.weight_decay)));
        }
        if self.schedule.kind == Kind::Step {
            positive("schedule.factor", self.schedule.factor)?;
            if self.schedule.milestones.iter().any(|m| !m.is_finite() || *m < 0.0) {
                return Err(wrong("schedule.milestones", "epochs are 0 or more"));
            }
            if !self.schedule.milestones.is_sorted() {
                return Err(wrong("schedule.milestones", "epochs must be in increasing order"));
            }
        }
        for (key, value) in [
            ("run.checkpoint_every_steps", r.checkpoint_every_steps),
            ("run.checkpoint_every_secs", r.checkpoint_every_secs),
            ("run.keep_last", r.keep_last as u64),
            ("run.health_every_steps", r.health_every_steps),
            ("run.monitor_k", r.monitor_k as u64),
        ] {
            at_least(key, value, 1)?;
        }
        for (key, value) in [
            ("run.seed", r.seed),
            ("data.cache_mib", self.data.cache_mib),
            ("run.checkpoint_every_steps", r.checkpoint_every_steps),
            ("run.checkpoint_every_secs", r.checkpoint_every_secs),
        ] {
            if value > MOST {
                return Err(wrong(key, format!("{value} is larger than {MOST}")));
            }
        }
        positive("run.monitor_temperature", r.monitor_temperature)
    }
}

fn wrong(key: &str, reason: impl Into<String>) -> Error {
    Error::Recipe { key: key.to_string(), reason: reason.into() }
}

fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(wrong(key, format!("{value} must be greater than 0"))) }
}

fn at_least<T: PartialOrd + Display>(key: &str, value: T, least: T) -> Result<()> {
    if value >= least { Ok(()) } else { Err(wrong(key, format!("{value} must be at least {least}"))) }
}

/// 0 to 1; 1 itself only where a value that never moves makes sense.
fn share(key: &str, value: f64, with_one: bool) -> Result<()> {
    if (0.0..1.0).contains(&value) || (with_one && value == 1.0) {
        return Ok(());
    }
    Err(wrong(key, format!("{value} must be from 0 to {}", if with_one { "1" } else { "just below 1" })))
}

#[cfg(test)]
mod tests {
    use super::super::builtins;
    use crate::recipe::Recipe;
    use moco_image::AugmentConfig;

    #[test]
    fn builtin_recipes_are_valid_and_survive_toml() {
        for b in builtins() {
            let recipe = b.recipe().unwrap();
            assert_eq!(recipe.name, b.name);
            let text = toml::to_string(&recipe).unwrap();
            assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
        }
    }

    #[test]
    fn builtin_augmentations_are_the_presets_of_the_references() {
        let augment = |name| super::super::builtin(name).unwrap().recipe().unwrap().augment;
        assert_eq!(augment("moco-v1"), AugmentConfig::moco_v1());
        assert_eq!(augment("moco-v2"), AugmentConfig::moco_v2());
        assert_eq!(augment("cifar-demo"), AugmentConfig::cifar_demo());
    }

    #[test]
    fn every_value_of_a_builtin_recipe_is_explained() {
        for b in builtins() {
            let commented = b.toml.lines().filter(|l| l.contains('#') && l.contains('=')).count();
            let values = b.toml.lines().filter(|l| l.contains('=') && !l.trim_start().starts_with('#')).count();
            assert!(commented * 4 >= values * 3, "{}: {commented} of {values} values have a comment", b.name);
        }
    }
}

//! What decides a step, beside the weights.

use moco_engine::{BnGroups, Mode, PlanConfig, Recompute};

use crate::recipe::{GroupKind, Recipe};
use crate::{Error, Result};

/// What decides a step, beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MocoConfig {
    /// Most images in a step.
    pub batch: usize,
    /// Height and width of a view in pixels.
    pub size: [usize; 2],
    /// Divides the similarities.
    pub temperature: f64,
    /// Momentum of the key encoder.
    pub key_momentum: f64,
    /// Both views are queries; their losses are added.
    pub symmetric: bool,
    /// Leaves older keys of the query's own image out of its negatives.
    pub mask_same_image: bool,
    /// Who shares batch statistics.
    pub bn_groups: BnGroups,
    /// What the query encoder computes twice to save memory.
    pub recompute: Recompute,
}

impl MocoConfig {
    /// From a recipe.
    pub fn new(recipe: &Recipe) -> MocoConfig {
        let count = recipe.batch_norm.count;
        MocoConfig {
            batch: recipe.optim.batch,
            size: recipe.augment.size,
            temperature: recipe.method.temperature,
            key_momentum: recipe.method.key_momentum,
            symmetric: recipe.method.symmetric,
            mask_same_image: recipe.method.mask_same_image,
            bn_groups: match recipe.batch_norm.groups {
                GroupKind::Ranks if count > 1 => BnGroups::Ranks(count),
                GroupKind::Interleaved if count > 1 => BnGroups::Interleaved(count),
                _ => BnGroups::Whole,
            },
            recompute: match recipe.compute.checkpoint_activations {
                true => Recompute::Blocks,
                false => Recompute::Nothing,
            },
        }
    }

    /// The part of one of `world` processes that train together: its images, and the groups of statistics that they make.
    ///
    /// # Errors
    /// [`Error::Invalid`] where batch or groups cannot be divided among them.
    pub fn of_process(&self, world: usize) -> Result<MocoConfig> {
        let refused = |what: String| {
            Err(Error::Invalid(format!(
                "{what} cannot be divided among {world} processes; see `moco-train pretrain --help`"
            )))
        };
        let bn_groups = match self.bn_groups {
            groups if world == 1 => groups,
            BnGroups::Ranks(count) if count == world => BnGroups::Whole,
            BnGroups::Ranks(count) if count.is_multiple_of(world) && self.batch.is_multiple_of(count) => {
                BnGroups::Ranks(count / world)
            }
            groups => return refused(format!("{groups:?} groups of batch statistics of {} images", self.batch)),
        };
        if !self.batch.is_multiple_of(world) {
            return refused(format!("batches of {}", self.batch));
        }
        Ok(MocoConfig { batch: self.batch / world, bn_groups, ..self.clone() })
    }

    /// Directions of the contrast: 2 when symmetric.
    pub fn directions(&self) -> usize {
        if self.symmetric { 2 } else { 1 }
    }

    /// Fewest images of a step: every group of statistics gets two.
    pub fn least_batch(&self) -> usize {
        match self.bn_groups {
            BnGroups::Whole => 2,
            BnGroups::Ranks(groups) | BnGroups::Interleaved(groups) => 2 * groups,
        }
    }

    /// The plan of an encoder.
    pub fn plan(&self, mode: Mode) -> PlanConfig {
        let [height, width] = self.size;
        PlanConfig::new(self.batch, height, width, mode)
            .with_bn_groups(self.bn_groups)
            .with_recompute(self.recompute)
            .with_taps(&["projection"])
    }
}

//! Recipes: every hyper-parameter of a training in one TOML file, nothing inherited and nothing computed later.

mod builtin;
mod overrides;
mod validate;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::compute::ComputeRecipe;
use moco_image::{Axis, ValueRange};

use crate::data::{Channels, DataOptions, Labels, Split};
use crate::schedule::Schedule;
use crate::{Error, Result};
use moco_image::AugmentConfig;
use moco_models::arch::{ArchSpec, Projector, Stem};

pub use builtin::{BuiltIn, builtin, builtins};
pub use overrides::Overrides;

/// Input of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name, written into the card.
    pub name: String,
    /// One line on what it is.
    pub description: String,
    /// The network.
    pub model: ModelRecipe,
    /// The contrast.
    pub method: MethodRecipe,
    /// Statistics of the batch normalisations in training.
    pub batch_norm: BatchNormRecipe,
    /// From an image to a view.
    pub augment: AugmentConfig,
    /// From a folder to images.
    pub data: DataRecipe,
    /// Optimiser and length.
    pub optim: OptimRecipe,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// What a run does beside learning.
    pub run: RunRecipe,
    /// Where it computes and in which precision.
    #[serde(default)]
    pub compute: ComputeRecipe,
}

/// The network of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// torchvision's name.
    pub arch: String,
    /// First layers.
    pub stem: Stem,
    /// Multiplies every channel count.
    pub width: f64,
    /// Form of the projector.
    pub projector: ProjectorKind,
    /// Length of the embedding.
    pub dim: usize,
}

/// Form of the projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProjectorKind {
    /// One linear layer (MoCo v1).
    Linear,
    /// Two linear layers with a ReLU (MoCo v2).
    Mlp,
}

/// The contrast of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRecipe {
    /// Divides the similarities.
    pub temperature: f64,
    /// Keys in the queue.
    pub queue: usize,
    /// Momentum of the key encoder, per step.
    pub key_momentum: f64,
    /// Whether both views are queries.
    pub symmetric: bool,
    /// Whether older keys of the same image are left out of the negatives.
    pub mask_same_image: bool,
}

/// Batch statistics of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNormRecipe {
    /// How the batch is divided.
    pub groups: GroupKind,
    /// Into how many groups.
    pub count: usize,
    /// Whether the key batch is permuted before it is encoded.
    pub shuffle: bool,
}

/// How the batch is divided for batch statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// Not at all.
    Whole,
    /// Contiguous slices, as on several GPUs; running statistics from the first (DDP).
    Ranks,
    /// Image i in group i mod count, running statistics averaged (SplitBatchNorm of the CIFAR-10 demo).
    Interleaved,
}

/// Data of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Channels of the network's input.
    pub channels: Channels,
    /// Part of the data set that is trained on, where it is divided.
    pub split: Split,
    /// Shorter side in pixels to which larger images are shrunk once; 0 = never.
    pub shrink_to: usize,
    /// Which values of images of more than 8 bits become black and white.
    #[serde(default)]
    pub values: DataValues,
    /// Axis along which volumes are cut into images.
    #[serde(default)]
    pub axis: Axis,
    /// Memory for decoded images, in MiB.
    pub cache_mib: u64,
    /// Unreadable images that are replaced before the run stops.
    pub max_corrupt: usize,
}

/// A range of values, or nothing: written `auto`, for 8-bit images, which stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DataValues(pub Option<ValueRange>);

impl From<DataValues> for String {
    fn from(values: DataValues) -> String {
        values.0.map_or("auto".into(), |range| range.to_string())
    }
}

impl TryFrom<String> for DataValues {
    type Error = moco_image::Error;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        if text == "auto" { Ok(Self(None)) } else { text.parse().map(|range| Self(Some(range))) }
    }
}

/// Optimiser and length of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimRecipe {
    /// Images per step, over all virtual ranks.
    pub batch: usize,
    /// Passes over the data.
    pub epochs: u64,
    /// Learning rate before the schedule.
    pub lr: f64,
    /// Learning rate of the reference, chosen for …
    pub reference_lr: f64,
    /// … batches of this size; both are only ever used to give a hint.
    pub reference_batch: usize,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
    /// Whether the last incomplete batch of an epoch is left out.
    pub drop_last: bool,
}

/// What a run does beside learning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecipe {
    /// Seed of weights, order, augmentation and shuffling.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Seconds between checkpoints; whichever comes first.
    pub checkpoint_every_secs: u64,
    /// Newest checkpoints to keep.
    pub keep_last: usize,
    /// A checkpoint to keep for good every so many epochs; 0 = none.
    pub keep_every_epochs: u64,
    /// Steps between reports on the features.
    pub health_every_steps: u64,
    /// Epochs between kNN evaluations; 0 = never.
    pub monitor_every_epochs: u64,
    /// Features of the kNN evaluation: a tap of the network, e.g. `pooled` or `projection`.
    pub monitor_tap: String,
    /// Neighbours of the kNN evaluation.
    pub monitor_k: usize,
    /// A neighbour's weight is exp(similarity / temperature).
    pub monitor_temperature: f64,
}

impl Recipe {
    /// A built-in recipe by name, or a TOML file by path.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the key, [`Error::Io`] or [`Error::Format`] naming the file.
    pub fn open(name_or_path: &str) -> Result<Recipe> {
        Overrides::default().apply(name_or_path)
    }

    /// Reads TOML; `origin` names it in errors.
    ///
    /// # Errors
    /// [`Error::Format`] for syntax, unknown and missing keys, [`Error::Recipe`] for values that make no sense.
    pub fn parse(text: &str, origin: &Path) -> Result<Recipe> {
        let recipe: Recipe = toml::from_str(text).map_err(|e| Error::format(origin, e.to_string()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The architecture with its projector, for images of `in_channels`.
    pub fn arch(&self, in_channels: usize) -> ArchSpec {
        let dim = self.model.dim;
        ArchSpec {
            name: self.model.arch.clone(),
            stem: self.model.stem,
            in_channels,
            width: self.model.width,
            projector: match self.model.projector {
                ProjectorKind::Linear => Projector::Linear { dim },
                ProjectorKind::Mlp => Projector::Mlp { dim },
            },
        }
    }

    /// How its data set is opened.
    pub fn data_options(&self) -> DataOptions {
        DataOptions {
            channels: self.data.channels,
            split: self.data.split,
            labels: Labels::Auto,
            shrink_to: (self.data.shrink_to > 0).then_some(self.data.shrink_to),
            values: self.data.values.0,
            axis: self.data.axis,
            ..DataOptions::default()
        }
    }

    /// What the linear rule (lr ∝ batch, arXiv:1706.02677) gives for this batch, in words, where `lr` is something else.
    pub fn linear_rule_hint(&self) -> Option<String> {
        let o = &self.optim;
        let linear = o.reference_lr * o.batch as f64 / o.reference_batch as f64;
        let differs = (o.lr / linear - 1.0).abs() > 0.02;
        differs.then(|| {
            format!(
                "lr {} was chosen for batches of {}; for {} the linear rule gives {linear:.5}, and this run has {} \
                 (`--lr {linear:.5}` follows the rule)",
                o.reference_lr, o.reference_batch, o.batch, o.lr
            )
        })
    }
}

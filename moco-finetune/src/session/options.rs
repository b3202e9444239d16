//! Every choice of a training, with defaults that suit a few hundred images.

use moco_engine::compute::{DeviceChoice, Precision};
use moco_models::heads::{Fit, HeadSpec, Task};
use serde::{Deserialize, Serialize};

use super::groups::Freeze;
use super::schedule::Schedule;
use super::words::WordOrList;
use crate::augment::AugmentOptions;
use crate::loss::{DetectionLoss, SegmentationLoss};
use crate::{Error, Result};

/// Everything that decides a training beside its data, its backbone and its head. A training is a function of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Height and width of the network's input in pixels; prediction uses the same.
    pub size: [usize; 2],
    /// How images of other sizes are brought to it; see [`Fit`].
    pub fit: Fit,
    /// Images a step.
    pub batch: usize,
    /// Passes over the training data; not used where `steps` is given.
    pub epochs: u64,
    /// Steps of the whole training; 0 = as many as `epochs` make. A session that is fed batch by batch needs it.
    pub steps: u64,
    /// How parameters move.
    pub optimiser: Optimiser,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// What does not learn.
    pub freeze: Freeze,
    /// Batch normalisations of the backbone's learning part.
    pub batch_norm: BatchNorm,
    /// Groups of batch statistics, as on this many devices; 1 = the whole batch.
    pub virtual_ranks: usize,
    /// Batch statistics over all virtual ranks (synchronised batch norm).
    pub sync_batch_norm: bool,
    /// Moving average of the weights, which is what gets validated and saved: weight of the old average a step, below 1;
    /// 0 = none. The first steps t use (1 + t) / (10 + t) where that is less.
    pub average: f64,
    /// Epochs between two validations.
    pub validate_every: u64,
    /// Validations without a better result after which the training ends; 0 = never.
    pub patience: u64,
    /// What is minimised.
    pub loss: LossOptions,
    /// Weights of the classes in the loss.
    pub class_weights: ClassWeights,
    /// How training images are varied.
    pub augment: AugmentOptions,
    /// Decides the head's first weights, the order of images and every variation.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Precision of feature maps.
    pub precision: Precision,
    /// Whether blocks of the network are computed again in the backward pass: less memory, more time, the same result.
    pub checkpoint_activations: bool,
    /// Memory for features of a frozen backbone, in MiB: where the images are not varied and theirs fit, they are
    /// computed once.
    pub cache_mib: u64,
}

/// How parameters move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// The rule.
    pub kind: OptimiserKind,
    /// Learning rate of the head.
    pub lr: f64,
    /// Learning rate of the backbone's last stage, as a factor on `lr`.
    pub backbone_rate: f64,
    /// Learning rate of each stage of the backbone as a factor on that of the next one, in (0, 1].
    pub layer_decay: f64,
    /// Weight decay; not for normalisations and biases.
    pub weight_decay: f64,
    /// Momentum of SGD, first coefficient of AdamW.
    pub momentum: f64,
    /// Second coefficient of AdamW; SGD has none.
    pub beta2: f64,
    /// Longest gradient: a longer one is scaled down to it; 0 = no limit.
    pub clip: f64,
}

/// Rule of an optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserKind {
    /// Stochastic gradient descent with momentum, as `torch.optim.SGD`.
    Sgd,
    /// Adam with decoupled weight decay (arXiv:1711.05101), as `torch.optim.AdamW`, ε = 1e-8.
    AdamW,
}

/// Batch normalisations of a backbone that learns. Those of its frozen part and none of the head's are always frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNorm {
    /// Running statistics; scale and shift do not learn. For small batches.
    Frozen,
    /// Batch statistics; scale and shift learn. Running statistics follow.
    #[default]
    Trained,
}

/// Weights of classes in the loss. As text: `none`, `balanced`, or a list of numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "WordOrList", try_from = "WordOrList")]
pub enum ClassWeights {
    /// All 1.
    #[default]
    None,
    /// Inverse to how often a class occurs in the training data (pixels of it, for segmentation).
    Balanced,
    /// One a class.
    Given(Vec<f32>),
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LossOptions {
    /// Cross-entropy over the classes.
    Classify {
        /// Share of the truth that is spread over all classes, in [0, 1).
        label_smoothing: f32,
    },
    /// Binary cross-entropy of each class.
    MultiLabel {},
    /// Cross-entropy, Dice and focal loss, each with a weight.
    Segment(SegmentationLoss),
    /// Focal loss, generalised IoU and centre-ness.
    Detect(DetectionLoss),
}

impl Options {
    /// What works on a few hundred images. A backbone that was `pretrained` stays frozen under a classifier, whose
    /// features are then computed once, and learns at a tenth of the head's rate under others; a random one learns fully.
    pub fn for_head(head: &HeadSpec, pretrained: bool) -> Options {
        let whole = matches!(head.task(), Task::Classify | Task::MultiLabel);
        let frozen = whole && pretrained;
        let (size, batch, epochs) = match head.task() {
            Task::Classify | Task::MultiLabel => ([224; 2], 32, if frozen { 100 } else { 60 }),
            Task::Segment => ([256; 2], 8, 60),
            Task::Detect => ([320; 2], 8, 60),
        };
        Options {
            size,
            fit: if whole { Fit::Stretch } else { Fit::Letterbox },
            batch,
            epochs,
            steps: 0,
            optimiser: Optimiser {
                kind: OptimiserKind::AdamW,
                lr: 1e-3,
                backbone_rate: if pretrained { 0.1 } else { 1.0 },
                layer_decay: 1.0,
                weight_decay: 0.01,
                momentum: 0.9,
                beta2: 0.999,
                clip: if head.task() == Task::Detect { 10.0 } else { 0.0 },
            },
            schedule: Schedule::default(),
            freeze: if frozen { Freeze::Backbone } else { Freeze::Nothing },
            batch_norm: BatchNorm::Trained,
            virtual_ranks: 1,
            sync_batch_norm: false,
            average: 0.0,
            validate_every: 1,
            patience: 0,
            loss: match head.task() {
                Task::Classify => LossOptions::Classify { label_smoothing: 0.0 },
                Task::MultiLabel => LossOptions::MultiLabel {},
                Task::Segment => LossOptions::Segment(SegmentationLoss::default()),
                Task::Detect => LossOptions::Detect(DetectionLoss::default()),
            },
            class_weights: ClassWeights::None,
            augment: if frozen { AugmentOptions::none() } else { AugmentOptions::default() },
            seed: 0,
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            checkpoint_activations: false,
            cache_mib: 1024,
        }
    }

    /// Checks every value, alone and against the head.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the option, its value and what was expected.
    pub fn validate(&self, head: &HeadSpec) -> Result<()> {
        let wrong = |name: &str, reason: String| Err(Error::option(name, reason));
        head.validate()?;
        if self.size.iter().any(|&side| !(8..=8192).contains(&side)) {
            return wrong("size", format!("{:?}: expected height and width within 8–8192 pixels", self.size));
        }
        if self.batch == 0 || self.batch > 65536 {
            return wrong("batch", format!("{}: expected 1–65536 images", self.batch));
        }
        if self.epochs == 0 && self.steps == 0 {
            return wrong("epochs", "0, and steps is 0 as well: there is nothing to do".into());
        }
        if self.virtual_ranks == 0 || self.virtual_ranks > self.batch {
            return wrong("virtual_ranks", format!("{}: expected 1 to batch = {}", self.virtual_ranks, self.batch));
        }
        if !(0.0..1.0).contains(&self.average) {
            return wrong("average", format!("{}: expected 0 ≤ … < 1", self.average));
        }
        if self.validate_every == 0 {
            return wrong("validate_every", "0: expected at least 1 epoch".into());
        }
        self.optimiser.validate()?;
        self.schedule.validate()?;
        self.augment.validate()?;
        self.check_fit(head)?;
        self.check_loss(head)
    }

    fn check_fit(&self, head: &HeadSpec) -> Result<()> {
        match (self.fit, head.task()) {
            (Fit::Tiles { .. }, Task::Classify | Task::MultiLabel) => {
                Err(Error::option("fit", "tiles: a classifier looks at the whole image; expected stretch or letterbox"))
            }
            (Fit::Tiles { overlap }, _) if 2 * overlap > self.size[0].min(self.size[1]) => Err(Error::option(
                "fit",
                format!("tiles overlap by {overlap} pixels: expected at most half of size {:?}", self.size),
            )),
            (Fit::Native, _) => {
                Err(Error::option("fit", "native: training needs one size; expected letterbox, stretch or tiles"))
            }
            _ => Ok(()),
        }
    }

    fn check_loss(&self, head: &HeadSpec) -> Result<()> {
        match (&self.loss, head.task()) {
            (LossOptions::Classify { label_smoothing }, Task::Classify) => {
                if !(0.0..1.0).contains(label_smoothing) {
                    return Err(Error::option(
                        "loss.label_smoothing",
                        format!("{label_smoothing}: expected 0 ≤ … < 1"),
                    ));
                }
            }
            (LossOptions::MultiLabel {}, Task::MultiLabel) => {}
            (LossOptions::Segment(loss), Task::Segment) => {
                if !loss.class_weights.is_empty() {
                    return Err(Error::option("loss.class_weights", "give the weights as class_weights, beside loss"));
                }
                loss.validate(head.classes())?;
            }
            (LossOptions::Detect(loss), Task::Detect) => loss.validate()?,
            _ => {
                return Err(Error::option(
                    "loss.task",
                    format!("the head's task is {:?}, the loss has another", head.task()),
                ));
            }
        }
        match &self.class_weights {
            ClassWeights::None => {}
            _ if head.task() == Task::Detect => {
                return Err(Error::option(
                    "class_weights",
                    "detection has none: its focal loss weights examples itself",
                ));
            }
            ClassWeights::Balanced => {}
            ClassWeights::Given(weights) => {
                if weights.len() != head.classes() {
                    return Err(Error::option(
                        "class_weights",
                        format!("{} weights for {} classes", weights.len(), head.classes()),
                    ));
                }
                if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().all(|w| *w == 0.0) {
                    return Err(Error::option(
                        "class_weights",
                        format!("{weights:?}: expected weights ≥ 0, not all 0"),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Optimiser {
    fn validate(&self) -> Result<()> {
        let above_0 = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::option(&format!("optimiser.{name}"), format!("{value}: expected more than 0"))),
        };
        let at_least_0 = |name: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::option(&format!("optimiser.{name}"), format!("{value}: expected 0 or more"))),
        };
        let below_1 = |name: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::option(&format!("optimiser.{name}"), format!("{value}: expected 0 ≤ … < 1"))),
        };
        above_0("lr", self.lr)?;
        above_0("backbone_rate", self.backbone_rate)?;
        above_0("layer_decay", self.layer_decay)?;
        if self.layer_decay > 1.0 {
            return Err(Error::option("optimiser.layer_decay", format!("{}: expected at most 1", self.layer_decay)));
        }
        at_least_0("weight_decay", self.weight_decay)?;
        at_least_0("clip", self.clip)?;
        below_1("momentum", self.momentum)?;
        below_1("beta2", self.beta2)
    }
}

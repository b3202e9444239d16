//! The options of a fine-tuning as flags.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use moco_finetune::session::Options;
use moco_models::heads::HeadSpec;

use crate::cli::overrides::parse_size;

/// A file of options, and a flag for each that is changed often. What is not said has a default that suits the task and a few
/// hundred images.
#[derive(clap::Args)]
#[command(next_help_heading = "Training")]
pub struct OptionArgs {
    /// TOML file of options; a run writes its own as options.toml
    #[arg(long, value_name = "FILE")]
    options: Option<PathBuf>,

    /// Changes any option by its key, e.g. `--set optimiser.beta2=0.99`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Size of the network's input in pixels: 224 or 128x96 (height × width)
    #[arg(long)]
    size: Option<String>,

    /// How images of other sizes get there: stretch, letterbox, cover:PIXELS of the shorter side, tiles:PIXELS that windows
    /// share
    #[arg(long)]
    fit: Option<String>,

    /// Images a step
    #[arg(long)]
    batch: Option<u64>,

    /// Passes over the training images
    #[arg(long)]
    epochs: Option<u64>,

    /// Learning rate of the head
    #[arg(long)]
    lr: Option<f64>,

    /// Learning rate of the backbone's last stage, as a factor on --lr
    #[arg(long, value_name = "FACTOR")]
    backbone_rate: Option<f64>,

    /// Learning rate of each stage below, as a factor on the one above
    #[arg(long, value_name = "FACTOR")]
    layer_decay: Option<f64>,

    /// Weight decay; not for normalisations and biases
    #[arg(long)]
    weight_decay: Option<f64>,

    /// adamw or sgd
    #[arg(long)]
    optimiser: Option<String>,

    /// What does not learn: nothing, stages:1 (the stem) to stages:4 (up to layer3), backbone
    #[arg(long)]
    freeze: Option<String>,

    /// Batch normalisations of the backbone: trained or frozen
    #[arg(long)]
    batch_norm: Option<String>,

    /// Batch statistics over slices of the batch, as on this many GPUs
    #[arg(long)]
    virtual_ranks: Option<u64>,

    /// Weight of the old value in a moving average of the weights, e.g. 0.99; 0 = none
    #[arg(long)]
    average: Option<f64>,

    /// Ends after this many validations without a better result; 0 = never
    #[arg(long)]
    patience: Option<u64>,

    /// How images are varied: none, light, default or microscopy; single values by --set augment.hflip=0.5
    #[arg(long)]
    augment: Option<String>,

    /// Loss of a segmentation: ce, dice, focal and sums such as ce+dice or 0.5*ce+focal
    #[arg(long)]
    loss: Option<String>,

    /// Weights of the classes in the loss: none, balanced, or [1, 2.5, 1]
    #[arg(long)]
    class_weights: Option<String>,

    /// Decides the head's first weights, the order of images and every variation
    #[arg(long)]
    seed: Option<u64>,
}

impl OptionArgs {
    /// The options for a head: its defaults, then the file, then the flags, then `--set`.
    pub fn resolve(&self, head: &HeadSpec, pretrained: bool) -> Result<Options> {
        let mut options = Options::for_head(head, pretrained);
        if let Some(path) = &self.options {
            let shown = || format!("--options {}", path.display());
            let text = std::fs::read_to_string(path).with_context(shown)?;
            options = options.with_toml(&text).with_context(shown)?;
        }
        if let Some(size) = &self.size {
            let size = parse_size("--size", size)?;
            options = options.with_word("size", &format!("{size:?}"))?;
        }
        let number = |value: Option<f64>| value.map(|v| v.to_string());
        let count = |value: Option<u64>| value.map(|v| v.to_string());
        for (flag, key, value) in [
            ("--fit", "fit", self.fit.clone()),
            ("--batch", "batch", count(self.batch)),
            ("--epochs", "epochs", count(self.epochs)),
            ("--lr", "optimiser.lr", number(self.lr)),
            ("--backbone-rate", "optimiser.backbone_rate", number(self.backbone_rate)),
            ("--layer-decay", "optimiser.layer_decay", number(self.layer_decay)),
            ("--weight-decay", "optimiser.weight_decay", number(self.weight_decay)),
            ("--optimiser", "optimiser", self.optimiser.clone()),
            ("--freeze", "freeze", self.freeze.clone()),
            ("--batch-norm", "batch_norm", self.batch_norm.clone()),
            ("--virtual-ranks", "virtual_ranks", count(self.virtual_ranks)),
            ("--average", "average", number(self.average)),
            ("--patience", "patience", count(self.patience)),
            ("--augment", "augment", self.augment.clone()),
            ("--loss", "loss", self.loss.clone()),
            ("--class-weights", "class_weights", self.class_weights.clone()),
            ("--seed", "seed", count(self.seed)),
        ] {
            if let Some(value) = value {
                options = options.with_word(key, &value).with_context(|| format!("{flag} {value}"))?;
            }
        }
        for assignment in &self.set {
            let Some((key, value)) = assignment.split_once('=') else {
                bail!("--set {assignment}: expected KEY=VALUE, for example --set optimiser.lr=0.001");
            };
            options = options.with_word(key.trim(), value).with_context(|| format!("--set {assignment}"))?;
        }
        options.validate(head)?;
        Ok(options)
    }

    /// The seed, as far as it is known without the other options.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }
}

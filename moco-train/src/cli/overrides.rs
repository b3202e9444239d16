//! The recipe and its changes as flags.

use anyhow::{Result, bail};
use moco_train::recipe::{Overrides, Recipe};

/// Choice of a recipe, and a flag for each of its values that is changed often.
#[derive(clap::Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// moco-v1, moco-v2, cifar-demo, or the path of your own TOML file (`moco-train recipes NAME` prints one)
    #[arg(long, default_value = "moco-v2", value_name = "NAME|FILE")]
    pub recipe: String,

    /// Changes any value by its key in the recipe, e.g. `--set augment.blur_p=0.3`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Network: resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2, resnext50_32x4d, …
    #[arg(long)]
    pub arch: Option<String>,

    /// First layers: `imagenet` (7×7 stride 2, pooling) or `cifar` (3×3 stride 1) for images of about 32 pixels
    #[arg(long)]
    pub stem: Option<String>,

    /// Multiplies every channel count of the network
    #[arg(long)]
    pub width: Option<f64>,

    /// Projector: `linear` (v1) or `mlp` (v2)
    #[arg(long)]
    pub projector: Option<String>,

    /// Length of the embedding
    #[arg(long)]
    pub dim: Option<i64>,

    /// Temperature of the contrast
    #[arg(long)]
    pub temperature: Option<f64>,

    /// Keys in the queue: any number; below the number of images
    #[arg(long)]
    pub queue: Option<i64>,

    /// Momentum of the key encoder
    #[arg(long)]
    pub key_momentum: Option<f64>,

    /// Both views are queries
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub symmetric: Option<bool>,

    /// Older keys of the same image are no negatives; for queues larger than the set
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub mask_same_image: Option<bool>,

    /// Batch statistics over slices of the batch, as on this many GPUs (shuffling BN); 1 = whole batch
    #[arg(long, conflicts_with = "bn_splits")]
    pub virtual_ranks: Option<i64>,

    /// Batch statistics over interleaved groups, as the CIFAR-10 demo's SplitBatchNorm
    #[arg(long)]
    pub bn_splits: Option<i64>,

    /// Permutes the key batch before it is encoded
    #[arg(long, value_name = "BOOL")]
    pub shuffle_bn: Option<bool>,

    /// Size of a view in pixels: 224 or 128x96 (height × width)
    #[arg(long)]
    pub size: Option<String>,

    /// Smallest share of the image's area that a crop takes
    #[arg(long)]
    pub crop_min: Option<f64>,

    /// Channels of the network's input: auto, rgb or grey
    #[arg(long)]
    pub channels: Option<String>,

    /// Part of a divided data set: train, test or all
    #[arg(long)]
    pub split: Option<String>,

    /// Shrinks larger images once to this shorter side, to fit the cache; 0 = never
    #[arg(long)]
    pub shrink_to: Option<i64>,

    /// Which values of images above 8 bits become black and white: full (all that their bits hold), file (the window a
    /// DICOM file suggests), window:-160,240 or center:40,width:400 (in the file's units, e.g. HU), min-max,
    /// percentile:1,99
    #[arg(long, value_name = "RANGE")]
    pub values: Option<String>,

    /// Axis along which volumes are cut into images: x, y or z
    #[arg(long)]
    pub axis: Option<String>,

    /// Memory for decoded images, in MiB
    #[arg(long)]
    pub cache_mib: Option<i64>,

    /// Unreadable images that are replaced before the run stops
    #[arg(long)]
    pub max_corrupt: Option<i64>,

    /// Images a step
    #[arg(long)]
    pub batch: Option<i64>,

    /// Passes over the data
    #[arg(long)]
    pub epochs: Option<i64>,

    /// Learning rate; change it with the batch (linear rule)
    #[arg(long)]
    pub lr: Option<f64>,

    /// Momentum of SGD
    #[arg(long)]
    pub momentum: Option<f64>,

    /// Weight decay, on every parameter as in the reference
    #[arg(long)]
    pub weight_decay: Option<f64>,

    /// Leaves out the last incomplete batch of an epoch
    #[arg(long, value_name = "BOOL")]
    pub drop_last: Option<bool>,

    /// Learning rate over time: constant, step or cosine
    #[arg(long)]
    pub schedule: Option<String>,

    /// Epochs at which the step schedule multiplies by its factor, e.g. 120,160
    #[arg(long, value_delimiter = ',')]
    pub milestones: Option<Vec<f64>>,

    /// Seed of weights, order, augmentation and shuffling
    #[arg(long)]
    pub seed: Option<i64>,

    /// Steps between checkpoints
    #[arg(long)]
    pub checkpoint_every_steps: Option<i64>,

    /// Seconds between checkpoints
    #[arg(long)]
    pub checkpoint_every_secs: Option<i64>,

    /// Newest checkpoints to keep
    #[arg(long)]
    pub keep_last: Option<i64>,

    /// Checkpoints to keep for good, in epochs; 0 = none
    #[arg(long)]
    pub keep_every_epochs: Option<i64>,

    /// Steps between reports on the features
    #[arg(long)]
    pub health_every_steps: Option<i64>,

    /// Computes the inside of residual blocks again in the backward pass: less memory, more time, the same result
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub checkpoint_activations: Option<bool>,

    /// Whether a GPU makes the views of decoded images itself; the CPU makes the same
    #[arg(long, value_name = "BOOL")]
    pub augment_on_device: Option<bool>,

    /// Epochs between kNN evaluations, when there are labels; 0 = never
    #[arg(long)]
    pub monitor_every_epochs: Option<i64>,
}

impl RecipeArgs {
    /// The recipe with its changes; `--set` comes last and wins.
    pub fn resolve(&self) -> Result<Recipe> {
        let mut o = Overrides::default();
        let texts = [
            ("model.arch", &self.arch),
            ("model.stem", &self.stem),
            ("model.projector", &self.projector),
            ("data.channels", &self.channels),
            ("data.split", &self.split),
            ("data.values", &self.values),
            ("data.axis", &self.axis),
            ("schedule.kind", &self.schedule),
        ];
        let numbers = [
            ("model.width", self.width),
            ("method.temperature", self.temperature),
            ("method.key_momentum", self.key_momentum),
            ("optim.lr", self.lr),
            ("optim.momentum", self.momentum),
            ("optim.weight_decay", self.weight_decay),
        ];
        let counts = [
            ("model.dim", self.dim),
            ("method.queue", self.queue),
            ("data.shrink_to", self.shrink_to),
            ("data.cache_mib", self.cache_mib),
            ("data.max_corrupt", self.max_corrupt),
            ("optim.batch", self.batch),
            ("optim.epochs", self.epochs),
            ("run.seed", self.seed),
            ("run.checkpoint_every_steps", self.checkpoint_every_steps),
            ("run.checkpoint_every_secs", self.checkpoint_every_secs),
            ("run.keep_last", self.keep_last),
            ("run.keep_every_epochs", self.keep_every_epochs),
            ("run.health_every_steps", self.health_every_steps),
            ("run.monitor_every_epochs", self.monitor_every_epochs),
        ];
        let flags = [
            ("method.symmetric", self.symmetric),
            ("method.mask_same_image", self.mask_same_image),
            ("batch_norm.shuffle", self.shuffle_bn),
            ("optim.drop_last", self.drop_last),
            ("compute.checkpoint_activations", self.checkpoint_activations),
            ("compute.augment_on_device", self.augment_on_device),
        ];
        texts.into_iter().for_each(|(key, v)| v.iter().for_each(|v| o.set(key, v.clone())));
        numbers.into_iter().for_each(|(key, v)| v.into_iter().for_each(|v| o.set(key, v)));
        counts.into_iter().for_each(|(key, v)| v.into_iter().for_each(|v| o.set(key, v)));
        flags.into_iter().for_each(|(key, v)| v.into_iter().for_each(|v| o.set(key, v)));
        for (groups, count) in [("ranks", self.virtual_ranks), ("interleaved", self.bn_splits)] {
            if let Some(count) = count {
                o.set("batch_norm.groups", groups);
                o.set("batch_norm.count", count);
            }
        }
        if let Some(milestones) = &self.milestones {
            o.set("schedule.milestones", milestones.clone());
        }
        if let Some(size) = &self.size {
            let [height, width] = parse_size("--size", size)?;
            o.set("augment.size", vec![height, width]);
        }
        if let Some(least) = self.crop_min {
            o.set("augment.scale", vec![least, 1.0]);
        }
        for assignment in &self.set {
            o.set_text(assignment)?;
        }
        Ok(o.apply(&self.recipe)?)
    }
}

/// `224` or `128x96`, as `flag` gives it.
pub fn parse_size(flag: &str, text: &str) -> Result<[i64; 2]> {
    let sides: Option<Vec<i64>> = text.split(['x', '×']).map(|s| s.trim().parse().ok().filter(|n| *n > 0)).collect();
    match sides.as_deref() {
        Some([side]) => Ok([*side, *side]),
        Some([height, width]) => Ok([*height, *width]),
        _ => bail!("{flag} {text}: expected a number of pixels such as 224, or height and width such as 128x96"),
    }
}

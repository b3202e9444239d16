//! `config.toml`: everything that a run was started with, resolved, so that it can be repeated.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use moco_image::{ChannelMismatch, ChannelOrder, PreprocessRule, ResizeRule, Step, ValueRange};
use moco_models::arch::Stem;
use serde::{Deserialize, Serialize};

use crate::data::{Channels, Dataset, DatasetKind};
use crate::recipe::Recipe;
use crate::{Error, Result};

/// Everything that a run was started with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Program and version that started the run.
    pub tool_version: String,
    /// Whether the result is also written with its projector.
    pub keep_projector: bool,
    /// Where the images are.
    pub source: Source,
    /// The recipe with all overrides, and with what the data decided.
    pub recipe: Recipe,
}

/// Where the images are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The data set.
    pub data: PathBuf,
    /// Number of its images when the run was started.
    pub images: usize,
    /// Channels of its images, and of the network's input.
    pub channels: usize,
    /// Bits a value of its images; 32 for floats.
    #[serde(default = "eight")]
    pub bit_depth: u8,
    /// Labelled images for the kNN evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_data: Option<PathBuf>,
}

impl RunConfig {
    /// Fits a recipe to a data set. What changes is said in sentences.
    ///
    /// # Errors
    /// [`Error::Recipe`] where the recipe cannot be meant for these images.
    pub fn resolve(
        recipe: &Recipe,
        data: &Path,
        dataset: &Dataset,
        monitor_data: Option<&Path>,
    ) -> Result<(RunConfig, Vec<String>)> {
        let mut recipe = recipe.clone();
        let mut notes = vec![];
        let channels = dataset.channels();
        check_depth(&recipe, dataset)?;
        recipe.data.channels = if channels == 1 { Channels::Grey } else { Channels::Rgb };
        if channels == 1 {
            adapt_to_grey(&mut recipe, &mut notes);
        }
        let expected = recipe.augment.mean.len();
        if expected != channels {
            let key = "augment.mean".into();
            let reason =
                format!("{expected} channels, and the images have {channels}; give mean and std of {channels}");
            return Err(Error::Recipe { key, reason });
        }
        recipe.validate()?;
        let source = Source {
            data: absolute(data)?,
            images: dataset.len(),
            channels,
            bit_depth: dataset.bit_depth(),
            monitor_data: monitor_data.map(absolute).transpose()?,
        };
        Ok((RunConfig { tool_version: tool_version(), keep_projector: false, source, recipe }, notes))
    }

    /// Reads `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Recipe`].
    pub fn read(path: &Path) -> Result<RunConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: RunConfig = toml::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        config.recipe.validate()?;
        Ok(config)
    }

    /// As it is written to `config.toml`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Invalid(format!("the configuration cannot be written as TOML: {e}")))
    }

    /// What to do about a queue that holds more keys than there are images, in words.
    pub fn queue_hint(&self) -> Option<String> {
        let (queue, images) = (self.recipe.method.queue, self.source.images);
        (queue > images && !self.recipe.method.mask_same_image).then(|| {
            format!(
                "the queue of {queue} keys is larger than the set of {images} images, so that images become their own \
                 negatives: use `--queue {}` or `--mask-same-image`",
                (images / 2).max(1)
            )
        })
    }

    /// The evaluation transform that belongs to the recipe's views: the centre of the image at the size of a view.
    /// Networks for small images see the whole image, others 224/256 of it as is usual.
    pub fn preprocess(&self) -> PreprocessRule {
        let augment = &self.recipe.augment;
        let [height, width] = augment.size;
        let whole = self.recipe.model.stem == Stem::Cifar;
        let shorter = height.min(width);
        let side = if whole { shorter } else { (shorter * 256).div_ceil(224) };
        let grey = self.source.channels == 1;
        PreprocessRule {
            channels: self.source.channels,
            bit_depth: self.source.bit_depth,
            values: self.recipe.data.values.0.unwrap_or(ValueRange::Full),
            other_depths: None,
            channel_order: if grey { ChannelOrder::Grey } else { ChannelOrder::Rgb },
            on_mismatch: if grey { ChannelMismatch::Error } else { ChannelMismatch::ReplicateGrey },
            resize: if height == width { ResizeRule::ShorterSide(side) } else { ResizeRule::Exact { height, width } },
            crop: Some([height, width]),
            filter: augment.filter,
            mean: augment.mean.clone(),
            std: augment.std.clone(),
        }
    }
}

/// Name and version of this program.
pub fn tool_version() -> String {
    format!("moco-train {}", env!("CARGO_PKG_VERSION"))
}

/// What a data set is called in messages.
pub fn kind_in_words(kind: DatasetKind) -> &'static str {
    match kind {
        DatasetKind::ClassFolders => "class folders",
        DatasetKind::Files => "image files without labels",
        DatasetKind::Cifar10 => "CIFAR-10 binary files",
        DatasetKind::Cifar100 => "CIFAR-100 binary files",
        DatasetKind::Idx => "IDX files",
    }
}

/// One channel: PIL's luma of mean and std, and no operation that only means something in colour.
fn adapt_to_grey(recipe: &mut Recipe, notes: &mut Vec<String>) {
    const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
    let augment = &mut recipe.augment;
    if let ([r, g, b], [sr, sg, sb]) = (&augment.mean[..], &augment.std[..]) {
        let luma = |x: [f32; 3]| x.iter().zip(LUMA).map(|(x, w)| x * w).sum::<f32>();
        let (mean, std) = (luma([*r, *g, *b]), luma([*sr, *sg, *sb]));
        notes.push(format!(
            "the images are grey: the network reads 1 channel; mean and std are the luma of the recipe's, {mean:.4} and \
             {std:.4} (override with `--set augment.mean=[…] --set augment.std=[…]`)"
        ));
        (augment.mean, augment.std) = (vec![mean], vec![std]);
    }
    let has_colour = augment.order.contains(&Step::Grayscale) || augment.saturation > 0.0 || augment.hue > 0.0;
    if has_colour {
        augment.order.retain(|s| *s != Step::Grayscale);
        (augment.saturation, augment.hue, augment.grayscale_p) = (0.0, 0.0, 0.0);
        notes.push(
            "the images are grey: saturation, hue and random grey are left out of the augmentation; brightness, \
             contrast, blur, crop and flip stay"
                .into(),
        );
    }
}

/// Images above 8 bits need a range; a full range needs images of one depth.
fn check_depth(recipe: &Recipe, dataset: &Dataset) -> Result<()> {
    let wrong = |reason: String| Err(Error::Recipe { key: "data.values".into(), reason });
    let depths: BTreeSet<u8> = dataset.kinds().iter().map(|(kind, _)| kind.bit_depth).collect();
    let found: Vec<String> =
        dataset.kinds().iter().map(|(kind, images)| format!("{images} {} of {}", kind.format, kind.depth())).collect();
    let found = found.join(", ");
    match recipe.data.values.0 {
        None if depths.iter().any(|&bits| bits > 8) => wrong(format!(
            "the images are {found}; say which values become black and white: `--values window:-160,240` in the files' \
             units, `file` for the window each suggests, `full`, `min-max` or `percentile:1,99`"
        )),
        Some(ValueRange::Full) if depths.contains(&32) => wrong(format!(
            "`full`, but floats have no full range ({found}): give e.g. `--values window:0,1` or `min-max`"
        )),
        Some(ValueRange::Full) if depths.len() > 1 => wrong(format!(
            "`full` means another scale at each depth, and the images are {found}: give a window in the files' units, \
             `min-max` or `percentile:1,99`, or train on images of one depth"
        )),
        _ => Ok(()),
    }
}

fn eight() -> u8 {
    8
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path))
}

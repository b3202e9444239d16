//! Which labelled images are learnt from, as flags and in a run's file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use moco_finetune::data::{DataOptions, LabelledData, MaskMeaning, VocCoordinates, open, split, take};
use moco_finetune::task::Task;
use moco_image::ValueRange;
use serde::{Deserialize, Serialize};

/// Flags about labelled images.
#[derive(clap::Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Labelled images: folders of classes, a CSV table, images and masks, Pascal VOC or COCO; with `train` and `val` (or
    /// `test`) inside, the latter is held out
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    #[command(flatten)]
    pub reading: ReadingArgs,

    /// Share of the images that is held out where the data have no part for it, drawn evenly over the classes; 0 = none,
    /// then the last weights are the result
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    pub validation: f64,

    /// Share of the labelled images to learn from, drawn evenly over the classes: what would a tenth have taught?
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    pub label_fraction: f64,

    /// Channels of the network's input, 1 or 3; a backbone of other channels is adapted
    #[arg(long)]
    pub channels: Option<usize>,
}

/// Flags about how labelled images are read.
#[derive(clap::Args)]
pub struct ReadingArgs {
    /// Folder of the images below --data, where its name does not tell
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,

    /// Folder of masks or XML files, or JSON or CSV file, below --data, where its name does not tell
    #[arg(long, value_name = "PATH")]
    annotations: Option<PathBuf>,

    /// What the values of masks mean: auto, index, binary, foreground (all but 0), threshold:128
    #[arg(long, default_value = "auto")]
    masks: String,

    /// How VOC files count pixels: from-one, or edges
    #[arg(long, default_value = "from-one")]
    voc_coordinates: String,

    /// Which values of images above 8 bits become black and white: full, file, window:-160,240, center:40,width:400,
    /// min-max or percentile:1,99; without it such images are refused
    #[arg(long, value_name = "RANGE")]
    values: Option<ValueRange>,
}

impl ReadingArgs {
    /// As the data's reader takes it.
    pub fn options(&self, channels: Option<usize>, classes: &[String]) -> Result<DataOptions> {
        let masks: MaskMeaning =
            self.masks.clone().try_into().map_err(|e| anyhow::anyhow!("--masks {}: {e}", self.masks))?;
        let voc_coordinates = match self.voc_coordinates.as_str() {
            "from-one" => VocCoordinates::FromOne,
            "edges" => VocCoordinates::Edges,
            other => bail!("--voc-coordinates {other}: expected from-one or edges"),
        };
        Ok(DataOptions {
            // Other numbers of channels are whatever the files hold.
            channels: channels.filter(|c| matches!(c, 1 | 3)),
            values: self.values,
            classes: classes.to_vec(),
            images: self.images.clone(),
            annotations: self.annotations.clone(),
            masks,
            voc_coordinates,
            ..DataOptions::default()
        })
    }
}

/// Everything that a run was started with, but the options of its training, which its checkpoint holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Program and version that started the run.
    pub tool_version: String,
    /// What the model answers.
    pub task: Task,
    /// What it started from.
    pub backbone: String,
    /// What it learns from.
    pub data: DataConfig,
}

/// Where labelled images are and which of them are taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The folder or file.
    pub path: PathBuf,
    /// Share that is held out where the data have no part for it.
    pub validation: f64,
    /// Share of the labelled images that is learnt from.
    pub label_fraction: f64,
    /// How they are read.
    pub options: DataOptions,
}

/// The two parts of a data set.
pub struct Parts {
    /// What is learnt from.
    pub train: Arc<dyn LabelledData>,
    /// What is held out.
    pub validation: Option<Arc<dyn LabelledData>>,
    /// What was put right or left out.
    pub notes: Vec<String>,
}

/// Decides which images are held out and which labels are taken: the same in every run, so that runs can be compared.
const PART_SEED: u64 = 0;

impl DataArgs {
    /// What is written into the run's file.
    pub fn config(&self, task: Task, channels: Option<usize>, backbone: String) -> Result<Config> {
        for (name, share, whole) in
            [("--validation", self.validation, false), ("--label-fraction", self.label_fraction, true)]
        {
            if !(0.0..=1.0).contains(&share) || (share == 1.0 && !whole) || (share == 0.0 && whole) {
                bail!("{name} {share}: expected a share of the images between 0 and 1");
            }
        }
        let path = std::path::absolute(&self.data).with_context(|| format!("--data {}", self.data.display()))?;
        let options = self.reading.options(self.channels.or(channels), &[])?;
        let data = DataConfig { path, validation: self.validation, label_fraction: self.label_fraction, options };
        Ok(Config { tool_version: moco_train::run::tool_version(), task, backbone, data })
    }
}

impl Config {
    /// Opens the data and takes them apart.
    pub fn open(&self) -> Result<Parts> {
        let DataConfig { path, validation, label_fraction, options } = &self.data;
        let opened = open(path, self.task, options).with_context(|| format!("--data {}", path.display()))?;
        let (mut train, mut held_out) = (opened.train, opened.validation);
        if held_out.is_none() && *validation > 0.0 {
            let (rest, part) = split(train, *validation, PART_SEED)?;
            train = Arc::new(rest);
            held_out = Some(Arc::new(part));
        }
        if *label_fraction < 1.0 {
            train = Arc::new(take(train, *label_fraction, PART_SEED)?);
        }
        let mut notes = opened.notes;
        notes.push(format!(
            "{} ({}): {} images to learn from, {} held out, classes {}",
            path.display(),
            opened.layout,
            train.len(),
            held_out.as_ref().map_or(0, |data| data.len()),
            train.classes().join(", ")
        ));
        Ok(Parts { train, validation: held_out, notes })
    }

    /// Reads the run's file.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

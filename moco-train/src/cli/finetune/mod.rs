//! `moco-train finetune`: a head on a backbone, with labels.

mod data;
mod log;
mod options;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use moco_finetune::data::layouts_in_words;
use moco_finetune::model::Model;
use moco_finetune::session::{Session, Start};
use moco_finetune::task::Task;
use moco_hub::open_on_terminal;
use moco_models::arch::{ArchSpec, Stem};
use moco_models::heads::HeadSpec;
use moco_models::weights::is_model;

use super::compute::ComputeArgs;
use data::DataArgs;
pub use data::ReadingArgs;
pub use log::table;
use options::OptionArgs;
pub use run::{CONFIG, resume};

/// Trains a classifier, a segmenter or a detector on a backbone
///
/// Reads folders of classes or a CSV table (classify), folders of images and masks (segment), Pascal VOC or COCO (detect).
/// Writes the run folder: finetune.toml, options.toml, metrics.jsonl, TensorBoard events, a checkpoint and, at the end, model.safetensors:
/// backbone and head in one file, with its README and a report as a web page. It may be stopped or killed at any time and goes on with
/// `moco-train resume`. What the model answers is shown by `moco-train predict` and measured by `moco-train eval model`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true, args_override_self = true, after_help = EXAMPLES, after_long_help = long_help())]
pub struct Args {
    /// What the model shall answer
    #[arg(value_enum)]
    task: Answer,

    /// What to start from: a backbone's file, a run folder, hf://owner/name[@revision][/file], a model of an earlier
    /// fine-tuning, or `random`
    #[arg(long, value_name = "PLACE|random")]
    backbone: PathBuf,

    /// Folder of the run; must not exist yet
    #[arg(long, value_name = "RUN")]
    out: PathBuf,

    /// Network of a random start
    #[arg(long, default_value = "resnet18")]
    arch: String,

    /// Multiplies every channel count of a random start
    #[arg(long, default_value_t = 1.0)]
    width: f64,

    /// First layers of a random start: `imagenet` (7×7 stride 2, pooling) or `cifar` (3×3 stride 1)
    #[arg(long, default_value = "imagenet")]
    stem: String,

    /// The head. classify: linear, mlp:512,256. segment: fpn, fpn:128, unet, unet:32. detect: fcos,
    /// fcos:width=96,levels=3-5
    #[arg(long, default_value = "")]
    head: String,

    /// Prints errors and the end only
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    options: OptionArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Task of a fine-tuning, as a person names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Answer {
    /// Which class an image is of, or which classes
    Classify,
    /// Which class each pixel is of
    Segment,
    /// Where objects are, in boxes, and which class each is of
    Detect,
}

const EXAMPLES: &str = "\
Examples:
  Classes on frozen features, in seconds:
    moco-train finetune classify --data groceries --backbone runs/first --out runs/classes
  All of the network, from a tenth of the labels:
    moco-train finetune classify --data groceries --backbone runs/first --freeze nothing --label-fraction 0.1 --out runs/tenth
  Nuclei, in windows of 256 pixels of large images:
    moco-train finetune segment --data nuclei --backbone runs/first --head unet --fit tiles:32 --size 256 --out runs/nuclei
  Blood cells, and what a random start would have reached:
    moco-train finetune detect --data cells --backbone runs/first --size 320 --epochs 60 --out runs/cells
    moco-train finetune detect --data cells --backbone random --size 320 --epochs 60 --out runs/cells-random";

/// The examples, and how data is laid out.
fn long_help() -> String {
    let layouts = [(Task::Classify, "classify"), (Task::Segment, "segment"), (Task::Detect, "detect")];
    let texts = layouts.map(|(task, name)| format!("Data for {name}\n\n{}", layouts_in_words(task)));
    format!("{EXAMPLES}\n\n{}", texts.join("\n\n"))
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    args.compute.prepare()?;
    moco_train::run::RunFolder::check_free(&args.out)?;
    let task = match args.task {
        Answer::Classify => Task::Classify,
        Answer::Segment => Task::Segment,
        Answer::Detect => Task::Detect,
    };
    let start = args.start()?;
    let channels = start.as_ref().map(|start| start.card().preprocess.channels);
    let mut config = args.data.config(task, channels, args.backbone.display().to_string())?;
    let parts = config.open()?;
    let say = |note: &String| {
        if !args.quiet {
            eprintln!("note: {note}");
        }
    };
    parts.notes.iter().for_each(say);
    if parts.train.multi_label() {
        config.task = Task::MultiLabel;
    }
    let start = match start {
        Some(start) => start,
        None => args.random(parts.train.channels(), args.options.seed())?,
    };
    let start = match config.data.options.values {
        Some(range) => start.with_other_depths(range),
        None => start,
    };
    let class_names = parts.train.classes().to_vec();
    let head = HeadSpec::parse(config.task, &args.head, class_names.len()).context("--head")?;
    let mut options = args.options.resolve(&head, start.is_pretrained())?;
    let wish = args.compute.wish(moco_train::compute::ComputeRecipe::default())?;
    let (compute, note) = wish.choose()?;
    note.iter().for_each(say);
    options.device = moco_train::compute::DeviceChoice::Given(compute.device());
    options.precision = compute.precision();
    let session = Session::new(start, head, class_names, options)?;
    session.notes().iter().for_each(say);
    run::begin(&args.out, &config, session, &parts, args.compute.threads, args.quiet)
}

impl Args {
    /// What is started from, unless it is random.
    fn start(&self) -> Result<Option<Start>> {
        if self.backbone.as_os_str() == "random" {
            return Ok(None);
        }
        let shown = || format!("--backbone {}", self.backbone.display());
        if self.backbone.exists() && is_model(&self.backbone).unwrap_or(false) {
            return Ok(Some(Start::model(&Model::open(&self.backbone).with_context(shown)?)?));
        }
        let file = open_on_terminal(&self.backbone, self.data.channels).with_context(shown)?;
        Ok(Some(Start::backbone(&file)?))
    }

    fn random(&self, channels: usize, seed: u64) -> Result<Start> {
        let stem = match self.stem.as_str() {
            "imagenet" => Stem::ImageNet,
            "cifar" => Stem::Cifar,
            other => bail!("--stem {other}: expected imagenet or cifar"),
        };
        let arch = ArchSpec { stem, in_channels: channels, width: self.width, ..ArchSpec::new(&self.arch) };
        Start::random(arch, None, seed).context("--backbone random")
    }
}

//! `moco-train pretrain`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use moco_train::data::Dataset;
use moco_train::run::{Outcome, RunConfig, RunFolder, Trainer};

use super::compute::ComputeArgs;
use super::overrides::RecipeArgs;
use super::processes::ProcessArgs;
use super::watch::Watch;

/// Trains a backbone on unlabelled images
///
/// Reads a folder of image files (JPEG, PNG, TIFF, DICOM, NIfTI; flat, nested, or one folder a class), CIFAR-10/100 binary
/// files or IDX files. Each frame, page or slice is an image.
/// Writes the run folder: config.toml, metrics.jsonl, TensorBoard events, checkpoints and, at the end,
/// backbone.safetensors with its card. It may be stopped or killed at any time and goes on with `moco-train resume`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true, args_override_self = true, after_help = EXAMPLES)]
pub struct Args {
    /// Images to learn from
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Folder of the run; must not exist yet
    #[arg(long, value_name = "RUN")]
    out: PathBuf,

    /// Labelled images for the kNN accuracy during training; without it the labels of --data serve, if there are any
    #[arg(long, value_name = "DIR")]
    monitor_data: Option<PathBuf>,

    /// Also writes the backbone with its projector
    #[arg(long)]
    keep_projector: bool,

    /// Prints errors and the end only
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    processes: ProcessArgs,

    #[command(flatten)]
    recipe: RecipeArgs,
}

const EXAMPLES: &str = "\
Examples:
  MoCo v2 on your photographs with a small network, two cores:
    moco-train pretrain --data photos --arch resnet18 --size 96 --batch 64 --lr 0.0075 --queue 4096 --virtual-ranks 4 \\
      --epochs 200 --out runs/photos
  The CIFAR-10 demo of the reference, symmetric:
    moco-train pretrain --data cifar-10-batches-bin --recipe cifar-demo --symmetric --out runs/cifar
  The reference's recipe on the eight GPUs of this machine:
    moco-train pretrain --data imagenet/train --recipe moco-v2 --precision bf16 --nproc 8 --out runs/imagenet
  A recipe of your own, one value changed:
    moco-train recipes moco-v2 > mine.toml
    moco-train pretrain --data photos --recipe mine.toml --set augment.blur_p=0.3 --out runs/mine";

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let role = args.processes.role()?;
    let threads = args.compute.prepare_as(&role)?;
    if role.is_first() {
        RunFolder::check_free(&args.out)?;
    }
    let mut recipe = args.recipe.resolve()?;
    recipe.compute = args.compute.wish(recipe.compute)?;
    let dataset = open(&args.data, &recipe.data_options())?;
    let monitor = args.monitor_data.as_deref();
    let (mut config, notes) = RunConfig::resolve(&recipe, &args.data, &dataset, monitor)?;
    config.keep_projector = args.keep_projector;
    let mut watch = Watch::new(args.quiet || !role.is_first());
    for hint in [config.recipe.linear_rule_hint(), config.queue_hint()].into_iter().flatten() {
        watch.say(&format!("hint: {hint}"));
    }
    notes.iter().for_each(|n| watch.say(n));
    let first = role.is_first();
    role.join()?.run(|group| {
        let trainer = Trainer::create(&args.out, config, Arc::new(dataset), group)?;
        drive(trainer, threads, watch, &args.out, first)
    })
}

/// Opens a data set for training.
pub fn open(path: &std::path::Path, options: &moco_train::data::DataOptions) -> Result<Dataset> {
    Dataset::open(path, options).with_context(|| format!("--data {}", path.display()))
}

/// What shells report for a program that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// Runs a trainer to its end or to Ctrl-C, whichever comes first; only the first process of a run says how it went.
pub fn drive(
    mut trainer: Trainer,
    threads: usize,
    mut watch: Watch,
    out: &std::path::Path,
    first: bool,
) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        if first {
            eprintln!("\nstopping after this step and saving; once more to leave at once");
        }
    })
    .context("cannot listen for Ctrl-C")?;
    let outcome = trainer.run(threads, &mut watch, &stop);
    watch.finish();
    let shown = out.display();
    match outcome? {
        Outcome::Finished if !first => Ok(ExitCode::SUCCESS),
        Outcome::Stopped { .. } if !first => Ok(ExitCode::from(INTERRUPTED)),
        Outcome::Finished => {
            println!("backbone: {}", out.join("backbone.safetensors").display());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped { step } => {
            println!(
                "stopped after step {step} of {} and saved; go on with: moco-train resume {shown}",
                trainer.plan().steps()
            );
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

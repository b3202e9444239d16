//! `moco-train resume`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use moco_train::run::{RunConfig, RunFolder, Trainer};

use super::compute::ComputeArgs;
use super::pretrain::{drive, open};
use super::watch::Watch;

/// Goes on with a run that was stopped or killed, as if it had never stopped
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train resume runs/first")]
pub struct Args {
    /// Folder of the run
    run: PathBuf,

    /// Where the images are now, if they were moved
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Prints errors and the end only
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.run.join(super::finetune::CONFIG).exists() {
        return super::finetune::resume(&args.run, args.data.as_ref(), &args.compute, args.quiet);
    }
    args.compute.prepare()?;
    let folder = RunFolder::open(&args.run)?;
    let mut config = RunConfig::read(&folder.config_path())?;
    if let Some(data) = &args.data {
        config.source.data.clone_from(data);
    }
    config.recipe.compute = args.compute.wish(config.recipe.compute)?;
    let dataset = open(&config.source.data, &config.recipe.data_options())?;
    let trainer = Trainer::resume(folder, config, Arc::new(dataset))?;
    drive(trainer, args.compute.threads, Watch::new(args.quiet), &args.run)
}

//! `moco-train resume`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use moco_train::run::{RunConfig, RunFolder, Trainer};

use super::compute::ComputeArgs;
use super::pretrain::{drive, open};
use super::processes::{ProcessArgs, Role};
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

    #[command(flatten)]
    processes: ProcessArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let role = args.processes.role()?;
    if args.run.join(super::finetune::CONFIG).exists() {
        anyhow::ensure!(
            matches!(role, Role::Alone),
            "a fine-tuning runs in one process: leave --nproc and WORLD_SIZE out"
        );
        return super::finetune::resume(&args.run, args.data.as_ref(), &args.compute, args.quiet);
    }
    let threads = args.compute.prepare_as(&role)?;
    let first = role.is_first();
    let folder = if first { RunFolder::open(&args.run)? } else { RunFolder::look(&args.run) };
    let mut config = RunConfig::read(&folder.config_path())?;
    if let Some(data) = &args.data {
        config.source.data.clone_from(data);
    }
    config.recipe.compute = args.compute.wish(config.recipe.compute)?;
    let dataset = open(&config.source.data, &config.recipe.data_options())?;
    role.join()?.run(|group| {
        let trainer = Trainer::resume(folder, config, Arc::new(dataset), group)?;
        drive(trainer, threads, Watch::new(args.quiet || !first), &args.run, first)
    })
}

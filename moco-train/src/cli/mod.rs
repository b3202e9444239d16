//! The command line: one file a command, each a thin layer over the library.

mod bench;
mod check;
mod compute;
mod depth;
mod embed;
mod eval;
mod eval_model;
mod export;
mod finetune;
mod gpu_check;
mod import;
mod overrides;
mod predict;
mod pretrain;
mod processes;
#[cfg(feature = "hub")]
mod push;
mod recipes;
mod report;
mod resume;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Learns image features without labels (MoCo v1 and v2) and writes a backbone.
#[derive(Parser)]
#[command(name = "moco-train", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  moco-train check    --data photos --recipe moco-v2 --arch resnet18 --batch 64
  moco-train pretrain --data photos --recipe moco-v2 --arch resnet18 --batch 64 --lr 0.0075 --out runs/first
  moco-train resume   runs/first
  moco-train finetune detect --data cells --backbone runs/first --out runs/cells
  moco-train export   runs/first/backbone.safetensors --to onnx --out backbone.onnx
  moco-train push     runs/first hf://somebody/moco-photos --create";

#[derive(Subcommand)]
enum Command {
    Pretrain(pretrain::Args),
    Resume(resume::Args),
    Finetune(finetune::Args),
    Predict(predict::Args),
    Check(check::Args),
    Eval(eval::Args),
    Embed(embed::Args),
    Report(report::Args),
    Bench(bench::Args),
    GpuCheck(gpu_check::Args),
    Import(import::Args),
    Export(export::Args),
    #[cfg(feature = "hub")]
    Push(push::Args),
    Recipes(recipes::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Resume(args) => resume::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Predict(args) => predict::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => eval::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Embed(args) => embed::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::GpuCheck(args) => gpu_check::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Import(args) => import::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => export::run(&args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "hub")]
        Command::Push(args) => push::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Recipes(args) => recipes::run(&args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

//! `moco-train eval model`: how good a fine-tuned model's answers are.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use moco_finetune::data::{open, open_part};
use serde_json::json;

use super::compute::ComputeArgs;
use super::finetune::{ReadingArgs, table};
use super::predict::ChoiceArgs;

#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(long, value_name = "PLACE")]
    model: PathBuf,

    /// Labelled images, as `moco-train finetune` reads them
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Part of the data to measure on, e.g. test; without it what is held out (val or test), else all
    #[arg(long)]
    part: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ReadingArgs,

    #[command(flatten)]
    choice: ChoiceArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &ModelArgs) -> Result<()> {
    args.compute.prepare()?;
    let (model, mut predictor) = args.choice.open(&args.model, None, &args.compute)?;
    let options = args.reading.options(Some(model.head_card().preprocess.channels), model.class_names())?;
    let task = model.head().task();
    let shown = || format!("--data {}", args.data.display());
    let (data, notes) = match &args.part {
        Some(part) => open_part(&args.data, task, &options, part).with_context(shown)?,
        None => {
            let opened = open(&args.data, task, &options).with_context(shown)?;
            (opened.validation.unwrap_or(opened.train), opened.notes)
        }
    };
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let bar = ProgressBar::new(data.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} images  {per_sec}  {eta} left")?);
    let evaluation = predictor.evaluate(&*data, &mut |done| {
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    if args.json {
        let metrics: serde_json::Map<_, _> =
            evaluation.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        println!("{}", json!({ "task": task.name(), "images": evaluation.images, "metrics": metrics }));
    } else {
        println!("{} on {} images:", task.name(), evaluation.images);
        print!("{}", table(&evaluation));
    }
    Ok(())
}

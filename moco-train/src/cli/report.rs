//! `moco-train report`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moco_models::weights::BackboneFile;
use moco_train::data::{DataOptions, Dataset, Split};
use moco_train::eval::{Extraction, features};
use moco_train::report::{self, Neighbours, ReportOptions};

/// Writes a run as one HTML page: loss against ln(K+1), accuracy, kNN curve, health, and nearest neighbours
///
/// The page needs nothing but itself: no network, no other file.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train report runs/first --neighbours photos --baseline 'raw pixels=0.21'")]
pub struct Args {
    /// Folder of the run
    run: PathBuf,

    /// The page; default: report.html in the run's folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// An accuracy from 0 to 1 to draw beside the kNN curve; may be given several times
    #[arg(long, value_name = "NAME=ACCURACY", value_parser = baseline)]
    baseline: Vec<(String, f64)>,

    /// Shows images of this data set with their nearest neighbours in it; needs the run's backbone.safetensors
    #[arg(long, value_name = "DIR")]
    neighbours: Option<PathBuf>,

    /// Images whose neighbours are shown
    #[arg(long, default_value_t = 12, value_name = "N", requires = "neighbours")]
    queries: usize,

    /// Neighbours of each
    #[arg(long, default_value_t = 8, value_name = "N", requires = "neighbours")]
    nearest: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| report::default_path(&args.run));
    let mut options = ReportOptions { baselines: args.baseline.clone(), neighbours: None };
    if let Some(data) = &args.neighbours {
        options.neighbours = Some(neighbours(args, data)?);
    }
    report::write(&args.run, &out, &options)?;
    println!("report: {}", out.display());
    Ok(())
}

fn neighbours(args: &Args, data: &Path) -> Result<Neighbours> {
    let backbone = args.run.join("backbone.safetensors");
    let file = BackboneFile::open(&backbone).with_context(|| {
        format!("--neighbours needs the finished run's backbone; {} is not there or not whole", backbone.display())
    })?;
    let (weights, rule) = (file.weights()?, &file.card().preprocess);
    let values = (rule.bit_depth > 8).then_some(rule.values);
    let options = DataOptions { split: Split::All, values, ..DataOptions::default() };
    let dataset = Dataset::open(data, &options).with_context(|| format!("--neighbours {}", data.display()))?;
    let pooled = Extraction { max_skipped: 0, ..Extraction::of("pooled") };
    let set = features(file.graph(), &weights, &dataset, rule, &pooled, &mut |_| ControlFlow::Continue(()))?;
    Ok(Neighbours::find(&dataset, &set.data, set.dim, args.queries, args.nearest)?)
}

fn baseline(text: &str) -> Result<(String, f64)> {
    let (name, value) = text.rsplit_once('=').context("expected NAME=ACCURACY")?;
    let value: f64 = value.parse().with_context(|| format!("`{value}` is not a number"))?;
    if !(0.0..=1.0).contains(&value) {
        bail!("{value} is not an accuracy from 0 to 1");
    }
    Ok((name.into(), value))
}

//! `moco-train eval`: how good a backbone's features are, with labels.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use moco_finetune::linear::{FitOptions, HeadInfo, LinearHead, Phase};
use moco_hub::open_on_terminal;
use moco_models::init::initialise;
use moco_models::sha256_of_file;
use moco_models::weights::BackboneFile;
use moco_train::data::{Channels, DataOptions, Dataset, Split};
use moco_train::eval::{FeatureSet, KnnReport, features, fingerprint, knn, knn_leave_one_out, linear_probe, pixels};
use serde_json::json;

use super::compute::ComputeArgs;
use super::depth::DepthArgs;

/// Measures a backbone on labelled images
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  moco-train eval knn --backbone run/backbone.safetensors --data photos --baselines\n  \
    moco-train eval linear --backbone run/backbone.safetensors --data photos/train --test photos/test\n\n\
    Labels are the names of first-level folders, or those of CIFAR and IDX files. A folder with `train` and `test` (or \
    `val`) inside is used as such."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Accuracy of the nearest neighbours' vote; trains nothing
    Knn(KnnArgs),
    /// Accuracy of a linear head on frozen features; its learning rate is swept
    Linear(LinearArgs),
    /// Accuracy, Dice or average precision of a fine-tuned model
    Model(super::eval_model::ModelArgs),
}

#[derive(clap::Args)]
struct Common {
    /// The backbone: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(long, value_name = "PLACE")]
    backbone: PathBuf,

    /// Labelled images; with `train` and `test` (or `val`) inside, or see --test
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Labelled images to test on, if --data holds only those to learn from
    #[arg(long, value_name = "DIR")]
    test: Option<PathBuf>,

    /// Features to take: pooled, or c1 … c5 (flattened)
    #[arg(long, default_value = "pooled")]
    tap: String,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    depth: DepthArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(clap::Args)]
struct KnnArgs {
    #[command(flatten)]
    common: Common,

    /// Neighbours that vote; at most the images there are
    #[arg(long, default_value_t = 200)]
    k: usize,

    /// Temperature of the votes, exp(similarity / t)
    #[arg(long = "t", default_value_t = 0.1)]
    temperature: f64,

    /// Also measure an untrained backbone of the same network and the raw pixels
    #[arg(long)]
    baselines: bool,
}

#[derive(clap::Args)]
struct LinearArgs {
    #[command(flatten)]
    common: Common,

    /// Passes over the training features
    #[arg(long, default_value_t = 100)]
    epochs: usize,

    /// Learning rate; 0 = try several and keep the best on a held-out part of the training images
    #[arg(long, default_value_t = 0.0)]
    lr: f32,

    /// Features a step
    #[arg(long, default_value_t = 256)]
    batch: usize,

    /// Decides order, start and held-out part
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Write the head to this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Knn(args) => run_knn(args),
        Command::Linear(args) => run_linear(args),
        Command::Model(args) => super::eval_model::run(args),
    }
}

/// Backbone and images of an evaluation.
struct Subject {
    file: BackboneFile,
    train: Dataset,
    /// None: no images are held out.
    test: Option<Dataset>,
}

impl Subject {
    fn open(common: &Common) -> Result<Subject> {
        common.compute.prepare()?;
        let file = open_on_terminal(&common.backbone, None)?;
        file.graph().tap(&common.tap)?;
        let channels = match file.card().preprocess.channels {
            1 => Channels::Grey,
            _ => Channels::Rgb,
        };
        let options = DataOptions { channels, axis: common.depth.axis()?, ..DataOptions::default() };
        let open = |path: &Path, split| Dataset::open(path, &DataOptions { split, ..options.clone() });
        let train = open(&common.data, Split::Train)?;
        let test = match &common.test {
            Some(path) => Some(open(path, Split::Test).or_else(|_| open(path, Split::All))?),
            None if Dataset::has_split(&common.data, &options) => Some(open(&common.data, Split::Test)?),
            None => None,
        };
        for data in [Some(&train), test.as_ref()].into_iter().flatten() {
            if data.class_names().is_empty() {
                bail!(
                    "{}: has no labels; an evaluation needs one folder a class, or CIFAR or IDX files",
                    data.root().display()
                );
            }
        }
        if let Some(test) = test.as_ref().filter(|t| t.class_names() != train.class_names()) {
            bail!("classes differ: {:?} to learn from, {:?} to test on", train.class_names(), test.class_names());
        }
        Ok(Subject { file, train, test })
    }

    /// Features of both parts.
    fn features(&self, what: &str, of: &mut Source<'_>) -> Result<(FeatureSet, Option<FeatureSet>)> {
        let total = self.train.len() + self.test.as_ref().map_or(0, Dataset::len);
        let bar = bar(total as u64, what)?;
        let train = of(&self.train, &mut |n| {
            bar.set_position(n as u64);
            ControlFlow::Continue(())
        })?;
        let test = match &self.test {
            None => None,
            Some(test) => Some(of(test, &mut |n| {
                bar.set_position((self.train.len() + n) as u64);
                ControlFlow::Continue(())
            })?),
        };
        bar.finish_and_clear();
        for (name, reason) in [Some(&train), test.as_ref()].into_iter().flatten().flat_map(|s| &s.skipped) {
            eprintln!("skipped {name}: {reason}");
        }
        Ok((train, test))
    }
}

type Source<'a> = dyn FnMut(&Dataset, &mut dyn FnMut(usize) -> ControlFlow<()>) -> moco_train::Result<FeatureSet> + 'a;

fn run_knn(args: &KnnArgs) -> Result<()> {
    let common = &args.common;
    let subject = Subject::open(common)?;
    let (graph, rule) = (subject.file.graph(), &common.depth.rule(&subject.file.card().preprocess));
    let extraction = common.compute.extraction(&common.tap)?;
    let weights = subject.file.weights()?;
    let measure = |what: &str, source: &mut Source<'_>| -> Result<KnnReport> {
        let (bank, queries) = subject.features(what, source)?;
        Ok(match &queries {
            Some(queries) => knn(&bank, queries, args.k, args.temperature)?,
            None => knn_leave_one_out(&bank, args.k, args.temperature)?,
        })
    };
    let trained = measure("backbone", &mut |data, told| features(graph, &weights, data, rule, &extraction, told))?;
    let mut rows = vec![("backbone", trained.accuracy)];
    if args.baselines {
        let random = initialise(graph, 0);
        let untrained =
            measure("untrained", &mut |data, told| features(graph, &random, data, rule, &extraction, told))?;
        rows.push(("untrained", untrained.accuracy));
        rows.push(("pixels", measure("pixels", &mut |data, told| pixels(data, rule, told))?.accuracy));
    }
    if common.json {
        let accuracies: serde_json::Map<_, _> = rows.iter().map(|(name, a)| (name.to_string(), json!(a))).collect();
        let (bank, queries) = (subject.train.len(), trained.queries);
        println!(
            "{}",
            json!({ "knn_top1": accuracies, "k": trained.k, "t": args.temperature, "bank": bank, "queries": queries })
        );
        return Ok(());
    }
    let how = if subject.test.is_some() { "held-out images" } else { "images, each left out in turn" };
    println!(
        "kNN accuracy of {} {how} ({} to learn from), k = {}, t = {}",
        trained.queries,
        subject.train.len(),
        trained.k,
        args.temperature
    );
    if trained.k < args.k {
        println!("k is {} because there are no more images; --k 20 suits small sets", trained.k);
    }
    for (name, accuracy) in rows {
        println!("  {name:<10} {:5.1} %", 100.0 * accuracy);
    }
    Ok(())
}

fn run_linear(args: &LinearArgs) -> Result<()> {
    let common = &args.common;
    if let Some(path) = args.save.as_ref().filter(|p| p.exists()) {
        bail!("{} exists already and is not overwritten: give another --save", path.display());
    }
    let subject = Subject::open(common)?;
    if subject.test.is_none() {
        bail!(
            "{}: no images are held out; give --test DIR, or a folder with `train` and `test` inside",
            common.data.display()
        );
    }
    let options = FitOptions {
        epochs: args.epochs,
        learning_rate: args.lr,
        batch: args.batch,
        seed: args.seed,
        ..FitOptions::default()
    };
    options.validate()?;
    let (graph, rule) = (subject.file.graph(), &common.depth.rule(&subject.file.card().preprocess));
    let extraction = common.compute.extraction(&common.tap)?;
    let weights = subject.file.weights()?;
    let (file_hash, before) = (subject.file.sha256(), fingerprint(&weights));
    let mut source = |data: &Dataset, told: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        features(graph, &weights, data, rule, &extraction, told)
    };
    let (train, test) = subject.features("features", &mut source)?;
    let test = test.expect("its absence was refused above");
    let bar = bar(1, "head")?;
    let (head, report) = linear_probe(&train, &test, &options, &mut |p| {
        let sweep = if p.phase == Phase::Sweep { 0 } else { usize::from(options.learning_rate == 0.0) * p.epochs };
        bar.set_length((p.epochs * (1 + usize::from(options.learning_rate == 0.0))) as u64);
        bar.set_position((sweep + p.epoch) as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    let unchanged = fingerprint(&weights) == before && sha256_of_file(subject.file.path())? == file_hash;
    if !unchanged {
        bail!("{}: changed during the evaluation, so that the figures are of no use", common.backbone.display());
    }
    if let Some(path) = &args.save {
        let class_names = subject.train.class_names().to_vec();
        let info = HeadInfo { class_names, tap: common.tap.clone(), backbone_sha256: file_hash.clone() };
        LinearHead::new(head.weight().to_vec(), head.bias().to_vec(), info)?.save(path)?;
    }
    let names = subject.train.class_names();
    if common.json {
        let per_class: serde_json::Map<_, _> = names
            .iter()
            .zip(&report.per_class)
            .map(|(name, (n, a))| (name.clone(), json!({ "images": n, "top1": a })))
            .collect();
        println!(
            "{}",
            json!({
                "linear_top1": report.accuracy, "train_top1": report.fit.train_accuracy, "lr": report.fit.learning_rate,
                "sweep": report.fit.sweep, "per_class": per_class, "train": train.len(), "test": test.len(),
                "backbone_sha256": file_hash, "weights_sha256": before, "backbone_unchanged": unchanged,
            })
        );
        return Ok(());
    }
    println!("linear accuracy on {} held-out images, head fitted on {}:", test.len(), train.len());
    println!(
        "  {:5.1} %   ({:.1} % on the images it was fitted on)",
        100.0 * report.accuracy,
        100.0 * report.fit.train_accuracy
    );
    let sweep: Vec<String> = report.fit.sweep.iter().map(|(lr, a)| format!("{lr}: {:.1}", 100.0 * a)).collect();
    if !sweep.is_empty() {
        println!(
            "learning rate {} of {} (accuracy in % on held-out training images)",
            report.fit.learning_rate,
            sweep.join(", ")
        );
    }
    for (name, (n, accuracy)) in names.iter().zip(&report.per_class) {
        println!("  {name:<24} {:5.1} % of {n}", 100.0 * accuracy);
    }
    println!("backbone unchanged: weights' SHA-256 {before} before and after");
    Ok(())
}

fn bar(len: u64, what: &str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:10} {bar:40} {pos}/{len} {eta} left").context("the progress bar")?;
    Ok(ProgressBar::new(len).with_style(style).with_message(what.to_owned()))
}

//! A run of a fine-tuning: its folder, its end.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use moco_finetune::session::{Event, FitData, FitReport, Outcome, Session};
use moco_models::weights::MODEL_FILE;
use moco_train::compute::ComputeRecipe;

use super::data::{Config, Parts};
use super::log::{Log, headline, table};
use crate::cli::compute::ComputeArgs;

/// What the run was started with.
pub const CONFIG: &str = "finetune.toml";

/// The options of its training.
const OPTIONS: &str = "options.toml";

/// Where it stands.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Starts a run in a new folder.
pub fn begin(
    out: &Path,
    config: &Config,
    session: Session,
    parts: &Parts,
    threads: usize,
    quiet: bool,
) -> Result<ExitCode> {
    std::fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))?;
    let text = toml::to_string(config).context(CONFIG)?;
    let options = toml::to_string(session.options()).context(CONFIG)?;
    moco_models::write_atomically(&out.join(OPTIONS), |f| f.write_all(options.as_bytes()))?;
    session.checkpoint(&out.join(CHECKPOINT))?;
    // Last: a folder with this file is a run that can be resumed.
    moco_models::write_atomically(&out.join(CONFIG), |f| f.write_all(text.as_bytes()))?;
    drive(out, config, session, parts, threads, quiet)
}

/// Goes on with a run that was stopped or killed.
pub fn resume(out: &Path, data: Option<&PathBuf>, compute: &ComputeArgs, quiet: bool) -> Result<ExitCode> {
    compute.prepare()?;
    let mut config = Config::read(&out.join(CONFIG))?;
    if let Some(data) = data {
        config.data.path.clone_from(data);
    }
    let parts = config.open()?;
    let device = match &compute.device {
        Some(_) => Some(compute.wish(ComputeRecipe::default())?.device),
        None => None,
    };
    let session = Session::resume(&out.join(CHECKPOINT), device)?;
    drive(out, &config, session, &parts, compute.threads, quiet)
}

/// Trains to the end or to Ctrl-C, and writes the model.
fn drive(
    out: &Path,
    config: &Config,
    mut session: Session,
    parts: &Parts,
    threads: usize,
    quiet: bool,
) -> Result<ExitCode> {
    /// What shells report for a program that Ctrl-C ended.
    const INTERRUPTED: u8 = 130;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\nstopping after this step and saving; once more to leave at once");
    })
    .context("cannot listen for Ctrl-C")?;
    let mut log = Log::open(out, session.steps_done(), quiet)?;
    let checkpoint = out.join(CHECKPOINT);
    let data = FitData {
        train: &*parts.train,
        validation: parts.validation.as_deref(),
        checkpoint: Some(&checkpoint),
        threads,
    };
    let mut failed = None;
    let report = session.fit(&data, &mut |event: &Event<'_>| {
        failed = failed.take().or(log.take(event).err());
        if failed.is_some() || stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    log.finish()?;
    if let Some(error) = failed {
        return Err(error);
    }
    let report = report?;
    if report.outcome == Outcome::Cancelled {
        let shown = out.display();
        println!("stopped after step {} and saved; go on with: moco-train resume {shown}", report.step);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let mut model = session.model()?;
    model.head_card_mut().data = Some(config.data.path.display().to_string());
    let path = out.join(MODEL_FILE);
    model.save(&path)?;
    let readme = model.head_card().to_readme(model.card());
    moco_models::write_atomically(&out.join("README.md"), |f| f.write_all(readme.as_bytes()))?;
    let settings = [CONFIG, OPTIONS].map(|name| std::fs::read_to_string(out.join(name)).unwrap_or_default()).concat();
    let page = moco_train::report::default_path(out);
    moco_train::report::write_finetune(out, &page, &report.epochs, &settings)?;
    tell(&report, &path);
    Ok(ExitCode::SUCCESS)
}

/// How it went, for people.
fn tell(report: &FitReport, model: &Path) {
    if report.outcome == Outcome::StoppedEarly {
        println!("stopped early: no better validation for as long as --patience says");
    }
    match report.best().and_then(|best| best.validation.as_ref().map(|v| (best.epoch, v))) {
        Some((epoch, validation)) => {
            println!("best epoch {epoch} of {}: {}", report.epochs.len(), headline(validation));
            print!("{}", table(validation));
        }
        None => println!("{} epochs, nothing was held out to measure by", report.epochs.len()),
    }
    println!("{:.1} images/s, validation included", report.images_per_second);
    if let Some(hash) = &report.frozen_sha256 {
        println!("what was frozen is unchanged: SHA-256 {hash} before and after");
    }
    println!("model: {}", model.display());
}

//! What a fine-tuning writes down and shows: metrics.jsonl, TensorBoard's events, a bar on a terminal.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use moco_finetune::model::Evaluation;
use moco_finetune::session::{EpochReport, Event, StepReport};
use moco_train::run::EventWriter;
use serde_json::{Value, json};

/// Between two plain lines.
const PAUSE: Duration = Duration::from_secs(15);

/// Writes and shows the events of a fine-tuning.
pub struct Log {
    lines: BufWriter<File>,
    events: EventWriter,
    quiet: bool,
    bar: Option<ProgressBar>,
    per_epoch: u64,
    shown: Instant,
    loss: Option<f64>,
}

impl Log {
    /// Opens the files of a run after `step` steps; what was written later is done again and dropped.
    pub fn open(run: &Path, step: u64, quiet: bool) -> Result<Log> {
        let path = run.join("metrics.jsonl");
        let mut kept = 0;
        if path.exists() {
            let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
            for line in text.split_inclusive(|b| *b == b'\n') {
                let at = serde_json::from_slice::<Value>(line).ok().and_then(|v| v["step"].as_u64());
                if !line.ends_with(b"\n") || at.is_none_or(|at| at > step) {
                    break;
                }
                kept += line.len() as u64;
            }
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
        file.set_len(kept)?;
        let events = EventWriter::create(&run.join("events"), step + 1)?;
        let shown = Instant::now();
        Ok(Log { lines: BufWriter::new(file), events, quiet, bar: None, per_epoch: 1, shown, loss: None })
    }

    /// Takes note of an event.
    pub fn take(&mut self, event: &Event<'_>) -> Result<()> {
        match *event {
            Event::Started { step, steps, steps_per_epoch } => self.started(step, steps, steps_per_epoch),
            Event::Features { done, total } => self.doing("features", done, total),
            Event::Evaluating { done, total } => self.doing("validation", done, total),
            Event::Step(report) => return self.step(report),
            Event::Epoch(report) => return self.epoch(report),
        }
        Ok(())
    }

    /// One line.
    pub fn say(&self, text: &str) {
        match (&self.bar, self.quiet) {
            (_, true) => {}
            (Some(bar), _) => bar.suspend(|| eprintln!("{text}")),
            (None, _) => eprintln!("{text}"),
        }
    }

    /// Takes the bar away and hands everything to the system.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.events.flush()?;
        self.lines.flush().context("metrics.jsonl")
    }

    fn started(&mut self, step: u64, steps: u64, per_epoch: u64) {
        self.per_epoch = per_epoch;
        let from = if step > 0 { format!(", going on after step {step}") } else { String::new() };
        self.say(&format!("{steps} steps, {per_epoch} an epoch{from}"));
        if !self.quiet && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(steps).with_position(step);
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} [{elapsed} < {eta}]");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn doing(&self, what: &str, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{what} {done}/{total}"));
        }
    }

    fn step(&mut self, r: &StepReport) -> Result<()> {
        let parts: serde_json::Map<_, _> = r.parts.iter().map(|(name, v)| ((*name).to_owned(), json!(v))).collect();
        self.line(&json!({
            "kind": "step", "step": r.step, "loss": r.loss, "parts": parts, "lr": r.lr, "gradient_norm": r.gradient_norm,
            "images": r.images, "seconds": r.seconds, "waited": r.waited,
        }))?;
        let mut values = vec![("train/loss", r.loss), ("train/lr", r.lr)];
        values.extend(r.gradient_norm.map(|norm| ("train/gradient_norm", norm)));
        self.events.scalars(r.step, &values)?;
        let smooth = self.loss.map_or(r.loss, |old| old + 0.1 * (r.loss - old));
        self.loss = Some(smooth);
        let text = format!(
            "epoch {:.1} loss {smooth:.3} lr {:.2e} {:.0} img/s",
            r.step as f64 / self.per_epoch as f64,
            r.lr,
            r.images as f64 / r.seconds.max(1e-9)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(r.step);
            bar.set_message(text);
        } else if self.shown.elapsed() >= PAUSE {
            self.shown = Instant::now();
            self.say(&format!("step {} {text}", r.step));
        }
        Ok(())
    }

    fn epoch(&mut self, r: &EpochReport) -> Result<()> {
        let metrics: Option<serde_json::Map<_, _>> =
            r.validation.as_ref().map(|v| v.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect());
        self.line(&json!({
            "kind": "epoch", "step": r.step, "epoch": r.epoch, "loss": r.loss, "validation": metrics, "best": r.best,
        }))?;
        if let Some(validation) = &r.validation {
            let names: Vec<(String, f64)> =
                validation.metrics.iter().map(|(name, value)| (format!("validation/{name}"), *value)).collect();
            let values: Vec<(&str, f64)> = names.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            self.events.scalars(r.step, &values)?;
            if r.best {
                self.say(&format!("epoch {}: loss {:.3}, {} (the best so far)", r.epoch, r.loss, headline(validation)));
            }
        }
        self.events.flush()?;
        self.lines.flush().context("metrics.jsonl")
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        writeln!(self.lines, "{value}").context("metrics.jsonl")
    }
}

/// The measures of a validation that are about all classes, in a line.
pub fn headline(evaluation: &Evaluation) -> String {
    let all = evaluation.metrics.iter().filter(|(name, _)| !name.contains(':')).take(3);
    all.map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(", ")
}

/// Every measure, a line each.
pub fn table(evaluation: &Evaluation) -> String {
    let width = evaluation.metrics.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    evaluation.metrics.iter().map(|(name, value)| format!("  {name:<width$}  {value:.4}\n")).collect()
}

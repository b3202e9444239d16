//! A run as one HTML page: curves, health, the recipe, and nearest-neighbour pictures.
//!
//! The page needs nothing but itself: plots are inline SVG, pictures are embedded, there is no script and no link.

mod epochs;
mod html;
mod neighbours;
mod plot;

use std::path::{Path, PathBuf};

use crate::health::HealthReport;
use crate::run::{EvalRecord, Record, StepRecord, read_metrics};
use crate::{Error, Result};

pub use epochs::write_finetune;
pub use neighbours::{Neighbours, Query};

/// What the page shows beside the run's own records.
#[derive(Clone, Debug, Default)]
pub struct ReportOptions {
    /// Accuracies to compare the kNN curve with, 0 to 1, e.g. `("raw pixels", 0.2)`.
    pub baselines: Vec<(String, f64)>,
    /// Pictures and their nearest neighbours.
    pub neighbours: Option<Neighbours>,
}

/// Writes the page of the run folder `run` to `out`.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] for a folder that is no run; [`Error::Invalid`] for a run without a single step.
pub fn write(run: &Path, out: &Path, options: &ReportOptions) -> Result<()> {
    let curves = Curves::read(run)?;
    let config = run.join("config.toml");
    let recipe = std::fs::read_to_string(&config).map_err(Error::io(&config))?;
    let page = html::page(run, &curves, &recipe, options)?;
    moco_models::write_atomically(out, |file| std::io::Write::write_all(file, page.as_bytes())).map_err(Error::from)
}

/// Where [`write`] puts the page unless told otherwise.
pub fn default_path(run: &Path) -> PathBuf {
    run.join("report.html")
}

/// The records of a run, by kind, in the order of their steps.
pub(crate) struct Curves {
    pub steps: Vec<StepRecord>,
    pub evals: Vec<EvalRecord>,
    pub health: Vec<HealthReport>,
}

impl Curves {
    fn read(run: &Path) -> Result<Curves> {
        let path = run.join("metrics.jsonl");
        let mut curves = Curves { steps: Vec::new(), evals: Vec::new(), health: Vec::new() };
        for record in read_metrics(&path)? {
            match record {
                Record::Step(record) => curves.steps.push(record),
                Record::Eval(record) => curves.evals.push(record),
                Record::Health(record) => curves.health.push(record),
            }
        }
        if curves.steps.is_empty() {
            return Err(Error::Invalid(format!("{}: no step has been recorded yet", path.display())));
        }
        Ok(curves)
    }

    /// Epochs done after `step`, with the fraction: interpolated between the recorded steps.
    pub fn epoch_of(&self, step: u64) -> f64 {
        let per_epoch = self.steps_per_epoch();
        if per_epoch == 0.0 { 0.0 } else { step as f64 / per_epoch }
    }

    /// Steps of one epoch: counted in the first epoch if it is complete.
    fn steps_per_epoch(&self) -> f64 {
        let last = self.steps.last().expect("read() wants a step");
        match self.steps.iter().find(|s| s.epoch > self.steps[0].epoch) {
            Some(second) => (second.step - self.steps[0].step) as f64,
            None => (last.step - self.steps[0].step + 1) as f64,
        }
    }

    /// Loss of guessing, ln(K + 1), if a health report has said it.
    pub fn chance(&self) -> Option<f64> {
        self.health.last().map(|h| h.chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(lines: &[String]) -> tempfile::TempDir {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join("metrics.jsonl"), lines.concat()).unwrap();
        std::fs::write(run.path().join("config.toml"), "name = \"<moco>\"\n").unwrap();
        run
    }

    fn step(step: u64, epoch: u64) -> String {
        format!(
            "{{\"kind\":\"step\",\"step\":{step},\"epoch\":{epoch},\"loss\":5.0,\"acc1\":0.1,\"lr\":0.03,\"images\":32,\
             \"images_per_s\":100.0,\"data_wait\":0.0,\"pos_sim\":0.5,\"neg_sim\":0.1}}\n"
        )
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let eval = "{\"kind\":\"eval\",\"step\":4,\"epoch\":2,\"metric\":\"knn\",\"value\":0.625,\"seconds\":1.0}\n";
        let run = run_with(&[step(1, 0), step(2, 0), step(3, 1), step(4, 1), eval.into()]);
        let out = default_path(run.path());
        let query = Query {
            png: vec![1, 2, 3],
            caption: "Kiwi".into(),
            nearest: vec![(vec![4], "Kiwi".into(), 0.9, Some(true))],
        };
        let options = ReportOptions {
            baselines: vec![("raw pixels".into(), 0.2)],
            neighbours: Some(Neighbours { queries: vec![query] }),
        };
        write(run.path(), &out, &options).unwrap();
        let page = std::fs::read_to_string(out).unwrap();
        for text in ["62.5 %", "raw pixels", "&lt;moco&gt;", "data:image/png;base64,AQID", "4 (2.0 epochs)"] {
            assert!(page.contains(text), "{text} is missing");
        }
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http") && !outside.contains("<script") && !outside.contains("<link"));
    }

    #[test]
    fn a_run_without_steps_is_refused() {
        let run = run_with(&[]);
        let error = write(run.path(), &default_path(run.path()), &ReportOptions::default()).unwrap_err();
        assert!(error.to_string().contains("metrics.jsonl"), "{error}");
        assert!(!default_path(run.path()).exists());
    }
}

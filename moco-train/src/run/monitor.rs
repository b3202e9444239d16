//! kNN accuracy during training, when there are labels.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use moco_image::PreprocessRule;
use moco_models::{Graph, Weights};

use super::{EvalRecord, RunConfig};
use crate::compute::Compute;
use crate::data::{DataOptions, Dataset, Split};
use crate::eval::{Extraction, features, knn, knn_leave_one_out};
use crate::{Error, Result};

/// Evaluates the query encoder by nearest neighbours, as MoCo's CIFAR-10 demo does after every epoch.
pub(super) struct Monitor {
    bank: Arc<Dataset>,
    /// None: each image of the bank is classified by all others.
    queries: Option<Dataset>,
    rule: PreprocessRule,
    tap: String,
    k: usize,
    temperature: f64,
    max_skipped: usize,
    compute: Compute,
}

impl Monitor {
    /// With `monitor_data` its training part is the bank and its held-out part asks; without, the same holds for the
    /// data of the run. Where there is no held-out part, each image is left out in turn. None if nothing has labels.
    pub(super) fn new(config: &RunConfig, dataset: &Arc<Dataset>, compute: Compute) -> Result<Option<Monitor>> {
        let run = &config.recipe.run;
        if run.monitor_every_epochs == 0 && config.source.monitor_data.is_none() {
            return Ok(None);
        }
        let (channels, axis) = (config.recipe.data.channels, config.recipe.data.axis);
        let (root, bank) = match &config.source.monitor_data {
            None => (&config.source.data, dataset.clone()),
            Some(path) => {
                (path, Arc::new(Dataset::open(path, &DataOptions { channels, axis, ..DataOptions::default() })?))
            }
        };
        if bank.class_names().is_empty() {
            return match &config.source.monitor_data {
                None => Ok(None),
                Some(path) => Err(Error::Invalid(format!(
                    "--monitor-data {}: has no labels; give one folder a class, or CIFAR or IDX files",
                    path.display()
                ))),
            };
        }
        let test = DataOptions { channels, axis, split: Split::Test, ..DataOptions::default() };
        let queries = match Dataset::has_split(root, &test) {
            true => Some(Dataset::open(root, &test)?),
            false => None,
        };
        if let Some(queries) = queries.as_ref().filter(|q| q.class_names() != bank.class_names()) {
            return Err(Error::Invalid(format!(
                "{}: training and held-out part have different classes: {:?} and {:?}",
                root.display(),
                bank.class_names(),
                queries.class_names()
            )));
        }
        Ok(Some(Monitor {
            bank,
            queries,
            rule: config.preprocess(),
            tap: run.monitor_tap.clone(),
            k: run.monitor_k,
            temperature: run.monitor_temperature,
            max_skipped: config.recipe.data.max_corrupt,
            compute: compute.in_f32(),
        }))
    }

    pub(super) fn evaluate(&self, graph: &Graph, weights: &Weights, step: u64, epoch: u64) -> Result<EvalRecord> {
        let start = Instant::now();
        let extraction =
            Extraction { max_skipped: self.max_skipped, compute: self.compute, ..Extraction::of(&self.tap) };
        let extract = |data: &Dataset| {
            features(graph, weights, data, &self.rule, &extraction, &mut |_| ControlFlow::Continue(()))
        };
        let bank = extract(&self.bank)?;
        let report = match &self.queries {
            Some(queries) => knn(&bank, &extract(queries)?, self.k, self.temperature)?,
            None => knn_leave_one_out(&bank, self.k, self.temperature)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        Ok(EvalRecord { step, epoch, metric: "knn".into(), value: report.accuracy, seconds })
    }
}

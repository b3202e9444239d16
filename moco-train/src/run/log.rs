//! What a run writes down as it goes.

use std::time::Instant;

use super::{EvalRecord, EventWriter, MetricsWriter, Record, RunFolder, StepRecord};
use crate::Result;
use crate::health::HealthReport;

/// `metrics.jsonl` and TensorBoard's file together.
pub(super) struct Log {
    metrics: MetricsWriter,
    events: EventWriter,
    flushed: Instant,
}

impl Log {
    pub fn open(folder: &RunFolder, step: u64) -> Result<Log> {
        Ok(Log {
            metrics: MetricsWriter::open(&folder.metrics_path(), step)?,
            events: EventWriter::create(&folder.events_path(), step + 1)?,
            flushed: Instant::now(),
        })
    }

    pub fn step(&mut self, r: &StepRecord) -> Result<()> {
        self.metrics.write(&Record::Step(r.clone()))?;
        let values = [
            ("train/loss", r.loss),
            ("train/acc1", r.acc1),
            ("train/lr", r.lr),
            ("train/images_per_s", r.images_per_s),
            ("train/data_wait", r.data_wait),
            ("train/positive_similarity", r.pos_sim),
            ("train/negative_similarity", r.neg_sim),
        ];
        self.events.scalars(r.step, &values)?;
        if self.flushed.elapsed().as_secs() >= 2 {
            self.events.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    pub fn eval(&mut self, r: &EvalRecord) -> Result<()> {
        self.metrics.write(&Record::Eval(r.clone()))?;
        self.events.scalars(r.step, &[(&format!("eval/{}", r.metric), r.value)])
    }

    pub fn health(&mut self, r: &HealthReport) -> Result<()> {
        self.metrics.write(&Record::Health(r.clone()))?;
        let values = [
            ("health/loss_of_chance", r.loss / r.chance),
            ("health/std_of_even_spread", r.feature_std / r.ideal_std),
            ("health/effective_rank", r.effective_rank),
            ("health/same_image_share", r.same_image_share),
        ];
        self.events.scalars(r.step, &values)
    }

    pub fn sync(&mut self) -> Result<()> {
        self.events.flush()?;
        self.metrics.sync()
    }
}

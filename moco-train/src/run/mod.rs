//! A run: a folder that holds all of a training.

mod metrics;
mod tensorboard;

pub use metrics::{EvalRecord, MetricsWriter, Record, StepRecord, read_metrics};
pub use tensorboard::EventWriter;

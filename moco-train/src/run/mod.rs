//! A run: a folder that holds all of a training.
//!
//! | file | what |
//! |---|---|
//! | `config.toml` | the resolved configuration |
//! | `metrics.jsonl` | one JSON object a step, and one for each evaluation and health report |
//! | `events/` | the same for TensorBoard |
//! | `checkpoints/step-….safetensors` | everything needed to go on |
//! | `backbone.safetensors`, `README.md` | the result with its card, at the end |

mod checkpoint;
mod config;
mod feed;
mod folder;
mod log;
mod metrics;
mod monitor;
pub mod preview;
mod processes;
mod result;
mod tensorboard;
mod trainer;

pub use checkpoint::{Checkpoints, Progress};
pub use config::{RunConfig, Source, kind_in_words, tool_version};
pub use feed::Feed;
pub use folder::RunFolder;
pub use metrics::{EvalRecord, MetricsWriter, Record, StepRecord, read_metrics};
pub use tensorboard::EventWriter;
pub use trainer::{Observer, Outcome, RunPlan, Trainer, loader_options, shuffles};

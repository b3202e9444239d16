//! Checkpoints: all that a training carries from step to step, in one safetensors file written whole or not at all.
//!
//! Random numbers are functions of the seed and the place in the run, so step and seed are the generator's whole state.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moco_models::weights::{Dtype, SafetensorsFile, TensorOut, TensorSource, load_strict, save_safetensors};
use moco_models::{FlatLayout, Graph, Weights};
use serde::{Deserialize, Serialize};

use crate::health::HealthTracker;
use crate::objective::{KeyQueue, MocoState, StateRef};
use crate::{Error, Result};

const METADATA: &str = "moco.checkpoint";
const FORMAT_VERSION: u32 = 1;

/// What a checkpoint says beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Version of this format.
    pub format_version: u32,
    /// Steps done.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Place of the next key in the queue.
    pub queue_pointer: usize,
    /// What the next health report will be about.
    pub health: HealthTracker,
}

impl Progress {
    /// After `step` steps.
    pub fn new(step: u64, seed: u64, queue_pointer: usize, health: HealthTracker) -> Progress {
        Progress { format_version: FORMAT_VERSION, step, seed, queue_pointer, health }
    }
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// In this folder.
    pub fn new(folder: &Path) -> Checkpoints {
        Checkpoints { folder: folder.to_path_buf() }
    }

    /// Steps of all checkpoints, in increasing order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps = vec![];
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let name = entry.map_err(Error::io(&self.folder))?.file_name();
            let digits = name.to_str().and_then(|n| n.strip_prefix("step-")?.strip_suffix(".safetensors"));
            steps.extend(digits.and_then(|d| d.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// File of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:010}.safetensors"))
    }

    /// Writes the checkpoint of `progress.step`.
    ///
    /// # Errors
    /// [`Error::Model`] if the disk refuses; older checkpoints are untouched.
    pub fn save(&self, graph: &Graph, state: &StateRef<'_>, progress: &Progress) -> Result<()> {
        let (parameters, buffers) = (graph.parameter_layout(), graph.buffer_layout());
        let mut tensors = vec![];
        for (prefix, weights) in [("encoder_q", &state.query), ("encoder_k", &state.key)] {
            push(&mut tensors, prefix, &parameters, &weights.params);
            push(&mut tensors, prefix, &buffers, &weights.buffers);
        }
        push(&mut tensors, "velocity", &parameters, &state.velocity);
        let queue = &state.queue;
        tensors.push(TensorOut::f32("queue", &[queue.capacity(), queue.dim()], queue.keys()));
        // Images are counted in u64 with u64::MAX for none, which is −1 here.
        tensors.push(TensorOut {
            name: "queue_images".into(),
            dtype: Dtype::I64,
            shape: vec![queue.capacity()],
            data: Cow::Borrowed(bytemuck::cast_slice(queue.images())),
        });
        let rows = progress.health.rows();
        tensors.push(TensorOut::f32("health_rows", &[rows.len() / queue.dim(), queue.dim()], rows));
        let json = serde_json::to_string(progress).expect("numbers and strings");
        save_safetensors(&self.path(progress.step), &tensors, &BTreeMap::from([(METADATA.into(), json)]))?;
        Ok(())
    }

    /// Reads the checkpoint of a step.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Model`] if it is not of this network or damaged.
    pub fn load(&self, graph: &Graph, step: u64) -> Result<(MocoState, Progress)> {
        let path = self.path(step);
        let damaged = |reason: String| Error::format(&path, reason);
        let file = SafetensorsFile::open(&path)?;
        let json = file.metadata(METADATA).ok_or_else(|| damaged("is not a checkpoint of moco-train".into()))?;
        let mut progress: Progress = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        if progress.format_version != FORMAT_VERSION || progress.step != step {
            return Err(damaged(format!(
                "format version {} and step {}; expected {FORMAT_VERSION} and {step}",
                progress.format_version, progress.step
            )));
        }
        let weights = |prefix: &str| -> Result<Weights> {
            let name = |n: &str| format!("{prefix}.{n}");
            let belongs = |n: &str| n.starts_with(&format!("{prefix}."));
            Ok(load_strict(&file, graph, &path.display().to_string(), name, belongs)?)
        };
        let mut velocity = vec![0.0; graph.parameter_layout().len()];
        for (spec, range) in graph.parameter_layout().iter() {
            floats(&file, &path, &format!("velocity.{}", spec.name), &mut velocity[range])?;
        }
        let shape = file.tensor("queue")?.shape;
        let [capacity, dim] = shape[..] else {
            return Err(damaged(format!("`queue` has shape {shape:?}; [keys, dim] expected")));
        };
        let mut keys = vec![0.0; capacity * dim];
        floats(&file, &path, "queue", &mut keys)?;
        let images = file.tensor("queue_images")?;
        if images.dtype != Dtype::I64 || images.shape != [capacity] {
            return Err(damaged(format!("`queue_images` has shape {:?}; [{capacity}] of i64 expected", images.shape)));
        }
        let (images, _) = images.data.as_chunks::<8>();
        let images = images.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let queue = KeyQueue::from_parts(dim, keys, images, progress.queue_pointer)?;
        let mut rows = vec![0.0; file.tensor("health_rows")?.shape.iter().product()];
        floats(&file, &path, "health_rows", &mut rows)?;
        progress.health.set_rows(rows);
        Ok((MocoState { query: weights("encoder_q")?, key: weights("encoder_k")?, velocity, queue }, progress))
    }

    /// Removes all but the newest `keep_last` and those for which `for_good` is true.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prune(&self, keep_last: usize, for_good: impl Fn(u64) -> bool) -> Result<()> {
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(keep_last)];
        for step in old.iter().filter(|s| !for_good(**s)) {
            let path = self.path(*step);
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        Ok(())
    }
}

fn push<'a>(tensors: &mut Vec<TensorOut<'a>>, prefix: &str, layout: &FlatLayout, values: &'a [f32]) {
    for (spec, range) in layout.iter() {
        tensors.push(TensorOut::f32(format!("{prefix}.{}", spec.name), &spec.shape, &values[range]));
    }
}

fn floats(file: &SafetensorsFile, path: &Path, name: &str, out: &mut [f32]) -> Result<()> {
    let tensor = file.tensor(name)?;
    if tensor.dtype != Dtype::F32 || tensor.shape.iter().product::<usize>() != out.len() {
        let reason =
            format!("`{name}` has shape {:?} of {}; {} values of F32 expected", tensor.shape, tensor.dtype, out.len());
        return Err(Error::format(path, reason));
    }
    tensor.write_f32(out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::StepReport;
    use moco_models::arch::{ArchSpec, Projector};
    use moco_models::init::initialise;

    fn graph(dim: usize) -> Graph {
        ArchSpec { width: 0.125, projector: Projector::Mlp { dim }, ..ArchSpec::new("resnet18") }.build().unwrap()
    }

    fn state(graph: &Graph) -> MocoState {
        let mut state = MocoState::new(initialise(graph, 3), 20, 8, 3);
        state.key = initialise(graph, 4);
        state.velocity.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
        state.queue.enqueue(&[0.5; 24], &[7, 8, 9]);
        state
    }

    fn save(checkpoints: &Checkpoints, graph: &Graph, state: &MocoState, step: u64) -> Progress {
        let mut health = HealthTracker::new(8);
        health.add(&StepReport { loss: 1.1, ..StepReport::default() }, &[0.25; 16]);
        let progress = Progress::new(step, 5, state.queue.pointer(), health);
        checkpoints.save(graph, &state.as_ref(), &progress).unwrap();
        progress
    }

    #[test]
    fn everything_comes_back_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, graph) = (Checkpoints::new(folder.path()), graph(8));
        let state = state(&graph);
        let progress = save(&checkpoints, &graph, &state, 12);
        assert_eq!(checkpoints.load(&graph, 12).unwrap(), (state, progress));
    }

    #[test]
    fn another_network_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, ours) = (Checkpoints::new(folder.path()), graph(8));
        save(&checkpoints, &ours, &state(&ours), 1);
        let error = checkpoints.load(&graph(9), 1).unwrap_err().to_string();
        assert!(error.contains("fc.2.weight"), "{error}");
    }

    #[test]
    fn newest_and_chosen_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, graph) = (Checkpoints::new(folder.path()), graph(8));
        let state = state(&graph);
        (1..=6).for_each(|s| drop(save(&checkpoints, &graph, &state, s * 10)));
        checkpoints.prune(2, |s| s == 20).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [20, 50, 60]);
    }
}

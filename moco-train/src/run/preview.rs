//! What a run will need, told in seconds and before it starts.

use std::sync::Arc;
use std::time::Instant;

use moco_engine::{BnGroups, Device, Mode, Plan, PlanConfig};
use moco_image::Rng;
use moco_models::Graph;
use moco_models::init::initialise;

use super::{RunConfig, RunPlan, loader_options};
use crate::compute::{Compute, OnDevice};
use crate::data::{Dataset, Loader};
use crate::objective::{MocoConfig, MocoState, Sgd, Views, open_learner};
use crate::{Error, Result};

/// Memory of a run, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPreview {
    /// Feature maps, gradients and scratch of both encoders.
    pub plans: u64,
    /// Weights of both encoders, gradients, velocity and queue.
    pub state: u64,
    /// Batches that are made ahead.
    pub batches: u64,
    /// Decoded images, at most.
    pub cache: u64,
}

impl MemoryPreview {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.plans + self.state + self.batches + self.cache
    }
}

/// Estimates the memory on `compute`; `decoded_bytes` is the mean size of a decoded image.
///
/// # Errors
/// Where the network does not fit the size of the views.
pub fn memory(config: &RunConfig, compute: &Compute, decoded_bytes: f64) -> Result<MemoryPreview> {
    let recipe = &config.recipe;
    let graph = recipe.arch(config.source.channels).build()?;
    let moco = MocoConfig::new(recipe);
    let plan = |mode| compute.with(Estimate(&graph, moco.plan(mode)));
    let (params, buffers) = (graph.parameter_layout().len(), graph.buffer_layout().len());
    // Two encoders, velocity and gradients, the latter twice when both directions are summed.
    let floats = 2 * (params + buffers) + (1 + moco.directions()) * params + recipe.method.queue * recipe.model.dim;
    let [height, width] = moco.size;
    let view = (4 * moco.batch * height * width * config.source.channels) as u64;
    let prefetch = loader_options(config, 0).prefetch as u64;
    Ok(MemoryPreview {
        plans: plan(Mode::Train)? + plan(Mode::Momentum)?,
        state: (4 * floats + 8 * recipe.method.queue) as u64,
        // Two views each, one batch in use, and the shuffled copy.
        batches: view * (2 * (prefetch + 1) + 1),
        cache: (recipe.data.cache_mib << 20).min((decoded_bytes * config.source.images as f64) as u64),
    })
}

/// Bytes of a plan.
struct Estimate<'a>(&'a Graph, PlanConfig);

impl OnDevice for Estimate<'_> {
    type Output = u64;
    type Error = Error;

    fn on<D: Device + 'static>(self, device: D) -> Result<u64> {
        Ok(Plan::estimate_with(self.0, &self.1, device.kernels()?)?.total() as u64)
    }
}

/// Time of a run, in seconds, from short measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimePreview {
    /// To compute one image of a step.
    pub compute_per_image: f64,
    /// To decode and augment both views of an image, with all threads.
    pub data_per_image: f64,
    /// Images of an epoch.
    pub images_per_epoch: f64,
}

impl TimePreview {
    /// One epoch: computing and data share the cores.
    pub fn epoch(&self) -> f64 {
        (self.compute_per_image + self.data_per_image) * self.images_per_epoch
    }
}

/// Measures a few images through the network and through the loader.
///
/// # Errors
/// As a training step and as the loader.
pub fn time(
    config: &RunConfig,
    compute: &Compute,
    plan: &RunPlan,
    dataset: &Arc<Dataset>,
    threads: usize,
) -> Result<TimePreview> {
    let graph = config.recipe.arch(config.source.channels).build()?;
    Ok(TimePreview {
        compute_per_image: compute_per_image(config, compute, &graph)?,
        data_per_image: data_per_image(config, dataset, threads)?,
        images_per_epoch: (plan.steps_per_epoch * plan.batch as u64).min(config.source.images as u64) as f64,
    })
}

fn compute_per_image(config: &RunConfig, compute: &Compute, graph: &Graph) -> Result<f64> {
    /// Forward passes of about a second on two cores.
    const MACS: u64 = 20_000_000_000;
    const QUEUE: usize = 4096;
    let full = MocoConfig::new(&config.recipe);
    let [height, width] = full.size;
    let n = (MACS / graph.macs(height, width)?.max(1)).clamp(2, full.batch as u64) as usize;
    let moco_config = MocoConfig { batch: n, bn_groups: BnGroups::Whole, mask_same_image: false, ..full };
    let queue = config.recipe.method.queue.min(QUEUE);
    let state = MocoState::new(initialise(graph, 0), queue, config.recipe.model.dim, 0);
    let mut moco = open_learner(compute, graph, &moco_config, state, None)?;
    let mut rng = Rng::new(0, 0);
    let views: Vec<f32> = (0..n * height * width * config.source.channels).map(|_| rng.normal() as f32).collect();
    let images: Vec<u64> = (0..n as u64).collect();
    let batch = Views { views: [&views, &views], images: &images };
    let sgd = Sgd { lr: 0.0, momentum: 0.9, weight_decay: 0.0 };
    moco.step(&batch, &[], &sgd)?;
    let begin = Instant::now();
    moco.step(&batch, &[], &sgd)?;
    Ok(begin.elapsed().as_secs_f64() / n as f64)
}

fn data_per_image(config: &RunConfig, dataset: &Arc<Dataset>, threads: usize) -> Result<f64> {
    const IMAGES: usize = 32;
    let batch = IMAGES.min(dataset.len());
    let mut options = loader_options(config, threads);
    (options.batch, options.cache_bytes, options.prefetch) = (batch, 0, 1);
    let begin = Instant::now();
    let mut loader = Loader::start(dataset.clone(), options, 0, 0)?;
    let n = loader.next_batch()?.n;
    Ok(begin.elapsed().as_secs_f64() / n as f64)
}

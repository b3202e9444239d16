//! A training whose device was chosen at run time: [`Moco`] behind a trait object.

use std::borrow::Cow;
use std::sync::Arc;

use moco_engine::Device;
use moco_engine::device::{DecodedBatch, HostMemory};
use moco_engine::group::Group;
use moco_models::Graph;

use super::{Input, Moco, MocoConfig, MocoState, Sgd, Shuffle, StateRef, StepReport, Views};
use crate::compute::{Compute, OnDevice};
use crate::{Error, Result};

/// [`Moco`] on any device; its methods are those of [`Moco`].
pub trait Learner: Send {
    /// As [`Moco::step`].
    ///
    /// # Errors
    /// As [`Moco::step`].
    fn step(&mut self, batch: &Views<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<StepReport>;
    /// As [`Moco::makes_views`].
    fn makes_views(&self) -> bool;
    /// As [`Moco::host_memory`].
    fn host_memory(&self) -> Arc<dyn HostMemory>;
    /// As [`Moco::send`].
    ///
    /// # Errors
    /// As [`Moco::send`].
    fn send(&mut self, batch: &DecodedBatch<'_>) -> Result<()>;
    /// As [`Moco::launch`].
    ///
    /// # Errors
    /// As [`Moco::step`].
    fn launch(&mut self, input: Input<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<()>;
    /// As [`Moco::finish`].
    ///
    /// # Errors
    /// As [`Moco::finish`].
    fn finish(&mut self) -> Result<StepReport>;
    /// As [`Moco::accuracy_with_running_stats`].
    ///
    /// # Errors
    /// As [`Moco::step`].
    fn accuracy_with_running_stats(&mut self, input: Input<'_>) -> Result<f64>;
    /// As [`Moco::state`].
    ///
    /// # Errors
    /// As [`Device::download`].
    fn state(&self) -> Result<StateRef<'_>>;
    /// As [`Moco::embeddings`].
    ///
    /// # Errors
    /// As [`Device::download`].
    fn embeddings(&self) -> Result<Cow<'_, [f32]>>;
    /// As [`Moco::gradients`].
    ///
    /// # Errors
    /// As [`Device::download`].
    fn gradients(&self) -> Result<Cow<'_, [f32]>>;
    /// As [`Moco::keys`].
    ///
    /// # Errors
    /// As [`Device::download`].
    fn keys(&self) -> Result<Vec<f32>>;
    /// As [`Moco::queue_images`].
    fn queue_images(&self) -> &[u64];
    /// As [`Moco::check_equal`].
    ///
    /// # Errors
    /// As [`Moco::check_equal`].
    fn check_equal(&self) -> Result<()>;
    /// As [`Moco::config`].
    fn config(&self) -> &MocoConfig;
    /// As [`Moco::memory_bytes`].
    fn memory_bytes(&self) -> usize;
}

/// [`Moco::on`] the device that was chosen; with a group, one process of its training, of which `config` and `state` are the
/// whole.
///
/// # Errors
/// As [`Moco::on`], [`MocoConfig::of_process`] and [`Moco::join`], and as [`Compute::with`].
pub fn open_learner(
    compute: &Compute,
    graph: &Graph,
    config: &MocoConfig,
    state: MocoState,
    group: Option<&Arc<Group>>,
) -> Result<Box<dyn Learner>> {
    let config = config.of_process(group.map_or(1, |group| group.world()))?;
    compute.with(Open { graph, config, state, group })
}

struct Open<'a> {
    graph: &'a Graph,
    config: MocoConfig,
    state: MocoState,
    group: Option<&'a Arc<Group>>,
}

impl OnDevice for Open<'_> {
    type Output = Box<dyn Learner>;
    type Error = Error;

    fn on<D: Device + 'static>(self, device: D) -> Result<Box<dyn Learner>> {
        let mut moco = Moco::on(device, self.graph, self.config, self.state)?;
        if let Some(group) = self.group {
            moco.join(group)?;
        }
        Ok(Box::new(moco))
    }
}

impl<D: Device> Learner for Moco<D>
where
    Moco<D>: Send,
{
    fn step(&mut self, batch: &Views<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<StepReport> {
        Moco::step(self, batch, shuffles, sgd)
    }

    fn makes_views(&self) -> bool {
        Moco::makes_views(self)
    }

    fn host_memory(&self) -> Arc<dyn HostMemory> {
        Moco::host_memory(self)
    }

    fn send(&mut self, batch: &DecodedBatch<'_>) -> Result<()> {
        Moco::send(self, batch)
    }

    fn launch(&mut self, input: Input<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<()> {
        Moco::launch(self, input, shuffles, sgd)
    }

    fn finish(&mut self) -> Result<StepReport> {
        Moco::finish(self)
    }

    fn accuracy_with_running_stats(&mut self, input: Input<'_>) -> Result<f64> {
        Moco::accuracy_with_running_stats(self, input)
    }

    fn state(&self) -> Result<StateRef<'_>> {
        Moco::state(self)
    }

    fn embeddings(&self) -> Result<Cow<'_, [f32]>> {
        Moco::embeddings(self)
    }

    fn gradients(&self) -> Result<Cow<'_, [f32]>> {
        Moco::gradients(self)
    }

    fn keys(&self) -> Result<Vec<f32>> {
        Moco::keys(self)
    }

    fn queue_images(&self) -> &[u64] {
        Moco::queue_images(self)
    }

    fn check_equal(&self) -> Result<()> {
        Moco::check_equal(self)
    }

    fn config(&self) -> &MocoConfig {
        Moco::config(self)
    }

    fn memory_bytes(&self) -> usize {
        Moco::memory_bytes(self)
    }
}

//! The static plan: a graph compiled for a batch, an image size and a mode.

mod config;

use moco_models::{Graph, Shape};

use crate::{CpuKernels, Error, Kernels, Result};

pub use config::{BnGroups, MemoryEstimate, Mode, PlanConfig};

/// A network ready to run: fused steps in order and every buffer they need.
///
/// # Example
/// ```
/// use moco_engine::{Mode, Plan, PlanConfig};
/// use moco_models::arch::ArchSpec;
///
/// let graph = ArchSpec { width: 0.125, ..ArchSpec::new("resnet18") }.build()?;
/// let params = vec![0.1; graph.parameter_layout().len()];
/// let mut buffers = vec![1.0; graph.buffer_layout().len()];
/// let mut plan = Plan::compile(&graph, &PlanConfig::new(2, 32, 32, Mode::Train).with_taps(&["pooled"]))?;
/// plan.forward(&params, &mut buffers, &vec![0.5; 2 * 32 * 32 * 3], 2)?;
/// assert_eq!(plan.output("pooled")?.len(), 2 * 64);
///
/// let mut gradients = vec![0.0; params.len()];
/// plan.backward(&params, &[("pooled", &vec![1.0; 2 * 64])], &mut gradients)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Plan<K: Kernels = CpuKernels> {
    kernels: K,
}

impl Plan {
    /// Compiles `graph` for the CPU and allocates its buffers.
    ///
    /// # Errors
    /// [`Error::Graph`] where the image does not fit the network or a tap does not exist, [`Error::Config`] for a batch
    /// or a number of groups of 0.
    pub fn compile(graph: &Graph, config: &PlanConfig) -> Result<Plan> {
        let _ = (graph, config);
        Err(not_yet())
    }

    /// What [`Plan::compile`] would allocate, without allocating it.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn estimate(graph: &Graph, config: &PlanConfig) -> Result<MemoryEstimate> {
        let _ = (graph, config);
        Err(not_yet())
    }
}

impl<K: Kernels> Plan<K> {
    /// Runs the network on `n` images.
    /// - `params`, `buffers`: flat, in the graph's layouts; `buffers` (running statistics) change in
    ///   [`Mode::Momentum`] and [`Mode::Train`].
    /// - `images` [n, height, width, channels], normalised.
    ///
    /// # Errors
    /// [`Error::Batch`], [`Error::Length`], or [`Error::OneValuePerChannel`]; nothing has changed then.
    pub fn forward(&mut self, params: &K::View, buffers: &mut K::View, images: &K::View, n: usize) -> Result<()> {
        let _ = (params, buffers, images, n, &self.kernels);
        Err(not_yet())
    }

    /// A tap of the last forward pass, NHWC, for the `n` images it was given.
    ///
    /// # Errors
    /// [`Error::Graph`] if the plan has no such tap, [`Error::State`] before the first forward pass.
    pub fn output(&self, tap: &str) -> Result<&K::View> {
        let _ = tap;
        Err(not_yet())
    }

    /// Shape of a tap for one image.
    ///
    /// # Errors
    /// [`Error::Graph`] if the plan has no such tap.
    pub fn output_shape(&self, tap: &str) -> Result<Shape> {
        let _ = tap;
        Err(not_yet())
    }

    /// Gradients of the parameters after a forward pass in [`Mode::Train`].
    /// - `params`: those of the forward pass.
    /// - `d_taps`: gradients of the loss with respect to taps, each like the tap's output; taps left out have none.
    /// - `gradients`: flat, in the order of `params`; overwritten (0 where no gradient arrives).
    ///
    /// A forward pass serves one backward pass: its buffers are reused on the way.
    ///
    /// # Errors
    /// [`Error::State`] without a forward pass in [`Mode::Train`], [`Error::Graph`] for an unknown tap,
    /// [`Error::Length`].
    pub fn backward(&mut self, params: &K::View, d_taps: &[(&str, &K::View)], gradients: &mut K::View) -> Result<()> {
        let _ = (params, d_taps, gradients);
        Err(not_yet())
    }

    /// Bytes of all buffers.
    pub fn memory_bytes(&self) -> usize {
        0
    }
}

fn not_yet() -> Error {
    Error::State("the plan is not written yet".into())
}

//! A network that is only run, on a device that was chosen at run time.

use moco_engine::device::Buffer;
use moco_engine::{Device, Kernels, Plan, PlanConfig};
use moco_models::{Graph, Weights};

use crate::compute::OnDevice;
use crate::{Error, Result};

/// From images to one tap.
pub(super) trait Network {
    /// Number of values of the tap for one image.
    fn dim(&self) -> usize;

    /// Appends the tap of `n` images [n, height, width, channels] to `out`.
    fn run(&mut self, images: &[f32], n: usize, out: &mut Vec<f32>) -> Result<()>;
}

/// Compiles a network of which only one tap is kept.
pub(super) struct Open<'a> {
    pub graph: &'a Graph,
    pub config: PlanConfig,
    pub weights: Weights,
    pub tap: &'a str,
}

impl OnDevice for Open<'_> {
    type Output = Box<dyn Network>;
    type Error = Error;

    fn on<D: Device + 'static>(self, mut device: D) -> Result<Box<dyn Network>> {
        let plan = Plan::compile_with(self.graph, &self.config.with_taps(&[self.tap]), device.kernels()?)?;
        let dim = plan.output_shape(self.tap)?.numel();
        let lens = [self.weights.params.len(), self.weights.buffers.len()];
        let params = device.buffer(self.weights.params)?;
        let buffers = device.buffer(self.weights.buffers)?;
        Ok(Box::new(Opened { device, plan, params, buffers, lens, dim, tap: self.tap.to_string(), staged: None }))
    }
}

struct Opened<D: Device> {
    device: D,
    plan: Plan<D::Kernels>,
    params: Buffer<D>,
    buffers: Buffer<D>,
    lens: [usize; 2],
    dim: usize,
    tap: String,
    staged: Option<Buffer<D>>,
}

impl<D: Device> Network for Opened<D> {
    fn dim(&self) -> usize {
        self.dim
    }

    fn run(&mut self, images: &[f32], n: usize, out: &mut Vec<f32>) -> Result<()> {
        let images = self.device.stage(images, &mut self.staged)?;
        let params = D::Kernels::view(&self.params, self.lens[0]);
        let buffers = D::Kernels::view_mut(&mut self.buffers, self.lens[1]);
        self.plan.forward(params, buffers, images, n)?;
        out.extend_from_slice(&self.device.download(self.plan.output(&self.tap)?)?);
        Ok(())
    }
}

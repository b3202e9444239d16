//! An encoder: weights, the plan that runs them, and embeddings of unit length, all in the memory of a device.

use moco_engine::device::{Buffer, View};
use moco_engine::{Cpu, Device, Kernels, Plan, PlanConfig};
use moco_models::{Graph, Weights};

use super::WeightsRef;
use crate::Result;

const TAP: &str = "projection";

/// f_q or f_k of the paper, followed by normalisation.
pub struct Encoder<D: Device = Cpu> {
    params: Buffer<D>,
    buffers: Buffer<D>,
    params_len: usize,
    buffers_len: usize,
    plan: Plan<D::Kernels>,
    dim: usize,
    embeddings: Buffer<D>,   // [batch, dim], rows of unit length
    d_projection: Buffer<D>, // [batch, dim]
    n: usize,
}

impl<D: Device> Encoder<D> {
    /// Compiles the plan of `graph`, which has the tap `projection`, for these weights.
    ///
    /// # Errors
    /// As [`Plan::compile`], and if the device has not that much memory.
    pub fn new(device: &mut D, graph: &Graph, config: &PlanConfig, weights: Weights) -> Result<Encoder<D>> {
        let plan = Plan::compile_with(graph, &config.clone().with_taps(&[TAP]), device.kernels()?)?;
        let dim = plan.output_shape(TAP)?.numel();
        let (params_len, buffers_len) = (weights.params.len(), weights.buffers.len());
        Ok(Encoder {
            params: device.buffer(weights.params)?,
            buffers: device.buffer(weights.buffers)?,
            params_len,
            buffers_len,
            embeddings: device.buffer(vec![0.0; config.batch * dim])?,
            d_projection: device.buffer(vec![0.0; config.batch * dim])?,
            plan,
            dim,
            n: 0,
        })
    }

    /// Encodes `n` images [n, height, width, channels] and returns their embeddings [n, dim], rows of unit length.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    pub fn encode(&mut self, device: &mut D, images: &View<D>, n: usize) -> Result<&View<D>> {
        let params = D::Kernels::view(&self.params, self.params_len);
        let buffers = D::Kernels::view_mut(&mut self.buffers, self.buffers_len);
        self.plan.forward(params, buffers, images, n)?;
        self.n = n;
        let embeddings = D::Kernels::view_mut(&mut self.embeddings, n * self.dim);
        device.l2_normalise(self.plan.output(TAP)?, self.dim, embeddings);
        Ok(self.embeddings())
    }

    /// Gradient of the parameters (overwritten) from the gradient of the embeddings of the last [`Encoder::encode`].
    ///
    /// # Errors
    /// As [`Plan::backward`].
    pub fn backward(&mut self, device: &mut D, d_embeddings: &View<D>, gradients: &mut View<D>) -> Result<()> {
        let d_projection = D::Kernels::view_mut(&mut self.d_projection, self.n * self.dim);
        device.l2_normalise_backward(self.plan.output(TAP)?, d_embeddings, self.dim, d_projection);
        let params = D::Kernels::view(&self.params, self.params_len);
        self.plan.backward(params, &[(TAP, d_projection)], gradients)?;
        Ok(())
    }

    /// θ ← m·θ + (1 − m)·θ_query (eq. 2), over the parameters only: the key encoder's running statistics are its own.
    pub fn follow(&mut self, device: &mut D, query: &Encoder<D>, m: f64) {
        device.ema(self.params_mut(), query.params(), m as f32);
    }

    /// The embeddings of the last [`Encoder::encode`], [n, dim].
    pub fn embeddings(&self) -> &View<D> {
        D::Kernels::view(&self.embeddings, self.n * self.dim)
    }

    /// Its parameters.
    pub fn params(&self) -> &View<D> {
        D::Kernels::view(&self.params, self.params_len)
    }

    /// Its parameters, to be moved by an optimiser.
    pub fn params_mut(&mut self) -> &mut View<D> {
        D::Kernels::view_mut(&mut self.params, self.params_len)
    }

    /// Its weights on the host.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn weights(&self, device: &D) -> Result<WeightsRef<'_>> {
        let buffers = D::Kernels::view(&self.buffers, self.buffers_len);
        Ok(WeightsRef { params: device.download(self.params())?, buffers: device.download(buffers)? })
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes of the plan's buffers.
    pub fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }
}

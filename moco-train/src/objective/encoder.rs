//! An encoder: weights, the plan that runs them, and embeddings of unit length.

use moco_engine::ops::{ema, l2_normalise, l2_normalise_backward};
use moco_engine::{Plan, PlanConfig};
use moco_models::{Graph, Weights};

use crate::Result;

const TAP: &str = "projection";

/// f_q or f_k of the paper, followed by normalisation.
pub struct Encoder {
    weights: Weights,
    plan: Plan,
    dim: usize,
    embeddings: Vec<f32>,   // [n, dim], rows of unit length
    d_projection: Vec<f32>, // [n, dim]
}

impl Encoder {
    /// Compiles the plan of `graph`, which has the tap `projection`, for these weights.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn new(graph: &Graph, config: &PlanConfig, weights: Weights) -> Result<Encoder> {
        let plan = Plan::compile(graph, &config.clone().with_taps(&[TAP]))?;
        let dim = plan.output_shape(TAP)?.numel();
        Ok(Encoder { weights, plan, dim, embeddings: vec![], d_projection: vec![] })
    }

    /// Encodes `n` images [n, height, width, channels] and returns their embeddings [n, dim], rows of unit length.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    pub fn encode(&mut self, images: &[f32], n: usize) -> Result<&[f32]> {
        self.plan.forward(&self.weights.params, &mut self.weights.buffers, images, n)?;
        let projection = self.plan.output(TAP)?;
        self.embeddings.resize(projection.len(), 0.0);
        l2_normalise(projection, self.dim, &mut self.embeddings);
        Ok(&self.embeddings)
    }

    /// Gradient of the parameters (overwritten) from the gradient of the embeddings of the last [`Encoder::encode`].
    ///
    /// # Errors
    /// As [`Plan::backward`].
    pub fn backward(&mut self, d_embeddings: &[f32], gradients: &mut [f32]) -> Result<()> {
        self.d_projection.resize(d_embeddings.len(), 0.0);
        l2_normalise_backward(self.plan.output(TAP)?, d_embeddings, self.dim, &mut self.d_projection);
        self.plan.backward(&self.weights.params, &[(TAP, &self.d_projection)], gradients)?;
        Ok(())
    }

    /// θ ← m·θ + (1 − m)·θ_query (eq. 2), over the parameters only: the key encoder's running statistics are its own.
    pub fn follow(&mut self, query: &Encoder, m: f64) {
        ema(&mut self.weights.params, &query.weights.params, m as f32);
    }

    /// The embeddings of the last [`Encoder::encode`], [n, dim].
    pub fn embeddings(&self) -> &[f32] {
        &self.embeddings
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Its weights, to be moved by an optimiser.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
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

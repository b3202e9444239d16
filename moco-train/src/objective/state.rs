//! What a training carries from step to step: owned on the host, or as it lies in a training's memory.

use std::borrow::Cow;

use moco_image::Rng;
use moco_models::Weights;

use super::{KeyQueue, QueueRef};

/// Everything that a training carries from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct MocoState {
    /// Weights of the query encoder.
    pub query: Weights,
    /// Weights of the key encoder.
    pub key: Weights,
    /// Velocity of SGD, in the order of the query's parameters.
    pub velocity: Vec<f32>,
    /// The dictionary.
    pub queue: KeyQueue,
}

impl MocoState {
    /// The start: the key encoder equals the query encoder, the queue is random.
    pub fn new(query: Weights, queue_capacity: usize, dim: usize, seed: u64) -> MocoState {
        const QUEUE: u64 = 0x7175_6575_6530;
        let queue = KeyQueue::random(queue_capacity, dim, &mut Rng::new(seed, QUEUE));
        MocoState { key: query.clone(), velocity: vec![0.0; query.params.len()], query, queue }
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> StateRef<'_> {
        StateRef {
            query: WeightsRef::from(&self.query),
            key: WeightsRef::from(&self.key),
            velocity: Cow::Borrowed(&self.velocity),
            queue: self.queue.as_ref(),
        }
    }
}

/// A [`MocoState`] that still belongs to its training; borrowed where that computes on the host, else a copy.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRef<'a> {
    /// Weights of the query encoder.
    pub query: WeightsRef<'a>,
    /// Weights of the key encoder.
    pub key: WeightsRef<'a>,
    /// Velocity of SGD.
    pub velocity: Cow<'a, [f32]>,
    /// The dictionary.
    pub queue: QueueRef<'a>,
}

impl StateRef<'_> {
    /// A state of its own.
    pub fn into_owned(self) -> MocoState {
        MocoState {
            query: self.query.into_owned(),
            key: self.key.into_owned(),
            velocity: self.velocity.into_owned(),
            queue: self.queue.into_owned(),
        }
    }
}

/// [`Weights`] that still belong to an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightsRef<'a> {
    /// In the order of [`Graph::parameter_layout`](moco_models::Graph::parameter_layout).
    pub params: Cow<'a, [f32]>,
    /// Running statistics, in the order of [`Graph::buffer_layout`](moco_models::Graph::buffer_layout).
    pub buffers: Cow<'a, [f32]>,
}

impl WeightsRef<'_> {
    /// Weights of their own.
    pub fn into_owned(self) -> Weights {
        Weights { params: self.params.into_owned(), buffers: self.buffers.into_owned(), ..Weights::default() }
    }
}

impl<'a> From<&'a Weights> for WeightsRef<'a> {
    fn from(weights: &'a Weights) -> WeightsRef<'a> {
        WeightsRef { params: Cow::Borrowed(&weights.params), buffers: Cow::Borrowed(&weights.buffers) }
    }
}

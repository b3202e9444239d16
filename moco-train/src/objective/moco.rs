//! Momentum Contrast, v1 (arXiv:1911.05722) and v2 (arXiv:2003.04297), and the symmetric form of the CIFAR-10 demo.

use moco_engine::ops::{InfoNce, InfoNceInputs, InfoNceWorkspace, SameImage, info_nce, sgd_momentum};
use moco_engine::{BnGroups, Mode, PlanConfig, Recompute};
use moco_image::Rng;
use moco_models::{Graph, Weights};

use super::{Encoder, KeyQueue, Shuffle};
use crate::recipe::{GroupKind, Recipe};
use crate::{Error, Result};

/// What decides a step, beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MocoConfig {
    /// Most images in a step.
    pub batch: usize,
    /// Height and width of a view in pixels.
    pub size: [usize; 2],
    /// Divides the similarities.
    pub temperature: f64,
    /// Momentum of the key encoder.
    pub key_momentum: f64,
    /// Both views are queries; their losses are added.
    pub symmetric: bool,
    /// Leaves older keys of the query's own image out of its negatives.
    pub mask_same_image: bool,
    /// Who shares batch statistics.
    pub bn_groups: BnGroups,
    /// What the query encoder computes twice to save memory.
    pub recompute: Recompute,
}

impl MocoConfig {
    /// From a recipe.
    pub fn new(recipe: &Recipe) -> MocoConfig {
        let count = recipe.batch_norm.count;
        MocoConfig {
            batch: recipe.optim.batch,
            size: recipe.augment.size,
            temperature: recipe.method.temperature,
            key_momentum: recipe.method.key_momentum,
            symmetric: recipe.method.symmetric,
            mask_same_image: recipe.method.mask_same_image,
            bn_groups: match recipe.batch_norm.groups {
                GroupKind::Ranks if count > 1 => BnGroups::Ranks(count),
                GroupKind::Interleaved if count > 1 => BnGroups::Interleaved(count),
                _ => BnGroups::Whole,
            },
            recompute: Recompute::Nothing,
        }
    }

    /// Directions of the contrast: 2 when symmetric.
    pub fn directions(&self) -> usize {
        if self.symmetric { 2 } else { 1 }
    }

    /// Fewest images of a step: every group of statistics gets two.
    pub fn least_batch(&self) -> usize {
        match self.bn_groups {
            BnGroups::Whole => 2,
            BnGroups::Ranks(groups) | BnGroups::Interleaved(groups) => 2 * groups,
        }
    }

    /// The plan of an encoder.
    pub fn plan(&self, mode: Mode) -> PlanConfig {
        let [height, width] = self.size;
        PlanConfig::new(self.batch, height, width, mode)
            .with_bn_groups(self.bn_groups)
            .with_recompute(self.recompute)
            .with_taps(&["projection"])
    }
}

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
}

/// Two views of each image of a batch, [n, height, width, channels] each, and the images' numbers [n].
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The views.
    pub views: [&'a [f32]; 2],
    /// Which images they show.
    pub images: &'a [u64],
}

/// SGD with momentum, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
}

/// What a step tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Loss as it is minimised, in nats; the sum of both directions when symmetric.
    pub loss: f64,
    /// Share of the queries whose positive is the most similar of K + 1.
    pub accuracy: f64,
    /// Mean q · k over positives.
    pub positive_similarity: f64,
    /// Mean q · k over negatives.
    pub negative_similarity: f64,
}

/// A training in memory.
pub struct Moco {
    config: MocoConfig,
    graph: Graph,
    query: Encoder,
    key: Encoder,
    queue: KeyQueue,
    velocity: Vec<f32>,
    gradients: Vec<f32>,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    shuffled: Vec<f32>,       // [n, height, width, channels]
    keys: Vec<f32>,           // [n, dim]
    d_query: Vec<f32>,        // [n, dim]
    more_gradients: Vec<f32>, // like the parameters, for the second direction
    loss: InfoNceWorkspace,
}

impl Moco {
    /// Compiles both encoders of `graph`, a network with a projector.
    ///
    /// # Errors
    /// [`Error::Engine`] where the network does not fit, [`Error::Invalid`] where the state does not.
    pub fn new(graph: &Graph, config: MocoConfig, state: MocoState) -> Result<Moco> {
        let [height, width] = config.size;
        let dim = graph.shapes(height, width)?[graph.tap("projection")?.0].numel();
        let (params, buffers) = (graph.parameter_layout().len(), graph.buffer_layout().len());
        let fits = |w: &Weights| w.params.len() == params && w.buffers.len() == buffers;
        if !fits(&state.query) || !fits(&state.key) || state.velocity.len() != params || state.queue.dim() != dim {
            return Err(Error::Invalid(format!(
                "this state does not belong to this network of {params} parameters, {buffers} running statistics and \
                 embeddings of {dim}"
            )));
        }
        Ok(Moco {
            query: Encoder::new(graph, &config.plan(Mode::Train), state.query)?,
            key: Encoder::new(graph, &config.plan(Mode::Momentum), state.key)?,
            queue: state.queue,
            velocity: state.velocity,
            gradients: vec![0.0; params],
            scratch: Scratch {
                more_gradients: vec![0.0; if config.symmetric { params } else { 0 }],
                ..Scratch::default()
            },
            config,
            graph: graph.clone(),
        })
    }

    /// One step of Algorithm 1.
    /// - `shuffles`: one permutation of the n images per direction; none = no shuffling.
    ///
    /// # Errors
    /// [`Error::Engine`] where lengths do not fit; the weights have not moved then.
    pub fn step(&mut self, batch: &Views<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<StepReport> {
        let [view_1, view_2] = batch.views;
        self.key.follow(&self.query, self.config.key_momentum);
        let (loss, keys, images) = if self.config.symmetric {
            let loss_12 = self.contrast(view_1, view_2, batch.images, shuffles.first())?;
            std::mem::swap(&mut self.gradients, &mut self.scratch.more_gradients);
            let mut keys_2 = std::mem::take(&mut self.scratch.keys);
            let loss_21 = self.contrast(view_2, view_1, batch.images, shuffles.get(1))?;
            add(&mut self.gradients, &self.scratch.more_gradients);
            let mut keys = std::mem::take(&mut self.scratch.keys);
            keys.append(&mut keys_2);
            ([loss_12, loss_21], keys, [batch.images, batch.images].concat())
        } else {
            let loss = self.contrast(view_1, view_2, batch.images, shuffles.first())?;
            ([loss, InfoNce::default()], std::mem::take(&mut self.scratch.keys), batch.images.to_vec())
        };
        let (lr, momentum, weight_decay) = (sgd.lr as f32, sgd.momentum as f32, sgd.weight_decay as f32);
        sgd_momentum(
            &mut self.query.weights_mut().params,
            &self.gradients,
            &mut self.velocity,
            lr,
            momentum,
            weight_decay,
        );
        self.queue.enqueue(&keys, &images);
        self.scratch.keys = keys;
        Ok(report(&loss[..self.config.directions()], batch.images.len()))
    }

    /// Loss of the queries of one view against the keys of the other and the queue; leaves the gradients and the keys.
    fn contrast(
        &mut self,
        query_view: &[f32],
        key_view: &[f32],
        images: &[u64],
        shuffle: Option<&Shuffle>,
    ) -> Result<InfoNce> {
        let n = images.len();
        let Scratch { shuffled, keys, d_query, loss, .. } = &mut self.scratch;
        let values = self.query.encode(query_view, n)?.len(); // q [n, dim]
        keys.resize(values, 0.0);
        match shuffle {
            Some(shuffle) => {
                shuffled.resize(key_view.len(), 0.0);
                shuffle.apply(key_view, shuffled);
                shuffle.undo(self.key.encode(shuffled, n)?, keys); // k [n, dim], no gradient
            }
            None => keys.copy_from_slice(self.key.encode(key_view, n)?),
        }
        d_query.resize(values, 0.0);
        let inputs = InfoNceInputs {
            query: self.query.embeddings(),
            key: keys,
            queue: self.queue.keys(),
            dim: self.queue.dim(),
            temperature: self.config.temperature as f32,
            same_image: self.config.mask_same_image.then(|| SameImage { query: images, queue: self.queue.images() }),
        };
        let result = info_nce(&inputs, d_query, loss)?;
        self.query.backward(d_query, &mut self.gradients)?;
        Ok(result)
    }

    /// Share of the queries whose positive is the most similar when both encoders use their running statistics: what is
    /// left of the accuracy when images of a batch can tell each other nothing. Looks at up to 64 images, changes nothing.
    ///
    /// # Errors
    /// As [`Moco::step`].
    pub fn accuracy_with_running_stats(&self, batch: &Views<'_>) -> Result<f64> {
        const MOST_IMAGES: usize = 64;
        let n = batch.images.len().min(MOST_IMAGES);
        let values = n * batch.views[0].len() / batch.images.len();
        let plan = PlanConfig { batch: n, ..self.config.plan(Mode::Eval) };
        let mut query = Encoder::new(&self.graph, &plan, self.query.weights().clone())?;
        let mut key = Encoder::new(&self.graph, &plan, self.key.weights().clone())?;
        let inputs = InfoNceInputs {
            query: query.encode(&batch.views[0][..values], n)?,
            key: key.encode(&batch.views[1][..values], n)?,
            queue: self.queue.keys(),
            dim: self.queue.dim(),
            temperature: self.config.temperature as f32,
            // The keys of this very batch are in the queue by now.
            same_image: Some(SameImage { query: &batch.images[..n], queue: self.queue.images() }),
        };
        let mut unused = vec![0.0; n * self.queue.dim()];
        let result = info_nce(&inputs, &mut unused, &mut InfoNceWorkspace::default())?;
        Ok(result.correct as f64 / n as f64)
    }

    /// The network's weights, the velocity and the queue, to be saved.
    pub fn state(&self) -> StateRef<'_> {
        StateRef { query: self.query.weights(), key: self.key.weights(), velocity: &self.velocity, queue: &self.queue }
    }

    /// The gradients of the last step, in the order of the parameters.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Query embeddings of the last direction of the last step, [n, dim].
    pub fn embeddings(&self) -> &[f32] {
        self.query.embeddings()
    }

    /// Keys of the last step [directions · n, dim], as they were enqueued.
    pub fn keys(&self) -> &[f32] {
        &self.scratch.keys
    }

    /// What decides a step.
    pub fn config(&self) -> &MocoConfig {
        &self.config
    }

    /// Bytes of all buffers: both plans, weights, gradients, velocity and queue.
    pub fn memory_bytes(&self) -> usize {
        let state = self.state();
        let weights = |w: &Weights| w.params.len() + w.buffers.len();
        let floats = weights(state.query)
            + weights(state.key)
            + self.velocity.len()
            + self.gradients.len()
            + self.scratch.more_gradients.len()
            + self.queue.keys().len();
        self.query.memory_bytes() + self.key.memory_bytes() + 4 * floats + 8 * self.queue.capacity()
    }
}

/// A [`MocoState`] that still belongs to its [`Moco`].
#[derive(Clone, Copy, Debug)]
pub struct StateRef<'a> {
    /// Weights of the query encoder.
    pub query: &'a Weights,
    /// Weights of the key encoder.
    pub key: &'a Weights,
    /// Velocity of SGD.
    pub velocity: &'a [f32],
    /// The dictionary.
    pub queue: &'a KeyQueue,
}

fn report(directions: &[InfoNce], n: usize) -> StepReport {
    let count = directions.len() as f64;
    let mean = |f: fn(&InfoNce) -> f64| directions.iter().map(f).sum::<f64>() / count;
    StepReport {
        loss: directions.iter().map(|d| d.loss).sum(),
        accuracy: mean(|d| d.correct as f64) / n as f64,
        positive_similarity: mean(|d| d.positive_similarity),
        negative_similarity: mean(|d| d.negative_similarity),
    }
}

fn add(sum: &mut [f32], other: &[f32]) {
    for (s, o) in sum.iter_mut().zip(other) {
        *s += o;
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

//! Momentum Contrast, v1 (arXiv:1911.05722) and v2 (arXiv:2003.04297), and the symmetric form of the CIFAR-10 demo.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use moco_engine::device::{Buffer, ContrastInputs, DecodedBatch, HostMemory, SgdUpdate, View};
use moco_engine::group::Group;
use moco_engine::ops::{InfoNce, SameImage};
use moco_engine::{Cpu, Device, Kernels, Mode, PlanConfig};
use moco_models::{Graph, Weights};

use super::others::Others;
use super::queue::advance;
use super::{Encoder, Input, MocoConfig, MocoState, QueueRef, Sgd, Shuffle, StateRef, StepReport, Views};
use crate::{Error, Result};

/// A training in the memory of a device.
pub struct Moco<D: Device = Cpu> {
    graph: Graph,
    contrast: Contrast<D>,
    /// Views of the last step, where the device cannot read them on the host.
    views: [Option<Buffer<D>>; 2],
    /// Batches that were sent and not used yet.
    sent: VecDeque<D::Decoded>,
    /// The batch of the step that was launched, and one whose memory can be used again.
    current: Option<D::Decoded>,
    spare: Option<D::Decoded>,
    /// Images and losses of a step that was launched.
    launched: Option<(usize, Vec<D::Loss>)>,
}

/// What the two directions of a symmetric step share.
struct Contrast<D: Device> {
    config: MocoConfig,
    device: D,
    query: Encoder<D>,
    key: Encoder<D>,
    queue: Queue<D>,
    params: usize,
    velocity: Buffer<D>,
    gradients: Buffer<D>,
    /// Gradients of the first direction where there are two.
    more_gradients: Option<Buffer<D>>,
    /// [batch, dim] for each direction.
    keys: Vec<Buffer<D>>,
    d_query: Buffer<D>,          // [batch, dim]
    shuffled: Option<Buffer<D>>, // [batch, height, width, channels], made when it is first needed
    n: usize,
    /// The processes that train together with this one.
    others: Option<Others<D>>,
}

/// The dictionary: its keys on the device, which image each came from on the host.
struct Queue<D: Device> {
    dim: usize,
    keys: Buffer<D>,
    images: Vec<u64>,
    pointer: usize,
}

impl Moco {
    /// A training on the CPU in f32.
    ///
    /// # Errors
    /// As [`Moco::on`].
    pub fn new(graph: &Graph, config: MocoConfig, state: MocoState) -> Result<Moco> {
        Moco::on(Cpu::default(), graph, config, state)
    }
}

impl<D: Device> Moco<D> {
    /// Compiles both encoders of `graph`, a network with a projector.
    ///
    /// # Errors
    /// [`Error::Engine`] where the network does not fit, [`Error::Invalid`] where the state does not.
    pub fn on(mut device: D, graph: &Graph, config: MocoConfig, state: MocoState) -> Result<Moco<D>> {
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
        let (keys, images, pointer) = state.queue.into_parts();
        let more_gradients = if config.symmetric { Some(device.buffer(vec![0.0; params])?) } else { None };
        let rows = |device: &mut D| device.buffer(vec![0.0; config.batch * dim]);
        let contrast = Contrast {
            query: Encoder::new(&mut device, graph, &config.plan(Mode::Train), state.query)?,
            key: Encoder::new(&mut device, graph, &config.plan(Mode::Momentum), state.key)?,
            queue: Queue { dim, keys: device.buffer(keys)?, images, pointer },
            params,
            velocity: device.buffer(state.velocity)?,
            gradients: device.buffer(vec![0.0; params])?,
            more_gradients,
            keys: (0..config.directions()).map(|_| rows(&mut device)).collect::<moco_engine::Result<_>>()?,
            d_query: rows(&mut device)?,
            shuffled: None,
            n: 0,
            others: None,
            device,
            config,
        };
        let (views, sent) = ([None, None], VecDeque::new());
        Ok(Moco { graph: graph.clone(), contrast, views, sent, current: None, spare: None, launched: None })
    }

    /// Makes it one process of a training: the batch of a step is that of all processes, of which each gives its slice, in the
    /// order of their numbers; gradients are averaged and every process enqueues all keys. All processes begin with the same
    /// state and make the same calls.
    ///
    /// # Errors
    /// As [`Device::collective`].
    pub fn join(&mut self, group: &Arc<Group>) -> Result<()>
    where
        D: 'static,
    {
        let Contrast { device, config, queue, others, .. } = &mut self.contrast;
        *others = Some(Others::new(device, group, config, queue.dim)?);
        Ok(())
    }

    /// One step of Algorithm 1.
    /// - `batch`: this process's images.
    /// - `shuffles`: one permutation of the images of all processes per direction; none = no shuffling.
    ///
    /// # Errors
    /// [`Error::Engine`] where lengths do not fit; the query's weights have not moved then.
    pub fn step(&mut self, batch: &Views<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<StepReport> {
        self.launch(Input::Views(batch), shuffles, sgd)?;
        self.finish()
    }

    /// Begins to copy decoded images to a device that makes the views itself; up to two batches may wait. Their memory on
    /// the host must stay as it is until the step that uses them is finished.
    ///
    /// # Errors
    /// As [`Device::send`].
    pub fn send(&mut self, batch: &DecodedBatch<'_>) -> Result<()> {
        let sent = self.contrast.device.send(batch, self.spare.take())?;
        self.sent.push_back(sent);
        Ok(())
    }

    /// Starts a step, which [`Moco::finish`] ends; a device may compute in between.
    ///
    /// # Errors
    /// As [`Moco::step`].
    pub fn launch(&mut self, input: Input<'_>, shuffles: &[Shuffle], sgd: &Sgd) -> Result<()> {
        let images = input.images();
        let everyone = self.contrast.others.as_ref().map(|others| others.images(images)).transpose()?;
        if let Input::Sent(_) = input {
            self.make_views(images.len())?;
        }
        let Moco { contrast, views: [memory_1, memory_2], .. } = self;
        let [view_1, view_2] = match input {
            Input::Views(batch) => {
                [contrast.device.stage(batch.views[0], memory_1)?, contrast.device.stage(batch.views[1], memory_2)?]
            }
            Input::Sent(_) | Input::Again(_) => {
                let (Some(view_1), Some(view_2)) = (memory_1, memory_2) else {
                    return Err(Error::Invalid(format!(
                        "{} keeps no views of the last step",
                        contrast.device.describe()
                    )));
                };
                let len = contrast.view_len(images.len(), &self.graph);
                [D::Kernels::view(view_1, len), D::Kernels::view(view_2, len)]
            }
        };
        contrast.key.follow(&mut contrast.device, &contrast.query, contrast.config.key_momentum);
        let (_, mut losses) = self.launched.take().unwrap_or_default();
        losses.clear();
        losses.push(contrast.direction(0, view_1, view_2, images, shuffles.first())?);
        if contrast.config.symmetric {
            losses.push(contrast.direction(1, view_2, view_1, images, shuffles.get(1))?);
        }
        contrast.learn(sgd)?;
        contrast.enqueue(everyone.as_deref().unwrap_or(images))?;
        self.launched = Some((images.len(), losses));
        Ok(())
    }

    /// Waits for the step that was launched.
    ///
    /// # Errors
    /// [`Error::Engine`] if the device has failed; [`Error::Invalid`] if no step was launched.
    pub fn finish(&mut self) -> Result<StepReport> {
        let Some((n, losses)) = &mut self.launched else {
            return Err(Error::Invalid("no step was launched that could be finished".into()));
        };
        let mut results = [InfoNce::default(); 2];
        let directions = losses.len();
        for (result, loss) in results.iter_mut().zip(losses.drain(..)) {
            *result = self.contrast.device.loss(loss)?;
        }
        // Everything that reads this batch is done.
        self.spare = self.current.take().or(self.spare.take());
        let results = &mut results[..directions];
        let n = match &self.contrast.others {
            Some(others) => others.sum_up(results, *n)?,
            None => *n,
        };
        Ok(StepReport::new(results, n))
    }

    /// Makes both views of the batch that was sent first.
    fn make_views(&mut self, n: usize) -> Result<()> {
        let Contrast { config, device, .. } = &mut self.contrast;
        let batch =
            self.sent.pop_front().ok_or_else(|| Error::Invalid("no batch was sent that a step could use".into()))?;
        let len = config.size[0] * config.size[1] * self.graph.in_channels();
        for (which, memory) in self.views.iter_mut().enumerate() {
            let memory = match memory {
                Some(memory) => memory,
                none => none.insert(device.buffer(vec![0.0; config.batch * len])?),
            };
            device.make_view(&batch, which, D::Kernels::view_mut(memory, n * len))?;
        }
        self.current = Some(batch);
        Ok(())
    }

    /// Share of the queries whose positive is the most similar when both encoders use their running statistics: what is
    /// left of the accuracy when images of a batch can tell each other nothing. Looks at up to 64 images of the last step,
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Moco::step`].
    pub fn accuracy_with_running_stats(&mut self, input: Input<'_>) -> Result<f64> {
        const MOST_IMAGES: usize = 64;
        let images = input.images();
        let n = images.len().min(MOST_IMAGES);
        let values = self.contrast.view_len(n, &self.graph);
        let Contrast { config, device, query, key, queue, .. } = &mut self.contrast;
        let plan = PlanConfig { batch: n, ..config.plan(Mode::Eval) };
        let (query, key) = (query.weights(device)?.into_owned(), key.weights(device)?.into_owned());
        let mut query = Encoder::new(device, &self.graph, &plan, query)?;
        let mut key = Encoder::new(device, &self.graph, &plan, key)?;
        let (mut memory_1, mut memory_2) = (None, None);
        let [view_1, view_2] = match (input, &self.views) {
            (Input::Views(batch), _) => [
                device.stage(&batch.views[0][..values], &mut memory_1)?,
                device.stage(&batch.views[1][..values], &mut memory_2)?,
            ],
            (Input::Sent(_) | Input::Again(_), [Some(view_1), Some(view_2)]) => {
                [D::Kernels::view(view_1, values), D::Kernels::view(view_2, values)]
            }
            _ => return Err(Error::Invalid(format!("{} keeps no views of the last step", device.describe()))),
        };
        let inputs = ContrastInputs {
            query: query.encode(device, view_1, n)?,
            key: key.encode(device, view_2, n)?,
            queue: queue.keys(),
            dim: queue.dim,
            temperature: config.temperature as f32,
            // The keys of this very batch are in the queue by now.
            same_image: Some(SameImage { query: &images[..n], queue: &queue.images }),
        };
        let mut unused = device.buffer(vec![0.0; n * queue.dim])?;
        let loss = device.info_nce(&inputs, D::Kernels::view_mut(&mut unused, n * queue.dim))?;
        Ok(device.loss(loss)?.correct as f64 / n as f64)
    }

    /// The network's weights, the velocity and the queue, to be saved.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn state(&self) -> Result<StateRef<'_>> {
        let Contrast { device, query, key, queue, velocity, params, .. } = &self.contrast;
        let Queue { dim, images, pointer, .. } = queue;
        let keys = device.download(queue.keys())?;
        Ok(StateRef {
            query: query.weights(device)?,
            key: key.weights(device)?,
            velocity: device.download(D::Kernels::view(velocity, *params))?,
            queue: QueueRef { dim: *dim, keys, images, pointer: *pointer },
        })
    }

    /// As [`Device::makes_views`].
    pub fn makes_views(&self) -> bool {
        self.contrast.device.makes_views()
    }

    /// As [`Device::host_memory`].
    pub fn host_memory(&self) -> Arc<dyn HostMemory> {
        self.contrast.device.host_memory()
    }

    /// Which image each key of the queue came from [K].
    pub fn queue_images(&self) -> &[u64] {
        &self.contrast.queue.images
    }

    /// The gradients of the last step, in the order of the parameters.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn gradients(&self) -> Result<Cow<'_, [f32]>> {
        let Contrast { device, gradients, params, .. } = &self.contrast;
        Ok(device.download(D::Kernels::view(gradients, *params))?)
    }

    /// Query embeddings of the last direction of the last step, [n, dim].
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn embeddings(&self) -> Result<Cow<'_, [f32]>> {
        Ok(self.contrast.device.download(self.contrast.query.embeddings())?)
    }

    /// Keys of the last step [directions · n, dim] of all processes, as they were enqueued.
    ///
    /// # Errors
    /// As [`Device::download`].
    pub fn keys(&self) -> Result<Vec<f32>> {
        let Contrast { device, keys, queue, n, others, .. } = &self.contrast;
        let (keys, n) = match others {
            Some(others) => (others.keys(), *n * others.world()),
            None => (&keys[..], *n),
        };
        let mut all = vec![];
        for keys in keys.iter().rev() {
            all.extend_from_slice(&device.download(D::Kernels::view(keys, n * queue.dim))?);
        }
        Ok(all)
    }

    /// Whether all processes still hold the same weights and the same queue; alone, it is always so.
    ///
    /// # Errors
    /// [`Error::Run`] naming a process and what it holds that process 0 does not; as [`Device::download`].
    pub fn check_equal(&self) -> Result<()> {
        let Some(others) = &self.contrast.others else { return Ok(()) };
        let StateRef { query, key, velocity, queue } = self.state()?;
        let images = [queue.images(), &[queue.pointer() as u64]].concat();
        others.check_equal(&[
            ("weights of the query encoder", bytemuck::cast_slice(&query.params)),
            ("weights of the key encoder", bytemuck::cast_slice(&key.params)),
            ("velocities", bytemuck::cast_slice(&velocity)),
            ("keys in the queue", bytemuck::cast_slice(queue.keys())),
            ("images of the queue", bytemuck::cast_slice(&images)),
        ])
    }

    /// What decides a step; of this process's part, where there are others.
    pub fn config(&self) -> &MocoConfig {
        &self.contrast.config
    }

    /// Bytes of all buffers: both plans, weights, gradients, velocity and queue.
    pub fn memory_bytes(&self) -> usize {
        let Contrast { config, query, key, queue, params, .. } = &self.contrast;
        let weights = params + self.graph.buffer_layout().len();
        let floats = 2 * weights + (1 + config.directions()) * params + queue.images.len() * queue.dim;
        query.memory_bytes() + key.memory_bytes() + 4 * floats + 8 * queue.images.len()
    }
}

impl<D: Device> Contrast<D> {
    /// Values of a view of `n` images.
    fn view_len(&self, n: usize, graph: &Graph) -> usize {
        n * self.config.size[0] * self.config.size[1] * graph.in_channels()
    }

    /// Loss of the queries of one view against the keys of the other and the queue; leaves the gradients and the keys.
    fn direction(
        &mut self,
        direction: usize,
        query_view: &View<D>,
        key_view: &View<D>,
        images: &[u64],
        shuffle: Option<&Shuffle>,
    ) -> Result<D::Loss> {
        self.n = images.len();
        let last = direction + 1 == self.config.directions();
        let Contrast { config, device, query, key, queue, params, n, .. } = self;
        let (n, values) = (*n, *n * queue.dim);
        query.encode(device, query_view, n)?; // q [n, dim]
        let keys = D::Kernels::view_mut(&mut self.keys[direction], values);
        match shuffle {
            Some(shuffle) => {
                let len = D::Kernels::len(key_view);
                let shuffled = match &mut self.shuffled {
                    Some(shuffled) => shuffled,
                    none => none.insert(device.buffer(vec![0.0; len / n * config.batch])?),
                };
                let shuffled = D::Kernels::view_mut(shuffled, len);
                match &mut self.others {
                    Some(others) => {
                        let routes = others.routes(shuffle, n)?;
                        others.move_rows(device, &routes, key_view, shuffled)?;
                        let encoded = key.encode(device, shuffled, n)?;
                        others.move_rows(device, &routes.back(), encoded, keys)?;
                    }
                    None => {
                        device.gather_rows(key_view, shuffle.order(), shuffled);
                        let encoded = key.encode(device, shuffled, n)?;
                        device.scatter_rows(encoded, shuffle.order(), keys); // k [n, dim], no gradient
                    }
                }
            }
            None => {
                let encoded = key.encode(device, key_view, n)?;
                device.copy(encoded, keys);
            }
        }
        let d_query = D::Kernels::view_mut(&mut self.d_query, values);
        let inputs = ContrastInputs {
            query: query.embeddings(),
            key: keys,
            queue: queue.keys(),
            dim: queue.dim,
            temperature: config.temperature as f32,
            same_image: config.mask_same_image.then_some(SameImage { query: images, queue: &queue.images }),
        };
        let loss = device.info_nce(&inputs, d_query)?;
        let gradients = match &mut self.more_gradients {
            Some(more) if !last => more,
            _ => &mut self.gradients,
        };
        query.backward(device, d_query, D::Kernels::view_mut(gradients, *params))?;
        Ok(loss)
    }

    /// SGD on the query encoder, with the gradients of all directions.
    fn learn(&mut self, sgd: &Sgd) -> Result<()> {
        let gradients = D::Kernels::view_mut(&mut self.gradients, self.params);
        if let Some(more) = &self.more_gradients {
            self.device.add_assign(D::Kernels::view(more, self.params), gradients);
        }
        if let Some(others) = &mut self.others {
            others.average(&mut self.device, gradients)?;
        }
        let velocity = D::Kernels::view_mut(&mut self.velocity, self.params);
        let (lr, momentum, weight_decay) = (sgd.lr as f32, sgd.momentum as f32, sgd.weight_decay as f32);
        let update = SgdUpdate { lr, momentum, weight_decay };
        self.device.sgd_momentum(self.query.params_mut(), gradients, velocity, &update);
        Ok(())
    }

    /// The keys of this step replace the oldest; those of view 1, which the second direction made, come first.
    fn enqueue(&mut self, images: &[u64]) -> Result<()> {
        let Queue { dim, keys: ring, images: of, pointer } = &mut self.queue;
        let own = &self.keys;
        let keys = match &mut self.others {
            Some(others) => others.all_keys(&mut self.device, own, self.n * *dim)?,
            None => own,
        };
        for keys in keys.iter().rev() {
            let keys = D::Kernels::view(keys, images.len() * *dim);
            self.device.enqueue(keys, *dim, *pointer, D::Kernels::view_mut(ring, of.len() * *dim));
            *pointer = advance(of, *pointer, images);
        }
        Ok(())
    }
}

impl<D: Device> Queue<D> {
    fn keys(&self) -> &View<D> {
        D::Kernels::view(&self.keys, self.images.len() * self.dim)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

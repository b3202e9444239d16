//! A network that learns and is asked, on a device that is chosen at run time.

use std::borrow::Cow;

use moco_engine::compute::{Compute, OnDevice};
use moco_engine::device::{Buffer, View};
use moco_engine::ops::{AdamWStep, ParamGroup, SgdStep};
use moco_engine::{Device, Kernels, Mode, Plan, PlanConfig};
use moco_models::{Graph, Weights};

use crate::loss::Loss;
use crate::{Error, Result};

/// A set of weights that a network holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that learn.
    Current = 0,
    /// Their moving average.
    Average = 1,
    /// The best that were validated.
    Best = 2,
}

/// All sets, in the order of their numbers.
pub(crate) const SETS: [Which; 3] = [Which::Current, Which::Average, Which::Best];

/// Reads outputs, one a tap: [n, height, width, channels] or [n, features].
pub(crate) type Look<'a> = dyn FnMut(&[&[f32]]) -> Result<()> + 'a;

/// Reads outputs and writes the gradient of the loss by each.
pub(crate) type Judge<'a> = dyn FnMut(&[&[f32]], &mut [Vec<f32>]) -> Result<Loss> + 'a;

/// How one step moves the parameters.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    /// The optimiser's rule.
    pub rule: Rule,
    /// What moves, with its rate and decay.
    pub groups: Vec<ParamGroup>,
    /// Longest gradient; 0 = no limit.
    pub clip: f64,
    /// Weight of the old moving average, if there is one.
    pub average: Option<f64>,
}

/// Rule of an optimiser.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    Sgd(SgdStep),
    AdamW(AdamWStep),
}

/// What a network is compiled for.
#[derive(Clone, Debug)]
pub(crate) struct NetworkConfig {
    /// To learn; none for one that is only asked.
    pub train: Option<PlanConfig>,
    /// Taps that are read, in this order.
    pub taps: Vec<String>,
    /// Buffers of the optimiser that will be needed: 0, 1 or 2.
    pub moments: usize,
}

/// All that a network carries from step to step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkState {
    /// The sets of weights that are there.
    pub sets: [Option<Weights>; 3],
    /// Buffers of the optimiser.
    pub moments: Vec<Vec<f32>>,
}

/// A network on any device.
pub(crate) trait Network: Send {
    /// Forward in training mode, loss, backward: leaves the gradient for [`Network::update`].
    fn learn(&mut self, images: &[f32], n: usize, judge: &mut Judge<'_>) -> Result<Loss>;
    /// Moves the parameters; returns the gradient's length before it was cut, where there is a limit.
    fn update(&mut self, update: &Update) -> Result<Option<f64>>;
    /// Asks with running statistics: `n` images of `size`.
    fn ask(&mut self, which: Which, images: &[f32], n: usize, size: [usize; 2], look: &mut Look<'_>) -> Result<()>;
    /// Copies one set of weights over another.
    fn keep(&mut self, from: Which, to: Which) -> Result<()>;
    /// Whether there is such a set.
    fn has(&self, which: Which) -> bool;
    /// A set of weights on the host.
    fn weights(&self, which: Which) -> Result<Option<Weights>>;
    /// All on the host.
    fn state(&self) -> Result<NetworkState>;
    /// Goes back to a state.
    fn restore(&mut self, state: NetworkState) -> Result<()>;
    /// Bytes of the plans' buffers.
    fn memory_bytes(&self) -> usize;
}

/// A network with these weights on a device.
///
/// # Errors
/// As [`Plan::compile`], and if the device has not that much memory.
pub(crate) fn open(
    compute: &Compute,
    graph: &Graph,
    config: &NetworkConfig,
    weights: Weights,
) -> Result<Box<dyn Network>> {
    weights.check(graph)?;
    compute.with(Open { graph, config, weights })
}

struct Open<'a> {
    graph: &'a Graph,
    config: &'a NetworkConfig,
    weights: Weights,
}

impl OnDevice for Open<'_> {
    type Output = Box<dyn Network>;
    type Error = Error;

    fn on<D: Device + 'static>(self, mut device: D) -> Result<Box<dyn Network>> {
        let taps: Vec<&str> = self.config.taps.iter().map(String::as_str).collect();
        let train = match &self.config.train {
            Some(config) => Some(Plan::compile_with(self.graph, &config.clone().with_taps(&taps), device.kernels()?)?),
            None => None,
        };
        let lens = [self.weights.params.len(), self.weights.buffers.len()];
        let current = Set::of(&mut device, self.weights)?;
        let gradients = match train {
            Some(_) => Some(device.buffer(vec![0.0; lens[0]])?),
            None => None,
        };
        let moments =
            (0..self.config.moments).map(|_| device.buffer(vec![0.0; lens[0]])).collect::<moco_engine::Result<_>>()?;
        Ok(Box::new(On {
            device,
            graph: self.graph.clone(),
            taps: self.config.taps.clone(),
            train,
            ask: None,
            lens,
            sets: [Some(current), None, None],
            gradients,
            moments,
            images: None,
            host_gradients: vec![vec![]; self.config.taps.len()],
            tap_gradients: self.config.taps.iter().map(|_| None).collect(),
        }))
    }
}

/// Parameters and running statistics on a device.
struct Set<D: Device> {
    params: Buffer<D>,
    buffers: Buffer<D>,
}

impl<D: Device> Set<D> {
    fn of(device: &mut D, weights: Weights) -> Result<Set<D>> {
        Ok(Set { params: device.buffer(weights.params)?, buffers: device.buffer(weights.buffers)? })
    }
}

struct On<D: Device> {
    device: D,
    graph: Graph,
    taps: Vec<String>,
    train: Option<Plan<D::Kernels>>,
    ask: Option<Plan<D::Kernels>>,
    /// Parameters, running statistics.
    lens: [usize; 2],
    sets: [Option<Set<D>>; 3],
    gradients: Option<Buffer<D>>,
    moments: Vec<Buffer<D>>,
    images: Option<Buffer<D>>,
    host_gradients: Vec<Vec<f32>>,
    tap_gradients: Vec<Option<Buffer<D>>>,
}

impl<D: Device> Network for On<D> {
    fn learn(&mut self, images: &[f32], n: usize, judge: &mut Judge<'_>) -> Result<Loss> {
        let On { device, taps, train, lens, sets, gradients, images: memory, host_gradients, tap_gradients, .. } = self;
        let (Some(plan), Some(gradients)) = (train, gradients) else { return Err(no_training()) };
        let set = sets[Which::Current as usize].as_mut().expect("the current weights are always there");
        let images = device.stage(images, memory)?;
        let params = D::Kernels::view(&set.params, lens[0]);
        plan.forward(params, D::Kernels::view_mut(&mut set.buffers, lens[1]), images, n)?;
        let loss = {
            let outputs = outputs::<D>(device, plan, taps)?;
            let outputs: Vec<&[f32]> = outputs.iter().map(|o| &**o).collect();
            for (gradient, output) in host_gradients.iter_mut().zip(&outputs) {
                gradient.resize(output.len(), 0.0);
            }
            judge(&outputs, host_gradients)?
        };
        if !loss.total.is_finite() {
            return Err(Error::Diverged { loss: loss.total });
        }
        let mut views: Vec<(&str, &View<D>)> = vec![];
        for ((tap, gradient), memory) in taps.iter().zip(&*host_gradients).zip(tap_gradients) {
            views.push((tap, device.stage(gradient, memory)?));
        }
        plan.backward(params, &views, D::Kernels::view_mut(gradients, lens[0]))?;
        Ok(loss)
    }

    fn update(&mut self, update: &Update) -> Result<Option<f64>> {
        let On { device, lens, sets, gradients, moments, .. } = self;
        let Some(gradients) = gradients else { return Err(no_training()) };
        let [current, average, _] = sets;
        let current = current.as_mut().expect("the current weights are always there");
        let params = D::Kernels::view_mut(&mut current.params, lens[0]);
        let gradients = D::Kernels::view_mut(gradients, lens[0]);
        let norm = match update.clip {
            0.0 => None,
            limit => Some(device.clip_gradients(gradients, limit as f32, &update.groups)?),
        };
        match (update.rule, &mut moments[..]) {
            (Rule::Sgd(step), [velocity]) => {
                let velocity = D::Kernels::view_mut(velocity, lens[0]);
                device.sgd_groups(params, gradients, velocity, &step, &update.groups)?;
            }
            (Rule::AdamW(step), [first, second]) => {
                let (first, second) = (D::Kernels::view_mut(first, lens[0]), D::Kernels::view_mut(second, lens[0]));
                device.adamw_groups(params, gradients, first, second, &step, &update.groups)?;
            }
            (rule, moments) => unreachable!("{} moments for {rule:?}", moments.len()),
        }
        if let (Some(m), Some(average)) = (update.average, average) {
            let m = m as f32;
            device.ema(D::Kernels::view_mut(&mut average.params, lens[0]), params, m);
            let buffers = D::Kernels::view(&current.buffers, lens[1]);
            device.ema(D::Kernels::view_mut(&mut average.buffers, lens[1]), buffers, m);
        }
        Ok(norm)
    }

    fn ask(&mut self, which: Which, images: &[f32], n: usize, size: [usize; 2], look: &mut Look<'_>) -> Result<()> {
        let On { device, graph, taps, ask, lens, sets, images: memory, .. } = self;
        let fits = |plan: &Plan<D::Kernels>| {
            let config = plan.config();
            [config.height, config.width] == size && config.batch >= n
        };
        if !ask.as_ref().is_some_and(fits) {
            // The old one first: two at once might not fit.
            *ask = None;
            let names: Vec<&str> = taps.iter().map(String::as_str).collect();
            let config = PlanConfig::new(n, size[0], size[1], Mode::Eval).with_taps(&names);
            *ask = Some(Plan::compile_with(graph, &config, device.kernels()?)?);
        }
        let plan = ask.as_mut().expect("it has just been compiled");
        let set =
            sets[which as usize].as_mut().ok_or_else(|| Error::Invalid(format!("there are no {which:?} weights")))?;
        let images = device.stage(images, memory)?;
        let buffers = D::Kernels::view_mut(&mut set.buffers, lens[1]);
        plan.forward(D::Kernels::view(&set.params, lens[0]), buffers, images, n)?;
        let outputs = outputs::<D>(device, plan, taps)?;
        look(&outputs.iter().map(|o| &**o).collect::<Vec<_>>())
    }

    fn keep(&mut self, from: Which, to: Which) -> Result<()> {
        if from == to {
            return Ok(());
        }
        if self.sets[to as usize].is_none() {
            let lens = self.lens;
            let weights = Weights { params: vec![0.0; lens[0]], buffers: vec![0.0; lens[1]], ..Weights::default() };
            self.sets[to as usize] = Some(Set::of(&mut self.device, weights)?);
        }
        let mut target = self.sets[to as usize].take().expect("it has just been made");
        let source = self.sets[from as usize].as_ref();
        if let Some(source) = source {
            let [params, buffers] = self.lens;
            self.device
                .copy(D::Kernels::view(&source.params, params), D::Kernels::view_mut(&mut target.params, params));
            self.device
                .copy(D::Kernels::view(&source.buffers, buffers), D::Kernels::view_mut(&mut target.buffers, buffers));
        }
        let there = source.is_some();
        self.sets[to as usize] = Some(target);
        if there { Ok(()) } else { Err(Error::Invalid(format!("there are no {from:?} weights"))) }
    }

    fn has(&self, which: Which) -> bool {
        self.sets[which as usize].is_some()
    }

    fn weights(&self, which: Which) -> Result<Option<Weights>> {
        let Some(set) = &self.sets[which as usize] else { return Ok(None) };
        let params = self.device.download(D::Kernels::view(&set.params, self.lens[0]))?.into_owned();
        let buffers = self.device.download(D::Kernels::view(&set.buffers, self.lens[1]))?.into_owned();
        Ok(Some(Weights { params, buffers, ..Weights::default() }))
    }

    fn state(&self) -> Result<NetworkState> {
        let [current, average, best] = SETS.map(|which| self.weights(which));
        let moment = |m: &Buffer<D>| Ok(self.device.download(D::Kernels::view(m, self.lens[0]))?.into_owned());
        Ok(NetworkState {
            sets: [current?, average?, best?],
            moments: self.moments.iter().map(moment).collect::<Result<_>>()?,
        })
    }

    fn restore(&mut self, state: NetworkState) -> Result<()> {
        for (set, weights) in self.sets.iter_mut().zip(state.sets) {
            *set = match weights {
                Some(weights) => {
                    weights.check(&self.graph)?;
                    Some(Set::of(&mut self.device, weights)?)
                }
                None => None,
            };
        }
        if state.moments.len() != self.moments.len() || state.moments.iter().any(|m| m.len() != self.lens[0]) {
            return Err(Error::Invalid("the optimiser's state is of another optimiser or another network".into()));
        }
        for (memory, values) in self.moments.iter_mut().zip(state.moments) {
            *memory = self.device.buffer(values)?;
        }
        Ok(())
    }

    fn memory_bytes(&self) -> usize {
        [&self.train, &self.ask].into_iter().flatten().map(Plan::memory_bytes).sum()
    }
}

fn no_training() -> Error {
    Error::Invalid("this network was opened for prediction; it does not learn".into())
}

/// What the last forward pass said, a tap at a time.
fn outputs<'a, D: Device>(device: &D, plan: &'a Plan<D::Kernels>, taps: &[String]) -> Result<Vec<Cow<'a, [f32]>>> {
    taps.iter().map(|tap| Ok(device.download(plan.output(tap)?)?)).collect()
}

//! The static plan: a graph compiled for a batch, an image size and a mode.

mod backward;
mod build;
mod config;
mod forward;
mod memory;
mod program;
mod schedule;
#[cfg(test)]
mod tests;

use moco_models::{Graph, Shape};

use crate::kernels::{Need, NormShape, SliceShape};
use crate::{CpuKernels, Error, Kernels, Result};
use memory::{Life, Memory};
use program::{Learns, Norm, Program, ValueId};
use schedule::Segment;

pub use crate::kernels::BnGroups;
pub use config::{MemoryEstimate, Mode, PlanConfig, Recompute};

/// Longest side of an image.
const MAX_SIDE: usize = 1 << 16;

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
/// let mut plan = Plan::compile(&graph, &PlanConfig::new(2, 64, 64, Mode::Train).with_taps(&["pooled"]))?;
/// plan.forward(&params, &mut buffers, &vec![0.5; 2 * 64 * 64 * 3], 2)?;
/// assert_eq!(plan.output("pooled")?.len(), 2 * 64);
///
/// let mut gradients = vec![0.0; params.len()];
/// plan.backward(&params, &[("pooled", &vec![1.0; 2 * 64])], &mut gradients)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Plan<K: Kernels = CpuKernels> {
    config: PlanConfig,
    program: Program,
    /// What is computed again in a backward pass.
    segments: Vec<Segment>,
    memory: Memory,
    estimate: MemoryEstimate,
    kernels: K,
    /// One per slot of [`Memory`]; taken out while a step writes it.
    slots: Vec<Option<K::Map>>,
    /// One per tap, in their order.
    outputs: Vec<K::Buffer>,
    /// One per batch normalisation.
    stats: Vec<K::Buffer>,
    /// One per max pooling.
    indices: Vec<K::Bytes>,
    /// Whether a value's gradient has received something in this backward pass.
    present: Vec<bool>,
    /// Whether the gradient of a layer that serves more than once has been written in this backward pass.
    learnt: Vec<bool>,
    /// Gradients of such a layer's further uses, on the way to be added.
    scratch: Option<K::Buffer>,
    state: State,
}

/// What the buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    /// The last forward pass of `n` images, ready for a backward pass in [`Mode::Train`].
    Forward {
        n: usize,
    },
    /// Only the outputs of the last forward pass of `n` images.
    Taps {
        n: usize,
    },
}

impl Plan {
    /// Compiles `graph` for the CPU and allocates its buffers.
    ///
    /// # Errors
    /// [`Error::Graph`] where the image does not fit the network or a tap does not exist, [`Error::Config`] for a batch
    /// or a number of groups of 0 and for names of nodes that there are not, [`Error::Memory`] if the buffers do not fit,
    /// [`Error::Unsupported`] where other kernels do not compute a step.
    pub fn compile(graph: &Graph, config: &PlanConfig) -> Result<Plan> {
        Plan::compile_with(graph, config, CpuKernels::default())
    }

    /// What [`Plan::compile`] would allocate, without allocating it.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn estimate(graph: &Graph, config: &PlanConfig) -> Result<MemoryEstimate> {
        Plan::estimate_with(graph, config, CpuKernels::<f32>::default())
    }
}

impl<K: Kernels> Plan<K> {
    /// Compiles `graph` for these kernels and allocates its buffers.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn compile_with(graph: &Graph, config: &PlanConfig, mut kernels: K) -> Result<Plan<K>> {
        let (program, segments, memory) = lay_out::<K>(graph, config)?;
        check_support(&program, config, &kernels)?;
        let estimate = announce(&program, &memory, config, &mut kernels);
        kernels.allocate_workspace()?;
        let slots = memory.slots.iter().map(|&len| kernels.map(len).map(Some)).collect::<Result<_>>()?;
        let outputs = output_lens(&program, config).map(|len| kernels.buffer(len)).collect::<Result<_>>()?;
        let stats = program.norms.iter().map(|n| kernels.buffer(K::norm_stats_len(&n.shape))).collect::<Result<_>>()?;
        let indices = match config.mode {
            Mode::Train => program.indices.iter().map(|&len| kernels.bytes(len)).collect::<Result<_>>()?,
            Mode::Eval | Mode::Momentum => vec![],
        };
        let present = vec![false; program.values.len()];
        let learnt = vec![false; program.shared.len()];
        let scratch = match scratch_len(&program, config) {
            0 => None,
            len => Some(kernels.buffer(len)?),
        };
        let (config, state) = (config.clone(), State::Empty);
        Ok(Plan {
            config,
            program,
            segments,
            memory,
            estimate,
            kernels,
            slots,
            outputs,
            stats,
            indices,
            present,
            learnt,
            scratch,
            state,
        })
    }

    /// What [`Plan::compile_with`] would allocate with these kernels, without allocating it.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn estimate_with(graph: &Graph, config: &PlanConfig, mut kernels: K) -> Result<MemoryEstimate> {
        let (program, _, memory) = lay_out::<K>(graph, config)?;
        check_support(&program, config, &kernels)?;
        Ok(announce(&program, &memory, config, &mut kernels))
    }

    /// A tap of the last forward pass, NHWC, for the `n` images it was given.
    ///
    /// # Errors
    /// [`Error::Config`] if the plan has no such tap, [`Error::State`] before the first forward pass.
    pub fn output(&self, tap: &str) -> Result<&K::View> {
        let at = self.tap(tap)?;
        match self.state {
            State::Empty => Err(Error::State(format!("there is no forward pass whose `{tap}` could be read"))),
            State::Forward { n } | State::Taps { n } => {
                Ok(K::view(&self.outputs[at], n * self.program.sample_len(self.program.taps[at].1)))
            }
        }
    }

    /// Shape of a tap for one image.
    ///
    /// # Errors
    /// [`Error::Config`] if the plan has no such tap.
    pub fn output_shape(&self, tap: &str) -> Result<Shape> {
        Ok(self.program.values[self.tap_value(tap)?].shape)
    }

    /// What the plan was compiled for.
    pub fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// Bytes of all buffers.
    pub fn memory_bytes(&self) -> usize {
        self.estimate.total()
    }

    /// Place of a tap among the outputs.
    fn tap(&self, name: &str) -> Result<usize> {
        self.program.taps.iter().position(|(tap, _)| tap == name).ok_or_else(|| {
            let known: Vec<_> = self.program.taps.iter().map(|(tap, _)| tap.as_str()).collect();
            Error::Config(format!("the plan keeps no tap `{name}`; it was compiled for {}", known.join(", ")))
        })
    }

    fn tap_value(&self, name: &str) -> Result<ValueId> {
        Ok(self.program.taps[self.tap(name)?].1)
    }

    /// Takes a slot out, to be written while others are read.
    fn take(&mut self, slot: usize) -> K::Map {
        self.slots[slot].take().expect("a step writes no slot twice at once")
    }

    fn put_back(&mut self, slot: usize, buffer: K::Map) {
        self.slots[slot] = Some(buffer);
    }
}

/// The memory of a value (or of what its unwritten normalisation reads) of `n` images.
fn read<'a, K>(
    program: &Program,
    memory: &Memory,
    slots: &'a [Option<K::Map>],
    life: Life,
    value: ValueId,
    n: usize,
) -> &'a K::MapView
where
    K: Kernels + 'a,
{
    let stored = program.stored(value);
    let slot = memory.slot(stored, life).expect("a stored value has a slot");
    K::map_view(slots[slot].as_ref().expect("no step reads the slot it writes"), n * program.sample_len(stored))
}

fn lay_out<K: Kernels>(graph: &Graph, config: &PlanConfig) -> Result<(Program, Vec<Segment>, Memory)> {
    if config.batch == 0 {
        return Err(Error::Config("a plan needs a batch of at least 1".into()));
    }
    if config.bn_groups.count() == 0 {
        return Err(Error::Config("batch statistics need at least 1 group".into()));
    }
    if config.height.max(config.width) > MAX_SIDE {
        let (h, w) = (config.height, config.width);
        return Err(Error::Config(format!("images of {h}×{w} are larger than {MAX_SIDE}×{MAX_SIDE}")));
    }
    let program = Program::build(graph, config, K::FUSES_INPUT_NORM)?;
    let segments = schedule::segments(&program, config);
    let memory = Memory::assign(&program, &segments, config);
    Ok((program, segments, memory))
}

/// Refuses a program with a step that these kernels do not compute.
fn check_support<K: Kernels>(program: &Program, config: &PlanConfig, kernels: &K) -> Result<()> {
    let train = config.mode == Mode::Train;
    if program.inputs.len() > 1 && !kernels.supports(&Need::Given, false) {
        let (node, what, device) = (config.given.join(", "), Need::Given.to_string(), kernels.describe());
        return Err(Error::Unsupported { node, what, device });
    }
    for (step, node) in program.steps.iter().zip(&program.nodes) {
        let refuse = |what: String| {
            let (node, device) = (node.clone(), kernels.describe());
            Err(Error::Unsupported { node, what, device })
        };
        if let Some((need, backward)) = program.need(step) {
            if !kernels.supports(&need, false) {
                return refuse(need.to_string());
            }
            if train && backward && !kernels.supports(&need, true) {
                return refuse(format!("the gradient of {need}"));
            }
        }
        if let (true, Learns::Shared(layer)) = (train, program.learns(step)) {
            let need = Need::Shared(program.shared[layer]);
            if !kernels.supports(&need, true) {
                return refuse(need.to_string());
            }
        }
    }
    Ok(())
}

/// Tells the kernels every step and adds up what all will need.
fn announce<K: Kernels>(program: &Program, memory: &Memory, config: &PlanConfig, kernels: &mut K) -> MemoryEstimate {
    let train = config.mode == Mode::Train;
    for (need, backward) in program.steps.iter().filter_map(|step| program.need(step)) {
        kernels.expect(&need, train && backward);
    }
    let stats: usize = program.norms.iter().map(|n| K::norm_stats_len(&n.shape)).sum();
    let indices: usize = if train { program.indices.iter().sum() } else { 0 };
    let outputs: usize = output_lens(program, config).sum();
    MemoryEstimate {
        activations: memory.slots.iter().sum::<usize>() * K::MAP_VALUE_BYTES + outputs * size_of::<f32>(),
        workspace: kernels.workspace_bytes() + (stats + scratch_len(program, config)) * size_of::<f32>() + indices,
    }
}

/// Parameters of the largest layer that serves more than once.
fn scratch_len(program: &Program, config: &PlanConfig) -> usize {
    match config.mode {
        Mode::Train => program.shared.iter().copied().max().unwrap_or(0),
        Mode::Eval | Mode::Momentum => 0,
    }
}

/// Length of each tap for the largest batch.
fn output_lens(program: &Program, config: &PlanConfig) -> impl Iterator<Item = usize> {
    program.taps.iter().map(|(_, value)| config.batch * program.sample_len(*value))
}

/// The same normalisation on `n` images.
fn norm_shape(norm: &Norm, n: usize) -> NormShape {
    let mut shape = norm.shape;
    shape.map.n = n;
    shape
}

/// Pixels of `n` images, where a slice has those of the largest batch.
fn rows_of(slice: &SliceShape, n: usize, batch: usize) -> usize {
    slice.rows / batch * n
}

//! A graph as fused steps, and what each of them reads and gives gradients to.

use moco_models::Shape;

use crate::kernels::conv::ConvShape;
use crate::kernels::{
    LinearShape, MapShape, Need, NormOffsets, NormShape, Offsets, PoolShape, ResizeShape, SliceShape, Statistics,
};

/// Index into [`Program::values`].
pub(super) type ValueId = usize;

/// A feature map or vector that steps write and read, or that comes from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub shape: Shape,
    /// Written out only in name: its reader applies this normalisation to what it normalises.
    pub unwritten: Option<Unwritten>,
    /// A parameter that is trained lies below it.
    pub needs_gradient: bool,
}

/// How a reader makes a value that is not written out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwritten {
    pub norm: usize,
    pub relu: bool,
}

/// What becomes of the gradient of a layer's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learns {
    /// It is not asked for.
    Nothing,
    /// It is the gradient.
    Alone,
    /// It is one of several that are added up: the layer serves more than once. Index into [`Program::shared`].
    Shared(usize),
}

/// A normalisation.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub node: String,
    pub z: ValueId,
    pub shape: NormShape,
    pub at: NormOffsets,
    pub learns: Learns,
}

/// What is added to a normalised value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Join {
    Nothing,
    Value(ValueId),
    Norm(usize),
}

/// One call of the kernels going forward, and its counterpart going backward. Shapes are those of the largest batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// `sums`: the next step is [`Step::Stats`] of `y`.
    Conv {
        x: ValueId,
        y: ValueId,
        shape: ConvShape,
        at: Offsets,
        sums: bool,
        relu: bool,
        learns: Learns,
    },
    Stats {
        norm: usize,
        summed: bool,
    },
    Apply {
        norm: usize,
        join: Join,
        relu: bool,
        y: ValueId,
    },
    Relu {
        x: ValueId,
        y: ValueId,
    },
    Add {
        a: ValueId,
        b: ValueId,
        relu: bool,
        y: ValueId,
    },
    MaxPool {
        x: ValueId,
        y: ValueId,
        shape: PoolShape,
        index: usize,
    },
    MeanPool {
        x: ValueId,
        y: ValueId,
        shape: MapShape,
    },
    Linear {
        x: ValueId,
        y: ValueId,
        shape: LinearShape,
        at: Offsets,
        relu: bool,
        learns: Learns,
    },
    Resize {
        x: ValueId,
        y: ValueId,
        shape: ResizeShape,
    },
    /// Joins the parts with this index in [`Program::joined`].
    Concat {
        parts: usize,
        y: ValueId,
    },
}

/// A graph as steps.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub values: Vec<Value>,
    /// What comes from outside, in this order: the images, or the values of given taps.
    pub inputs: Vec<ValueId>,
    pub norms: Vec<Norm>,
    pub steps: Vec<Step>,
    /// The node that each step belongs to, for messages.
    pub nodes: Vec<String>,
    /// What is joined along the channels, and where each part lies.
    pub joined: Vec<Vec<(ValueId, SliceShape)>>,
    /// Numbers of parameters of the layers that serve more than once.
    pub shared: Vec<usize>,
    /// Bytes of each max pooling's index, for the largest batch; 0 where no gradient passes through it.
    pub indices: Vec<usize>,
    /// Kept taps.
    pub taps: Vec<(String, ValueId)>,
    /// Lengths of the flat buffers of the whole graph.
    pub params_len: usize,
    pub buffers_len: usize,
}

impl Program {
    /// Number of values of one image.
    pub(super) fn sample_len(&self, value: ValueId) -> usize {
        self.values[value].shape.numel()
    }

    /// Number of values of one image in all that comes from outside.
    pub(super) fn input_len(&self) -> usize {
        self.inputs.iter().map(|value| self.sample_len(*value)).sum()
    }

    /// The value whose memory holds `value`: itself, or what its unwritten normalisation reads.
    pub(super) fn stored(&self, value: ValueId) -> ValueId {
        self.values[value].unwritten.map_or(value, |u| self.norms[u.norm].z)
    }

    /// What a step writes, if it writes a value.
    pub(super) fn output(&self, step: &Step) -> Option<ValueId> {
        match *step {
            Step::Stats { .. } => None,
            Step::Conv { y, .. }
            | Step::Apply { y, .. }
            | Step::Relu { y, .. }
            | Step::Add { y, .. }
            | Step::MaxPool { y, .. }
            | Step::MeanPool { y, .. }
            | Step::Linear { y, .. }
            | Step::Resize { y, .. }
            | Step::Concat { y, .. } => Some(y),
        }
    }

    /// Values a step reads going forward, as stored.
    pub(super) fn reads(&self, step: &Step) -> Vec<ValueId> {
        let read = match *step {
            Step::Conv { x, .. }
            | Step::Relu { x, .. }
            | Step::MaxPool { x, .. }
            | Step::MeanPool { x, .. }
            | Step::Resize { x, .. }
            | Step::Linear { x, .. } => vec![x],
            Step::Concat { parts, .. } => self.joined[parts].iter().map(|(x, _)| *x).collect(),
            Step::Stats { norm, .. } if self.norms[norm].shape.statistics == Statistics::Running => vec![],
            Step::Stats { norm, .. } => vec![self.norms[norm].z],
            Step::Apply { y, .. } if self.values[y].unwritten.is_some() => vec![],
            Step::Apply { norm, join, .. } => match join {
                Join::Nothing => vec![self.norms[norm].z],
                Join::Value(r) => vec![self.norms[norm].z, r],
                Join::Norm(other) => vec![self.norms[norm].z, self.norms[other].z],
            },
            Step::Add { a, b, .. } => vec![a, b],
        };
        read.into_iter().map(|v| self.stored(v)).collect()
    }

    /// Values the gradient of a step reads, as stored.
    pub(super) fn backward_reads(&self, step: &Step) -> Vec<ValueId> {
        let mut read = vec![];
        match *step {
            Step::Conv { x, y, relu, learns, .. } | Step::Linear { x, y, relu, learns, .. } => {
                read.extend((learns != Learns::Nothing).then_some(x));
                read.extend(relu.then_some(y));
            }
            Step::Relu { y, .. } | Step::Add { y, relu: true, .. } => read.push(y),
            Step::Apply { norm, join, relu, y } => {
                let alone = matches!(join, Join::Nothing);
                read.extend(self.backward_reads_z(norm, relu && alone).then_some(self.norms[norm].z));
                if let Join::Norm(other) = join {
                    read.extend(self.backward_reads_z(other, false).then_some(self.norms[other].z));
                }
                read.extend((relu && !alone).then_some(y));
            }
            Step::Stats { .. }
            | Step::MaxPool { .. }
            | Step::MeanPool { .. }
            | Step::Add { relu: false, .. }
            | Step::Resize { .. }
            | Step::Concat { .. } => {}
        }
        read.into_iter().map(|v| self.stored(v)).collect()
    }

    /// Whether the gradient of a normalisation begins with sums: those of its parameters, or of its statistics.
    pub(super) fn reduces(&self, norm: usize) -> bool {
        let norm = &self.norms[norm];
        norm.learns != Learns::Nothing
            || norm.shape.statistics != Statistics::Running && self.values[norm.z].needs_gradient
    }

    /// Whether the gradient of a normalisation reads what it normalises.
    pub(super) fn backward_reads_z(&self, norm: usize, recompute_mask: bool) -> bool {
        self.reduces(norm) || recompute_mask && self.values[self.norms[norm].z].needs_gradient
    }

    /// The `i`-th value that gets a gradient from a step, and whether its output's gradient may simply become that.
    pub(super) fn gradient_target(&self, step: &Step, i: usize) -> Option<(ValueId, bool)> {
        let targets = match *step {
            Step::Stats { .. } => [None, None],
            Step::Concat { parts, .. } => return self.joined[parts].get(i).map(|(x, _)| (*x, false)),
            Step::Conv { x, .. }
            | Step::MaxPool { x, .. }
            | Step::MeanPool { x, .. }
            | Step::Linear { x, .. }
            | Step::Resize { x, .. } => [Some((x, false)), None],
            Step::Relu { x, .. } => [Some((x, true)), None],
            Step::Add { a, b, .. } => [Some((a, true)), Some((b, true))],
            Step::Apply { norm, join, .. } => {
                let z = Some((self.norms[norm].z, true));
                match join {
                    Join::Nothing => [z, None],
                    Join::Value(r) => [Some((r, true)), z],
                    Join::Norm(other) => [Some((self.norms[other].z, true)), z],
                }
            }
        };
        targets.get(i).copied().flatten()
    }

    /// All of them.
    pub(super) fn gradient_targets<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = (ValueId, bool)> + 'a {
        (0..).map_while(|i| self.gradient_target(step, i))
    }

    /// What a step asks of the kernels, and whether its gradient is asked for as well, where that is not the same for all
    /// devices.
    pub(super) fn need(&self, step: &Step) -> Option<(Need, bool)> {
        let needs_gradient = |y: ValueId| self.values[y].needs_gradient;
        match *step {
            Step::Conv { shape, y, .. } => Some((Need::Conv(shape), needs_gradient(y))),
            Step::Linear { shape, y, .. } => Some((Need::Linear(shape), needs_gradient(y))),
            Step::Stats { norm, .. } => {
                let backward = self.reduces(norm) || needs_gradient(self.norms[norm].z);
                Some((Need::Norm(self.norms[norm].shape), backward))
            }
            Step::Resize { shape, y, .. } => Some((Need::Resize(shape), needs_gradient(y))),
            Step::Concat { y, .. } => Some((Need::Concat, needs_gradient(y))),
            Step::Apply { .. }
            | Step::Relu { .. }
            | Step::Add { .. }
            | Step::MaxPool { .. }
            | Step::MeanPool { .. } => None,
        }
    }

    /// What becomes of the gradients of a step's own parameters; of two normalisations, the first's.
    pub(super) fn learns(&self, step: &Step) -> Learns {
        match *step {
            Step::Conv { learns, .. } | Step::Linear { learns, .. } => learns,
            Step::Stats { norm, .. } => self.norms[norm].learns,
            _ => Learns::Nothing,
        }
    }
}

//! From graph to fused steps.

use std::collections::HashMap;

use moco_models::{Graph, Node, NodeId, Op, Shape};

use super::PlanConfig;
use crate::kernels::conv::ConvShape;
use crate::kernels::{LinearShape, MapShape, NormOffsets, NormShape, Offsets, PoolShape};
use crate::{Error, Result};

/// Index into [`Program::values`].
pub(super) type ValueId = usize;

/// A feature map or vector that steps write and read; value 0 is the batch of images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub shape: Shape,
    /// Written out only in name: its reader applies this normalisation to what it normalises.
    pub unwritten: Option<Unwritten>,
    /// A parameter lies below it.
    pub needs_gradient: bool,
}

/// How a reader makes a value that is not written out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwritten {
    pub norm: usize,
    pub relu: bool,
}

/// A batch normalisation.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub node: String,
    pub z: ValueId,
    pub shape: NormShape,
    pub at: NormOffsets,
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
    },
}

/// A graph as steps.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub values: Vec<Value>,
    pub norms: Vec<Norm>,
    pub steps: Vec<Step>,
    /// Bytes of each max pooling's index, for the largest batch.
    pub indices: Vec<usize>,
    /// Kept taps.
    pub taps: Vec<(String, ValueId)>,
    /// Lengths of the flat buffers of the whole graph.
    pub params_len: usize,
    pub buffers_len: usize,
}

impl Program {
    /// Fuses what can be fused: batch norm with the addition and ReLU behind it, linear with ReLU. A normalised value
    /// whose only reader is a convolution is not written out at all if that can normalise as it reads.
    pub(super) fn build(graph: &Graph, config: &PlanConfig, fuse_input_norm: bool) -> Result<Program> {
        let names: Vec<&str> = match config.taps.len() {
            0 => graph.taps().iter().map(|t| t.name.as_str()).collect(),
            _ => config.taps.iter().map(String::as_str).collect(),
        };
        if names.is_empty() {
            return Err(Error::Config("the graph has no tap, so there is nothing to compute".into()));
        }
        let params = graph.parameter_layout();
        let buffers = graph.buffer_layout();
        let mut builder = Builder {
            graph,
            config,
            fuse_input_norm,
            shapes: graph.shapes(config.height, config.width)?,
            tapped: vec![false; graph.nodes().len()],
            readers: vec![vec![]; graph.nodes().len()],
            offsets: params.iter().chain(buffers.iter()).map(|(s, r)| (s.name.clone(), r.start)).collect(),
            value_of: HashMap::new(),
            norm_of: HashMap::new(),
            program: Program { params_len: params.len(), buffers_len: buffers.len(), ..Program::default() },
        };
        for name in &names {
            builder.tapped[graph.tap(name)?.0] = true;
        }
        builder.find_readers();
        for i in 0..graph.nodes().len() {
            if builder.tapped[i] || !builder.readers[i].is_empty() {
                builder.node(NodeId(i))?;
            }
        }
        let Builder { mut program, value_of, .. } = builder;
        for name in names {
            program.taps.push((name.to_string(), value_of[&graph.tap(name)?]));
        }
        for i in 1..program.steps.len() {
            let [before, here] = &mut program.steps[i - 1..=i] else { unreachable!("two steps") };
            if let (Step::Conv { y, sums, at, .. }, Step::Stats { norm, summed }) = (before, here) {
                // A convolution sums before it adds its bias.
                let fits = program.norms[*norm].z == *y && at.bias.is_none();
                (*sums, *summed) = (fits, fits);
            }
        }
        Ok(program)
    }

    /// Number of values of one image.
    pub(super) fn sample_len(&self, value: ValueId) -> usize {
        self.values[value].shape.numel()
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
            | Step::Linear { y, .. } => Some(y),
        }
    }

    /// Values a step reads going forward, as stored.
    pub(super) fn reads(&self, step: &Step) -> Vec<ValueId> {
        let read = match *step {
            Step::Conv { x, .. }
            | Step::Relu { x, .. }
            | Step::MaxPool { x, .. }
            | Step::MeanPool { x, .. }
            | Step::Linear { x, .. } => vec![x],
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
        let read = match *step {
            Step::Conv { x, .. } => vec![x],
            Step::Linear { x, y, relu, .. } => {
                if relu {
                    vec![x, y]
                } else {
                    vec![x]
                }
            }
            Step::Relu { y, .. } | Step::Add { y, relu: true, .. } => vec![y],
            Step::Apply { norm, join, relu, y } => {
                let z = self.norms[norm].z;
                match join {
                    Join::Nothing => vec![z],
                    Join::Value(_) => {
                        if relu {
                            vec![z, y]
                        } else {
                            vec![z]
                        }
                    }
                    Join::Norm(other) => {
                        let z2 = self.norms[other].z;
                        if relu { vec![z, z2, y] } else { vec![z, z2] }
                    }
                }
            }
            Step::Stats { .. } | Step::MaxPool { .. } | Step::MeanPool { .. } | Step::Add { relu: false, .. } => vec![],
        };
        read.into_iter().map(|v| self.stored(v)).collect()
    }

    /// The at most two values that get a gradient from a step, and whether its output's gradient may simply become theirs.
    pub(super) fn gradient_targets(&self, step: &Step) -> impl Iterator<Item = (ValueId, bool)> + Clone + use<> {
        let targets = match *step {
            Step::Stats { .. } => [None, None],
            Step::Conv { x, .. } | Step::MaxPool { x, .. } | Step::MeanPool { x, .. } | Step::Linear { x, .. } => {
                [Some((x, false)), None]
            }
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
        targets.into_iter().flatten()
    }
}

struct Builder<'a> {
    graph: &'a Graph,
    config: &'a PlanConfig,
    fuse_input_norm: bool,
    shapes: Vec<Shape>,
    tapped: Vec<bool>,
    /// Nodes that a kept tap needs and that read the node, once per edge.
    readers: Vec<Vec<NodeId>>,
    offsets: HashMap<String, usize>,
    value_of: HashMap<NodeId, ValueId>,
    norm_of: HashMap<NodeId, usize>,
    program: Program,
}

impl Builder<'_> {
    fn find_readers(&mut self) {
        for (i, node) in self.graph.nodes().iter().enumerate().rev() {
            if self.tapped[i] || !self.readers[i].is_empty() {
                for input in &node.inputs {
                    self.readers[input.0].push(NodeId(i));
                }
            }
        }
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        if self.value_of.contains_key(&id) {
            return Ok(()); // A ReLU that the step before it has taken in.
        }
        let node = self.graph.node(id);
        if node.tied.is_some() {
            return Err(unsupported(node));
        }
        let batch = self.config.batch;
        let input = |b: &Self, i: usize| b.value_of[&node.inputs[i]];
        match node.op {
            Op::Input { .. } => {
                self.value(id)?;
            }
            Op::Conv2d { in_channels, out_channels, kernel, stride, padding, groups, bias } => {
                let x = input(self, 0);
                let Shape::Map { height: h, width: w, .. } = self.program.values[x].shape else {
                    unreachable!("the graph has checked that a convolution reads a map")
                };
                let (c_in, c_out) = (in_channels, out_channels);
                let shape = ConvShape { n: batch, h, w, c_in, c_out, kernel, stride, padding, groups };
                let at = self.offsets(&node.name, bias);
                let y = self.value(id)?;
                self.program.steps.push(Step::Conv { x, y, shape, at, sums: false });
            }
            Op::BatchNorm { channels, eps, momentum } => {
                let z = input(self, 0);
                let map = self.map(z);
                debug_assert_eq!(map.channels, channels, "the graph has checked the channels");
                let norm = self.program.norms.len();
                let shape = NormShape { map, groups: self.config.bn_groups, eps, momentum };
                let at = NormOffsets {
                    weight: self.offset(&node.name, "weight"),
                    bias: self.offset(&node.name, "bias"),
                    running_mean: self.offset(&node.name, "running_mean"),
                    running_var: self.offset(&node.name, "running_var"),
                };
                self.program.norms.push(Norm { node: node.name.clone(), z, shape, at });
                self.program.steps.push(Step::Stats { norm, summed: false });
                self.norm_of.insert(id, norm);
                let joins = self.only_reader(id).is_some_and(|r| matches!(self.graph.node(r).op, Op::Add));
                if !joins {
                    self.apply(norm, Join::Nothing, id)?;
                }
            }
            Op::Add => {
                let [a, b] = [node.inputs[0], node.inputs[1]];
                // A normalisation that only this addition reads has not been applied yet.
                let waits = |b: &Self, id| b.norm_of.get(&id).filter(|_| !b.value_of.contains_key(&id)).copied();
                match (waits(self, a), waits(self, b)) {
                    (Some(norm), Some(other)) => self.apply(norm, Join::Norm(other), id)?,
                    (Some(norm), None) => self.apply(norm, Join::Value(self.value_of[&b]), id)?,
                    (None, Some(norm)) => self.apply(norm, Join::Value(self.value_of[&a]), id)?,
                    (None, None) => {
                        let (a, b) = (self.value_of[&a], self.value_of[&b]);
                        let (y, relu) = self.value_behind_relu(id)?;
                        self.program.steps.push(Step::Add { a, b, relu, y });
                    }
                }
            }
            Op::Relu => {
                let x = input(self, 0);
                let y = self.value(id)?;
                self.program.steps.push(Step::Relu { x, y });
            }
            Op::MaxPool { kernel, stride, padding } => {
                let x = input(self, 0);
                let y = self.value(id)?;
                let (input, output) = (self.sides(x), self.sides(y));
                if kernel > 15 {
                    return Err(Error::Config(format!("{}: a pooling window of {kernel} is above 15", node.name)));
                }
                let channels = self.map(x).channels;
                let shape = PoolShape { n: batch, input, output, channels, kernel, stride, padding };
                let index = self.program.indices.len();
                self.program.indices.push(self.map(y).len());
                self.program.steps.push(Step::MaxPool { x, y, shape, index });
            }
            Op::GlobalAvgPool => {
                let x = input(self, 0);
                let y = self.value(id)?;
                self.program.steps.push(Step::MeanPool { x, y, shape: self.map(x) });
            }
            Op::Linear { in_features, out_features, bias } => {
                let x = input(self, 0);
                let at = self.offsets(&node.name, bias);
                let (y, relu) = self.value_behind_relu(id)?;
                let shape = LinearShape { n: batch, inputs: in_features, outputs: out_features };
                self.program.steps.push(Step::Linear { x, y, shape, at, relu });
            }
            Op::GroupNorm { .. } | Op::Resize { .. } | Op::Concat => return Err(unsupported(node)),
        }
        Ok(())
    }

    /// Applies a normalisation; `end` is its node, or the addition behind it.
    fn apply(&mut self, norm: usize, join: Join, end: NodeId) -> Result<()> {
        let (y, relu) = self.value_behind_relu(end)?;
        let reader = self.only_reader(if relu { self.readers[end.0][0] } else { end });
        let into_conv = reader.is_some_and(|r| matches!(self.graph.node(r).op, Op::Conv2d { .. }));
        if self.fuse_input_norm && into_conv && matches!(join, Join::Nothing) {
            self.program.values[y].unwritten = Some(Unwritten { norm, relu });
        }
        self.program.steps.push(Step::Apply { norm, join, relu, y });
        Ok(())
    }

    /// The node that alone reads `id`, if its value is not also a tap.
    fn only_reader(&self, id: NodeId) -> Option<NodeId> {
        match self.readers[id.0][..] {
            [reader] if !self.tapped[id.0] => Some(reader),
            _ => None,
        }
    }

    /// A value for `id`, or for the ReLU that alone reads it, which the step then takes in.
    fn value_behind_relu(&mut self, id: NodeId) -> Result<(ValueId, bool)> {
        match self.only_reader(id).filter(|r| matches!(self.graph.node(*r).op, Op::Relu)) {
            None => Ok((self.value(id)?, false)),
            Some(relu) => {
                let y = self.value(relu)?;
                self.value_of.insert(id, y);
                Ok((y, true))
            }
        }
    }

    fn value(&mut self, id: NodeId) -> Result<ValueId> {
        let shape = self.shapes[id.0];
        if self.config.batch.checked_mul(shape.numel()).is_none_or(|len| len > isize::MAX as usize / 4) {
            return Err(Error::Memory { bytes: usize::MAX });
        }
        let needs_gradient = self.has_parameters_below(id);
        self.program.values.push(Value { shape, unwritten: None, needs_gradient });
        self.value_of.insert(id, self.program.values.len() - 1);
        Ok(self.program.values.len() - 1)
    }

    fn has_parameters_below(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        matches!(node.op, Op::Conv2d { .. } | Op::BatchNorm { .. } | Op::Linear { .. })
            || node.inputs.iter().any(|i| match self.value_of.get(i) {
                Some(value) => self.program.values[*value].needs_gradient,
                // Taken in by this very step, or waiting for it.
                None => self.has_parameters_below(*i),
            })
    }

    fn map(&self, value: ValueId) -> MapShape {
        let n = self.config.batch;
        match self.program.values[value].shape {
            Shape::Map { channels, height, width } => MapShape { n, pixels: height * width, channels },
            Shape::Vector(channels) => MapShape { n, pixels: 1, channels },
        }
    }

    fn sides(&self, value: ValueId) -> [usize; 2] {
        match self.program.values[value].shape {
            Shape::Map { height, width, .. } => [height, width],
            Shape::Vector(_) => [1, 1],
        }
    }

    fn offset(&self, node: &str, suffix: &str) -> usize {
        self.offsets[&format!("{node}.{suffix}")]
    }

    fn offsets(&self, node: &str, bias: bool) -> Offsets {
        Offsets { weight: self.offset(node, "weight"), bias: bias.then(|| self.offset(node, "bias")) }
    }
}

fn unsupported(node: &Node) -> Error {
    Error::Config(format!(
        "{}: the engine does not run {:?}{}",
        node.name,
        node.op,
        if node.tied.is_some() { ", tied" } else { "" }
    ))
}

//! From graph to fused steps.

use std::collections::HashMap;

use moco_models::{Graph, Node, NodeId, Op, Shape};

use super::program::{Join, Learns, Norm, Program, Step, Unwritten, Value, ValueId};
use super::{BnGroups, Mode, PlanConfig};
use crate::kernels::conv::ConvShape;
use crate::kernels::{
    LinearShape, MapShape, NormOffsets, NormShape, Offsets, PoolShape, ResizeShape, SliceShape, Statistics,
};
use crate::{Error, Result};

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
        check_names(graph, "frozen", &config.frozen)?;
        check_names(graph, "running_norms", &config.running_norms)?;
        let params = graph.parameter_layout();
        let buffers = graph.buffer_layout();
        let mut builder = Builder {
            graph,
            config,
            fuse_input_norm,
            shapes: graph.shapes(config.height, config.width)?,
            tapped: vec![false; graph.nodes().len()],
            given: vec![],
            readers: vec![vec![]; graph.nodes().len()],
            users: vec![0; graph.nodes().len()],
            shared_of: HashMap::new(),
            offsets: params.iter().chain(buffers.iter()).map(|(s, r)| (s.name.clone(), r.start)).collect(),
            value_of: HashMap::new(),
            norm_of: HashMap::new(),
            lens: params.iter().map(|(s, r)| (s.name.clone(), r.len())).collect(),
            program: Program { params_len: params.len(), buffers_len: buffers.len(), ..Program::default() },
        };
        for name in &names {
            builder.tapped[graph.tap(name)?.0] = true;
        }
        builder.given = config.given.iter().map(|tap| graph.tap(tap)).collect::<moco_models::Result<_>>()?;
        builder.find_readers();
        builder.check_given()?;
        for i in 0..graph.nodes().len() {
            if builder.needs(NodeId(i)) {
                builder.node(NodeId(i))?;
            }
        }
        let Builder { mut program, value_of, given, .. } = builder;
        let sources = if given.is_empty() { vec![graph.input()] } else { given };
        program.inputs = sources.iter().filter_map(|node| value_of.get(node).copied()).collect();
        for name in names {
            program.taps.push((name.to_string(), value_of[&graph.tap(name)?]));
        }
        for i in 1..program.steps.len() {
            let [before, here] = &mut program.steps[i - 1..=i] else { unreachable!("two steps") };
            if let (Step::Conv { y, sums, at, relu, .. }, Step::Stats { norm, summed }) = (before, here) {
                let norm = &program.norms[*norm];
                // A convolution sums before it adds its bias and before its ReLU.
                let plain = at.bias.is_none() && !*relu;
                let fits = norm.z == *y && plain && norm.shape.statistics != Statistics::Running;
                (*sums, *summed) = (fits, fits);
            }
        }
        Ok(program)
    }
}

struct Builder<'a> {
    graph: &'a Graph,
    config: &'a PlanConfig,
    fuse_input_norm: bool,
    shapes: Vec<Shape>,
    tapped: Vec<bool>,
    /// Nodes whose values come from outside instead of the images.
    given: Vec<NodeId>,
    /// Nodes that a kept tap needs and that read the node, once per edge.
    readers: Vec<Vec<NodeId>>,
    /// How many such nodes use the parameters of the node.
    users: Vec<usize>,
    /// Index into [`Program::shared`] by owner.
    shared_of: HashMap<NodeId, usize>,
    offsets: HashMap<String, usize>,
    /// Numbers of parameters.
    lens: HashMap<String, usize>,
    value_of: HashMap<NodeId, ValueId>,
    norm_of: HashMap<NodeId, usize>,
    program: Program,
}

impl Builder<'_> {
    fn find_readers(&mut self) {
        for (i, node) in self.graph.nodes().iter().enumerate().rev() {
            if self.needs(NodeId(i)) && !self.given.contains(&NodeId(i)) {
                for input in read_inputs(node) {
                    self.readers[input.0].push(NodeId(i));
                }
                self.users[self.graph.owner(NodeId(i)).0] += 1;
            }
        }
    }

    /// Whether a kept tap needs a node.
    fn needs(&self, id: NodeId) -> bool {
        self.tapped[id.0] || !self.readers[id.0].is_empty()
    }

    /// Each given tap once, each of use, and nothing left that reads the images beside them.
    fn check_given(&self) -> Result<()> {
        let taps = &self.config.given;
        for (i, (tap, node)) in taps.iter().zip(&self.given).enumerate() {
            if self.given[..i].contains(node) {
                return Err(Error::Config(format!("`given` names `{tap}`, which is given already")));
            }
            if !self.needs(*node) {
                return Err(Error::Config(format!("`given` names `{tap}`, which no tap of the plan needs")));
            }
        }
        let input = self.graph.input();
        if let (Some(reader), false) = (self.readers[input.0].first(), self.given.is_empty()) {
            let (reader, given) = (&self.graph.node(*reader).name, taps.join(", "));
            return Err(Error::Config(format!(
                "`{reader}` needs the images, but only {given} would be given; name what lies between"
            )));
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        if self.value_of.contains_key(&id) {
            return Ok(()); // A ReLU that the step before it has taken in.
        }
        if self.given.contains(&id) {
            self.value(id)?;
            return Ok(());
        }
        let node = self.graph.node(id);
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
                let (at, learns) = (self.offsets(id, bias), self.learns(id));
                let (y, relu) = self.value_behind_relu(id)?;
                self.push(id, Step::Conv { x, y, shape, at, sums: false, relu, learns });
            }
            Op::BatchNorm { channels, eps, momentum } => {
                let running = self.config.mode == Mode::Eval || names(&self.config.running_norms, &node.name);
                let statistics = if running { Statistics::Running } else { Statistics::Batch };
                let map = self.map(input(self, 0));
                debug_assert_eq!(map.channels, channels, "the graph has checked the channels");
                let shape = NormShape { map, groups: self.config.bn_groups, statistics, eps, momentum };
                let running = ["running_mean", "running_var"].map(|suffix| self.offset(id, suffix));
                self.norm(id, shape, running)?;
            }
            Op::GroupNorm { groups, eps, .. } => {
                let statistics = Statistics::Image { groups };
                let map = self.map(input(self, 0));
                let shape = NormShape { map, groups: BnGroups::Ranks(batch), statistics, eps, momentum: 0.0 };
                self.norm(id, shape, [0; 2])?;
            }
            Op::Add => {
                let [a, b] = [node.inputs[0], node.inputs[1]];
                // A normalisation that only this addition reads has not been applied yet.
                let waits = |b: &Self, id| b.norm_of.get(&id).filter(|_| !b.value_of.contains_key(&id)).copied();
                let groups = |b: &Self, norm: usize| b.program.norms[norm].shape.groups;
                match (waits(self, a), waits(self, b)) {
                    (Some(norm), Some(other)) if groups(self, norm) == groups(self, other) => {
                        self.apply(norm, Join::Norm(other), id)?;
                    }
                    (Some(norm), Some(other)) => {
                        self.apply(other, Join::Nothing, b)?;
                        self.apply(norm, Join::Value(self.value_of[&b]), id)?;
                    }
                    (Some(norm), None) => self.apply(norm, Join::Value(self.value_of[&b]), id)?,
                    (None, Some(norm)) => self.apply(norm, Join::Value(self.value_of[&a]), id)?,
                    (None, None) => {
                        let (a, b) = (self.value_of[&a], self.value_of[&b]);
                        let (y, relu) = self.value_behind_relu(id)?;
                        self.push(id, Step::Add { a, b, relu, y });
                    }
                }
            }
            Op::Relu => {
                let x = input(self, 0);
                let y = self.value(id)?;
                self.push(id, Step::Relu { x, y });
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
                let wanted = self.config.mode == Mode::Train && self.program.values[x].needs_gradient;
                self.program.indices.push(if wanted { self.map(y).len() } else { 0 });
                self.push(id, Step::MaxPool { x, y, shape, index });
            }
            Op::GlobalAvgPool => {
                let x = input(self, 0);
                let y = self.value(id)?;
                self.push(id, Step::MeanPool { x, y, shape: self.map(x) });
            }
            Op::Linear { in_features, out_features, bias } => {
                let x = input(self, 0);
                let (at, learns) = (self.offsets(id, bias), self.learns(id));
                let (y, relu) = self.value_behind_relu(id)?;
                let shape = LinearShape { n: batch, inputs: in_features, outputs: out_features };
                self.push(id, Step::Linear { x, y, shape, at, relu, learns });
            }
            Op::Resize { interpolation } => {
                let x = input(self, 0);
                let y = self.value(id)?;
                let (input, output, channels) = (self.sides(x), self.sides(y), self.map(x).channels);
                self.push(
                    id,
                    Step::Resize { x, y, shape: ResizeShape { n: batch, input, output, channels, interpolation } },
                );
            }
            Op::Concat => {
                let y = self.value(id)?;
                let MapShape { pixels, channels: of, .. } = self.map(y);
                let mut first = 0;
                let mut parts = vec![];
                for x in node.inputs.iter().map(|input| self.value_of[input]) {
                    let channels = self.map(x).channels;
                    parts.push((x, SliceShape { rows: batch * pixels, channels, first, of }));
                    first += channels;
                }
                self.program.joined.push(parts);
                self.push(id, Step::Concat { parts: self.program.joined.len() - 1, y });
            }
        }
        Ok(())
    }

    /// A normalisation, applied now unless the addition behind it will.
    fn norm(&mut self, id: NodeId, shape: NormShape, [running_mean, running_var]: [usize; 2]) -> Result<()> {
        let node = self.graph.node(id);
        let (weight, bias) = (self.offset(id, "weight"), self.offset(id, "bias"));
        let at = NormOffsets { weight, bias, running_mean, running_var };
        let (norm, z, learns) = (self.program.norms.len(), self.value_of[&node.inputs[0]], self.learns(id));
        self.program.norms.push(Norm { node: node.name.clone(), z, shape, at, learns });
        self.push(id, Step::Stats { norm, summed: false });
        self.norm_of.insert(id, norm);
        match self.only_reader(id).is_some_and(|r| matches!(self.graph.node(r).op, Op::Add)) {
            true => Ok(()),
            false => self.apply(norm, Join::Nothing, id),
        }
    }

    /// Applies a normalisation; `end` is its node, or the addition behind it.
    fn apply(&mut self, norm: usize, join: Join, end: NodeId) -> Result<()> {
        let (y, relu) = self.value_behind_relu(end)?;
        let reader = self.only_reader(if relu { self.readers[end.0][0] } else { end });
        let into_conv = reader.is_some_and(|r| matches!(self.graph.node(r).op, Op::Conv2d { .. }));
        if self.fuse_input_norm && into_conv && matches!(join, Join::Nothing) {
            self.program.values[y].unwritten = Some(Unwritten { norm, relu });
        }
        self.push(end, Step::Apply { norm, join, relu, y });
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

    fn push(&mut self, id: NodeId, step: Step) {
        self.program.steps.push(step);
        self.program.nodes.push(self.graph.node(id).name.clone());
    }

    fn has_parameters_below(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        if self.given.contains(&id) {
            return false;
        }
        let has_parameters =
            matches!(node.op, Op::Conv2d { .. } | Op::BatchNorm { .. } | Op::GroupNorm { .. } | Op::Linear { .. });
        (has_parameters && !self.is_frozen(id))
            || read_inputs(node).iter().any(|i| match self.value_of.get(i) {
                Some(value) => self.program.values[*value].needs_gradient,
                // Taken in by this very step, or waiting for it.
                None => self.has_parameters_below(*i),
            })
    }

    fn is_frozen(&self, id: NodeId) -> bool {
        names(&self.config.frozen, &self.graph.node(self.graph.owner(id)).name)
    }

    /// What becomes of the gradients of a node's parameters.
    fn learns(&mut self, id: NodeId) -> Learns {
        let owner = self.graph.owner(id);
        if self.is_frozen(id) {
            return Learns::Nothing;
        }
        if self.users[owner.0] < 2 {
            return Learns::Alone;
        }
        let len = ["weight", "bias"].iter().filter_map(|s| self.lens.get(&self.name_of(owner, s))).sum();
        let shared = &mut self.program.shared;
        Learns::Shared(*self.shared_of.entry(owner).or_insert_with(|| {
            shared.push(len);
            shared.len() - 1
        }))
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

    /// Name of a node's parameter, which its owner has given it.
    fn name_of(&self, id: NodeId, suffix: &str) -> String {
        format!("{}.{suffix}", self.graph.node(self.graph.owner(id)).name)
    }

    fn offset(&self, id: NodeId, suffix: &str) -> usize {
        self.offsets[&self.name_of(id, suffix)]
    }

    fn offsets(&self, id: NodeId, bias: bool) -> Offsets {
        Offsets { weight: self.offset(id, "weight"), bias: bias.then(|| self.offset(id, "bias")) }
    }
}

/// The inputs whose values a node reads.
fn read_inputs(node: &Node) -> &[NodeId] {
    match node.op {
        Op::Resize { .. } => &node.inputs[..1],
        _ => &node.inputs,
    }
}

/// Whether an entry is the node's name or a part of it that ends before a dot.
fn names(entries: &[String], node: &str) -> bool {
    entries.iter().any(|entry| covers(entry, node))
}

fn covers(entry: &str, node: &str) -> bool {
    node.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn check_names(graph: &Graph, option: &str, entries: &[String]) -> Result<()> {
    match entries.iter().find(|entry| !graph.nodes().iter().any(|node| covers(entry, &node.name))) {
        None => Ok(()),
        Some(entry) => Err(Error::Config(format!(
            "`{option}` names `{entry}`, but no node of the network is called so or begins with `{entry}.`"
        ))),
    }
}

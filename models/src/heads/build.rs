//! The layers that heads are made of.

use crate::{Graph, Interpolation, NodeId, Op, Result, Shape};

/// Groups of a normalisation at most (arXiv:1803.08494 uses 32).
const GROUPS: usize = 32;

/// Channels a group at least: with fewer, a group's mean takes away most of what a channel says.
const CHANNELS_PER_GROUP: usize = 4;

/// A backbone that is getting a head.
pub(super) struct Builder {
    graph: Graph,
    backbone: Vec<Shape>,
}

/// A node and the number of its channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub node: NodeId,
    pub channels: usize,
}

impl Builder {
    /// Starts from the backbone without its projector.
    pub(super) fn new(backbone: &Graph) -> Result<Builder> {
        let taps: Vec<&str> = backbone.taps().iter().map(|t| t.name.as_str()).filter(|t| *t != "projection").collect();
        let graph = backbone.keep_taps(&taps)?;
        // Channels do not depend on the image; any size that fits tells them.
        let shapes = graph.shapes(224, 224)?;
        Ok(Builder { graph, backbone: shapes })
    }

    pub(super) fn finish(self) -> Graph {
        self.graph
    }

    pub(super) fn tap(&self, name: &str) -> Result<Value> {
        let node = self.graph.tap(name)?;
        Ok(Value { node, channels: self.backbone[node.0].channels() })
    }

    /// The backbone's map `c{level}`.
    pub(super) fn level(&self, level: usize) -> Result<Value> {
        self.tap(&format!("c{level}"))
    }

    pub(super) fn name_tap(&mut self, name: &str, value: Value) {
        self.graph.add_tap(name, value.node);
    }

    /// A square convolution that keeps the size at stride 1.
    pub(super) fn conv(&mut self, name: &str, x: Value, channels: usize, kernel: usize, bias: bool) -> Value {
        self.strided(name, x, channels, kernel, 1, bias)
    }

    pub(super) fn strided(
        &mut self,
        name: &str,
        x: Value,
        channels: usize,
        kernel: usize,
        stride: usize,
        bias: bool,
    ) -> Value {
        let (in_channels, out_channels, padding) = (x.channels, channels, kernel / 2);
        let op = Op::Conv2d { in_channels, out_channels, kernel, stride, padding, groups: 1, bias };
        Value { node: self.graph.push(name, op, &[x.node]), channels }
    }

    pub(super) fn linear(&mut self, name: &str, x: Value, features: usize, bias: bool) -> Value {
        let op = Op::Linear { in_features: x.channels, out_features: features, bias };
        Value { node: self.graph.push(name, op, &[x.node]), channels: features }
    }

    pub(super) fn batch_norm(&mut self, name: &str, x: Value) -> Value {
        self.same(name, Op::BatchNorm { channels: x.channels, eps: 1e-5, momentum: 0.1 }, x)
    }

    pub(super) fn group_norm(&mut self, name: &str, x: Value) -> Value {
        self.same(name, Op::GroupNorm { channels: x.channels, groups: groups(x.channels), eps: 1e-5 }, x)
    }

    pub(super) fn relu(&mut self, name: &str, x: Value) -> Value {
        self.same(name, Op::Relu, x)
    }

    /// 3×3 convolution, group normalisation and ReLU.
    pub(super) fn block(&mut self, prefix: &str, x: Value, channels: usize) -> Value {
        let x = self.conv(&format!("{prefix}.conv"), x, channels, 3, false);
        let x = self.group_norm(&format!("{prefix}.norm"), x);
        self.relu(&format!("{prefix}.relu"), x)
    }

    pub(super) fn add(&mut self, name: &str, a: Value, b: Value) -> Value {
        Value { node: self.graph.push(name, Op::Add, &[a.node, b.node]), ..a }
    }

    pub(super) fn concat(&mut self, name: &str, parts: &[Value]) -> Value {
        let nodes: Vec<NodeId> = parts.iter().map(|p| p.node).collect();
        let channels = parts.iter().map(|p| p.channels).sum();
        Value { node: self.graph.push(name, Op::Concat, &nodes), channels }
    }

    /// `x` in the size of `like`; `x` itself where both have one stride and therefore one size.
    pub(super) fn resize(&mut self, name: &str, x: Value, like: NodeId, interpolation: Interpolation) -> Value {
        let strides = strides(&self.graph);
        if strides[x.node.0] == strides[like.0] {
            return x;
        }
        Value { node: self.graph.push(name, Op::Resize { interpolation }, &[x.node, like]), ..x }
    }

    /// As [`Builder::resize`] to the image.
    pub(super) fn resize_to_image(&mut self, name: &str, x: Value) -> Value {
        self.resize(name, x, self.graph.input(), Interpolation::Bilinear)
    }

    /// The layer `owner` once more, on `x`.
    pub(super) fn tied(&mut self, name: &str, owner: Value, x: Value) -> Value {
        Value { node: self.graph.push_tied(name, owner.node, &[x.node]), ..owner }
    }

    fn same(&mut self, name: &str, op: Op, x: Value) -> Value {
        Value { node: self.graph.push(name, op, &[x.node]), ..x }
    }
}

/// The largest number of equal groups within the limits above.
fn groups(channels: usize) -> usize {
    let fits = |g: &usize| channels.is_multiple_of(*g) && channels / g >= CHANNELS_PER_GROUP;
    (1..=GROUPS).rev().find(fits).unwrap_or(1)
}

/// Pixels of the image a pixel of each node's map; 0 for vectors. Every window of ours makes ⌈side / stride⌉ of a side,
/// so maps of one stride have one size.
pub(super) fn strides(graph: &Graph) -> Vec<usize> {
    let mut strides: Vec<usize> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let of = |i: usize| strides[node.inputs[i].0];
        strides.push(match node.op {
            Op::Input { .. } => 1,
            Op::Conv2d { stride, .. } | Op::MaxPool { stride, .. } => of(0) * stride,
            Op::Resize { .. } => of(1),
            Op::GlobalAvgPool | Op::Linear { .. } => 0,
            Op::BatchNorm { .. } | Op::GroupNorm { .. } | Op::Relu | Op::Add | Op::Concat => of(0),
        });
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn groups_divide_and_are_not_too_small() {
        for (channels, expected) in [(256, 32), (128, 32), (64, 16), (48, 12), (32, 8), (16, 4), (7, 1), (3, 1), (1, 1)]
        {
            assert_eq!(groups(channels), expected, "{channels}");
        }
    }
}

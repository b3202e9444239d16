//! The graph: nodes in topological order, parameters named as torchvision names them, and named taps.

mod node;
#[cfg(test)]
mod tests;

use crate::{Error, FlatLayout, ParamSpec, Result};
use node::{node_macs, node_parameters, shape_of};

/// Index of a node in its [`Graph`]; inputs of a node always have smaller indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// What a node computes. Feature maps are images of `channels × height × width`; vectors have one dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// The image batch.
    Input {
        /// Channels of the image.
        channels: usize,
    },
    /// 2-D cross-correlation, square kernel; weight `[out, in / groups, kernel, kernel]`, bias `[out]` if any.
    Conv2d {
        /// Input channels.
        in_channels: usize,
        /// Output channels.
        out_channels: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Zero padding on all four sides.
        padding: usize,
        /// Groups; both channel counts are divisible by it.
        groups: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// Batch normalisation over all but the channel dimension (arXiv:1502.03167), with PyTorch's conventions:
    /// biased variance to normalise, unbiased variance into the running statistics.
    BatchNorm {
        /// Channels.
        channels: usize,
        /// Added to the variance.
        eps: f32,
        /// Weight of the new statistics in the running ones.
        momentum: f32,
    },
    /// max(x, 0), with gradient 0 at 0.
    Relu,
    /// Sum of two equal shapes.
    Add,
    /// Max pooling with implicit −∞ padding.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Padding on all four sides.
        padding: usize,
    },
    /// Mean over height and width; a vector.
    GlobalAvgPool,
    /// `x Wᵀ + b` on vectors; weight `[out, in]`, bias `[out]` if any.
    Linear {
        /// Input features.
        in_features: usize,
        /// Output features.
        out_features: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// Group normalisation (arXiv:1803.08494): each image's channels in `groups` equal groups, over a group's channels and
    /// all pixels, biased variance; then a scale and a shift a channel.
    GroupNorm {
        /// Channels; divisible by `groups`.
        channels: usize,
        /// Groups.
        groups: usize,
        /// Added to the variance.
        eps: f32,
    },
    /// The first input brought to the height and width of the second, whose values do not matter.
    Resize {
        /// How values between pixels are made.
        interpolation: Interpolation,
    },
    /// Maps of one size joined along their channels, in the order of the inputs.
    Concat,
}

/// How [`Op::Resize`] reads between pixels: `torch.nn.functional.interpolate` with `align_corners=False` and without
/// antialiasing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel ⌊i · in / out⌋.
    Nearest,
    /// Linear in both directions between pixel centres, the border repeated.
    Bilinear,
}

/// Shape of a node's result for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A feature map.
    Map {
        /// Channels.
        channels: usize,
        /// Height in pixels of this map.
        height: usize,
        /// Width in pixels of this map.
        width: usize,
    },
    /// A vector.
    Vector(
        /// Number of features.
        usize,
    ),
}

impl Shape {
    /// Number of values for one image.
    pub fn numel(&self) -> usize {
        match *self {
            Shape::Map { channels, height, width } => channels * height * width,
            Shape::Vector(n) => n,
        }
    }

    /// Channels of a map, features of a vector.
    pub fn channels(&self) -> usize {
        match *self {
            Shape::Map { channels, .. } => channels,
            Shape::Vector(n) => n,
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Prefix of its parameters, e.g. `layer1.0.conv1`; unique also where there are none.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Nodes it reads.
    pub inputs: Vec<NodeId>,
    /// The earlier node whose parameters it uses instead of own ones.
    pub tied: Option<NodeId>,
}

/// A named result: `c1`…`c5`, `pooled`, `projection`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Name.
    pub name: String,
    /// The node whose result it names.
    pub node: NodeId,
}

/// A network, described once. Node 0 is the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    taps: Vec<Tap>,
}

impl Graph {
    /// A graph that holds only its input.
    pub fn new(channels: usize) -> Graph {
        Graph {
            nodes: vec![Node { name: "input".into(), op: Op::Input { channels }, inputs: vec![], tied: None }],
            taps: vec![],
        }
    }

    /// The input node.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// Appends a node.
    ///
    /// # Panics
    /// If an input does not exist yet or the name is taken: both are mistakes of the function that builds the graph.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: &[NodeId]) -> NodeId {
        self.push_node(Node { name: name.into(), op, inputs: inputs.to_vec(), tied: None })
    }

    /// Appends a node that does what `owner` does, with the parameters of `owner`: one layer used several times. Where
    /// `owner` is tied itself, the new node is tied to that owner.
    ///
    /// # Panics
    /// As [`Graph::push`], and for a batch normalisation: its running statistics cannot be those of several maps.
    pub fn push_tied(&mut self, name: impl Into<String>, owner: NodeId, inputs: &[NodeId]) -> NodeId {
        let (op, tied) = (self.node(owner).op, self.node(owner).tied);
        assert!(!matches!(op, Op::BatchNorm { .. }), "a batch normalisation cannot be tied");
        self.push_node(Node { name: name.into(), op, inputs: inputs.to_vec(), tied: Some(tied.unwrap_or(owner)) })
    }

    fn push_node(&mut self, node: Node) -> NodeId {
        let name = &node.name;
        assert!(node.inputs.iter().all(|i| i.0 < self.nodes.len()), "node {name} reads a later node");
        assert!(self.nodes.iter().all(|n| n.name != *name), "node {name} exists twice");
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// The node whose name its parameters carry: itself, or the one it is tied to.
    pub fn owner(&self, id: NodeId) -> NodeId {
        self.node(id).tied.unwrap_or(id)
    }

    /// Names a node's result.
    pub fn add_tap(&mut self, name: &str, node: NodeId) {
        self.taps.push(Tap { name: name.into(), node });
    }

    /// All nodes, inputs before their readers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// All taps, in the order of the network.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The node behind a tap.
    ///
    /// # Errors
    /// [`Error::Arch`] naming the taps there are.
    pub fn tap(&self, name: &str) -> Result<NodeId> {
        self.taps.iter().find(|t| t.name == name).map(|t| t.node).ok_or_else(|| {
            let known: Vec<_> = self.taps.iter().map(|t| t.name.as_str()).collect();
            Error::Arch(format!("there is no tap `{name}`; this network has {}", known.join(", ")))
        })
    }

    /// Taps whose values the nodes named `{prefix}…` read and do not make: what a head needs of its backbone, in the order of
    /// the taps.
    ///
    /// # Errors
    /// [`Error::Arch`] if they read a node without a tap.
    pub fn taps_read_by(&self, prefix: &str) -> Result<Vec<String>> {
        let inside = |node: &Node| node.name.starts_with(prefix);
        let mut read = vec![false; self.nodes.len()];
        for node in self.nodes.iter().filter(|node| inside(node)) {
            // Of what a resize takes its size from, the values do not matter.
            let values = if matches!(node.op, Op::Resize { .. }) { &node.inputs[..1] } else { &node.inputs };
            for input in values.iter().filter(|input| !inside(self.node(**input))) {
                if self.taps.iter().all(|tap| tap.node != *input) {
                    let (reader, input) = (&node.name, &self.node(*input).name);
                    return Err(Error::Arch(format!("`{reader}` reads `{input}`, which has no tap")));
                }
                read[input.0] = true;
            }
        }
        let mut taps: Vec<String> = vec![];
        for tap in &self.taps {
            if std::mem::take(&mut read[tap.node.0]) {
                taps.push(tap.name.clone());
            }
        }
        Ok(taps)
    }

    /// Channels of the input image.
    pub fn in_channels(&self) -> usize {
        match self.nodes[0].op {
            Op::Input { channels } => channels,
            _ => unreachable!("node 0 is the input"),
        }
    }

    /// The same network without the nodes that no kept tap needs; node order and names stay.
    ///
    /// # Errors
    /// [`Error::Arch`] if a tap does not exist.
    pub fn keep_taps(&self, taps: &[&str]) -> Result<Graph> {
        let mut needed = vec![false; self.nodes.len()];
        needed[0] = true;
        for tap in taps {
            needed[self.tap(tap)?.0] = true;
        }
        for i in (0..self.nodes.len()).rev() {
            if needed[i] {
                for input in self.nodes[i].inputs.iter().chain(&self.nodes[i].tied) {
                    needed[input.0] = true;
                }
            }
        }
        let mut new_id = vec![NodeId(0); self.nodes.len()];
        let mut graph = Graph { nodes: vec![], taps: vec![] };
        for (i, node) in self.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
            new_id[i] = NodeId(graph.nodes.len());
            let inputs = node.inputs.iter().map(|n| new_id[n.0]).collect();
            let tied = node.tied.map(|n| new_id[n.0]);
            graph.nodes.push(Node { name: node.name.clone(), op: node.op, inputs, tied });
        }
        for tap in self.taps.iter().filter(|t| needed[t.node.0]) {
            graph.taps.push(Tap { name: tap.name.clone(), node: new_id[tap.node.0] });
        }
        Ok(graph)
    }

    /// Shape of every node's result for one image of `height × width`.
    ///
    /// # Errors
    /// [`Error::Graph`] where a kernel does not fit or shapes disagree.
    pub fn shapes(&self, height: usize, width: usize) -> Result<Vec<Shape>> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let inputs: Vec<Shape> = node.inputs.iter().map(|i| shapes[i.0]).collect();
            let shape = shape_of(node.op, &inputs, height, width)
                .map_err(|reason| Error::Graph { node: node.name.clone(), reason })?;
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Trainable parameters, in the order in which the nodes were built (torchvision's order).
    pub fn parameters(&self) -> Vec<ParamSpec> {
        self.nodes.iter().flat_map(node_parameters).filter(|p| p.kind.is_trainable()).collect()
    }

    /// Running statistics of the batch normalisations: `running_mean`, `running_var` of each.
    pub fn buffers(&self) -> Vec<ParamSpec> {
        self.nodes.iter().flat_map(node_parameters).filter(|p| !p.kind.is_trainable()).collect()
    }

    /// [`Graph::parameters`] laid out one after the other in one flat f32 buffer, each in PyTorch's row-major order.
    pub fn parameter_layout(&self) -> FlatLayout {
        FlatLayout::new(self.parameters())
    }

    /// [`Graph::buffers`] laid out in one flat f32 buffer.
    pub fn buffer_layout(&self) -> FlatLayout {
        FlatLayout::new(self.buffers())
    }

    /// Multiply-accumulates of one image's forward pass (convolutions and linear layers).
    ///
    /// # Errors
    /// As [`Graph::shapes`].
    pub fn macs(&self, height: usize, width: usize) -> Result<u64> {
        let shapes = self.shapes(height, width)?;
        Ok(self.nodes.iter().zip(&shapes).map(|(node, shape)| node_macs(node.op, *shape)).sum())
    }
}

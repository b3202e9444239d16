//! Which nodes of a graph become one step in 8 bits: a convolution with the batch normalisation and ReLU behind it, or
//! a sum with the ReLU behind it. Only what leaves such a step is rounded to 8 bits.

use crate::{Error, Graph, Node, NodeId, Op, Result};

/// What a node is to a network in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// The image, rounded to 8 bits.
    Image,
    /// Inside a step; its result never exists.
    Inside,
    /// The last node of a step, whose result is rounded to 8 bits.
    End(Step),
    /// Max pooling of 8-bit values: takes their range over.
    Pooling,
    /// Everything behind the last feature map: stays in f32.
    Float,
}

/// A convolution or sum and what is computed with it at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    /// The convolution or the sum.
    pub head: NodeId,
    /// The normalisation that is folded into the convolution's weights.
    pub norm: Option<NodeId>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// The role of every node. A node with a tap or with several readers ends its step.
///
/// # Errors
/// [`Error::Graph`] for a feature map that would have to be computed in 8 bits and cannot be.
pub(super) fn roles(graph: &Graph) -> Result<Vec<Role>> {
    let nodes = graph.nodes();
    let is_head = |n: &&Node| n.tied.is_some() || matches!(n.op, Op::GroupNorm { .. } | Op::Resize { .. } | Op::Concat);
    if let Some(node) = nodes.iter().find(is_head) {
        let reason = "belongs to a decoder or detector: such a network runs in f32 only".into();
        return Err(Error::Graph { node: node.name.clone(), reason });
    }
    let mut roles = vec![Role::Float; nodes.len()];
    let follower = |id: NodeId| -> Option<NodeId> {
        let mut readers = (id.0 + 1..nodes.len()).filter(|i| nodes[*i].inputs.contains(&id));
        let only = readers.next().filter(|_| readers.next().is_none() && !graph.taps().iter().any(|t| t.node == id));
        only.map(NodeId)
    };
    for (i, node) in nodes.iter().enumerate() {
        match node.op {
            Op::Input { .. } => roles[i] = Role::Image,
            Op::MaxPool { .. } => roles[i] = Role::Pooling,
            Op::Conv2d { .. } | Op::Add => {
                let (mut end, mut norm, mut relu) = (NodeId(i), None, false);
                let is_conv = matches!(node.op, Op::Conv2d { .. });
                if let Some(next) = follower(end).filter(|n| is_conv && matches!(nodes[n.0].op, Op::BatchNorm { .. })) {
                    roles[end.0] = Role::Inside;
                    (norm, end) = (Some(next), next);
                }
                if let Some(next) = follower(end).filter(|n| nodes[n.0].op == Op::Relu) {
                    roles[end.0] = Role::Inside;
                    (relu, end) = (true, next);
                }
                roles[end.0] = Role::End(Step { head: NodeId(i), norm, relu });
            }
            Op::BatchNorm { .. }
            | Op::Relu
            | Op::GlobalAvgPool
            | Op::Linear { .. }
            | Op::GroupNorm { .. }
            | Op::Resize { .. }
            | Op::Concat => (),
        }
    }
    for (i, role) in roles.iter().enumerate() {
        let reader = match role {
            Role::Pooling => &nodes[i],
            Role::End(step) => graph.node(step.head),
            Role::Image | Role::Inside | Role::Float => continue,
        };
        if let Some(input) = reader.inputs.iter().find(|n| roles[n.0] == Role::Float) {
            let reason = format!(
                "reads `{}`, which is not rounded to 8 bits: this network runs in f32 only",
                graph.node(*input).name
            );
            return Err(Error::Graph { node: reader.name.clone(), reason });
        }
    }
    Ok(roles)
}

/// Names of the nodes whose results are rounded to 8 bits and need a range: the image and the end of every step.
pub(super) fn ranged(graph: &Graph, roles: &[Role]) -> Vec<String> {
    let named = graph.nodes().iter().zip(roles);
    named.filter(|(_, r)| matches!(r, Role::Image | Role::End(_))).map(|(n, _)| n.name.clone()).collect()
}

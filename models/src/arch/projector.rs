//! The projector that MoCo trains on top of the pooled features; thrown away afterwards.

use crate::{Error, Graph, Op, Result, Shape};

/// Projector of MoCo v1 (linear) and v2 (MLP), named `fc` as in the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Projector {
    /// No projector: a plain backbone.
    #[default]
    None,
    /// `fc` = Linear(features, dim), MoCo v1 (arXiv:1911.05722).
    Linear {
        /// Dimension of the embedding.
        dim: usize,
    },
    /// `fc` = Linear(features, features), ReLU, Linear(features, dim), MoCo v2 (arXiv:2003.04297): no batch norm.
    Mlp {
        /// Dimension of the embedding.
        dim: usize,
    },
}

impl Projector {
    pub(super) fn append(self, graph: &mut Graph) -> Result<()> {
        let pooled = graph.tap("pooled")?;
        // The pooled shape does not depend on the image, only on the network; any size that fits tells it.
        let Shape::Vector(features) = graph.shapes(224, 224)?[pooled.0] else {
            return Err(Error::Arch("the projector needs a vector below it".into()));
        };
        let linear = |out_features| Op::Linear { in_features: features, out_features, bias: true };
        let end = match self {
            Projector::None => return Ok(()),
            Projector::Linear { dim } | Projector::Mlp { dim } if dim == 0 => {
                return Err(Error::Arch(format!("the embedding dimension is {dim}; give at least 1")));
            }
            Projector::Linear { dim } => graph.push("fc", linear(dim), &[pooled]),
            Projector::Mlp { dim } => {
                let hidden = graph.push("fc.0", linear(features), &[pooled]);
                let active = graph.push("fc.1", Op::Relu, &[hidden]);
                graph.push("fc.2", linear(dim), &[active])
            }
        };
        graph.add_tap("projection", end);
        Ok(())
    }
}

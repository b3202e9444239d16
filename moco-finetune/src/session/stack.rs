//! A network in one piece, or cut between a backbone that is frozen as a whole and a classifier on its pooled features.

use moco_engine::compute::Compute;
use moco_models::{Graph, Op, Weights};

use super::network::{Judge, Look, Network, NetworkConfig, Which, open};
use crate::loss::Loss;
use crate::{Error, Result};

/// The tap between the two pieces.
const POOLED: &str = "pooled";

/// What learns, and what it stands on.
pub(crate) struct Stack {
    trunk: Option<Trunk>,
    /// What learns: all of the network, or its head alone.
    pub net: Box<dyn Network>,
}

/// A backbone that only answers.
struct Trunk {
    network: Box<dyn Network>,
    /// Length of its features.
    dim: usize,
}

impl Stack {
    /// A network in one piece.
    pub(crate) fn whole(net: Box<dyn Network>) -> Stack {
        Stack { trunk: None, net }
    }

    /// A head on a backbone that does not learn. `weights` are those of `backbone`.
    pub(crate) fn on_frozen(
        compute: &Compute,
        backbone: &Graph,
        weights: &Weights,
        net: Box<dyn Network>,
    ) -> Result<Stack> {
        let graph = backbone.keep_taps(&[POOLED])?;
        let weights = weights.restrict(backbone, &graph)?;
        let config = NetworkConfig { train: None, taps: vec![POOLED.into()], moments: 0 };
        let network = open(compute, &graph, &config, weights)?;
        Ok(Stack { trunk: Some(Trunk { network, dim: pooled_len(backbone)? }), net })
    }

    /// Whether the backbone is a piece of its own.
    pub(crate) fn is_cut(&self) -> bool {
        self.trunk.is_some()
    }

    /// Length of the features between the two pieces.
    pub(crate) fn feature_len(&self) -> Option<usize> {
        self.trunk.as_ref().map(|trunk| trunk.dim)
    }

    /// The backbone's weights as they lie on the device, where it is a piece of its own.
    pub(crate) fn trunk_weights(&self) -> Result<Option<Weights>> {
        self.trunk.as_ref().map_or(Ok(None), |trunk| trunk.network.weights(Which::Current))
    }

    /// Features of images, [n, feature_len].
    pub(crate) fn features(&mut self, images: &[f32], n: usize, size: [usize; 2]) -> Result<Vec<f32>> {
        let trunk = self.trunk.as_mut().ok_or_else(|| Error::Invalid("the backbone is no piece of its own".into()))?;
        let mut features = vec![];
        trunk.network.ask(Which::Current, images, n, size, &mut |outputs| {
            features.extend_from_slice(outputs[0]);
            Ok(())
        })?;
        Ok(features)
    }

    /// As [`Network::learn`], from images of `size`.
    pub(crate) fn learn(&mut self, images: &[f32], n: usize, size: [usize; 2], judge: &mut Judge<'_>) -> Result<Loss> {
        if self.is_cut() {
            let features = self.features(images, n, size)?;
            return self.net.learn(&features, n, judge);
        }
        self.net.learn(images, n, judge)
    }

    /// As [`Network::ask`].
    pub(crate) fn ask(
        &mut self,
        which: Which,
        images: &[f32],
        n: usize,
        size: [usize; 2],
        look: &mut Look<'_>,
    ) -> Result<()> {
        if self.is_cut() {
            let features = self.features(images, n, size)?;
            return self.net.ask(which, &features, n, [1, 1], look);
        }
        self.net.ask(which, images, n, size, look)
    }
}

/// The graph under a head that reads pooled features instead of images: one pixel of as many channels.
pub(crate) fn features_graph(backbone: &Graph) -> Result<Graph> {
    let mut graph = Graph::new(pooled_len(backbone)?);
    let input = graph.input();
    let pooled = graph.push("features", Op::GlobalAvgPool, &[input]);
    graph.add_tap(POOLED, pooled);
    Ok(graph)
}

/// Length of a backbone's pooled features.
fn pooled_len(backbone: &Graph) -> Result<usize> {
    // Their number does not depend on the image, which only has to be large enough.
    let shapes = backbone.shapes(256, 256)?;
    Ok(shapes[backbone.tap(POOLED)?.0].numel())
}

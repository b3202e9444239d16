//! Architectures: functions that build a [`Graph`], one file per paper family.

mod projector;
mod resnet;

use crate::{Graph, Result};

pub use projector::Projector;
pub use resnet::Stem;

/// Everything that decides a network; written into the card so that a file can be rebuilt from it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchSpec {
    /// torchvision's name, e.g. `resnet50`; see [`names`].
    pub name: String,
    /// First layers.
    pub stem: Stem,
    /// Channels of the input image.
    pub in_channels: usize,
    /// Multiplies every channel count of the backbone; 1 = the published network.
    pub width: f64,
    /// What stands on the pooled features.
    pub projector: Projector,
}

impl ArchSpec {
    /// The published network on RGB images, without a projector.
    pub fn new(name: impl Into<String>) -> ArchSpec {
        ArchSpec { name: name.into(), stem: Stem::ImageNet, in_channels: 3, width: 1.0, projector: Projector::None }
    }

    /// Builds the graph with taps `c1`…`c5`, `pooled` and, with a projector, `projection`.
    ///
    /// # Errors
    /// [`Error::Arch`](crate::Error::Arch) for an unknown name or an impossible option.
    pub fn build(&self) -> Result<Graph> {
        let mut graph = resnet::build(self)?;
        self.projector.append(&mut graph)?;
        Ok(graph)
    }
}

/// Names of all architectures.
pub fn names() -> impl Iterator<Item = &'static str> {
    resnet::names()
}

/// Names of the architectures with these numbers of blocks in the four stages.
pub(crate) fn names_with_blocks(blocks: &[usize], bottleneck: bool) -> impl Iterator<Item = &'static str> {
    resnet::names_with_blocks(blocks, bottleneck)
}

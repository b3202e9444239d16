//! Weights in and out: flat buffers, safetensors files, strict loading.

mod backbone;
mod choice;
mod model;
mod pickle;
mod safetensors;
mod strict;
mod tensor;

pub(crate) use backbone::torchvision_tensors;
pub use backbone::{BACKBONE_FILE, BackboneFile, CARD_KEY, save_backbone};
pub use choice::choose_weights;
pub use model::{HEAD_KEY, MODEL_FILE, ModelFile, is_model, save_model};
pub use pickle::{Checkpoint, Packing};
pub use safetensors::{SafetensorsFile, TensorOut, save_safetensors};
pub use strict::load_strict;
pub use tensor::{Dtype, Tensor, TensorInfo, TensorSource};

use std::collections::BTreeMap;

use crate::{Error, Graph, Result};

/// Values of a [`Graph`]'s parameters and buffers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// In the order of [`Graph::parameter_layout`], each tensor row-major in PyTorch's order.
    pub params: Vec<f32>,
    /// Running statistics, in the order of [`Graph::buffer_layout`].
    pub buffers: Vec<f32>,
    /// `num_batches_tracked` of batch normalisations by their name, e.g. `layer1.0.bn2`; absent means 0 or unknown.
    pub counters: BTreeMap<String, i64>,
}

impl Weights {
    /// All zero, of the right length.
    pub fn zeros(graph: &Graph) -> Weights {
        Weights {
            params: vec![0.0; graph.parameter_layout().len()],
            buffers: vec![0.0; graph.buffer_layout().len()],
            counters: BTreeMap::new(),
        }
    }

    /// One parameter or buffer by its name.
    pub fn param(&self, graph: &Graph, name: &str) -> Option<&[f32]> {
        if let Some(range) = graph.parameter_layout().range(name) {
            return self.params.get(range);
        }
        self.buffers.get(graph.buffer_layout().range(name)?)
    }

    /// The weights of `to`, whose tensors are all tensors of `from` as well: a backbone out of the network that was
    /// trained with a projector, for instance.
    ///
    /// # Errors
    /// [`Error::Mismatch`] listing the tensors that `from` lacks or holds in another shape, or if `self` does not
    /// belong to `from`.
    pub fn restrict(&self, from: &Graph, to: &Graph) -> Result<Weights> {
        self.check(from)?;
        let mut result = Weights::zeros(to);
        let mut wrong = Vec::new();
        let layouts = [
            (from.parameter_layout(), to.parameter_layout(), &self.params, &mut result.params),
            (from.buffer_layout(), to.buffer_layout(), &self.buffers, &mut result.buffers),
        ];
        for (have, want, source, target) in layouts {
            let have: std::collections::HashMap<_, _> =
                have.iter().map(|(s, r)| (s.name.clone(), (s.shape.clone(), r))).collect();
            for (spec, range) in want.iter() {
                match have.get(&spec.name) {
                    Some((shape, place)) if *shape == spec.shape => {
                        target[range].copy_from_slice(&source[place.clone()]);
                    }
                    Some((shape, _)) => wrong.push(format!("`{}` is {shape:?}, expected {:?}", spec.name, spec.shape)),
                    None => wrong.push(format!("`{}` is missing", spec.name)),
                }
            }
        }
        let norms: Vec<String> = to.buffers().into_iter().map(|spec| spec.name).collect();
        let belongs = |norm: &str| norms.iter().any(|name| name.strip_suffix(".running_mean") == Some(norm));
        result.counters = self.counters.clone();
        result.counters.retain(|norm, _| belongs(norm));
        if wrong.is_empty() { Ok(result) } else { Err(Error::Mismatch(wrong.join("; "))) }
    }

    /// Checks the lengths of both buffers.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the lengths.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let expected = (graph.parameter_layout().len(), graph.buffer_layout().len());
        let got = (self.params.len(), self.buffers.len());
        if got == expected {
            return Ok(());
        }
        Err(Error::Mismatch(format!(
            "the network has {} parameters and {} buffer values, the weights hold {} and {}",
            expected.0, expected.1, got.0, got.1
        )))
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::{ArchSpec, Projector};
    use crate::init::initialise;

    #[test]
    fn restrict_drops_the_projector_and_refuses_what_is_not_there() {
        let spec = ArchSpec { width: 0.25, ..ArchSpec::new("resnet18") };
        let plain = spec.build().unwrap();
        let full = ArchSpec { projector: Projector::Linear { dim: 8 }, ..spec }.build().unwrap();
        let weights = initialise(&full, 3);
        let backbone = weights.restrict(&full, &plain).unwrap();
        assert_eq!(backbone, initialise(&plain, 3));
        let error = backbone.restrict(&plain, &full).unwrap_err().to_string();
        assert!(error.contains("`fc.weight` is missing") && error.contains("`fc.bias` is missing"), "{error}");
        assert!(weights.restrict(&plain, &plain).is_err());
    }
}

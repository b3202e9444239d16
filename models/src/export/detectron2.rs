//! Detectron2's `.pkl`, with the key map of MoCo's conversion script (facebookresearch/moco, detection/).

use std::path::Path;

use super::pickle::Pickle;
use crate::weights::{Dtype, TensorOut, torchvision_tensors};
use crate::{Error, Graph, Result, Weights, write_atomically};

/// Name in Detectron2 of a tensor with torchvision's name: `layer1.0.bn2.weight` → `res2.0.conv2.norm.weight`; what is
/// in no stage belongs to the `stem`.
pub fn detectron2_name(name: &str) -> String {
    let mut name = if name.contains("layer") { name.to_owned() } else { format!("stem.{name}") };
    for stage in 1..=4 {
        name = name.replace(&format!("layer{stage}"), &format!("res{}", stage + 1));
    }
    for convolution in 1..=3 {
        name = name.replace(&format!("bn{convolution}"), &format!("conv{convolution}.norm"));
    }
    name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
}

/// Undoes [`detectron2_name`] for the tensors of a ResNet; other names come out as something that it does not lead back.
pub fn torchvision_name(name: &str) -> String {
    let mut name = name.strip_prefix("stem.").unwrap_or(name).to_owned();
    for stage in 2..=5 {
        if let Some(rest) = name.strip_prefix(&format!("res{stage}.")) {
            name = format!("layer{}.{rest}", stage - 1);
        }
    }
    for convolution in 1..=3 {
        name = name.replace(&format!("conv{convolution}.norm."), &format!("bn{convolution}."));
    }
    name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
}

/// Writes `{"model": {name: array}, "__author__": "MOCO", "matching_heuristics": True}` as a pickle that Python 3 reads
/// where numpy is installed. The detector must be configured as MoCo's: `INPUT.FORMAT` RGB, `RESNETS.STRIDE_IN_1X1`
/// False, ImageNet's mean and deviation. Its own ResNets have the 7×7 stem, full width and RGB images; another network
/// needs a backbone of the same shape there.
///
/// # Errors
/// [`Error::Mismatch`] for weights that do not belong to the graph, are not finite or too large for the format,
/// [`Error::Io`].
pub fn detectron2(path: &Path, graph: &Graph, weights: &Weights) -> Result<()> {
    let mut pickle = Pickle::new(3);
    pickle.empty_dict();
    pickle.mark();
    pickle.text("model");
    pickle.empty_dict();
    pickle.mark();
    for tensor in torchvision_tensors(graph, weights)? {
        pickle.text(&detectron2_name(&tensor.name));
        array(&mut pickle, &tensor)?;
    }
    pickle.set_items();
    pickle.text("__author__");
    pickle.text("MOCO");
    pickle.text("matching_heuristics");
    pickle.bool(true);
    pickle.set_items();
    let bytes = pickle.finish();
    write_atomically(path, |out| out.write_all(&bytes))
}

/// As numpy pickles an array: an empty one, and the state that fills it. `numpy.core.multiarray` is the name that
/// both numpy 1 and 2 resolve.
fn array(pickle: &mut Pickle, tensor: &TensorOut<'_>) -> Result<()> {
    let len = u32::try_from(tensor.data.len())
        .map_err(|_| Error::Mismatch(format!("tensor `{}` has more than 4 GiB", tensor.name)))?;
    pickle.global("numpy.core.multiarray", "_reconstruct");
    pickle.mark();
    pickle.global("numpy", "ndarray");
    pickle.sizes(&[0]);
    pickle.binary(1, b"b");
    pickle.tuple();
    pickle.reduce();

    pickle.mark();
    pickle.int(1);
    pickle.sizes(&tensor.shape);
    dtype(pickle, tensor.dtype);
    pickle.bool(false);
    pickle.binary(len, &tensor.data);
    pickle.tuple();
    pickle.build();
    Ok(())
}

fn dtype(pickle: &mut Pickle, dtype: Dtype) {
    // State dicts of ours hold these two.
    let name = if dtype == Dtype::I64 { "i8" } else { "f4" };
    pickle.global("numpy", "dtype");
    pickle.mark();
    pickle.text(name);
    pickle.bool(false);
    pickle.bool(true);
    pickle.tuple();
    pickle.reduce();
    pickle.mark();
    pickle.int(3);
    pickle.text("<");
    pickle.none();
    pickle.none();
    pickle.none();
    pickle.int(-1);
    pickle.int(-1);
    pickle.int(0);
    pickle.tuple();
    pickle.build();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ArchSpec;
    use crate::init::initialise;

    #[test]
    fn names_are_those_of_the_recorded_map() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/parity/checkpoints/detectron2_resnet50_keys.json");
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(map.len() > 300);
        for (name, expected) in map {
            assert_eq!(detectron2_name(&name), expected.as_str().unwrap());
            assert_eq!(torchvision_name(expected.as_str().unwrap()), name);
        }
    }

    #[test]
    fn the_pickle_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pkl");
        let graph = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") }.build().unwrap();
        let weights = initialise(&graph, 1);
        detectron2(&path, &graph, &weights).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(&[0x80, 3]) && bytes.ends_with(b"u."));
        let values: &[u8] = bytemuck::cast_slice(weights.param(&graph, "layer4.1.conv2.weight").unwrap());
        assert!(bytes.windows(values.len()).any(|w| w == values));
        assert!(bytes.windows(25).any(|w| w == b"res5.1.conv2.norm.running"));
    }
}

//! A state dict with torchvision's names, for `torch.load(…, weights_only=True)` or as safetensors.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::pickle::Pickle;
use crate::card::Card;
use crate::files::write_seekable_atomically;
use crate::weights::{CARD_KEY, Dtype, TensorOut, save_safetensors, torchvision_tensors};
use crate::{Error, Graph, Result, Weights};

/// PyTorch aligns storages to this, so that they can be used in a memory map.
const ALIGNMENT: u16 = 64;

/// Zip entries from here on need the 64-bit fields.
const LARGE: usize = 0xffff_0000;

/// Writes the weights as a state dict with torchvision's names: a PyTorch checkpoint (zip) if the name ends in
/// `.pth`, `.pt` or `.pth.tar`, a safetensors file (with the card in its metadata, if one is given) if it ends in
/// `.safetensors`. `torchvision.models.<name>` loads it after its `fc` was replaced by `torch.nn.Identity()`.
///
/// # Errors
/// [`Error::Arch`] for another ending, [`Error::Mismatch`] for weights that do not belong to the graph or are not
/// finite, [`Error::Io`].
pub fn torchvision(path: &Path, graph: &Graph, weights: &Weights, card: Option<&Card>) -> Result<()> {
    let tensors = torchvision_tensors(graph, weights)?;
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().to_lowercase());
    if name.ends_with(".safetensors") {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        metadata.extend(card.map(|card| (CARD_KEY.to_owned(), card.to_json())));
        return save_safetensors(path, &tensors, &metadata);
    }
    if ![".pth", ".pt", ".pth.tar"].iter().any(|end| name.ends_with(end)) {
        return Err(Error::Arch(format!(
            "{}: a torchvision export ends in .pth, .pt, .pth.tar or .safetensors",
            path.display()
        )));
    }
    let pickle = state_dict(&tensors)?;
    write_seekable_atomically(path, |file| {
        let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
        let mut entry = |name: &str, data: &[u8]| -> io::Result<()> {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(data.len() >= LARGE)
                .with_alignment(ALIGNMENT);
            zip.start_file(format!("archive/{name}"), options)?;
            zip.write_all(data)
        };
        entry("data.pkl", &pickle)?;
        entry("byteorder", b"little")?;
        for (index, tensor) in tensors.iter().enumerate() {
            entry(&format!("data/{index}"), &tensor.data)?;
        }
        entry("version", b"3\n")?;
        zip.finish()?.flush()
    })
}

/// `OrderedDict({name: tensor, …})`, tensor `i` being the whole of storage `i`.
fn state_dict(tensors: &[TensorOut<'_>]) -> Result<Vec<u8>> {
    let mut pickle = Pickle::new(2);
    ordered_dict(&mut pickle);
    pickle.mark();
    for (index, tensor) in tensors.iter().enumerate() {
        pickle.text(&tensor.name);
        pickle.global("torch._utils", "_rebuild_tensor_v2");
        pickle.mark();

        pickle.mark();
        pickle.text("storage");
        pickle.global("torch", storage_class(tensor.dtype));
        pickle.text(&index.to_string());
        pickle.text("cpu");
        pickle.int((tensor.data.len() / tensor.dtype.size()) as i64);
        pickle.tuple();
        pickle.persistent_id();

        pickle.int(0);
        pickle.sizes(&tensor.shape);
        pickle.sizes(&row_major_strides(&tensor.shape));
        pickle.bool(false);
        ordered_dict(&mut pickle);
        pickle.tuple();
        pickle.reduce();
    }
    pickle.set_items();
    Ok(pickle.finish())
}

fn ordered_dict(pickle: &mut Pickle) {
    pickle.global("collections", "OrderedDict");
    pickle.empty_tuple();
    pickle.reduce();
}

fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

fn storage_class(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "BoolStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::I8 => "CharStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I64 => "LongStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::F32 => "FloatStorage",
        Dtype::F64 => "DoubleStorage",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ArchSpec;
    use crate::init::initialise;
    use crate::weights::{Checkpoint, SafetensorsFile, TensorSource};

    fn tiny() -> (Graph, Weights) {
        let graph = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") }.build().unwrap();
        let weights = initialise(&graph, 1);
        (graph, weights)
    }

    #[test]
    fn what_is_exported_is_read_back_by_the_checkpoint_reader() {
        let folder = tempfile::tempdir().unwrap();
        let (graph, weights) = tiny();
        let (pth, safetensors) = (folder.path().join("a.pth.tar"), folder.path().join("a.safetensors"));
        torchvision(&pth, &graph, &weights, None).unwrap();
        torchvision(&safetensors, &graph, &weights, None).unwrap();
        let sources: [&dyn TensorSource; 2] =
            [&Checkpoint::open(&pth).unwrap(), &SafetensorsFile::open(&safetensors).unwrap()];
        for source in sources {
            assert_eq!(source.names().len(), graph.parameters().len() + graph.buffers().len() * 3 / 2);
            for spec in graph.parameters().iter().chain(&graph.buffers()) {
                let tensor = source.tensor(&spec.name).unwrap();
                assert_eq!(tensor.shape, spec.shape);
                let values = weights.param(&graph, &spec.name).unwrap();
                assert_eq!(&*tensor.data, bytemuck::cast_slice::<f32, u8>(values));
            }
        }
    }

    #[test]
    fn the_bytes_are_always_the_same_and_storages_are_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let (graph, weights) = tiny();
        let (a, b) = (folder.path().join("a.pth"), folder.path().join("b.pth"));
        torchvision(&a, &graph, &weights, None).unwrap();
        torchvision(&b, &graph, &weights, None).unwrap();
        let bytes = std::fs::read(&a).unwrap();
        assert_eq!(bytes, std::fs::read(&b).unwrap());
        let first: &[u8] = bytemuck::cast_slice(&weights.params[..64]);
        let at = bytes.windows(first.len()).position(|w| w == first).unwrap();
        assert_eq!(at % usize::from(ALIGNMENT), 0);
    }

    #[test]
    fn other_endings_are_refused() {
        let (graph, weights) = tiny();
        let error = torchvision(Path::new("/nowhere/a.bin"), &graph, &weights, None).unwrap_err();
        assert!(error.to_string().contains(".safetensors"));
    }
}

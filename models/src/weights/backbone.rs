//! The backbone file: safetensors with torchvision's names and a card under one metadata key.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::strict::{check_strict, load_strict};
use super::{HEAD_KEY, SafetensorsFile, TensorOut, TensorSource, Weights, save_safetensors};
use crate::card::Card;
use crate::files::sha256_of_bytes;
use crate::heads::PREFIX;
use crate::{Error, Graph, Result};

/// Metadata key under which a backbone file holds its [`Card`] as JSON.
pub const CARD_KEY: &str = "moco.card";

/// Name of the backbone file in a folder.
pub const BACKBONE_FILE: &str = "backbone.safetensors";

/// Writes a backbone file: what `card.arch` describes, out of `weights` of `graph`, which may hold more (the projector
/// of a training run is left out unless the card's architecture has it). Batch normalisations get the counter
/// `num_batches_tracked` that torchvision expects. Same content, same bytes; written whole or not at all.
///
/// # Errors
/// [`Error::Card`] if the card is not valid, [`Error::Mismatch`] if weights and card disagree or a value is not finite,
/// [`Error::Io`].
pub fn save_backbone(path: &Path, graph: &Graph, weights: &Weights, card: &Card) -> Result<()> {
    let (target, weights) = described_by(card, graph, weights)?;
    save_safetensors(path, &torchvision_tensors(&target, &weights)?, &metadata(card))
}

/// The part of `weights` that the card describes.
fn described_by(card: &Card, graph: &Graph, weights: &Weights) -> Result<(Graph, Weights)> {
    card.validate()?;
    let target = card.arch.build()?;
    let weights = weights.restrict(graph, &target)?;
    Ok((target, weights))
}

fn metadata(card: &Card) -> BTreeMap<String, String> {
    BTreeMap::from([("format".into(), "pt".into()), (CARD_KEY.into(), card.to_json())])
}

/// Tensors of a state dict with torchvision's names, in its order.
///
/// # Errors
/// [`Error::Mismatch`] naming the tensors that hold NaN or an infinity.
pub(crate) fn torchvision_tensors<'a>(graph: &Graph, weights: &'a Weights) -> Result<Vec<TensorOut<'a>>> {
    weights.check(graph)?;
    let (parameters, buffers) = (graph.parameter_layout(), graph.buffer_layout());
    let mut tensors = Vec::new();
    let mut broken = Vec::new();
    let mut push = |name: &str, shape: &[usize], values: &'a [f32]| {
        if values.iter().any(|v| !v.is_finite()) {
            broken.push(format!("`{name}`"));
        }
        tensors.push(TensorOut::f32(name, shape, values));
    };
    let mut buffers = buffers.iter().peekable();
    for (spec, range) in parameters.iter() {
        push(&spec.name, &spec.shape, &weights.params[range]);
        // The statistics of a normalisation follow its bias.
        while let Some((buffer, range)) =
            buffers.next_if(|(b, _)| spec.name.strip_suffix(".bias").is_some_and(|norm| is_of(norm, &b.name)))
        {
            push(&buffer.name, &buffer.shape, &weights.buffers[range]);
        }
    }
    for (buffer, range) in buffers {
        push(&buffer.name, &buffer.shape, &weights.buffers[range]);
    }
    if !broken.is_empty() {
        return Err(Error::Mismatch(format!(
            "weights that are NaN or infinite are not written: {}",
            broken.join(", ")
        )));
    }
    let mut complete = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let counter = tensor.name.strip_suffix(".running_var").map(|norm| {
            let value = weights.counters.get(norm).copied().unwrap_or(0);
            TensorOut::i64_scalar(format!("{norm}.num_batches_tracked"), value)
        });
        complete.push(tensor);
        complete.extend(counter);
    }
    Ok(complete)
}

fn is_of(norm: &str, buffer: &str) -> bool {
    buffer.strip_prefix(norm).is_some_and(|rest| matches!(rest, ".running_mean" | ".running_var"))
}

/// A backbone file, mapped into memory and checked against its card.
#[derive(Debug)]
pub struct BackboneFile {
    file: SafetensorsFile,
    card: Card,
    graph: Graph,
    /// Whether the file holds a head, too.
    has_head: bool,
    /// The hash that counts, where it is not that of the bytes.
    origin_sha256: Option<String>,
}

impl BackboneFile {
    /// Opens a backbone file, or the `backbone.safetensors` in a folder; of a model file, the backbone in it. Card, names, shapes and types are checked;
    /// no value is read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Card`]; [`Error::Mismatch`] listing every missing, unknown and
    /// misshapen tensor.
    pub fn open(path: &Path) -> Result<BackboneFile> {
        let path: PathBuf = if path.is_dir() { path.join(BACKBONE_FILE) } else { path.to_owned() };
        let file = SafetensorsFile::open(&path)?;
        let failed = |reason: String| Error::Format { path: path.clone(), reason };
        let has_head = file.metadata(HEAD_KEY).is_some();
        let json = file.metadata(CARD_KEY).ok_or_else(|| {
            failed(match has_head {
                true => "is a linear head on features, not a backbone; give the file of the backbone it was fitted on"
                    .into(),
                false => {
                    format!("has no card (metadata key `{CARD_KEY}`); `moco-train import` makes a backbone file of it")
                }
            })
        })?;
        let card = Card::from_json(json).map_err(|e| failed(e.to_string()))?;
        let graph = card.arch.build()?;
        // In a model file the head's tensors lie beside the backbone's.
        let belongs = |name: &str| !(has_head && name.starts_with(PREFIX));
        check_strict(&file, &graph, &path.display().to_string(), &str::to_owned, &belongs)?;
        Ok(BackboneFile { file, card, graph, has_head, origin_sha256: None })
    }

    /// What [`save_backbone`] would write, in memory. `path` is the file the weights come from, whose hash the card
    /// holds as its parent's and [`BackboneFile::sha256`] gives: it says what was opened, whichever version converts it.
    /// Where it was opened for other `channels`, its features differ, and the hash is another one.
    ///
    /// # Errors
    /// As [`save_backbone`].
    pub(crate) fn converted(
        path: &Path,
        graph: &Graph,
        weights: &Weights,
        card: &Card,
        channels: Option<usize>,
    ) -> Result<BackboneFile> {
        let (graph, weights) = described_by(card, graph, weights)?;
        let file = SafetensorsFile::in_memory(path, &torchvision_tensors(&graph, &weights)?, &metadata(card))?;
        let parent = card.parent_sha256.clone().unwrap_or_default();
        let origin = match channels {
            Some(channels) => sha256_of_bytes(format!("{parent} for {channels} channels").as_bytes()),
            None => parent,
        };
        Ok(BackboneFile { file, card: card.clone(), graph, has_head: false, origin_sha256: Some(origin) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What it is.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The network that the card describes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Reads the weights as f32.
    ///
    /// # Errors
    /// As [`BackboneFile::open`].
    pub fn weights(&self) -> Result<Weights> {
        load_strict(&self.file, &self.graph, &self.path().display().to_string(), str::to_owned, |name| {
            !(self.has_head && name.starts_with(PREFIX))
        })
    }

    /// All bytes of the file, as mapped.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Place of a tensor's values in [`BackboneFile::bytes`].
    pub fn span(&self, name: &str) -> Option<Range<usize>> {
        self.file.span(name)
    }

    /// The tensors behind it.
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.file
    }

    /// SHA-256 of the file in hexadecimal; of weights that were converted while they were opened, the hash of the file
    /// they come from.
    pub fn sha256(&self) -> String {
        self.origin_sha256.clone().unwrap_or_else(|| self.file.sha256())
    }

    /// Whether the file is one of another kind, converted while it was opened.
    pub fn is_converted(&self) -> bool {
        self.origin_sha256.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchSpec, Projector};
    use crate::init::initialise;

    fn tiny() -> ArchSpec {
        ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") }
    }

    #[test]
    fn a_backbone_comes_back_with_its_card_and_without_its_projector() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(BACKBONE_FILE);
        let full = ArchSpec { projector: Projector::Mlp { dim: 8 }, ..tiny() }.build().unwrap();
        let weights = initialise(&full, 1);
        let card = Card::new(tiny(), "moco-v2").unwrap();
        save_backbone(&path, &full, &weights, &card).unwrap();
        let file = BackboneFile::open(folder.path()).unwrap();
        assert_eq!(*file.card(), card);
        assert_eq!(file.weights().unwrap(), initialise(&tiny().build().unwrap(), 1));
        assert!(file.tensors().info("bn1.num_batches_tracked").is_some());
        assert!(file.tensors().info("fc.0.weight").is_none());
        let span = file.span("conv1.weight").unwrap();
        let bytes: &[u8] = bytemuck::cast_slice(weights.param(&full, "conv1.weight").unwrap());
        assert_eq!(&file.bytes()[span], bytes);
        assert_eq!(file.sha256(), crate::files::sha256_of_file(&path).unwrap());
    }

    #[test]
    fn a_projector_is_kept_when_the_card_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let spec = ArchSpec { projector: Projector::Linear { dim: 8 }, ..tiny() };
        let graph = spec.build().unwrap();
        let weights = initialise(&graph, 1);
        save_backbone(&path, &graph, &weights, &Card::new(spec, "moco-v1").unwrap()).unwrap();
        assert_eq!(BackboneFile::open(&path).unwrap().weights().unwrap(), weights);
    }

    #[test]
    fn all_missing_unknown_and_misshapen_tensors_are_listed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let graph = tiny().build().unwrap();
        let weights = initialise(&graph, 1);
        let mut tensors = torchvision_tensors(&graph, &weights).unwrap();
        tensors.retain(|t| t.name != "bn1.bias" && t.name != "layer4.1.bn2.running_var");
        tensors.iter_mut().find(|t| t.name == "bn1.weight").unwrap().shape = vec![2, 2];
        tensors.push(TensorOut::f32("fc.weight", &[1], &[0.0]));
        let card = Card::new(tiny(), "x").unwrap().to_json();
        save_safetensors(&path, &tensors, &BTreeMap::from([(CARD_KEY.into(), card)])).unwrap();
        let error = BackboneFile::open(&path).unwrap_err().to_string();
        for part in [
            "missing (2)",
            "bn1.bias",
            "layer4.1.bn2.running_var",
            "unknown (1): `fc.weight`",
            "`bn1.weight` is [2, 2], expected [4]",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn half_precision_files_are_read_as_f32() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let graph = tiny().build().unwrap();
        let weights = initialise(&graph, 1);
        let mut tensors = torchvision_tensors(&graph, &weights).unwrap();
        for tensor in tensors.iter_mut().filter(|t| t.dtype == super::super::Dtype::F32) {
            tensor.dtype = super::super::Dtype::BF16;
            let values: &[f32] = bytemuck::cast_slice(&tensor.data);
            tensor.data = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>().into();
        }
        let card = Card::new(tiny(), "x").unwrap().to_json();
        save_safetensors(&path, &tensors, &BTreeMap::from([(CARD_KEY.into(), card)])).unwrap();
        let read = BackboneFile::open(&path).unwrap().weights().unwrap();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= b.abs() / 128.0);
        assert!(close(&read.params, &weights.params) && close(&read.buffers, &weights.buffers));
    }

    #[test]
    fn nan_weights_and_files_without_a_card_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let graph = tiny().build().unwrap();
        let mut weights = initialise(&graph, 1);
        weights.params[0] = f32::NAN;
        let error = save_backbone(&path, &graph, &weights, &Card::new(tiny(), "x").unwrap()).unwrap_err();
        assert!(error.to_string().contains("conv1.weight"), "{error}");
        assert!(!path.exists());
        save_safetensors(&path, &[], &BTreeMap::new()).unwrap();
        assert!(BackboneFile::open(&path).unwrap_err().to_string().contains("moco-train import"));
    }
}

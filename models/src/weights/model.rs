//! The model file: a backbone and the head that was trained on it, in one safetensors file with the cards of both.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::backbone::{CARD_KEY, torchvision_tensors};
use super::strict::{check_strict, load_strict};
use super::{SafetensorsFile, TensorOut, TensorSource, Weights, save_backbone, save_safetensors};
use crate::arch::Projector;
use crate::card::Card;
use crate::heads::HeadCard;
use crate::{Error, Graph, Result};

/// Metadata key under which a file holds the description of its head as JSON: a [`HeadCard`] in a model file.
pub const HEAD_KEY: &str = "moco.head";

/// Name of the model file in a folder.
pub const MODEL_FILE: &str = "model.safetensors";

/// Writes a model file: the tensors of the backbone under torchvision's names, those of the head under
/// [`crate::heads::PREFIX`], and both cards. `graph` is what [`crate::heads::HeadSpec::attach`] made of the backbone of
/// `card`, whose projector is left out. Same content, same bytes; written whole or not at all.
///
/// # Errors
/// [`Error::Card`] if a card is not valid or one contradicts the other, [`Error::Mismatch`] if weights and cards disagree
/// or a value is not finite, [`Error::Io`].
pub fn save_model(path: &Path, graph: &Graph, weights: &Weights, card: &Card, head: &HeadCard) -> Result<()> {
    let described = Described::new(graph, weights, card, head)?;
    save_safetensors(path, &described.tensors()?, &described.metadata())
}

/// Whether a file is a model file: false for a backbone, for the weights of others and for a linear head on features. Of a
/// folder, whether it holds one as `model.safetensors`.
///
/// # Errors
/// [`Error::Io`].
pub fn is_model(path: &Path) -> Result<bool> {
    let file = file_in(path);
    if path.is_dir() && !file.is_file() {
        return Ok(false);
    }
    match SafetensorsFile::open(&file) {
        Ok(file) => Ok(file.metadata(HEAD_KEY).is_some() && file.metadata(CARD_KEY).is_some()),
        Err(Error::Format { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// A model file, mapped into memory and checked against its cards.
#[derive(Debug)]
pub struct ModelFile {
    file: SafetensorsFile,
    card: Card,
    head: HeadCard,
    graph: Graph,
}

impl ModelFile {
    /// Opens a model file, or the `model.safetensors` in a folder. Cards, names, shapes and types are checked; no value is
    /// read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`]; [`Error::Mismatch`] listing every missing, unknown and misshapen tensor.
    pub fn open(path: &Path) -> Result<ModelFile> {
        ModelFile::checked(SafetensorsFile::open(&file_in(path))?)
    }

    /// What [`save_model`] would write, in memory; `name` stands for the file in messages.
    ///
    /// # Errors
    /// As [`save_model`].
    pub fn in_memory(name: &str, graph: &Graph, weights: &Weights, card: &Card, head: &HeadCard) -> Result<ModelFile> {
        let described = Described::new(graph, weights, card, head)?;
        let file = SafetensorsFile::in_memory(Path::new(name), &described.tensors()?, &described.metadata())?;
        let Described { card, head, graph, .. } = described;
        Ok(ModelFile { file, card, head, graph })
    }

    fn checked(file: SafetensorsFile) -> Result<ModelFile> {
        let failed = |reason: String| Error::Format { path: file.path().to_owned(), reason };
        let head = file.metadata(HEAD_KEY).ok_or_else(|| {
            failed(format!("is not a fine-tuned model: it has no metadata `{HEAD_KEY}`; is this a backbone's file?"))
        })?;
        let head = HeadCard::from_json(head).map_err(|e| failed(e.to_string()))?;
        let card = file.metadata(CARD_KEY).ok_or_else(|| failed(format!("has a head, but no card (`{CARD_KEY}`)")))?;
        let card = Card::from_json(card).map_err(|e| failed(e.to_string()))?;
        check_pair(&card, &head).map_err(|e| failed(e.to_string()))?;
        let graph = head.head.attach(&card.arch.build()?)?;
        check_strict(&file, &graph, &file.path().display().to_string(), &str::to_owned, &|_| true)?;
        Ok(ModelFile { file, card, head, graph })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The card of its backbone.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// What its head is and how it was trained.
    pub fn head(&self) -> &HeadCard {
        &self.head
    }

    /// The network: the backbone with the head on it.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Reads the weights as f32.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn weights(&self) -> Result<Weights> {
        load_strict(&self.file, &self.graph, &self.path().display().to_string(), str::to_owned, |_| true)
    }

    /// Network, weights and card of the backbone alone.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn backbone(&self) -> Result<(Graph, Weights, Card)> {
        let graph = self.card.arch.build()?;
        let weights = self.weights()?.restrict(&self.graph, &graph)?;
        let mut card = self.card.clone();
        // They were measured before this head's training, which may have moved the weights.
        card.metrics.clear();
        card.parent_sha256 = Some(self.sha256());
        let name = self.path().file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        card.notes.push(format!("the backbone of a fine-tuned model ({}, {name})", self.head.task()));
        Ok((graph, weights, card))
    }

    /// Writes [`ModelFile::backbone`] as a backbone file.
    ///
    /// # Errors
    /// As [`save_backbone`].
    pub fn save_backbone(&self, path: &Path) -> Result<()> {
        let (graph, weights, card) = self.backbone()?;
        save_backbone(path, &graph, &weights, &card)
    }

    /// The model as a `README.md` for people and model hubs.
    pub fn readme(&self) -> String {
        self.head.to_readme(&self.card)
    }

    /// All bytes of the file, as mapped.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Place of a tensor's values in [`ModelFile::bytes`].
    pub fn span(&self, name: &str) -> Option<Range<usize>> {
        self.file.span(name)
    }

    /// The tensors behind it.
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.file
    }

    /// SHA-256 of the file in hexadecimal.
    pub fn sha256(&self) -> String {
        self.file.sha256()
    }
}

/// A model before it is written.
struct Described {
    card: Card,
    head: HeadCard,
    graph: Graph,
    weights: Weights,
}

impl Described {
    fn new(graph: &Graph, weights: &Weights, card: &Card, head: &HeadCard) -> Result<Described> {
        let (mut card, head) = (card.clone(), head.clone());
        card.arch.projector = Projector::None;
        card.taps.retain(|tap| tap != "projection");
        card.validate()?;
        head.validate()?;
        check_pair(&card, &head)?;
        let target = head.head.attach(&card.arch.build()?)?;
        let weights = weights.restrict(graph, &target)?;
        Ok(Described { card, head, graph: target, weights })
    }

    fn tensors(&self) -> Result<Vec<TensorOut<'_>>> {
        torchvision_tensors(&self.graph, &self.weights)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("format".into(), "pt".into()),
            (CARD_KEY.into(), self.card.to_json()),
            (HEAD_KEY.into(), self.head.to_json()),
        ])
    }
}

fn check_pair(card: &Card, head: &HeadCard) -> Result<()> {
    let (reads, makes) = (card.arch.in_channels, head.preprocess.channels);
    if card.arch.projector != Projector::None {
        return Err(Error::Card("arch: a model's backbone has no projector".into()));
    }
    if reads != makes {
        return Err(Error::Card(format!("preprocess: makes {makes} channels, the network reads {reads}")));
    }
    Ok(())
}

fn file_in(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ArchSpec;
    use crate::heads::{Decoder, HeadSpec, PREFIX};
    use crate::import;
    use crate::init::initialise;
    use crate::weights::BackboneFile;

    struct Made {
        graph: Graph,
        weights: Weights,
        card: Card,
        head: HeadCard,
        backbone: Weights,
    }

    fn made(head: HeadSpec) -> Made {
        let arch = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
        let plain = arch.build().unwrap();
        let backbone = initialise(&plain, 1);
        let graph = head.attach(&plain).unwrap();
        let mut weights = head.initialise(&graph, &plain, &backbone, 2).unwrap();
        weights.counters.insert("bn1".into(), 4);
        let mut card = Card::new(arch, "moco-v2").unwrap();
        card.metrics.insert("knn_top1".into(), 0.5);
        let names = (0..head.classes()).map(|i| format!("class {i}")).collect();
        let mut head = HeadCard::new(head, names, &card, [64, 96]).unwrap();
        head.metrics.insert("map".into(), 0.25);
        head.licence = Some("MIT".into());
        head.training = Some(serde_json::json!({"epochs": 3}));
        Made { graph, weights, card, head, backbone }
    }

    fn heads() -> [HeadSpec; 4] {
        [
            HeadSpec::classify(3),
            HeadSpec::parse(crate::heads::Task::MultiLabel, "mlp:8", 3).unwrap(),
            HeadSpec::segment(Decoder::Unet, 3),
            HeadSpec::detect(2),
        ]
    }

    #[test]
    fn a_model_comes_back_whole_from_a_file_and_from_memory() {
        let folder = tempfile::tempdir().unwrap();
        for head in heads() {
            let Made { graph, weights, card, head, .. } = made(head);
            let path = folder.path().join(MODEL_FILE);
            save_model(&path, &graph, &weights, &card, &head).unwrap();
            let opened = ModelFile::open(folder.path()).unwrap();
            let memory = ModelFile::in_memory("memory", &graph, &weights, &card, &head).unwrap();
            assert_eq!(opened.bytes(), memory.bytes());
            for file in [opened, memory] {
                assert_eq!((file.card(), file.head(), file.graph()), (&card, &head, &graph));
                assert_eq!(file.weights().unwrap(), weights);
            }
            assert!(is_model(&path).unwrap());
        }
    }

    #[test]
    fn its_backbone_is_opened_wherever_a_backbone_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("m.safetensors"), folder.path().join("b.safetensors"));
        for head in heads() {
            let Made { graph, weights, card, head, backbone } = made(head);
            save_model(&path, &graph, &weights, &card, &head).unwrap();
            let expected = Weights { counters: weights.counters.clone(), ..backbone };
            assert_eq!(BackboneFile::open(&path).unwrap().weights().unwrap(), expected);
            assert_eq!(import::open(&path, None).unwrap().file.weights().unwrap(), expected);
            let imported = import::import(&path, &import::ImportOptions::default()).unwrap();
            assert_eq!(imported.weights, expected);
            ModelFile::open(&path).unwrap().save_backbone(&out).unwrap();
            let taken = BackboneFile::open(&out).unwrap();
            assert_eq!(taken.weights().unwrap(), expected);
            assert_eq!(taken.card().parent_sha256, Some(crate::sha256_of_file(&path).unwrap()));
            assert!(taken.card().metrics.is_empty() && taken.card().notes[0].contains("fine-tuned"));
            assert!(!is_model(&out).unwrap());
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let Made { graph, weights, card, .. } = made(HeadSpec::classify(2));
        save_backbone(&path, &graph, &weights, &card).unwrap();
        assert!(ModelFile::open(&path).unwrap_err().to_string().contains("is this a backbone's file"));
        let linear = r#"{"format_version":1,"kind":"linear","class_names":[],"tap":"pooled","backbone_sha256":""}"#;
        let tensors = [TensorOut::f32("weight", &[1, 1], &[1.0]), TensorOut::f32("bias", &[1], &[1.0])];
        save_safetensors(&path, &tensors, &BTreeMap::from([(HEAD_KEY.into(), linear.into())])).unwrap();
        assert!(!is_model(&path).unwrap() && !is_model(folder.path()).unwrap());
        assert!(ModelFile::open(&path).unwrap_err().to_string().contains("linear head on features"));
        assert!(BackboneFile::open(&path).unwrap_err().to_string().contains("is a linear head"));
        std::fs::write(&path, "PK").unwrap();
        assert!(!is_model(&path).unwrap());
    }

    #[test]
    fn each_lie_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let Made { graph, weights, card, head, .. } = made(HeadSpec::segment(Decoder::Fpn, 3));
        let write = |head: &str, drop: &str, extra: &str| {
            let mut tensors = torchvision_tensors(&graph, &weights).unwrap();
            tensors.retain(|t| t.name != drop);
            if !extra.is_empty() {
                tensors.push(TensorOut::f32(extra, &[1], &[0.0]));
            }
            let metadata = BTreeMap::from([(CARD_KEY.into(), card.to_json()), (HEAD_KEY.into(), head.into())]);
            save_safetensors(&path, &tensors, &metadata).unwrap();
            ModelFile::open(&path).unwrap_err().to_string()
        };
        let json = head.to_json();
        for (from, to, word) in [
            ("\"format_version\":2", "\"format_version\":9,\"new\":1", "version 9"),
            ("\"class 2\"", "\"class 1\"", "names two classes"),
            (",\"class 2\"", "", "2 names for 3 classes"),
            ("\"class 2\"", "\"a\\nb\"", "control character"),
            ("\"width\":128", "\"width\":0", "width is 0"),
            ("\"width\":128", "\"width\":64", "wrong shape"),
            ("\"kind\":\"segment\"", "\"kind\":\"count\"", "damaged"),
            ("\"size\":[64,96]", "\"size\":[0,96]", "0×96"),
            ("\"channels\":3", "\"channels\":1", "channels"),
            ("\"fit\":{\"kind\":\"stretch\"}", "\"fit\":{\"kind\":\"tiles\",\"overlap\":64}", "cannot share 64"),
        ] {
            assert!(json.contains(from), "{from} in {json}");
            let error = write(&json.replace(from, to), "", "");
            assert!(error.contains(word) && error.contains("m.safetensors"), "{word}: {error}");
        }
        assert!(write(&json, "head.classifier.bias", "").contains("missing (1): `head.classifier.bias`"));
        assert!(write(&json, "", "head.extra").contains("unknown (1): `head.extra`"));
        // A head's tensors without its description are no backbone's.
        let tensors = torchvision_tensors(&graph, &weights).unwrap();
        save_safetensors(&path, &tensors, &BTreeMap::from([(CARD_KEY.into(), card.to_json())])).unwrap();
        assert!(BackboneFile::open(&path).unwrap_err().to_string().contains(&format!("`{PREFIX}")));
    }

    #[test]
    fn what_is_not_finite_or_does_not_belong_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let Made { graph, mut weights, card, head, .. } = made(HeadSpec::classify(2));
        let other = made(HeadSpec::classify(3));
        assert!(save_model(&path, &graph, &weights, &card, &other.head).is_err());
        let grey = Card::new(ArchSpec { in_channels: 1, ..card.arch.clone() }, "x").unwrap();
        assert!(save_model(&path, &graph, &weights, &grey, &head).unwrap_err().to_string().contains("channels"));
        *weights.params.last_mut().unwrap() = f32::INFINITY;
        let error = save_model(&path, &graph, &weights, &card, &head).unwrap_err().to_string();
        assert!(error.contains("head.classifier.bias"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn the_readme_says_what_the_head_is() {
        let Made { graph, weights, card, head, .. } = made(HeadSpec::detect(2));
        let text = ModelFile::in_memory("m", &graph, &weights, &card, &head).unwrap().readme();
        assert!(
            text.starts_with("---\nlicense: \"mit\"\nlibrary_name: moco\npipeline_tag: object-detection\n"),
            "{text}"
        );
        for part in ["# resnet18 detector (fcos:", "| classes | 2: class 0, class 1 |", "64 × 96", "| map | 0.25 |"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

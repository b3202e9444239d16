//! Weights of others: MoCo checkpoints, torchvision and timm files, safetensors. The architecture is read off the
//! tensors; what was found, chosen and left out is said in notes and in the card.

mod names;
mod open;
mod source;

use std::path::Path;

use moco_image::PreprocessRule;

use self::names::{Encoder as Found, find_encoder, guess_arch};
pub use self::open::{Opened, open};
use self::source::Source;
use crate::arch::{ArchSpec, Projector};
use crate::card::Card;
use crate::weights::{load_strict, save_backbone};
use crate::{Error, Graph, Result, Weights, sha256_of_file};

/// Which of MoCo's two encoders to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncoderChoice {
    /// `encoder_q` (v3: `base_encoder`), trained by gradients: the one that is published and transferred.
    #[default]
    Query,
    /// `encoder_k` (v3: `momentum_encoder`), its moving average.
    Key,
}

/// How to read a file of weights; the default fits published files.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Encoder of a MoCo checkpoint.
    pub encoder: EncoderChoice,
    /// Prefix of the backbone's tensors, if the file holds several networks and none is MoCo's, e.g. `teacher.backbone.`.
    pub prefix: Option<String>,
    /// Entry of the checkpoint that holds the tensors, if it is not one of the usual (`state_dict`, `model`, …).
    pub state_dict_key: Option<String>,
    /// Keep the projector of MoCo v1 or v2; otherwise the result is the backbone alone.
    pub keep_projector: bool,
    /// Take the backbone of a file that looks like a linear evaluation instead of refusing it.
    pub allow_linear_evaluation: bool,
    /// How pixels become the input; by default the usual transform of the network's stem.
    pub preprocess: Option<PreprocessRule>,
    /// Overrides the method that was recognised.
    pub method: Option<String>,
    /// Licence of the weights.
    pub licence: Option<String>,
    /// What they were trained on.
    pub data: Option<String>,
}

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// MoCo v1: an encoder with a linear projector.
    MocoV1,
    /// MoCo v2: an encoder with the MLP projector.
    MocoV2,
    /// MoCo v3's ResNet.
    MocoV3,
    /// A backbone under a linear classifier, in a training checkpoint.
    LinearEvaluation,
    /// A classifier as torchvision and timm publish them.
    Classifier,
    /// A backbone file of ours.
    Backbone,
    /// A network without projector or classifier.
    Plain,
}

impl SourceKind {
    /// Name for people.
    pub fn label(self) -> &'static str {
        match self {
            SourceKind::MocoV1 => "MoCo v1",
            SourceKind::MocoV2 => "MoCo v2",
            SourceKind::MocoV3 => "MoCo v3",
            SourceKind::LinearEvaluation => "linear evaluation",
            SourceKind::Classifier => "classifier",
            SourceKind::Backbone => "moco backbone file",
            SourceKind::Plain => "plain backbone",
        }
    }

    fn method(self) -> &'static str {
        match self {
            SourceKind::MocoV1 => "moco-v1",
            SourceKind::MocoV2 => "moco-v2",
            SourceKind::MocoV3 => "moco-v3",
            SourceKind::Classifier => "supervised",
            SourceKind::LinearEvaluation | SourceKind::Backbone | SourceKind::Plain => "unknown",
        }
    }
}

/// An imported network.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What the file was.
    pub kind: SourceKind,
    /// The network, with the projector if it was kept.
    pub graph: Graph,
    /// Its weights.
    pub weights: Weights,
    /// Describes it: `card.arch`, source, hash, notes.
    pub card: Card,
    /// What was found, chosen, assumed and left out, in sentences.
    pub notes: Vec<String>,
}

impl Imported {
    /// Writes it as a backbone file.
    ///
    /// # Errors
    /// As [`save_backbone`].
    pub fn save(&self, path: &Path) -> Result<()> {
        save_backbone(path, &self.graph, &self.weights, &self.card)
    }
}

/// Reads a MoCo checkpoint, a torchvision or timm file (`.pth`, `.pth.tar`, `.pt`; legacy or zip) or a safetensors file;
/// which it is, is told by its content, not by its name.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] as the readers; [`Error::Mismatch`] if the tensors are not those of a ResNet of
/// ours, listing every one that is missing, unknown or misshapen; [`Error::Import`] if the file holds several networks,
/// lacks the encoder that was asked for, or looks like a linear evaluation.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let source = Source::open(path, options.state_dict_key.as_deref())?;
    let refused = |reason: String| Error::Import { path: path.to_owned(), reason };
    let encoder = find_encoder(source.tensors(), options.encoder, options.prefix.as_deref()).map_err(refused)?;
    let kind = kind_of(&source, &encoder);
    if kind == SourceKind::LinearEvaluation && !options.allow_linear_evaluation {
        return Err(refused(format!(
            "looks like the checkpoint of a linear evaluation or of supervised training: `{}fc` is a classifier of {} \
             classes and there is no projector. Its backbone is not what you would expect under the name of a \
             pre-training; if you want it all the same, allow linear evaluations (--force)",
            encoder.prefix,
            encoder.classes(source.tensors()).unwrap_or(0)
        )));
    }
    let mut notes = vec![format!("read as {} ({})", kind.label(), source.describe())];
    let arch = guess_arch(source.tensors(), &encoder).map_err(refused)?;
    let projector = encoder.projector(source.tensors(), kind);
    let arch = ArchSpec { projector: if options.keep_projector { projector } else { Projector::None }, ..arch };
    if options.keep_projector && projector == Projector::None {
        return Err(refused("has no projector of MoCo v1 or v2 that could be kept".into()));
    }
    let graph = arch.build()?;
    check_size(&source, &graph).map_err(refused)?;
    let prefix = encoder.prefix.as_str();
    let weights = load_strict(
        source.tensors(),
        &graph,
        &path.display().to_string(),
        |name| format!("{prefix}{name}"),
        |name| name.strip_prefix(prefix).is_some_and(|rest| options.keep_projector || !rest.starts_with("fc.")),
    )?;
    describe(&mut notes, &source, &encoder, &arch, projector);

    let mut card = Card::new(arch, options.method.as_deref().unwrap_or(kind.method()))?;
    if let Some(original) = source.card() {
        card = Card { arch: card.arch, taps: card.taps, ..original };
        card.method = options.method.clone().unwrap_or(card.method);
    }
    match &options.preprocess {
        Some(rule) => card.preprocess = rule.clone(),
        None if source.card().is_some() => {}
        None => notes.push("the file does not say how images are prepared; the usual transform is assumed".into()),
    }
    card.licence = options.licence.clone().or(card.licence);
    card.data = options.data.clone().or(card.data);
    let file_name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    card.source = Some(format!("{file_name}: {}, {}", kind.label(), source.describe()));
    card.parent_sha256 = Some(sha256_of_file(path)?);
    card.notes = notes.clone();
    card.validate()?;
    Ok(Imported { kind, graph, weights, card, notes })
}

/// A few bytes can be viewed as tensors of any size; real weights lie in the file, if in half precision or compressed.
fn check_size(source: &Source, graph: &Graph) -> std::result::Result<(), String> {
    let values = graph.parameters().iter().chain(&graph.buffers()).map(|p| p.numel() as u64).sum::<u64>();
    let allowed = source.len().saturating_mul(4).saturating_add(64 << 20);
    if values.saturating_mul(4) > allowed {
        return Err(format!("its tensors have {values} values, which a file of {} bytes cannot hold", source.len()));
    }
    Ok(())
}

fn kind_of(source: &Source, encoder: &Found) -> SourceKind {
    let tensors = source.tensors();
    let prefix = encoder.prefix.trim_end_matches('.');
    let last = prefix.rsplit('.').next().unwrap_or("");
    let projector = encoder.projector_of_shape(tensors);
    if source.card().is_some() {
        SourceKind::Backbone
    } else if matches!(last, "base_encoder" | "momentum_encoder") {
        SourceKind::MocoV3
    } else if matches!(projector, Projector::Mlp { .. }) {
        SourceKind::MocoV2
    } else if matches!(last, "encoder_q" | "encoder_k") {
        match projector {
            Projector::Linear { .. } => SourceKind::MocoV1,
            _ => SourceKind::Plain,
        }
    } else if encoder.classes(tensors).is_none() {
        SourceKind::Plain
    } else if source.is_training_checkpoint() || prefix == "module" {
        SourceKind::LinearEvaluation
    } else {
        SourceKind::Classifier
    }
}

fn describe(notes: &mut Vec<String>, source: &Source, encoder: &Found, arch: &ArchSpec, projector: Projector) {
    let width = if arch.width == 1.0 { String::new() } else { format!(" of width × {}", arch.width) };
    notes.push(format!("the tensors are those of {}{width} with {} input channels", arch.name, arch.in_channels));
    if let Some(named) = source.text("arch").filter(|named| *named != arch.name) {
        notes.push(format!("the file calls the architecture `{named}`"));
    }
    if let Some(epoch) = source.integer("epoch") {
        notes.push(format!("the file was saved after {epoch} epochs"));
    }
    if !encoder.prefix.is_empty() {
        notes.push(format!("tensors under `{}` were taken", encoder.prefix));
    }
    match (projector, arch.projector) {
        (Projector::None, _) if encoder.has_fc(source.tensors()) => {
            notes.push("the layers `fc` on top of the features were left out".into());
        }
        (Projector::None, _) => {}
        (_, Projector::None) => notes.push("the projector `fc` was left out".into()),
        _ => notes.push("the projector `fc` was kept".into()),
    }
    let names = source.tensors().names();
    let others: Vec<&str> = names.iter().copied().filter(|n| !n.starts_with(&encoder.prefix)).collect();
    if !others.is_empty() {
        let mut groups: Vec<String> = others.iter().map(|n| names::group(n)).collect();
        groups.sort_unstable();
        groups.dedup();
        notes.push(format!("{} tensors beside it were left out: {}", others.len(), groups.join(", ")));
    }
    let dtypes: Vec<_> = names
        .iter()
        .filter(|n| n.starts_with(&encoder.prefix))
        .filter_map(|n| source.tensors().info(n))
        .filter(|i| i.dtype.is_float() && i.dtype != crate::weights::Dtype::F32)
        .map(|i| i.dtype)
        .collect();
    if let Some(dtype) = dtypes.first() {
        notes.push(format!("{} tensors were converted to F32, e.g. from {dtype}", dtypes.len()));
    }
}

#[cfg(test)]
mod tests;

//! Weights of others: MoCo checkpoints, torchvision and timm files, safetensors. The architecture is read off the
//! tensors; what was found, chosen and left out is said in notes and in the card.

mod channels;
mod describe;
mod names;
mod open;
mod rename;
mod source;

use std::path::Path;

use moco_image::{Filter, PreprocessRule, ResizeRule};

pub use self::channels::{FirstConvolution, adapt_channels};
pub use self::describe::Mapping;
use self::names::{Encoder as Found, find_encoder, guess_arch};
pub use self::open::{Opened, open};
use self::rename::Renamed;
use self::source::Source;
use crate::arch::{ArchSpec, Projector};
use crate::card::Card;
use crate::heads::PREFIX;
use crate::weights::{TensorSource, load_strict, save_backbone};
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
    /// How pixels become the input, as far as it is known; the rest is the usual transform of the network's stem.
    pub preprocess: PreprocessChange,
    /// Number of channels of the images that the backbone is for, if it is not that of the weights.
    pub channels: Option<usize>,
    /// What becomes of the first convolution then; [`FirstConvolution::usual`] unless given.
    pub first_convolution: Option<FirstConvolution>,
    /// Overrides the method that was recognised.
    pub method: Option<String>,
    /// Licence of the weights.
    pub licence: Option<String>,
    /// What they were trained on.
    pub data: Option<String>,
}

/// The parts of a preprocessing rule that are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PreprocessChange {
    /// Resize before the crop.
    pub resize: Option<ResizeRule>,
    /// Centre crop `[height, width]`; `Some(None)` for none.
    pub crop: Option<Option<[usize; 2]>>,
    /// Interpolation of the resize.
    pub filter: Option<Filter>,
    /// Mean of each channel, in [0, 1] units; a single one is that of all channels.
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, likewise.
    pub std: Option<Vec<f32>>,
}

impl PreprocessChange {
    fn apply(&self, rule: &mut PreprocessRule) {
        let each = |values: &Vec<f32>| match values[..] {
            [one] => vec![one; rule.channels],
            _ => values.clone(),
        };
        let (mean, std) = (self.mean.as_ref().map(each), self.std.as_ref().map(each));
        rule.resize = self.resize.unwrap_or(rule.resize);
        rule.crop = self.crop.unwrap_or(rule.crop);
        rule.filter = self.filter.unwrap_or(rule.filter);
        rule.mean = mean.unwrap_or_else(|| std::mem::take(&mut rule.mean));
        rule.std = std.unwrap_or_else(|| std::mem::take(&mut rule.std));
    }

    /// What is not told.
    fn assumed(&self) -> Vec<&'static str> {
        let parts = [
            (self.resize.is_none(), "resize"),
            (self.crop.is_none(), "crop"),
            (self.filter.is_none(), "filter"),
            (self.mean.is_none(), "mean"),
            (self.std.is_none(), "standard deviation"),
        ];
        parts.into_iter().filter_map(|(missing, name)| missing.then_some(name)).collect()
    }
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
    /// What became of each tensor of the file, in its order.
    pub map: Vec<Mapping>,
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

/// Reads a MoCo checkpoint, a torchvision or timm file (`.pth`, `.pth.tar`, `.pt`; legacy or zip), a Detectron2 file (`.pkl`
/// or `.pth`) or a safetensors file; which it is, is told by its content, not by its name.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] as the readers; [`Error::Mismatch`] if the tensors are not those of a ResNet of
/// ours, listing every one that is missing, unknown or misshapen; [`Error::Import`] if the file holds several networks,
/// lacks the encoder that was asked for, or looks like a linear evaluation.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let source = Source::open(path, options.state_dict_key.as_deref())?;
    let refused = |reason: String| Error::Import { path: path.to_owned(), reason };
    let renamed = Renamed::detectron2(source.tensors());
    let tensors: &dyn TensorSource = match &renamed {
        Some(renamed) => renamed,
        None => source.tensors(),
    };
    let encoder = find_encoder(tensors, options.encoder, options.prefix.as_deref()).map_err(refused)?;
    let kind = kind_of(&source, tensors, &encoder);
    if kind == SourceKind::LinearEvaluation && !options.allow_linear_evaluation {
        return Err(refused(linear_evaluation(&source, tensors, &encoder)));
    }
    let mut notes = vec![format!("read as {} ({})", kind.label(), source.describe())];
    let arch = guess_arch(tensors, &encoder).map_err(refused)?;
    let projector = encoder.projector(tensors, kind);
    let arch = ArchSpec { projector: if options.keep_projector { projector } else { Projector::None }, ..arch };
    if options.keep_projector && projector == Projector::None {
        return Err(refused("has no projector of MoCo v1 or v2 that could be kept".into()));
    }
    let graph = arch.build()?;
    check_size(&source, &graph).map_err(refused)?;
    let prefix = encoder.prefix.as_str();
    let weights = load_strict(
        tensors,
        &graph,
        &path.display().to_string(),
        |name| format!("{prefix}{name}"),
        |name| {
            name.strip_prefix(prefix).is_some_and(|rest| {
                !(source.has_head() && rest.starts_with(PREFIX)) && (options.keep_projector || !rest.starts_with("fc."))
            })
        },
    )?;
    describe::notes(&mut notes, &source, tensors, &encoder, &arch, projector);
    if renamed.is_some() {
        notes.push(
            "Detectron2's names were translated; colours are taken as RGB and strides as in the 3×3, as MoCo's and \
             torchvision's are there"
                .into(),
        );
    }
    let map = describe::map(tensors, renamed.as_ref(), &encoder, &graph);

    let mut card = Card::new(arch, options.method.as_deref().unwrap_or(kind.method()))?;
    let known = source.card();
    if let Some(original) = known.clone() {
        card = Card { arch: card.arch, taps: card.taps, ..original };
        card.method = options.method.clone().unwrap_or(card.method);
    }
    let (graph, weights) = adapted(graph, weights, &mut card, &mut notes, options).map_err(refused)?;
    options.preprocess.apply(&mut card.preprocess);
    let assumed = options.preprocess.assumed();
    if known.is_none() && !assumed.is_empty() {
        notes.push(format!(
            "the file does not say how images are prepared; the usual is assumed for {}",
            assumed.join(", ")
        ));
    }
    card.licence = options.licence.clone().or(card.licence);
    card.data = options.data.clone().or(card.data);
    let file_name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    card.source = Some(format!("{file_name}: {}, {}", kind.label(), source.describe()));
    card.parent_sha256 = Some(sha256_of_file(path)?);
    card.notes = notes.clone();
    card.validate()?;
    Ok(Imported { kind, graph, weights, card, notes, map })
}

/// Network, weights and card for the number of channels that was asked for.
fn adapted(
    graph: Graph,
    weights: Weights,
    card: &mut Card,
    notes: &mut Vec<String>,
    options: &ImportOptions,
) -> std::result::Result<(Graph, Weights), String> {
    let old = card.arch.in_channels;
    let Some(channels) = options.channels.filter(|channels| *channels != old) else {
        return match options.first_convolution {
            Some(_) => Err(format!("reads {old} channels already, so its first convolution stays as it is")),
            None => Ok((graph, weights)),
        };
    };
    let how = options.first_convolution.unwrap_or_else(|| FirstConvolution::usual(channels));
    card.arch.in_channels = channels;
    let target = card.arch.build().map_err(|e| e.to_string())?;
    let weights = adapt_channels(&weights, &graph, &target, how).map_err(|e| e.to_string())?;
    card.preprocess = channels::rule_for(&card.preprocess, channels);
    notes.push(format!("made for {channels} channels instead of {old}: the first convolution was {how}"));
    Ok((target, weights))
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

fn kind_of(source: &Source, tensors: &dyn TensorSource, encoder: &Found) -> SourceKind {
    let prefix = encoder.prefix.trim_end_matches('.');
    let last = prefix.rsplit('.').next().unwrap_or("");
    let projector = encoder.projector_of_shape(tensors);
    if source.card().is_some() {
        return SourceKind::Backbone;
    }
    if matches!(last, "base_encoder" | "momentum_encoder") {
        return SourceKind::MocoV3;
    }
    if matches!(projector, Projector::Mlp { .. }) {
        return SourceKind::MocoV2;
    }
    if matches!(last, "encoder_q" | "encoder_k") {
        return match projector {
            Projector::Linear { .. } => SourceKind::MocoV1,
            _ => SourceKind::Plain,
        };
    }
    if encoder.classes(tensors).is_none() {
        return SourceKind::Plain;
    }
    match source.optimised() {
        // The weight and the bias of `fc`: everything else was frozen.
        Some(..=2) => SourceKind::LinearEvaluation,
        Some(_) => SourceKind::Classifier,
        // Without its optimiser, a checkpoint of the same script may be either.
        None if source.is_training_checkpoint() || prefix == "module" => SourceKind::LinearEvaluation,
        None => SourceKind::Classifier,
    }
}

/// Why such a file is refused.
fn linear_evaluation(source: &Source, tensors: &dyn TensorSource, encoder: &Found) -> String {
    let found = format!(
        "`{}fc` is a classifier of {} classes and there is no projector",
        encoder.prefix,
        encoder.classes(tensors).unwrap_or(0)
    );
    let why = match source.optimised() {
        Some(n) => {
            format!("is the checkpoint of a linear evaluation: {found}, and its optimiser moved {n} tensors only")
        }
        None => format!(
            "looks like the checkpoint of a linear evaluation: {found}. (It may also be supervised training; without its \
             optimiser that cannot be told)"
        ),
    };
    format!(
        "{why}. Its backbone is not what you would expect under the name of a pre-training; if you want it all the same, \
         allow linear evaluations: moco-train import --force"
    )
}

#[cfg(test)]
mod tests;

//! A fine-tuned model as ONNX: the backbone, the head, and what makes answers of scores.

use std::path::Path;

use prost::Message;

use super::decode::boxes;
use super::proto::{DataType, Dimension, StringStringEntryProto, ValueInfoProto};
use super::writer::{Writer, external_tensor, inline_tensor, int, value_info};
use super::{ExternalModel, InputSize, check_inline_size, described, entry};
use crate::heads::{HeadSpec, Task};
use crate::weights::{CARD_KEY, HEAD_KEY, ModelFile, TensorInfo};
use crate::{Error, Result, write_atomically};

/// Metadata key under which an exported model holds the names of its classes as a JSON array.
pub const CLASS_NAMES_KEY: &str = "moco.class_names";

/// How a model is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelExport {
    /// Sizes that are fixed; the others are decided by each call.
    pub size: InputSize,
    /// Whether the scores before softmax or sigmoid are outputs, too; not for detectors.
    pub logits: bool,
    /// Whether a detector's boxes are thinned out in the model, and how.
    pub suppress: Option<Suppress>,
}

/// Non-maximum suppression inside a model, class by class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suppress {
    /// Boxes that overlap a better one of their class by more than this intersection over union are dropped.
    pub iou: f32,
    /// Boxes of this score or less are dropped.
    pub score: f32,
    /// Most boxes of a class that are kept in an image.
    pub per_class: usize,
}

impl Default for Suppress {
    fn default() -> Suppress {
        Suppress { iou: 0.6, score: 0.05, per_class: 100 }
    }
}

/// Writes a self-contained `.onnx` file, atomically. Input `images` [N, C, H, W] as the model's preprocessing makes it;
/// outputs by task:
///
/// | task | outputs |
/// |---|---|
/// | classification | `probabilities` [N, classes]: softmax; of multi-label models each class's own sigmoid |
/// | segmentation | `probabilities` [N, classes, H, W], `mask` [N, H, W] u8, the likeliest class |
/// | detection | `boxes` [N, L, 4]: x0, y0, x1, y1 in pixels of the input, cut at its border; `scores` [N, L, classes] in [0, 1] |
/// | with [`Suppress`] | `boxes` [M, 4], `scores` [M], `labels` [M] i64, `image_index` [M] i64, by image, class, falling score |
///
/// `logits` is one more where it was asked for. The metadata hold both cards and the names of the classes.
///
/// # Errors
/// [`Error::Arch`] for an option that this head does not have or that makes no sense, [`Error::Graph`] if the image size
/// does not fit, [`Error::Mismatch`] for weights of more than 2 GB, [`Error::Io`].
pub fn export_model(path: &Path, file: &ModelFile, options: &ModelExport) -> Result<()> {
    check_inline_size(file.graph())?;
    let weights = file.weights()?;
    let bytes = write(file, options, |name, shape| {
        let values = weights.param(file.graph(), name).ok_or_else(|| lacking(file, name))?;
        Ok(inline_tensor(name, shape, values))
    })?;
    write_atomically(path, |out| out.write_all(&bytes))
}

/// As [`export_model`], in memory and over the weights in [`ModelFile::bytes`].
///
/// # Errors
/// As [`export_model`].
pub fn answering_model(file: &ModelFile, options: &ModelExport) -> Result<ExternalModel> {
    // The runtime matches this name only; no file of this name is ever opened.
    let location = "model.safetensors".to_owned();
    let model = write(file, options, |name, shape| {
        let TensorInfo { dtype, .. } = file.tensors().info(name).ok_or_else(|| lacking(file, name))?;
        let span = file.span(name).ok_or_else(|| lacking(file, name))?;
        external_tensor(name, shape, dtype, &location, span)
    })?;
    Ok(ExternalModel { model, location })
}

fn lacking(file: &ModelFile, name: &str) -> Error {
    Error::Mismatch(format!("{}: has no tensor `{name}`", file.path().display()))
}

fn write(
    file: &ModelFile,
    options: &ModelExport,
    tensor: impl Fn(&str, &[usize]) -> Result<super::proto::TensorProto>,
) -> Result<Vec<u8>> {
    let head = &file.head().head;
    check(head, options)?;
    let outputs = head.outputs(file.graph())?;
    let taps: Vec<&str> = outputs.iter().map(|o| o.tap.as_str()).collect();
    let mut writer = Writer::new(file.graph(), &taps, options.size)?;
    writer.write(tensor)?;
    let answers = match head {
        HeadSpec::Classify(_) => classes(&mut writer, head, options),
        HeadSpec::Segment(_) => pixels(&mut writer, head, options),
        HeadSpec::Detect(_) => boxes(&mut writer, head, &outputs, options),
    };
    writer.answer(answers);
    let names = serde_json::to_string(&file.head().class_names).expect("strings are JSON");
    let metadata: Vec<StringStringEntryProto> = vec![
        entry(CARD_KEY, file.card().to_json()),
        entry(HEAD_KEY, file.head().to_json()),
        entry(CLASS_NAMES_KEY, names),
    ];
    let what = format!("{} on {}, for the task {}", head, file.card().arch.name, head.task());
    Ok(described(writer, Some(what), metadata)?.encode_to_vec())
}

fn check(head: &HeadSpec, options: &ModelExport) -> Result<()> {
    let detects = head.task() == Task::Detect;
    if options.logits && detects {
        return Err(Error::Arch("a detector has no logits to export; its scores and boxes are decoded".into()));
    }
    let Some(Suppress { iou, score, per_class }) = options.suppress else { return Ok(()) };
    if !detects {
        return Err(Error::Arch(format!(
            "non-maximum suppression is for detectors; this model's task is {}",
            head.task()
        )));
    }
    for (name, value) in [("iou", iou), ("score", score)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::Arch(format!("suppression: {name} is {value}, expected 0 to 1")));
        }
    }
    if per_class == 0 {
        return Err(Error::Arch("suppression: per_class is 0, expected at least 1".into()));
    }
    Ok(())
}

pub(super) fn fixed(n: usize) -> Dimension {
    Dimension::Value(n as i64)
}

fn classes(writer: &mut Writer<'_>, head: &HeadSpec, options: &ModelExport) -> Vec<ValueInfoProto> {
    match head.task() {
        Task::MultiLabel => writer.step("Sigmoid", "probabilities", vec!["logits".into()], vec![]),
        _ => writer.step("Softmax", "probabilities", vec!["logits".into()], vec![int("axis", 1)]),
    };
    let output = |name: &str| value_info(name, DataType::Float, vec![writer.batch(), fixed(head.classes())]);
    let mut outputs = vec![output("probabilities")];
    outputs.extend(options.logits.then(|| output("logits")));
    outputs
}

fn pixels(writer: &mut Writer<'_>, head: &HeadSpec, options: &ModelExport) -> Vec<ValueInfoProto> {
    writer.step("Softmax", "probabilities", vec!["logits".into()], vec![int("axis", 1)]);
    let attributes = vec![int("axis", 1), int("keepdims", 0)];
    let likeliest = writer.step("ArgMax", "mask/class", vec!["logits".into()], attributes);
    writer.step("Cast", "mask", vec![likeliest], vec![int("to", DataType::Uint8 as usize)]);
    let [height, width] = writer.image_size();
    let map = |name: &str| {
        let dimensions = vec![writer.batch(), fixed(head.classes()), height.clone(), width.clone()];
        value_info(name, DataType::Float, dimensions)
    };
    let mut outputs = vec![map("probabilities")];
    outputs.push(value_info("mask", DataType::Uint8, vec![writer.batch(), height.clone(), width.clone()]));
    outputs.extend(options.logits.then(|| map("logits")));
    outputs
}

//! ONNX: a [`Graph`] written as an ONNX model (opset 17, IR version 8), with its weights inside, or outside in the
//! bytes of a safetensors file.
//!
//! The model mirrors the graph node by node: batch normalisation stays a node, and initialisers carry torchvision's
//! names. Input `images` is [N, C, H, W] in f32; outputs are called as the taps. [`int8_model`] writes the same network in
//! 8 bits, [`export_model`] a fine-tuned model with what makes answers of its scores.

mod decode;
mod fuse;
mod int8;
mod maps;
mod model;
mod proto;
mod writer;

use std::path::Path;

use prost::Message;

pub use self::int8::{Int8, WeightBits, grid};
pub use self::model::{CLASS_NAMES_KEY, ModelExport, Suppress, answering_model, export_model};
use self::proto::{ModelProto, StringStringEntryProto};
use self::writer::Writer;
use crate::card::Card;
use crate::weights::{BackboneFile, CARD_KEY, TensorInfo};
use crate::{Error, Graph, Result, Weights, write_atomically};

/// Name of the model's input.
pub const INPUT: &str = "images";

/// A protobuf message cannot be larger than this; some room is left for the graph itself.
const MAX_INLINE: usize = i32::MAX as usize - (16 << 20);

/// Sizes of the model's input that are fixed; the others are decided by each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputSize {
    /// Number of images.
    pub batch: Option<usize>,
    /// Height and width in pixels.
    pub image: Option<[usize; 2]>,
}

/// A model whose weights lie in the bytes of a safetensors file.
#[derive(Clone, Debug)]
pub struct ExternalModel {
    /// The ONNX model.
    pub model: Vec<u8>,
    /// Name by which the model refers to those bytes; hand them to the runtime under this name.
    pub location: String,
}

/// The model of a backbone file over the weights in [`BackboneFile::bytes`], with the given taps as outputs (all taps
/// of the card if none is given). Weights in another type than f32 are cast inside the model.
///
/// # Errors
/// [`Error::Arch`] for an unknown tap, [`Error::Graph`] if the image size does not fit the network.
pub fn model_with_external_data(file: &BackboneFile, taps: &[&str], size: InputSize) -> Result<ExternalModel> {
    let taps: Vec<&str> = if taps.is_empty() { card_taps(file.card()) } else { taps.to_vec() };
    external_model(file, file.graph(), &taps, size)
}

/// The f32 model that calibration runs: its outputs are called as the nodes of [`observed_nodes`], the image (node
/// `input`) excepted, which the caller has.
///
/// # Errors
/// As [`observed_nodes`] and [`model_with_external_data`].
pub fn observing_model(file: &BackboneFile, size: InputSize) -> Result<ExternalModel> {
    let mut graph = file.graph().clone();
    let names = observed_nodes(&graph)?;
    let image = graph.node(graph.input()).name.clone();
    for (index, node) in file.graph().nodes().iter().enumerate() {
        if names.contains(&node.name) && node.name != image {
            graph.add_tap(&node.name, crate::NodeId(index));
        }
    }
    let outputs: Vec<&str> = names.iter().map(String::as_str).filter(|n| *n != image).collect();
    external_model(file, &graph, &outputs, size)
}

/// Names of the nodes whose results are rounded in 8 bits, in the order of the network; the first is the image. A
/// [`crate::calibration::Calibration`] has a range for each.
///
/// # Errors
/// [`Error::Graph`] for a network that cannot run in 8 bits.
pub fn observed_nodes(graph: &Graph) -> Result<Vec<String>> {
    int8::ranged_nodes(graph)
}

/// The self-contained model of a backbone file in 8 bits, with the given taps as outputs in f32 (all taps of the card
/// if none is given).
///
/// # Errors
/// As [`model_with_external_data`]; [`Error::Mismatch`] if the calibration is that of another backbone.
pub fn int8_model(file: &BackboneFile, taps: &[&str], size: InputSize, int8: &Int8<'_>) -> Result<Vec<u8>> {
    int8.calibration.check(file)?;
    let taps: Vec<&str> = if taps.is_empty() { card_taps(file.card()) } else { taps.to_vec() };
    let mut writer = Writer::new(file.graph(), &taps, size)?;
    check_inline_size(writer.graph())?;
    int8::write(&mut writer, file.graph(), &file.weights()?, int8)?;
    Ok(model(writer, Some(file.card()))?.encode_to_vec())
}

/// Writes [`int8_model`] to a file, atomically.
///
/// # Errors
/// As [`int8_model`]; [`Error::Io`].
pub fn export_int8(path: &Path, file: &BackboneFile, taps: &[&str], size: InputSize, int8: &Int8<'_>) -> Result<()> {
    let bytes = int8_model(file, taps, size, int8)?;
    write_atomically(path, |out| out.write_all(&bytes))
}

fn external_model(file: &BackboneFile, graph: &Graph, taps: &[&str], size: InputSize) -> Result<ExternalModel> {
    // The runtime matches this name only; no file of this name is ever opened.
    let location = "backbone.safetensors".to_owned();
    let mut writer = Writer::new(graph, taps, size)?;
    writer.write(|name, shape| {
        let lacking = || Error::Mismatch(format!("{}: has no tensor `{name}`", file.path().display()));
        let TensorInfo { dtype, .. } = file.tensors().info(name).ok_or_else(lacking)?;
        let span = file.span(name).ok_or_else(lacking)?;
        writer::external_tensor(name, shape, dtype, &location, span)
    })?;
    let model = model(writer, Some(file.card()))?.encode_to_vec();
    Ok(ExternalModel { model, location })
}

/// What [`export`] writes.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Outputs; all taps of the graph if empty.
    pub taps: Vec<String>,
    /// Sizes that are fixed.
    pub size: InputSize,
    /// Written into the model's metadata, where [`CARD_KEY`] finds it again.
    pub card: Option<Card>,
}

/// Writes a self-contained `.onnx` file, atomically.
///
/// # Errors
/// As [`model_with_external_data`]; [`Error::Mismatch`] if the weights do not belong to the graph or are larger than
/// the 2 GB a self-contained ONNX file can hold; [`Error::Io`].
pub fn export(path: &Path, graph: &Graph, weights: &Weights, options: &ExportOptions) -> Result<()> {
    weights.check(graph)?;
    let taps: Vec<&str> = match options.taps.is_empty() {
        true => graph.taps().iter().map(|t| t.name.as_str()).collect(),
        false => options.taps.iter().map(String::as_str).collect(),
    };
    let mut writer = Writer::new(graph, &taps, options.size)?;
    check_inline_size(writer.graph())?;
    let (parameters, buffers) = (graph.parameter_layout(), graph.buffer_layout());
    writer.write(|name, shape| {
        let values = match (parameters.range(name), buffers.range(name)) {
            (Some(range), _) => &weights.params[range],
            (None, Some(range)) => &weights.buffers[range],
            (None, None) => return Err(Error::Mismatch(format!("the weights have no tensor `{name}`"))),
        };
        Ok(writer::inline_tensor(name, shape, values))
    })?;
    let bytes = model(writer, options.card.as_ref())?.encode_to_vec();
    write_atomically(path, |out| out.write_all(&bytes))
}

fn check_inline_size(graph: &Graph) -> Result<()> {
    let bytes = (graph.parameter_layout().len() + graph.buffer_layout().len()).saturating_mul(4);
    if bytes > MAX_INLINE {
        return Err(Error::Mismatch(format!(
            "the weights take {bytes} bytes; a self-contained ONNX file holds at most 2 GB. Use the backbone file with \
             moco-infer, which keeps the weights outside of the model"
        )));
    }
    Ok(())
}

fn card_taps(card: &Card) -> Vec<&str> {
    card.taps.iter().map(String::as_str).collect()
}

fn model(writer: Writer<'_>, card: Option<&Card>) -> Result<ModelProto> {
    let what = card.map(|c| format!("{} backbone trained with {}", c.arch.name, c.method));
    described(writer, what, card.map(|c| entry(CARD_KEY, c.to_json())).into_iter().collect())
}

fn described(
    writer: Writer<'_>,
    doc_string: Option<String>,
    metadata_props: Vec<StringStringEntryProto>,
) -> Result<ModelProto> {
    Ok(ModelProto {
        ir_version: Some(8),
        producer_name: Some("moco".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        doc_string,
        graph: Some(writer.finish()?),
        opset_import: vec![proto::OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        metadata_props,
    })
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value) }
}

#[cfg(test)]
mod int8_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

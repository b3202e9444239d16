//! What an import did, in sentences and tensor by tensor.

use std::collections::HashMap;
use std::fmt;

use super::names::{Encoder, group};
use super::rename::Renamed;
use super::source::Source;
use crate::Graph;
use crate::arch::{ArchSpec, Projector};
use crate::weights::{Dtype, TensorInfo, TensorSource};

/// What became of one tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Name in the file.
    pub from: String,
    /// Type and shape in the file.
    pub info: TensorInfo,
    /// Name in the backbone, or why it was left out.
    pub to: Result<String, &'static str>,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {} ", self.from, self.info.shape, self.info.dtype)?;
        match &self.to {
            Ok(name) => write!(f, "→ {name}"),
            Err(reason) => write!(f, "left out: {reason}"),
        }
    }
}

/// The key map of an import into `graph`.
pub(super) fn map(
    tensors: &dyn TensorSource,
    renamed: Option<&Renamed<'_>>,
    encoder: &Encoder,
    graph: &Graph,
) -> Vec<Mapping> {
    let specs = graph.parameters().into_iter().chain(graph.buffers());
    let mut known: HashMap<String, String> = HashMap::new();
    for spec in specs {
        if let Some(norm) = spec.name.strip_suffix(".running_mean") {
            let counter = format!("{norm}.num_batches_tracked");
            known.insert(format!("{}{counter}", encoder.prefix), counter);
        }
        known.insert(format!("{}{}", encoder.prefix, spec.name), spec.name);
    }
    let names = tensors.names().into_iter();
    let mapping = |name: &str| {
        let to = known.get(name).cloned().ok_or(match name.strip_prefix(&encoder.prefix) {
            Some(rest) if rest.starts_with("fc.") => "a projector or classifier on top of the features",
            _ => "not of this network",
        });
        let from = renamed.map_or(name, |renamed| renamed.original(name)).to_owned();
        Some(Mapping { from, info: tensors.info(name)?, to })
    };
    names.filter_map(mapping).collect()
}

/// What was found, chosen and left out.
pub(super) fn notes(
    notes: &mut Vec<String>,
    source: &Source,
    tensors: &dyn TensorSource,
    encoder: &Encoder,
    arch: &ArchSpec,
    projector: Projector,
) {
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
        (Projector::None, _) if encoder.has_fc(tensors) => {
            notes.push("the layers `fc` on top of the features were left out".into());
        }
        (Projector::None, _) => {}
        (_, Projector::None) => notes.push("the projector `fc` was left out".into()),
        _ => notes.push("the projector `fc` was kept".into()),
    }
    let names = tensors.names();
    let others: Vec<&str> = names.iter().copied().filter(|n| !n.starts_with(&encoder.prefix)).collect();
    if !others.is_empty() {
        let mut groups: Vec<String> = others.iter().map(|n| group(n)).collect();
        groups.sort_unstable();
        groups.dedup();
        notes.push(format!("{} tensors beside it were left out: {}", others.len(), groups.join(", ")));
    }
    let dtypes: Vec<Dtype> = names
        .iter()
        .filter(|n| n.starts_with(&encoder.prefix))
        .filter_map(|n| tensors.info(n))
        .filter(|i| i.dtype.is_float() && i.dtype != Dtype::F32)
        .map(|i| i.dtype)
        .collect();
    if let Some(dtype) = dtypes.first() {
        notes.push(format!("{} tensors were converted to F32, e.g. from {dtype}", dtypes.len()));
    }
}

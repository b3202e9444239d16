//! Detectron2's names, read as torchvision's.

use std::collections::HashMap;

use crate::Result;
use crate::export::{detectron2_name, torchvision_name};
use crate::weights::{Tensor, TensorInfo, TensorSource};

/// Tensors under the names that torchvision gives them.
pub(super) struct Renamed<'a> {
    tensors: &'a dyn TensorSource,
    names: Vec<String>,
    originals: HashMap<String, String>,
}

impl<'a> Renamed<'a> {
    /// Renames the tensors below the prefix under which Detectron2's ResNet lies; none if there is no such.
    pub(super) fn detectron2(tensors: &'a dyn TensorSource) -> Option<Renamed<'a>> {
        let prefixes = tensors.names().into_iter().filter_map(|name| name.strip_suffix("stem.conv1.weight"));
        let is = |prefix: &&str| tensors.info(&format!("{prefix}res2.0.conv1.weight")).is_some();
        let prefix = prefixes.filter(is).map(str::to_owned).next()?;
        let mut names = Vec::new();
        let mut originals = HashMap::new();
        for original in tensors.names() {
            let renamed = original.strip_prefix(&prefix).map(|rest| (rest, torchvision_name(rest)));
            // What does not come back to the same name is no tensor of the ResNet: a pyramid, a head.
            let name = match renamed {
                Some((rest, name)) if detectron2_name(&name) == rest => format!("{prefix}{name}"),
                _ => original.to_owned(),
            };
            originals.insert(name.clone(), original.to_owned());
            names.push(name);
        }
        (originals.len() == names.len()).then_some(Renamed { tensors, names, originals })
    }

    /// Name in the file.
    pub(super) fn original<'b>(&'b self, name: &'b str) -> &'b str {
        self.originals.get(name).map_or(name, String::as_str)
    }
}

impl TensorSource for Renamed<'_> {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.info(self.originals.get(name)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.tensors.tensor(self.original(name))
    }
}

//! A head in a file: safetensors with `weight`, `bias` and what the head says about itself.

use std::collections::BTreeMap;
use std::path::Path;

use moco_models::weights::{SafetensorsFile, TensorOut, TensorSource, save_safetensors};
use serde::{Deserialize, Serialize};

use super::{HeadInfo, LinearHead};
use crate::{Error, Result};

/// Metadata key under which a head's file holds its description as JSON.
pub const HEAD_KEY: &str = "moco.head";

const FORMAT_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format_version: u32,
    kind: String,
    class_names: Vec<String>,
    tap: String,
    backbone_sha256: String,
}

impl LinearHead {
    /// Writes the head, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Model`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let HeadInfo { class_names, tap, backbone_sha256 } = self.info().clone();
        let kind = "linear".to_owned();
        let description = Description { format_version: FORMAT_VERSION, kind, class_names, tap, backbone_sha256 };
        let json = serde_json::to_string(&description).map_err(|e| Error::Invalid(e.to_string()))?;
        let tensors = [
            TensorOut::f32("weight", &[self.classes(), self.dim()], self.weight()),
            TensorOut::f32("bias", &[self.classes()], self.bias()),
        ];
        Ok(save_safetensors(path, &tensors, &BTreeMap::from([(HEAD_KEY.to_owned(), json)]))?)
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`Error::Model`] if the file cannot be read, [`Error::Format`] if it is not a linear head or contradicts itself.
    pub fn open(path: &Path) -> Result<LinearHead> {
        let file = SafetensorsFile::open(path)?;
        let json = file.metadata(HEAD_KEY).ok_or_else(|| {
            Error::format(path, format!("is not a head: it has no metadata `{HEAD_KEY}`; is this a backbone's file?"))
        })?;
        let description: Description = serde_json::from_str(json)
            .map_err(|e| Error::format(path, format!("the description of the head is damaged: {e}")))?;
        if description.format_version != FORMAT_VERSION || description.kind != "linear" {
            return Err(Error::format(
                path,
                format!(
                    "holds a `{}` head of format {}; this version reads `linear` heads of format {FORMAT_VERSION}",
                    description.kind, description.format_version
                ),
            ));
        }
        let mut names = file.names();
        names.sort_unstable();
        if names != ["bias", "weight"] {
            return Err(Error::format(path, format!("a linear head holds `weight` and `bias`, this file {names:?}")));
        }
        let (weight, bias) = (read(&file, "weight", 2)?, read(&file, "bias", 1)?);
        if weight.0[0] != bias.0[0] {
            return Err(Error::format(path, format!("weight is {:?}, but bias {:?}", weight.0, bias.0)));
        }
        let Description { class_names, tap, backbone_sha256, .. } = description;
        LinearHead::new(weight.1, bias.1, HeadInfo { class_names, tap, backbone_sha256 })
            .map_err(|e| Error::format(path, e.to_string()))
    }

    /// Checks that the head belongs to a backbone's features.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming what differs: another tap, another length, another backbone file.
    pub fn check_backbone(&self, tap: &str, dim: usize, backbone_sha256: &str) -> Result<()> {
        let info = self.info();
        let refuse = |reason: String| Err(Error::Invalid(reason));
        if !info.tap.is_empty() && info.tap != tap {
            return refuse(format!("the head was fitted on tap `{}`, these features are `{tap}`", info.tap));
        }
        if self.dim() != dim {
            return refuse(format!("the head reads {} features, the backbone's `{tap}` has {dim}", self.dim()));
        }
        if !info.backbone_sha256.is_empty() && info.backbone_sha256 != backbone_sha256 {
            return refuse(format!(
                "the head was fitted on another backbone: its file had SHA-256 {}, this one has {backbone_sha256}",
                info.backbone_sha256
            ));
        }
        Ok(())
    }
}

fn read(file: &SafetensorsFile, name: &str, dims: usize) -> Result<(Vec<usize>, Vec<f32>)> {
    let tensor = file.tensor(name)?;
    if tensor.shape.len() != dims {
        return Err(Error::format(
            file.path(),
            format!("`{name}` has the shape {:?}, expected {dims} dimension(s)", tensor.shape),
        ));
    }
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.write_f32(&mut values);
    Ok((tensor.shape.clone(), values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> LinearHead {
        let info = HeadInfo {
            class_names: vec!["apple".into(), "pear".into()],
            tap: "pooled".into(),
            backbone_sha256: "ab".repeat(32),
        };
        LinearHead::new(vec![1.0, 2.0, 3.0, -1.0, -2.0, -3.0], vec![0.5, -0.5], info).unwrap()
    }

    #[test]
    fn what_is_saved_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        head().save(&path).unwrap();
        assert_eq!(LinearHead::open(&path).unwrap(), head());
    }

    #[test]
    fn another_backbone_tap_or_length_is_refused() {
        let hash = "ab".repeat(32);
        assert!(head().check_backbone("pooled", 3, &hash).is_ok());
        assert!(head().check_backbone("c5", 3, &hash).unwrap_err().to_string().contains("`c5`"));
        assert!(head().check_backbone("pooled", 4, &hash).unwrap_err().to_string().contains("has 4"));
        assert!(head().check_backbone("pooled", 3, "00").unwrap_err().to_string().contains("another backbone"));
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        head().save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(LinearHead::open(&path).is_err(), "{len} bytes");
        }
        let tensors = [TensorOut::f32("weight", &[1, 1], &[1.0])];
        save_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        assert!(LinearHead::open(&path).unwrap_err().to_string().contains("not a head"));
        let folder_error = LinearHead::open(folder.path()).unwrap_err().to_string();
        assert!(folder_error.contains(&folder.path().display().to_string()));
    }
}

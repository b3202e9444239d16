//! The calibration file: ranges of a backbone's activations over a user's images, from which it is brought to 8 bits.
//!
//! JSON for people and programs, written by `moco-infer calibrate`, read wherever int8 is asked for.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::BackboneFile;
use crate::{Error, Result, onnx, write_atomically};

/// Version of the file's format that this crate writes and reads.
pub const CALIBRATION_VERSION: u32 = 1;

/// What was observed of one backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`CALIBRATION_VERSION`] of the writer.
    pub moco_calibration: u32,
    /// SHA-256 of the backbone file it belongs to; other backbones have other ranges.
    pub backbone_sha256: String,
    /// Name of the backbone's network, for people.
    pub arch: String,
    /// Number of images that were observed.
    pub images: usize,
    /// How ranges were chosen from what was observed.
    pub method: String,
    /// Name and version of the program that wrote the file.
    pub tool_version: String,
    /// How close int8 comes to f32, on images that were not used to calibrate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Smallest and largest value to represent of each quantised result, by the name of the node that makes it.
    pub ranges: BTreeMap<String, [f32; 2]>,
}

/// Features in int8 beside those in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Number of images, none of them used to calibrate.
    pub images: usize,
    /// Bits of the weights that were measured, 8 or 7; see [`crate::onnx::WeightBits`].
    pub weight_bits: u32,
    /// One entry a tap.
    pub taps: BTreeMap<String, TapAccuracy>,
}

/// How close one tap comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapAccuracy {
    /// Mean over the images of the cosine between int8 and f32 features.
    pub mean_cosine: f64,
    /// Smallest of those cosines.
    pub worst_cosine: f64,
    /// Vectors only: the mean cosine after the mean of the f32 features is taken off both. Features after a ReLU all
    /// point the same way; this is the figure that their common part cannot flatter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_centred_cosine: Option<f64>,
    /// Vectors only: share of the images whose nearest neighbour among the others, by cosine, is the same image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_nearest_neighbour: Option<f64>,
}

impl Calibration {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is not a calibration of this version, or holds impossible ranges.
    pub fn read(path: &Path) -> Result<Calibration> {
        let text = std::fs::read_to_string(path).map_err(|cause| Error::Io { path: path.to_owned(), cause })?;
        let failed = |reason: String| Error::Format { path: path.to_owned(), reason };
        let wrong = "expected a calibration written by `moco-infer calibrate`";
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| failed(format!("{wrong}: {e}")))?;
        match json.get("moco_calibration").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(CALIBRATION_VERSION) => (),
            Some(version) => {
                return Err(failed(format!(
                    "calibration of format version {version}, this program reads {CALIBRATION_VERSION}: calibrate again"
                )));
            }
            None => return Err(failed(format!("{wrong}: the key `moco_calibration` is missing"))),
        }
        let calibration: Calibration = serde_json::from_value(json).map_err(|e| failed(format!("{wrong}: {e}")))?;
        calibration.check_ranges().map_err(failed)?;
        Ok(calibration)
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("names and numbers are always JSON");
        text.push('\n');
        write_atomically(path, |out| out.write_all(text.as_bytes()))
    }

    /// Checks that it was made for this backbone file and covers its network.
    ///
    /// # Errors
    /// [`Error::Mismatch`] saying for which backbone it was made, or naming the ranges that are missing, unknown or
    /// impossible.
    pub fn check(&self, file: &BackboneFile) -> Result<()> {
        let sha256 = file.sha256();
        if self.backbone_sha256 != sha256 {
            return Err(Error::Mismatch(format!(
                "the calibration was made for another backbone ({}, SHA-256 {}); {} has {sha256}: run `moco-infer \
                 calibrate` on it",
                self.arch,
                self.backbone_sha256,
                file.path().display()
            )));
        }
        let expected = onnx::observed_nodes(file.graph())?;
        let missing = expected.iter().filter(|name| !self.ranges.contains_key(*name));
        let unknown = self.ranges.keys().filter(|name| !expected.contains(name));
        let wrong: Vec<String> =
            missing.map(|n| format!("`{n}` is missing")).chain(unknown.map(|n| format!("`{n}` is unknown"))).collect();
        if !wrong.is_empty() {
            return Err(Error::Mismatch(format!("ranges of the calibration: {}; calibrate again", wrong.join(", "))));
        }
        self.check_ranges().map_err(Error::Mismatch)
    }

    fn check_ranges(&self) -> std::result::Result<(), String> {
        // Zero must be representable exactly: it is what convolutions pad with.
        let is_range = |[low, high]: [f32; 2]| low.is_finite() && high.is_finite() && low <= 0.0 && high >= 0.0;
        match self.ranges.iter().find(|(_, range)| !is_range(**range)) {
            Some((name, range)) => Err(format!(
                "range of `{name}` is {range:?}, expected [low, high] with low ≤ 0 ≤ high; calibrate again"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ArchSpec;
    use crate::card::Card;
    use crate::init::initialise;
    use crate::weights::save_backbone;

    fn backbone(folder: &Path, seed: u64) -> BackboneFile {
        let path = folder.join(format!("{seed}.safetensors"));
        let arch = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
        let graph = arch.build().unwrap();
        save_backbone(&path, &graph, &initialise(&graph, seed), &Card::new(arch, "x").unwrap()).unwrap();
        BackboneFile::open(&path).unwrap()
    }

    fn calibration(file: &BackboneFile) -> Calibration {
        let nodes = onnx::observed_nodes(file.graph()).unwrap();
        Calibration {
            moco_calibration: CALIBRATION_VERSION,
            backbone_sha256: file.sha256(),
            arch: "resnet18".into(),
            images: 3,
            method: "by hand".into(),
            tool_version: "test".into(),
            accuracy: None,
            ranges: nodes.into_iter().map(|n| (n, [-0.1, 1.7])).collect(),
        }
    }

    #[test]
    fn a_file_comes_back_and_fits_only_its_backbone() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (backbone(folder.path(), 1), backbone(folder.path(), 2));
        let path = folder.path().join("c.json");
        calibration(&own).write(&path).unwrap();
        let read = Calibration::read(&path).unwrap();
        assert_eq!(read, calibration(&own));
        read.check(&own).unwrap();
        let error = read.check(&other).unwrap_err().to_string();
        assert!(error.contains(&own.sha256()) && error.contains("2.safetensors"), "{error}");
    }

    #[test]
    fn missing_unknown_and_impossible_ranges_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = backbone(folder.path(), 1);
        let mut edited = calibration(&file);
        edited.ranges.remove("layer1.0.relu1").unwrap();
        edited.ranges.insert("layer9".into(), [0.0, 1.0]);
        let error = edited.check(&file).unwrap_err().to_string();
        assert!(error.contains("`layer1.0.relu1` is missing, `layer9` is unknown"), "{error}");
        for range in [[0.5, 1.0], [-1.0, -0.5], [0.0, f32::INFINITY]] {
            let mut edited = calibration(&file);
            edited.ranges.insert("relu".into(), range);
            assert!(edited.check(&file).unwrap_err().to_string().contains("`relu`"));
        }
    }

    #[test]
    fn what_is_no_calibration_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let mut newer = calibration(&backbone(folder.path(), 1));
        newer.moco_calibration = 2;
        let newer = serde_json::to_string(&newer).unwrap();
        let cases = [("{", "moco-infer calibrate"), ("{\"a\": 1}", "`moco_calibration`"), (&newer, "version 2")];
        for (text, expected) in cases {
            std::fs::write(&path, text).unwrap();
            let error = Calibration::read(&path).unwrap_err().to_string();
            assert!(error.contains("c.json") && error.contains(expected), "{error}");
        }
        assert!(Calibration::read(&folder.path().join("absent.json")).unwrap_err().to_string().contains("absent"));
    }
}

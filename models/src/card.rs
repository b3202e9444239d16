//! The card: what a backbone file says about itself, in JSON inside the file and as a README for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use moco_image::{ChannelMismatch, ChannelOrder, PreprocessRule, ResizeRule};
use serde::{Deserialize, Serialize};

use crate::arch::{ArchSpec, Stem};
use crate::{Error, Result};

/// Version of the card's format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Description of a backbone: everything needed to use it and to know where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The network.
    pub arch: ArchSpec,
    /// Names of the features that can be taken from it, in the order of the network.
    pub taps: Vec<String>,
    /// How pixels become its input.
    pub preprocess: PreprocessRule,
    /// How it was trained: `moco-v1`, `moco-v2`, `supervised`, `unknown`, …
    pub method: String,
    /// The resolved recipe of the run, as the trainer saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<serde_json::Value>,
    /// What it was trained on, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Number of different images it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Measured on the result, e.g. `knn_top1` in [0, 1]; names carry the unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Licence of the weights, an SPDX identifier where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// For imported weights: the file they come from and what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// SHA-256 of the file these weights come from or the run continued from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_sha256: Option<String>,
    /// What was done or assumed on the way, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Name and version of the program that wrote the card.
    pub tool_version: String,
}

impl Card {
    /// A card with the taps of the network and the usual evaluation transform for its stem: 256 → 224 with ImageNet's
    /// statistics, or 32 × 32 with CIFAR-10's for the CIFAR stem.
    ///
    /// # Errors
    /// [`Error::Arch`] if the network cannot be built.
    pub fn new(arch: ArchSpec, method: impl Into<String>) -> Result<Card> {
        let graph = arch.build()?;
        Ok(Card {
            format_version: FORMAT_VERSION,
            taps: graph.taps().iter().map(|t| t.name.clone()).collect(),
            preprocess: default_preprocess(&arch),
            arch,
            method: method.into(),
            recipe: None,
            data: None,
            images: None,
            metrics: BTreeMap::new(),
            licence: None,
            source: None,
            parent_sha256: None,
            notes: Vec::new(),
            tool_version: format!("moco {}", env!("CARGO_PKG_VERSION")),
        })
    }

    /// Checks that the card describes something that exists.
    ///
    /// # Errors
    /// [`Error::Card`] naming the field and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.format_version != FORMAT_VERSION {
            return Err(Error::Card(format!(
                "the card has format version {}, this program knows {FORMAT_VERSION}; use the version that wrote it ({})",
                self.format_version, self.tool_version
            )));
        }
        let graph = self.arch.build().map_err(|e| Error::Card(format!("arch: {e}")))?;
        if self.taps.is_empty() {
            return Err(Error::Card("taps: none is listed".into()));
        }
        for tap in &self.taps {
            graph.tap(tap).map_err(|e| Error::Card(format!("taps: {e}")))?;
        }
        if self.preprocess.channels != self.arch.in_channels {
            return Err(Error::Card(format!(
                "preprocess: makes {} channels, the network reads {}",
                self.preprocess.channels, self.arch.in_channels
            )));
        }
        self.preprocess.validate().map_err(|e| Error::Card(format!("preprocess: {e}")))?;
        if self.method.trim().is_empty() {
            return Err(Error::Card("method: is empty; say `unknown` if it is".into()));
        }
        if let Some(hash) = &self.parent_sha256
            && (hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(Error::Card(format!("parent_sha256: `{hash}` is not 64 hexadecimal digits")));
        }
        if let Some((name, value)) = self.metrics.iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::Card(format!("metrics: `{name}` is {value}")));
        }
        Ok(())
    }

    /// The card as JSON on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a card holds strings, numbers and maps with string keys")
    }

    /// Reads and validates a card.
    ///
    /// # Errors
    /// [`Error::Card`] with the field or place.
    pub fn from_json(text: &str) -> Result<Card> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        // The version first: what a newer card holds may be unknown here.
        let version: Version =
            serde_json::from_str(text).map_err(|e| Error::Card(format!("the card is damaged: {e}")))?;
        if version.format_version != FORMAT_VERSION {
            return Err(Error::Card(format!(
                "the card has format version {}, this program knows {FORMAT_VERSION}; use a newer program",
                version.format_version
            )));
        }
        let card: Card = serde_json::from_str(text).map_err(|e| Error::Card(format!("the card is damaged: {e}")))?;
        card.validate()?;
        Ok(card)
    }

    /// The network in a few words.
    pub(crate) fn summary(&self) -> String {
        let arch = &self.arch;
        let stem = if arch.stem == Stem::Cifar { ", 3×3 stem" } else { "" };
        let width = if arch.width == 1.0 { String::new() } else { format!(", width × {}", arch.width) };
        format!("{}{stem}{width}, {} input channels", arch.name, arch.in_channels)
    }

    /// The card as a `README.md` with the YAML header that model hubs read.
    pub fn to_readme(&self) -> String {
        let arch = &self.arch;
        let mut text = String::from("---\n");
        if let Some(licence) = &self.licence {
            push(&mut text, format_args!("license: {}", quoted(&licence.to_lowercase())));
        }
        text.push_str("library_name: moco\npipeline_tag: image-feature-extraction\ntags:\n");
        for tag in ["moco", "self-supervised-learning", &arch.name, &self.method] {
            push(&mut text, format_args!("- {}", quoted(tag)));
        }
        push(&mut text, format_args!("---\n\n# {} backbone ({})\n\n| | |\n|---|---|", arch.name, self.method));

        let rows = [
            ("architecture", Some(self.summary())),
            ("features", Some(self.taps.join(", "))),
            ("method", Some(self.method.clone())),
            ("training data", self.data.clone()),
            ("images", self.images.map(|n| n.to_string())),
            ("licence", self.licence.clone()),
            ("source", self.source.clone()),
            ("parent SHA-256", self.parent_sha256.clone()),
            ("written by", Some(self.tool_version.clone())),
        ];
        let metrics = self.metrics.iter().map(|(name, value)| (name.as_str(), Some(value.to_string())));
        for (name, value) in rows.into_iter().chain(metrics) {
            value.iter().for_each(|value| table_row(&mut text, name, value));
        }

        push(&mut text, format_args!("\n## Preprocessing\n\n```json\n{}\n```", pretty(&self.preprocess)));
        if let Some(recipe) = &self.recipe {
            push(&mut text, format_args!("\n## Recipe\n\n```json\n{}\n```", pretty(recipe)));
        }
        if !self.notes.is_empty() {
            text.push_str("\n## Notes\n\n");
            self.notes.iter().for_each(|note| push(&mut text, format_args!("- {note}")));
        }
        text
    }
}

/// torchvision's evaluation transform for ImageNet networks; images as they are for the CIFAR stem (arXiv:1911.05722's
/// CIFAR-10 demo). Networks that do not read RGB get the mean over its channels.
fn default_preprocess(arch: &ArchSpec) -> PreprocessRule {
    let mut rule = PreprocessRule::imagenet(256, 224);
    if arch.stem == Stem::Cifar {
        rule.resize = ResizeRule::Exact { height: 32, width: 32 };
        rule.crop = None;
        rule.mean = vec![0.4914, 0.4822, 0.4465];
        rule.std = vec![0.2023, 0.1994, 0.2010];
    }
    if arch.in_channels != 3 {
        let (order, mismatch) = match arch.in_channels {
            1 => (ChannelOrder::Grey, ChannelMismatch::ToGrey),
            _ => (ChannelOrder::Any, ChannelMismatch::Error),
        };
        (rule.channels, rule.channel_order, rule.on_mismatch) = (arch.in_channels, order, mismatch);
        rule.mean = vec![rule.mean.iter().sum::<f32>() / 3.0; arch.in_channels];
        rule.std = vec![rule.std.iter().sum::<f32>() / 3.0; arch.in_channels];
    }
    rule
}

/// A row of a Markdown table of two columns.
pub(crate) fn table_row(text: &mut String, name: &str, value: &str) {
    let cell = value.replace('|', "\\|").replace(['\n', '\r'], " ");
    push(text, format_args!("| {name} | {cell} |"));
}

pub(crate) fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

/// A JSON string is a YAML string, whatever it holds.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

pub(crate) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("strings, numbers and maps with string keys are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let mut card = Card::new(ArchSpec::new("resnet18"), "moco-v2").unwrap();
        card.licence = Some("CC-BY-4.0".into());
        card.data = Some("a | b".into());
        card.metrics.insert("knn_top1".into(), 0.5);
        card.parent_sha256 = Some("0".repeat(64));
        card.notes.push("made by a test".into());
        card.recipe = Some(serde_json::json!({"epochs": 200}));
        card
    }

    #[test]
    fn a_card_survives_json() {
        let card = card();
        assert_eq!(Card::from_json(&card.to_json()).unwrap(), card);
        assert!(card.taps.contains(&"pooled".to_string()));
    }

    #[test]
    fn each_lie_is_named() {
        type Lie = (&'static str, fn(&mut Card));
        let lies: [Lie; 8] = [
            ("format version", |c| c.format_version = 2),
            ("arch", |c| c.arch.name = "resnet19".into()),
            ("there is no tap `c9`", |c| c.taps.push("c9".into())),
            ("taps", |c| c.taps.clear()),
            ("preprocess", |c| c.preprocess.std = vec![]),
            ("channels", |c| c.arch.in_channels = 1),
            ("parent_sha256", |c| c.parent_sha256 = Some("abc".into())),
            ("knn_top1", |c| *c.metrics.get_mut("knn_top1").unwrap() = f64::NAN),
        ];
        for (word, lie) in lies {
            let mut wrong = card();
            lie(&mut wrong);
            let error = wrong.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_newer_or_damaged_card_is_refused_in_words() {
        let newer = card().to_json().replace("\"format_version\":1", "\"format_version\":9,\"invented\":0");
        assert!(Card::from_json(&newer).unwrap_err().to_string().contains("version 9"));
        let unknown = card().to_json().replace("\"taps\"", "\"colour\":1,\"taps\"");
        assert!(Card::from_json(&unknown).unwrap_err().to_string().contains("colour"));
        assert!(Card::from_json("{").unwrap_err().to_string().contains("damaged"));
        assert!(Card::from_json("[]").unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn the_readme_has_the_hubs_header_and_escapes_cells() {
        let text = card().to_readme();
        assert!(text.starts_with("---\nlicense: \"cc-by-4.0\"\nlibrary_name: moco\n"), "{text}");
        assert!(text.contains("| training data | a \\| b |") && text.contains("\"epochs\": 200"), "{text}");
    }

    #[test]
    fn default_rules_fit_their_networks() {
        for stem in [Stem::ImageNet, Stem::Cifar] {
            for in_channels in [1, 2, 3, 13] {
                let arch = ArchSpec { stem, in_channels, ..ArchSpec::new("resnet18") };
                Card::new(arch, "x").unwrap().validate().unwrap();
            }
        }
    }
}

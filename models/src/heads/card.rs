//! What a fine-tuned model says about its head: in JSON beside the backbone's card, and as a README for people.

use std::collections::BTreeMap;

use moco_image::PreprocessRule;
use serde::{Deserialize, Serialize};

use super::{HeadSpec, Task};
use crate::card::{Card, pretty, push, quoted, table_row};
use crate::{Error, Result};

/// Version of the description that this crate writes and reads. The files of linear heads on features have version 1.
pub const HEAD_FORMAT_VERSION: u32 = 2;

/// Description of the head of a fine-tuned model: everything needed to use the model beyond its backbone's [`Card`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadCard {
    /// [`HEAD_FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The head.
    pub head: HeadSpec,
    /// Name of every class, in the order of the labels.
    pub class_names: Vec<String>,
    /// How values become the network's input; `input` stands in place of its resize and crop.
    pub preprocess: PreprocessRule,
    /// The size at which the model was trained and predicts.
    pub input: InputRule,
    /// Measured on images that were not trained on, e.g. `map` in [0, 1].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// SHA-256 of the file of the backbone that the training started from; none for a random start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone_sha256: Option<String>,
    /// The resolved options of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<serde_json::Value>,
    /// What it was trained on, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Number of labelled images it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Licence of the model, an SPDX identifier where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// What was done or assumed on the way, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Name and version of the program that wrote it.
    pub tool_version: String,
}

/// The size of a model's input and how images of other sizes are brought to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRule {
    /// Height and width in pixels.
    pub size: [usize; 2],
    /// How an image of another size gets there.
    pub fit: Fit,
}

/// How an image of any size becomes an input of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fit {
    /// Both sides are resized, the ratio is not kept.
    Stretch,
    /// Resized until it fits, the ratio kept, the rest filled.
    Letterbox,
    /// Resized until its shorter side has this many pixels, the ratio kept; then the centre is cut out.
    Cover {
        /// Pixels of the shorter side.
        shorter: usize,
    },
    /// Not resized: read in windows of the input's size.
    Tiles {
        /// Pixels that neighbouring windows share.
        overlap: usize,
    },
    /// Not resized: the network reads the image as large as it is; `size` is that of the training.
    Native,
}

impl HeadCard {
    /// The description of `head` on the backbone of `card`, for inputs of `size` [height, width] stretched to it.
    ///
    /// # Errors
    /// As [`HeadCard::validate`].
    pub fn new(head: HeadSpec, class_names: Vec<String>, card: &Card, size: [usize; 2]) -> Result<HeadCard> {
        let card = HeadCard {
            format_version: HEAD_FORMAT_VERSION,
            head,
            class_names,
            preprocess: card.preprocess.clone(),
            input: InputRule { size, fit: Fit::Stretch },
            metrics: BTreeMap::new(),
            backbone_sha256: None,
            training: None,
            data: None,
            images: None,
            licence: None,
            notes: Vec::new(),
            tool_version: format!("moco {}", env!("CARGO_PKG_VERSION")),
        };
        card.validate()?;
        Ok(card)
    }

    /// Checks that it describes something that exists.
    ///
    /// # Errors
    /// [`Error::Card`] naming the field and what was expected.
    pub fn validate(&self) -> Result<()> {
        let wrong = |reason: String| Err(Error::Card(reason));
        if self.format_version != HEAD_FORMAT_VERSION {
            return wrong(other_version(self.format_version));
        }
        self.head.validate().map_err(|e| Error::Card(e.to_string()))?;
        let (names, classes) = (&self.class_names, self.head.classes());
        if names.len() != classes {
            return wrong(format!("class_names: {} names for {classes} classes", names.len()));
        }
        if let Some(name) = names.iter().enumerate().find_map(|(i, n)| names[..i].contains(n).then_some(n)) {
            return wrong(format!("class_names: `{name}` names two classes"));
        }
        if names.iter().any(|name| name.trim().is_empty() || name.chars().any(char::is_control)) {
            return wrong("class_names: a name is empty or holds a line break or another control character".into());
        }
        self.preprocess.validate().map_err(|e| Error::Card(format!("preprocess: {e}")))?;
        let [height, width] = self.input.size;
        if height == 0 || width == 0 || height > 1 << 16 || width > 1 << 16 {
            return wrong(format!("input.size: {height}×{width} pixels, expected sides of 1 to 65536"));
        }
        match self.input.fit {
            Fit::Tiles { overlap } if overlap >= height.min(width) => {
                return wrong(format!("input.fit: windows of {height}×{width} cannot share {overlap} pixels"));
            }
            Fit::Cover { shorter } if shorter == 0 || shorter > 1 << 16 => {
                return wrong(format!("input.fit: a shorter side of {shorter} pixels, expected 1 to 65536"));
            }
            _ => {}
        }
        if let Some(hash) = &self.backbone_sha256
            && (hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return wrong(format!("backbone_sha256: `{hash}` is not 64 hexadecimal digits"));
        }
        match self.metrics.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => wrong(format!("metrics: `{name}` is {value}")),
            None => Ok(()),
        }
    }

    /// What the model answers.
    pub fn task(&self) -> Task {
        self.head.task()
    }

    /// The description as JSON on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("it holds strings, numbers and maps with string keys")
    }

    /// Reads and validates a description.
    ///
    /// # Errors
    /// [`Error::Card`] with the field or place.
    pub fn from_json(text: &str) -> Result<HeadCard> {
        let damaged = |e: serde_json::Error| Error::Card(format!("the description of the head is damaged: {e}"));
        // The version first: what a newer description holds may be unknown here.
        let version = version_of(text).map_err(damaged)?;
        if version != HEAD_FORMAT_VERSION {
            return Err(Error::Card(other_version(version)));
        }
        let card: HeadCard = serde_json::from_str(text).map_err(damaged)?;
        card.validate()?;
        Ok(card)
    }

    /// The model as a `README.md` with the YAML header that model hubs read; `card` is that of its backbone.
    pub fn to_readme(&self, card: &Card) -> String {
        let (what, pipeline) = match self.task() {
            Task::Classify => ("classifier", "image-classification"),
            Task::MultiLabel => ("multi-label classifier", "image-classification"),
            Task::Segment => ("segmentation model", "image-segmentation"),
            Task::Detect => ("detector", "object-detection"),
        };
        let arch = &card.arch;
        let mut text = String::from("---\n");
        if let Some(licence) = &self.licence {
            push(&mut text, format_args!("license: {}", quoted(&licence.to_lowercase())));
        }
        push(&mut text, format_args!("library_name: moco\npipeline_tag: {pipeline}\ntags:"));
        for tag in ["moco", self.task().name(), &arch.name, &card.method] {
            push(&mut text, format_args!("- {}", quoted(tag)));
        }
        push(&mut text, format_args!("---\n\n# {} {what} ({})\n\n| | |\n|---|---|", arch.name, self.head));
        let [height, width] = self.input.size;
        let fit = match self.input.fit {
            Fit::Stretch => "stretched".to_owned(),
            Fit::Letterbox => "fitted in, the ratio kept".to_owned(),
            Fit::Cover { shorter } => format!("the centre of an image whose shorter side has {shorter}"),
            Fit::Tiles { overlap } => format!("windows that share {overlap} pixels"),
            Fit::Native => "or any other size".to_owned(),
        };
        let classes = match self.class_names.len() {
            n @ 0..=40 => format!("{n}: {}", self.class_names.join(", ")),
            n => format!("{n}: {}, …", self.class_names[..40].join(", ")),
        };
        let rows = [
            ("task", Some(self.task().name().to_owned())),
            ("head", Some(self.head.to_string())),
            ("classes", Some(classes)),
            ("input", Some(format!("{height} × {width} pixels, {fit}; {} channels", self.preprocess.channels))),
            ("backbone", Some(card.summary())),
            ("backbone's method", Some(card.method.clone())),
            ("backbone SHA-256", self.backbone_sha256.clone()),
            ("training data", self.data.clone()),
            ("labelled images", self.images.map(|n| n.to_string())),
            ("licence", self.licence.clone()),
            ("written by", Some(self.tool_version.clone())),
        ];
        let metrics = self.metrics.iter().map(|(name, value)| (name.as_str(), Some(value.to_string())));
        for (name, value) in rows.into_iter().chain(metrics) {
            value.iter().for_each(|value| table_row(&mut text, name, value));
        }
        push(&mut text, format_args!("\n## Preprocessing\n\n```json\n{}\n```", pretty(&self.preprocess)));
        if let Some(training) = &self.training {
            push(&mut text, format_args!("\n## Training\n\n```json\n{}\n```", pretty(training)));
        }
        if !self.notes.is_empty() {
            text.push_str("\n## Notes\n\n");
            self.notes.iter().for_each(|note| push(&mut text, format_args!("- {note}")));
        }
        text
    }
}

/// The version that a description claims, whatever else it holds.
pub(crate) fn version_of(json: &str) -> serde_json::Result<u32> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    serde_json::from_str(json).map(|version: Version| version.format_version)
}

fn other_version(version: u32) -> String {
    match version {
        1 => "is a linear head on features, without its backbone, not a model".into(),
        _ => format!(
            "the description of the head has format version {version}, this program knows {HEAD_FORMAT_VERSION}; use a \
             newer program"
        ),
    }
}

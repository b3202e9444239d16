//! How labelled data is read.

use std::path::PathBuf;

use moco_image::{Axis, Limits, ReadOptions, ValueRange};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How labelled data is read. The defaults find the usual layouts on their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Channels of every image, 1 or 3; `None` = 1 if a look at the files finds only grey ones, else 3. Colours become
    /// grey by PIL's luma, grey is repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Which values become black and white where images have more than 8 bits; `None` refuses such images when they
    /// are prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueRange>,
    /// Along which axis volumes are cut into images.
    pub axis: Axis,
    /// Names of the classes in the order of their numbers, as a model has them; empty = from the data. A class of the
    /// data that is not among them is an error.
    pub classes: Vec<String>,
    /// Folder of the images, below the data's folder unless absolute; `None` = by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// Folder of the masks or XML files, or the JSON or CSV file, below the data's folder unless absolute; `None` = by
    /// its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<PathBuf>,
    /// What the values of masks mean.
    pub masks: MaskMeaning,
    /// What a mask's name has after the image's, e.g. `_mask`; `None` = found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_suffix: Option<String>,
    /// What happens to images without a mask.
    pub unpaired: Unpaired,
    /// How the coordinates of VOC files are counted.
    pub voc_coordinates: VocCoordinates,
    /// What happens to boxes without an area.
    pub empty_boxes: EmptyBoxes,
    /// Whether an image of a table may have any number of classes; `None` = if one has another number than 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_label: Option<bool>,
    /// What a file may cost.
    #[serde(skip)]
    pub limits: Limits,
}

/// What the values of masks mean. As text: `auto`, `index`, `binary`, `foreground`, `threshold:128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MaskMeaning {
    /// `Binary` if only 0 and 255, or 0 and 1, occur; otherwise `Index`. Found out by reading all masks once; values
    /// that look like instances or shades are refused.
    #[default]
    Auto,
    /// Values are classes; 255 is ignored.
    Index,
    /// 0 is background, 1 or 255 is foreground; nothing else may occur.
    Binary,
    /// 0 is background, everything else foreground: maps of instances.
    Foreground,
    /// Values from this one on are foreground: shades, soft masks, masks that went through JPEG.
    Threshold(u16),
}

/// What happens to images without a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unpaired {
    /// They are named in an error.
    #[default]
    Refuse,
    /// They are left out and counted.
    Skip,
}

/// How the coordinates of Pascal VOC files are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VocCoordinates {
    /// As the VOC development kit: pixels are counted from 1, `xmax` and `ymax` belong to the box. A box over the whole
    /// image is 1, 1, width, height; it becomes 0, 0, width, height.
    #[default]
    FromOne,
    /// As edges: a box over the whole image is 0, 0, width, height. Some tools write this.
    Edges,
}

/// What happens to boxes without an area, or with edges that have changed places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyBoxes {
    /// They are left out and counted.
    #[default]
    Skip,
    /// They are named in an error.
    Refuse,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            channels: None,
            values: None,
            axis: Axis::Z,
            classes: Vec::new(),
            images: None,
            annotations: None,
            masks: MaskMeaning::Auto,
            mask_suffix: None,
            unpaired: Unpaired::Refuse,
            voc_coordinates: VocCoordinates::FromOne,
            empty_boxes: EmptyBoxes::Skip,
            multi_label: None,
            limits: Limits::default(),
        }
    }
}

impl DataOptions {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the option.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.channels, None | Some(1 | 3)) {
            let got = self.channels.unwrap_or_default();
            return Err(Error::Invalid(format!("channels = {got}: expected 1 (grey) or 3 (RGB)")));
        }
        if let Some(values) = self.values {
            values.validate()?;
        }
        for (i, name) in self.classes.iter().enumerate() {
            if name.is_empty() || self.classes[..i].contains(name) {
                return Err(Error::Invalid(format!("classes: `{name}` is empty or named twice")));
            }
        }
        Ok(())
    }

    pub(super) fn read_options(&self) -> ReadOptions {
        ReadOptions { limits: self.limits, axis: self.axis }
    }
}

impl From<MaskMeaning> for String {
    fn from(meaning: MaskMeaning) -> String {
        match meaning {
            MaskMeaning::Auto => "auto".into(),
            MaskMeaning::Index => "index".into(),
            MaskMeaning::Binary => "binary".into(),
            MaskMeaning::Foreground => "foreground".into(),
            MaskMeaning::Threshold(value) => format!("threshold:{value}"),
        }
    }
}

impl TryFrom<String> for MaskMeaning {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl std::str::FromStr for MaskMeaning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "index" => Self::Index,
            "binary" => Self::Binary,
            "foreground" => Self::Foreground,
            _ => {
                let value = text.strip_prefix("threshold:").and_then(|v| v.parse().ok()).filter(|v| *v > 0);
                Self::Threshold(value.ok_or_else(|| {
                    Error::Invalid(format!(
                        "masks = `{text}`: expected auto, index, binary, foreground or threshold:VALUE with a value \
                         from 1 to 65535"
                    ))
                })?)
            }
        })
    }
}

impl std::fmt::Display for MaskMeaning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings_are_read_as_they_are_written() {
        for meaning in [MaskMeaning::Auto, MaskMeaning::Index, MaskMeaning::Foreground, MaskMeaning::Threshold(128)] {
            assert_eq!(meaning.to_string().parse::<MaskMeaning>().unwrap(), meaning);
        }
        for bad in ["", "threshold:0", "threshold:70000", "instances"] {
            assert!(bad.parse::<MaskMeaning>().unwrap_err().to_string().contains("foreground"), "{bad}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_named() {
        let bad = DataOptions { channels: Some(4), ..DataOptions::default() };
        assert!(bad.validate().unwrap_err().to_string().contains("channels = 4"));
        let bad = DataOptions { classes: vec!["a".into(), "a".into()], ..DataOptions::default() };
        assert!(bad.validate().unwrap_err().to_string().contains("`a`"));
    }
}

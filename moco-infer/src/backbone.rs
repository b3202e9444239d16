//! A backbone file, opened for inference.

use std::path::Path;
use std::sync::Arc;

use moco_image::{PreprocessRule, ValueRange};
use moco_models::card::Card;
use moco_models::weights::BackboneFile;
use moco_models::{Graph, Shape};

use crate::{Error, Result};

/// A backbone: weights, network and card. Cheap to clone, shared between threads.
#[derive(Clone, Debug)]
pub struct Backbone {
    file: Arc<BackboneFile>,
    rule: Arc<PreprocessRule>,
}

impl Backbone {
    /// Opens a backbone: a file, a folder, or `hf://owner/name[@revision][/file]` in a Hub. Files of others (MoCo's,
    /// torchvision's, timm's, Detectron2's) are converted in memory; what is assumed of them goes to the log as warnings.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and what is wrong with it: missing, unknown or misshapen tensors;
    /// [`Error::Hub`] if it cannot be fetched.
    pub fn open(path: &Path) -> Result<Backbone> {
        Backbone::open_for(path, None)
    }

    /// As [`Backbone::open`], for images of so many channels: the first convolution is folded or spread if the backbone
    /// reads another number, and the card says so.
    ///
    /// # Errors
    /// As [`Backbone::open`].
    pub fn open_for(path: &Path, channels: Option<usize>) -> Result<Backbone> {
        let opened = moco_hub::open_backbone(path, channels, &mut |_| ())?;
        opened.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(opened.file.into())
    }

    /// What the file says about itself.
    pub fn card(&self) -> &Card {
        self.file.card()
    }

    /// How images are prepared: the card's rule, and what [`Backbone::with_other_depths`] added.
    pub fn rule(&self) -> &PreprocessRule {
        &self.rule
    }

    pub(crate) fn shared_rule(&self) -> Arc<PreprocessRule> {
        self.rule.clone()
    }

    /// The same backbone, which also reads images of another depth than the card's: `range` says which of their values
    /// become black and white.
    ///
    /// # Errors
    /// [`Error::Image`] for a range that is none.
    pub fn with_other_depths(self, range: ValueRange) -> Result<Backbone> {
        range.validate()?;
        let rule = PreprocessRule { other_depths: Some(range), ..(*self.rule).clone() };
        Ok(Backbone { rule: Arc::new(rule), ..self })
    }

    /// The network.
    pub fn graph(&self) -> &Graph {
        self.file.graph()
    }

    /// The file behind it.
    pub fn file(&self) -> &BackboneFile {
        &self.file
    }

    /// Names of the features that can be taken, in the order of the network.
    pub fn taps(&self) -> &[String] {
        &self.card().taps
    }

    /// Channels of a tap: the length of a vector, the depth of a feature map.
    ///
    /// # Errors
    /// [`Error::Model`] naming the taps there are.
    pub fn dim(&self, tap: &str) -> Result<usize> {
        let side = 224; // Any size that fits: channels do not depend on it.
        let node = self.graph().tap(tap)?;
        Ok(self.graph().shapes(side, side)?[node.0].channels())
    }

    /// Shape of a tap's features for an input of `[height, width]`, that is, after preprocessing: `[channels]` for a
    /// vector, `[channels, height, width]` for a map.
    ///
    /// # Errors
    /// [`Error::Model`] for an unknown tap or an input too small for the network.
    pub fn feature_shape(&self, tap: &str, [height, width]: [usize; 2]) -> Result<Vec<usize>> {
        let node = self.graph().tap(tap)?;
        Ok(dims(self.graph().shapes(height, width)?[node.0]))
    }

    /// Height and width of the network's input, if the card's rule makes all images one size.
    pub fn fixed_input_size(&self) -> Option<[usize; 2]> {
        let rule = self.rule();
        match (rule.crop, rule.resize) {
            (Some(size), _) => Some(size),
            (None, moco_image::ResizeRule::Exact { height, width }) => Some([height, width]),
            (None, _) => None,
        }
    }

    /// Checks names of taps; none means `pooled`.
    pub(crate) fn choose_taps(&self, taps: &[String]) -> Result<Vec<String>> {
        let chosen = if taps.is_empty() { vec!["pooled".to_owned()] } else { taps.to_vec() };
        for (i, tap) in chosen.iter().enumerate() {
            self.graph().tap(tap)?;
            if !self.taps().contains(tap) {
                return Err(Error::Input(format!(
                    "the card does not list tap `{tap}`; it lists {}",
                    self.taps().join(", ")
                )));
            }
            if chosen[..i].contains(tap) {
                return Err(Error::Input(format!("tap `{tap}` is asked for twice")));
            }
        }
        Ok(chosen)
    }
}

impl From<BackboneFile> for Backbone {
    fn from(file: BackboneFile) -> Backbone {
        Backbone { rule: Arc::new(file.card().preprocess.clone()), file: Arc::new(file) }
    }
}

/// Dimensions of one image's features.
pub(crate) fn dims(shape: Shape) -> Vec<usize> {
    match shape {
        Shape::Map { channels, height, width } => vec![channels, height, width],
        Shape::Vector(n) => vec![n],
    }
}

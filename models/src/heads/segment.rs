//! The class of each pixel: decoders from the backbone's maps back to the size of the image.

use serde::{Deserialize, Serialize};

use super::build::{Builder, Value};
use super::{MASK_CLASSES, within};
use crate::init::Draw;
use crate::{Interpolation, Result};

/// A decoder and the number of classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Segment {
    /// Number of classes; the background is one.
    pub classes: usize,
    /// How maps come back to the size of the image.
    pub decoder: Decoder,
    /// Channels of the decoder: of every level of an FPN; of a U-Net's finest, twice as many a level below.
    pub width: usize,
}

/// A decoder for segmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decoder {
    /// Feature pyramid (arXiv:1612.03144) over `c2`…`c5`, each level smoothed and brought to the size of `c2`, then summed as in
    /// panoptic FPN (arXiv:1901.02446).
    #[default]
    Fpn,
    /// U-Net (arXiv:1505.04597) with the backbone as its encoder: up, joined with `c4`…`c1`, two convolutions a level.
    Unet,
}

impl Decoder {
    fn usual_width(self) -> usize {
        match self {
            Decoder::Fpn => 128,
            Decoder::Unet => 32,
        }
    }
}

/// What may be left out in a description.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    classes: usize,
    #[serde(default)]
    decoder: Decoder,
    width: Option<usize>,
}

impl From<Written> for Segment {
    fn from(written: Written) -> Segment {
        let usual = Segment::new(written.decoder, written.classes);
        Segment { width: written.width.unwrap_or(usual.width), ..usual }
    }
}

impl Segment {
    /// A decoder of the usual width: 128 for an FPN, 32 for a U-Net.
    pub fn new(decoder: Decoder, classes: usize) -> Segment {
        Segment { classes, decoder, width: decoder.usual_width() }
    }

    pub(super) fn validate(&self) -> Result<()> {
        within("classes (with the background)", self.classes, 2..=MASK_CLASSES)?;
        within("width", self.width, 1..=4096)
    }

    pub(super) fn append(&self, b: &mut Builder) -> Result<()> {
        let x = match self.decoder {
            Decoder::Fpn => self.fpn(b)?,
            Decoder::Unet => self.unet(b)?,
        };
        // Scores are brought to the image's size after the classifier: the same sum, on fewer pixels.
        let scores = b.conv("head.classifier", x, self.classes, 1, true);
        let logits = b.resize_to_image("head.resize", scores);
        b.name_tap("logits", logits);
        Ok(())
    }

    fn fpn(&self, b: &mut Builder) -> Result<Value> {
        let finest = b.level(2)?.node;
        let mut sum: Option<Value> = None;
        for (level, value) in pyramid(b, 2, self.width)? {
            let smooth = b.block(&format!("head.smooth{level}"), value, self.width);
            let smooth = b.resize(&format!("head.gather{level}"), smooth, finest, Interpolation::Bilinear);
            sum = Some(match sum {
                Some(other) => b.add(&format!("head.sum{level}"), other, smooth),
                None => smooth,
            });
        }
        Ok(sum.expect("a pyramid has levels"))
    }

    fn unet(&self, b: &mut Builder) -> Result<Value> {
        let mut x = b.level(5)?;
        for level in (1..=4).rev() {
            let skip = b.level(level)?;
            let width = self.width << (level - 1);
            let up = b.resize(&format!("head.up{level}"), x, skip.node, Interpolation::Nearest);
            let both = b.concat(&format!("head.join{level}"), &[up, skip]);
            let first = b.block(&format!("head.level{level}.0"), both, width);
            x = b.block(&format!("head.level{level}.1"), first, width);
        }
        Ok(x)
    }
}

/// The top-down path of a feature pyramid from `c5` to `c{finest}`, coarsest first, before any smoothing.
pub(super) fn pyramid(b: &mut Builder, finest: usize, width: usize) -> Result<Vec<(usize, Value)>> {
    let mut levels: Vec<(usize, Value)> = Vec::new();
    for level in (finest..=5).rev() {
        let map = b.level(level)?;
        let lateral = b.conv(&format!("head.lateral{level}"), map, width, 1, true);
        let value = match levels.last() {
            None => lateral,
            Some((_, coarser)) => {
                let up = b.resize(&format!("head.up{level}"), *coarser, lateral.node, Interpolation::Nearest);
                b.add(&format!("head.merge{level}"), lateral, up)
            }
        };
        levels.push((level, value));
    }
    Ok(levels)
}

/// Laterals and the classifier as the FPN's authors start laterals (Caffe2's Xavier: uniform, variance 1 / fan_in), biases 0; the
/// convolutions between as everywhere (arXiv:1502.01852). From small weights (0.01) a classifier over the few channels of
/// a U-Net takes AdamW hundreds of steps until the first pixel is foreground; PyTorch with the same start does the same.
pub(super) fn rule(name: &str) -> Option<Draw> {
    match name {
        "head.classifier.weight" => Some(Draw::Xavier),
        _ if name.ends_with(".bias") && !name.ends_with(".norm.bias") => Some(Draw::Constant(0.0)),
        _ if name.starts_with("head.lateral") => Some(Draw::Xavier),
        _ => None,
    }
}

//! Classes of a whole image: a linear layer or an MLP on the pooled features.

use serde::{Deserialize, Serialize};

use super::build::Builder;
use super::within;
use crate::Result;
use crate::init::Draw;

/// Widest layer, and most classes.
const MOST: usize = 65536;

/// Linear layers on `pooled`; with hidden ones an MLP: Linear, batch normalisation, ReLU for each, then Linear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classify {
    /// Number of classes.
    pub classes: usize,
    /// Widths of the hidden layers; none makes a linear classifier.
    #[serde(default)]
    pub hidden: Vec<usize>,
    /// Whether hidden layers are batch normalised.
    #[serde(default = "yes")]
    pub batch_norm: bool,
    /// Whether classes do not exclude each other: a sigmoid for each instead of one softmax.
    #[serde(default)]
    pub multi_label: bool,
}

fn yes() -> bool {
    true
}

impl Classify {
    /// One layer, classes that exclude each other.
    pub fn linear(classes: usize) -> Classify {
        Classify { classes, hidden: Vec::new(), batch_norm: true, multi_label: false }
    }

    pub(super) fn validate(&self) -> Result<()> {
        // A single class that excludes all others is always right.
        within("classes", self.classes, if self.multi_label { 1 } else { 2 }..=MOST)?;
        within("the number of hidden layers", self.hidden.len(), 0..=8)?;
        self.hidden.iter().try_for_each(|width| within("the width of a hidden layer", *width, 1..=MOST))
    }

    pub(super) fn append(&self, b: &mut Builder) -> Result<()> {
        let mut x = b.tap("pooled")?;
        for (i, width) in self.hidden.iter().enumerate() {
            x = b.linear(&format!("head.hidden{i}"), x, *width, !self.batch_norm);
            if self.batch_norm {
                x = b.batch_norm(&format!("head.norm{i}"), x);
            }
            x = b.relu(&format!("head.relu{i}"), x);
        }
        let logits = b.linear("head.classifier", x, self.classes, true);
        b.name_tap("logits", logits);
        Ok(())
    }
}

/// As `main_lincls.py` of MoCo starts its classifier; hidden layers as `torch.nn.Linear`.
pub(super) fn rule(name: &str) -> Option<Draw> {
    match name {
        "head.classifier.weight" => Some(Draw::Normal { std: 0.01 }),
        "head.classifier.bias" => Some(Draw::Constant(0.0)),
        _ => None,
    }
}

//! Images of more than 8 bits and volumes, for commands that read a backbone's card.

use anyhow::{Result, bail};
use moco_image::{Axis, PreprocessRule, ValueRange};

/// How images are read that are not what the card's rule says.
#[derive(clap::Args)]
pub struct DepthArgs {
    /// Which values of images of another depth than the card's become black and white: full, file, window:-160,240,
    /// center:40,width:400, min-max or percentile:1,99; without it such images are refused
    #[arg(long, value_name = "RANGE")]
    values: Option<ValueRange>,

    /// Axis along which volumes are cut into images: x, y or z
    #[arg(long, default_value = "z")]
    axis: String,
}

impl DepthArgs {
    /// The card's rule, and what the options add.
    pub fn rule(&self, card: &PreprocessRule) -> PreprocessRule {
        PreprocessRule { other_depths: self.values.or(card.other_depths), ..card.clone() }
    }

    /// The axis.
    pub fn axis(&self) -> Result<Axis> {
        Ok(match self.axis.as_str() {
            "x" => Axis::X,
            "y" => Axis::Y,
            "z" => Axis::Z,
            other => bail!("--axis {other}: expected x, y or z"),
        })
    }
}

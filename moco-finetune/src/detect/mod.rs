//! Detection without anchors, FCOS (arXiv:1904.01355): which cell of which map answers for which object, and what the maps
//! say about an image.
//!
//! Each level holds three maps over one grid of cells. The cell in row i and column j stands at
//! ((j + ½)·stride, (i + ½)·stride) in pixels of the network's input and says, for a box around that point, the class (one
//! logit each), the distances to the left, upper, right and lower edge, and how near the point is to the middle of the box.
//! A distance is eˣ strides, where x is what the map holds: the scale of the level is in the stride, so that no scale is
//! learned, and unlike the ReLU of later versions of FCOS it has a gradient everywhere.

mod assign;
mod decode;
mod nms;

pub use assign::{AssignOptions, Cell, Targets, assign};
pub use decode::{DecodeOptions, decode};
pub use nms::{nms, nms_by_class};

use crate::{Error, Result};

/// Above, x of a distance eˣ is cut: e¹⁰ strides are larger than any image, and the exponential must stay finite.
pub(crate) const LARGEST_LOG_DISTANCE: f32 = 10.0;

/// The grid of one level of the pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Pixels of the network's input from cell to cell.
    pub stride: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Level {
    /// The grids over an input of `size` [height, width]: each side is divided by the stride and rounded up, as padded
    /// convolutions do.
    pub fn over(size: [usize; 2], strides: &[usize]) -> Vec<Level> {
        let level = |stride: usize| Level {
            stride,
            height: size[0].div_ceil(stride.max(1)),
            width: size[1].div_ceil(stride.max(1)),
        };
        strides.iter().map(|stride| level(*stride)).collect()
    }

    /// Cells of one image.
    pub fn cells(&self) -> usize {
        self.height * self.width
    }

    /// Where a cell stands in the network's input, (x, y) in pixels.
    pub fn location(&self, row: usize, column: usize) -> (f32, f32) {
        ((column as f32 + 0.5) * self.stride as f32, (row as f32 + 0.5) * self.stride as f32)
    }
}

/// What the network says at one level about a batch of n images: the taps `cls_p…`, `box_p…` and `centre_p…`.
#[derive(Clone, Copy, Debug)]
pub struct LevelMaps<'a> {
    /// Logits of the classes [n, height, width, classes].
    pub class: &'a [f32],
    /// Logarithms of the distances in strides [n, height, width, 4]: left, up, right, down.
    pub boxes: &'a [f32],
    /// Logit of the centre-ness [n, height, width, 1].
    pub centre: &'a [f32],
}

/// Levels must go from fine to coarse.
fn check_levels(levels: &[Level]) -> Result<()> {
    let strides: Vec<usize> = levels.iter().map(|level| level.stride).collect();
    if strides.is_empty() || strides[0] == 0 || strides.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(Error::Invalid(format!(
            "levels of strides {strides:?}: at least one is expected, from fine to coarse, each stride above 0 and once"
        )));
    }
    Ok(())
}

/// All maps must have the size of their level.
pub(crate) fn check_maps(maps: &[LevelMaps], levels: &[Level], images: usize, classes: usize) -> Result<()> {
    if maps.len() != levels.len() {
        return Err(Error::Invalid(format!("maps of {} levels were given for {} levels", maps.len(), levels.len())));
    }
    for (map, level) in maps.iter().zip(levels) {
        let parts = [("class", map.class, classes), ("box", map.boxes, 4), ("centre", map.centre, 1)];
        for (name, values, channels) in parts {
            let expected = images * level.cells() * channels;
            if values.len() != expected {
                return Err(Error::Invalid(format!(
                    "the {name} map of stride {}: expected [{images}, {}, {}, {channels}], {expected} values, got {}",
                    level.stride,
                    level.height,
                    level.width,
                    values.len()
                )));
            }
        }
    }
    Ok(())
}

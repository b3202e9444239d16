//! The numbers of steps.

use moco_models::Interpolation;

use super::BnGroups;

/// Places of a layer's tensors in the flat parameter buffer.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// First value of the weight.
    pub weight: usize,
    /// First value of the bias.
    pub bias: Option<usize>,
}

/// Places of a normalisation's tensors: the first two in the parameters, the others in the buffers; a group normalisation
/// has no others, and nothing reads them.
#[derive(Clone, Copy, Debug)]
pub struct NormOffsets {
    /// Scale, in the parameters.
    pub weight: usize,
    /// Shift, in the parameters.
    pub bias: usize,
    /// In the buffers.
    pub running_mean: usize,
    /// In the buffers.
    pub running_var: usize,
}

/// Feature maps of one size.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// Images.
    pub n: usize,
    /// Pixels of a map; 1 for vectors.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
}

impl MapShape {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.n * self.sample_len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values of one image.
    pub fn sample_len(&self) -> usize {
        self.pixels * self.channels
    }
}

/// A normalisation: of a batch or of images.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// What it normalises.
    pub map: MapShape,
    /// Which samples share statistics.
    pub groups: BnGroups,
    /// What they are taken from.
    pub statistics: Statistics,
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the new statistics in the running ones.
    pub momentum: f32,
}

/// Where a normalisation has its mean and variance from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch, per group of samples; the running ones move.
    Batch,
    /// The running ones, which are constants: the normalisation is an affine map.
    Running,
    /// From each image, per group of channels (arXiv:1803.08494). [`NormShape::groups`] makes a group of every image.
    Image {
        /// Equal groups of neighbouring channels.
        groups: usize,
    },
}

/// A max pooling.
#[derive(Clone, Copy, Debug)]
pub struct PoolShape {
    /// Images.
    pub n: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Side of the window; at most 15, so that a position fits a byte.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Padding on all four sides.
    pub padding: usize,
}

/// A linear layer.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Rows.
    pub n: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
}

/// Maps brought to another height and width.
#[derive(Clone, Copy, Debug)]
pub struct ResizeShape {
    /// Images.
    pub n: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// How values between pixels are made.
    pub interpolation: Interpolation,
}

/// Some of the channels of a map.
#[derive(Clone, Copy, Debug)]
pub struct SliceShape {
    /// Pixels of all images.
    pub rows: usize,
    /// Channels of the slice.
    pub channels: usize,
    /// The first of them in the map.
    pub first: usize,
    /// Channels of the map.
    pub of: usize,
}

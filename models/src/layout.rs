//! Parameters as the checkpoint names them, and their places in one flat buffer.

use std::ops::Range;

/// What a parameter is: decides its initialisation and whether an optimiser moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Convolution weight `[out, in / groups, kh, kw]`.
    ConvWeight,
    /// Linear weight `[out, in]`.
    LinearWeight,
    /// Bias of a convolution or linear layer.
    Bias {
        /// Inputs that feed one output: PyTorch draws the bias from ±1/√fan_in.
        fan_in: usize,
    },
    /// Scale of a normalisation.
    NormWeight,
    /// Shift of a normalisation.
    NormBias,
    /// Running mean (a buffer).
    RunningMean,
    /// Running variance (a buffer).
    RunningVar,
}

impl ParamKind {
    /// False for buffers.
    pub fn is_trainable(self) -> bool {
        !matches!(self, ParamKind::RunningMean | ParamKind::RunningVar)
    }
}

/// One parameter or buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name in the state dict, e.g. `layer1.0.conv1.weight`.
    pub name: String,
    /// Shape in PyTorch's order.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
}

impl ParamSpec {
    /// Number of values.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Places of parameters in one flat f32 buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    specs: Vec<ParamSpec>,
    offsets: Vec<usize>,
    len: usize,
}

impl FlatLayout {
    /// One after the other, without gaps.
    pub fn new(specs: Vec<ParamSpec>) -> FlatLayout {
        let mut len = 0;
        let mut offsets = Vec::with_capacity(specs.len());
        for spec in &specs {
            offsets.push(len);
            len += spec.numel();
        }
        FlatLayout { specs, offsets, len }
    }

    /// Total number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every parameter with its place.
    pub fn iter(&self) -> impl Iterator<Item = (&ParamSpec, Range<usize>)> {
        self.specs.iter().zip(&self.offsets).map(|(s, &o)| (s, o..o + s.numel()))
    }

    /// Place of a parameter by name.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        self.iter().find(|(s, _)| s.name == name).map(|(_, r)| r)
    }
}

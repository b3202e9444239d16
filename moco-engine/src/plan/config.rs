//! What a plan is compiled for.

use crate::kernels::BnGroups;

/// How batch normalisation behaves and what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics; nothing is kept for a backward pass. For feature extraction.
    Eval,
    /// Batch statistics, running statistics updated, nothing kept for a backward pass. For the momentum encoder.
    Momentum,
    /// Batch statistics, running statistics updated, everything kept that [`Plan::backward`](crate::Plan::backward)
    /// needs. For the encoder that learns.
    Train,
}

/// What a plan in [`Mode::Train`] computes a second time instead of keeping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing: the fastest.
    #[default]
    Nothing,
    /// Everything inside the blocks of the network: of each block only the result is kept, and the rest is computed
    /// again right before its gradients. Costs one more forward pass of the convolutions and changes no bit of any
    /// result.
    Blocks,
}

/// Sizes and options of a [`Plan`](crate::Plan).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Largest number of images in one pass; a pass may bring fewer.
    pub batch: usize,
    /// Height of the images in pixels.
    pub height: usize,
    /// Width of the images in pixels.
    pub width: usize,
    /// What the plan is for.
    pub mode: Mode,
    /// Which samples share batch statistics; unused in [`Mode::Eval`].
    pub bn_groups: BnGroups,
    /// Taps that can be read (and, in [`Mode::Train`], can receive gradients); empty = every tap of the graph. Each tap
    /// that is kept occupies memory until the next forward pass, so name only what is used.
    pub taps: Vec<String>,
    /// What is computed twice to save memory; unused outside of [`Mode::Train`].
    pub recompute: Recompute,
    /// Nodes whose parameters are not trained: each entry is a node's name, or the part of names before a dot (`layer1`
    /// for all of `layer1.…`). Their gradients stay 0 and are not computed, and a backward pass ends where nothing that is
    /// trained lies below. A node tied to another follows that. Unused outside of [`Mode::Train`].
    pub frozen: Vec<String>,
    /// Nodes, named alike, whose batch normalisations (if any) use the running statistics in every mode, and leave them as
    /// they are. Their weights and biases are trained unless [`PlanConfig::frozen`] names them as well.
    pub running_norms: Vec<String>,
    /// Taps of the graph that are given instead of images, in this order: nothing below them is computed, kept or trained.
    /// Every kept tap must follow from them. For heads on features that a frozen backbone has computed once.
    pub given: Vec<String>,
}

impl PlanConfig {
    /// A plan with one group of statistics and every tap of the graph.
    pub fn new(batch: usize, height: usize, width: usize, mode: Mode) -> PlanConfig {
        PlanConfig {
            batch,
            height,
            width,
            mode,
            bn_groups: BnGroups::Whole,
            taps: vec![],
            recompute: Recompute::Nothing,
            frozen: vec![],
            running_norms: vec![],
            given: vec![],
        }
    }

    /// The same with only these taps.
    pub fn with_taps(mut self, taps: &[&str]) -> PlanConfig {
        self.taps = taps.iter().map(|t| t.to_string()).collect();
        self
    }

    /// The same, computing this again instead of keeping it.
    pub fn with_recompute(mut self, recompute: Recompute) -> PlanConfig {
        self.recompute = recompute;
        self
    }

    /// The same without training these nodes, see [`PlanConfig::frozen`].
    pub fn with_frozen(mut self, nodes: Vec<String>) -> PlanConfig {
        self.frozen = nodes;
        self
    }

    /// The same with running statistics in these nodes, see [`PlanConfig::running_norms`].
    pub fn with_running_norms(mut self, nodes: Vec<String>) -> PlanConfig {
        self.running_norms = nodes;
        self
    }

    /// The same with these taps given, see [`PlanConfig::given`].
    pub fn with_given(mut self, taps: &[&str]) -> PlanConfig {
        self.given = taps.iter().map(|t| t.to_string()).collect();
        self
    }

    /// The same with these groups of batch statistics.
    pub fn with_bn_groups(mut self, groups: BnGroups) -> PlanConfig {
        self.bn_groups = groups;
        self
    }
}

/// Bytes a plan allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Feature maps and their gradients.
    pub activations: usize,
    /// Statistics, pooling indices, packed weights and other scratch.
    pub workspace: usize,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> usize {
        self.activations + self.workspace
    }
}

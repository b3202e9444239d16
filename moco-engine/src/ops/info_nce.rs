//! InfoNCE of MoCo over one positive and the keys of a queue.

use crate::{Error, Result};

/// Inputs of [`info_nce`].
#[derive(Clone, Copy, Debug)]
pub struct InfoNceInputs<'a> {
    /// [n, dim], rows of unit length.
    pub query: &'a [f32],
    /// [n, dim], rows of unit length: the positive of each query. Gets no gradient.
    pub key: &'a [f32],
    /// [K, dim], one key a row, rows of unit length: the negatives. Gets no gradient.
    pub queue: &'a [f32],
    /// Dimension of the embedding.
    pub dim: usize,
    /// Divides the similarities: 0.07 in v1, 0.2 in v2.
    pub temperature: f32,
    /// Leaves out negatives that are another view of the query's own image.
    pub same_image: Option<SameImage<'a>>,
}

/// Which image every embedding comes from; a key of the queue is no negative for a query of the same image.
#[derive(Clone, Copy, Debug)]
pub struct SameImage<'a> {
    /// [n] image of each query.
    pub query: &'a [u64],
    /// [K] image of each key of the queue; [`SameImage::NONE`] where the key comes from no image.
    pub queue: &'a [u64],
}

impl SameImage<'_> {
    /// The image of a key that comes from none, e.g. of the random keys a queue starts with.
    pub const NONE: u64 = u64::MAX;
}

/// Result of [`info_nce`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InfoNce {
    /// Mean over the batch, in nats.
    pub loss: f64,
    /// Queries whose positive is at least as similar as every negative (what `argmax` over the K + 1 logits gives, where
    /// the first of equal values wins; `topk` leaves ties open).
    pub correct: usize,
    /// Mean of q · k over the positives.
    pub positive_similarity: f64,
    /// Mean of q · k over the negatives that count.
    pub negative_similarity: f64,
}

/// Scratch of [`info_nce`], kept between calls so that a warm call does not allocate.
#[derive(Debug, Default)]
pub struct InfoNceWorkspace {}

/// InfoNCE of MoCo (arXiv:1911.05722, eq. 1): cross entropy of `[q·k₊, q·k₁ … q·k_K] / temperature` with label 0,
/// averaged over the batch, and its gradient with respect to `query`.
/// - `d_query` [n, dim]: overwritten.
///
/// # Errors
/// [`Error::Length`] where lengths do not fit, [`Error::Config`] for an empty batch, `dim` 0 or a temperature that is not
/// above 0.
pub fn info_nce(inputs: &InfoNceInputs<'_>, d_query: &mut [f32], workspace: &mut InfoNceWorkspace) -> Result<InfoNce> {
    let _ = (inputs, d_query, workspace);
    Err(Error::State("InfoNCE is not written yet".into()))
}

/// The first `out.len()` logits of one query, as the reference orders them: the positive, then the queue from its
/// first key, all divided by the temperature. Keys of the same image are −∞.
///
/// # Errors
/// [`Error::Config`] if there is no such row or there are not that many logits; as [`info_nce`] otherwise.
pub fn info_nce_logits(inputs: &InfoNceInputs<'_>, row: usize, out: &mut [f32]) -> Result<()> {
    let _ = (inputs, row, out);
    Err(Error::State("InfoNCE is not written yet".into()))
}

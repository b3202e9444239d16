//! InfoNCE of MoCo over one positive and the keys of a queue.
//!
//! The queue is read once, tile by tile: similarities of a tile, a running maximum and sum of exponentials per query
//! (the streaming softmax of arXiv:1805.02867), and the tile's part of the gradient, so that no [n, K] matrix is ever
//! written out. Stripes of tiles run in parallel and are merged in order.

use rayon::prelude::*;

use crate::kernels::gemm::{Gemm, gemm_serial};
use crate::kernels::simd::multiversion;
use crate::{Error, Result};

/// Keys whose similarities are computed at a time: with 128 dimensions a tile of the queue and one of similarities to a
/// few hundred queries stay in a core's L2 cache.
const TILE: usize = 512;
/// At most this many stripes: enough for any CPU, few enough that merging costs nothing.
const STRIPES: usize = 64;

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

    fn masks(&self, row: usize, key: usize) -> bool {
        self.query[row] == self.queue[key] && self.query[row] != SameImage::NONE
    }
}

/// Result of [`info_nce`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InfoNce {
    /// Mean over the batch, in nats.
    pub loss: f64,
    /// Queries whose positive is at least as similar as every negative (what `argmax` over the K + 1 logits gives, where
    /// the first of equal values wins; `topk` leaves ties open). A query with a similarity that is NaN is not correct.
    pub correct: usize,
    /// Mean of q · k over the positives.
    pub positive_similarity: f64,
    /// Mean of q · k over the negatives that count; 0 if there are none.
    pub negative_similarity: f64,
}

/// Scratch of [`info_nce`], kept between calls so that a warm call does not allocate.
#[derive(Debug, Default)]
pub struct InfoNceWorkspace {
    stripes: Vec<Stripe>,
}

/// What one stripe of the queue gives for every query.
#[derive(Debug, Default)]
struct Stripe {
    /// [TILE, n] logits of a tile, then their exponentials.
    tile: Vec<f32>,
    /// [n] largest logit so far.
    max: Vec<f32>,
    /// [n] Σ exp(logit − max).
    sum: Vec<f64>,
    /// [n, dim] Σ exp(logit − max) · key.
    keys: Vec<f32>,
    /// [n] factor of the step from one maximum to the next.
    rescale: Vec<f32>,
    /// [n] Σ of the logits that count.
    total: Vec<f64>,
    /// How many logits count, over all queries.
    count: u64,
}

/// InfoNCE of MoCo (arXiv:1911.05722, eq. 1): cross entropy of `[q·k₊, q·k₁ … q·k_K] / temperature` with label 0,
/// averaged over the batch, and its gradient with respect to `query`.
/// - `d_query` [n, dim]: overwritten.
///
/// # Errors
/// [`Error::Length`] where lengths do not fit, [`Error::Config`] for an empty batch, `dim` 0 or a temperature that is not
/// above 0.
pub fn info_nce(inputs: &InfoNceInputs<'_>, d_query: &mut [f32], workspace: &mut InfoNceWorkspace) -> Result<InfoNce> {
    let (n, negatives) = check(inputs)?;
    let dim = inputs.dim;
    Error::check_len("gradient of the queries", n * dim, d_query.len())?;
    let tiles = negatives.div_ceil(TILE);
    let stripes = tiles.clamp(1, STRIPES);
    workspace.stripes.resize_with(stripes.max(workspace.stripes.len()), Stripe::default);
    let stripes = &mut workspace.stripes[..stripes];
    let each = tiles.div_ceil(stripes.len());
    stripes.par_iter_mut().enumerate().for_each(|(s, stripe)| {
        stripe.start(n, dim);
        for tile in s * each..((s + 1) * each).min(tiles) {
            stripe.add(inputs, n, tile * TILE..((tile + 1) * TILE).min(negatives));
        }
    });

    let mut result = InfoNce::default();
    let scale = 1.0 / (f64::from(inputs.temperature) * n as f64);
    for (i, d_query) in d_query.chunks_exact_mut(dim).enumerate() {
        let (query, key) = (&inputs.query[i * dim..][..dim], &inputs.key[i * dim..][..dim]);
        let positive = dot(query, key);
        let logit = positive / f64::from(inputs.temperature);
        let largest = stripes.iter().map(|s| s.max[i]).fold(f32::NEG_INFINITY, f32::max);
        let max = logit.max(f64::from(largest));
        let own = (logit - max).exp();
        let mut sum = own;
        for stripe in stripes.iter() {
            sum += stripe.sum[i] * weight(stripe.max[i], max);
        }
        result.loss += sum.ln() + max - logit;
        result.positive_similarity += positive;
        // Rounded to f32 as the negatives are, so that equal similarities tie.
        result.correct += usize::from(logit as f32 >= largest && sum.is_finite());
        for (j, d) in d_query.iter_mut().enumerate() {
            let mut pull = (own / sum - 1.0) * f64::from(key[j]);
            for stripe in stripes.iter() {
                pull += weight(stripe.max[i], max) / sum * f64::from(stripe.keys[i * dim + j]);
            }
            *d = (pull * scale) as f32;
        }
    }
    result.loss /= n as f64;
    result.positive_similarity /= n as f64;
    let count: u64 = stripes.iter().map(|s| s.count).sum();
    if count > 0 {
        let total: f64 = stripes.iter().flat_map(|s| &s.total).sum();
        result.negative_similarity = total / count as f64 * f64::from(inputs.temperature);
    }
    Ok(result)
}

/// The first `out.len()` logits of one query, as the reference orders them: the positive, then the queue from its
/// first key, all divided by the temperature. Keys of the same image are −∞.
///
/// # Errors
/// [`Error::Config`] if there is no such row or there are not that many logits; as [`info_nce`] otherwise.
pub fn info_nce_logits(inputs: &InfoNceInputs<'_>, row: usize, out: &mut [f32]) -> Result<()> {
    let (n, negatives) = check(inputs)?;
    if row >= n || out.len() > negatives + 1 {
        let len = out.len();
        return Err(Error::Config(format!(
            "{len} logits of query {row} were asked for; there are {n} queries with {} logits each",
            negatives + 1
        )));
    }
    let dim = inputs.dim;
    let query = &inputs.query[row * dim..][..dim];
    let keys = std::iter::once(&inputs.key[row * dim..][..dim]).chain(inputs.queue.chunks_exact(dim));
    for (i, (out, key)) in out.iter_mut().zip(keys).enumerate() {
        let masked = i > 0 && inputs.same_image.is_some_and(|same| same.masks(row, i - 1));
        *out = if masked { f32::NEG_INFINITY } else { (dot(query, key) / f64::from(inputs.temperature)) as f32 };
    }
    Ok(())
}

impl Stripe {
    fn start(&mut self, n: usize, dim: usize) {
        self.tile.resize(TILE * n, 0.0);
        self.max.clear();
        self.max.resize(n, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(n, 0.0);
        self.keys.clear();
        self.keys.resize(n * dim, 0.0);
        self.rescale.resize(n, 1.0);
        self.total.clear();
        self.total.resize(n, 0.0);
        self.count = 0;
    }

    fn add(&mut self, inputs: &InfoNceInputs<'_>, n: usize, keys: std::ops::Range<usize>) {
        let dim = inputs.dim;
        let queue = &inputs.queue[keys.start * dim..keys.end * dim];
        let tile = &mut self.tile[..keys.len() * n];
        // Transposed, [keys, n]: the few queries are the operand that the product packs.
        gemm_serial(Gemm::new(keys.len(), n, dim).b_transposed(), queue, inputs.query, tile);

        self.rescale.copy_from_slice(&self.max);
        let counted = mask(inputs, n, keys, tile);
        self.count += counted;
        scale_and_bound(tile, 1.0 / inputs.temperature, &mut self.max, &mut self.total);
        for i in 0..n {
            self.rescale[i] = weight(self.rescale[i], f64::from(self.max[i])) as f32;
            self.sum[i] *= f64::from(self.rescale[i]);
        }
        for (keys, rescale) in self.keys.chunks_exact_mut(dim).zip(&self.rescale) {
            if *rescale != 1.0 {
                keys.iter_mut().for_each(|v| *v *= rescale);
            }
        }
        exponentials(tile, &self.max, &mut self.sum);
        gemm_serial(Gemm::new(n, dim, tile.len() / n).a_transposed().accumulate(), tile, queue, &mut self.keys);
    }
}

/// Sets the similarities of keys from the query's own image to −∞ and counts the others.
fn mask(inputs: &InfoNceInputs<'_>, n: usize, keys: std::ops::Range<usize>, tile: &mut [f32]) -> u64 {
    let mut counted = tile.len() as u64;
    if let Some(same) = inputs.same_image {
        for (key, similarities) in keys.zip(tile.chunks_exact_mut(n)) {
            for (i, similarity) in similarities.iter_mut().enumerate().filter(|(i, _)| same.masks(*i, key)) {
                debug_assert!(i < n);
                *similarity = f32::NEG_INFINITY;
                counted -= 1;
            }
        }
    }
    counted
}

multiversion! {
    /// Turns rows of similarities to `n` queries into logits; per query the largest so far and the sum of those that
    /// count.
    fn scale_and_bound(tile: &mut [f32], scale: f32, max: &mut [f32], total: &mut [f64]) {
        let n = max.len();
        let total = &mut total[..n];
        for logits in tile.chunks_exact_mut(n) {
            for i in 0..n {
                let logit = logits[i] * scale;
                logits[i] = logit;
                // A NaN is no maximum; it makes the sum of exponentials NaN.
                max[i] = if logit > max[i] { logit } else { max[i] };
                total[i] += f64::from(if logit == f32::NEG_INFINITY { 0.0 } else { logit });
            }
        }
    }
}

multiversion! {
    /// Turns rows of logits into exp(logit − max) and adds them up per query; −∞ becomes 0.
    fn exponentials(tile: &mut [f32], max: &[f32], sum: &mut [f64]) {
        let n = max.len();
        let sum = &mut sum[..n];
        for logits in tile.chunks_exact_mut(n) {
            for i in 0..n {
                let logit = logits[i];
                let value = if logit == f32::NEG_INFINITY { 0.0 } else { exp(logit - max[i]) };
                logits[i] = value;
                sum[i] += f64::from(value);
            }
        }
    }
}

/// exp(x) for x ≤ 0 in a form that compilers vectorise: 2ⁿ · exp(r) with |r| ≤ ln 2 / 2 and the polynomial of Cephes'
/// `expf`, within 2 units in the last place. Below −87, where f32 has no normal number left: 0.
/// NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the rounded integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { value }
}

/// exp(from − to), where no key at all (−∞) weighs nothing.
fn weight(from: f32, to: f64) -> f64 {
    if from == f32::NEG_INFINITY { 0.0 } else { (f64::from(from) - to).exp() }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn check(inputs: &InfoNceInputs<'_>) -> Result<(usize, usize)> {
    let lens = [inputs.query.len(), inputs.key.len(), inputs.queue.len()];
    check_contrast(lens, inputs.dim, inputs.temperature, inputs.same_image.as_ref())
}

/// Numbers of queries and of negatives, from the lengths of queries, keys and queue.
pub(crate) fn check_contrast(
    [query, key, queue]: [usize; 3],
    dim: usize,
    temperature: f32,
    same_image: Option<&SameImage<'_>>,
) -> Result<(usize, usize)> {
    if dim == 0 || query == 0 {
        return Err(Error::Config(format!("InfoNCE needs queries; got {query} values in rows of {dim}")));
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Config(format!("the temperature of InfoNCE is {temperature}; it must be above 0")));
    }
    let (n, negatives) = (query / dim, queue / dim);
    Error::check_len("queries", n * dim, query)?;
    Error::check_len("keys", n * dim, key)?;
    Error::check_len("queue", negatives * dim, queue)?;
    if let Some(same) = same_image {
        Error::check_len("images of the queries", n, same.query.len())?;
        Error::check_len("images of the queue", negatives, same.queue.len())?;
    }
    Ok((n, negatives))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::l2_normalise;

    fn unit_rows(seed: u64, n: usize, dim: usize) -> Vec<f32> {
        let mut state = seed;
        let raw: Vec<f32> = (0..n * dim)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        let mut rows = vec![0.0; n * dim];
        l2_normalise(&raw, dim, &mut rows);
        rows
    }

    /// The formula as it stands in the paper, in f64: loss, correct, gradient, mean negative similarity.
    fn reference(inputs: &InfoNceInputs<'_>) -> (f64, usize, Vec<f64>, f64) {
        let dim = inputs.dim;
        let n = inputs.query.len() / dim;
        let (mut loss, mut correct, mut gradient) = (0.0, 0, vec![]);
        let (mut total, mut count) = (0.0, 0);
        for i in 0..n {
            let query = &inputs.query[i * dim..][..dim];
            let mut keys = vec![&inputs.key[i * dim..][..dim]];
            for (k, key) in inputs.queue.chunks(dim).enumerate() {
                if inputs.same_image.is_none_or(|s| s.query[i] != s.queue[k] || s.queue[k] == SameImage::NONE) {
                    keys.push(key);
                    total += dot(query, key);
                    count += 1;
                }
            }
            let logits: Vec<f64> = keys.iter().map(|k| dot(query, k) / f64::from(inputs.temperature)).collect();
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            loss += sum.ln() - logits[0];
            correct += usize::from(logits.iter().all(|l| *l <= logits[0]));
            for j in 0..dim {
                let pull: f64 = logits.iter().zip(&keys).map(|(l, k)| l.exp() / sum * f64::from(k[j])).sum();
                let d = (pull - f64::from(keys[0][j])) / f64::from(inputs.temperature) / n as f64;
                gradient.push(d);
            }
        }
        (loss / n as f64, correct, gradient, if count > 0 { total / f64::from(count) } else { 0.0 })
    }

    fn assert_is_reference(inputs: &InfoNceInputs<'_>) {
        let n = inputs.query.len() / inputs.dim;
        let mut gradient = vec![f32::NAN; inputs.query.len()];
        let got = info_nce(inputs, &mut gradient, &mut InfoNceWorkspace::default()).unwrap();
        let (loss, correct, expected, negative) = reference(inputs);
        assert!((got.loss - loss).abs() < 1e-5 * loss.max(1.0), "{} {loss}", got.loss);
        assert_eq!(got.correct, correct);
        assert!((got.negative_similarity - negative).abs() < 1e-6, "{} {negative}", got.negative_similarity);
        let error: f64 = gradient.iter().zip(&expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
        let size: f64 = expected.iter().map(|e| e * e).sum();
        assert!(error.sqrt() <= 1e-5 * size.sqrt() + 1e-9, "{} of {}, n {n}", error.sqrt(), size.sqrt());
    }

    #[test]
    fn loss_and_gradient_match_the_formula_for_awkward_sizes() {
        for (n, negatives, dim, temperature) in [
            (1, 1, 1, 0.2),
            (3, 7, 5, 0.07),
            (16, 513, 128, 0.2),
            (5, 40_000, 32, 0.07),
            (33, 1500, 17, 0.5),
            (2, 0, 3, 0.2),
        ] {
            let (query, key) = (unit_rows(1, n, dim), unit_rows(2, n, dim));
            let queue = unit_rows(3, negatives, dim);
            let (query, key, queue) = (&query[..], &key[..], &queue[..]);
            assert_is_reference(&InfoNceInputs { query, key, queue, dim, temperature, same_image: None });
        }
    }

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - expected).abs() <= 2.0 * f64::from(f32::EPSILON) * expected, "{x}: {got} {expected}");
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn keys_of_the_same_image_are_no_negatives() {
        let (n, negatives, dim) = (4, 1000, 16);
        let (query, key, queue) = (unit_rows(1, n, dim), unit_rows(2, n, dim), unit_rows(3, negatives, dim));
        let images: Vec<u64> =
            (0..negatives as u64).map(|k| if k % 9 == 8 { SameImage::NONE } else { k % 5 }).collect();
        let same_image = Some(SameImage { query: &[0, 3, 77, SameImage::NONE], queue: &images });
        let inputs = InfoNceInputs { query: &query, key: &key, queue: &queue, dim, temperature: 0.1, same_image };
        assert_is_reference(&inputs);
        let mut logits = [0.0; 6];
        info_nce_logits(&inputs, 0, &mut logits).unwrap();
        let hidden: Vec<bool> = logits.iter().map(|l| *l == f32::NEG_INFINITY).collect();
        assert_eq!(hidden, [false, true, false, false, false, false]);
        // A query all of whose negatives are masked has nothing to lose.
        let all = vec![7; negatives];
        let same_image = Some(SameImage { query: &[7; 4], queue: &all });
        assert_is_reference(&InfoNceInputs { same_image, ..inputs });
    }

    #[test]
    fn identical_embeddings_give_loss_ln_k_plus_1() {
        let row = unit_rows(1, 1, 8);
        let many = |n: usize| row.repeat(n);
        let (query, key, queue) = (many(3), many(3), many(999));
        let inputs =
            InfoNceInputs { query: &query, key: &key, queue: &queue, dim: 8, temperature: 0.2, same_image: None };
        let got = info_nce(&inputs, &mut [0.0; 24], &mut InfoNceWorkspace::default()).unwrap();
        assert!((got.loss - 1000f64.ln()).abs() < 1e-5, "{}", got.loss);
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (query, key, queue) = (unit_rows(1, 16, 64), unit_rows(2, 16, 64), unit_rows(3, 20_000, 64));
        let inputs =
            InfoNceInputs { query: &query, key: &key, queue: &queue, dim: 64, temperature: 0.2, same_image: None };
        let run = || {
            let mut gradient = vec![0.0; 16 * 64];
            (info_nce(&inputs, &mut gradient, &mut InfoNceWorkspace::default()).unwrap(), gradient)
        };
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool(1).install(run), pool(5).install(run));
    }

    #[test]
    fn nan_is_not_hidden_and_bad_sizes_are_refused() {
        let (mut query, key, queue) = (unit_rows(1, 2, 4), unit_rows(2, 2, 4), unit_rows(3, 600, 4));
        query[5] = f32::NAN;
        let inputs =
            InfoNceInputs { query: &query, key: &key, queue: &queue, dim: 4, temperature: 0.2, same_image: None };
        let mut workspace = InfoNceWorkspace::default();
        let got = info_nce(&inputs, &mut [0.0; 8], &mut workspace).unwrap();
        assert!(got.loss.is_nan() && got.correct <= 1, "{got:?}");
        for bad in [
            InfoNceInputs { temperature: 0.0, ..inputs },
            InfoNceInputs { key: &key[1..], ..inputs },
            InfoNceInputs { queue: &queue[1..], ..inputs },
            InfoNceInputs { query: &[], key: &[], ..inputs },
            InfoNceInputs { same_image: Some(SameImage { query: &[1, 2], queue: &[1] }), ..inputs },
        ] {
            assert!(info_nce(&bad, &mut [0.0; 8], &mut workspace).is_err(), "{bad:?}");
        }
        assert!(info_nce_logits(&inputs, 2, &mut [0.0]).is_err());
        assert!(info_nce_logits(&inputs, 0, &mut [0.0; 602]).is_err());
    }
}

//! Weighted k-nearest-neighbour classification, as MoCo's CIFAR-10 demo measures it (after arXiv:1805.01978, §3.4).

use moco_engine::ops;
use rayon::prelude::*;

use super::FeatureSet;
use crate::{Error, Result};

/// Outcome of a kNN classification.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnReport {
    /// Top-1 accuracy, 0 to 1.
    pub accuracy: f64,
    /// Neighbours that voted: what was asked for, or the whole bank if it is smaller.
    pub k: usize,
    /// Query images.
    pub queries: usize,
    /// Predicted class of each query.
    pub predicted: Vec<usize>,
}

/// Classifies each query by its `k` most similar (cosine) rows of `bank`, which vote with weight
/// exp(similarity / `temperature`). The demo takes k = 200 and temperature = 0.1.
///
/// # Errors
/// [`Error::Invalid`] if a set has no labels, dimensions differ, or `k` or `temperature` is not above 0.
pub fn knn(bank: &FeatureSet, queries: &FeatureSet, k: usize, temperature: f64) -> Result<KnnReport> {
    classify(bank, queries, k, temperature, false)
}

/// As [`knn`] within one set: the bank of each image is all the others.
///
/// # Errors
/// As [`knn`]; [`Error::Invalid`] for fewer than 2 images.
pub fn knn_leave_one_out(set: &FeatureSet, k: usize, temperature: f64) -> Result<KnnReport> {
    if set.len() < 2 {
        return Err(Error::Invalid("leaving one out needs at least 2 images".into()));
    }
    classify(set, set, k, temperature, true)
}

fn classify(bank: &FeatureSet, queries: &FeatureSet, k: usize, temperature: f64, leave_out: bool) -> Result<KnnReport> {
    let dim = bank.dim;
    let refuse = |reason: String| Err(Error::Invalid(reason));
    if dim != queries.dim {
        return refuse(format!("the bank has {dim} features an image, the queries {}", queries.dim));
    }
    if bank.labels.len() != bank.len() || queries.labels.len() != queries.len() || bank.is_empty() || queries.is_empty()
    {
        return refuse("kNN accuracy needs images with labels: one folder a class, or CIFAR or IDX files".into());
    }
    if k == 0 || !(temperature > 0.0 && temperature.is_finite()) {
        return refuse(format!("kNN needs k ≥ 1 and a temperature above 0, got {k} and {temperature}"));
    }
    let k = k.min(bank.len() - usize::from(leave_out));
    let classes = bank.labels.iter().chain(&queries.labels).max().map_or(0, |l| l + 1);
    let (bank_rows, query_rows) = (unit_rows(bank), unit_rows(queries));
    let predict = |(q, query): (usize, &[f32])| {
        let similarity = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
        let mut near: Vec<(f32, usize)> = bank_rows
            .chunks_exact(dim)
            .enumerate()
            .filter(|(i, _)| !(leave_out && *i == q))
            .map(|(i, row)| (similarity(row), i))
            .collect();
        // Ties go to the earlier image, so that the result is one whatever the threads.
        let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if k < near.len() {
            near.select_nth_unstable_by(k - 1, order);
            near.truncate(k);
        }
        near.sort_unstable_by(order);
        let mut votes = vec![0f64; classes];
        for (similarity, i) in near {
            // Similarities are at most 1: shifted by it, no temperature overflows.
            votes[bank.labels[i]] += ((f64::from(similarity) - 1.0) / temperature).exp();
        }
        (0..classes).fold(0, |best, class| if votes[class] > votes[best] { class } else { best })
    };
    let predicted: Vec<usize> = query_rows.par_chunks_exact(dim).enumerate().map(predict).collect();
    let hits = predicted.iter().zip(&queries.labels).filter(|(p, l)| p == l).count();
    Ok(KnnReport { accuracy: hits as f64 / queries.len() as f64, k, queries: queries.len(), predicted })
}

fn unit_rows(set: &FeatureSet) -> Vec<f32> {
    let mut rows = vec![0.0; set.data.len()];

    ops::l2_normalise(&set.data, set.dim, &mut rows);
    rows
}

#[cfg(test)]
mod tests {
    use moco_image::Rng;

    use super::*;

    fn set(n: usize, dim: usize, classes: usize, seed: u64) -> FeatureSet {
        let mut rng = Rng::new(seed, 0);
        FeatureSet {
            data: (0..n * dim).map(|_| rng.normal() as f32).collect(),
            dim,
            labels: (0..n).map(|_| rng.below(classes)).collect(),
            indices: (0..n).collect(),
            skipped: vec![],
        }
    }

    fn oracle(bank: &FeatureSet, queries: &FeatureSet, k: usize, t: f64, leave_out: bool) -> Vec<usize> {
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let cos = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / norm(a) / norm(b)
        };
        (0..queries.len())
            .map(|q| {
                let mut all: Vec<(f64, usize)> = (0..bank.len())
                    .filter(|i| !(leave_out && *i == q))
                    .map(|i| (cos(bank.row(i), queries.row(q)), bank.labels[i]))
                    .collect();
                all.sort_by(|a, b| b.0.total_cmp(&a.0));
                let mut votes = [0.0; 16];
                all.iter().take(k).for_each(|(s, l)| votes[*l] += (s / t).exp());
                (0..16).fold(0, |best, c| if votes[c] > votes[best] { c } else { best })
            })
            .collect()
    }

    #[test]
    fn votes_are_those_of_a_naive_oracle() {
        for (n, dim, k, t) in [(40, 5, 7, 0.1), (9, 3, 200, 0.5), (1, 1, 1, 0.07), (60, 16, 60, 0.1)] {
            let (bank, queries) = (set(n, dim, 4, 1), set(33, dim, 4, 2));
            let report = knn(&bank, &queries, k, t).unwrap();
            assert_eq!(report.predicted, oracle(&bank, &queries, k, t, false), "{n} {dim} {k}");
            assert_eq!(report.k, k.min(n));
        }
        let bank = set(25, 4, 3, 5);
        let report = knn_leave_one_out(&bank, 5, 0.1).unwrap();
        assert_eq!(report.predicted, oracle(&bank, &bank, 5, 0.1, true));
    }

    #[test]
    fn the_same_images_are_found_again_whatever_their_scale() {
        let bank = set(20, 6, 5, 3);
        let mut queries = bank.clone();
        queries.data.iter_mut().for_each(|x| *x *= 1000.0);
        assert_eq!(knn(&bank, &queries, 1, 0.001).unwrap().accuracy, 1.0);
    }

    #[test]
    fn sets_that_do_not_fit_are_refused() {
        let (a, b) = (set(4, 3, 2, 0), set(4, 2, 2, 0));
        assert!(knn(&a, &b, 1, 0.1).unwrap_err().to_string().contains("3 features"));
        let unlabelled = FeatureSet { labels: vec![], ..a.clone() };
        assert!(knn(&a, &unlabelled, 1, 0.1).unwrap_err().to_string().contains("labels"));
        assert!(knn(&a, &a, 0, 0.1).is_err() && knn(&a, &a, 1, 0.0).is_err());
    }
}

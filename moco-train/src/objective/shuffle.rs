//! Shuffling BN (arXiv:1911.05722, §3.3): the key batch is permuted before it is encoded, so that a query and its key
//! do not share batch statistics, and the keys are put back in order afterwards.

use moco_image::Rng;
use rayon::prelude::*;

use crate::{Error, Result};

/// A permutation of a batch: place `i` of the encoded batch holds image `order[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shuffle {
    order: Vec<usize>,
}

impl Shuffle {
    /// A random permutation of `n` images.
    pub fn random(n: usize, rng: &mut Rng) -> Shuffle {
        let mut order: Vec<usize> = (0..n).collect();
        rng.shuffle(&mut order);
        Shuffle { order }
    }

    /// A given permutation.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless every number below the length occurs once.
    pub fn new(order: Vec<usize>) -> Result<Shuffle> {
        let mut seen = vec![false; order.len()];
        for &i in &order {
            if i >= order.len() || std::mem::replace(&mut seen[i], true) {
                return Err(Error::Invalid(format!("{order:?} is not a permutation")));
            }
        }
        Ok(Shuffle { order })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// `shuffled[i] = rows[order[i]]`; both [n, width].
    ///
    /// # Panics
    /// If the lengths differ or are not a multiple of n.
    pub fn apply(&self, rows: &[f32], shuffled: &mut [f32]) {
        let width = self.width(rows, shuffled);
        shuffled.par_chunks_mut(width).zip(&self.order).for_each(|(out, &i)| {
            out.copy_from_slice(&rows[i * width..][..width]);
        });
    }

    /// The inverse: `rows[order[i]] = shuffled[i]`; both [n, width].
    ///
    /// # Panics
    /// As [`Shuffle::apply`].
    pub fn undo(&self, shuffled: &[f32], rows: &mut [f32]) {
        let width = self.width(shuffled, rows);
        for (row, &i) in shuffled.chunks_exact(width).zip(&self.order) {
            rows[i * width..][..width].copy_from_slice(row);
        }
    }

    fn width(&self, a: &[f32], b: &[f32]) -> usize {
        assert!(a.len() == b.len() && a.len().is_multiple_of(self.len().max(1)), "{} rows in {}", self.len(), a.len());
        (a.len() / self.len().max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshuffle_restores_batch_order() {
        for n in [1, 2, 7, 64] {
            let shuffle = Shuffle::random(n, &mut Rng::new(5, n as u64));
            let rows: Vec<f32> = (0..n * 3).map(|i| i as f32).collect();
            let (mut shuffled, mut back) = (vec![0.0; n * 3], vec![0.0; n * 3]);
            shuffle.apply(&rows, &mut shuffled);
            shuffle.undo(&shuffled, &mut back);
            assert_eq!(back, rows);
            assert_eq!(shuffled == rows, n == 1 || shuffle.order.is_sorted());
        }
    }

    #[test]
    fn what_is_no_permutation_is_refused() {
        assert!(Shuffle::new(vec![1, 0, 2]).is_ok());
        assert!(Shuffle::new(vec![0, 0]).is_err());
        assert!(Shuffle::new(vec![0, 2]).is_err());
    }
}

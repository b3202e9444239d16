//! Shuffling BN (arXiv:1911.05722, §3.3): the key batch is permuted before it is encoded, so that a query and its key
//! do not share batch statistics, and the keys are put back in order afterwards.

use moco_image::Rng;

use crate::{Error, Result};

/// A permutation of a batch: place `i` of the encoded batch holds image `order[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shuffle {
    order: Vec<u32>,
}

impl Shuffle {
    /// A random permutation of `n` images.
    pub fn random(n: usize, rng: &mut Rng) -> Shuffle {
        let mut order: Vec<u32> = (0..n as u32).collect();
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
        Ok(Shuffle { order: order.into_iter().map(|i| i as u32).collect() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The image at each place of the encoded batch.
    pub fn order(&self) -> &[u32] {
        &self.order
    }
}

#[cfg(test)]
mod tests {
    use moco_engine::ops::{gather_rows, scatter_rows};

    use super::*;

    #[test]
    fn unshuffle_restores_batch_order() {
        for n in [1, 2, 7, 64] {
            let shuffle = Shuffle::random(n, &mut Rng::new(5, n as u64));
            let rows: Vec<f32> = (0..n * 3).map(|i| i as f32).collect();
            let (mut shuffled, mut back) = (vec![0.0; n * 3], vec![0.0; n * 3]);
            gather_rows(&rows, shuffle.order(), &mut shuffled);
            scatter_rows(&shuffled, shuffle.order(), &mut back);
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

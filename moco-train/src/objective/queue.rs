//! The dictionary as a queue (arXiv:1911.05722, §3.2): a ring of keys, the newest replacing the oldest.

use std::borrow::Cow;

use moco_engine::ops::{SameImage, enqueue, l2_normalise};
use moco_image::Rng;

use crate::{Error, Result};

/// K keys of unit length with the image each came from. Any K and any number of keys at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyQueue {
    dim: usize,
    keys: Vec<f32>,   // [K, dim]
    images: Vec<u64>, // [K], SameImage::NONE for the random keys of the start
    pointer: usize,
}

impl KeyQueue {
    /// `capacity` random unit vectors, as the reference starts: normal values, normalised.
    pub fn random(capacity: usize, dim: usize, rng: &mut Rng) -> KeyQueue {
        let normal: Vec<f32> = (0..capacity * dim).map(|_| rng.normal() as f32).collect();
        let mut keys = vec![0.0; normal.len()];
        l2_normalise(&normal, dim, &mut keys);
        KeyQueue { dim, keys, images: vec![SameImage::NONE; capacity], pointer: 0 }
    }

    /// A queue as it was saved.
    /// - `keys` [K, dim].   - `images` [K].   - `pointer` < K: the place of the next key.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the three do not fit.
    pub fn from_parts(dim: usize, keys: Vec<f32>, images: Vec<u64>, pointer: usize) -> Result<KeyQueue> {
        let capacity = images.len();
        if dim == 0 || keys.len() != capacity * dim || pointer >= capacity {
            return Err(Error::Invalid(format!(
                "a queue of {capacity} images needs {capacity} × {dim} values and a pointer below it; got {} values and \
                 pointer {pointer}",
                keys.len()
            )));
        }
        Ok(KeyQueue { dim, keys, images, pointer })
    }

    /// K.
    pub fn capacity(&self) -> usize {
        self.images.len()
    }

    /// Length of a key.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All keys [K, dim], in the order of the ring.
    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// The image of each key [K]; [`SameImage::NONE`] for a random key of the start.
    pub fn images(&self) -> &[u64] {
        &self.images
    }

    /// Where the next key goes.
    pub fn pointer(&self) -> usize {
        self.pointer
    }

    /// Puts keys in, oldest out.
    /// - `keys` [n, dim].   - `images` [n].
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn enqueue(&mut self, keys: &[f32], images: &[u64]) {
        assert_eq!(keys.len(), images.len() * self.dim, "one image per key");
        enqueue(keys, self.dim, self.pointer, &mut self.keys);
        self.pointer = advance(&mut self.images, self.pointer, images);
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> QueueRef<'_> {
        QueueRef { dim: self.dim, keys: Cow::Borrowed(&self.keys), images: &self.images, pointer: self.pointer }
    }

    /// Its keys, its images and its pointer.
    pub(super) fn into_parts(self) -> (Vec<f32>, Vec<u64>, usize) {
        (self.keys, self.images, self.pointer)
    }
}

/// Writes the images of new keys into the ring and returns the place of the next key.
pub(super) fn advance(ring: &mut [u64], mut pointer: usize, images: &[u64]) -> usize {
    for &image in images {
        ring[pointer] = image;
        pointer = (pointer + 1) % ring.len();
    }
    pointer
}

/// A [`KeyQueue`] that still belongs to its training.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueRef<'a> {
    pub(super) dim: usize,
    pub(super) keys: Cow<'a, [f32]>,
    pub(super) images: &'a [u64],
    pub(super) pointer: usize,
}

impl QueueRef<'_> {
    /// As [`KeyQueue::capacity`].
    pub fn capacity(&self) -> usize {
        self.images.len()
    }

    /// As [`KeyQueue::dim`].
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// As [`KeyQueue::keys`].
    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// As [`KeyQueue::images`].
    pub fn images(&self) -> &[u64] {
        self.images
    }

    /// As [`KeyQueue::pointer`].
    pub fn pointer(&self) -> usize {
        self.pointer
    }

    /// A queue of its own.
    pub fn into_owned(self) -> KeyQueue {
        let QueueRef { dim, keys, images, pointer } = self;
        KeyQueue { dim, keys: keys.into_owned(), images: images.to_vec(), pointer }
    }
}

/// Share of (query, key) pairs in which the key is an older view of the query's own image: false negatives.
/// - `images` [n]: of the queries.   - `ring` [K]: of the keys.
pub fn same_image_share(images: &[u64], ring: &[u64]) -> f64 {
    if images.is_empty() {
        return 0.0;
    }
    let mut counts = std::collections::HashMap::new();
    for image in ring.iter().filter(|i| **i != SameImage::NONE) {
        *counts.entry(*image).or_insert(0usize) += 1;
    }
    let pairs: usize = images.iter().map(|i| counts.get(i).copied().unwrap_or(0)).sum();
    pairs as f64 / (images.len() * ring.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(capacity: usize) -> KeyQueue {
        KeyQueue::random(capacity, 2, &mut Rng::new(1, 2))
    }

    fn keys(range: std::ops::Range<u64>) -> (Vec<f32>, Vec<u64>) {
        (range.clone().flat_map(|i| [i as f32, -(i as f32)]).collect(), range.collect())
    }

    #[test]
    fn starts_with_unit_vectors_that_belong_to_no_image() {
        let q = queue(7);
        assert!(q.keys().chunks(2).all(|k| (k[0].hypot(k[1]) - 1.0).abs() < 1e-6));
        assert_eq!(same_image_share(&[0, u64::MAX], q.images()), 0.0);
    }

    #[test]
    fn queue_overwrites_oldest_keys() {
        let mut q = queue(4);
        for range in [0..3, 3..6] {
            let (k, i) = keys(range);
            q.enqueue(&k, &i);
        }
        assert_eq!(q.images(), [4, 5, 2, 3]);
        assert_eq!(q.keys(), [4.0, -4.0, 5.0, -5.0, 2.0, -2.0, 3.0, -3.0]);
        assert_eq!(q.pointer(), 2);
    }

    #[test]
    fn more_keys_than_places_leave_the_newest() {
        let mut q = queue(3);
        let (k, i) = keys(0..8);
        q.enqueue(&k, &i);
        let mut images = q.images().to_vec();
        images.sort_unstable();
        assert_eq!(images, [5, 6, 7]);
    }

    #[test]
    fn false_negatives_are_counted() {
        let mut q = queue(4);
        let (k, i) = keys(0..2);
        q.enqueue(&k, &i);
        q.enqueue(&k, &i);
        assert_eq!(same_image_share(&[0, 9], q.images()), 2.0 / 8.0);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(KeyQueue::from_parts(2, vec![0.0; 6], vec![0; 3], 2).is_ok());
        assert!(KeyQueue::from_parts(2, vec![0.0; 5], vec![0; 3], 2).is_err());
        assert!(KeyQueue::from_parts(2, vec![0.0; 6], vec![0; 3], 3).is_err());
    }
}

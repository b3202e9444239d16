//! Features of a frozen backbone, computed once and kept.

use std::ops::ControlFlow;

use rayon::prelude::*;

use super::feed::{Batch, values};
use super::stack::Stack;
use crate::augment::Framing;
use crate::data::LabelledData;
use crate::task::Target;
use crate::{Error, Result};

/// Features and truths of a whole data set.
#[derive(Debug)]
pub(crate) struct Features {
    rows: Vec<f32>, // [n, dim]
    dim: usize,
    targets: Vec<Target>,
}

impl Features {
    /// Bytes that the features of `images` need.
    pub(crate) fn bytes(images: usize, dim: usize) -> u64 {
        images as u64 * dim as u64 * size_of::<f32>() as u64
    }

    /// Features of every image as it is, `batch` at a time; `progress` gets the number of images done.
    pub(crate) fn of(
        stack: &mut Stack,
        framing: &Framing,
        data: &dyn LabelledData,
        batch: usize,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Features> {
        let dim = stack.feature_len().ok_or_else(|| Error::Invalid("the backbone is no piece of its own".into()))?;
        let mut features = Features { rows: Vec::with_capacity(data.len() * dim), dim, targets: vec![] };
        let len = values(framing);
        for start in (0..data.len()).step_by(batch) {
            let n = batch.min(data.len() - start);
            let mut images = vec![0.0; n * len];
            let targets: Vec<Target> = images
                .par_chunks_exact_mut(len)
                .enumerate()
                .map(|(i, out)| Ok(framing.prepare(&data.get(start + i)?, None, out)?.target))
                .collect::<Result<_>>()?;
            features.rows.extend(stack.features(&images, n, framing.size)?);
            features.targets.extend(targets);
            if progress(start + n).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(features)
    }

    /// The rows of some images as a batch.
    pub(crate) fn batch(&self, indices: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for &i in indices {
            batch.images.extend_from_slice(&self.rows[i * self.dim..(i + 1) * self.dim]);
            batch.targets.push(self.targets[i].clone());
        }
        batch
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.targets.len()
    }

    /// The rows from `start`, `n` of them, with their truths.
    pub(crate) fn part(&self, start: usize, n: usize) -> (&[f32], &[Target]) {
        (&self.rows[start * self.dim..(start + n) * self.dim], &self.targets[start..start + n])
    }
}

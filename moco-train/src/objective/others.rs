//! What a step does together with the other processes of its training.

use std::sync::Arc;

use moco_engine::device::{Buffer, View};
use moco_engine::group::{Collective, Group, Routes};
use moco_engine::ops::InfoNce;
use moco_engine::{Device, Kernels};

use super::{MocoConfig, Shuffle};
use crate::{Error, Result};

/// The other processes, each with a slice of the batch, as one of them sees them.
pub(super) struct Others<D: Device> {
    group: Arc<Group>,
    collective: Box<dyn Collective<D>>,
    batch: usize,
    /// Rows of images or keys on their way, with the number of values it holds; made when they are first needed.
    coming: Option<(Buffer<D>, usize)>,
    /// Keys of all processes, [world · batch, dim] for each direction.
    keys: Vec<Buffer<D>>,
}

impl<D: Device + 'static> Others<D> {
    /// For a process that computes its part `config`.
    pub fn new(device: &mut D, group: &Arc<Group>, config: &MocoConfig, dim: usize) -> Result<Others<D>> {
        let collective = device.collective(group)?;
        let all = group.world() * config.batch * dim;
        let keys = (0..config.directions()).map(|_| device.buffer(vec![0.0; all]));
        let keys = keys.collect::<moco_engine::Result<_>>()?;
        Ok(Others { group: group.clone(), collective, batch: config.batch, coming: None, keys })
    }
}

impl<D: Device> Others<D> {
    /// Number of processes.
    pub fn world(&self) -> usize {
        self.group.world()
    }

    /// The images of all processes, of which all have as many.
    pub fn images(&self, own: &[u64]) -> Result<Vec<u64>> {
        let parts = self.group.gather(bytemuck::cast_slice(own))?;
        let mut all = Vec::with_capacity(own.len() * parts.len());
        for (rank, part) in parts.iter().enumerate() {
            if part.len() != size_of_val(own) {
                return Err(Error::Run(format!(
                    "process {rank} has {} images in this step and process {} has {}: all need as many",
                    part.len() / size_of::<u64>(),
                    self.group.rank(),
                    own.len()
                )));
            }
            let (words, _) = part.as_chunks();
            all.extend(words.iter().map(|word| u64::from_ne_bytes(*word)));
        }
        Ok(all)
    }

    /// This process's part in a permutation of the images of all.
    pub fn routes(&self, shuffle: &Shuffle, n: usize) -> Result<Routes> {
        if shuffle.len() != n * self.world() {
            let (len, world) = (shuffle.len(), self.world());
            return Err(Error::Invalid(format!("a permutation of {len} images for {world} processes with {n} each")));
        }
        Ok(Routes::new(shuffle.order(), self.group.rank(), self.world())?)
    }

    /// Permutes rows over all processes.
    pub fn move_rows(&mut self, device: &mut D, routes: &Routes, rows: &View<D>, to: &mut View<D>) -> Result<()> {
        let (n, len) = (routes.sent().len(), D::Kernels::len(rows));
        let width = len / n.max(1);
        if self.coming.as_ref().is_none_or(|(_, held)| *held < len) {
            self.coming = Some((device.buffer(vec![0.0; self.batch * width])?, self.batch * width));
        }
        let (coming, _) = self.coming.as_mut().expect("it has just been made");
        let coming = D::Kernels::view_mut(coming, len);
        let [sent, received] = routes.counts(width);
        // `to` is free until the rows have come.
        device.gather_rows(rows, routes.sent(), to);
        self.collective.exchange(device, to, &sent, coming, &received)?;
        device.scatter_rows(coming, routes.received(), to);
        Ok(())
    }

    /// Replaces gradients by their mean over all processes.
    pub fn average(&mut self, device: &mut D, gradients: &mut View<D>) -> Result<()> {
        Ok(self.collective.mean(device, gradients)?)
    }

    /// Brings the keys of all processes together: `values` of each direction of `own`.
    pub fn all_keys(&mut self, device: &mut D, own: &[Buffer<D>], values: usize) -> Result<&[Buffer<D>]> {
        let all = values * self.world();
        for (own, keys) in own.iter().zip(&mut self.keys) {
            let keys = D::Kernels::view_mut(keys, all);
            self.collective.gather(device, D::Kernels::view(own, values), keys)?;
        }
        Ok(&self.keys)
    }

    /// The keys of all processes in the last step, for each direction.
    pub fn keys(&self) -> &[Buffer<D>] {
        &self.keys
    }

    /// Makes the results of this process those of all; the images of all.
    pub fn sum_up(&self, results: &mut [InfoNce], n: usize) -> Result<usize> {
        let own: Vec<f64> = results
            .iter()
            .flat_map(|r| [r.loss, r.correct as f64, r.positive_similarity, r.negative_similarity])
            .collect();
        let parts = self.group.gather(bytemuck::cast_slice(&own))?;
        let mut sums = vec![0.0; own.len()];
        for part in &parts {
            let (words, _) = part.as_chunks();
            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum += f64::from_ne_bytes(*word));
        }
        let count = self.world() as f64;
        for (result, sums) in results.iter_mut().zip(sums.chunks_exact(4)) {
            *result = InfoNce {
                loss: sums[0] / count,
                correct: sums[1] as usize,
                positive_similarity: sums[2] / count,
                negative_similarity: sums[3] / count,
            };
        }
        Ok(n * self.world())
    }

    /// [`Error::Run`] naming what a process holds that differs from what process 0 holds.
    pub fn check_equal(&self, parts: &[(&str, &[u8])]) -> Result<()> {
        let own: Vec<u64> = parts.iter().map(|(_, bytes)| hash(bytes)).collect();
        let all = self.group.gather(bytemuck::cast_slice(&own))?;
        for (rank, theirs) in all.iter().enumerate() {
            let (ours, theirs) = (all[0].as_chunks::<8>().0, theirs.as_chunks::<8>().0);
            if let Some((what, _)) =
                parts.iter().zip(ours.iter().zip(theirs)).find(|(_, (a, b))| a != b).map(|(p, _)| p)
            {
                return Err(Error::Run(format!(
                    "process {rank} holds other {what} than process 0: the processes have drifted apart, so nothing was \
                     saved and the last checkpoint stays; all must run the same program on devices of one kind"
                )));
            }
        }
        Ok(())
    }
}

/// FNV-1a over words: against differences by chance, not by intent.
fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let words = words.iter().map(|word| u64::from(u32::from_le_bytes(*word)));
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(0xcbf2_9ce4_8422_2325, mix)
}

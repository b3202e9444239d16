//! Which samples share batch statistics.

/// Which samples of a batch share the statistics of its batch normalisations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BnGroups {
    /// The whole batch.
    Whole,
    /// As on `w` GPUs without synchronised batch norm: `w` contiguous slices of the batch, each with its own
    /// statistics. Where `n` is not divisible, the first `n % w` slices hold one sample more; with fewer samples than
    /// ranks the last ranks are empty. The running statistics are those of rank 0, whose buffers
    /// DistributedDataParallel broadcasts.
    Ranks(usize),
    /// `SplitBatchNorm` of the MoCo CIFAR-10 demo: sample `i` is in group `i % s`, because
    /// `input.view(-1, C * s, H, W)` folds neighbouring samples into the channels. Each group moves its own copy of the
    /// running statistics, and their mean is stored. (The reference needs `n` divisible by `s`; here the first `n % s`
    /// groups hold one sample more.)
    Interleaved(usize),
}

/// One group of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its first sample.
    pub first: usize,
    /// Samples in it.
    pub len: usize,
    /// From one of its samples to the next.
    pub step: usize,
}

impl Group {
    /// Indices of its samples.
    pub fn samples(&self) -> impl Iterator<Item = usize> + use<> {
        (self.first..).step_by(self.step).take(self.len)
    }
}

impl BnGroups {
    /// Number of groups, empty ones included.
    pub fn count(&self) -> usize {
        match *self {
            BnGroups::Whole => 1,
            BnGroups::Ranks(w) => w,
            BnGroups::Interleaved(s) => s,
        }
    }

    /// The groups of a batch of `n` that hold a sample; they are the first ones.
    pub fn of(&self, n: usize) -> impl Iterator<Item = Group> + use<> {
        let (groups, interleaved) = (self.count(), matches!(self, BnGroups::Interleaved(_)));
        let (each, more) = (n / groups, n % groups);
        (0..groups.min(n)).map(move |g| {
            let len = each + usize::from(g < more);
            if interleaved {
                Group { first: g, len, step: groups }
            } else {
                Group { first: g * each + g.min(more), len, step: 1 }
            }
        })
    }

    /// The group of sample `i` in a batch of `n`.
    pub fn group_of(&self, i: usize, n: usize) -> usize {
        match *self {
            BnGroups::Whole => 0,
            BnGroups::Interleaved(s) => i % s,
            BnGroups::Ranks(w) => {
                let (each, more) = (n / w, n % w);
                let long = more * (each + 1);
                if i < long { i / (each + 1) } else { more + (i - long) / each }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_the_group_that_lists_it() {
        for n in 1..20 {
            for groups in [BnGroups::Whole, BnGroups::Ranks(4), BnGroups::Interleaved(4), BnGroups::Ranks(7)] {
                let mut seen = vec![0; n];
                for (g, group) in groups.of(n).enumerate() {
                    assert!(group.len > 0);
                    for i in group.samples() {
                        seen[i] += 1;
                        assert_eq!(groups.group_of(i, n), g, "{groups:?} n {n} sample {i}");
                    }
                }
                assert_eq!(seen, vec![1; n], "{groups:?} n {n}");
            }
        }
    }

    #[test]
    fn ranks_are_contiguous_and_interleaved_groups_are_not() {
        let ranks: Vec<_> = BnGroups::Ranks(3).of(8).map(|g| (g.first, g.len)).collect();
        assert_eq!(ranks, [(0, 3), (3, 3), (6, 2)]);
        let second = BnGroups::Interleaved(4).of(8).nth(1).map(|g| g.samples().collect::<Vec<_>>());
        assert_eq!(second, Some(vec![1, 5]));
    }
}

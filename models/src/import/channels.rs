//! A backbone for images of another number of channels: its first convolution is folded or spread.

use std::fmt;

use moco_image::{ChannelMismatch, ChannelOrder, PreprocessRule};

use crate::{Error, Graph, Result, Weights};

/// Name of the first convolution.
const FIRST: &str = "conv1.weight";

/// What becomes of the first convolution when the number of channels changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstConvolution {
    /// To one channel: the sum over channels, which answers a grey image as the old network answers it repeated.
    Sum,
    /// To one channel: the mean over channels.
    Mean,
    /// To several channels: the old ones in turn, each shared out among the new ones that repeat it, or added to another
    /// where there are fewer than before. The answer to the same image in every channel stays.
    Replicate,
}

impl FirstConvolution {
    /// The usual choice: sum for one channel, replication for several.
    pub fn usual(channels: usize) -> FirstConvolution {
        if channels == 1 { FirstConvolution::Sum } else { FirstConvolution::Replicate }
    }
}

impl fmt::Display for FirstConvolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FirstConvolution::Sum => "summed over its input channels",
            FirstConvolution::Mean => "averaged over its input channels",
            FirstConvolution::Replicate => "replicated over the input channels, each share scaled",
        })
    }
}

/// Weights of `to`, which is `from` for images of other channels; only the first convolution differs.
///
/// # Errors
/// [`Error::Arch`] for a way that does not lead to this number of channels, [`Error::Mismatch`] if the graphs differ in
/// anything else or the weights do not belong to `from`.
pub fn adapt_channels(weights: &Weights, from: &Graph, to: &Graph, how: FirstConvolution) -> Result<Weights> {
    weights.check(from)?;
    let shape = |graph: &Graph| graph.parameters().into_iter().find(|p| p.name == FIRST).map(|p| p.shape);
    let (Some(old), Some(new)) = (shape(from), shape(to)) else {
        return Err(Error::Mismatch(format!("there is no `{FIRST}` to adapt")));
    };
    let (old_channels, channels, area) = (old[1], new[1], old[2] * old[3]);
    let fits = match how {
        FirstConvolution::Sum | FirstConvolution::Mean => channels == 1,
        FirstConvolution::Replicate => channels > 0,
    };
    if !fits || old_channels == 0 {
        return Err(Error::Arch(format!(
            "the first convolution cannot be {how} from {old_channels} to {channels} channels; that leads to 1 channel"
        )));
    }
    let mut adapted = Weights::zeros(to);
    let layout = from.parameter_layout();
    for (spec, range) in to.parameter_layout().iter() {
        let source = layout.range(&spec.name).map(|range| &weights.params[range]);
        match source {
            Some(kernels) if spec.name == FIRST => {
                let targets = adapted.params[range].chunks_exact_mut(channels * area);
                for (source, target) in kernels.chunks_exact(old_channels * area).zip(targets) {
                    fold(source, target, area, how);
                }
            }
            Some(values) if values.len() == range.len() => adapted.params[range].copy_from_slice(values),
            _ => return Err(Error::Mismatch(format!("`{}` differs between the two networks", spec.name))),
        }
    }
    if adapted.buffers.len() != weights.buffers.len() {
        return Err(Error::Mismatch("the running statistics differ between the two networks".into()));
    }
    adapted.buffers.copy_from_slice(&weights.buffers);
    adapted.counters.clone_from(&weights.counters);
    Ok(adapted)
}

/// One filter: `[channels, area]` each.
fn fold(source: &[f32], target: &mut [f32], area: usize, how: FirstConvolution) {
    let old = source.len() / area;
    match how {
        FirstConvolution::Sum | FirstConvolution::Mean => {
            let scale = if how == FirstConvolution::Sum { 1.0 } else { 1.0 / old as f32 };
            for (i, value) in target.iter_mut().enumerate() {
                *value = scale * (0..old).map(|channel| source[channel * area + i]).sum::<f32>();
            }
        }
        FirstConvolution::Replicate => {
            let new = target.len() / area;
            for channel in 0..old.max(new) {
                let (from, to) = (channel % old, channel % new);
                let shares = new / old + usize::from(from < new % old);
                let scale = 1.0 / shares.max(1) as f32;
                let values = &source[from * area..][..area];
                target[to * area..][..area].iter_mut().zip(values).for_each(|(to, from)| *to += scale * from);
            }
        }
    }
}

/// The rule for images of `channels` channels: one mean and deviation for all, that of the old channels together.
pub(crate) fn rule_for(rule: &PreprocessRule, channels: usize) -> PreprocessRule {
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
    let (order, mismatch) = match channels {
        1 => (ChannelOrder::Grey, ChannelMismatch::ToGrey),
        3 => (ChannelOrder::Rgb, ChannelMismatch::ReplicateGrey),
        _ => (ChannelOrder::Any, ChannelMismatch::Error),
    };
    PreprocessRule {
        channels,
        channel_order: order,
        on_mismatch: mismatch,
        mean: vec![mean(&rule.mean); channels],
        std: vec![mean(&rule.std); channels],
        ..rule.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ArchSpec;
    use crate::init::initialise;

    fn graph(in_channels: usize) -> Graph {
        ArchSpec { in_channels, width: 0.0625, ..ArchSpec::new("resnet18") }.build().unwrap()
    }

    /// Answer of each filter to an image that is 1 everywhere in every channel.
    fn answers(weights: &Weights, graph: &Graph) -> Vec<f32> {
        let kernels = weights.param(graph, FIRST).unwrap();
        kernels.chunks_exact(kernels.len() / 4).map(|filter| filter.iter().sum()).collect()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn the_same_image_in_every_channel_gets_the_same_answer() {
        let (rgb, mut weights) = (graph(3), initialise(&graph(3), 1));
        weights.counters.insert("bn1".into(), 9);
        let expected = answers(&weights, &rgb);
        for channels in [1, 2, 3, 4, 13] {
            let target = graph(channels);
            let adapted = adapt_channels(&weights, &rgb, &target, FirstConvolution::usual(channels)).unwrap();
            assert!(close(&answers(&adapted, &target), &expected), "{channels}");
            assert_eq!(adapted.param(&target, "layer4.1.conv2.weight"), weights.param(&rgb, "layer4.1.conv2.weight"));
            assert_eq!((&adapted.buffers, &adapted.counters), (&weights.buffers, &weights.counters));
        }
        let same = adapt_channels(&weights, &rgb, &rgb, FirstConvolution::Replicate).unwrap();
        assert_eq!(same, weights);
    }

    #[test]
    fn means_are_a_third_of_sums_and_grey_goes_back_to_colour() {
        let (rgb, grey) = (graph(3), graph(1));
        let weights = initialise(&rgb, 1);
        let mean = adapt_channels(&weights, &rgb, &grey, FirstConvolution::Mean).unwrap();
        let third: Vec<f32> = answers(&weights, &rgb).iter().map(|v| v / 3.0).collect();
        assert!(close(&answers(&mean, &grey), &third));
        let back = adapt_channels(&mean, &grey, &rgb, FirstConvolution::Replicate).unwrap();
        assert!(close(&answers(&back, &rgb), &third));
        let kernels = back.param(&rgb, FIRST).unwrap();
        assert_eq!(kernels[..49], kernels[49..98]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (rgb, two) = (graph(3), graph(2));
        let weights = initialise(&rgb, 1);
        let error = adapt_channels(&weights, &rgb, &two, FirstConvolution::Sum).unwrap_err().to_string();
        assert!(error.contains("from 3 to 2 channels"), "{error}");
        let other = ArchSpec { width: 0.125, ..ArchSpec::new("resnet18") }.build().unwrap();
        assert!(adapt_channels(&weights, &rgb, &other, FirstConvolution::Replicate).is_err());
    }
}

//! ResNet (arXiv:1512.03385), Wide ResNet (arXiv:1605.07146) and ResNeXt (arXiv:1611.05431) as torchvision builds
//! them: stride in the 3×3 convolution of a bottleneck ("v1.5").

use super::ArchSpec;
use crate::{Error, Graph, NodeId, Op, Result};

/// First layers of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// 7×7 convolution of stride 2, then 3×3 max pooling of stride 2.
    #[serde(rename = "imagenet")]
    ImageNet,
    /// 3×3 convolution of stride 1 and no pooling, for images of about 32 pixels (the MoCo CIFAR-10 demo).
    Cifar,
}

/// More than any camera has; what a damaged card claims beyond is not allocated.
const MAX_CHANNELS: usize = 1 << 12;

struct Variant {
    name: &'static str,
    blocks: [usize; 4],
    bottleneck: bool,
    groups: usize,
    /// Width of the 3×3 convolution in a bottleneck, per 64 planes.
    width_per_group: usize,
}

const fn variant(
    name: &'static str,
    blocks: [usize; 4],
    bottleneck: bool,
    groups: usize,
    width_per_group: usize,
) -> Variant {
    Variant { name, blocks, bottleneck, groups, width_per_group }
}

const VARIANTS: &[Variant] = &[
    variant("resnet18", [2, 2, 2, 2], false, 1, 64),
    variant("resnet34", [3, 4, 6, 3], false, 1, 64),
    variant("resnet50", [3, 4, 6, 3], true, 1, 64),
    variant("resnet101", [3, 4, 23, 3], true, 1, 64),
    variant("resnet152", [3, 8, 36, 3], true, 1, 64),
    variant("wide_resnet50_2", [3, 4, 6, 3], true, 1, 128),
    variant("wide_resnet101_2", [3, 4, 23, 3], true, 1, 128),
    variant("resnext50_32x4d", [3, 4, 6, 3], true, 32, 4),
    variant("resnext101_32x8d", [3, 4, 23, 3], true, 32, 8),
];

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    VARIANTS.iter().map(|v| v.name)
}

pub(super) fn names_with_blocks(blocks: &[usize], bottleneck: bool) -> impl Iterator<Item = &'static str> {
    VARIANTS.iter().filter(move |v| v.blocks == blocks && v.bottleneck == bottleneck).map(|v| v.name)
}

pub(super) fn build(spec: &ArchSpec) -> Result<Graph> {
    let variant = VARIANTS.iter().find(|v| v.name == spec.name).ok_or_else(|| {
        let known: Vec<_> = names().collect();
        Error::Arch(format!("unknown architecture `{}`; known are {}", spec.name, known.join(", ")))
    })?;
    if !(1..=MAX_CHANNELS).contains(&spec.in_channels) {
        let given = spec.in_channels;
        return Err(Error::Arch(format!("images of {given} channels: expected 1 to {MAX_CHANNELS}")));
    }
    let base = scaled(64, spec)?;
    let mut b = Builder { graph: Graph::new(spec.in_channels) };

    let input = b.graph.input();
    let (kernel, stride) = if spec.stem == Stem::ImageNet { (7, 2) } else { (3, 1) };
    let x = b.conv("conv1", input, spec.in_channels, base, kernel, stride, 1);
    let x = b.norm("bn1", x, base);
    let mut x = b.graph.push("relu", Op::Relu, &[x]);
    b.graph.add_tap("c1", x);
    if spec.stem == Stem::ImageNet {
        x = b.graph.push("maxpool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x]);
    }

    let expansion = if variant.bottleneck { 4 } else { 1 };
    let mut channels = base;
    for (stage, &blocks) in variant.blocks.iter().enumerate() {
        let planes = scaled(64 << stage, spec)?;
        for block in 0..blocks {
            let prefix = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let out = planes * expansion;
            x = if variant.bottleneck {
                let width = scaled((64 << stage) * variant.width_per_group / 64, spec)? * variant.groups;
                b.bottleneck(&prefix, x, [channels, width, out], stride, variant.groups)
            } else {
                b.basic(&prefix, x, [channels, out], stride)
            };
            channels = out;
        }
        b.graph.add_tap(&format!("c{}", stage + 2), x);
    }
    let pooled = b.graph.push("avgpool", Op::GlobalAvgPool, &[x]);
    b.graph.add_tap("pooled", pooled);
    Ok(b.graph)
}

fn scaled(channels: usize, spec: &ArchSpec) -> Result<usize> {
    let width = (channels as f64 * spec.width).round();
    if width.is_finite() && (1.0..=65536.0).contains(&width) {
        return Ok(width as usize);
    }
    Err(Error::Arch(format!("a width multiplier of {} makes {channels} channels {width}", spec.width)))
}

struct Builder {
    graph: Graph,
}

impl Builder {
    #[expect(clippy::too_many_arguments, reason = "the seven numbers of a convolution")]
    fn conv(
        &mut self,
        name: &str,
        x: NodeId,
        cin: usize,
        cout: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> NodeId {
        let (in_channels, out_channels, padding) = (cin, cout, kernel / 2);
        self.graph.push(
            name,
            Op::Conv2d { in_channels, out_channels, kernel, stride, padding, groups, bias: false },
            &[x],
        )
    }

    fn norm(&mut self, name: &str, x: NodeId, channels: usize) -> NodeId {
        self.graph.push(name, Op::BatchNorm { channels, eps: 1e-5, momentum: 0.1 }, &[x])
    }

    /// Two 3×3 convolutions and a shortcut; `channels` = [in, out].
    fn basic(&mut self, p: &str, x: NodeId, channels: [usize; 2], stride: usize) -> NodeId {
        let [cin, cout] = channels;
        let y = self.conv(&format!("{p}.conv1"), x, cin, cout, 3, stride, 1);
        let y = self.norm(&format!("{p}.bn1"), y, cout);
        let y = self.graph.push(format!("{p}.relu1"), Op::Relu, &[y]);
        let y = self.conv(&format!("{p}.conv2"), y, cout, cout, 3, 1, 1);
        let y = self.norm(&format!("{p}.bn2"), y, cout);
        self.join(p, x, y, channels[0], cout, stride)
    }

    /// 1×1, 3×3 and 1×1 convolutions and a shortcut; `channels` = [in, width, out].
    fn bottleneck(&mut self, p: &str, x: NodeId, channels: [usize; 3], stride: usize, groups: usize) -> NodeId {
        let [cin, width, cout] = channels;
        let y = self.conv(&format!("{p}.conv1"), x, cin, width, 1, 1, 1);
        let y = self.norm(&format!("{p}.bn1"), y, width);
        let y = self.graph.push(format!("{p}.relu1"), Op::Relu, &[y]);
        let y = self.conv(&format!("{p}.conv2"), y, width, width, 3, stride, groups);
        let y = self.norm(&format!("{p}.bn2"), y, width);
        let y = self.graph.push(format!("{p}.relu2"), Op::Relu, &[y]);
        let y = self.conv(&format!("{p}.conv3"), y, width, cout, 1, 1, 1);
        let y = self.norm(&format!("{p}.bn3"), y, cout);
        self.join(p, x, y, cin, cout, stride)
    }

    fn join(&mut self, p: &str, x: NodeId, y: NodeId, cin: usize, cout: usize, stride: usize) -> NodeId {
        let shortcut = if stride != 1 || cin != cout {
            let d = self.conv(&format!("{p}.downsample.0"), x, cin, cout, 1, stride, 1);
            self.norm(&format!("{p}.downsample.1"), d, cout)
        } else {
            x
        };
        let sum = self.graph.push(format!("{p}.add"), Op::Add, &[y, shortcut]);
        self.graph.push(format!("{p}.relu"), Op::Relu, &[sum])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of torchvision's documentation, less the 1000-class `fc` (features·1000 + 1000).
    #[test]
    fn parameter_counts_are_torchvisions() {
        let published = [
            ("resnet18", 11_689_512, 512),
            ("resnet34", 21_797_672, 512),
            ("resnet50", 25_557_032, 2048),
            ("resnet101", 44_549_160, 2048),
            ("resnet152", 60_192_808, 2048),
            ("wide_resnet50_2", 68_883_240, 2048),
            ("wide_resnet101_2", 126_886_696, 2048),
            ("resnext50_32x4d", 25_028_904, 2048),
            ("resnext101_32x8d", 88_791_336, 2048),
        ];
        for (name, total, features) in published {
            let graph = ArchSpec::new(name).build().unwrap();
            assert_eq!(graph.parameter_layout().len() + features * 1000 + 1000, total, "{name}");
        }
    }

    #[test]
    fn resnet50_has_the_published_cost() {
        let graph = ArchSpec::new("resnet50").build().unwrap();
        assert_eq!(graph.macs(224, 224).unwrap() / 10_000_000, 408);
    }

    #[test]
    fn unknown_names_and_zero_widths_are_refused() {
        assert!(ArchSpec::new("resnet19").build().unwrap_err().to_string().contains("resnet18"));
        assert!(ArchSpec { width: 0.0, ..ArchSpec::new("resnet18") }.build().is_err());
        for in_channels in [0, 1 << 13, usize::MAX] {
            assert!(ArchSpec { in_channels, ..ArchSpec::new("resnet18") }.build().is_err());
        }
    }
}

//! Initial weights as torchvision's ResNet draws them, from a stream that only the seed and the tensor's name decide.

use std::f64::consts::TAU;

use crate::{Graph, ParamKind, ParamSpec, Weights};

/// Draws the weights of a new network as torchvision and `torch.nn` do:
/// convolutions from N(0, 2 / fan_out) with fan_out = out channels × kernel area (`kaiming_normal_`, arXiv:1502.01852),
/// normalisations 1 and 0 with running statistics 0 and 1, linear weights and every bias from U(±1/√fan_in).
///
/// Each tensor has its own stream, keyed by `seed` and its name: the values do not depend on the order of the tensors,
/// so a backbone gets the same start with and without a projector.
pub fn initialise(graph: &Graph, seed: u64) -> Weights {
    let mut weights = Weights::zeros(graph);
    for (spec, range) in graph.parameter_layout().iter() {
        draw(spec, seed, usual(spec), &mut weights.params[range]);
    }
    for (spec, range) in graph.buffer_layout().iter() {
        draw(spec, seed, usual(spec), &mut weights.buffers[range]);
    }
    weights
}

/// How the values of a tensor are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Draw {
    /// N(0, std²).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// U(±bound).
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// U(±√(3 / fan_in)): variance 1 / fan_in, Caffe2's Xavier.
    Xavier,
    /// All the same.
    Constant(f32),
}

/// How a tensor of its kind is drawn in a backbone.
pub(crate) fn usual(spec: &ParamSpec) -> Draw {
    match spec.kind {
        ParamKind::ConvWeight => {
            let fan_out = spec.shape[0] * spec.shape[2..].iter().product::<usize>();
            Draw::Normal { std: (2.0 / fan_out as f64).sqrt() }
        }
        ParamKind::LinearWeight => Draw::Uniform { bound: 1.0 / (spec.shape[1] as f64).sqrt() },
        ParamKind::Bias { fan_in } => Draw::Uniform { bound: 1.0 / (fan_in as f64).sqrt() },
        ParamKind::NormWeight | ParamKind::RunningVar => Draw::Constant(1.0),
        ParamKind::NormBias | ParamKind::RunningMean => Draw::Constant(0.0),
    }
}

/// Draws one tensor from its own stream.
pub(crate) fn draw(spec: &ParamSpec, seed: u64, rule: Draw, out: &mut [f32]) {
    let mut stream = Stream::new(seed, &spec.name);
    match rule {
        Draw::Normal { std } => stream.normal(std, out),
        Draw::Uniform { bound } => stream.uniform(bound, out),
        Draw::Xavier => {
            let fan_in = spec.shape[1..].iter().product::<usize>();
            stream.uniform((3.0 / fan_in as f64).sqrt(), out);
        }
        Draw::Constant(value) => out.fill(value),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): its stream is fixed by its definition, so a seed means the same for ever.
struct Stream(u64);

impl Stream {
    fn new(seed: u64, name: &str) -> Stream {
        // FNV-1a over the name; the finaliser of the first draw spreads the sum with the seed.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut keyed = Stream(seed);
        Stream(hash ^ keyed.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in the open interval (0, 1).
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn uniform(&mut self, bound: f64, out: &mut [f32]) {
        for value in out {
            *value = ((2.0 * self.unit() - 1.0) * bound) as f32;
        }
    }

    /// Box–Muller, two values a draw.
    fn normal(&mut self, std: f64, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let radius = std * (-2.0 * self.unit().ln()).sqrt();
            let (sin, cos) = (TAU * self.unit()).sin_cos();
            for (value, part) in pair.iter_mut().zip([cos, sin]) {
                *value = (radius * part) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchSpec, Projector};

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn every_kind_of_tensor_has_torchvisions_distribution() {
        let graph = ArchSpec { projector: Projector::Mlp { dim: 128 }, ..ArchSpec::new("resnet18") }.build().unwrap();
        let weights = initialise(&graph, 7);
        for (spec, range) in graph.parameter_layout().iter().filter(|(s, _)| s.numel() > 1000) {
            let values = &weights.params[range];
            let (mean, std) = moments(values);
            let expected = match spec.kind {
                ParamKind::ConvWeight => (2.0 / (spec.shape[0] * spec.shape[2] * spec.shape[3]) as f64).sqrt(),
                _ => 1.0 / (spec.shape[1] as f64).sqrt() / 3f64.sqrt(),
            };
            let tolerance = 5.0 / (spec.numel() as f64).sqrt();
            assert!((std / expected - 1.0).abs() < tolerance, "{}: {std} for {expected}", spec.name);
            assert!((mean / expected).abs() < tolerance, "{}: mean {mean}", spec.name);
        }
        let bias = weights.param(&graph, "fc.2.bias").unwrap();
        assert!(bias.iter().all(|b| b.abs() < 1.0 / 512f32.sqrt()) && bias.iter().any(|b| *b != 0.0));
        assert!(weights.param(&graph, "layer2.0.bn1.weight").unwrap().iter().all(|v| *v == 1.0));
        assert!(weights.param(&graph, "layer2.0.bn1.bias").unwrap().iter().all(|v| *v == 0.0));
        let variance = graph.buffer_layout().range("bn1.running_var").unwrap();
        assert!(weights.buffers[variance].iter().all(|v| *v == 1.0));
    }

    #[test]
    fn a_seed_decides_everything_and_the_projector_changes_nothing_below_it() {
        let narrow = ArchSpec { width: 0.25, ..ArchSpec::new("resnet18") };
        let plain = narrow.build().unwrap();
        let projected = ArchSpec { projector: Projector::Linear { dim: 16 }, ..narrow }.build().unwrap();
        let (a, b, c) = (initialise(&plain, 1), initialise(&projected, 1), initialise(&plain, 2));
        assert_eq!(a.params, initialise(&plain, 1).params);
        assert_eq!(a.params[..], b.params[..a.params.len()]);
        assert_ne!(a.params, c.params);
    }

    #[test]
    fn two_tensors_of_one_shape_differ() {
        let graph = ArchSpec::new("resnet18").build().unwrap();
        let weights = initialise(&graph, 0);
        let get = |name| weights.param(&graph, name).unwrap();
        assert_ne!(get("layer1.0.conv1.weight"), get("layer1.0.conv2.weight"));
    }
}

//! Inputs and weights of the recorded references: generated from names, as `fixtures/parity/README.md` defines.

use moco_models::{Graph, ParamSpec, Weights};

/// `n` values in [−1, 1) that only `name` decides.
pub fn uniform(name: &str, n: usize) -> Vec<f64> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (1..=n as u64)
        .map(|i| {
            let mut z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f64 / f64::from(1 << 23) - 1.0
        })
        .collect()
}

/// All weights of a network by the names of its tensors.
pub fn parameters(graph: &Graph, seed: &str) -> Weights {
    let mut weights = Weights::zeros(graph);
    for (spec, range) in graph.parameter_layout().iter() {
        fill(spec, seed, &mut weights.params[range]);
    }
    for (spec, range) in graph.buffer_layout().iter() {
        fill(spec, seed, &mut weights.buffers[range]);
    }
    weights
}

/// Images in PyTorch's order, 2 · uniform(name) [n, channels, height, width], as [n, height, width, channels].
pub fn images_nhwc(name: &str, [n, channels, height, width]: [usize; 4]) -> Vec<f32> {
    let nchw = uniform(name, n * channels * height * width);
    let mut nhwc = vec![0.0; nchw.len()];
    for (i, value) in nchw.iter().enumerate() {
        let (image, rest) = (i / (channels * height * width), i % (channels * height * width));
        let (channel, pixel) = (rest / (height * width), rest % (height * width));
        nhwc[(image * height * width + pixel) * channels + channel] = (2.0 * value) as f32;
    }
    nhwc
}

fn fill(spec: &ParamSpec, seed: &str, out: &mut [f32]) {
    let u = uniform(&format!("{seed}/{}", spec.name), out.len());
    let fan_in: usize = spec.shape[1..].iter().product();
    for (out, u) in out.iter_mut().zip(u) {
        *out = match spec.name.rsplit('.').next() {
            Some("running_var") => 1.0 + 0.25 * u,
            Some("running_mean") => 0.1 * u,
            _ if spec.shape.len() > 1 => u * (6.0 / fan_in as f64).sqrt(),
            Some("weight") => 1.0 + 0.1 * u,
            _ => 0.1 * u,
        } as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fixtures/parity/generator.json`.
    #[test]
    fn first_values_are_those_of_the_definition() {
        assert_eq!(uniform("a", 4), [-0.25653815269470215, 0.9962445497512817, 0.9842129945755005, 0.37188172340393066]);
        assert_eq!(
            uniform("public-resnet18/input", 3),
            [0.7036404609680176, -0.16354036331176758, -0.9942811727523804]
        );
    }

    #[test]
    fn images_are_transposed() {
        let u = uniform("x", 2 * 3 * 2 * 2);
        let got = images_nhwc("x", [2, 3, 2, 2]);
        assert_eq!(got[1], (2.0 * u[4]) as f32);
        assert_eq!(got[3], (2.0 * u[1]) as f32);
        assert_eq!(got[12], (2.0 * u[12]) as f32);
    }
}

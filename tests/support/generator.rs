//! The generator of `tests/fixtures/parity/README.md`: inputs and parameters as functions of a name.

use moco_models::{Graph, Weights};

/// 64-bit FNV-1a of the UTF-8 name.
pub fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// `n` values in [−1, 1) that depend on the name only: splitmix64's finaliser over a counter that starts at the name's
/// hash, its upper 24 bits scaled. Exact in f32 too.
pub fn uniform(name: &str, n: usize) -> Vec<f64> {
    let hash = fnv1a(name);
    (1..=n as u64)
        .map(|i| {
            let mut z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0
        })
        .collect()
}

/// The value of one parameter or buffer, in PyTorch's order, by the table of the README.
pub fn parameter(seed: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    exact_parameter(seed, name, shape).into_iter().map(|v| v as f32).collect()
}

/// [`parameter`] before it is rounded to f32.
pub fn exact_parameter(seed: &str, name: &str, shape: &[usize]) -> Vec<f64> {
    let fan_in: usize = shape.iter().skip(1).product();
    let rule = |u: f64| {
        if name.ends_with("running_var") {
            1.0 + 0.25 * u
        } else if name.ends_with("running_mean") {
            0.1 * u
        } else if shape.len() >= 2 {
            u * (6.0 / fan_in as f64).sqrt()
        } else if name.ends_with("weight") {
            1.0 + 0.1 * u
        } else {
            0.1 * u
        }
    };
    uniform(&format!("{seed}/{name}"), shape.iter().product()).into_iter().map(rule).collect()
}

/// All parameters and buffers of a network.
pub fn parameters(graph: &Graph, seed: &str) -> Weights {
    let fill = |layout: &moco_models::FlatLayout| {
        layout.iter().flat_map(|(spec, _)| parameter(seed, &spec.name, &spec.shape)).collect()
    };
    Weights { params: fill(&graph.parameter_layout()), buffers: fill(&graph.buffer_layout()), ..Weights::default() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fnv1a() {
        // Test vectors of the FNV reference code (draft-eastlake-fnv, appendix C).
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn parameters_follow_their_names() {
        let close = |got: &[f32], scale: f64, offset: f64, u: &[f64]| {
            got.iter().zip(u).all(|(g, u)| (f64::from(*g) - (offset + scale * u)).abs() < 1e-6)
        };
        let u = |name| uniform(&format!("s/{name}"), 4);
        assert!(close(&parameter("s", "bn.running_var", &[4]), 0.25, 1.0, &u("bn.running_var")));
        assert!(close(&parameter("s", "bn.running_mean", &[4]), 0.1, 0.0, &u("bn.running_mean")));
        assert!(close(&parameter("s", "bn.weight", &[4]), 0.1, 1.0, &u("bn.weight")));
        assert!(close(&parameter("s", "bn.bias", &[4]), 0.1, 0.0, &u("bn.bias")));
        assert!(close(&parameter("s", "fc.weight", &[2, 2]), 3f64.sqrt(), 0.0, &u("fc.weight")));
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

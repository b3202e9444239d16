//! Plans that store feature maps as bf16, beside the same plans in f32.

use half::bf16;

use super::*;
use crate::kernels::{Element, ReferenceKernels};

/// Taps, running statistics and gradients of one step.
struct Results {
    taps: Vec<Vec<f32>>,
    buffers: Vec<f32>,
    gradients: Vec<f32>,
}

fn step<T: Element>(case: &Case, taps: &[&str]) -> Results {
    let mut plan = Plan::compile_with(&case.graph, &case.config, CpuKernels::<T>::default()).unwrap();
    let (mut buffers, mut gradients) = (case.buffers.clone(), vec![f32::NAN; case.params.len()]);
    plan.forward(&case.params, &mut buffers, &case.images, case.n).unwrap();
    let outputs: Vec<Vec<f32>> = taps.iter().map(|tap| plan.output(tap).unwrap().to_vec()).collect();
    let cotangents: Vec<_> = taps.iter().zip(&outputs).map(|(tap, y)| cotangent(tap, y.len())).collect();
    let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    plan.backward(&case.params, &d_taps, &mut gradients).unwrap();
    Results { taps: outputs, buffers, gradients }
}

/// Cosine, and the ratio of the lengths.
fn agreement(got: &[f32], want: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (g, w) = (dot(got, got).sqrt(), dot(want, want).sqrt());
    (dot(got, want) / (g * w), g / w)
}

fn resnet(name: &str, groups: BnGroups) -> Case {
    let graph = ArchSpec { width: 0.5, projector: Projector::Mlp { dim: 32 }, ..ArchSpec::new(name) }.build().unwrap();
    let config = PlanConfig::new(8, 64, 48, Mode::Train).with_taps(&["projection"]).with_bn_groups(groups);
    Case::new(graph, config, 8)
}

/// The step in f64 with noise on every convolution's result.
fn noisy_gradients(case: &Case, amplitude: f64) -> Vec<f32> {
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let kernels = ReferenceKernels::with_noise(amplitude, 1);
    let mut plan = Plan::compile_with(&case.graph, &case.config, kernels).unwrap();
    let (params, mut gradients) = (wide(&case.params), vec![0.0; case.params.len()]);
    plan.forward(&params, &mut wide(&case.buffers), &wide(&case.images), case.n).unwrap();
    let cotangent = wide(&cotangent("projection", plan.output("projection").unwrap().len()));
    plan.backward(&params, &[("projection", &cotangent)], &mut gradients).unwrap();
    gradients.iter().map(|v| *v as f32).collect()
}

#[test]
fn bf16_agrees_with_f32_within_its_rounding() {
    let small = Case::new(everything(), PlanConfig::new(8, 13, 10, Mode::Train), 7);
    let all = vec!["raw", "stem", "a", "b", "mean", "end"];
    // Values, gradients: 1 − cosine at most.
    for (case, taps, [values, gradients]) in
        [(small, all, [3e-4, 3e-3]), (resnet("resnet18", BnGroups::Interleaved(2)), vec!["projection"], [3e-4, 5e-2])]
    {
        let (got, want) = (step::<bf16>(&case, &taps), step::<f32>(&case, &taps));
        let check = |what: &str, got: &[f32], want: &[f32], bound: f64| {
            let (cosine, length) = agreement(got, want);
            assert!(1.0 - cosine <= bound && (length - 1.0).abs() <= 0.02, "{what}: cosine {cosine}, length {length}");
        };
        for (tap, (got, want)) in taps.iter().zip(got.taps.iter().zip(&want.taps)) {
            check(tap, got, want, values);
        }
        check("running statistics", &got.buffers, &want.buffers, values);
        check("gradients", &got.gradients, &want.gradients, gradients);
    }
}

/// In an untrained network this deep, a ReLU that opens or closes by rounding turns gradients far below it: what can be
/// asked for is no more than noise of the size of a rounding leaves.
#[test]
fn bf16_turns_the_gradients_of_a_deep_network_no_further_than_noise_of_its_rounding() {
    let case = resnet("resnet50", BnGroups::Whole);
    let (got, exact) = (step::<bf16>(&case, &["projection"]), step::<f32>(&case, &["projection"]));
    // Inputs, weights and results are rounded, each by up to 1/256 of its value.
    let noisy = noisy_gradients(&case, 1.0 / 128.0);
    let (cosine, length) = agreement(&got.gradients, &exact.gradients);
    let (noise, _) = agreement(&noisy, &exact.gradients);
    assert!(cosine > noise && (length - 1.0).abs() < 0.05, "cosine {cosine}, with noise {noise}; length {length}");
}

#[test]
fn bf16_halves_the_feature_maps_and_its_estimate_is_what_is_allocated() {
    let case = resnet("resnet18", BnGroups::Whole);
    let plan = Plan::compile_with(&case.graph, &case.config, CpuKernels::<bf16>::default()).unwrap();
    let estimate = Plan::estimate_with(&case.graph, &case.config, CpuKernels::<bf16>::default()).unwrap();
    let slots: usize = plan.slots.iter().flatten().map(|slot| size_of_val(&slot[..])).sum();
    let taps: usize = plan.outputs.iter().map(|output| size_of_val(&output[..])).sum();
    assert_eq!(estimate.activations, slots + taps);
    let wide = Plan::estimate(&case.graph, &case.config).unwrap().activations;
    assert_eq!(wide - taps, 2 * slots);
}

#[test]
fn bf16_gives_the_same_bits_on_any_number_of_threads() {
    let case = resnet("resnet18", BnGroups::Ranks(2));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let results = pool.install(|| step::<bf16>(&case, &["projection"]));
        (results.taps, results.buffers, results.gradients)
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

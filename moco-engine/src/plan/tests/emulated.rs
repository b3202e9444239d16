//! Whole plans on the emulated device: every kernel of `cuda/*.cu` and every launch, against the f64 reference.

use std::sync::Arc;

use super::*;
use crate::cuda::{Bf16, CudaKernels, Emulated, Memory, Value};
use crate::kernels::ReferenceKernels;
use crate::plan::config::Recompute;

const TAPS: [&str; 6] = ["raw", "stem", "a", "b", "mean", "end"];

/// What a step gives: taps, running statistics, gradients.
type Results = Vec<(&'static str, Vec<f64>)>;

fn on_device<T: Value>(case: &Case, taps: &[&'static str], driver: &Arc<Emulated>) -> Results {
    let put = |values: &[f32]| {
        let mut memory = Memory::zeroed(driver, 4 * values.len()).unwrap();
        memory.view_mut::<f32>(values.len()).upload(values, &**driver);
        memory
    };
    let get = |memory: &crate::cuda::DeviceView<f32>| {
        memory.download(&**driver).unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<f64>>()
    };
    let mut plan = Plan::compile_with(&case.graph, &case.config, CudaKernels::<T, Emulated>::new(driver)).unwrap();
    let (params, mut buffers, images) = (put(&case.params), put(&case.buffers), put(&case.images));
    let [params, images] = [(&params, case.params.len()), (&images, case.images.len())].map(|(m, len)| m.view(len));
    plan.forward(params, buffers.view_mut(case.buffers.len()), images, case.n).unwrap();
    let mut results = vec![];
    let mut cotangents = vec![];
    for tap in taps {
        let y = get(plan.output(tap).unwrap());
        cotangents.push((*tap, y.len(), put(&cotangent(tap, y.len()))));
        results.push((*tap, y));
    }
    let d_taps: Vec<_> = cotangents.iter().map(|(tap, len, d)| (*tap, d.view(*len))).collect();
    let mut gradients = put(&vec![f32::NAN; case.params.len()]);
    plan.backward(params, &d_taps, gradients.view_mut(case.params.len())).unwrap();
    results.push(("running statistics", get(buffers.view(case.buffers.len()))));
    results.push(("gradients", get(gradients.view(case.params.len()))));
    results
}

/// Relative to the size of what is expected.
fn distance(got: &[f64], expected: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(expected).map(|(g, e)| (g - e).powi(2)).sum();
    (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

fn reference(case: &Case, taps: &[&'static str]) -> Results {
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let mut plan = Plan::compile_with(&case.graph, &case.config, ReferenceKernels::default()).unwrap();
    let mut buffers = wide(&case.buffers);
    plan.forward(&wide(&case.params), &mut buffers, &wide(&case.images), case.n).unwrap();
    let mut results: Results = taps.iter().map(|tap| (*tap, plan.output(tap).unwrap().to_vec())).collect();
    let cotangents: Vec<_> = results.iter().map(|(tap, y)| wide(&cotangent(tap, y.len()))).collect();
    let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    let mut gradients = vec![0.0; case.params.len()];
    plan.backward(&wide(&case.params), &d_taps, &mut gradients).unwrap();
    results.push(("running statistics", buffers));
    results.push(("gradients", gradients));
    results
}

/// Bounds relative to the size of a result.
fn assert_close(got: &Results, expected: &Results, [values, gradients]: [f64; 2], case: &str) {
    for ((what, got), (_, expected)) in got.iter().zip(expected) {
        let bound = if *what == "gradients" { gradients } else { values };
        let error = distance(got, expected);
        assert!(error < bound, "{case}, {what}: {error:.2e}");
    }
}

#[test]
fn every_step_agrees_with_the_reference_in_every_grouping() {
    let driver = Arc::new(Emulated::new().unwrap());
    for groups in [BnGroups::Whole, BnGroups::Ranks(2), BnGroups::Interleaved(3)] {
        for n in [6, 8] {
            let config = PlanConfig::new(8, 13, 10, Mode::Train).with_bn_groups(groups);
            let case = Case::new(everything(), config, n);
            let expected = reference(&case, &TAPS);
            let name = format!("{groups:?}, {n} images");
            assert_close(&on_device::<f32>(&case, &TAPS, &driver), &expected, [2e-5; 2], &name);
            // bf16 has 8 bits: values are off by a few of its units after a dozen layers, and a ReLU whose input is within
            // rounding of 0 may open or close, which moves gradients further.
            assert_close(&on_device::<Bf16>(&case, &TAPS, &driver), &expected, [0.05, 0.25], &name);
        }
    }
}

#[test]
fn heads_agree_with_the_reference_and_in_any_order_of_threads() {
    const TAPS: [&str; 4] = ["tower_p2", "tower_p3", "logits", "end"];
    let driver = Arc::new(Emulated::new().unwrap());
    for n in [2, 3] {
        let case = Case::new(super::heads::pyramid(), PlanConfig::new(3, 13, 18, Mode::Train).with_taps(&TAPS), n);
        let expected = reference(&case, &TAPS);
        let got = on_device::<f32>(&case, &TAPS, &driver);
        assert_close(&got, &expected, [5e-5; 2], &format!("{n} images"));
        // Gradients of groups of so few values say nothing in bf16: a ReLU that opens by rounding moves all of them. Each kernel
        // of theirs is compared with its twin in `cuda::check`.
        let mut rounded = on_device::<Bf16>(&case, &TAPS, &driver);
        rounded.retain(|(what, _)| *what != "gradients");
        assert_close(&rounded, &expected, [0.08; 2], &format!("{n} images in bf16"));
        driver.turn_around();
        assert_eq!(got, on_device::<f32>(&case, &TAPS, &driver));
    }
}

#[test]
fn frozen_layers_and_statistics_agree_with_the_reference() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let driver = Arc::new(Emulated::new().unwrap());
    let config = PlanConfig::new(4, 12, 9, Mode::Train).with_taps(&TAPS);
    let config = config.with_running_norms(names(&["stem_norm", "a1_norm", "short_norm", "b1_norm", "fc1_norm"]));
    let case = Case::new(everything(), config.with_frozen(names(&["stem", "b1_norm"])), 4);
    assert_close(&on_device::<f32>(&case, &TAPS, &driver), &reference(&case, &TAPS), [2e-5; 2], "running statistics");
}

#[test]
fn the_order_of_threads_and_blocks_changes_no_bit() {
    let case = Case::new(everything(), PlanConfig::new(5, 12, 9, Mode::Train), 5);
    let driver = Arc::new(Emulated::new().unwrap());
    let first = on_device::<Bf16>(&case, &TAPS, &driver);
    driver.turn_around();
    assert_eq!(first, on_device::<Bf16>(&case, &TAPS, &driver));
}

#[test]
fn a_resnet_with_wide_channels_and_groups_agrees_and_recomputing_changes_no_bit() {
    let projector = Projector::Mlp { dim: 8 };
    let driver = Arc::new(Emulated::new().unwrap());
    for arch in ["resnet18", "resnext50_32x4d"] {
        let graph = ArchSpec { width: 0.25, projector, ..ArchSpec::new(arch) }.build().unwrap();
        let config = PlanConfig::new(3, 32, 32, Mode::Train).with_taps(&["projection"]);
        let case = Case::new(graph, config, 3);
        let got = on_device::<f32>(&case, &["projection"], &driver);
        // The last maps have one pixel: statistics of three values magnify every rounding.
        assert_close(&got, &reference(&case, &["projection"]), [5e-3, 3e-2], arch);
        if arch != "resnet18" {
            continue;
        }
        let again = Case { config: case.config.clone().with_recompute(Recompute::Blocks), ..case };
        assert_eq!(got, on_device::<f32>(&again, &["projection"], &driver), "{arch}");
    }
}

#[test]
fn a_pass_that_is_repeated_sees_what_has_changed_in_its_memory() {
    let case = Case::new(everything(), PlanConfig::new(4, 9, 8, Mode::Train).with_taps(&["end"]), 4);
    let driver = Arc::new(Emulated::new().unwrap());
    let put = |values: &[f32]| {
        let mut memory = Memory::zeroed(&driver, 4 * values.len()).unwrap();
        memory.view_mut::<f32>(values.len()).upload(values, &*driver);
        memory
    };
    let mut plan = Plan::compile_with(&case.graph, &case.config, CudaKernels::<f32, Emulated>::new(&driver)).unwrap();
    let len = case.params.len();
    let (mut params, mut buffers, images) = (put(&case.params), put(&case.buffers), put(&case.images));
    let (d_end, mut gradients) = (put(&cotangent("end", 12)), put(&vec![0.0; len]));
    for step in 0..4 {
        let moved: Vec<f32> = case.params.iter().zip(noise(step, len)).map(|(p, d)| p + 0.1 * d).collect();
        params.view_mut::<f32>(len).upload(&moved, &*driver);
        buffers.view_mut::<f32>(case.buffers.len()).upload(&case.buffers, &*driver);
        let view = params.view(len);
        plan.forward(view, buffers.view_mut(case.buffers.len()), images.view(case.images.len()), 4).unwrap();
        plan.backward(view, &[("end", d_end.view(12))], gradients.view_mut(len)).unwrap();
        let got: Results = [("end", plan.output("end").unwrap()), ("gradients", gradients.view(len))]
            .map(|(what, view)| (what, view.download(&*driver).unwrap().iter().map(|v| f64::from(*v)).collect()))
            .into();
        let now = Case { params: moved, ..Case::new(case.graph.clone(), case.config.clone(), 4) };
        let mut fresh = on_device::<f32>(&now, &["end"], &driver);
        fresh.retain(|(what, _)| *what != "running statistics");
        assert_eq!(got, fresh, "step {step}");
        // The first pass runs, the second is recorded; both directions are done from the record from then on.
        assert_eq!(driver.replays(), 2 * step as usize);
    }
}

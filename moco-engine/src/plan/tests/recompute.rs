//! Recomputation: the same bits from less memory.

use super::*;
use crate::kernels::ReferenceKernels;
use crate::plan::program::Step;

/// Outputs, gradients and running statistics of two steps on different images.
fn two_steps(case: &Case, taps: &[&str], recompute: Recompute) -> Vec<Vec<f32>> {
    let mut plan = Plan::compile(&case.graph, &case.config.clone().with_recompute(recompute)).unwrap();
    assert_eq!(plan.segments.is_empty(), recompute == Recompute::Nothing);
    let mut buffers = case.buffers.clone();
    let mut results = vec![];
    for seed in [3, 4] {
        let images = noise(seed, case.images.len());
        plan.forward(&case.params, &mut buffers, &images, case.n).unwrap();
        let cotangents: Vec<_> = taps.iter().map(|tap| cotangent(tap, plan.output(tap).unwrap().len())).collect();
        let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
        let mut gradients = vec![f32::NAN; case.params.len()];
        plan.backward(&case.params, &d_taps, &mut gradients).unwrap();
        results.extend(taps.iter().map(|tap| plan.output(tap).unwrap().to_vec()));
        results.push(gradients);
    }
    results.push(buffers);
    results
}

#[test]
fn gradients_outputs_and_running_statistics_keep_every_bit() {
    let arch = |name: &str, stem| {
        let projector = Projector::Mlp { dim: 8 };
        ArchSpec { width: 0.25, projector, stem, ..ArchSpec::new(name) }.build().unwrap()
    };
    for (graph, taps) in [
        (everything(), &["end"][..]),
        (everything(), &["raw", "stem", "a", "b", "mean", "end"]),
        (arch("resnet18", Stem::Cifar), &["projection"]),
        (arch("resnet50", Stem::ImageNet), &["projection", "c3"]),
    ] {
        for groups in [BnGroups::Whole, BnGroups::Ranks(2), BnGroups::Interleaved(2)] {
            let config = PlanConfig::new(5, 33, 34, Mode::Train).with_taps(taps).with_bn_groups(groups);
            let case = Case::new(graph.clone(), config, 4);
            assert!(
                two_steps(&case, taps, Recompute::Nothing) == two_steps(&case, taps, Recompute::Blocks),
                "{taps:?} {groups:?}"
            );
        }
    }
}

#[test]
fn gradients_that_start_below_some_blocks_keep_every_bit() {
    let graph = tiny_resnet();
    let config = PlanConfig::new(3, 48, 48, Mode::Train).with_taps(&["c2", "c4", "projection"]);
    let case = Case::new(graph, config, 3);
    for taps in [&["c4"][..], &["c2", "c4"], &["c2"]] {
        assert!(two_steps(&case, taps, Recompute::Nothing) == two_steps(&case, taps, Recompute::Blocks), "{taps:?}");
    }
}

#[test]
fn other_kernels_recompute_as_well() {
    let case = Case::new(tiny_resnet(), PlanConfig::new(3, 32, 32, Mode::Train).with_taps(&["projection"]), 3);
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let run = |recompute| {
        let config = case.config.clone().with_recompute(recompute);
        let mut plan = Plan::compile_with(&case.graph, &config, ReferenceKernels::default()).unwrap();
        let params = wide(&case.params);
        plan.forward(&params, &mut wide(&case.buffers), &wide(&case.images), 3).unwrap();
        let cotangent = wide(&cotangent("projection", plan.output("projection").unwrap().len()));
        let mut gradients = vec![0.0; params.len()];
        plan.backward(&params, &[("projection", &cotangent)], &mut gradients).unwrap();
        gradients
    };
    assert!(run(Recompute::Nothing) == run(Recompute::Blocks));
}

#[test]
fn the_blocks_of_a_residual_network_are_recomputed_but_the_last() {
    let graph = ArchSpec { projector: Projector::Mlp { dim: 128 }, ..ArchSpec::new("resnet50") }.build().unwrap();
    let config = PlanConfig::new(2, 224, 224, Mode::Train).with_taps(&["projection"]);
    let (program, segments, _) =
        lay_out::<CpuKernels>(&graph, &config.clone().with_recompute(Recompute::Blocks)).unwrap();
    let convolutions: Vec<usize> = segments.iter().map(|s| s.again.len()).collect();
    // The stem, then 3, 4, 6 and 3 blocks, the first of each stage with a shortcut of its own.
    assert_eq!(convolutions, [1, 4, 3, 3, 4, 3, 3, 3, 4, 3, 3, 3, 3, 3, 4, 3]);
    for t in segments.iter().flat_map(|s| &s.again) {
        assert!(matches!(program.steps[*t], Step::Conv { .. }), "{:?}", program.steps[*t]);
    }
    for mode in [Mode::Eval, Mode::Momentum] {
        let of = |recompute| {
            let config = PlanConfig { mode, ..config.clone() }.with_recompute(recompute);
            Plan::estimate(&graph, &config).unwrap()
        };
        assert_eq!(of(Recompute::Blocks), of(Recompute::Nothing), "{mode:?}");
    }
}

#[test]
fn the_memory_of_a_large_network_falls_and_little_is_wasted() {
    for (name, batch, most) in [("resnet50", 16, 0.5), ("resnet50", 32, 0.5), ("resnet18", 32, 0.7)] {
        let graph = ArchSpec { projector: Projector::Mlp { dim: 128 }, ..ArchSpec::new(name) }.build().unwrap();
        let of = |recompute| {
            let config = PlanConfig::new(batch, 224, 224, Mode::Train).with_taps(&["projection"]);
            let config = config.with_recompute(recompute);
            let (program, segments, memory) = lay_out::<CpuKernels>(&graph, &config).unwrap();
            let (slots, least) = (memory.slots.iter().sum::<usize>(), memory::least(&program, &segments, &config));
            assert!(least <= slots && slots < 2 * least, "{name}: {slots} values for {least} at once");
            Plan::estimate(&graph, &config).unwrap()
        };
        let (kept, recomputed) = (of(Recompute::Nothing), of(Recompute::Blocks));
        let share = recomputed.activations as f64 / kept.activations as f64;
        assert!(share < most, "{name} batch {batch}: {recomputed:?} of {kept:?}");
        assert_eq!(recomputed.workspace, kept.workspace);
    }
}

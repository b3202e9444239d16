//! Parameters that are not trained, and batch normalisations that keep their statistics.

use super::heads::pyramid;
use super::*;

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

/// Gradients of the same network where nothing is frozen, with 0 where something is.
fn expected(case: &Case, taps: &[&str], frozen: &[&str]) -> Vec<f32> {
    let free = Case::new(case.graph.clone(), PlanConfig { frozen: vec![], ..case.config.clone() }, case.n);
    let mut gradients = free.gradients(taps);
    for (spec, range) in case.graph.parameter_layout().iter() {
        let node = spec.name.rsplit_once('.').unwrap().0;
        if frozen.iter().any(|f| node == *f || node.starts_with(&format!("{f}."))) {
            gradients[range].fill(0.0);
        }
    }
    gradients
}

#[test]
fn what_is_trained_gets_the_same_gradient_whatever_is_frozen() {
    let taps = ["raw", "stem", "a", "b", "mean", "end"];
    for running in [&[][..], &["stem_norm", "a1_norm", "short_norm", "b1_norm"], &["a2_norm", "c_norm", "fc1_norm"]] {
        for frozen in [
            &["stem"][..],
            &["stem", "stem_norm", "a1", "a1_norm", "a2", "a2_norm"],
            &["stem", "stem_norm", "a1", "a1_norm", "a2", "a2_norm", "short", "short_norm", "b1"],
            &["a1_norm", "a2_norm", "short_norm", "b1_norm", "c_norm", "fc1_norm", "fc2"],
            &["fc1", "fc1_norm", "fc2", "fc3"],
        ] {
            let config = PlanConfig::new(4, 9, 11, Mode::Train).with_running_norms(named(running));
            let case = Case::new(everything(), config.with_frozen(named(frozen)), 4);
            for taps in [&taps[..], &["end"], &["a"]] {
                let (got, want) = (case.gradients(taps), expected(&case, taps, frozen));
                assert!(got == want, "{frozen:?} frozen, running {running:?}, {taps:?}");
            }
            assert_agrees_with_reference(&case, &taps, 2e-5);
            let again = Case { config: case.config.clone().with_recompute(Recompute::Blocks), ..case };
            assert!(again.gradients(&["end"]) == expected(&again, &["end"], frozen), "{frozen:?}, recomputed");
        }
    }
}

#[test]
fn shared_layers_are_frozen_by_their_owners_name() {
    for frozen in [&["tower"][..], &["tower.0", "tower.4", "fc"], &["stem", "c2", "c2_norm", "lateral2_norm", "mix"]] {
        let config = PlanConfig::new(2, 13, 12, Mode::Train).with_frozen(named(frozen));
        let case = Case::new(pyramid(), config, 2);
        let taps = ["tower_p2", "tower_p3", "logits", "end"];
        assert!(case.gradients(&taps) == expected(&case, &taps, frozen), "{frozen:?}");
    }
}

#[test]
fn gradients_through_running_statistics_match_finite_differences() {
    let running = named(&["stem_norm", "a1_norm", "a2_norm", "b1_norm", "c_norm"]);
    let config = PlanConfig::new(3, 9, 7, Mode::Train).with_running_norms(running);
    Case::new(everything(), config, 3).check(&["end", "a"]);
}

#[test]
fn running_statistics_give_what_evaluation_gives_and_stay_to_the_bit() {
    let all: Vec<String> = everything().nodes().iter().map(|n| n.name.clone()).collect();
    for groups in [BnGroups::Whole, BnGroups::Ranks(2), BnGroups::Interleaved(2)] {
        let run = |mode, running: &[String]| {
            let config = PlanConfig::new(5, 9, 9, mode).with_bn_groups(groups).with_running_norms(running.to_vec());
            let case = Case::new(everything(), config, 5);
            let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
            let mut buffers = case.buffers.clone();
            plan.forward(&case.params, &mut buffers, &case.images, 5).unwrap();
            assert!(running.is_empty() || buffers == case.buffers, "{mode:?}");
            plan.output("end").unwrap().to_vec()
        };
        let evaluated = run(Mode::Eval, &[]);
        assert_eq!(run(Mode::Train, &all), evaluated);
        assert_eq!(run(Mode::Momentum, &all), evaluated);
        assert_ne!(run(Mode::Train, &[]), evaluated);
    }
    // One value a channel has no variance, but running statistics need none.
    let config = PlanConfig::new(1, 8, 8, Mode::Train).with_running_norms(all);
    let case = Case::new(everything(), config, 1);
    assert!(case.gradients(&["end"]).iter().all(|g| g.is_finite()));
}

#[test]
fn nothing_is_kept_below_the_lowest_trained_layer() {
    let projector = Projector::Mlp { dim: 16 };
    let graph = ArchSpec { projector, ..ArchSpec::new("resnet18") }.build().unwrap();
    let backbone = named(&["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]);
    let of = |mode, frozen: &[String]| {
        let config = PlanConfig::new(8, 96, 96, mode).with_taps(&["projection"]).with_frozen(frozen.to_vec());
        Plan::estimate(&graph, &config.with_running_norms(frozen.to_vec())).unwrap()
    };
    let (eval, all, head) = (of(Mode::Eval, &[]), of(Mode::Train, &[]), of(Mode::Train, &backbone));
    assert!(head.activations < eval.activations + eval.activations / 8, "{head:?}, evaluation {eval:?}");
    assert!(all.activations > 2 * head.activations, "{all:?} {head:?}");
    let stages = of(Mode::Train, &backbone[..4]);
    assert!(stages.activations < all.activations / 2, "{stages:?}, all {all:?}");
}

#[test]
fn names_of_nothing_are_refused() {
    let refused = |config: PlanConfig| Plan::estimate(&everything(), &config).unwrap_err().to_string();
    let config = || PlanConfig::new(1, 8, 8, Mode::Train);
    let error = refused(config().with_frozen(named(&["stem", "layer9"])));
    assert!(error.contains("`frozen`") && error.contains("layer9"), "{error}");
    assert!(refused(config().with_running_norms(named(&["ste"]))).contains("`running_norms` names `ste`"));
    assert!(refused(config().with_frozen(named(&[""]))).contains("``"));
}

/// The head of the pyramid on what its backbone gave, beside the whole network with a frozen backbone.
#[test]
fn given_features_give_the_same_bits_as_the_images_they_are_of() {
    let frozen = named(&["stem", "c2", "c2_norm", "c3", "c3_norm"]);
    let features = ["f0", "f2", "f3"];
    let mut graph = pyramid();
    for (tap, node) in features.iter().zip(["stem_relu", "c2_relu", "c3_relu"]) {
        let node = graph.nodes().iter().position(|n| n.name == node).unwrap();
        graph.add_tap(tap, NodeId(node));
    }
    let taps = ["tower_p2", "tower_p3", "logits", "end"];
    for n in [3, 2] {
        let config =
            PlanConfig::new(3, 13, 12, Mode::Train).with_frozen(frozen.clone()).with_running_norms(frozen.clone());
        let case = Case::new(graph.clone(), config.with_taps(&taps), n);
        let step = |config: &PlanConfig, images: &[f32]| {
            let mut plan = Plan::compile(&graph, config).unwrap();
            plan.forward(&case.params, &mut case.buffers.clone(), images, n).unwrap();
            let mut results: Vec<Vec<f32>> = taps.iter().map(|tap| plan.output(tap).unwrap().to_vec()).collect();
            let cotangents: Vec<_> = taps.iter().zip(&results).map(|(tap, y)| cotangent(tap, y.len())).collect();
            let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
            results.push(vec![f32::NAN; case.params.len()]);
            plan.backward(&case.params, &d_taps, results.last_mut().unwrap()).unwrap();
            results
        };
        let mut backbone = Plan::compile(&graph, &PlanConfig::new(3, 13, 12, Mode::Eval).with_taps(&features)).unwrap();
        backbone.forward(&case.params, &mut case.buffers.clone(), &case.images, n).unwrap();
        let given: Vec<f32> = features.iter().flat_map(|tap| backbone.output(tap).unwrap()).copied().collect();
        let config = case.config.clone().with_given(&features);
        assert!(step(&config, &given) == step(&case.config, &case.images), "{n} images");
        let again = config.with_recompute(Recompute::Blocks);
        assert!(step(&again, &given) == step(&case.config, &case.images), "{n} images, recomputed");
    }
}

#[test]
fn given_taps_that_make_no_sense_are_refused() {
    let refused = |given: &[&str], taps: &[&str]| {
        let config = PlanConfig::new(2, 9, 9, Mode::Train).with_taps(taps).with_given(given);
        Plan::estimate(&everything(), &config).unwrap_err().to_string()
    };
    assert!(refused(&["nowhere"], &["end"]).contains("nowhere"));
    assert!(refused(&["a", "a"], &["end"]).contains("given already"));
    assert!(refused(&["a", "mean"], &["a"]).contains("`mean`, which no tap of the plan needs"));
    let error = refused(&["a"], &["stem", "end"]);
    assert!(error.contains("`stem` needs the images, but only a"), "{error}");
    let config = PlanConfig::new(2, 9, 9, Mode::Eval).with_taps(&["end"]).with_given(&["mean"]);
    let case = Case::new(everything(), config, 2);
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    let error = plan.forward(&case.params, &mut case.buffers.clone(), &case.images, 2).unwrap_err().to_string();
    assert!(error.contains("given taps: expected 12 values"), "{error}");
}

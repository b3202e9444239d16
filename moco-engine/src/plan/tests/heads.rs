//! What heads are made of: group normalisation, resizing, concatenation, layers that serve more than once.

use moco_models::Interpolation::{Bilinear, Nearest};

use super::*;
use crate::Element;
use crate::kernels::ReferenceKernels;
use half::bf16;

fn group_norm(graph: &mut Graph, name: &str, x: NodeId, channels: usize, groups: usize) -> NodeId {
    graph.push(name, Op::GroupNorm { channels, groups, eps: 1e-5 }, &[x])
}

/// A pyramid of three levels with lateral sums and joined channels, towers that share a convolution, a group normalisation
/// and a linear layer, and results of the size of the images and below.
pub(super) fn pyramid() -> Graph {
    let mut g = Graph::new(2);
    let input = g.input();
    let x = conv(&mut g, "stem", input, [2, 8], 3, 1, true);
    let x = g.push("stem_relu", Op::Relu, &[x]);
    let c2 = conv(&mut g, "c2", x, [8, 8], 3, 2, false);
    let c2 = norm(&mut g, "c2_norm", c2, 8);
    let c2 = g.push("c2_relu", Op::Relu, &[c2]);
    let c3 = conv(&mut g, "c3", c2, [8, 12], 3, 2, false);
    let c3 = norm(&mut g, "c3_norm", c3, 12);
    let c3 = g.push("c3_relu", Op::Relu, &[c3]);
    let p3 = conv(&mut g, "lateral3", c3, [12, 8], 1, 1, true);
    let up = g.push("up", Op::Resize { interpolation: Nearest }, &[p3, c2]);
    let side = conv(&mut g, "lateral2", c2, [8, 8], 1, 1, false);
    let side = group_norm(&mut g, "lateral2_norm", side, 8, 2);
    let p2 = g.push("p2", Op::Add, &[side, up]);
    let mut levels = vec![];
    let mut first: Option<[NodeId; 4]> = None;
    for (level, x) in [("p2", p2), ("p3", p3)] {
        let nodes = match first {
            None => {
                let a = conv(&mut g, "tower.0", x, [8, 8], 3, 1, false);
                let n = group_norm(&mut g, "tower.1", a, 8, 4);
                let r = g.push("tower.2", Op::Relu, &[n]);
                let b = conv(&mut g, "tower.3", r, [8, 8], 3, 1, true);
                let m = group_norm(&mut g, "tower.4", b, 8, 1);
                let s = g.push("tower.5", Op::Relu, &[m]);
                levels.push(s);
                [a, n, b, m]
            }
            Some([a, n, b, m]) => {
                let a = g.push_tied(format!("{level}.0"), a, &[x]);
                let n = g.push_tied(format!("{level}.1"), n, &[a]);
                let r = g.push(format!("{level}.2"), Op::Relu, &[n]);
                let b = g.push_tied(format!("{level}.3"), b, &[r]);
                let m = g.push_tied(format!("{level}.4"), m, &[b]);
                let s = g.push(format!("{level}.5"), Op::Relu, &[m]);
                levels.push(s);
                [a, n, b, m]
            }
        };
        first = first.or(Some(nodes));
        g.add_tap(&format!("tower_{level}"), levels[levels.len() - 1]);
    }
    let down = g.push("down", Op::Resize { interpolation: Bilinear }, &[x, c3]);
    let large = g.push("large", Op::Resize { interpolation: Bilinear }, &[levels[1], levels[0]]);
    let joined = g.push("joined", Op::Concat, &[levels[0], large, c2]);
    let mixed = conv(&mut g, "mix", joined, [24, 6], 3, 1, true);
    let mixed = g.push("mix_relu", Op::Relu, &[mixed]);
    let mixed = conv(&mut g, "after", mixed, [6, 6], 1, 1, false);
    let mixed = g.push("after_relu", Op::Relu, &[mixed]);
    let mixed = group_norm(&mut g, "after_norm", mixed, 6, 3);
    let mixed = conv(&mut g, "last", mixed, [6, 6], 3, 1, false);
    let mixed = g.push("last_relu", Op::Relu, &[mixed]);
    let mixed = norm(&mut g, "last_norm", mixed, 6);
    let full = g.push("full", Op::Resize { interpolation: Bilinear }, &[mixed, input]);
    let logits = conv(&mut g, "logits", full, [6, 3], 1, 1, true);
    g.add_tap("logits", logits);
    let odd = g.push("odd", Op::Concat, &[down, c3, down]);
    let odd = group_norm(&mut g, "odd_norm", odd, 28, 7);
    let other = conv(&mut g, "odd_side", c3, [12, 28], 1, 1, false);
    let other = norm(&mut g, "odd_side_norm", other, 28);
    let odd = g.push("odd_add", Op::Add, &[odd, other]);
    let mean = g.push("mean", Op::GlobalAvgPool, &[odd]);
    let h = g.push("fc", Op::Linear { in_features: 28, out_features: 28, bias: true }, &[mean]);
    let h = g.push_tied("fc_again", h, &[h]);
    g.add_tap("end", h);
    g
}

const TAPS: [&str; 4] = ["tower_p2", "tower_p3", "logits", "end"];

/// Central differences of the f64 reference along one direction for each parameter tensor: small steps cross few kinks.
fn check_differences(case: &Case, taps: &[&str]) {
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let (params, images) = (wide(&case.params), wide(&case.images));
    let mut plan = Plan::compile_with(&case.graph, &case.config, ReferenceKernels::default()).unwrap();
    let mut cotangents = vec![];
    let mut gradients = vec![f64::NAN; params.len()];
    plan.forward(&params, &mut wide(&case.buffers), &images, case.n).unwrap();
    for tap in taps {
        cotangents.push(wide(&cotangent(tap, plan.output(tap).unwrap().len())));
    }
    let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    plan.backward(&params, &d_taps, &mut gradients).unwrap();
    for (spec, range) in case.graph.parameter_layout().iter() {
        let direction = wide(&noise(9, range.len()));
        let mut loss = |step: f64| {
            let mut moved = params.clone();
            moved[range.clone()].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
            plan.forward(&moved, &mut wide(&case.buffers), &images, case.n).unwrap();
            let dot =
                |(tap, d): (&&str, &Vec<f64>)| plan.output(tap).unwrap().iter().zip(d).map(|(y, d)| y * d).sum::<f64>();
            taps.iter().zip(&cotangents).map(dot).sum::<f64>()
        };
        let expected = [1e-5, 1e-6].map(|step| (loss(step) - loss(-step)) / (2.0 * step));
        let got: f64 = gradients[range].iter().zip(&direction).map(|(g, d)| g * d).sum();
        let close = expected.iter().any(|e| (got - e).abs() < 1e-5 * e.abs() + 1e-6);
        assert!(close, "{} of {taps:?}: got {got}, expected one of {expected:?}", spec.name);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let case = Case::new(pyramid(), PlanConfig::new(3, 13, 11, Mode::Train), 3);
    check_differences(&case, &TAPS);
    check_differences(&case, &["logits"]);
    let running = ["c2_norm", "c3_norm"].map(String::from).to_vec();
    check_differences(&Case { config: case.config.clone().with_running_norms(running), ..case }, &["tower_p3", "end"]);
}

#[test]
fn the_cpu_kernels_agree_with_the_reference_on_odd_sizes_and_partial_batches() {
    for (size, n) in [([13, 11], 5), ([13, 11], 3), ([8, 17], 5), ([33, 30], 4)] {
        let config = PlanConfig::new(5, size[0], size[1], Mode::Train);
        assert_agrees_with_reference(&Case::new(pyramid(), config, n), &TAPS, 2e-5);
    }
}

#[test]
fn recomputing_and_threads_change_no_bit() {
    let case = Case::new(pyramid(), PlanConfig::new(3, 21, 19, Mode::Train), 3);
    let first = case.gradients(&TAPS);
    for threads in [1, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(first == pool.install(|| case.gradients(&TAPS)), "{threads} threads");
    }
    let config = case.config.clone().with_recompute(Recompute::Blocks);
    assert!(first == Case::new(pyramid(), config, 3).gradients(&TAPS));
    let exact = Case::new(pyramid(), PlanConfig::new(2, 21, 19, Mode::Train), 2);
    let larger = Case::new(pyramid(), PlanConfig::new(5, 21, 19, Mode::Train), 2);
    assert!(exact.gradients(&TAPS) == larger.gradients(&TAPS));
}

#[test]
fn shared_layers_get_the_sum_of_what_their_uses_get_alone() {
    let shared = Case::new(pyramid(), PlanConfig::new(2, 16, 16, Mode::Train), 2);
    let [both, fine, coarse] = [&TAPS[..2], &TAPS[..1], &TAPS[1..2]].map(|taps| shared.gradients(taps));
    for (spec, range) in shared.graph.parameter_layout().iter().filter(|(s, _)| s.name.starts_with("tower")) {
        for i in range {
            let sum = f64::from(fine[i]) + f64::from(coarse[i]);
            assert!((f64::from(both[i]) - sum).abs() < 1e-4 * (1.0 + sum.abs()), "{}: {} {sum}", spec.name, both[i]);
        }
    }
}

#[test]
fn evaluation_gives_images_of_their_own_statistics() {
    let config = PlanConfig::new(3, 16, 18, Mode::Eval);
    let case = Case::new(pyramid(), config, 3);
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    let mut run = |images: &[f32], n| {
        plan.forward(&case.params, &mut case.buffers.clone(), images, n).unwrap();
        plan.output("logits").unwrap().to_vec()
    };
    let together = run(&case.images, 3);
    let one = case.images.len() / 3;
    for i in 0..3 {
        let alone = run(&case.images[i * one..][..one], 1);
        let len = alone.len();
        let far = alone.iter().zip(&together[i * len..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-5, "image {i}: {far}");
    }
}

fn step<T: Element>(case: &Case) -> Vec<Vec<f32>> {
    let mut plan = Plan::compile_with(&case.graph, &case.config, CpuKernels::<T>::default()).unwrap();
    plan.forward(&case.params, &mut case.buffers.clone(), &case.images, case.n).unwrap();
    let mut results: Vec<Vec<f32>> = TAPS.iter().map(|tap| plan.output(tap).unwrap().to_vec()).collect();
    let cotangents: Vec<_> = TAPS.iter().zip(&results).map(|(tap, y)| cotangent(tap, y.len())).collect();
    let d_taps: Vec<_> = TAPS.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    results.push(vec![f32::NAN; case.params.len()]);
    plan.backward(&case.params, &d_taps, results.last_mut().unwrap()).unwrap();
    results
}

#[test]
fn bf16_agrees_with_f32_within_its_rounding() {
    let case = Case::new(pyramid(), PlanConfig::new(4, 33, 30, Mode::Train), 4);
    for (i, (got, want)) in step::<bf16>(&case).iter().zip(&step::<f32>(&case)).enumerate() {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosine = dot(got, want) / (dot(got, got) * dot(want, want)).sqrt();
        // Of the last, the gradients, some pass through a ReLU that rounding has opened or closed.
        assert!(1.0 - cosine < if i < TAPS.len() { 1e-3 } else { 5e-2 }, "result {i}: {cosine}");
    }
}

//! The plan against what it must give, on graphs small enough to check by finite differences.

#[cfg(feature = "cuda-emulation")]
mod emulated;
mod frozen;
mod heads;
mod precision;
mod recompute;
mod recorded;

use moco_models::arch::{ArchSpec, Projector, Stem};
use moco_models::{Graph, NodeId, Op};

use super::*;

/// Values in [−1, 1) that differ from each other, the same in every run.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn weights(graph: &Graph) -> (Vec<f32>, Vec<f32>) {
    let mut params = noise(1, graph.parameter_layout().len());
    for (spec, range) in graph.parameter_layout().iter() {
        let fan = spec.numel() / spec.shape[0];
        for v in &mut params[range] {
            *v = if spec.name.ends_with("weight") && spec.shape.len() == 1 {
                1.0 + 0.3 * *v
            } else {
                *v * (2.0 / fan as f32).sqrt()
            };
        }
    }
    let mut buffers = noise(2, graph.buffer_layout().len());
    for (spec, range) in graph.buffer_layout().iter().filter(|(s, _)| s.name.ends_with("running_var")) {
        assert!(spec.numel() > 0);
        buffers[range].iter_mut().for_each(|v| *v = 1.0 + 0.5 * *v);
    }
    (params, buffers)
}

fn conv(
    graph: &mut Graph,
    name: &str,
    x: NodeId,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    bias: bool,
) -> NodeId {
    let [in_channels, out_channels] = channels;
    let padding = kernel / 2;
    graph.push(name, Op::Conv2d { in_channels, out_channels, kernel, stride, padding, groups: 1, bias }, &[x])
}

fn norm(graph: &mut Graph, name: &str, x: NodeId, channels: usize) -> NodeId {
    graph.push(name, Op::BatchNorm { channels, eps: 1e-5, momentum: 0.1 }, &[x])
}

/// Every kind of step and every way of joining: a stem with pooling, a residual block with a shortcut that changes
/// size, one without, a plain addition, a value added to itself, linear layers with and without ReLU.
fn everything() -> Graph {
    let mut g = Graph::new(2);
    let input = g.input();
    let x = conv(&mut g, "stem", input, [2, 4], 3, 1, true);
    g.add_tap("raw", x);
    let x = norm(&mut g, "stem_norm", x, 4);
    let x = g.push("stem_relu", Op::Relu, &[x]);
    g.add_tap("stem", x);
    let pooled = g.push("pool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x]);
    let y = conv(&mut g, "a1", pooled, [4, 6], 3, 2, false);
    let y = norm(&mut g, "a1_norm", y, 6);
    let y = g.push("a1_relu", Op::Relu, &[y]);
    let y = conv(&mut g, "a2", y, [6, 6], 3, 1, false);
    let y = norm(&mut g, "a2_norm", y, 6);
    let s = conv(&mut g, "short", pooled, [4, 6], 1, 2, false);
    let s = norm(&mut g, "short_norm", s, 6);
    let sum = g.push("a_add", Op::Add, &[y, s]);
    let a = g.push("a_relu", Op::Relu, &[sum]);
    g.add_tap("a", a);
    let y = conv(&mut g, "b1", a, [6, 6], 1, 1, false);
    let y = norm(&mut g, "b1_norm", y, 6);
    let b = g.push("b_add", Op::Add, &[a, y]);
    g.add_tap("b", b);
    let y = norm(&mut g, "c_norm", b, 6);
    let c = g.push("c_add", Op::Add, &[y, b]);
    let twice = g.push("twice", Op::Add, &[c, c]);
    let relu = g.push("relu", Op::Relu, &[twice]);
    let other = g.push("other", Op::Add, &[relu, b]);
    let mean = g.push("mean", Op::GlobalAvgPool, &[other]);
    g.add_tap("mean", mean);
    let h = g.push("fc1", Op::Linear { in_features: 6, out_features: 5, bias: true }, &[mean]);
    let h = norm(&mut g, "fc1_norm", h, 5);
    let h = g.push("fc1_relu", Op::Relu, &[h]);
    let h = g.push("fc2", Op::Linear { in_features: 5, out_features: 7, bias: true }, &[h]);
    let h = g.push("fc2_relu", Op::Relu, &[h]);
    let h = g.push("fc3", Op::Linear { in_features: 7, out_features: 3, bias: false }, &[h]);
    g.add_tap("end", h);
    g
}

struct Case {
    graph: Graph,
    config: PlanConfig,
    n: usize,
    params: Vec<f32>,
    buffers: Vec<f32>,
    images: Vec<f32>,
}

impl Case {
    fn new(graph: Graph, config: PlanConfig, n: usize) -> Case {
        let (params, buffers) = weights(&graph);
        let images = noise(3, n * config.height * config.width * graph.in_channels());
        Case { graph, config, n, params, buffers, images }
    }

    /// Σ over taps of tap · cotangent, and the cotangents.
    fn loss(&self, params: &[f32], taps: &[&str]) -> f64 {
        let mut plan = Plan::compile(&self.graph, &self.config).unwrap();
        plan.forward(params, &mut self.buffers.clone(), &self.images, self.n).unwrap();
        taps.iter()
            .map(|tap| {
                let y = plan.output(tap).unwrap();
                y.iter().zip(cotangent(tap, y.len())).map(|(y, d)| f64::from(*y) * f64::from(d)).sum::<f64>()
            })
            .sum()
    }

    fn gradients(&self, taps: &[&str]) -> Vec<f32> {
        let mut plan = Plan::compile(&self.graph, &self.config).unwrap();
        plan.forward(&self.params, &mut self.buffers.clone(), &self.images, self.n).unwrap();
        let cotangents: Vec<_> = taps.iter().map(|tap| cotangent(tap, plan.output(tap).unwrap().len())).collect();
        let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
        let mut gradients = vec![f32::NAN; self.params.len()];
        plan.backward(&self.params, &d_taps, &mut gradients).unwrap();
        gradients
    }

    /// Central differences along random directions, one for each parameter tensor: kinks of ReLU and max pooling make
    /// single coordinates unreliable, sums over a tensor are not.
    fn check(&self, taps: &[&str]) {
        let gradients = self.gradients(taps);
        for (spec, range) in self.graph.parameter_layout().iter() {
            let direction = noise(9, range.len());
            let expected = [1e-3, 3e-4, 1e-4, 3e-5].map(|step: f32| {
                let moved = |sign: f32| {
                    let mut params = self.params.clone();
                    for (p, d) in params[range.clone()].iter_mut().zip(&direction) {
                        *p += sign * step * d;
                    }
                    self.loss(&params, taps)
                };
                (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step))
            });
            let got: f64 = gradients[range].iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size = expected.iter().map(|e| e.abs()).fold(0.0, f64::max);
            let close = expected.iter().any(|e| (got - e).abs() < 2e-2 * size + 3e-3);
            assert!(close, "{} of {taps:?}: got {got}, expected one of {expected:?}", spec.name);
        }
    }
}

fn cotangent(tap: &str, len: usize) -> Vec<f32> {
    noise(tap.bytes().map(u64::from).sum(), len)
}

#[test]
fn gradients_of_every_step_match_finite_differences() {
    let case = Case::new(everything(), PlanConfig::new(4, 9, 7, Mode::Train), 4);
    case.check(&["end"]);
}

#[test]
fn taps_in_the_middle_receive_gradients() {
    let case = Case::new(everything(), PlanConfig::new(3, 7, 9, Mode::Train), 3);
    case.check(&["raw", "stem", "a", "b", "mean", "end"]);
    case.check(&["a", "mean"]);
    case.check(&["raw"]);
}

#[test]
fn parameters_above_the_last_gradient_get_zero() {
    let case = Case::new(everything(), PlanConfig::new(3, 8, 8, Mode::Train), 3);
    let gradients = case.gradients(&["a"]);
    for (spec, range) in case.graph.parameter_layout().iter() {
        let zero = gradients[range].iter().all(|g| *g == 0.0);
        let above = ["b1", "c_", "fc"].iter().any(|p| spec.name.starts_with(p));
        assert_eq!(zero, above, "{}", spec.name);
    }
}

#[test]
fn gradients_with_groups_and_a_partial_batch_match_finite_differences() {
    for groups in [BnGroups::Ranks(2), BnGroups::Interleaved(2)] {
        let config = PlanConfig::new(7, 8, 8, Mode::Train).with_bn_groups(groups);
        Case::new(everything(), config, 5).check(&["end", "a"]);
    }
}

#[test]
fn a_partial_batch_gives_the_same_as_a_plan_of_its_size() {
    let exact = Case::new(everything(), PlanConfig::new(3, 8, 8, Mode::Train), 3);
    let larger = Case::new(everything(), PlanConfig::new(8, 8, 8, Mode::Train), 3);
    assert_eq!(exact.gradients(&["end", "stem"]), larger.gradients(&["end", "stem"]));
}

#[test]
fn the_same_plan_gives_the_same_bits_again_and_on_one_thread() {
    let case = Case::new(tiny_resnet(), PlanConfig::new(5, 32, 32, Mode::Train), 5);
    let first = case.gradients(&["projection"]);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let five = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    assert_eq!(first, one.install(|| case.gradients(&["projection"])));
    assert_eq!(first, five.install(|| case.gradients(&["projection"])));
}

fn tiny_resnet() -> Graph {
    let projector = Projector::Mlp { dim: 8 };
    ArchSpec { width: 0.125, projector, ..ArchSpec::new("resnet50") }.build().unwrap()
}

#[test]
fn momentum_and_train_mode_give_the_same_outputs_and_running_statistics() {
    for groups in [BnGroups::Whole, BnGroups::Ranks(3), BnGroups::Interleaved(2)] {
        let run = |mode| {
            let case = Case::new(everything(), PlanConfig::new(6, 9, 9, mode).with_bn_groups(groups), 6);
            let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
            let mut buffers = case.buffers.clone();
            plan.forward(&case.params, &mut buffers, &case.images, 6).unwrap();
            let outputs: Vec<_> =
                ["raw", "stem", "a", "b", "mean", "end"].map(|t| plan.output(t).unwrap().to_vec()).into();
            (outputs, buffers)
        };
        assert_eq!(run(Mode::Train), run(Mode::Momentum), "{groups:?}");
    }
}

/// One batch norm on the images, computed by hand for every group.
#[test]
fn each_group_has_its_own_statistics_and_the_running_ones_follow_the_rule() {
    let mut graph = Graph::new(3);
    let input = graph.input();
    let y = norm(&mut graph, "bn", input, 3);
    graph.add_tap("y", y);
    let (n, pixels) = (7, 4);
    for groups in [BnGroups::Whole, BnGroups::Ranks(3), BnGroups::Interleaved(3)] {
        let case = Case::new(graph.clone(), PlanConfig::new(n, 2, 2, Mode::Train).with_bn_groups(groups), n);
        let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
        let mut buffers = case.buffers.clone();
        plan.forward(&case.params, &mut buffers, &case.images, n).unwrap();
        let y = plan.output("y").unwrap();
        let mut running = [vec![], vec![]];
        for c in 0..3 {
            for group in groups.of(n) {
                let at = |i: usize, p: usize| (i * pixels + p) * 3 + c;
                let values: Vec<f64> = group
                    .samples()
                    .flat_map(|i| (0..pixels).map(move |p| at(i, p)))
                    .map(|at| f64::from(case.images[at]))
                    .collect();
                let count = values.len() as f64;
                let mean = values.iter().sum::<f64>() / count;
                let square: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
                for (i, p) in group.samples().flat_map(|i| (0..pixels).map(move |p| (i, p))) {
                    let unit = (f64::from(case.images[at(i, p)]) - mean) / (square / count + 1e-5).sqrt();
                    let expected = unit * f64::from(case.params[c]) + f64::from(case.params[3 + c]);
                    assert!((f64::from(y[at(i, p)]) - expected).abs() < 1e-5, "{groups:?} sample {i}");
                }
                running[0].push((c, mean));
                running[1].push((c, square / (count - 1.0)));
            }
        }
        for (field, running) in running.iter().enumerate() {
            for c in 0..3 {
                let groups_of_c: Vec<f64> = running.iter().filter(|(of, _)| *of == c).map(|(_, v)| *v).collect();
                let new = match groups {
                    BnGroups::Interleaved(_) => groups_of_c.iter().sum::<f64>() / groups_of_c.len() as f64,
                    _ => groups_of_c[0],
                };
                let expected = 0.9 * f64::from(case.buffers[field * 3 + c]) + 0.1 * new;
                assert!((f64::from(buffers[field * 3 + c]) - expected).abs() < 1e-6, "{groups:?} {field} {c}");
            }
        }
    }
}

#[test]
fn statistics_stay_accurate_far_from_zero() {
    let mut graph = Graph::new(1);
    let input = graph.input();
    let y = norm(&mut graph, "bn", input, 1);
    graph.add_tap("y", y);
    let mut case = Case::new(graph, PlanConfig::new(2, 300, 300, Mode::Train), 2);
    case.images.iter_mut().for_each(|v| *v += 1000.0);
    (case.params[0], case.params[1]) = (1.0, 0.0);
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    plan.forward(&case.params, &mut case.buffers.clone(), &case.images, 2).unwrap();
    let y = plan.output("y").unwrap();
    let square = y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / y.len() as f64;
    assert!((square - 1.0).abs() < 1e-4, "{square}");
}

#[test]
fn one_value_per_channel_is_refused_and_changes_nothing() {
    let case = Case::new(everything(), PlanConfig::new(4, 8, 8, Mode::Train), 1);
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    let mut buffers = case.buffers.clone();
    let error = plan.forward(&case.params, &mut buffers, &case.images, 1).unwrap_err();
    assert!(error.to_string().contains("fc1_norm"), "{error}");
    assert_eq!(buffers, case.buffers);
    let images = noise(3, 4 * 8 * 8 * 2);
    let mut grouped = Plan::compile(&case.graph, &case.config.clone().with_bn_groups(BnGroups::Ranks(3))).unwrap();
    assert!(matches!(grouped.forward(&case.params, &mut buffers, &images, 4), Err(Error::OneValuePerChannel { .. })));
    let config = PlanConfig { mode: Mode::Eval, ..case.config.clone() };
    Plan::compile(&case.graph, &config).unwrap().forward(&case.params, &mut buffers, &case.images, 1).unwrap();
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let case = Case::new(everything(), PlanConfig::new(4, 8, 8, Mode::Train).with_taps(&["a"]), 4);
    let (params, images) = (&case.params[..], &case.images[..]);
    let mut buffers = case.buffers.clone();
    let mut gradients = vec![0.0; params.len()];
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    assert!(matches!(plan.output("a"), Err(Error::State(_))));
    assert!(plan.output("end").unwrap_err().to_string().contains("compiled for a"));
    assert!(matches!(plan.backward(params, &[], &mut gradients), Err(Error::State(_))));
    assert!(matches!(plan.forward(params, &mut buffers, images, 5), Err(Error::Batch { batch: 4, got: 5 })));
    assert!(matches!(plan.forward(params, &mut buffers, images, 3), Err(Error::Length { .. })));
    assert!(matches!(plan.forward(&params[1..], &mut buffers, images, 4), Err(Error::Length { .. })));
    plan.forward(params, &mut buffers, images, 4).unwrap();
    assert!(matches!(plan.backward(params, &[("a", &[0.0])], &mut gradients), Err(Error::Length { .. })));
    plan.backward(params, &[], &mut gradients).unwrap();
    assert!(matches!(plan.backward(params, &[], &mut gradients), Err(Error::State(_))));
    for config in [
        PlanConfig::new(0, 8, 8, Mode::Eval),
        PlanConfig::new(1, 8, 8, Mode::Eval).with_bn_groups(BnGroups::Ranks(0)),
        PlanConfig::new(1, 8, 8, Mode::Eval).with_taps(&["nowhere"]),
        PlanConfig::new(1, 0, 8, Mode::Eval),
        PlanConfig::new(1, usize::MAX, 8, Mode::Eval),
        PlanConfig::new(usize::MAX / 8, 8, 8, Mode::Eval),
    ] {
        assert!(Plan::estimate(&case.graph, &config).is_err(), "{config:?}");
    }
}

#[test]
fn the_estimate_is_what_is_allocated_and_eval_needs_little() {
    let graph = ArchSpec { stem: Stem::Cifar, ..ArchSpec::new("resnet18") }.build().unwrap();
    let config = |mode| PlanConfig::new(8, 32, 32, mode).with_taps(&["pooled"]);
    for mode in [Mode::Eval, Mode::Momentum, Mode::Train] {
        let plan = Plan::compile(&graph, &config(mode)).unwrap();
        assert_eq!(Plan::estimate(&graph, &config(mode)).unwrap().total(), plan.memory_bytes());
        let slots: usize = plan.slots.iter().flatten().map(|s| 4 * s.len()).sum();
        let stats: usize = plan.stats.iter().map(|s| 4 * s.len()).sum();
        assert!(slots + stats <= plan.memory_bytes());
    }
    let largest = 8 * 32 * 32 * 64 * 4;
    let eval = Plan::estimate(&graph, &config(Mode::Eval)).unwrap().activations;
    assert!(eval <= 4 * largest, "{} maps of the first stage", eval as f64 / largest as f64);
    let train = Plan::estimate(&graph, &config(Mode::Train)).unwrap().activations;
    assert!(train > 2 * eval, "{train} {eval}");
}

/// The fast kernels against their f64 twin: outputs, gradients and running statistics, in every grouping, for a batch
/// that fills the plan and one that does not.
#[test]
fn the_cpu_kernels_agree_with_the_reference() {
    let taps = ["raw", "stem", "a", "b", "mean", "end"];
    for groups in [BnGroups::Whole, BnGroups::Ranks(2), BnGroups::Interleaved(3)] {
        for n in [6, 8] {
            let config = PlanConfig::new(8, 13, 10, Mode::Train).with_bn_groups(groups);
            assert_agrees_with_reference(&Case::new(everything(), config, n), &taps, 2e-5);
        }
    }
}

/// Outputs, gradients and running statistics within `bound` of the size of each.
fn assert_agrees_with_reference(case: &Case, taps: &[&str], bound: f64) {
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let mut plan = Plan::compile(&case.graph, &case.config).unwrap();
    let mut twin = Plan::compile_with(&case.graph, &case.config, crate::kernels::ReferenceKernels::default()).unwrap();
    let (mut buffers, mut twin_buffers) = (case.buffers.clone(), wide(&case.buffers));
    plan.forward(&case.params, &mut buffers, &case.images, case.n).unwrap();
    twin.forward(&wide(&case.params), &mut twin_buffers, &wide(&case.images), case.n).unwrap();
    let mut compared = vec![("running statistics", buffers, twin_buffers)];
    let mut cotangents = vec![];
    for tap in taps {
        let (y, twin_y) = (plan.output(tap).unwrap(), twin.output(tap).unwrap());
        cotangents.push(cotangent(tap, y.len()));
        compared.push((tap, y.to_vec(), twin_y.to_vec()));
    }
    let twin_cotangents: Vec<_> = cotangents.iter().map(|c| wide(c)).collect();
    let d_taps: Vec<_> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    let twin_d_taps: Vec<_> = taps.iter().zip(&twin_cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
    let mut gradients = vec![f32::NAN; case.params.len()];
    let mut twin_gradients = vec![f64::NAN; case.params.len()];
    plan.backward(&case.params, &d_taps, &mut gradients).unwrap();
    twin.backward(&wide(&case.params), &twin_d_taps, &mut twin_gradients).unwrap();
    compared.push(("gradients", gradients, twin_gradients));
    for (what, got, expected) in compared {
        let error: f64 = got.iter().zip(&expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
        let size: f64 = expected.iter().map(|e| e * e).sum();
        let config = &case.config;
        assert!(
            error.sqrt() <= bound * size.sqrt(),
            "{config:?}, {} images, {what}: {}",
            case.n,
            (error / size).sqrt()
        );
    }
}

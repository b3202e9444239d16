//! A step by its closed forms; whole trainings against the reference are compared in `tests/parity`.

use moco_engine::ops::l2_normalise;
use moco_image::Rng;
use moco_models::arch::{ArchSpec, Projector, Stem};
use moco_models::init::initialise;

use moco_engine::{BnGroups, Recompute};

use super::*;

const DIM: usize = 8;
const SIZE: usize = 16;
const SGD: Sgd = Sgd { lr: 0.05, momentum: 0.9, weight_decay: 1e-4 };

fn graph() -> Graph {
    let projector = Projector::Mlp { dim: DIM };
    ArchSpec { width: 0.125, stem: Stem::Cifar, projector, ..ArchSpec::new("resnet18") }.build().unwrap()
}

fn config() -> MocoConfig {
    MocoConfig {
        batch: 9,
        size: [SIZE, SIZE],
        temperature: 0.2,
        key_momentum: 0.9,
        symmetric: false,
        mask_same_image: false,
        bn_groups: BnGroups::Ranks(2),
        recompute: Recompute::Nothing,
    }
}

fn moco(config: MocoConfig, queue: usize) -> Moco {
    let graph = graph();
    Moco::new(&graph, config, MocoState::new(initialise(&graph, 1), queue, DIM, 1)).unwrap()
}

fn view(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(9, stream);
    (0..n * SIZE * SIZE * 3).map(|_| rng.normal() as f32).collect()
}

fn step(moco: &mut Moco, n: usize, stream: u64, shuffles: &[Shuffle]) -> StepReport {
    let (a, b) = (view(n, stream), view(n, stream + 1));
    let images: Vec<u64> = (0..n as u64).collect();
    moco.step(&Views { views: [&a, &b], images: &images }, shuffles, &SGD).unwrap()
}

#[test]
fn key_encoder_gets_no_gradient_and_keeps_its_own_statistics() {
    let mut still = moco(MocoConfig { key_momentum: 1.0, ..config() }, 20);
    let before = still.state().unwrap().into_owned().key;
    step(&mut still, 8, 1, &[]);
    let state = still.state().unwrap();
    assert_eq!(*state.key.params, before.params);
    assert_ne!(*state.key.buffers, before.buffers, "the key encoder has batch statistics of its own");
    assert_ne!(state.key.buffers, state.query.buffers);
    assert_ne!(*state.query.params, before.params);
}

#[test]
fn key_encoder_follows_by_its_momentum() {
    let mut m = moco(config(), 20);
    step(&mut m, 8, 1, &[]);
    let MocoState { query, key, .. } = m.state().unwrap().into_owned();
    step(&mut m, 8, 3, &[]);
    for (i, got) in m.state().unwrap().key.params.iter().enumerate() {
        let expected = 0.9 * key.params[i] + 0.1 * query.params[i];
        assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{i}: {got} instead of {expected}");
    }
}

#[test]
fn any_batch_and_any_queue_go_together() {
    let mut m = moco(config(), 7);
    let mut pointer = 0;
    for (i, n) in [9, 4, 8, 5].into_iter().enumerate() {
        let report = step(&mut m, n, i as u64 * 2, &[]);
        pointer = (pointer + n) % 7;
        assert!(report.loss.is_finite());
        assert_eq!(m.state().unwrap().queue.pointer(), pointer);
    }
}

#[test]
fn shuffling_changes_who_shares_statistics_and_nothing_with_one_group() {
    let shuffle = || Shuffle::new(vec![4, 1, 6, 3, 0, 5, 2, 7]).unwrap();
    let run = |groups, shuffles: &[Shuffle]| {
        let mut m = moco(MocoConfig { bn_groups: groups, ..config() }, 20);
        step(&mut m, 8, 1, shuffles);
        m.keys().unwrap()
    };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let whole = distance(&run(BnGroups::Whole, &[]), &run(BnGroups::Whole, &[shuffle()]));
    let ranks = distance(&run(BnGroups::Ranks(2), &[]), &run(BnGroups::Ranks(2), &[shuffle()]));
    assert!(whole < 1e-4, "one group: keys moved by {whole}");
    assert!(ranks > 1e-2, "two groups: keys moved by {ranks} only");
}

#[test]
fn symmetric_loss_is_the_sum_of_both_directions_and_keys_of_view_1_come_first() {
    let one_way = |swap: bool| {
        let mut m = moco(MocoConfig { key_momentum: 0.9, ..config() }, 40);
        let (a, b) = if swap { (view(8, 2), view(8, 1)) } else { (view(8, 1), view(8, 2)) };
        let images: Vec<u64> = (0..8).collect();
        let report = m.step(&Views { views: [&a, &b], images: &images }, &[], &SGD).unwrap();
        (report.loss, m.gradients().unwrap().to_vec(), m.keys().unwrap())
    };
    let ((loss_12, gradient_12, keys_2), (loss_21, gradient_21, keys_1)) = (one_way(false), one_way(true));
    let mut m = moco(MocoConfig { symmetric: true, ..config() }, 40);
    let report = step(&mut m, 8, 1, &[]);
    assert!((report.loss - loss_12 - loss_21).abs() < 1e-9);
    assert_eq!(m.keys().unwrap(), [keys_1, keys_2].concat());
    assert_eq!(m.state().unwrap().queue.pointer(), 16);
    for (i, got) in m.gradients().unwrap().iter().enumerate() {
        assert_eq!(*got, gradient_21[i] + gradient_12[i], "gradient {i}");
    }
}

#[test]
fn masked_keys_of_the_same_image_are_no_negatives() {
    // All keys of the queue are older views of image 0.
    let graph = graph();
    let masked = MocoConfig { mask_same_image: true, batch: 2, bn_groups: BnGroups::Whole, ..config() };
    let mut state = MocoState::new(initialise(&graph, 1), 6, DIM, 1);
    let mut keys = vec![0.0; 6 * DIM];
    l2_normalise(&[1.0; 6 * DIM], DIM, &mut keys);
    state.queue.enqueue(&keys, &[0, 0, 0, 0, 0, 0]);
    let run = |config| {
        let mut m = Moco::new(&graph, config, state.clone()).unwrap();
        let (a, b) = (view(2, 1), view(2, 2));
        m.step(&Views { views: [&a, &b], images: &[0, 1] }, &[], &SGD).unwrap()
    };
    let (with, without) = (run(masked.clone()), run(MocoConfig { mask_same_image: false, ..masked }));
    // Image 0 has no negatives and a loss of 0; image 1 keeps all of its own.
    assert!(with.loss < without.loss, "{} and {}", with.loss, without.loss);
}

#[test]
fn identical_keys_give_loss_ln_k_plus_1() {
    let graph = graph();
    let mut weights = initialise(&graph, 1);
    // With a projector that is only a bias, every embedding is the same unit vector.
    for (spec, range) in graph.parameter_layout().iter() {
        match spec.name.as_str() {
            "fc.2.weight" => weights.params[range].fill(0.0),
            "fc.2.bias" => weights.params[range].fill(1.0),
            _ => {}
        }
    }
    let mut state = MocoState::new(weights, 50, DIM, 1);
    let same = vec![1.0 / (DIM as f32).sqrt(); 50 * DIM];
    state.queue.enqueue(&same, &[0; 50]);
    let mut m = Moco::new(&graph, config(), state).unwrap();
    let report = step(&mut m, 8, 1, &[]);
    assert!((report.loss - 51f64.ln()).abs() < 1e-4, "{}", report.loss);
}

#[test]
fn a_state_of_another_network_is_refused() {
    let state = MocoState::new(initialise(&graph(), 1), 20, DIM + 1, 1);
    assert!(Moco::new(&graph(), config(), state).is_err());
}

#[test]
fn accuracy_with_running_statistics_changes_nothing() {
    let mut m = moco(config(), 20);
    step(&mut m, 8, 1, &[]);
    let before = m.state().unwrap().into_owned();
    let (a, b) = (view(8, 1), view(8, 2));
    let accuracy = m
        .accuracy_with_running_stats(Input::Views(&Views { views: [&a, &b], images: &[0, 1, 2, 3, 4, 5, 6, 7] }))
        .unwrap();
    assert!((0.0..=1.0).contains(&accuracy));
    assert_eq!(m.state().unwrap(), before.as_ref());
}

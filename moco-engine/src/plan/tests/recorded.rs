//! What PyTorch gives for the steps of heads (`fixtures/make.py`).

use moco_models::Interpolation;
use safetensors::SafeTensors;

use super::*;
use crate::kernels::{Mask, NormOffsets, ReferenceKernels, Residual, ResizeShape, Statistics};

/// A recorded tensor.
fn tensor(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let words = view.data().as_chunks().0;
    (view.shape().to_vec(), words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn with_file(run: impl FnOnce(&SafeTensors<'_>)) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/heads.safetensors");
    let bytes = std::fs::read(path).unwrap();
    run(&SafeTensors::deserialize(&bytes).unwrap());
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().map(|w| w.abs()).fold(1.0, f32::max);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * size, "{what}, value {i}: got {g}, expected {w}");
    }
}

fn ready(need: Need) -> CpuKernels {
    let mut kernels = CpuKernels::default();
    kernels.expect(&need, true);
    kernels.allocate_workspace().unwrap();
    kernels
}

#[test]
fn resizing_up_down_and_by_odd_ratios_is_pytorchs() {
    with_file(|file| {
        for (mode, interpolation) in [("nearest", Interpolation::Nearest), ("bilinear", Interpolation::Bilinear)] {
            for case in 0..7 {
                let name = format!("{mode}.{case}");
                let [x, y, dy, dx] = ["x", "y", "dy", "dx"].map(|part| tensor(file, &format!("{name}.{part}")));
                let (n, channels) = (x.0[0], x.0[3]);
                let (input, output) = ([x.0[1], x.0[2]], [y.0[1], y.0[2]]);
                let shape = ResizeShape { n, input, output, channels, interpolation };
                let mut kernels = ready(Need::Resize(shape));
                let mut got = vec![f32::NAN; y.1.len()];
                kernels.resize(&shape, &x.1, &mut got);
                assert_close(&name, &got, &y.1, 1e-6);
                let mut got = vec![f32::NAN; x.1.len()];
                kernels.resize_backward(&shape, &dy.1, &mut got, false);
                assert_close(&format!("gradient of {name}"), &got, &dx.1, 2e-6);
                kernels.resize_backward(&shape, &dy.1, &mut got, true);
                let twice: Vec<f32> = dx.1.iter().map(|v| 2.0 * v).collect();
                assert_close(&format!("gradient of {name}, added"), &got, &twice, 4e-6);
            }
        }
    });
}

#[test]
fn the_reference_resizes_as_pytorch_does() {
    with_file(|file| {
        for (mode, interpolation) in [("nearest", Interpolation::Nearest), ("bilinear", Interpolation::Bilinear)] {
            for case in 0..7 {
                let [x, y] = ["x", "y"].map(|part| tensor(file, &format!("{mode}.{case}.{part}")));
                let (input, output) = ([x.0[1], x.0[2]], [y.0[1], y.0[2]]);
                let shape = ResizeShape { n: x.0[0], input, output, channels: x.0[3], interpolation };
                let wide: Vec<f64> = x.1.iter().map(|v| f64::from(*v)).collect();
                let mut got = vec![f64::NAN; y.1.len()];
                ReferenceKernels::default().resize(&shape, &wide, &mut got);
                let got: Vec<f32> = got.iter().map(|v| *v as f32).collect();
                assert_close(&format!("{mode}.{case}"), &got, &y.1, 1e-5);
            }
        }
    });
}

#[test]
fn group_normalisation_with_relu_is_pytorchs() {
    with_file(|file| {
        for case in 0..4 {
            let part = |part: &str| tensor(file, &format!("group_norm.{case}.{part}"));
            let [x, y, dy, dx] = ["x", "y", "dy", "dx"].map(part);
            let [weight, bias, d_weight, d_bias, groups] =
                ["weight", "bias", "d_weight", "d_bias", "groups"].map(|p| part(p).1);
            let map = crate::kernels::MapShape { n: x.0[0], pixels: x.0[1] * x.0[2], channels: x.0[3] };
            let statistics = Statistics::Image { groups: groups[0] as usize };
            // A plan for more images than there are.
            let groups = BnGroups::Ranks(map.n + 2);
            let shape = NormShape { map, groups, statistics, eps: 1e-5, momentum: 0.0 };
            let mut kernels = ready(Need::Norm(shape));
            let params = [weight, bias].concat();
            let at = NormOffsets { weight: 0, bias: map.channels, running_mean: 0, running_var: 0 };
            let mut stats = vec![f32::NAN; CpuKernels::<f32>::norm_stats_len(&shape)];
            kernels.norm_image_stats(&shape, &x.1, false, &params, at, &mut stats);
            let mut got = vec![f32::NAN; x.1.len()];
            kernels.norm_apply(&shape, Some(&x.1), &stats, Residual::None, true, &mut got);
            assert_close(&format!("case {case}"), &got, &y.1, 3e-6);
            let mut gradients = vec![f32::NAN; params.len()];
            let mut d = dy.1.clone();
            kernels.norm_backward_reduce(&shape, &x.1, &mut stats, Mask::Recompute, &mut d, at, &mut gradients);
            assert_close(&format!("parameters of case {case}"), &gradients, &[d_weight, d_bias].concat(), 3e-6);
            kernels.norm_backward_apply(&shape, Some(&x.1), &stats, true, Some(&d), &mut got, false);
            assert_close(&format!("gradient of case {case}"), &got, &dx.1, 5e-6);
        }
    });
}

#[test]
fn a_tower_shared_by_two_levels_is_pytorchs() {
    let mut g = Graph::new(3);
    let input = g.input();
    let stem = conv(&mut g, "stem", input, [3, 8], 3, 1, true);
    let stem = g.push("stem_relu", Op::Relu, &[stem]);
    let coarse = conv(&mut g, "down", stem, [8, 8], 3, 2, false);
    let up = g.push("up", Op::Resize { interpolation: Interpolation::Nearest }, &[coarse, stem]);
    let fine = g.push("fine", Op::Add, &[stem, up]);
    let tower = conv(&mut g, "tower", fine, [8, 8], 3, 1, false);
    let norm = g.push("norm", Op::GroupNorm { channels: 8, groups: 4, eps: 1e-5 }, &[tower]);
    let relu = g.push("relu", Op::Relu, &[norm]);
    let last = conv(&mut g, "last", relu, [8, 2], 1, 1, true);
    g.add_tap("fine", last);
    let x = g.push_tied("tower.coarse", tower, &[coarse]);
    let x = g.push_tied("norm.coarse", norm, &[x]);
    let x = g.push("relu.coarse", Op::Relu, &[x]);
    let x = g.push_tied("last.coarse", last, &[x]);
    g.add_tap("coarse", x);

    with_file(|file| {
        let flat = |what: &str| {
            let names = g.parameter_layout();
            let values = names.iter().map(|(spec, _)| tensor(file, &format!("towers.{what}.{}", spec.name)).1);
            values.collect::<Vec<_>>().concat()
        };
        let (params, images) = (flat("params"), tensor(file, "towers.x").1);
        let mut plan = Plan::compile(&g, &PlanConfig::new(3, 11, 9, Mode::Train)).unwrap();
        plan.forward(&params, &mut [], &images, 2).unwrap();
        let taps = ["fine", "coarse"];
        for tap in taps {
            assert_close(tap, plan.output(tap).unwrap(), &tensor(file, &format!("towers.{tap}.y")).1, 5e-6);
        }
        let cotangents = taps.map(|tap| tensor(file, &format!("towers.{tap}.dy")).1);
        let mut gradients = vec![f32::NAN; params.len()];
        plan.backward(&params, &[("fine", &cotangents[0]), ("coarse", &cotangents[1])], &mut gradients).unwrap();
        assert_close("gradients", &gradients, &flat("gradients"), 5e-6);
    });
}

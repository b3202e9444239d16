//! Every pass against sums in f64 over a grid of awkward shapes, on every instruction set of this CPU.

use half::bf16;

use super::*;

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Calls `f(index in y, index in x, index in the weight)` for every product of the convolution.
fn each_product(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let (oh, ow, ci, co) = (s.out_h(), s.out_w(), s.c_in / s.groups, s.c_out / s.groups);
    for (img, oy, ox) in (0..s.n).flat_map(|i| (0..oh).flat_map(move |oy| (0..ow).map(move |ox| (i, oy, ox)))) {
        for (ky, kx) in (0..s.kernel).flat_map(|ky| (0..s.kernel).map(move |kx| (ky, kx))) {
            let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
            if iy < s.padding || ix < s.padding || iy - s.padding >= s.h || ix - s.padding >= s.w {
                continue;
            }
            let (iy, ix) = (iy - s.padding, ix - s.padding);
            for o in 0..s.c_out {
                let yi = ((img * oh + oy) * ow + ox) * s.c_out + o;
                for c in 0..ci {
                    let xi = ((img * s.h + iy) * s.w + ix) * s.c_in + o / co * ci + c;
                    f(yi, xi, ((o * ci + c) * s.kernel + ky) * s.kernel + kx);
                }
            }
        }
    }
}

fn stored<T: Element>(len: usize, seed: u32) -> Vec<T> {
    values(len, seed).iter().map(|v| T::narrow(*v)).collect()
}

/// Compares with a bound for sums of `terms` products of numbers in ±1 (times 2 for the transformed inputs), where each
/// factor is exact to `factor` and the result is stored as `O`.
fn assert_close<O: Element>(what: &str, got: &[O], want: &[f64], terms: usize, factor: f64) {
    let sum = (1e-6 + factor) * (terms.max(1) as f64).sqrt() * 8.0;
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let bound = sum + if O::PER_WORD == 1 { 0.0 } else { want.abs() / 256.0 };
        assert!((f64::from(got.widen()) - want).abs() <= bound, "{what} [{i}]: {got:?}, expected {want} ± {bound}");
    }
}

fn check(level: Level, s: &ConvShape) {
    check_stored_as::<f32>(level, s);
    check_stored_as::<bf16>(level, s);
}

/// Factors that are bf16 are exact in the sum that is expected, unless the tiles of Winograd's method are rounded.
fn check_stored_as<T: Element>(level: Level, s: &ConvShape) {
    let (x, dy) = (stored::<T>(s.x_len(), 1), stored::<T>(s.y_len(), 3));
    let w: Vec<f32> = stored::<T>(s.weight_len(), 2).iter().map(|w| w.widen()).collect();
    let factor = if T::PER_WORD > 1 && winograd::applies(s) { 1.0 / 512.0 } else { 0.0 };
    // The kernels of narrow groups do not round what they have normalised.
    let exact = T::PER_WORD == 1 || grouped::applies(level, s) || winograd::applies(s);
    let pack = |pass| {
        let mut packed = Packed::<T>::with_level(level, Packed::<T>::needed_len_at(level, s, pass));
        packed.repack(s, pass, &w);
        packed
    };
    let (forward_weights, backward_weights) = (pack(Pass::Forward), pack(Pass::BackwardData));
    let groups: Vec<u32> = (0..s.n).map(|i| (i % 2) as u32).collect();
    let (scale, shift) = (values(2 * s.c_in, 4), values(2 * s.c_in, 5));
    for (norm, relu) in [(false, false), (true, false), (true, true)] {
        let input = InputNorm { scale: &scale, shift: &shift, group_of_image: &groups, relu };
        let norm = norm.then_some(&input);
        let transformed: Vec<f64> = (0..x.len())
            .map(|i| {
                let at = groups[i / (s.h * s.w * s.c_in)] as usize * s.c_in + i % s.c_in;
                let x = x[i].widen();
                let value = if norm.is_some() { x * scale[at] + shift[at] } else { x };
                let value = if relu { value.max(0.0) } else { value };
                f64::from(if exact { value } else { T::narrow(value).widen() })
            })
            .collect();
        let what = |pass: &str| format!("{level:?} {pass} of {s:?}, norm {:?}", norm.map(|n| n.relu));

        let mut want = vec![0.0; s.y_len()];
        each_product(s, |yi, xi, wi| want[yi] += transformed[xi] * f64::from(w[wi]));
        let mut y = vec![T::narrow(f32::NAN); s.y_len()];
        let mut stats = vec![f64::NAN; 2 * s.n * s.c_out];
        let epilogue = Epilogue { stats: Some(&mut stats), ..Epilogue::default() };
        forward(s, &x, &forward_weights, &mut y, norm, epilogue);
        let terms = s.weight_len() / s.c_out.max(1);
        assert_close(&what("forward"), &y, &want, terms, factor);
        check_stats(s, &y, &stats);

        let (bias, add) = (values(s.c_out, 6), stored::<T>(s.y_len(), 7));
        // What is finished has been stored once before.
        let stored_value = |v: f64| f64::from(T::narrow(v as f32).widen());
        let finished: Vec<f64> = want
            .iter()
            .enumerate()
            .map(|(i, v)| (stored_value(*v) + f64::from(bias[i % s.c_out]) + f64::from(add[i].widen())).max(0.0))
            .collect();
        let epilogue = Epilogue { bias: Some(&bias), add: Some(&add), relu: true, stats: None };
        forward(s, &x, &forward_weights, &mut y, norm, epilogue);
        let slack = if T::PER_WORD == 1 { factor } else { factor.max(1.0 / 1024.0) };
        assert_close(&what("epilogue"), &y, &finished, terms, slack);

        let mut want = vec![0.0; w.len()];
        each_product(s, |yi, xi, wi| want[wi] += transformed[xi] * f64::from(dy[yi].widen()));
        let mut dw = vec![f32::NAN; w.len()];
        backward_weights_at(level, s, &x, &dy, &mut dw, norm);
        assert_close(&what("weight gradient"), &dw, &want, s.n * s.out_h() * s.out_w(), factor);
    }
    let terms = s.c_out / s.groups * s.kernel * s.kernel;
    for accumulate in [false, true] {
        let start = stored::<T>(s.x_len(), 8);
        let mut want: Vec<f64> = start.iter().map(|v| if accumulate { f64::from(v.widen()) } else { 0.0 }).collect();
        each_product(s, |yi, xi, wi| want[xi] += f64::from(dy[yi].widen()) * f64::from(w[wi]));
        let mut dx = if accumulate { start } else { vec![T::narrow(f32::NAN); s.x_len()] };
        backward_data(s, &dy, &backward_weights, &mut dx, accumulate);
        let what = format!("{level:?} data gradient of {s:?}, accumulate {accumulate}");
        assert_close(&what, &dx, &want, terms, factor);
    }
}

fn check_stats<T: Element>(s: &ConvShape, y: &[T], stats: &[f64]) {
    let pixels = s.out_h() * s.out_w();
    let mut want = vec![0.0; stats.len()];
    for (i, value) in y.iter().enumerate() {
        let value = value.widen();
        let (image, c) = (i / (pixels * s.c_out), i % s.c_out);
        want[2 * image * s.c_out + c] += f64::from(value);
        want[(2 * image + 1) * s.c_out + c] += f64::from(value).powi(2);
    }
    for (i, (got, want)) in stats.iter().zip(&want).enumerate() {
        let bound = 1e-5 * (1.0 + want.abs()) * (1.0 + pixels as f64 / 100.0);
        assert!((got - want).abs() <= bound, "statistics of {s:?} [{i}]: {got}, expected {want}");
    }
}

#[test]
fn awkward_shapes_agree_with_f64_on_every_instruction_set() {
    for level in Level::available() {
        let mut number = 0;
        for size in [1, 2, 7, 33] {
            for kernel in [1, 3, 5, 7] {
                for stride in [1, 2] {
                    for padding in 0..4 {
                        // All pairs of channel counts come up, one for each of the other combinations.
                        let channels = [1, 3, 5, 16, 17, 64];
                        let (c_in, c_out) = (channels[number % 6], channels[number / 6 % 6]);
                        let n = [1, 3, 0, 1][number % 4];
                        number += 1;
                        let (h, w) = (size, size + number % 2);
                        let s = ConvShape { n, h, w, c_in, c_out, kernel, stride, padding, groups: 1 };
                        check_stored_as::<f32>(level, &s);
                        // bf16 differs in packing and loads, not in geometry: a part of the grid does, on all pairs.
                        if number % 5 == 0 {
                            check_stored_as::<bf16>(level, &s);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn wide_3x3_layers_agree_with_f64() {
    let layers = [
        // n, h, w, c_in, c_out, padding
        (2, 7, 9, 64, 64, 1),
        (1, 1, 1, 32, 33, 1),
        (3, 2, 2, 35, 40, 1),
        (1, 12, 5, 300, 50, 0),
        (1, 6, 6, 50, 270, 2),
        (5, 4, 4, 33, 96, 3),
        (1, 33, 34, 47, 32, 1),
    ];
    for level in Level::available() {
        for (n, h, w, c_in, c_out, padding) in layers {
            let s = ConvShape { n, h, w, c_in, c_out, kernel: 3, stride: 1, padding, groups: 1 };
            assert!(winograd::applies(&s));
            check(level, &s);
        }
    }
}

#[test]
fn groups_of_any_width_agree_with_f64() {
    for level in Level::available() {
        for (groups, group_in, group_out) in [
            (32, 4, 4),
            (4, 8, 8),
            (3, 5, 2),
            (2, 32, 32),
            (5, 1, 1),
            (2, 17, 33),
            (6, 2, 4),
            (16, 1, 1),
            (2, 16, 16),
            (8, 2, 2),
        ] {
            for stride in [1, 2] {
                let (c_in, c_out) = (groups * group_in, groups * group_out);
                check(level, &ConvShape { n: 2, h: 6, w: 5, c_in, c_out, kernel: 3, stride, padding: 1, groups });
                check(level, &ConvShape { n: 1, h: 4, w: 4, c_in, c_out, kernel: 1, stride, padding: 0, groups });
            }
        }
    }
}

#[test]
fn strides_beyond_the_kernel_and_deep_sums_agree_with_f64() {
    for level in Level::available() {
        check(level, &ConvShape { n: 2, h: 11, w: 9, c_in: 4, c_out: 7, kernel: 2, stride: 3, padding: 1, groups: 1 });
        check(level, &ConvShape { n: 1, h: 9, w: 9, c_in: 3, c_out: 2, kernel: 3, stride: 4, padding: 5, groups: 1 });
        check(
            level,
            &ConvShape { n: 2, h: 5, w: 5, c_in: 300, c_out: 290, kernel: 3, stride: 1, padding: 1, groups: 1 },
        );
        check(
            level,
            &ConvShape { n: 20, h: 20, w: 20, c_in: 6, c_out: 9, kernel: 1, stride: 1, padding: 0, groups: 1 },
        );
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    the_number_of_threads_makes_no_difference::<f32>();
    the_number_of_threads_makes_no_difference::<bf16>();
}

fn the_number_of_threads_makes_no_difference<T: Element>() {
    let strided = ConvShape { n: 5, h: 19, w: 17, c_in: 24, c_out: 70, kernel: 3, stride: 2, padding: 1, groups: 2 };
    let tiled = ConvShape { n: 3, h: 11, w: 7, c_in: 35, c_out: 66, kernel: 3, stride: 1, padding: 1, groups: 1 };
    for s in [strided, tiled] {
        let (x, w, dy) = (stored::<T>(s.x_len(), 1), values(s.weight_len(), 2), stored::<T>(s.y_len(), 3));
        let run = |threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let mut packed = Packed::with_capacity(0);
                let (mut y, mut dx) = (vec![T::ONE; s.y_len()], vec![T::ONE; s.x_len()]);
                let (mut dw, mut stats) = (vec![0.0; s.weight_len()], vec![0.0; 2 * s.n * s.c_out]);
                packed.repack(&s, Pass::Forward, &w);
                forward(&s, &x, &packed, &mut y, None, Epilogue { stats: Some(&mut stats), ..Epilogue::default() });
                packed.repack(&s, Pass::BackwardData, &w);
                backward_data(&s, &dy, &packed, &mut dx, false);
                backward_weights(&s, &x, &dy, &mut dw, None);
                (y, stats, dx, dw)
            })
        };
        let one = run(1);
        assert!((2..=5).all(|threads| run(threads) == one), "{s:?}");
    }
}

#[test]
#[should_panic(expected = "another layer or pass")]
fn weights_packed_for_another_pass_are_refused() {
    let s = ConvShape { n: 1, h: 4, w: 4, c_in: 4, c_out: 4, kernel: 3, stride: 1, padding: 1, groups: 1 };
    let mut packed = Packed::<f32>::with_capacity(0);
    packed.repack(&s, Pass::Forward, &vec![0.0; s.weight_len()]);
    backward_data(&s, &vec![0.0; s.y_len()], &packed, &mut vec![0.0; s.x_len()], false);
}

//! Operations in closed form, the distribution of views, and images that are not RGB. Values of whole images are
//! compared with recorded references in the workspace's parity tests.

use super::*;

fn random(width: usize, height: usize, channels: usize) -> Image {
    let mut rng = Rng::new(9, 9);
    Image::new(width, height, channels, (0..width * height * channels).map(|_| rng.below(256) as u8).collect()).unwrap()
}

fn one(image: &Image, op: PixelOp) -> Image {
    apply_ops(image, &[op]).unwrap()
}

fn all_ops() -> [PixelOp; 8] {
    use PixelOp::*;
    [Brightness(1.3), Contrast(0.6), Saturation(1.4), Hue(0.1), Grayscale, Blur(1.2), Solarize(128), Flip]
}

#[test]
fn neutral_parameters_change_nothing() {
    let image = random(67, 5, 3);
    for op in [PixelOp::Brightness(1.0), PixelOp::Contrast(1.0), PixelOp::Saturation(1.0), PixelOp::Blur(0.0)] {
        assert_eq!(one(&image, op), image, "{op:?}");
    }
    assert_eq!(one(&one(&image, PixelOp::Flip), PixelOp::Flip), image);
    assert_eq!(one(&one(&image, PixelOp::Solarize(0)), PixelOp::Solarize(0)), image);
}

#[test]
fn extreme_factors_give_black_mean_and_grey() {
    let image = random(67, 5, 3);
    let luma: Vec<u8> = image.data().chunks_exact(3).map(|p| luma(p[0], p[1], p[2])).collect();
    assert!(one(&image, PixelOp::Brightness(0.0)).data().iter().all(|&v| v == 0));
    let mean = luma.iter().map(|&v| f64::from(v)).sum::<f64>() / luma.len() as f64;
    assert!(one(&image, PixelOp::Contrast(0.0)).data().iter().all(|&v| v == (mean + 0.5) as u8));
    let grey = one(&image, PixelOp::Grayscale);
    assert_eq!(grey.data().chunks_exact(3).map(|p| p[1]).collect::<Vec<_>>(), luma);
    assert_eq!(one(&image, PixelOp::Saturation(0.0)), grey);
}

// python3 -c "import torchvision.transforms.functional as F; from PIL import Image
// for c in [(255, 0, 0), (0, 128, 0), (10, 20, 200), (200, 190, 10), (7, 7, 7)]: print(F.adjust_hue(Image.new('RGB', (1, 1), c), 1/3).getpixel((0, 0)))"
#[test]
fn a_third_of_a_turn_moves_red_to_green() {
    let cases = [
        ([255, 0, 0], [0, 255, 0]),
        ([0, 128, 0], [0, 0, 128]),
        ([10, 20, 200], [200, 10, 23]),
        ([200, 190, 10], [10, 200, 190]),
        ([7, 7, 7], [7, 7, 7]),
    ];
    for (color, expected) in cases {
        let image = Image::new(1, 1, 3, color.to_vec()).unwrap();
        let got = one(&image, PixelOp::Hue(1.0 / 3.0));
        assert!(got.data().iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{color:?} → {:?}", got.data());
    }
}

#[test]
fn blur_keeps_flat_images_and_spreads_a_point_evenly() {
    let flat = Image::filled(13, 9, 3, 77).unwrap();
    for radius in [0.1, 1.0, 2.0, 7.5, 40.0] {
        assert_eq!(one(&flat, PixelOp::Blur(radius)), flat);
    }
    let mut point = Image::filled(41, 41, 1, 0).unwrap();
    point.data_mut()[20 * 41 + 20] = 255;
    let blurred = one(&point, PixelOp::Blur(1.5));
    let at = |x: usize, y: usize| blurred.data()[y * 41 + x];
    // python3 -c "import numpy as np; from PIL import Image, ImageFilter; a = np.zeros((41, 41), np.uint8); a[20, 20] = 255
    // print(np.asarray(Image.fromarray(a).filter(ImageFilter.GaussianBlur(1.5)))[20, 15:26])"
    assert_eq!((15..26).map(|x| at(x, 20)).collect::<Vec<_>>(), [0, 0, 3, 7, 14, 16, 14, 7, 3, 0, 0]);
    for d in 1..6 {
        assert_eq!((at(20 + d, 20), at(20, 20 + d)), (at(20 - d, 20), at(20, 20 - d)));
    }
}

#[test]
fn images_without_colour_pass_through_every_operation() {
    for channels in [1, 2, 4] {
        let image = random(19, 8, channels);
        for op in [PixelOp::Saturation(1.4), PixelOp::Hue(0.2), PixelOp::Grayscale] {
            assert_eq!(one(&image, op), image, "{op:?} on {channels} channels");
        }
        let out = apply_ops(&image, &all_ops()).unwrap();
        assert_eq!((out.width(), out.height(), out.channels()), (19, 8, channels));
    }
    // Grey and its repetition in RGB agree wherever both are defined.
    let grey = random(19, 8, 1);
    let geometry =
        [PixelOp::Brightness(1.3), PixelOp::Contrast(0.6), PixelOp::Blur(1.2), PixelOp::Solarize(99), PixelOp::Flip];
    let colour = apply_ops(&grey.to_rgb().unwrap(), &geometry).unwrap();
    assert_eq!(apply_ops(&grey, &geometry).unwrap().to_rgb().unwrap(), colour);
}

#[test]
fn tiny_images_survive_every_operation() {
    for (width, height) in [(1, 1), (1, 50), (50, 1), (2, 3)] {
        let image = random(width, height, 3);
        assert_eq!(apply_ops(&image, &all_ops()).unwrap().width(), width);
        for config in [AugmentConfig::moco_v1(), AugmentConfig::moco_v2(), AugmentConfig::cifar_demo()] {
            let mut out = vec![f32::NAN; config.size[0] * config.size[1] * 3];
            augment(&image, &config, &mut Rng::for_sample(1, 2, 3, 0), &mut out).unwrap();
            assert!(out.iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let image = random(4, 4, 3);
    for op in [PixelOp::Hue(0.6), PixelOp::Brightness(-0.1), PixelOp::Contrast(f64::NAN), PixelOp::Blur(f64::INFINITY)]
    {
        assert!(matches!(apply_ops(&image, &[op]), Err(Error::Parameter { .. })), "{op:?}");
    }
}

#[test]
fn a_view_is_its_parameters_rendered_flipped_and_normalised() {
    let image = random(50, 40, 3);
    let config = AugmentConfig { size: [17, 23], ..AugmentConfig::moco_v2() };
    for view in 0..12 {
        let mut out = vec![0.0; 17 * 23 * 3];
        augment(&image, &config, &mut Rng::for_sample(5, 0, view, 0), &mut out).unwrap();
        let params = config.sample(40, 50, &mut Rng::for_sample(5, 0, view, 0));
        let rendered = render(&image, &params, (17, 23), config.filter).unwrap();
        for (i, (&got, &value)) in out.iter().zip(rendered.data()).enumerate() {
            let expected = (f32::from(value) / 255.0 - config.mean[i % 3]) / config.std[i % 3];
            assert_eq!(got, expected, "view {view} ({params:?}), value {i}");
        }
    }
}

#[test]
fn views_follow_the_recipe_s_odds_and_ranges() {
    let config = AugmentConfig::moco_v2();
    let n = 20_000;
    let views: Vec<_> = (0..n).map(|i| config.sample(300, 400, &mut Rng::for_sample(3, 0, i, 0))).collect();
    let share =
        |has: &dyn Fn(&PixelOp) -> bool| views.iter().filter(|v| v.ops.iter().any(has)).count() as f64 / n as f64;
    type Has<'a> = &'a dyn Fn(&PixelOp) -> bool;
    let odds: [(&str, Has, f64); 5] = [
        ("jitter", &|op| matches!(op, PixelOp::Hue(_)), 0.8),
        ("grey", &|op| *op == PixelOp::Grayscale, 0.2),
        ("blur", &|op| matches!(op, PixelOp::Blur(_)), 0.5),
        ("flip", &|op| *op == PixelOp::Flip, 0.5),
        ("solarize", &|op| matches!(op, PixelOp::Solarize(_)), 0.0),
    ];
    for (name, has, p) in odds {
        let bound = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
        assert!((share(has) - p).abs() <= bound, "{name}: {} instead of {p}", share(has));
    }
    for view in &views {
        let CropBox { top, left, height, width } = view.crop;
        assert!(top + height <= 300 && left + width <= 400);
        let (area, ratio) = ((height * width) as f64 / 120_000.0, width as f64 / height as f64);
        assert!((0.19..=1.0).contains(&area) && (0.74..1.35).contains(&ratio), "{:?}", view.crop);
        for op in &view.ops {
            match *op {
                PixelOp::Brightness(f) | PixelOp::Contrast(f) | PixelOp::Saturation(f) => {
                    assert!((0.6..1.4).contains(&f))
                }
                PixelOp::Hue(turns) => assert!((-0.1..0.1).contains(&turns)),
                PixelOp::Blur(radius) => assert!((0.1..2.0).contains(&radius)),
                _ => {}
            }
        }
    }
    // Means over 20 000 draws of torchvision's RandomResizedCrop.get_params on an image of 300 × 400.
    let mean = |value: &dyn Fn(CropBox) -> usize| views.iter().map(|v| value(v.crop) as f64).sum::<f64>() / n as f64;
    let close = |got: f64, expected: f64, deviation: f64| (got - expected).abs() < 6.0 * deviation / (n as f64).sqrt();
    assert!(close(mean(&|c| c.height * c.width) / 120_000.0, 0.4963, 0.185));
    assert!(close(mean(&|c| c.height), 234.8, 45.0) && close(mean(&|c| c.width), 246.2, 55.0));
    assert!(close(mean(&|c| c.top), 32.7, 35.0) && close(mean(&|c| c.left), 76.6, 60.0));
}

#[test]
fn jitter_takes_every_order_and_steps_keep_theirs() {
    let config =
        AugmentConfig { grayscale_p: 1.0, blur_p: 1.0, flip_p: 1.0, jitter_p: 1.0, ..AugmentConfig::moco_v2() };
    let mut orders = std::collections::BTreeMap::new();
    for i in 0..4800 {
        let ops = config.sample(64, 64, &mut Rng::for_sample(0, 1, i, 1)).ops;
        assert!(matches!(ops[4..], [PixelOp::Grayscale, PixelOp::Blur(_), PixelOp::Flip]), "{ops:?}");
        let kinds: Vec<_> = ops[..4].iter().map(std::mem::discriminant).map(|d| format!("{d:?}")).collect();
        *orders.entry(kinds).or_insert(0) += 1;
    }
    assert_eq!(orders.len(), 24);
    assert!(orders.values().all(|&n| (120..290).contains(&n)), "{:?}", orders.values());
    let v1 = AugmentConfig { grayscale_p: 1.0, flip_p: 1.0, ..AugmentConfig::moco_v1() }
        .sample(64, 64, &mut Rng::new(0, 0))
        .ops;
    assert!(v1.len() == 6 && v1[0] == PixelOp::Grayscale && v1[5] == PixelOp::Flip, "{v1:?}");
    let cifar = AugmentConfig { flip_p: 1.0, jitter_p: 0.0, grayscale_p: 1.0, ..AugmentConfig::cifar_demo() };
    assert_eq!(cifar.sample(32, 32, &mut Rng::new(0, 0)).ops, [PixelOp::Flip, PixelOp::Grayscale]);
}

// torchvision's fallback: the largest central crop whose ratio is allowed.
#[test]
fn crops_that_never_fit_fall_back_to_the_centre() {
    let config = AugmentConfig { scale: [0.9, 1.0], ..AugmentConfig::moco_v2() };
    let crop = |height, width| config.sample(height, width, &mut Rng::new(0, 0)).crop;
    assert_eq!(crop(1000, 10), CropBox { top: 493, left: 0, height: 13, width: 10 });
    assert_eq!(crop(30, 3000), CropBox { top: 0, left: 1480, height: 30, width: 40 });
}

#[test]
fn contradictory_configurations_name_the_field() {
    let v2 = AugmentConfig::moco_v2;
    let cases = [
        (AugmentConfig { jitter_p: 1.5, ..v2() }, "jitter_p"),
        (AugmentConfig { hue: 0.6, ..v2() }, "hue"),
        (AugmentConfig { scale: [0.5, 0.2], ..v2() }, "scale"),
        (AugmentConfig { scale: [f64::NAN, 1.0], ..v2() }, "scale"),
        (AugmentConfig { size: [0, 224], ..v2() }, "size"),
        (AugmentConfig { solarize_p: 0.2, ..v2() }, "solarize_p"),
        (AugmentConfig { order: vec![Step::Flip, Step::Flip], ..v2() }, "twice"),
        (AugmentConfig { std: vec![0.2, 0.0, 0.2], ..v2() }, "std"),
        (AugmentConfig { mean: vec![0.5], ..v2() }, "mean"),
    ];
    for (config, word) in cases {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    for preset in [AugmentConfig::moco_v1(), v2(), AugmentConfig::cifar_demo()] {
        preset.validate().unwrap();
    }
}

#[test]
fn channels_and_lengths_are_checked() {
    let mut out = vec![0.0; 224 * 224 * 3];
    let error = augment(&random(30, 30, 1), &AugmentConfig::moco_v2(), &mut Rng::new(0, 0), &mut out).unwrap_err();
    assert!(matches!(error, Error::Channels(_)), "{error}");
    let error = augment(&random(30, 30, 3), &AugmentConfig::moco_v2(), &mut Rng::new(0, 0), &mut out[1..]).unwrap_err();
    assert!(matches!(error, Error::OutputLength { .. }), "{error}");
}

//! Resizing against the definition in double precision, and torchvision's geometry.

use super::*;
use crate::Rng;

fn random(width: usize, height: usize, channels: usize, seed: u64) -> Image {
    let mut rng = Rng::new(seed, 0);
    Image::new(width, height, channels, (0..width * height * channels).map(|_| rng.below(256) as u8).collect()).unwrap()
}

/// Weights of one output position over all input positions: the filter stretched by the scale when shrinking.
fn weights(input: usize, output: usize, at: usize, filter: Filter) -> Vec<f64> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let center = (at as f64 + 0.5) * scale;
    let cubic = |x: f64| match x {
        x if x < 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
        x if x < 2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
        _ => 0.0,
    };
    let value = |i: usize| match (((i as f64 + 0.5 - center) / stretch).abs(), filter) {
        (x, Filter::Bilinear) => (1.0 - x).max(0.0),
        (x, Filter::Bicubic) => cubic(x),
    };
    let all: Vec<f64> = (0..input).map(value).collect();
    let sum: f64 = all.iter().sum();
    all.iter().map(|w| w / sum).collect()
}

#[test]
fn results_are_the_convolution_by_definition() {
    for (i, channels) in [1usize, 2, 3, 4].into_iter().enumerate() {
        for (width, height, to_width, to_height) in
            [(1, 1, 3, 2), (2, 5, 2, 5), (17, 9, 5, 13), (33, 40, 8, 8), (5, 64, 5, 9), (9, 7, 31, 7), (40, 3, 63, 65)]
        {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let image = random(width, height, channels, i as u64);
                let got = resize(&image, to_width, to_height, filter).unwrap();
                for y in 0..to_height {
                    let rows = weights(height, to_height, y, filter);
                    for x in 0..to_width {
                        let columns = weights(width, to_width, x, filter);
                        for c in 0..channels {
                            let value = |(j, i): (usize, usize)| {
                                rows[j] * columns[i] * f64::from(image.data()[(j * width + i) * channels + c])
                            };
                            let all = (0..height).flat_map(|j| (0..width).map(move |i| (j, i)));
                            let expected = all.map(value).sum::<f64>().clamp(0.0, 255.0);
                            let got = f64::from(got.data()[(y * to_width + x) * channels + c]);
                            // Half a level for each of two roundings; the cubic passes the first one's error on by up to
                            // its weights' absolute sum, and clips overshoot after each pass.
                            let bound = if filter == Filter::Bicubic { 24.0 } else { 1.01 };
                            assert!(
                                (got - expected).abs() <= bound,
                                "{width}×{height}→{to_width}×{to_height} {filter:?} at ({x}, {y}, {c}): {got}, expected {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_flat_image_stays_flat_and_the_same_size_is_a_copy() {
    for filter in [Filter::Bilinear, Filter::Bicubic] {
        let flat = Image::filled(37, 53, 3, 201).unwrap();
        assert!(resize(&flat, 91, 20, filter).unwrap().data().iter().all(|&v| v == 201));
        let image = random(37, 53, 3, 1);
        assert_eq!(resize(&image, 37, 53, filter).unwrap(), image);
    }
}

#[test]
fn a_crop_is_cut_out_before_it_is_resized() {
    let image = random(30, 20, 3, 2);
    let region = CropBox { top: 3, left: 7, height: 11, width: 13 };
    let cut = crop(&image, region).unwrap();
    assert_eq!((cut.width(), cut.height()), (13, 11));
    assert_eq!(cut.data()[..3], image.data()[(3 * 30 + 7) * 3..][..3]);
    for (height, width) in [(8, 8), (24, 40), (11, 5)] {
        let expected = resize(&cut, width, height, Filter::Bicubic).unwrap();
        assert_eq!(resized_crop(&image, region, height, width, Filter::Bicubic).unwrap(), expected);
    }
    for outside in
        [CropBox { left: 18, ..region }, CropBox { height: 0, ..region }, CropBox { top: usize::MAX, ..region }]
    {
        assert!(matches!(resized_crop(&image, outside, 8, 8, Filter::Bilinear), Err(Error::Parameter { .. })));
    }
}

#[test]
fn a_region_equals_the_same_part_of_the_whole() {
    let mut scratch = Scratch::default();
    for (width, height, full) in [(50, 30, (41, 77)), (20, 90, (30, 31)), (40, 40, (40, 37)), (33, 21, (21, 33))] {
        let image = random(width, height, 3, 3);
        let whole = resize(&image, full.1, full.0, Filter::Bilinear).unwrap();
        let region = Region { top: 4, left: 9, height: 12, width: 17 };
        resized_region(&image, full, &region, Filter::Bilinear, &mut scratch).unwrap();
        let part = CropBox { top: 4, left: 9, height: 12, width: 17 };
        assert_eq!(scratch.image(), &crop(&whole, part).unwrap(), "{width}×{height} → {full:?}");
    }
}

// python3 -c "import torchvision.transforms.functional as F; from PIL import Image
// for w, h, s in [(500, 375, 256), (375, 500, 256), (333, 500, 224), (64, 64, 70)]: print(F.resize(Image.new('L', (w, h)), s).size)"
#[test]
fn the_shorter_side_is_exact_and_the_longer_truncated() {
    let cases = [
        ((500, 375), 256, (341, 256)),
        ((375, 500), 256, (256, 341)),
        ((333, 500), 224, (224, 336)),
        ((64, 64), 70, (70, 70)),
    ];
    for ((width, height), side, expected) in cases {
        let image = Image::filled(width, height, 1, 0).unwrap();
        let resized = resize_shorter_side(&image, side, Filter::Bilinear).unwrap();
        assert_eq!((resized.width(), resized.height()), expected);
    }
    assert!(resize_shorter_side(&Image::filled(1, 60_000, 1, 0).unwrap(), 1000, Filter::Bilinear).is_err());
    assert!(resize(&Image::filled(2, 2, 1, 0).unwrap(), 0, 4, Filter::Bilinear).is_err());
}

// Offsets of torchvision's CenterCrop: int(round((full − crop) / 2)), Python rounding half to even; padding floors.
#[test]
fn centre_crops_round_half_to_even_and_pad_with_zeros() {
    let row = Image::new(8, 1, 1, (1..=8).collect()).unwrap();
    let take = |width| center_crop(&row, 1, width).unwrap().into_data();
    assert_eq!(take(4), [3, 4, 5, 6]);
    assert_eq!(take(5), [3, 4, 5, 6, 7]); // 1.5 → 2
    assert_eq!(take(7), [1, 2, 3, 4, 5, 6, 7]); // 0.5 → 0
    assert_eq!(take(11), [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
    assert_eq!(center_crop(&row, 3, 2).unwrap().data(), [0, 0, 4, 5, 0, 0]);
}

// /usr/bin/env python3: import numpy as np; from PIL import Image, 13.0
// a = (np.arange(5 * 7) * 37 % 101).astype(np.float32).reshape(5, 7) / 3 - 5
// np.asarray(Image.fromarray(a, "F").resize((w, h), filter)).ravel()
#[test]
fn floats_are_pil_s_mode_f_to_the_last_bit() {
    let values: Vec<f32> = (0..35).map(|i| (i * 37 % 101) as f32 / 3.0 - 5.0).collect();
    let image = Image::from_values(7, 5, 1, values).unwrap();
    for (width, height, filter, expected) in FLOAT_CASES {
        let out = resize_f32(&image, width, height, filter).unwrap();
        let expected: Vec<f32> = expected.iter().map(|bits| f32::from_bits(*bits)).collect();
        assert_eq!(out.data(), expected, "{width}×{height} {filter:?}");
    }
}

const FLOAT_CASES: [(usize, usize, Filter, &[u32]); 4] = [
    (3, 2, Filter::Bilinear, &[0x413745D1, 0x411DCA27, 0x414B7F72, 0x4128A873, 0x414D84CB, 0x4147606A]),
    (
        2,
        5,
        Filter::Bicubic,
        &[
            0x40D0BECC, 0x41319482, 0x416B5790, 0x410D3C56, 0x412DB4BB, 0x4176E9D7, 0x410E6B7E, 0x4157A099, 0x417818FF,
            0x4119FDC6,
        ],
    ),
    (
        7,
        2,
        Filter::Bilinear,
        &[
            0x409A2E8C, 0x4179F07C, 0x4162E8BA, 0x41026C9B, 0x40A5D175, 0x418C1F08, 0x4137C1F0, 0x41126C9C, 0x40F6C9B2,
            0x41941F07, 0x4147C1F0, 0x41183E10, 0x41322E8B, 0x417D1746,
        ],
    ),
    (
        9,
        2,
        Filter::Bicubic,
        &[
            0x4073963B, 0x4142A37D, 0x4180DD3E, 0x414DE07C, 0x40F5A7DA, 0x408F2BEC, 0x41505227, 0x4187F80B, 0x412A8C09,
            0x411603BC, 0x40EB8A46, 0x414C3468, 0x41959103, 0x414A175A, 0x41248C8C, 0x411D9366, 0x4146561D, 0x4181BAB6,
        ],
    ),
];

#[test]
fn a_crop_of_the_resized_image_is_what_resize_then_crop_gives() {
    for (full, window) in [((40, 30), (3, 5, 20, 11)), ((9, 70), (0, 60, 9, 10)), ((17, 21), (16, 0, 1, 21))] {
        let (top, left, height, width) = window;
        let part = CropBox { top, left, height, width };
        let image = random(21, 17, 3, 5);
        let whole = resize(&image, full.1, full.0, Filter::Bilinear).unwrap();
        let expected = crop(&whole, part).unwrap();
        assert_eq!(crop_resized(&image, full, part, Filter::Bilinear).unwrap(), expected);
        let floats = image.data().iter().map(|&v| f32::from(v)).collect();
        let floats = Image::from_values(21, 17, 3, floats).unwrap();
        let whole = resize_f32(&floats, full.1, full.0, Filter::Bilinear).unwrap();
        let cropped = crop_resized_f32(&floats, full, part, Filter::Bilinear).unwrap();
        for y in 0..height {
            let row = &whole.data()[((top + y) * full.1 + left) * 3..][..width * 3];
            assert_eq!(&cropped.data()[y * width * 3..][..width * 3], row);
        }
    }
    let image = random(4, 4, 1, 1);
    let outside = CropBox { top: 3, left: 0, height: 6, width: 8 };
    assert!(crop_resized(&image, (8, 8), outside, Filter::Bilinear).is_err());
}

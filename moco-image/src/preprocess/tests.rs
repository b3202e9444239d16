//! The one way of pixels, at 8 bits and deeper.

use super::*;
use crate::{Rng, center_crop, resize_shorter_side};

fn random(width: usize, height: usize, channels: usize) -> Image {
    let mut rng = Rng::new(4, 4);
    let data = (0..width * height * channels).map(|_| rng.below(256) as u8).collect();
    Image::new(width, height, channels, data).unwrap()
}

fn run(image: &Image, rule: &PreprocessRule, layout: Layout) -> Vec<f32> {
    let (height, width) = rule.output_size((image.height(), image.width())).unwrap();
    let mut out = vec![f32::NAN; height * width * rule.channels];
    preprocess(image, rule, layout, &mut out).unwrap();
    out
}

#[test]
fn one_pass_equals_resize_then_crop_then_normalise() {
    for (width, height) in [(50, 41), (30, 90), (16, 20), (300, 17)] {
        let image = random(width, height, 3);
        let rule = PreprocessRule::imagenet(24, 20);
        let steps = center_crop(&resize_shorter_side(&image, 24, Filter::Bilinear).unwrap(), 20, 20).unwrap();
        let value = |(i, &v): (usize, &u8)| (f32::from(v) / 255.0 - rule.mean[i % 3]) / rule.std[i % 3];
        let expected: Vec<f32> = steps.data().iter().enumerate().map(value).collect();
        assert_eq!(run(&image, &rule, Layout::Nhwc), expected, "{width}×{height}");
    }
}

#[test]
fn layouts_hold_the_same_values() {
    let image = random(37, 29, 3);
    let rule = PreprocessRule { crop: Some([11, 14]), ..PreprocessRule::imagenet(20, 1) };
    let (nhwc, nchw) = (run(&image, &rule, Layout::Nhwc), run(&image, &rule, Layout::Nchw));
    for pixel in 0..11 * 14 {
        for c in 0..3 {
            assert_eq!(nhwc[pixel * 3 + c], nchw[c * 11 * 14 + pixel]);
        }
    }
}

#[test]
fn channels_are_converted_only_if_the_rule_says_so() {
    let (grey, colour) = (random(30, 30, 1), random(30, 30, 3));
    let rgb = PreprocessRule::imagenet(24, 20);
    for layout in [Layout::Nhwc, Layout::Nchw] {
        assert_eq!(run(&grey, &rgb, layout), run(&grey.to_rgb().unwrap(), &rgb, layout));
    }
    let strict = PreprocessRule { on_mismatch: ChannelMismatch::Error, ..rgb };
    let mut out = vec![0.0; 20 * 20 * 3];
    let error = preprocess(&grey, &strict, Layout::Nchw, &mut out).unwrap_err().to_string();
    assert!(error.contains("1 channel") && error.contains("replicate_grey"), "{error}");
    let one =
        PreprocessRule { channels: 1, channel_order: ChannelOrder::Grey, mean: vec![0.5], std: vec![0.25], ..strict };
    let error = preprocess(&colour, &one, Layout::Nchw, &mut out[..400]).unwrap_err().to_string();
    assert!(error.contains("to_grey"), "{error}");
    let converting = PreprocessRule { on_mismatch: ChannelMismatch::ToGrey, ..one };
    assert_eq!(run(&colour, &converting, Layout::Nhwc), run(&colour.to_grey().unwrap(), &converting, Layout::Nhwc));
}

#[test]
fn any_number_of_channels_can_be_prepared() {
    let rule = PreprocessRule {
        channels: 4,
        channel_order: ChannelOrder::Any,
        on_mismatch: ChannelMismatch::Error,
        resize: ResizeRule::Exact { height: 7, width: 9 },
        crop: None,
        mean: vec![0.0; 4],
        std: vec![1.0; 4],
        ..PreprocessRule::imagenet(1, 1)
    };
    assert_eq!(run(&Image::filled(20, 30, 4, 51).unwrap(), &rule, Layout::Nchw), vec![0.2; 7 * 9 * 4]);
}

#[test]
fn rules_that_contradict_themselves_name_the_field() {
    let rule = || PreprocessRule::imagenet(256, 224);
    let cases = [
        (PreprocessRule { bit_depth: 17, ..rule() }, "bit_depth"),
        (PreprocessRule { bit_depth: 32, ..rule() }, "values"),
        (PreprocessRule { values: ValueRange::Window([1.0, 1.0]), ..rule() }, "window"),
        (PreprocessRule { channels: 1, ..rule() }, "channels"),
        (PreprocessRule { on_mismatch: ChannelMismatch::ToGrey, ..rule() }, "on_mismatch"),
        (PreprocessRule { crop: Some([0, 224]), ..rule() }, "crop"),
        (PreprocessRule { std: vec![0.1, 0.1], ..rule() }, "std"),
        (PreprocessRule { mean: vec![0.1, f32::NAN, 0.1], ..rule() }, "mean"),
    ];
    for (rule, word) in cases {
        let error = rule.validate().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    rule().validate().unwrap();
}

#[test]
fn buffers_of_another_length_are_refused() {
    let mut out = vec![0.0; 224 * 224 * 3 + 1];
    let error = preprocess(&random(9, 9, 3), &PreprocessRule::imagenet(256, 224), Layout::Nhwc, &mut out).unwrap_err();
    assert!(matches!(error, Error::OutputLength { expected: 150_528, got: 150_529, .. }), "{error}");
}

fn twelve_bits(width: usize, height: usize, pixels: impl Fn(usize) -> u16) -> Raster {
    let image = Image::from_values(width, height, 1, (0..width * height).map(pixels).collect()).unwrap();
    Raster { pixels: Pixels::U16(image), bits: 12, ..Raster::default() }
}

fn run_raster(image: &Raster, rule: &PreprocessRule) -> Result<Vec<f32>> {
    let (height, width) = rule.output_size(image.size()).unwrap();
    let mut out = vec![f32::NAN; height * width * rule.channels];
    preprocess_raster(image, rule, Layout::Nhwc, &mut Scratch::default(), &mut out)?;
    Ok(out)
}

fn ct_rule() -> PreprocessRule {
    PreprocessRule {
        channels: 1,
        bit_depth: 12,
        values: ValueRange::Window([100.0, 1100.0]),
        channel_order: ChannelOrder::Grey,
        on_mismatch: ChannelMismatch::Error,
        mean: vec![0.5],
        std: vec![0.25],
        ..PreprocessRule::imagenet(24, 20)
    }
}

#[test]
fn a_deep_image_comes_out_as_its_8_bit_window_up_to_rounding() {
    let raster = twelve_bits(50, 41, |i| (i * 7919 % 4096) as u16);
    let deep = run_raster(&raster, &ct_rule()).unwrap();
    let shallow = raster.to_8_bits(ct_rule().values).unwrap();
    let rule = PreprocessRule { bit_depth: 8, values: ValueRange::Full, ..ct_rule() };
    // A level of 255, in units of the standard deviation, in each of two passes and the window.
    let most = 2.0 / 255.0 / 0.25;
    assert!(deep.iter().zip(run(&shallow, &rule, Layout::Nhwc)).all(|(a, b)| (a - b).abs() < most));
    // A ramp too fine for 8 bits keeps its steps.
    let ramp = twelve_bits(64, 64, |i| 600 + (i % 64) as u16 / 32);
    let values = run_raster(&ramp, &ct_rule()).unwrap();
    let expected = |v: f32| ((v - 100.0) / 1000.0 - 0.5) / 0.25;
    assert!((values[0] - expected(600.0)).abs() < 1e-6 && (values[19] - expected(601.0)).abs() < 1e-6);
}

#[test]
fn eight_bits_take_the_same_way_through_both_doors() {
    for channels in [1, 3] {
        let (image, rule) = (random(37, 29, channels), PreprocessRule::imagenet(24, 20));
        assert_eq!(run_raster(&Raster::from(image.clone()), &rule).unwrap(), run(&image, &rule, Layout::Nhwc));
    }
}

#[test]
fn depths_the_rule_does_not_name_are_refused_or_mapped_as_it_says() {
    let deep = twelve_bits(30, 30, |i| i as u16);
    let imagenet = PreprocessRule::imagenet(24, 20);
    let error = run_raster(&deep, &imagenet).unwrap_err().to_string();
    assert!(error.contains("12 bits") && error.contains("reads 8") && error.contains("other_depths"), "{error}");
    let mapped = PreprocessRule { other_depths: Some(ValueRange::Full), ..imagenet };
    run_raster(&deep, &mapped).unwrap();
    let error = run_raster(&Raster::from(random(30, 30, 1)), &ct_rule()).unwrap_err().to_string();
    assert!(error.contains("8 bits") && error.contains("window:100,1100"), "{error}");
    // A full range is a matter of bits, a window is not.
    run_raster(&Raster { bits: 16, ..deep.clone() }, &ct_rule()).unwrap();
    let full = PreprocessRule { values: ValueRange::Full, ..ct_rule() };
    run_raster(&deep, &full).unwrap();
    assert!(run_raster(&Raster { bits: 16, ..deep }, &full).is_err());
}

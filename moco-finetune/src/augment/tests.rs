//! Pixels, masks and boxes stay together, whatever is drawn.

use moco_image::{
    ChannelMismatch, ChannelOrder, Image, Layout, Pixels, PreprocessRule, Raster, ResizeRule, Rng, Scratch, ValueRange,
    preprocess_raster,
};
use moco_models::heads::Fit;

use super::*;
use crate::task::{BBox, Detection, IGNORED, LabelledBox, Mask, Sample, Target};

fn grey_rule() -> PreprocessRule {
    PreprocessRule {
        channels: 1,
        channel_order: ChannelOrder::Grey,
        on_mismatch: ChannelMismatch::ToGrey,
        mean: vec![0.0],
        std: vec![1.0],
        ..PreprocessRule::imagenet(8, 8)
    }
}

fn framing(size: [usize; 2], fit: Fit) -> Framing {
    Framing { rule: grey_rule(), size, fit }
}

fn noise(width: usize, height: usize, channels: usize) -> Raster {
    let mut rng = Rng::new(5, 5);
    let data = (0..width * height * channels).map(|_| rng.below(256) as u8).collect();
    Raster::from(Image::new(width, height, channels, data).unwrap())
}

/// A white rectangle on black, once as picture, once as mask, once as box.
fn rectangle(width: usize, height: usize, [x0, y0, x1, y1]: [usize; 4]) -> (Raster, Mask, BBox) {
    let inside = |i: usize| (x0..x1).contains(&(i % width)) && (y0..y1).contains(&(i / width));
    let of = |white: u8| (0..width * height).map(|i| if inside(i) { white } else { 0 }).collect();
    let image = Raster::from(Image::new(width, height, 1, of(255)).unwrap());
    let [x0, y0, x1, y1] = [x0, y0, x1, y1].map(|v| v as f32);
    (image, Mask::new(width, height, of(1)).unwrap(), BBox { x0, y0, x1, y1 })
}

fn prepared(
    framing: &Framing,
    image: &Raster,
    target: Target,
    options: &AugmentOptions,
    seed: u64,
) -> (Vec<f32>, Prepared) {
    let sample = Sample { image: image.clone(), target, name: String::new() };
    let mut out = vec![f32::NAN; framing.size[0] * framing.size[1] * framing.rule.channels];
    let mut rng = Rng::new(seed, 0);
    let prepared = framing.prepare(&sample, Some((options, &mut rng)), &mut out).unwrap();
    (out, prepared)
}

fn mask_of(target: Target) -> Mask {
    match target {
        Target::Mask(mask) => mask,
        other => panic!("{other:?}"),
    }
}

/// Smallest box around the pixels of class 1.
fn extent(mask: &Mask) -> Option<BBox> {
    let ones = || (0..mask.data().len()).filter(|&i| mask.data()[i] == 1);
    let (x, y) = (|i: usize| (i % mask.width()) as f32, |i: usize| (i / mask.width()) as f32);
    ones().next()?;
    let least = |of: &dyn Fn(usize) -> f32| ones().map(of).fold(f32::INFINITY, f32::min);
    let most = |of: &dyn Fn(usize) -> f32| ones().map(of).fold(0.0, f32::max) + 1.0;
    Some(BBox { x0: least(&x), y0: least(&y), x1: most(&x), y1: most(&y) })
}

const FITS: [Fit; 5] =
    [Fit::Stretch, Fit::Letterbox, Fit::Cover { shorter: 40 }, Fit::Tiles { overlap: 8 }, Fit::Native];

#[test]
fn a_box_and_the_mask_and_the_picture_of_it_go_the_same_way() {
    let mut rng = Rng::new(1, 2);
    let mut compared = 0;
    for round in 0..300u64 {
        let (width, height) = (20 + rng.below(90), 20 + rng.below(90));
        let corner = |rng: &mut Rng, side: usize| {
            let from = rng.below(side - 8);
            (from, from + 4 + rng.below(side - from - 4))
        };
        let ((x0, x1), (y0, y1)) = (corner(&mut rng, width), corner(&mut rng, height));
        let (image, mask, bbox) = rectangle(width, height, [x0, y0, x1, y1]);
        let size = if round % 3 == 0 { [32, 32] } else { [24, 40] };
        let framing = framing(size, FITS[round as usize % FITS.len()]);
        let options = AugmentOptions {
            jitter_p: 0.0,
            blur_p: 0.0,
            zoom: [0.5, 2.0],
            aspect: [0.7, 1.4],
            ..AugmentOptions::microscopy()
        };
        let (pixels, of_mask) = prepared(&framing, &image, Target::Mask(mask), &options, round);
        let labelled = LabelledBox { bbox, label: 0, ignore: false };
        let (_, of_box) = prepared(&framing, &image, Target::Boxes(vec![labelled]), &options, round);
        assert_eq!(of_mask.placement, of_box.placement, "one draw, whatever the target");
        let mask = mask_of(of_mask.target);
        let Target::Boxes(boxes) = of_box.target else { panic!() };
        match (extent(&mask), boxes.first()) {
            (Some(seen), Some(b)) => {
                let b = b.bbox;
                let far = [seen.x0 - b.x0, seen.y0 - b.y0, seen.x1 - b.x1, seen.y1 - b.y1];
                assert!(far.iter().all(|d| d.abs() <= 1.0), "{framing:?}: {seen:?} {b:?}");
                compared += 1;
            }
            // Less than a pixel of the mask is left.
            (None, Some(b)) => assert!(b.bbox.width().min(b.bbox.height()) <= 1.0, "{b:?}"),
            (None, None) => {}
            (Some(seen), None) => panic!("the mask shows {seen:?}, the box is gone"),
        }
        // Where the mask is ignored the picture is filled; elsewhere they differ at most along the rectangle's edges.
        let edge = |i: usize| {
            let b = boxes.first().map(|b| b.bbox).unwrap_or_default();
            let (x, y) = ((i % size[1]) as f32 + 0.5, (i / size[1]) as f32 + 0.5);
            let near = |v: f32, edge: f32| (v - edge).abs() <= 1.5;
            near(x, b.x0) || near(x, b.x1) || near(y, b.y0) || near(y, b.y1)
        };
        for (i, (&class, &value)) in mask.data().iter().zip(&pixels).enumerate() {
            match class {
                IGNORED => assert_eq!(value, 0.0),
                class => assert!((value > 0.5) == (class == 1) || edge(i), "{i}: {class} {value}"),
            }
        }
    }
    assert!(compared > 200, "{compared}");
}

#[test]
fn boxes_come_back_from_the_input() {
    for round in 0..60 {
        let framing = framing([48, 64], FITS[round as usize % 2]);
        let (image, _, bbox) = rectangle(70, 50, [10, 20, 31, 44]);
        let options = AugmentOptions { zoom: [0.5, 1.0], ..AugmentOptions::microscopy() };
        let (_, prepared) = prepared(&framing, &image, Target::Class(0), &options, round);
        let place = prepared.placement;
        let back = place.to_image(place.to_input(bbox));
        let far = [back.x0 - bbox.x0, back.y0 - bbox.y0, back.x1 - bbox.x1, back.y1 - bbox.y1];
        assert!(far.iter().all(|d| d.abs() < 1e-3), "{back:?} {place:?}");
        let outside = place.to_image(BBox { x0: -900.0, y0: -900.0, x1: -800.0, y1: -800.0 });
        assert_eq!(outside.area(), 0.0);
    }
}

#[test]
fn the_same_seed_draws_the_same_and_mirroring_twice_changes_nothing() {
    let (framing, image) = (framing([24, 24], Fit::Stretch), noise(31, 20, 1));
    let options = AugmentOptions::microscopy();
    let twice = [3, 3].map(|seed| prepared(&framing, &image, Target::Class(0), &options, seed));
    assert_eq!(twice[0], twice[1]);
    assert_ne!(twice[0].0, prepared(&framing, &image, Target::Class(0), &options, 4).0);
    let plain = prepared(&framing, &image, Target::Class(0), &AugmentOptions::none(), 0).0;
    let mirror = AugmentOptions { hflip: 1.0, ..AugmentOptions::none() };
    let mirrored = prepared(&framing, &image, Target::Class(0), &mirror, 0).0;
    let reversed: Vec<f32> = mirrored.chunks(24).flat_map(|row| row.iter().rev().copied()).collect();
    assert_ne!(mirrored, plain);
    assert_eq!(reversed, plain);
    let flip = AugmentOptions { vflip: 1.0, ..AugmentOptions::none() };
    let flipped = prepared(&framing, &image, Target::Class(0), &flip, 0).0;
    assert_eq!(flipped.chunks(24).rev().flatten().copied().collect::<Vec<_>>(), plain);
    let both = AugmentOptions { hflip: 1.0, vflip: 1.0, ..AugmentOptions::none() };
    let turned = prepared(&framing, &image, Target::Class(0), &both, 0).0;
    assert_eq!(turned.iter().rev().copied().collect::<Vec<_>>(), plain);
}

#[test]
fn what_is_not_varied_is_the_preprocessing_function_s() {
    let deep = {
        let image = Image::from_values(37, 23, 1, (0..37 * 23).map(|i| (i * 71 % 4096) as u16).collect()).unwrap();
        Raster { pixels: Pixels::U16(image), bits: 12, ..Raster::default() }
    };
    let deep_rule = PreprocessRule {
        bit_depth: 12,
        values: ValueRange::Window([100.0, 3000.0]),
        mean: vec![0.3],
        std: vec![0.2],
        ..grey_rule()
    };
    let imagenet = PreprocessRule::imagenet(30, 24);
    for (image, rule) in [
        (noise(37, 23, 3), imagenet.clone()),
        (noise(37, 23, 1), imagenet),
        (noise(37, 23, 3), grey_rule()),
        (deep, deep_rule),
    ] {
        for (fit, resize) in [
            (Fit::Stretch, ResizeRule::Exact { height: 24, width: 24 }),
            (Fit::Cover { shorter: 30 }, ResizeRule::ShorterSide(30)),
        ] {
            let framing = Framing { rule: rule.clone(), size: [24, 24], fit };
            let mut out = vec![f32::NAN; 24 * 24 * rule.channels];
            framing.prepare_image(&image, &mut out).unwrap();
            let reference = PreprocessRule { resize, crop: Some([24, 24]), ..rule.clone() };
            let mut expected = out.clone();
            preprocess_raster(&image, &reference, Layout::Nhwc, &mut Scratch::default(), &mut expected).unwrap();
            assert_eq!(out, expected, "{fit:?}");
            let none = prepared(&framing, &image, Target::Class(0), &AugmentOptions::none(), 9).0;
            assert_eq!(none, expected, "{fit:?}");
        }
    }
}

#[test]
fn deep_images_keep_their_depth_through_turns_and_light() {
    let image = Image::from_values(64, 64, 1, (0..4096).map(|i| i as u16).collect()).unwrap();
    let image = Raster { pixels: Pixels::U16(image), bits: 12, ..Raster::default() };
    let rule = PreprocessRule { bit_depth: 12, values: ValueRange::Full, ..grey_rule() };
    let framing = Framing { rule, size: [64, 64], fit: Fit::Native };
    let options = AugmentOptions {
        brightness: 0.0,
        zoom: [1.0, 1.0],
        aspect: [1.0, 1.0],
        blur_p: 0.0,
        ..AugmentOptions::microscopy()
    };
    for seed in 0..4 {
        let mut values = prepared(&framing, &image, Target::Class(0), &options, seed).0;
        values.sort_by(f32::total_cmp);
        values.dedup();
        assert!(values.len() > 3000, "{}", values.len());
    }
    let eight = Framing { rule: grey_rule(), ..framing };
    let error = eight.prepare_image(&image, &mut [0.0; 4096]).unwrap_err().to_string();
    assert!(error.contains("12 bits") && error.contains("--values"), "{error}");
}

#[test]
fn of_boxes_that_are_cut_enough_must_be_left() {
    let framing = framing([20, 20], Fit::Native);
    let (image, _, _) = rectangle(40, 20, [0, 0, 4, 4]);
    let at = |x0: f32, x1: f32| LabelledBox { bbox: BBox { x0, y0: 5.0, x1, y1: 15.0 }, label: 1, ignore: false };
    // The centre: columns 10 to 30 of the image.
    let boxes = vec![at(12.0, 22.0), at(5.0, 15.0), at(2.0, 12.0), at(0.0, 9.0), at(28.9, 30.0)];
    let sample = Sample { image, target: Target::Boxes(boxes), name: String::new() };
    let Target::Boxes(left) = framing.prepare(&sample, None, &mut [0.0; 400]).unwrap().target else { panic!() };
    let seen: Vec<_> = left.iter().map(|b| (b.bbox.x0, b.bbox.x1, b.ignore)).collect();
    assert_eq!(seen.iter().map(|s| s.2).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!((seen[0].0, seen[0].1, seen[1].0, seen[1].1), (2.0, 12.0, 0.0, 5.0));
}

#[test]
fn maps_come_back_without_what_was_filled() {
    let framing = framing([16, 32], Fit::Letterbox);
    let image = noise(30, 30, 1);
    let mut out = vec![0.0; 512];
    let place = framing.prepare_image(&image, &mut out).unwrap();
    // The image fills columns 0 to 15: class 1 there in its lower half, class 0 above, nonsense beside it.
    let map: Vec<f32> = (0..512)
        .flat_map(|i| match (i / 32, i % 32) {
            (_, 16..) => [9.0, 9.0],
            (0..8, _) => [1.0, 0.0],
            _ => [0.0, 1.0],
        })
        .collect();
    let back = place.map_to_image(&map, 2).unwrap();
    assert_eq!(back.len(), 30 * 30 * 2);
    assert!(back.chunks(2).all(|p| (p[0] + p[1] - 1.0).abs() < 1e-5));
    assert!(back.chunks(2).enumerate().all(|(i, p)| (p[1] > 0.5) == (i / 30 >= 15)));
    assert!(place.map_to_image(&map, 3).is_err());
    let cut = self::framing([16, 16], Fit::Cover { shorter: 20 }).prepare_image(&image, &mut out[..256]).unwrap();
    assert!(cut.map_to_image(&map[..256], 1).unwrap_err().to_string().contains("only a part"));
}

#[test]
fn windows_cover_an_image_of_any_size_and_blend_without_a_seam() {
    let tiling = Tiling { tile: [16, 24], overlap: 0.25 };
    let mut rng = Rng::new(3, 3);
    for _ in 0..40 {
        let (height, width) = (1 + rng.below(90), 1 + rng.below(90));
        let tiles = tiling.tiles((height, width));
        let value = |y: usize, x: usize| [y as f32 * 0.25 - x as f32, 7.3];
        let mut map = TileMap::new((height, width), 2, &tiling);
        let mut seen = vec![0; height * width];
        for &tile in &tiles {
            let of = (0..16 * 24).flat_map(|i| value(tile.top + i / 24, tile.left + i % 24)).collect::<Vec<_>>();
            map.add(tile, &of);
            for i in 0..16 * 24 {
                let (y, x) = (tile.top + i / 24, tile.left + i % 24);
                if y < height && x < width {
                    seen[y * width + x] += 1;
                }
            }
        }
        let map = map.finish();
        for (i, pixel) in map.chunks(2).enumerate() {
            let expected = value(i / width, i % width);
            assert!(seen[i] > 0);
            assert!((pixel[0] - expected[0]).abs() < 1e-4 && pixel[1] == expected[1], "{pixel:?} {expected:?}");
            assert!(seen[i] > 1 || pixel[0] == expected[0]);
        }
        let last = tiles.last().unwrap();
        assert!(last.top + 16 == height.max(16) && last.left + 24 == width.max(24));
    }
    // Neighbours share at least what was asked for.
    let lefts: Vec<usize> = tiling.tiles((16, 100)).iter().map(|tile| tile.left).collect();
    assert!(lefts.windows(2).all(|pair| pair[0] + 24 - pair[1] >= 6), "{lefts:?}");
}

#[test]
fn a_window_shows_the_pixels_below_it_and_is_filled_outside() {
    let image = noise(10, 30, 1);
    let tiling = Tiling { tile: [16, 16], overlap: 0.0 };
    let framing = framing([16, 16], Fit::Tiles { overlap: 0 });
    let mut out = vec![f32::NAN; 256];
    tiling.prepare_tile(&framing, &image, Tile { top: 14, left: 0 }, &mut out).unwrap();
    let Pixels::U8(picture) = &image.pixels else { panic!() };
    for (i, value) in out.iter().enumerate() {
        let (y, x) = (i / 16, i % 16);
        let expected = if x < 10 { f32::from(picture.data()[(14 + y) * 10 + x]) / 255.0 } else { 0.0 };
        assert_eq!(*value, expected);
    }
}

#[test]
fn windows_of_a_training_are_cut_at_drawn_places_even_if_nothing_else_is_drawn() {
    let (framing, image) = (framing([8, 8], Fit::Tiles { overlap: 0 }), noise(64, 64, 1));
    let corners: std::collections::BTreeSet<[isize; 2]> = (0..20)
        .map(|seed| prepared(&framing, &image, Target::Class(0), &AugmentOptions::none(), seed).1.placement.corner)
        .collect();
    assert!(corners.len() > 15 && corners.iter().flatten().all(|&c| (0..=56).contains(&c)), "{corners:?}");
}

#[test]
fn an_object_over_a_border_of_windows_is_found_once() {
    let tiling = Tiling { tile: [100, 100], overlap: 0.4 };
    let found = |x0: f32, x1: f32, score: f32| Detection { bbox: BBox { x0, y0: 20.0, x1, y1: 60.0 }, label: 2, score };
    let tiles = tiling.tiles((100, 160));
    assert_eq!(tiles.iter().map(|t| t.left).collect::<Vec<_>>(), [0, 60]);
    // One object from 70 to 110: cut in the first window, whole in the second; another at 10 to 40.
    let merged = merge_detections(
        &[(tiles[0], vec![found(70.0, 100.0, 0.9), found(10.0, 40.0, 0.8)]), (tiles[1], vec![found(10.0, 50.0, 0.7)])],
        &tiling,
        (100, 160),
        0.6,
    );
    let seen: Vec<_> = merged.iter().map(|d| (d.bbox.x0, d.bbox.x1, d.score)).collect();
    assert_eq!(seen, [(10.0, 40.0, 0.8), (70.0, 110.0, 0.7)]);
    assert!(merge_detections(&[], &tiling, (10, 10), 0.5).is_empty());
}

#[test]
fn extreme_shapes_are_framed() {
    for (width, height) in [(1, 1), (1, 400), (400, 1), (3, 2)] {
        for fit in FITS {
            for seed in 0..10 {
                let framing = framing([16, 16], fit);
                let image = noise(width, height, 1);
                let (out, _) = prepared(&framing, &image, Target::Class(0), &AugmentOptions::microscopy(), seed);
                assert!(out.iter().all(|v| v.is_finite()), "{width}×{height} {fit:?}");
            }
        }
    }
}

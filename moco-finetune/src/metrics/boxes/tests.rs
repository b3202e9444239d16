//! Average precision against pycocotools, and cases that can be worked out by hand.

use super::curve::Table;
use super::*;
use crate::loss::testing::{Recording, close};
use crate::task::BBox;

/// Runs one recorded set of images and compares everything that pycocotools computed.
fn compare(set: &str) -> BoxReport {
    let file = Recording::open("coco.safetensors");
    let name = |what: &str| format!("{set}.{what}");
    let classes = file.indices(&name("classes"))[0];
    let images = file.indices(&name("images"))[0];
    let bbox = |b: &[f32]| BBox { x0: b[0], y0: b[1], x1: b[2], y1: b[3] };
    let (boxes, areas) = (file.f32(&name("truth.boxes")), file.f64(&name("truth.areas")));
    let info = file.indices(&name("truth.image_label_crowd"));
    let truths: Vec<(usize, LabelledBox, f64)> = boxes
        .chunks(4)
        .zip(info.chunks(3))
        .zip(areas)
        .map(|((b, i), area)| (i[0], LabelledBox { bbox: bbox(b), label: i[1], ignore: i[2] == 1 }, area))
        .collect();
    let (boxes, scores) = (file.f32(&name("found.boxes")), file.f32(&name("found.scores")));
    let info = file.indices(&name("found.image_label"));
    let found: Vec<(usize, Detection)> = boxes
        .chunks(4)
        .zip(info.chunks(2))
        .zip(scores)
        .map(|((b, i), score)| (i[0], Detection { bbox: bbox(b), label: i[1], score }))
        .collect();
    let mut all = BoxScores::new(classes);
    for image in 0..images {
        let (boxes, areas): (Vec<LabelledBox>, Vec<f64>) =
            truths.iter().filter(|t| t.0 == image).map(|t| (t.1, t.2)).unzip();
        let found: Vec<Detection> = found.iter().filter(|d| d.0 == image).map(|d| d.1).collect();
        all.add_with_areas(&boxes, &areas, &found).unwrap();
    }

    let curves: Vec<Curves> = all.classes.iter().map(Curves::of).collect();
    let check = |what: &str, table: fn(&Curves) -> &Table| {
        let got = curves.iter().flat_map(|c| table(c).iter().flatten().flatten().copied());
        let expected = file.f64(&name(what));
        assert_eq!(got.clone().count(), expected.len(), "{set} {what}");
        for (i, (got, expected)) in got.zip(expected).enumerate() {
            close(&format!("{set} {what} {i}"), got.unwrap_or(-1.0), expected, 1e-12);
        }
    };
    check("precision", |curves| &curves.precision);
    check("recall", |curves| &curves.recall);
    let report = all.report();
    let stats =
        [&[report.ap, report.ap50, report.ap75][..], &report.ap_by_area, &report.ar, &report.ar_by_area].concat();
    for (i, (got, expected)) in stats.into_iter().zip(file.f64(&name("stats"))).enumerate() {
        close(&format!("{set} stats[{i}]"), got.unwrap_or(-1.0), expected, 1e-12);
    }
    report
}

#[test]
fn random_boxes_with_crowds_ties_and_empty_images_are_judged_as_pycocotools_does() {
    let report = compare("random");
    // Not a set on which everything is right, wrong or undefined.
    assert!(report.ap.is_some_and(|ap| (0.1..0.9).contains(&ap)), "{report:?}");
    assert!(report.per_class.iter().any(|class| class.objects == 0 && class.ap.is_none()));
}

#[test]
fn images_of_coco_with_noise_are_judged_as_pycocotools_does() {
    let report = compare("coco");
    assert!(report.ap.is_some_and(|ap| (0.1..0.9).contains(&ap)) && report.per_class.len() == 10, "{report:?}");
}

#[test]
fn overlaps_are_the_numbers_of_numpy() {
    let file = Recording::open("coco.safetensors");
    let expected = file.f64("thresholds");
    assert_eq!((0..THRESHOLDS).map(matching::threshold).collect::<Vec<_>>(), expected);
}

fn at(x: f32, side: f32) -> BBox {
    BBox { x0: x, y0: 0.0, x1: x + side, y1: side }
}

#[test]
fn precision_counts_what_was_found_before() {
    let truth = |x: f32| LabelledBox { bbox: at(x, 10.0), label: 0, ignore: false };
    let found = |x: f32, score: f32| Detection { bbox: at(x, 10.0), label: 0, score };
    let mut scores = BoxScores::new(2);
    scores.add(&[truth(0.0), truth(100.0)], &[found(100.0, 0.2), found(50.0, 0.5), found(0.0, 0.9)]).unwrap();
    let report = scores.report();
    // Precision 1 up to a recall of ½ (51 of 101 values), then ⅔.
    let expected = (51.0 + 50.0 * 2.0 / 3.0) / 101.0;
    assert!((report.ap.unwrap() - expected).abs() < 1e-12, "{report:?}");
    assert_eq!(report.ar, [Some(0.5), Some(1.0), Some(1.0)]);
    assert_eq!((report.ap_by_area[0], report.ap_by_area[1]), (report.ap, None));
    let named = report.named(&["cell".into()]);
    assert_eq!((named[0].0.as_str(), named.last().unwrap().0.as_str()), ("map", "ap50:cell"));
}

#[test]
fn detections_within_a_crowd_are_neither_right_nor_wrong() {
    let crowd = LabelledBox { bbox: at(0.0, 100.0), label: 0, ignore: true };
    let object = LabelledBox { bbox: at(200.0, 50.0), label: 0, ignore: false };
    let found = |x: f32, score: f32| Detection { bbox: at(x, 50.0), label: 0, score };
    let mut scores = BoxScores::new(1);
    scores.add(&[crowd, object], &[found(0.0, 0.9), found(10.0, 0.8), found(20.0, 0.7), found(200.0, 0.6)]).unwrap();
    let report = scores.report();
    assert!((report.ap.unwrap() - 1.0).abs() < 1e-12 && report.objects == 1, "{report:?}");
}

#[test]
fn an_object_that_counts_is_found_before_a_crowd_around_it() {
    let crowd = LabelledBox { bbox: at(0.0, 100.0), label: 0, ignore: true };
    let object = LabelledBox { bbox: at(0.0, 50.0), label: 0, ignore: false };
    let found = Detection { bbox: at(5.0, 50.0), label: 0, score: 0.9 };
    for truths in [[crowd, object], [object, crowd]] {
        let mut scores = BoxScores::new(1);
        scores.add(&truths, &[found]).unwrap();
        // At the overlaps up to .80 that it reaches; above, the crowd takes it.
        assert_eq!(scores.report().ar[2], Some(0.7), "{truths:?}");
        assert!(scores.report().ap50.is_some_and(|ap| (ap - 1.0).abs() < 1e-12));
    }
}

#[test]
fn what_is_not_finite_or_no_class_is_refused_and_not_counted() {
    let mut scores = BoxScores::new(1);
    let found = Detection { bbox: at(0.0, 1.0), label: 0, score: 0.5 };
    assert!(scores.add(&[], &[Detection { score: f32::NAN, ..found }]).unwrap_err().to_string().contains("not finite"));
    assert!(scores.add(&[], &[Detection { label: 1, ..found }]).is_err());
    let truth = LabelledBox { bbox: at(f32::INFINITY, 1.0), label: 0, ignore: false };
    assert!(scores.add(&[truth], &[]).is_err());
    assert!(scores.add_with_areas(&[], &[1.0], &[]).is_err());
    let report = scores.report();
    assert_eq!((report.images, report.ap, report.ar), (0, None, [None; 3]));
    assert_eq!(report.named(&[]), []);
}

//! Non-maximum suppression.

use crate::task::{BBox, Detection};

/// Indices of the boxes that stay, by falling score, as `torchvision.ops.nms` keeps them: in that order, equal scores in the
/// order given, a box stays unless its intersection over union with one that stayed is above `iou`.
///
/// A score that is not a number comes last.
///
/// # Panics
/// If there are not as many scores as boxes.
pub fn nms(boxes: &[BBox], scores: &[f32], iou: f32) -> Vec<usize> {
    assert_eq!(boxes.len(), scores.len(), "one score a box");
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| falling(scores[*a], scores[*b]));
    let mut kept: Vec<usize> = Vec::new();
    for index in order {
        if kept.iter().all(|other| overlap(&boxes[*other], &boxes[index]) <= iou) {
            kept.push(index);
        }
    }
    kept
}

/// The detections that stay, by falling score, at most `max`: [`nms`] within each class.
pub fn nms_by_class(detections: &[Detection], iou: f32, max: usize) -> Vec<Detection> {
    let mut order: Vec<&Detection> = detections.iter().collect();
    order.sort_by(|a, b| falling(a.score, b.score));
    let classes = detections.iter().map(|d| d.label + 1).max().unwrap_or(0);
    let mut kept_of_class: Vec<Vec<BBox>> = vec![Vec::new(); classes];
    let mut kept = Vec::new();
    for detection in order {
        if kept.len() == max {
            break;
        }
        let others = &mut kept_of_class[detection.label];
        if others.iter().all(|other| overlap(other, &detection.bbox) <= iou) {
            others.push(detection.bbox);
            kept.push(*detection);
        }
    }
    kept
}

/// Larger scores first, NaN last.
pub(super) fn falling(a: f32, b: f32) -> std::cmp::Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.total_cmp(&a),
        (a, b) => a.cmp(&b),
    }
}

/// [`BBox::iou`], early out where boxes are apart.
fn overlap(a: &BBox, b: &BBox) -> f32 {
    if a.x1 <= b.x0 || b.x1 <= a.x0 || a.y1 <= b.y0 || b.y1 <= a.y0 { 0.0 } else { a.iou(b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::Recording;

    #[test]
    fn boxes_stay_as_in_torchvision() {
        let file = Recording::open("nms.safetensors");
        let boxes: Vec<BBox> =
            file.f32("boxes").chunks(4).map(|b| BBox { x0: b[0], y0: b[1], x1: b[2], y1: b[3] }).collect();
        let scores = file.f32("scores");
        for (name, iou) in [("kept_25", 0.25), ("kept_50", 0.5), ("kept_75", 0.75)] {
            let kept = nms(&boxes, &scores, iou);
            assert_eq!(kept, file.indices(name), "{name}");
            assert!(kept.len() < boxes.len());
        }
        let labels = file.indices("labels");
        let detections: Vec<Detection> =
            (0..boxes.len()).map(|i| Detection { bbox: boxes[i], label: labels[i], score: scores[i] }).collect();
        let expected: Vec<Detection> = file.indices("kept_50_by_class").into_iter().map(|i| detections[i]).collect();
        assert_eq!(nms_by_class(&detections, 0.5, usize::MAX), expected);
        assert_eq!(nms_by_class(&detections, 0.5, 7), expected[..7]);
    }

    #[test]
    fn empty_boxes_and_scores_that_are_no_numbers_do_no_harm() {
        let empty = BBox { x0: 3.0, y0: 3.0, x1: 3.0, y1: 3.0 };
        let unit = BBox { x0: 0.0, y0: 0.0, x1: 1.0, y1: 1.0 };
        assert_eq!(nms(&[unit, empty, unit, empty], &[f32::NAN, 0.5, 0.7, 0.5], 0.5), [2, 1, 3]);
        assert!(nms(&[], &[], 0.5).is_empty() && nms_by_class(&[], 0.5, 10).is_empty());
    }
}

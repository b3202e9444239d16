//! The generalised intersection over union (arXiv:1902.09630) of two boxes around one point, and its derivative.

/// Keeps quotients defined, as torchvision has it.
const EPSILON: f64 = 1e-7;

/// What two boxes have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overlap {
    /// 1 − generalised intersection over union, 0 to 2.
    pub(super) loss: f64,
    /// Intersection over union, 0 to 1.
    pub(super) iou: f64,
    /// Derivative of the loss by the distances found.
    pub(super) derivative: [f64; 4],
}

/// Compares distances to the left, upper, right and lower edge, of the box found and of the one that is there.
pub(super) fn overlap(found: [f64; 4], truth: [f64; 4]) -> Overlap {
    let size = |d: [f64; 4]| (d[0] + d[2], d[1] + d[3]);
    let both = |pick: fn(f64, f64) -> f64| size(std::array::from_fn(|k| pick(found[k], truth[k])));
    let (found_size, truth_size) = (size(found), size(truth));
    let (inner, outer) = (both(f64::min), both(f64::max));
    let intersection = inner.0 * inner.1;
    let union = found_size.0 * found_size.1 + truth_size.0 * truth_size.1 - intersection;
    let hull = outer.0 * outer.1;
    let iou = intersection / (union + EPSILON);
    let empty = (hull - union) / (hull + EPSILON);
    let derivative = std::array::from_fn(|k| {
        let across = |size: (f64, f64)| if k % 2 == 0 { size.1 } else { size.0 };
        // Where both are equal, minimum and maximum share the derivative.
        let is_inner = if found[k] == truth[k] { 0.5 } else { f64::from(u8::from(found[k] < truth[k])) };
        let d_intersection = is_inner * across(inner);
        let d_hull = (1.0 - is_inner) * across(outer);
        let d_union = across(found_size) - d_intersection;
        let d_iou = (d_intersection - iou * d_union) / (union + EPSILON);
        let d_empty = (d_hull - d_union - empty * d_hull) / (hull + EPSILON);
        d_empty - d_iou
    });
    Overlap { loss: 1.0 - iou + empty, iou, derivative }
}

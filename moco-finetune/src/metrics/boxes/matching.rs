//! Which detection of an image found which object of a class, at each overlap and for each range of area.

use super::{AREAS, Class, LIMITS, THRESHOLDS};
use crate::task::{BBox, Detection};

/// Smallest and largest area of each range, in pixels, both included.
const RANGES: [(f64, f64); AREAS] = [(0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10)];

/// An object of the class at hand.
pub(super) struct Truth {
    pub(super) bbox: BBox,
    pub(super) crowd: bool,
    pub(super) area: f64,
}

/// What became of a detection. Bit t of a set stands for the overlap of index t.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) score: f32,
    /// Detections of the same image and class before it.
    pub(super) rank: usize,
    /// Where it found an object.
    pub(super) matched: [u16; AREAS],
    /// Where it does not count.
    pub(super) ignored: [u16; AREAS],
}

/// Overlap of index t; the numbers of numpy's `linspace(.5, .95, 10)`, with its rounding.
pub(super) fn threshold(t: usize) -> f64 {
    if t + 1 == THRESHOLDS { 0.95 } else { t as f64 * ((0.95 - 0.5) / (THRESHOLDS - 1) as f64) + 0.5 }
}

/// Area of a box, in the precision that decides.
pub(super) fn area(b: &BBox) -> f64 {
    let side = |low: f32, high: f32| f64::from(high) - f64::from(low);
    side(b.x0, b.x1) * side(b.y0, b.y1)
}

/// Matches the detections of an image with its objects and adds them to what is known of the class.
pub(super) fn match_boxes(truths: &[Truth], mut detections: Vec<&Detection>, class: &mut Class) {
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections.truncate(LIMITS[LIMITS.len() - 1]);
    let overlaps: Vec<Vec<f64>> =
        detections.iter().map(|d| truths.iter().map(|truth| overlap(&d.bbox, truth)).collect()).collect();
    let mut found: Vec<Found> = detections
        .iter()
        .enumerate()
        .map(|(rank, d)| Found { score: d.score, rank, matched: [0; AREAS], ignored: [0; AREAS] })
        .collect();
    for (range, limits) in RANGES.iter().enumerate() {
        let outside = |area: f64| area < limits.0 || area > limits.1;
        let ignored: Vec<bool> = truths.iter().map(|truth| truth.crowd || outside(truth.area)).collect();
        // Objects that count come first, so that a detection takes an ignored one only if it fits none of them.
        let mut order: Vec<usize> = (0..truths.len()).collect();
        order.sort_by_key(|index| ignored[*index]);
        class.objects[range] += ignored.iter().filter(|ignored| !**ignored).count() as u64;
        let outside: Vec<bool> = detections.iter().map(|d| outside(area(&d.bbox))).collect();
        for t in 0..THRESHOLDS {
            let matches = matches_at(threshold(t), &overlaps, truths, &order, &ignored);
            for ((found, truth), outside) in found.iter_mut().zip(matches).zip(&outside) {
                found.matched[range] |= u16::from(truth.is_some()) << t;
                found.ignored[range] |= u16::from(truth.map_or(*outside, |truth| ignored[truth])) << t;
            }
        }
    }
    class.found.extend(found);
}

/// For each detection, best score first, the object it found: of those that are free and overlap enough, the one it overlaps
/// most.
fn matches_at(
    threshold: f64,
    overlaps: &[Vec<f64>],
    truths: &[Truth],
    order: &[usize],
    ignored: &[bool],
) -> Vec<Option<usize>> {
    let mut taken = vec![false; truths.len()];
    let of_detection = |overlaps: &Vec<f64>| {
        let mut least = threshold.min(1.0 - 1e-10);
        let mut best: Option<usize> = None;
        for &index in order {
            if taken[index] && !truths[index].crowd {
                continue;
            }
            if best.is_some_and(|best| !ignored[best] && ignored[index]) {
                break;
            }
            // Of equal overlaps the last one wins.
            if overlaps[index] >= least {
                least = overlaps[index];
                best = Some(index);
            }
        }
        if let Some(index) = best {
            taken[index] = true;
        }
        best
    };
    overlaps.iter().map(of_detection).collect()
}

/// Intersection over union; over the area of the detection where the object is a crowd.
fn overlap(detection: &BBox, truth: &Truth) -> f64 {
    let side = |a0: f32, a1: f32, b0: f32, b1: f32| f64::from(a1.min(b1)) - f64::from(a0.max(b0));
    let (d, t) = (detection, &truth.bbox);
    let (width, height) = (side(d.x0, d.x1, t.x0, t.x1), side(d.y0, d.y1, t.y0, t.y1));
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let both = width * height;
    both / if truth.crowd { area(d) } else { area(d) + area(t) - both }
}

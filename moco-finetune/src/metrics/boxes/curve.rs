//! Precision over recall of one class.

use std::array::from_fn;

use super::matching::Found;
use super::{AREAS, Class, LIMITS, THRESHOLDS};

/// Recalls at which precision is read: 0, .01, … 1.
const RECALLS: usize = 101;

/// By range of area, limit of detections and overlap; `None` where no object counts.
pub(super) type Table = [[[Option<f64>; THRESHOLDS]; LIMITS.len()]; AREAS];

/// The summary of the curves of one class.
pub(super) struct Curves {
    /// Mean precision over the recalls.
    pub(super) precision: Table,
    /// The recall that was reached.
    pub(super) recall: Table,
}

impl Curves {
    pub(super) fn of(class: &Class) -> Curves {
        let mut found: Vec<&Found> = class.found.iter().collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut curves = Curves { precision: Table::default(), recall: Table::default() };
        for area in (0..AREAS).filter(|area| class.objects[*area] > 0) {
            for (limit, count) in LIMITS.iter().enumerate() {
                let within: Vec<&Found> = found.iter().copied().filter(|f| f.rank < *count).collect();
                for t in 0..THRESHOLDS {
                    let (precision, recall) = curve(&within, class.objects[area], area, t);
                    curves.precision[area][limit][t] = Some(precision);
                    curves.recall[area][limit][t] = Some(recall);
                }
            }
        }
        curves
    }
}

/// Mean precision over the recalls, and the recall reached, of detections by falling score.
fn curve(found: &[&Found], objects: u64, area: usize, t: usize) -> (f64, f64) {
    let (mut right, mut wrong) = (0.0, 0.0);
    let mut points: Vec<(f64, f64)> = Vec::with_capacity(found.len()); // recall, precision
    for found in found {
        if found.ignored[area] >> t & 1 == 0 {
            if found.matched[area] >> t & 1 == 1 { right += 1.0 } else { wrong += 1.0 }
        }
        points.push((right / objects as f64, right / (right + wrong + f64::EPSILON)));
    }
    let reached = points.last().map_or(0.0, |point| point.0);
    // Precision at a recall is the best at that recall or any larger one.
    for i in (1..points.len()).rev() {
        points[i - 1].1 = points[i - 1].1.max(points[i].1);
    }
    let at: [f64; RECALLS] = from_fn(|r| {
        let recall = if r + 1 == RECALLS { 1.0 } else { r as f64 * 0.01 };
        points.get(points.partition_point(|point| point.0 < recall)).map_or(0.0, |point| point.1)
    });
    (at.iter().sum::<f64>() / RECALLS as f64, reached)
}

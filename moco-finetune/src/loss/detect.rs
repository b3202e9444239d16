//! The loss of a detector without anchors: focal loss of classes, overlap of boxes, centre-ness.

use rayon::prelude::*;

use super::boxes::{Overlap, overlap};
use super::logistic::{Focal, binary};
use super::{Loss, check_length, check_not_negative};
use crate::detect::{Cell, LARGEST_LOG_DISTANCE, LevelMaps, Targets, check_maps};
use crate::{Error, Result};

/// Cells that one task works on: sums within a chunk, then over chunks, whatever the number of threads.
const CELLS: usize = 512;

/// How detections are compared with objects.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionLoss {
    /// Weight α of what is there in the focal loss, 0 to 1; what is not there has 1 − α.
    pub focal_alpha: f32,
    /// Exponent γ of the focal loss, 0 or more.
    pub focal_gamma: f32,
    /// Weight of the boxes against the classes.
    pub boxes: f32,
    /// Weight of the quality against the classes.
    pub quality: f32,
    /// What the third map learns.
    pub quality_target: Quality,
}

/// What a detection's score says beside the probability of the class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quality {
    /// How near the cell is to the middle of the object, as in FCOS.
    #[default]
    Centreness,
    /// How much the box found overlaps the object's, as in arXiv:1912.05086 and after.
    Overlap,
}

/// As in RetinaNet and FCOS.
impl Default for DetectionLoss {
    fn default() -> DetectionLoss {
        DetectionLoss {
            focal_alpha: 0.25,
            focal_gamma: 2.0,
            boxes: 1.0,
            quality: 1.0,
            quality_target: Quality::Centreness,
        }
    }
}

impl DetectionLoss {
    /// # Errors
    /// [`Error::Invalid`] names the option that makes no sense.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.focal_alpha) {
            return Err(Error::Invalid(format!(
                "focal_alpha is {}; a value from 0 to 1 is expected",
                self.focal_alpha
            )));
        }
        check_not_negative("focal_gamma", self.focal_gamma)?;
        check_not_negative("boxes", self.boxes)?;
        check_not_negative("quality", self.quality)
    }
}

/// Where the derivatives by the maps of one level go; each has the shape of its map in [`LevelMaps`].
#[derive(Debug)]
pub struct LevelGradients<'a> {
    /// By the logits of the classes.
    pub class: &'a mut [f32],
    /// By the logarithms of the distances.
    pub boxes: &'a mut [f32],
    /// By the logit of the centre-ness.
    pub centre: &'a mut [f32],
}

/// The loss of FCOS (arXiv:1904.01355) over all levels of a batch.
///
/// With P the number of cells that learn an object, at least 1:
/// - part `class`: focal loss (arXiv:1708.02002) over all cells that are not ignored and all classes, summed, / P;
/// - part `box`: Σ c (1 − GIoU) / Σ c over those P cells, c the centre-ness of the object there (arXiv:1902.09630);
/// - part `quality`: binary cross-entropy of the third map against c, or against the overlap, summed over those P, / P.
///
/// - `maps`, `gradients`: one a level, in the order of the levels of `targets`.
///
/// # Errors
/// [`Error::Invalid`] if shapes or options do not fit.
pub fn detection(
    maps: &[LevelMaps],
    targets: &Targets,
    options: &DetectionLoss,
    gradients: &mut [LevelGradients],
) -> Result<Loss> {
    options.validate()?;
    check_maps(maps, &targets.levels, targets.images, targets.classes)?;
    check_length("levels of gradients", maps.len(), gradients.len())?;
    for (maps, gradients) in maps.iter().zip(gradients.iter()) {
        check_length("gradient of a class map", maps.class.len(), gradients.class.len())?;
        check_length("gradient of a box map", maps.boxes.len(), gradients.boxes.len())?;
        check_length("gradient of a centre map", maps.centre.len(), gradients.centre.len())?;
    }
    let near = targets.cells.iter().flatten().filter_map(|cell| match cell {
        Cell::Object { distances, .. } => Some(Cell::centreness(*distances)),
        _ => None,
    });
    let near: f64 = near.sum();
    let terms = Terms {
        classes: targets.classes,
        focal: Focal { alpha: f64::from(options.focal_alpha), gamma: f64::from(options.focal_gamma) },
        per_cell: 1.0 / targets.positives().max(1) as f64,
        per_centreness: if near > 0.0 { 1.0 / near } else { 0.0 },
        options,
    };
    let mut sums = [0.0; 3];
    for ((maps, cells), gradients) in maps.iter().zip(&targets.cells).zip(gradients) {
        terms.of_level(maps, cells, gradients).iter().for_each(|chunk| add(&mut sums, chunk));
    }
    let [class, boxes, quality] = sums;
    let total = class + f64::from(options.boxes) * boxes + f64::from(options.quality) * quality;
    Ok(Loss { total, parts: vec![("class", class), ("box", boxes), ("quality", quality)] })
}

fn add(sums: &mut [f64; 3], other: &[f64; 3]) {
    sums.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
}

/// What is the same for all cells.
struct Terms<'a> {
    classes: usize,
    focal: Focal,
    per_cell: f64,
    per_centreness: f64,
    options: &'a DetectionLoss,
}

impl Terms<'_> {
    /// Parts of a level, chunk by chunk.
    fn of_level(&self, maps: &LevelMaps, cells: &[Cell], gradients: &mut LevelGradients) -> Vec<[f64; 3]> {
        let values = CELLS * self.classes;
        let class = gradients.class.par_chunks_mut(values).zip(maps.class.par_chunks(values));
        let boxes = gradients.boxes.par_chunks_mut(CELLS * 4).zip(maps.boxes.par_chunks(CELLS * 4));
        let centre = gradients.centre.par_chunks_mut(CELLS).zip(maps.centre.par_chunks(CELLS));
        let chunks = cells.par_chunks(CELLS).zip(class).zip(boxes).zip(centre);
        let of_chunk = |(((cells, class), boxes), centre): (((&[Cell], _), _), _)| {
            let mut sums = [0.0; 3];
            let (class, boxes, centre): (Pair, Pair, Pair) = (class, boxes, centre);
            let rows = class.0.chunks_exact_mut(self.classes).zip(class.1.chunks_exact(self.classes));
            let boxes = boxes.0.chunks_exact_mut(4).zip(boxes.1.chunks_exact(4));
            let centre = centre.0.iter_mut().zip(centre.1);
            for (((cell, class), boxes), centre) in cells.iter().zip(rows).zip(boxes).zip(centre) {
                add(&mut sums, &self.of_cell(cell, class, boxes, centre));
            }
            sums
        };
        chunks.map(of_chunk).collect()
    }

    /// Parts of one cell: of the gradient and the map of each kind.
    fn of_cell(&self, cell: &Cell, class: Pair, boxes: Pair, centre: (&mut f32, &f32)) -> [f64; 3] {
        boxes.0.fill(0.0);
        *centre.0 = 0.0;
        let label = match cell {
            Cell::Ignored => {
                class.0.fill(0.0);
                return [0.0; 3];
            }
            Cell::Background => None,
            Cell::Object { label, .. } => Some(*label),
        };
        let mut sums = [0.0; 3];
        for (k, (gradient, logit)) in class.0.iter_mut().zip(class.1).enumerate() {
            let (loss, derivative) = self.focal.of(f64::from(*logit), label == Some(k));
            sums[0] += self.per_cell * loss;
            *gradient = (self.per_cell * derivative) as f32;
        }
        let Cell::Object { distances, .. } = cell else { return sums };
        let near = Cell::centreness(*distances);
        let found: [f64; 4] = std::array::from_fn(|k| f64::from(boxes.1[k].min(LARGEST_LOG_DISTANCE)).exp());
        let Overlap { loss, iou, derivative } = overlap(found, distances.map(f64::from));
        let weight = near * self.per_centreness;
        sums[1] = weight * loss;
        for k in (0..4).filter(|k| boxes.1[*k] < LARGEST_LOG_DISTANCE) {
            boxes.0[k] = (f64::from(self.options.boxes) * weight * derivative[k] * found[k]) as f32;
        }
        let target = match self.options.quality_target {
            Quality::Centreness => near,
            Quality::Overlap => iou,
        };
        let (loss, derivative) = binary(f64::from(*centre.1), target);
        sums[2] = self.per_cell * loss;
        *centre.0 = (f64::from(self.options.quality) * self.per_cell * derivative) as f32;
        sums
    }
}

/// A piece of a gradient with the piece of the map it belongs to.
type Pair<'a> = (&'a mut [f32], &'a [f32]);

#[cfg(test)]
mod tests;

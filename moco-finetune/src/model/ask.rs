//! From images of any size to answers in their pixels.

use moco_image::Raster;
use moco_models::heads::{Fit, HeadOutput, HeadSpec, Task};
use rayon::prelude::*;

use super::PredictOptions;
use super::prediction::Prediction;
use crate::augment::{Framing, Placement, TileMap, Tiling, merge_detections};
use crate::detect::{DecodeOptions, decode};
use crate::session::criterion::{level_maps, levels};
use crate::session::feed::values;
use crate::session::network::Which;
use crate::session::stack::Stack;
use crate::task::{Detection, Mask};
use crate::{Error, Result};

/// What is asked and how.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub head: HeadSpec,
    /// As [`HeadSpec::outputs`].
    pub outputs: Vec<HeadOutput>,
    pub framing: Framing,
    pub fit: Fit,
    pub options: PredictOptions,
}

impl Asking {
    /// Answers about each image.
    pub(crate) fn predict(&self, stack: &mut Stack, which: Which, images: &[&Raster]) -> Result<Vec<Prediction>> {
        let mut predictions = Vec::with_capacity(images.len());
        match self.fit {
            Fit::Tiles { overlap } => {
                for image in images {
                    predictions.push(self.predict_in_tiles(stack, which, image, overlap)?);
                }
            }
            Fit::Native => {
                for image in images {
                    let framing = Framing { size: size_of(image), ..self.framing.clone() };
                    predictions.extend(self.predict_framed(stack, which, &framing, &[*image])?);
                }
            }
            Fit::Stretch | Fit::Letterbox | Fit::Cover { .. } => {
                for images in images.chunks(self.options.batch) {
                    predictions.extend(self.predict_framed(stack, which, &self.framing, images)?);
                }
            }
        }
        Ok(predictions)
    }

    fn predict_framed(
        &self,
        stack: &mut Stack,
        which: Which,
        framing: &Framing,
        images: &[&Raster],
    ) -> Result<Vec<Prediction>> {
        let len = values(framing);
        let mut input = vec![0.0; images.len() * len];
        let placements: Vec<Placement> = images
            .par_iter()
            .zip(input.par_chunks_exact_mut(len))
            .map(|(image, out)| framing.prepare_image(image, out))
            .collect::<Result<_>>()?;
        let mut predictions = vec![];
        stack.ask(which, &input, images.len(), framing.size, &mut |outputs| {
            predictions = self.answers(outputs, framing.size, &placements)?;
            Ok(())
        })?;
        Ok(predictions)
    }

    /// Answers from the outputs of a batch.
    fn answers(&self, outputs: &[&[f32]], size: [usize; 2], placements: &[Placement]) -> Result<Vec<Prediction>> {
        let n = placements.len();
        match self.head.task() {
            Task::Classify | Task::MultiLabel => Ok(self.classes(outputs[0])),
            Task::Segment => {
                let classes = self.head.classes();
                let maps = outputs[0].par_chunks_exact(outputs[0].len() / n).zip(placements);
                maps.map(|(logits, placement)| {
                    let mut p = logits.to_vec();
                    p.chunks_exact_mut(classes).for_each(softmax);
                    let [height, width] = placement.image_size();
                    mask(&placement.map_to_image(&p, classes)?, height, width, classes)
                })
                .collect()
            }
            Task::Detect => {
                let found = self.boxes(outputs, n, size)?;
                let in_image = |(found, placement): (Vec<Detection>, &Placement)| {
                    let found = found.into_iter().map(|d| Detection { bbox: placement.to_image(d.bbox), ..d });
                    // What lies in the border that was filled is nowhere in the image.
                    Prediction::Boxes(found.filter(|d| d.bbox.area() > 0.0).collect())
                };
                Ok(found.into_iter().zip(placements).map(in_image).collect())
            }
        }
    }

    /// Answers of a classifier from its scores [n, classes].
    pub(crate) fn classes(&self, logits: &[f32]) -> Vec<Prediction> {
        let multi_label = self.head.task() == Task::MultiLabel;
        let answer = |logits: &[f32]| {
            if multi_label {
                return Prediction::Classes(logits.iter().map(|&x| 1.0 / (1.0 + (-x).exp())).collect());
            }
            let mut p = logits.to_vec();
            softmax(&mut p);
            Prediction::Class(p)
        };
        logits.chunks_exact(self.head.classes()).map(answer).collect()
    }

    fn boxes(&self, outputs: &[&[f32]], n: usize, size: [usize; 2]) -> Result<Vec<Vec<Detection>>> {
        let PredictOptions { score, nms_iou, max_detections, .. } = self.options;
        let options = DecodeOptions { score, nms_iou, max_detections, ..DecodeOptions::default() };
        decode(&level_maps(outputs), &levels(&self.outputs, size), n, self.head.classes(), size, &options)
    }

    fn predict_in_tiles(&self, stack: &mut Stack, which: Which, image: &Raster, overlap: usize) -> Result<Prediction> {
        let (framing, classes) = (&self.framing, self.head.classes());
        let size = framing.size;
        let tiling = Tiling { tile: size, overlap: overlap as f64 / size[0].min(size[1]) as f64 };
        let [height, width] = size_of(image);
        let tiles = tiling.tiles((height, width));
        let reader = tiling.reader(framing, image)?;
        let segments = self.head.task() == Task::Segment;
        let mut map = TileMap::new((height, width), if segments { classes } else { 0 }, &tiling);
        let mut found = vec![];
        let len = values(framing);
        for tiles in tiles.chunks(self.options.batch) {
            let mut input = vec![0.0; tiles.len() * len];
            tiles
                .par_iter()
                .zip(input.par_chunks_exact_mut(len))
                .try_for_each(|(tile, out)| reader.prepare(*tile, out))?;
            stack.ask(which, &input, tiles.len(), size, &mut |outputs| {
                if !segments {
                    found.extend(tiles.iter().copied().zip(self.boxes(outputs, tiles.len(), size)?));
                    return Ok(());
                }
                for (tile, logits) in tiles.iter().zip(outputs[0].chunks_exact(outputs[0].len() / tiles.len())) {
                    let mut p = logits.to_vec();
                    p.par_chunks_mut(classes * 4096).for_each(|p| p.chunks_exact_mut(classes).for_each(softmax));
                    map.add(*tile, &p);
                }
                Ok(())
            })?;
        }
        if segments {
            return mask(&map.finish(), height, width, classes);
        }
        let mut merged = merge_detections(&found, &tiling, (height, width), self.options.nms_iou);
        merged.truncate(self.options.max_detections);
        Ok(Prediction::Boxes(merged))
    }
}

/// Height and width.
fn size_of(image: &Raster) -> [usize; 2] {
    let (height, width) = image.size();
    [height, width]
}

/// The most probable class of each pixel.
fn mask(p: &[f32], height: usize, width: usize, classes: usize) -> Result<Prediction> {
    let mut labels = vec![0u8; height * width];
    let mut confidence = vec![0f32; height * width];
    for ((p, label), sure) in p.chunks_exact(classes).zip(&mut labels).zip(&mut confidence) {
        for (class, &value) in p.iter().enumerate() {
            if class == 0 || value > *sure {
                (*label, *sure) = (class as u8, value);
            }
        }
    }
    if confidence.iter().any(|p| !p.is_finite()) {
        return Err(not_finite());
    }
    Ok(Prediction::Mask(Mask::new(width, height, labels)?, confidence))
}

fn not_finite() -> Error {
    Error::Invalid("the network answers with values that are not finite: its weights are damaged".into())
}

/// Scores to probabilities, in place.
fn softmax(x: &mut [f32]) {
    let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = x
        .iter_mut()
        .map(|x| {
            *x = (*x - highest).exp();
            *x
        })
        .sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

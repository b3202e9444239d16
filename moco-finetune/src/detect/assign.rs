//! Which cells learn which object: FCOS with centre sampling.

use rayon::prelude::*;

use super::{Level, check_levels};
use crate::task::LabelledBox;
use crate::{Error, Result};

/// Which cells answer for an object.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AssignOptions {
    /// A cell must be nearer than so many strides to the middle of the box, in x and in y.
    pub radius: f32,
    /// A level answers for boxes whose farthest edge is up to so many of its strides from the cell, and farther than so many
    /// of the level before; the finest has no lower bound and the coarsest no upper. 8 makes the 64, 128, 256 and 512 pixels
    /// of the paper from strides of 8 to 128.
    pub range: f32,
}

/// Centre sampling as FCOS settled on it.
impl Default for AssignOptions {
    fn default() -> AssignOptions {
        AssignOptions { radius: 1.5, range: 8.0 }
    }
}

impl AssignOptions {
    /// # Errors
    /// [`Error::Invalid`] names the option that makes no sense.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("radius", self.radius), ("range", self.range)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::Invalid(format!("{name} is {value}; a number of strides above 0 is expected")));
            }
        }
        Ok(())
    }
}

/// What a cell is to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// There is nothing.
    Background,
    /// It lies in an object that does not count: no loss.
    Ignored,
    /// An object.
    Object {
        /// Its class.
        label: usize,
        /// From the cell to its left, upper, right and lower edge, in strides, above 0.
        distances: [f32; 4],
    },
}

impl Cell {
    /// √(min(l, r)/max(l, r) · min(t, b)/max(t, b)): 1 in the middle of a box, 0 at its edge (eq. 3 of the paper).
    pub fn centreness([l, t, r, b]: [f32; 4]) -> f64 {
        let ratio = |a: f32, b: f32| f64::from(a.min(b)) / f64::from(a.max(b));
        (ratio(l, r) * ratio(t, b)).sqrt()
    }
}

/// What all cells of a batch are to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// Images.
    pub images: usize,
    /// Classes that labels are below of.
    pub classes: usize,
    /// The grids, from fine to coarse.
    pub levels: Vec<Level>,
    /// For each level its cells [images, height, width].
    pub cells: Vec<Vec<Cell>>,
}

impl Targets {
    /// Cells that learn an object.
    pub fn positives(&self) -> usize {
        self.cells.iter().flatten().filter(|cell| matches!(cell, Cell::Object { .. })).count()
    }
}

/// Gives each cell of each level what it is to learn.
///
/// A cell answers for an object if it lies within its box, near enough to its middle, and the farthest edge is within the
/// range of the level; among several objects, for the smallest, then for the first. Other cells within an ignored box are
/// ignored. A box in which no cell lies is learned by none: with a finest stride of s, objects below s pixels may be lost.
/// - `images`: for each image its objects, in pixels of the network's input.   - `levels`: from fine to coarse.
///
/// # Errors
/// [`Error::Invalid`] if a label is not below `classes`, a coordinate is not finite, or levels or options make no sense.
pub fn assign(images: &[&[LabelledBox]], levels: &[Level], classes: usize, options: &AssignOptions) -> Result<Targets> {
    options.validate()?;
    check_levels(levels)?;
    for (image, objects) in images.iter().enumerate() {
        objects.iter().enumerate().try_for_each(|(index, object)| check_object(image, index, object, classes))?;
    }
    let cells = levels.iter().enumerate().map(|(index, level)| {
        let lower = if index == 0 { 0.0 } else { options.range * levels[index - 1].stride as f32 };
        let upper = if index + 1 == levels.len() { f32::INFINITY } else { options.range * level.stride as f32 };
        let mut cells = vec![Cell::Background; images.len() * level.cells()];
        let grids = cells.par_chunks_mut(level.cells().max(1)).zip(images);
        grids.for_each(|(cells, objects)| fill(cells, level, objects, options.radius, lower..upper));
        cells
    });
    let cells = cells.collect();
    Ok(Targets { images: images.len(), classes, levels: levels.to_vec(), cells })
}

fn check_object(image: usize, index: usize, object: &LabelledBox, classes: usize) -> Result<()> {
    let b = object.bbox;
    if ![b.x0, b.y0, b.x1, b.y1].iter().all(|v| v.is_finite()) {
        return Err(Error::Invalid(format!("box {index} of image {image} of the batch is not finite: {b:?}")));
    }
    if object.label >= classes && !object.ignore {
        return Err(Error::Invalid(format!(
            "box {index} of image {image} of the batch has label {}; the head has {classes} classes, from 0",
            object.label
        )));
    }
    Ok(())
}

/// Fills the cells of one image at one level.
fn fill(cells: &mut [Cell], level: &Level, objects: &[LabelledBox], radius: f32, range: std::ops::Range<f32>) {
    for object in objects.iter().filter(|object| object.ignore) {
        inside(level, object, f32::INFINITY, |at, _| cells[at] = Cell::Ignored);
    }
    // What comes later covers what came before: the smallest object last, and of equal ones the first.
    let mut order: Vec<&LabelledBox> = objects.iter().filter(|object| !object.ignore).rev().collect();
    order.sort_by(|a, b| b.bbox.area().total_cmp(&a.bbox.area()));
    for object in order {
        inside(level, object, radius * level.stride as f32, |at, pixels| {
            let farthest = pixels.iter().fold(0.0, |a: f32, b| a.max(*b));
            if farthest > range.start && farthest <= range.end {
                let distances = pixels.map(|d| d / level.stride as f32);
                cells[at] = Cell::Object { label: object.label, distances };
            }
        });
    }
}

/// Calls `found` with the index of each cell that lies within the box and nearer than `radius` pixels to its middle, and
/// with the distances to the box's edges in pixels.
fn inside(level: &Level, object: &LabelledBox, radius: f32, mut found: impl FnMut(usize, [f32; 4])) {
    let b = &object.bbox;
    let middle = ((b.x0 + b.x1) / 2.0, (b.y0 + b.y1) / 2.0);
    // Cells that may lie inside; what is at the edge is decided below.
    let cells = |low: f32, high: f32, count: usize| {
        let first = (low / level.stride as f32 - 0.5).floor().max(0.0) as usize;
        let last = (high / level.stride as f32 - 0.5).ceil().max(-1.0) + 1.0;
        first..count.min(last as usize)
    };
    for row in cells(b.y0.max(middle.1 - radius), b.y1.min(middle.1 + radius), level.height) {
        for column in cells(b.x0.max(middle.0 - radius), b.x1.min(middle.0 + radius), level.width) {
            let (x, y) = level.location(row, column);
            let pixels = [x - b.x0, y - b.y0, b.x1 - x, b.y1 - y];
            let near = (x - middle.0).abs() < radius && (y - middle.1).abs() < radius;
            if near && pixels.iter().all(|d| *d > 0.0) {
                found(row * level.width + column, pixels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::Recording;
    use crate::task::BBox;

    fn object(x0: f32, y0: f32, x1: f32, y1: f32, label: usize) -> LabelledBox {
        LabelledBox { bbox: BBox { x0, y0, x1, y1 }, label, ignore: false }
    }

    #[test]
    fn cells_are_matched_as_torchvision_matches_them() {
        let file = Recording::open("detection.safetensors");
        let levels = file.indices("levels");
        let levels: Vec<Level> = levels.chunks(3).map(|l| Level { stride: l[0], height: l[1], width: l[2] }).collect();
        let counts = file.indices("boxes_of_image");
        let labels = file.indices("labels");
        let mut boxes = file.f32("boxes").chunks(4).map(<[f32]>::to_vec).zip(labels).collect::<Vec<_>>().into_iter();
        let mut objects_of = |n: usize| -> Vec<LabelledBox> {
            boxes.by_ref().take(n).map(|(b, label)| object(b[0], b[1], b[2], b[3], label)).collect()
        };
        let images: Vec<Vec<LabelledBox>> = counts.iter().map(|n| objects_of(*n)).collect();
        let images: Vec<&[LabelledBox]> = images.iter().map(Vec::as_slice).collect();
        let targets = assign(&images, &levels, 5, &AssignOptions::default()).unwrap();
        // [images, cells of all levels] the object's index in its image, −1 for none.
        let matched = file.i32("matched");
        let per_image: usize = levels.iter().map(Level::cells).sum();
        let mut positives = 0;
        for (image, matched) in matched.chunks(per_image).enumerate() {
            let cells = targets.cells.iter().zip(&levels).flat_map(|(cells, level)| {
                cells[image * level.cells()..][..level.cells()]
                    .iter()
                    .enumerate()
                    .map(move |(i, cell)| (level, i, cell))
            });
            for ((level, i, cell), index) in cells.zip(matched) {
                let expected = match usize::try_from(*index) {
                    Err(_) => Cell::Background,
                    Ok(index) => {
                        let object = images[image][index];
                        let (x, y) = level.location(i / level.width, i % level.width);
                        let b = object.bbox;
                        let distances = [x - b.x0, y - b.y0, b.x1 - x, b.y1 - y].map(|d| d / level.stride as f32);
                        positives += 1;
                        Cell::Object { label: object.label, distances }
                    }
                };
                assert_eq!(*cell, expected, "image {image}, stride {}, cell {i}", level.stride);
            }
        }
        assert!(positives > 100 && targets.positives() == positives, "{positives}");
    }

    #[test]
    fn the_smaller_object_wins_and_of_equal_ones_the_first() {
        let levels = Level::over([64, 64], &[8]);
        let large = object(0.0, 0.0, 64.0, 64.0, 0);
        let small = object(20.0, 20.0, 44.0, 44.0, 1);
        let twin = LabelledBox { label: 2, ..small };
        for images in [[small, twin, large], [large, small, twin]] {
            let targets = assign(&[&images], &levels, 3, &AssignOptions::default()).unwrap();
            let labels: Vec<usize> = targets.cells[0]
                .iter()
                .filter_map(|cell| if let Cell::Object { label, .. } = cell { Some(*label) } else { None })
                .collect();
            // All are centred at 32: the four cells nearer than 12 pixels lie within the small ones.
            assert_eq!(labels, [1; 4]);
        }
    }

    #[test]
    fn ignored_boxes_silence_cells_but_not_objects() {
        let levels = Level::over([64, 64], &[8, 16]);
        let crowd = LabelledBox { ignore: true, ..object(0.0, 0.0, 40.0, 64.0, 99) };
        let inside = object(8.0, 8.0, 32.0, 32.0, 0);
        let targets = assign(&[&[inside, crowd], &[]], &levels, 1, &AssignOptions::default()).unwrap();
        let (first, second) = targets.cells[0].split_at(64);
        for (i, cell) in first.iter().enumerate() {
            let (x, y) = levels[0].location(i / 8, i % 8);
            let object = (x - 20.0).abs() < 12.0 && (y - 20.0).abs() < 12.0;
            match cell {
                Cell::Object { label: 0, .. } => assert!(object),
                Cell::Ignored => assert!(!object && x < 40.0),
                Cell::Background => assert!(x > 40.0),
                other => panic!("{other:?}"),
            }
        }
        assert!(targets.positives() >= 4 && second.iter().all(|cell| *cell == Cell::Background));
        assert!(targets.cells[1].contains(&Cell::Ignored), "at every level");
    }

    #[test]
    fn ranges_follow_the_strides() {
        let levels = Level::over([512, 512], &[4, 8, 16]);
        let level_of = |side: f32| {
            let low = 256.0 - side / 2.0;
            let objects = [object(low, low, low + side, low + side, 0)];
            let targets = assign(&[&objects], &levels, 1, &AssignOptions::default()).unwrap();
            let positive = |cells: &Vec<Cell>| cells.iter().any(|cell| *cell != Cell::Background);
            targets.cells.iter().map(positive).collect::<Vec<_>>()
        };
        assert_eq!(level_of(20.0), [true, false, false]);
        assert_eq!(level_of(100.0), [false, true, false]);
        assert_eq!(level_of(500.0), [false, false, true]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let levels = Level::over([64, 64], &[8]);
        let message = |objects: &[LabelledBox], levels: &[Level], options: AssignOptions| {
            assign(&[&[], objects], levels, 2, &options).unwrap_err().to_string()
        };
        let options = AssignOptions::default();
        let bad = object(0.0, 0.0, 9.0, 9.0, 2);
        assert!(message(&[bad], &levels, options).contains("box 0 of image 1 of the batch has label 2"));
        assert!(message(&[object(f32::NAN, 0.0, 9.0, 9.0, 0)], &levels, options).contains("not finite"));
        assert!(message(&[], &[levels[0], levels[0]], options).contains("from fine to coarse"));
        assert!(message(&[], &levels, AssignOptions { radius: 0.0, ..options }).contains("radius is 0"));
        // An empty box has no cell inside; far outside there are none either.
        let nowhere =
            [object(9.0, 9.0, 9.0, 40.0, 0), object(-90.0, -90.0, -9.0, -9.0, 0), object(1e9, 1e9, 2e9, 2e9, 0)];
        assert_eq!(assign(&[&nowhere], &levels, 1, &options).unwrap().positives(), 0);
    }
}

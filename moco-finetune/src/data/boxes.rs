//! What detection sets have in common: images with boxes, and the rules that boxes go through.

use std::path::Path;

use moco_image::Raster;

use super::notes::{Notes, Problems};
use super::pictures::{Pictures, in_sample, other_size};
use super::{DataOptions, EmptyBoxes, LabelledData};
use crate::task::{BBox, LabelledBox, Target, Task};
use crate::{Error, Result};

/// A detection set: one picture a file, its size as annotated, its boxes.
#[derive(Debug)]
pub(super) struct Boxes {
    pub pictures: Pictures,
    pub classes: Vec<String>,
    /// Width and height, and boxes in pixels, of each picture.
    pub images: Vec<((usize, usize), Vec<LabelledBox>)>,
}

impl Boxes {
    /// # Errors
    /// A file that holds several images; a set without boxes.
    pub fn new(
        place: &Path,
        pictures: Pictures,
        classes: Vec<String>,
        images: Vec<((usize, usize), Vec<LabelledBox>)>,
    ) -> Result<Self> {
        if let Some(i) = (0..pictures.len()).find(|&i| pictures.place(i).1 > 0) {
            let reason = "several images in one file: boxes belong to files of one image each".into();
            return Err(in_sample(pictures.path(i), reason));
        }
        if images.iter().all(|(_, boxes)| boxes.is_empty()) {
            return Err(Error::format(place, "no boxes at all: nothing can be learnt from it".to_owned()));
        }
        Ok(Self { pictures, classes, images })
    }
}

impl LabelledData for Boxes {
    fn task(&self) -> Task {
        Task::Detect
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn channels(&self) -> usize {
        self.pictures.channels()
    }

    fn bit_depth(&self) -> u8 {
        self.pictures.bit_depth()
    }

    fn name(&self, index: usize) -> String {
        self.pictures.name(index)
    }

    fn image(&self, index: usize) -> Result<Raster> {
        let raster = self.pictures.read(index)?;
        let ((width, height), _) = self.images[index];
        if raster.size() != (height, width) {
            let reason = other_size("its annotation", (width, height), &raster);
            return Err(in_sample(self.pictures.path(index), reason));
        }
        Ok(raster)
    }

    fn target(&self, index: usize) -> Result<Target> {
        Ok(Target::Boxes(self.images[index].1.clone()))
    }
}

/// Reads boxes by the rules: numbers must be finite; what reaches outside the image is cut off; boxes without an area,
/// with edges that have changed places or outside the image are left out or refused.
pub(super) struct BoxRules<'a> {
    options: &'a DataOptions,
    pub notes: Notes,
    pub problems: Problems,
}

impl<'a> BoxRules<'a> {
    pub fn new(options: &'a DataOptions) -> Self {
        Self { options, notes: Notes::default(), problems: Problems::default() }
    }

    /// The box of `edges` x0, y0, x1, y1 in an image of `size` width, height; `place` says where it stands.
    pub fn accept(&mut self, edges: [f64; 4], size: (usize, usize), place: impl Fn() -> String) -> Option<BBox> {
        if edges.iter().any(|v| !v.is_finite()) {
            self.problems.add(format!("{}: a box of {edges:?}: expected finite numbers", place()));
            return None;
        }
        let [x0, y0, x1, y1] = edges;
        let mut refuse = |what: &'static str| {
            let named = || format!("{} ({x0}, {y0} to {x1}, {y1})", place());
            match self.options.empty_boxes {
                EmptyBoxes::Skip => self.notes.count(what, named),
                EmptyBoxes::Refuse => {
                    self.problems.add(format!("{}: {what}; mend it, or set empty_boxes = \"skip\"", named()));
                }
            }
            None
        };
        if x1 < x0 || y1 < y0 {
            return refuse("box left out: its edges have changed places");
        }
        if x1 == x0 || y1 == y0 {
            return refuse("box left out: it has no area");
        }
        let (width, height) = (size.0 as f64, size.1 as f64);
        let cut = [x0.clamp(0.0, width), y0.clamp(0.0, height), x1.clamp(0.0, width), y1.clamp(0.0, height)];
        if cut[2] <= cut[0] || cut[3] <= cut[1] {
            return refuse("box left out: it lies outside its image");
        }
        // Rounding of tools moves edges by up to a pixel; more is worth a word.
        if edges.iter().zip(&cut).any(|(edge, cut)| (edge - cut).abs() > 1.0) {
            let named = || format!("{} ({x0}, {y0} to {x1}, {y1} in {width} × {height})", place());
            self.notes.count("box cut off at the border of its image", named);
        }
        let [x0, y0, x1, y1] = cut.map(|v| v as f32);
        Some(BBox { x0, y0, x1, y1 })
    }
}

/// The number of a class among the wanted ones, or the reason why it is none.
pub(super) fn class_number(name: &str, classes: &[String]) -> std::result::Result<usize, String> {
    classes.iter().position(|class| class == name).ok_or_else(|| {
        let known = classes.iter().take(12).map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        let more = if classes.len() > 12 { ", …" } else { "" };
        format!("the class `{name}` is none of {known}{more}")
    })
}

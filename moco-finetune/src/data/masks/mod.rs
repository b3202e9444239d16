//! Segmentation sets: images, and for each a mask whose values mean classes.

mod meaning;
mod names;
mod pairs;

use std::path::{Path, PathBuf};

use moco_image::{Raster, read_labels};

use super::layout::Found;
use super::notes::Notes;
use super::pictures::{Pictures, in_sample};
use super::{DataOptions, LabelledData};
use crate::task::{Mask, Target, Task};
use crate::{Error, Result};
use meaning::Values;

pub use names::read_class_names;

/// Names of the parts, e.g. `train` and `val`; where they lie is found out again when one is opened.
pub(super) fn parts(root: &Path, options: &DataOptions) -> Vec<(String, PathBuf)> {
    pairs::parts(root, options).into_iter().map(|name| (name, root.to_owned())).collect()
}

/// Opens a part, or everything.
pub(super) fn open(root: &Path, part: Option<&str>, options: &DataOptions) -> Result<Found> {
    let mut notes = Notes::default();
    let pairs = pairs::find(root, part, options, &mut notes)?;
    let (images, masks) = pairs.into_iter().unzip();
    let images = Pictures::look(root, images, options);
    // Masks are numbers: channels and depth of pictures do not concern them.
    let masks = Pictures::look(root, masks, &DataOptions { channels: None, values: None, ..options.clone() });
    if let Some(i) = (0..images.len().max(masks.len()))
        .find(|&i| i >= images.len() || i >= masks.len() || images.place(i) != masks.place(i))
    {
        let file = if i < images.len() { images.path(i) } else { masks.path(i) };
        let mask = if i < masks.len() { masks.path(i) } else { masks.path(masks.len() - 1) };
        let reason = format!("holds another number of images than its mask {}", mask.display());
        return Err(Error::format(file, reason));
    }
    let names = if options.classes.is_empty() { names::find(root)? } else { options.classes.clone() };
    let (values, classes, note) = Values::decide(&masks, options.masks, names)?;
    let mut notes = notes.into_lines();
    notes.extend(note);
    Ok(Found::new(Masks { images, masks, values, classes }, "masks", notes))
}

#[derive(Debug)]
struct Masks {
    images: Pictures,
    masks: Pictures,
    values: Values,
    classes: Vec<String>,
}

impl LabelledData for Masks {
    fn task(&self) -> Task {
        Task::Segment
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn channels(&self) -> usize {
        self.images.channels()
    }

    fn bit_depth(&self) -> u8 {
        self.images.bit_depth()
    }

    fn name(&self, index: usize) -> String {
        self.images.name(index)
    }

    fn image(&self, index: usize) -> Result<Raster> {
        self.images.read(index)
    }

    fn target(&self, index: usize) -> Result<Target> {
        let labels = self.masks.with_file(index, read_labels)?;
        let width = labels.width();
        let data = self.values.to_classes(labels.data(), width, &self.classes);
        let data = data.map_err(|reason| in_sample(self.masks.path(index), reason))?;
        Ok(Target::Mask(Mask::new(width, labels.height(), data)?))
    }
}

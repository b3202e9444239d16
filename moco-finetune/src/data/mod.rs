//! Labelled data: folders of classes, tables, folders of masks, Pascal VOC, COCO, and samples in memory, all behind
//! [`LabelledData`].
//!
//! [`open`] tells layouts apart. Reading is strict: whatever is wrong with annotations is listed with file and line or
//! annotation id before anything is trained; what can only be read one way (a box that sticks out of its image) is put
//! right and counted in the notes. Pixels are decoded when a sample is asked for, at the depth of the file.

mod boxes;
mod coco;
mod folder;
mod help;
mod layout;
mod masks;
mod memory;
mod notes;
mod options;
mod parts;
mod pictures;
mod table;
#[cfg(test)]
mod tests;
mod voc;

use moco_image::Raster;

pub use help::layouts_in_words;
pub use layout::{Opened, open, open_part};
pub use masks::read_class_names;
pub use memory::InMemory;
pub use options::{DataOptions, EmptyBoxes, MaskMeaning, Unpaired, VocCoordinates};
pub use parts::{Subset, split, take};

use crate::task::{Sample, Target, Task};
use crate::{Error, Result};

/// Images with labels, in a fixed order. Shared between threads; samples are read on demand.
pub trait LabelledData: Send + Sync {
    /// What its labels are for.
    fn task(&self) -> Task;

    /// Whether an image has any number of classes ([`Target::Classes`]) rather than one ([`Target::Class`]).
    fn multi_label(&self) -> bool {
        self.task() == Task::MultiLabel
    }

    /// Number of images, at least 1.
    fn len(&self) -> usize;

    /// Never true for an opened set.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes; a label is a place among them.
    fn classes(&self) -> &[String];

    /// Channels of every image, 1 or 3.
    fn channels(&self) -> usize;

    /// Bits a value of its images: 8, or those of the deepest where [`DataOptions::values`] says what becomes black and
    /// white; 32 for floats.
    fn bit_depth(&self) -> u8;

    /// Name of image `index`: the path below the data's folder, `file#number` for one of several in a file.
    ///
    /// # Panics
    /// As everything here, for an index that is not below [`LabelledData::len`].
    fn name(&self, index: usize) -> String;

    /// Decodes image `index` at the depth of its file, with [`LabelledData::channels`] channels.
    ///
    /// # Errors
    /// Naming the file: unreadable, too large, or of another size than its annotation says.
    fn image(&self, index: usize) -> Result<Raster>;

    /// What is known about image `index`; only masks are read for it.
    ///
    /// # Errors
    /// Naming the mask: unreadable, or with a number that is no class.
    fn target(&self, index: usize) -> Result<Target>;

    /// Image and target.
    ///
    /// # Errors
    /// As [`LabelledData::image`] and [`LabelledData::target`], and for a mask of another size than its image.
    fn get(&self, index: usize) -> Result<Sample> {
        let sample = Sample { image: self.image(index)?, target: self.target(index)?, name: self.name(index) };
        match memory::check(&sample, self.classes().len()) {
            Ok(()) => Ok(sample),
            Err(problem) => Err(Error::Invalid(format!("{}: {problem}", sample.name))),
        }
    }

    /// Classes in image `index`, each once: what [`split`] and [`take`] draw by.
    ///
    /// # Errors
    /// As [`LabelledData::target`].
    fn strata(&self, index: usize) -> Result<Vec<usize>> {
        let mut classes = match self.target(index)? {
            Target::Class(class) => vec![class],
            Target::Classes(classes) => classes,
            Target::Boxes(boxes) => boxes.iter().filter(|b| !b.ignore).map(|b| b.label).collect(),
            Target::Mask(mask) => {
                let mut there = [false; 256];
                mask.data().iter().for_each(|&value| there[usize::from(value)] = true);
                (0..255).filter(|&class| there[class]).collect()
            }
        };
        classes.sort_unstable();
        classes.dedup();
        Ok(classes)
    }
}

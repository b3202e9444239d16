//! Class folders: every first-level folder is a class, images lie in it at any depth.

use std::collections::BTreeSet;
use std::path::Path;

use moco_image::{FolderFiles, IMAGE_NAMES, Raster};

use super::boxes::class_number;
use super::layout::Found;
use super::pictures::Pictures;
use super::{DataOptions, LabelledData};
use crate::task::{Target, Task};
use crate::{Error, Result};

/// Images with one class or several each.
#[derive(Debug)]
pub(super) struct Labelled {
    pub pictures: Pictures,
    pub classes: Vec<String>,
    /// Classes of each file.
    pub labels: Vec<Vec<usize>>,
    pub multi_label: bool,
}

impl LabelledData for Labelled {
    fn task(&self) -> Task {
        if self.multi_label { Task::MultiLabel } else { Task::Classify }
    }

    fn len(&self) -> usize {
        self.pictures.len()
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
        self.pictures.read(index)
    }

    fn target(&self, index: usize) -> Result<Target> {
        let labels = &self.labels[self.pictures.place(index).0];
        Ok(match (self.multi_label, labels.first()) {
            (false, Some(label)) => Target::Class(*label),
            _ => Target::Classes(labels.clone()),
        })
    }
}

/// Opens the class folders in `base`, which is `root` or a part of it.
pub(super) fn open(root: &Path, base: &Path, options: &DataOptions) -> Result<Found> {
    if options.annotations.is_some() || options.images.is_some() {
        return Err(Error::Invalid(
            "class folders take neither `images` nor `annotations`: classes are the names of folders".into(),
        ));
    }
    if options.multi_label == Some(true) {
        let reason = "class folders give one class an image: images of several classes need a CSV file";
        return Err(Error::format(root, reason));
    }
    let found = FolderFiles::find(base)?;
    if found.images.is_empty() {
        return Err(Error::format(
            base,
            format!(
                "no images: found {}. Expected one folder a class with image files ({IMAGE_NAMES})",
                found.others_in_words()
            ),
        ));
    }
    let class_of = |path: &Path| {
        let below = path.strip_prefix(base).ok()?;
        let mut parts = below.components();
        let first = parts.next()?.as_os_str().to_string_lossy().into_owned();
        parts.next().map(|_| first)
    };
    let names = found.images.iter().map(|path| {
        class_of(path).ok_or_else(|| {
            let reason =
                format!("lies in no class folder below {}: put it into a folder named after its class", base.display());
            Error::format(path, reason)
        })
    });
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let classes = match options.classes.is_empty() {
        false => options.classes.clone(),
        true => names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    if classes.len() < 2 {
        let reason = format!("one class only, `{}`: expected a folder for each of two or more", classes[0]);
        return Err(Error::format(base, reason));
    }
    let number = |name: &String| class_number(name, &classes).map(|label| vec![label]);
    let labels: std::result::Result<_, String> = names.iter().map(number).collect();
    let labels = labels.map_err(|reason| Error::format(base, format!("a class folder: {reason}")))?;
    let pictures = Pictures::look(root, found.images, options);
    Ok(Found::new(Labelled { pictures, classes, labels, multi_label: false }, "class folders", Vec::new()))
}

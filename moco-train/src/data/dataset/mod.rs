//! A data set on disk: folders of image files, CIFAR's binary files, IDX files.

mod files;
mod packed;
mod reading;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use moco_image::{Axis, DepthRule, ImagePlaces, Limits, ValueRange};
use serde::{Deserialize, Serialize};

pub use moco_image::FileKind;
pub use reading::ReadBuffers;

use super::{Error, Result};

/// How a data set is read.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Channels of every image that [`Dataset::load`] gives.
    pub channels: Channels,
    /// Which part is read where a data set has several (`train` / `val` or `test` folders, CIFAR and IDX files).
    pub split: Split,
    /// Where labels come from.
    pub labels: Labels,
    /// What a file may cost.
    pub limits: Limits,
    /// Shrinks every larger image so that its shorter side has this length, before anything else: trades detail for
    /// decoding once into a smaller cache. `None` keeps images as they are.
    pub shrink_to: Option<usize>,
    /// Which values become black and white where images have more than 8 bits; `None` refuses such images, and those
    /// of 8 bits stay as they are.
    pub values: Option<ValueRange>,
    /// Along which axis volumes are cut into images.
    pub axis: Axis,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            channels: Channels::Auto,
            split: Split::Train,
            labels: Labels::Auto,
            limits: Limits::default(),
            shrink_to: None,
            values: None,
            axis: Axis::Z,
        }
    }
}

/// Channels of a data set's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Grey if a look at 64 files spread over the set finds only grey ones, RGB otherwise; stray grey files in a colour
    /// set are then repeated three times (as torchvision's loader does), a colour file in a grey set is an error.
    #[default]
    Auto,
    /// One: colour files are turned into grey (PIL's luma).
    Grey,
    /// Three: grey files are repeated three times.
    Rgb,
}

/// Part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What is trained on.
    #[default]
    Train,
    /// What is held out.
    Test,
    /// Both.
    All,
}

/// Where labels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// From first-level folders if all images lie in such folders and there are at least two; CIFAR and IDX have their own.
    #[default]
    Auto,
    /// From first-level folders, or an error.
    Folders,
    /// None.
    None,
}

/// What was found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    /// One folder a class, below the root (at any depth inside).
    ClassFolders,
    /// Image files at any depth, without labels.
    Files,
    /// CIFAR-10's binary files.
    Cifar10,
    /// CIFAR-100's binary files (fine labels).
    Cifar100,
    /// IDX files, as MNIST's.
    Idx,
}

/// A data set, opened: what there is, in a fixed order; pixels are read on demand. Shared between threads.
#[derive(Debug)]
pub struct Dataset {
    root: PathBuf,
    kind: DatasetKind,
    images: Images,
    labels: Vec<u32>,
    class_names: Vec<String>,
    channels: usize,
    kinds: Vec<(FileKind, usize)>,
    depth: DepthRule,
    options: DataOptions,
}

#[derive(Debug)]
enum Images {
    Files {
        paths: Vec<PathBuf>,
        /// File and number in it of each image.
        images: Vec<(u32, u32)>,
    },
    Packed(packed::Packed),
}

impl Dataset {
    /// Finds the images at `path`: a folder (class folders, or files at any depth), a folder with CIFAR-10/100 binary
    /// or IDX files (also gzipped), or one such file. Each frame of a DICOM file, slice of a volume and page of a TIFF
    /// is an image. The order is that of the sorted paths, whatever the file
    /// system's; hidden files and folders are passed over, links are followed, loops are not.
    ///
    /// # Errors
    /// [`Error::Empty`] says what was looked for when nothing is found; [`Error::Option`] when the split or the labels
    /// asked for are not there; [`Error::Format`] for damaged CIFAR or IDX files.
    pub fn open(path: &Path, options: &DataOptions) -> Result<Self> {
        if let Err(source) = std::fs::metadata(path) {
            return Err(Error::Io { path: path.to_owned(), source });
        }
        if options.shrink_to == Some(0) {
            return Err(Error::Option("shrink_to is 0: give the length of the shorter side, or leave it out".into()));
        }
        let mut dataset = match packed::open(path, options.split, &options.limits)? {
            Some(mut packed) => Self {
                kind: packed.kind,
                labels: std::mem::take(&mut packed.labels),
                class_names: std::mem::take(&mut packed.class_names),
                channels: packed.channels,
                kinds: vec![(
                    FileKind { format: "binary".into(), bit_depth: 8, channels: packed.channels },
                    packed.len(),
                )],
                depth: DepthRule { bit_depth: 8, values: ValueRange::Full, other_depths: None },
                images: Images::Packed(packed),
                root: path.to_owned(),
                options: options.clone(),
            },
            None => {
                let files = files::find(path, options.split, options.labels)?;
                let labelled = !files.class_names.is_empty();
                let found = ImagePlaces::look(&files.paths, &options.read_options());
                let label = |(file, _): &(u32, u32)| files.labels[*file as usize];
                Self {
                    kind: if labelled { DatasetKind::ClassFolders } else { DatasetKind::Files },
                    channels: found.channels(),
                    labels: if labelled { found.images.iter().map(label).collect() } else { Vec::new() },
                    kinds: found.kinds.into_iter().collect(),
                    depth: DepthRule { bit_depth: 8, values: ValueRange::Full, other_depths: None },
                    images: Images::Files { paths: files.paths, images: found.images },
                    class_names: files.class_names,
                    root: path.to_owned(),
                    options: options.clone(),
                }
            }
        };
        dataset.depth.bit_depth = dataset.kinds.iter().map(|(kind, _)| kind.bit_depth).max().unwrap_or(8);
        match options.values {
            Some(values) => {
                values.validate()?;
                dataset.depth.values = values;
            }
            None => dataset.depth.bit_depth = 8,
        }
        match options.channels {
            Channels::Auto => {}
            Channels::Grey => dataset.channels = 1,
            Channels::Rgb => dataset.channels = 3,
        }
        if options.labels == Labels::None {
            dataset.labels.clear();
            dataset.class_names.clear();
        }
        if options.labels == Labels::Folders && dataset.labels.is_empty() {
            return Err(Error::Option(format!("labels were asked for, but {} has none", path.display())));
        }
        Ok(dataset)
    }

    /// Whether `path` has a part that is trained on and one that is held out, as [`Split`] selects them.
    pub fn has_split(path: &Path, options: &DataOptions) -> bool {
        files::is_split(path) || {
            let part = |split| matches!(packed::open(path, split, &options.limits), Ok(Some(_)));
            path.is_dir() && part(Split::Train) && part(Split::Test)
        }
    }

    /// What was found.
    pub fn kind(&self) -> DatasetKind {
        self.kind
    }

    /// Where it was found.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.images {
            Images::Files { images, .. } => images.len(),
            Images::Packed(packed) => packed.len(),
        }
    }

    /// Never true for an opened data set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels of every image that is loaded: 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Kinds of files, from the headers that were read when it was opened, and images of each.
    pub fn kinds(&self) -> &[(FileKind, usize)] {
        &self.kinds
    }

    /// Bits a value of its images: 8, or, where [`DataOptions::values`] says what becomes black and white, those of the
    /// deepest; 32 for floats.
    pub fn bit_depth(&self) -> u8 {
        self.depth.bit_depth
    }

    /// Whether pixels already lie in memory, so that a cache would only repeat them.
    pub fn in_memory(&self) -> bool {
        matches!(self.images, Images::Packed(_))
    }

    /// Class of image `index`, if the set has labels.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).map(|&label| label as usize)
    }

    /// Names of the classes, in the order of their numbers; empty without labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Name of image `index`: the path below the root, `file#number` for one of several in a file.
    pub fn name(&self, index: usize) -> String {
        match &self.images {
            Images::Files { paths, images } => {
                let (file, frame) = images[index];
                let path = &paths[file as usize];
                let below = path.strip_prefix(&self.root).ok().filter(|p| !p.as_os_str().is_empty());
                let name = below.unwrap_or(path).display().to_string();
                // Images of one file lie side by side.
                let alone = frame == 0 && images.get(index + 1).is_none_or(|(next, _)| *next != file);
                if alone { name } else { format!("{name}#{frame}") }
            }
            Images::Packed(packed) => packed.name(index),
        }
    }

    /// Path of image `index`, unless it lies inside a binary file.
    pub fn path(&self, index: usize) -> Option<&Path> {
        match &self.images {
            Images::Files { paths, images } => Some(&paths[images[index].0 as usize]),
            Images::Packed(_) => None,
        }
    }
}

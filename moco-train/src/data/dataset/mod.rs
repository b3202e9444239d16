//! A data set on disk: folders of JPEG and PNG files, CIFAR's binary files, IDX files.

mod files;
mod packed;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use moco_image::{Filter, Image, Limits};
use serde::{Deserialize, Serialize};

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
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            channels: Channels::Auto,
            split: Split::Train,
            labels: Labels::Auto,
            limits: Limits::default(),
            shrink_to: None,
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
    options: DataOptions,
}

#[derive(Debug)]
enum Images {
    Files(Vec<PathBuf>),
    Packed(packed::Packed),
}

/// Buffers that reading keeps from image to image.
#[derive(Debug, Default)]
pub struct ReadBuffers {
    bytes: Vec<u8>,
}

impl Dataset {
    /// Finds the images at `path`: a folder (class folders, or files at any depth), a folder with CIFAR-10/100 binary
    /// or IDX files (also gzipped), or one such file. The order is that of the sorted paths, whatever the file
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
                images: Images::Packed(packed),
                root: path.to_owned(),
                options: options.clone(),
            },
            None => {
                let files = files::find(path, options.split, options.labels)?;
                let labelled = !files.class_names.is_empty();
                Self {
                    kind: if labelled { DatasetKind::ClassFolders } else { DatasetKind::Files },
                    channels: channels_of(&files.paths),
                    images: Images::Files(files.paths),
                    labels: files.labels,
                    class_names: files.class_names,
                    root: path.to_owned(),
                    options: options.clone(),
                }
            }
        };
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
            Images::Files(paths) => paths.len(),
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

    /// Whether pixels already lie in memory, so that a cache would only repeat them.
    pub fn in_memory(&self) -> bool {
        matches!(self.images, Images::Packed(_))
    }

    /// Decodes image `index`, with [`Dataset::channels`] channels.
    ///
    /// # Errors
    /// [`Error::Image`] naming it.
    pub fn load(&self, index: usize) -> Result<Image> {
        let mut image = Image::default();
        self.load_into(index, &mut ReadBuffers::default(), &mut image)?;
        Ok(image)
    }

    /// As [`Dataset::load`], into buffers that are reused.
    ///
    /// # Errors
    /// [`Error::Image`] naming it; the image's values are unspecified then.
    pub fn load_into(&self, index: usize, buffers: &mut ReadBuffers, image: &mut Image) -> Result<()> {
        self.read(index, buffers, image).map_err(|source| Error::Image { name: self.name(index), source })
    }

    /// Class of image `index`, if the set has labels.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).map(|&label| label as usize)
    }

    /// Names of the classes, in the order of their numbers; empty without labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Name of image `index`: the path below the root, or `file#number` inside a binary file.
    pub fn name(&self, index: usize) -> String {
        match &self.images {
            Images::Files(paths) => {
                let path = &paths[index];
                let below = path.strip_prefix(&self.root).ok().filter(|p| !p.as_os_str().is_empty());
                below.unwrap_or(path).display().to_string()
            }
            Images::Packed(packed) => packed.name(index),
        }
    }

    /// Path of image `index`, unless it lies inside a binary file.
    pub fn path(&self, index: usize) -> Option<&Path> {
        match &self.images {
            Images::Files(paths) => Some(&paths[index]),
            Images::Packed(_) => None,
        }
    }

    fn read(&self, index: usize, buffers: &mut ReadBuffers, image: &mut Image) -> moco_image::Result<()> {
        match &self.images {
            Images::Packed(packed) => packed.load_into(index, image)?,
            Images::Files(paths) => {
                read_file(&paths[index], &self.options.limits, &mut buffers.bytes)?;
                moco_image::decode_into(&buffers.bytes, &self.options.limits, image)?;
            }
        }
        if image.channels() == 3 && self.channels == 1 && self.options.channels == Channels::Auto {
            return Err(moco_image::Error::Channels(
                "a colour image in a set that looked grey: say which is meant, channels = \"grey\" or \"rgb\"".into(),
            ));
        }
        image.convert(self.channels)?;
        match self.options.shrink_to {
            Some(side) if image.width().min(image.height()) > side => {
                *image = moco_image::resize_shorter_side(image, side, Filter::Bilinear)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// 1 if a look at 64 files finds only grey ones, else 3.
fn channels_of(paths: &[PathBuf]) -> usize {
    const LOOKS: usize = 64;
    let looks = paths.len().min(LOOKS);
    let chosen = (0..looks).map(|i| &paths[i * paths.len() / looks]);
    let channels = |path: &PathBuf| Some(moco_image::probe(&std::fs::read(path).ok()?).ok()?.channels);
    let found: Vec<usize> = chosen.filter_map(channels).collect();
    if !found.is_empty() && found.iter().all(|&c| c == 1) { 1 } else { 3 }
}

fn read_file(path: &Path, limits: &Limits, bytes: &mut Vec<u8>) -> moco_image::Result<()> {
    use std::io::Read;
    let io = |source| moco_image::Error::Io { path: path.to_owned(), source };
    bytes.clear();
    let file = std::fs::File::open(path).map_err(io)?;
    // One byte above the limit is enough for the decoder to refuse the file.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(bytes).map_err(io)?;
    Ok(())
}

//! Image files in folders: found at any depth, in a fixed order, with classes from first-level folders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use moco_image::{FolderFiles, IMAGE_NAMES, is_image_file};

use super::{Labels, Split};
use crate::data::{Error, Result};

/// Image files below a root.
#[derive(Debug)]
pub(super) struct Files {
    /// Sorted by their path below `root`.
    pub paths: Vec<PathBuf>,
    /// Class of each, empty without labels.
    pub labels: Vec<u32>,
    pub class_names: Vec<String>,
}

/// Names that the held-out part of a data set goes by, in order of preference.
const HELD_OUT: [&str; 4] = ["test", "val", "valid", "validation"];

/// Finds the files of a split.
pub(super) fn find(root: &Path, split: Split, labels: Labels) -> Result<Files> {
    if root.is_file() {
        if !is_image_file(root) {
            return Err(Error::Empty(format!(
                "{} is not an image by its name ({IMAGE_NAMES}), nor a CIFAR or IDX file",
                root.display()
            )));
        }
        return Ok(Files { paths: vec![root.to_owned()], labels: Vec::new(), class_names: Vec::new() });
    }
    let (mut found, mut classes) = (FolderFiles::default(), Vec::new());
    for base in split_folders(root, split)? {
        found.add(&base).map_err(in_folder)?;
        classes.extend(found.images[classes.len()..].iter().map(|path| first_folder(&base, path)));
    }
    if found.images.is_empty() {
        return Err(Error::Empty(nothing_found(root, &found)));
    }
    let found = found.images;
    let names: BTreeSet<&String> = classes.iter().flatten().collect();
    let all_in_folders = classes.iter().all(Option::is_some);
    let labelled = match labels {
        Labels::None => false,
        Labels::Auto => all_in_folders && names.len() > 1,
        Labels::Folders if all_in_folders => true,
        Labels::Folders => {
            let stray = classes.iter().position(Option::is_none).map(|i| found[i].display().to_string());
            return Err(Error::Option(format!(
                "labels were asked for, but {} lies in no class folder below {}: put every image into a folder named \
                 after its class",
                stray.unwrap_or_default(),
                root.display()
            )));
        }
    };
    let class_names: Vec<String> = if labelled { names.into_iter().cloned().collect() } else { Vec::new() };
    let label = |name: &Option<String>| {
        let name = name.as_ref().expect("labelled only if every image lies in a folder");
        class_names.binary_search(name).expect("collected from the same names") as u32
    };
    let labels = if labelled { classes.iter().map(label).collect() } else { Vec::new() };
    Ok(Files { paths: found, labels, class_names })
}

/// Whether a folder has a training and a held-out part.
pub(super) fn is_split(root: &Path) -> bool {
    root.join("train").is_dir() && HELD_OUT.iter().any(|name| root.join(name).is_dir())
}

fn split_folders(root: &Path, split: Split) -> Result<Vec<PathBuf>> {
    let held_out = || HELD_OUT.iter().map(|name| root.join(name)).find(|path| path.is_dir());
    Ok(match (is_split(root), split) {
        (true, Split::Train) => vec![root.join("train")],
        (true, Split::Test) => held_out().into_iter().collect(),
        (true, Split::All) => std::iter::once(root.join("train")).chain(held_out()).collect(),
        (false, Split::Test) => {
            return Err(Error::Option(format!(
                "{} has no held-out part: expected folders `train` and one of {} in it",
                root.display(),
                HELD_OUT.map(|name| format!("`{name}`")).join(", ")
            )));
        }
        (false, _) => vec![root.to_owned()],
    })
}

fn in_folder(error: moco_image::Error) -> Error {
    match error {
        moco_image::Error::Io { path, source } => Error::Io { path, source },
        other => Error::Pixels(other),
    }
}

fn first_folder(base: &Path, path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix(base).ok()?.components();
    let first = parts.next()?;
    parts.next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn nothing_found(root: &Path, found: &FolderFiles) -> String {
    format!(
        "no images in {}: looked through {} folder(s) and found {}. Expected image files ({IMAGE_NAMES}) \
         at any depth, CIFAR-10/100 binary files (data_batch_1.bin …, train.bin …) or IDX files (train-images-idx3-ubyte …)",
        root.display(),
        found.folders,
        found.others_in_words()
    )
}

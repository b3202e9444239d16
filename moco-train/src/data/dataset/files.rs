//! Image files in folders: found at any depth, in a fixed order, with classes from first-level folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

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
        if !is_image(root) {
            return Err(Error::Empty(format!(
                "{} is not an image by its name ({NAMES}), nor a CIFAR or IDX file",
                root.display()
            )));
        }
        return Ok(Files { paths: vec![root.to_owned()], labels: Vec::new(), class_names: Vec::new() });
    }
    let mut found = Vec::new(); // (folder of the split, path)
    let mut others = Others::default();
    for base in split_folders(root, split)? {
        walk(&base, &mut found, &mut others)?;
    }
    if found.is_empty() {
        return Err(Error::Empty(nothing_found(root, &others)));
    }
    let classes: Vec<Option<String>> = found.iter().map(|(base, path)| first_folder(base, path)).collect();
    let names: BTreeSet<&String> = classes.iter().flatten().collect();
    let all_in_folders = classes.iter().all(Option::is_some);
    let labelled = match labels {
        Labels::None => false,
        Labels::Auto => all_in_folders && names.len() > 1,
        Labels::Folders if all_in_folders => true,
        Labels::Folders => {
            let stray = classes.iter().position(Option::is_none).map(|i| found[i].1.display().to_string());
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
    Ok(Files { paths: found.into_iter().map(|(_, path)| path).collect(), labels, class_names })
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

/// What lies in the folder and is no image.
#[derive(Default)]
struct Others {
    folders: usize,
    extensions: BTreeMap<String, usize>,
}

fn walk(base: &Path, found: &mut Vec<(PathBuf, PathBuf)>, others: &mut Others) -> Result<()> {
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".") || name == "__MACOSX";
    let entries = WalkDir::new(base)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
    let start = found.len();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            // A link back to a folder that is being walked: its images are found anyway.
            Err(error) if error.loop_ancestor().is_some() => continue,
            // A dangling link.
            Err(error) if error.path().is_some_and(|p| p.is_symlink() && !p.exists()) => continue,
            Err(error) => {
                let path = error.path().unwrap_or(base).to_owned();
                return Err(Error::Io { path, source: error.into() });
            }
        };
        if entry.file_type().is_dir() {
            others.folders += 1;
        } else if is_image(entry.path()) {
            found.push((base.to_owned(), entry.into_path()));
        } else {
            let extension = entry.path().extension().unwrap_or_default().to_string_lossy().to_lowercase();
            *others.extensions.entry(extension).or_default() += 1;
        }
    }
    found[start..].sort();
    Ok(())
}

/// By its name; a file without an extension by DICOM's mark, as scanners write them.
fn is_image(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    match Path::new(&name).extension().map(|e| e.to_string_lossy()).as_deref() {
        Some("jpg" | "jpeg" | "jpe" | "jfif" | "png" | "tif" | "tiff" | "dcm" | "dicom" | "nii") => true,
        Some("gz") => name.ends_with(".nii.gz"),
        None | Some("ima") => has_dicom_mark(path).unwrap_or(false) && name != "dicomdir",
        Some(_) => false,
    }
}

const NAMES: &str = ".jpg, .png, .tif, .dcm, .nii, .nii.gz";

fn has_dicom_mark(path: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut start = [0; 132];
    std::fs::File::open(path)?.read_exact(&mut start)?;
    Ok(&start[128..] == b"DICM")
}

fn first_folder(base: &Path, path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix(base).ok()?.components();
    let first = parts.next()?;
    parts.next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn nothing_found(root: &Path, others: &Others) -> String {
    let mut seen: Vec<_> = others.extensions.iter().collect();
    seen.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let name = |extension: &str| if extension.is_empty() { "no extension".to_owned() } else { format!(".{extension}") };
    let seen: Vec<String> = seen.iter().take(4).map(|(ext, n)| format!("{n} with {}", name(ext))).collect();
    let seen = if seen.is_empty() { "no files at all".to_owned() } else { format!("only files {}", seen.join(", ")) };
    format!(
        "no images in {}: looked through {} folder(s) and found {seen}. Expected image files ({NAMES}) \
         at any depth, CIFAR-10/100 binary files (data_batch_1.bin …, train.bin …) or IDX files (train-images-idx3-ubyte …)",
        root.display(),
        others.folders
    )
}

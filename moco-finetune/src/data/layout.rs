//! Which layout a data folder has, and the parts (`train`, `val`, …) in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moco_image::FolderFiles;

use super::{DataOptions, LabelledData, coco, folder, masks, table, voc};
use crate::task::Task;
use crate::{Error, Result};

/// A data set that was found, with its held-out part if it has one.
pub struct Opened {
    /// What is trained on.
    pub train: Arc<dyn LabelledData>,
    /// What is held out: the part `val`, `valid`, `validation` or, without those, `test`.
    pub validation: Option<Arc<dyn LabelledData>>,
    /// The layout in words: `class folders`, `table`, `masks`, `Pascal VOC`, `COCO`.
    pub layout: &'static str,
    /// What was put right or left out, a line each.
    pub notes: Vec<String>,
}

/// Parts that count as held out, in order of preference.
const HELD_OUT: [&str; 4] = ["val", "valid", "validation", "test"];

/// Opens the data at `path`, a folder, or a CSV or JSON file, for a task.
///
/// | task | layouts |
/// |---|---|
/// | classify, multi-label | class folders, also below `train/` and `val/`; `labels.csv`, `train.csv` and `val.csv`, or any CSV file |
/// | segment | `images/` and `masks/` (or `label/`, `labels/` …) paired by name, also below `train/` and `val/` or with `train/` and `val/` below each; `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation` |
/// | detect | Pascal VOC: `JPEGImages`, `Annotations`, `ImageSets/Main`, or the first two below `train/` and `val/`; COCO: JSON files in `annotations/` or the folder itself |
///
/// # Errors
/// [`Error::Format`] naming the file, the line or annotation, and what was expected; [`Error::Invalid`] for options.
pub fn open(path: &Path, task: Task, options: &DataOptions) -> Result<Opened> {
    let options = &for_task(task, options)?;
    let layout = Layout::find(path, task, options)?;
    let parts = layout.parts(path, options);
    let held_out = HELD_OUT.into_iter().find(|name| parts.iter().any(|(part, _)| part == name));
    let is_train = |part: &str| part == "train" || (part == "trainval" && held_out == Some("test"));
    let train = parts.iter().find(|(part, _)| part == "train").or(parts.iter().find(|(part, _)| is_train(part)));
    let Some((part, place)) = train else {
        let found = layout.open(path, None, options)?;
        return Ok(Opened { train: found.data, validation: None, layout: found.layout, notes: found.notes });
    };
    let train = layout.open(path, Some((part, place)), options)?;
    let mut opened = Opened { train: train.data, validation: None, layout: train.layout, notes: train.notes };
    if let Some((part, place)) = held_out.and_then(|name| parts.iter().find(|(part, _)| part == name)) {
        // Numbers of classes must be the same on both sides.
        let options = DataOptions {
            classes: opened.train.classes().to_vec(),
            channels: Some(opened.train.channels()),
            multi_label: options.multi_label.or(Some(opened.train.multi_label())),
            ..options.clone()
        };
        let found = layout.open(path, Some((part, place)), &options)?;
        opened.notes.extend(found.notes.into_iter().map(|note| format!("{part}: {note}")));
        opened.validation = Some(found.data);
    }
    Ok(opened)
}

/// Opens one part of the data at `path` by its name, e.g. `test`; what was put right is in the lines given back.
///
/// # Errors
/// As [`open`], and [`Error::Format`] naming the parts that are there.
pub fn open_part(
    path: &Path,
    task: Task,
    options: &DataOptions,
    part: &str,
) -> Result<(Arc<dyn LabelledData>, Vec<String>)> {
    let options = &for_task(task, options)?;
    let layout = Layout::find(path, task, options)?;
    let parts = layout.parts(path, options);
    let Some((name, place)) = parts.iter().find(|(name, _)| name == part) else {
        let names: Vec<String> = parts.iter().map(|(name, _)| format!("`{name}`")).collect();
        let there =
            if names.is_empty() { "it has no parts".to_owned() } else { format!("it has {}", names.join(", ")) };
        return Err(Error::format(path, format!("no part `{part}`: {there}")));
    };
    let found = layout.open(path, Some((name, place)), options)?;
    Ok((found.data, found.notes))
}

fn for_task(task: Task, options: &DataOptions) -> Result<DataOptions> {
    options.validate()?;
    let multi_label = if task == Task::MultiLabel { Some(true) } else { options.multi_label };
    Ok(DataOptions { multi_label, ..options.clone() })
}

/// What a layout's reader gives back.
pub(super) struct Found {
    pub data: Arc<dyn LabelledData>,
    pub layout: &'static str,
    pub notes: Vec<String>,
}

impl Found {
    pub fn new(data: impl LabelledData + 'static, layout: &'static str, notes: Vec<String>) -> Self {
        Self { data: Arc::new(data), layout, notes }
    }
}

#[derive(Clone, Copy)]
enum Layout {
    ClassFolders,
    Table,
    Masks,
    Voc,
    Coco,
}

impl Layout {
    fn find(path: &Path, task: Task, options: &DataOptions) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let annotations = options.annotations.as_ref().and_then(|p| p.extension()).unwrap_or_default();
        let classify = matches!(task, Task::Classify | Task::MultiLabel);
        match task {
            _ if classify && metadata.is_file() && matches!(&*extension, "csv" | "tsv") => Ok(Self::Table),
            _ if classify && metadata.is_dir() && (annotations == "csv" || annotations == "tsv") => Ok(Self::Table),
            _ if classify && metadata.is_dir() && !table::parts(path).is_empty() => Ok(Self::Table),
            _ if classify && metadata.is_dir() => Ok(Self::ClassFolders),
            Task::Classify | Task::MultiLabel => {
                Err(Error::format(path, "expected a folder with one folder a class, or a CSV file"))
            }
            Task::Segment if metadata.is_dir() => Ok(Self::Masks),
            Task::Segment => Err(Error::format(path, "expected a folder with images/ and masks/")),
            Task::Detect if metadata.is_file() && extension == "json" => Ok(Self::Coco),
            Task::Detect if metadata.is_dir() && voc::is_voc(path, options) => Ok(Self::Voc),
            Task::Detect if metadata.is_dir() && !voc_parts(path, options).is_empty() => Ok(Self::Voc),
            Task::Detect if metadata.is_dir() && !self::coco_parts(path, options).is_empty() => Ok(Self::Coco),
            Task::Detect => Err(Error::format(
                path,
                "no boxes found: expected Pascal VOC (Annotations/*.xml beside JPEGImages/) or COCO (a JSON file here, \
                 in annotations/ or beside the images of train/ and val/); YOLO's text files are not read",
            )),
        }
    }

    /// Names of the parts and where each lies.
    fn parts(self, path: &Path, options: &DataOptions) -> Vec<(String, PathBuf)> {
        let there = |names: Vec<String>| names.into_iter().map(|name| (name, path.to_owned())).collect();
        match self {
            Self::ClassFolders => folder_parts(path),
            Self::Table if path.is_file() || options.annotations.is_some() => Vec::new(),
            Self::Table => table::parts(path),
            Self::Masks => masks::parts(path, options),
            Self::Voc if voc::is_voc(path, options) => there(voc::parts(path)),
            Self::Voc => voc_parts(path, options),
            Self::Coco if path.is_file() => Vec::new(),
            Self::Coco => coco_parts(path, options),
        }
    }

    fn open(self, path: &Path, part: Option<(&String, &PathBuf)>, options: &DataOptions) -> Result<Found> {
        let name = part.map(|(name, _)| name.as_str());
        let place = part.map_or(path, |(_, place)| place.as_path());
        match self {
            Self::ClassFolders => folder::open(path, place, options),
            Self::Table => {
                let file = match (&options.annotations, part) {
                    (Some(file), None) => path.join(file),
                    _ => place.to_owned(),
                };
                let file = if file.is_dir() { file.join("labels.csv") } else { file };
                table::open(&file, options)
            }
            Self::Masks => masks::open(path, name, options),
            Self::Voc if place != path => voc::open(place, None, options),
            Self::Voc => voc::open(path, name, options),
            Self::Coco if path.is_file() => coco::open(path.parent().unwrap_or(Path::new(".")), path, options),
            Self::Coco => match part {
                Some((_, json)) => coco::open(path, json, options),
                None => coco::open(path, &only(path, &coco::files(path, options))?, options),
            },
        }
    }
}

/// Folders `train`, `val` … of class folders: only a folder `train` makes the others parts.
fn folder_parts(path: &Path) -> Vec<(String, PathBuf)> {
    let names = std::iter::once("train").chain(HELD_OUT);
    let parts: Vec<_> = names.map(|name| (name.to_owned(), path.join(name))).filter(|(_, p)| p.is_dir()).collect();
    if parts.first().is_some_and(|(name, _)| name == "train") && parts.len() > 1 { parts } else { Vec::new() }
}

/// Folders `train`, `val` … each with Pascal VOC's folders in it.
fn voc_parts(path: &Path, options: &DataOptions) -> Vec<(String, PathBuf)> {
    folder_parts(path).into_iter().filter(|(_, place)| voc::is_voc(place, options)).collect()
}

/// JSON files by the part that their names speak of (`instances_train2017.json`), or the one in a folder of that name
/// (`train/_annotations.coco.json`).
fn coco_parts(path: &Path, options: &DataOptions) -> Vec<(String, PathBuf)> {
    let files = coco::files(path, options);
    let stem = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let of_part = |name: &str| {
        let inside = folder_of(&path.join(name), "json").unwrap_or_default();
        let named =
            files.iter().find(|file| stem(file).split(|c: char| !c.is_ascii_alphabetic()).any(|word| word == name));
        named.cloned().or(inside.into_iter().next())
    };
    let names = std::iter::once("train").chain(HELD_OUT);
    let parts: Vec<_> = names.filter_map(|name| Some((name.to_owned(), of_part(name)?))).collect();
    match (parts.is_empty(), &files[..]) {
        (true, [only]) => vec![("all".into(), only.clone())],
        _ => parts,
    }
}

fn only(path: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    match files {
        [file] => Ok(file.clone()),
        files => {
            let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            Err(Error::format(
                path,
                format!("several JSON files, which one is meant? ({}) Say annotations = …", names.join(", ")),
            ))
        }
    }
}

/// Files of one extension directly in a folder, sorted, without hidden ones.
pub(super) fn folder_of(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Image files below a folder by their path in it without the extension.
pub(super) fn image_index(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let found = FolderFiles::find(folder)?;
    if found.images.is_empty() {
        return Err(Error::format(folder, format!("no images: found {}", found.others_in_words())));
    }
    let mut index = BTreeMap::new();
    for path in found.images {
        let below = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let key = stem_of(&below).to_owned();
        if let Some(other) = index.insert(key, path.clone()) {
            let reason = format!("{} differs only in its extension: which one is meant?", other.display());
            return Err(Error::format(&path, reason));
        }
    }
    Ok(index)
}

/// A name without its extension, which is two parts in `.nii.gz`.
pub(super) fn stem_of(name: &str) -> &str {
    let stem = name.strip_suffix(".gz").filter(|stem| stem.to_lowercase().ends_with(".nii")).unwrap_or(name);
    let base = stem.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
    match stem[base..].rfind('.') {
        Some(dot) if dot > 0 => &stem[..base + dot],
        _ => stem,
    }
}

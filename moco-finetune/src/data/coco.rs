//! COCO: one JSON file with `images`, `annotations` and `categories` (cocodataset.org, "Data format", object detection).
//!
//! `bbox` is `[x, y, width, height]` in edges: the whole image is `[0, 0, width, height]`. Categories become numbers from
//! 0 in the order of their ids. A crowd (`iscrowd` 1) is ignored. Images without annotations are images without objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::DataOptions;
use super::boxes::{BoxRules, Boxes, class_number};
use super::layout::{Found, folder_of};
use super::pictures::{Pictures, below, size_of};
use crate::task::LabelledBox;
use crate::{Error, Result};

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: i64,
    file_name: String,
    #[serde(default)]
    width: usize,
    #[serde(default)]
    height: usize,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    id: Option<i64>,
    image_id: i64,
    category_id: i64,
    bbox: Option<Vec<f64>>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct Category {
    id: i64,
    name: String,
}

/// The JSON files of a data folder, in which parts are told by their names.
pub(super) fn files(root: &Path, options: &DataOptions) -> Vec<PathBuf> {
    if let Some(path) = &options.annotations {
        let path = root.join(path);
        return if path.is_dir() { folder_of(&path, "json").unwrap_or_default() } else { vec![path] };
    }
    let folders = [root.join("annotations"), root.to_owned()];
    folders
        .iter()
        .map(|folder| folder_of(folder, "json").unwrap_or_default())
        .find(|f| !f.is_empty())
        .unwrap_or_default()
}

/// Opens the set that `json` describes; `root` is the data's folder.
pub(super) fn open(root: &Path, json: &Path, options: &DataOptions) -> Result<Found> {
    let coco = parse(json, options)?;
    if coco.images.is_empty() {
        return Err(Error::format(json, "lists no `images`: nothing to read"));
    }
    let mut rules = BoxRules::new(options);
    let (classes, labels) = categories(&coco, options, &mut rules);
    let folder = images_folder(root, json, &coco.images, options)?;
    let mut paths = Vec::with_capacity(coco.images.len());
    let mut sizes = Vec::with_capacity(coco.images.len());
    let mut by_id = BTreeMap::new();
    for (index, image) in coco.images.iter().enumerate() {
        if by_id.insert(image.id, index).is_some() {
            rules.problems.add(format!("image {}: its id is given twice", image.id));
        }
        let path = below(&folder, &image.file_name).unwrap_or_else(|reason| {
            rules.problems.add(format!("image {}: {reason}", image.id));
            folder.clone()
        });
        if path != folder && !path.is_file() {
            rules.problems.add(format!("image {}: there is no file {}", image.id, path.display()));
        }
        let stated = (image.width, image.height);
        let size = if stated.0 > 0 && stated.1 > 0 { Ok(stated) } else { size_of(&path, options) };
        sizes.push(size.unwrap_or_else(|error| {
            rules.problems.add(format!("image {}: it states no width and height, and {error}", image.id));
            (1, 1)
        }));
        paths.push(path);
    }
    let mut boxes: Vec<Vec<LabelledBox>> = vec![Vec::new(); paths.len()];
    for (at, annotation) in coco.annotations.iter().enumerate() {
        let place = || match annotation.id {
            Some(id) => format!("annotation {id}"),
            None => format!("annotation number {at} in the list"),
        };
        let Some(&index) = by_id.get(&annotation.image_id) else {
            rules.problems.add(format!("{}: there is no image {}", place(), annotation.image_id));
            continue;
        };
        let label = match labels.get(&annotation.category_id) {
            Some(Ok(label)) => *label,
            Some(Err(reason)) => {
                rules.problems.add(format!("{}: {reason}", place()));
                continue;
            }
            None => {
                rules.problems.add(format!("{}: there is no category {}", place(), annotation.category_id));
                continue;
            }
        };
        let ignore = match annotation.iscrowd {
            0 => false,
            1 => true,
            other => {
                rules.problems.add(format!("{}: iscrowd is {other}: expected 0 or 1", place()));
                continue;
            }
        };
        let Some(&[x, y, width, height]) = annotation.bbox.as_deref() else {
            rules.problems.add(format!("{}: `bbox` must be [x, y, width, height]", place()));
            continue;
        };
        if let Some(bbox) = rules.accept([x, y, x + width, y + height], sizes[index], place) {
            boxes[index].push(LabelledBox { bbox, label, ignore });
        }
    }
    let BoxRules { mut notes, problems, .. } = rules;
    problems.finish(json)?;
    for (image, _) in coco.images.iter().zip(&boxes).filter(|(_, boxes)| boxes.is_empty()) {
        notes.count("image without an object", || image.file_name.clone());
    }
    let pictures = Pictures::look(root, paths, options);
    let data = Boxes::new(json, pictures, classes, sizes.into_iter().zip(boxes).collect())?;
    Ok(Found::new(data, "COCO", notes.into_lines()))
}

fn parse(json: &Path, options: &DataOptions) -> Result<Coco> {
    let io = |source| Error::Io { path: json.to_owned(), source };
    let len = std::fs::metadata(json).map_err(io)?.len();
    if len > options.limits.max_bytes {
        let limit = options.limits.max_bytes;
        return Err(Error::format(
            json,
            format!("{len} bytes, above the limit of {limit}; raise it if the file can be trusted"),
        ));
    }
    let bytes = std::fs::read(json).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::format(json, format!("not COCO's JSON of `images`, `annotations` and `categories`: {error}"))
    })
}

/// Class names, and the number of each category or why it is none.
fn categories(
    coco: &Coco,
    options: &DataOptions,
    rules: &mut BoxRules<'_>,
) -> (Vec<String>, BTreeMap<i64, std::result::Result<usize, String>>) {
    let mut by_id: BTreeMap<i64, &str> = BTreeMap::new();
    for category in &coco.categories {
        if by_id.insert(category.id, &category.name).is_some() {
            rules.problems.add(format!("category {}: its id is given twice", category.id));
        }
        if coco.categories.iter().filter(|other| other.name == category.name).count() > 1 {
            rules.problems.add(format!("category {}: the name `{}` is given twice", category.id, category.name));
        }
    }
    if !options.classes.is_empty() {
        let labels = by_id.iter().map(|(id, name)| (*id, class_number(name, &options.classes)));
        return (options.classes.clone(), labels.collect());
    }
    let labels = by_id.keys().enumerate().map(|(number, id)| (*id, Ok(number)));
    (by_id.values().map(|name| (*name).to_owned()).collect(), labels.collect())
}

/// Where the first image lies: the folder asked for, or one of the usual ones.
fn images_folder(root: &Path, json: &Path, images: &[CocoImage], options: &DataOptions) -> Result<PathBuf> {
    if let Some(path) = &options.images {
        return Ok(root.join(path));
    }
    let beside = json.parent().unwrap_or(root);
    let stem = json.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let part = stem.trim_start_matches("instances_").to_owned(); // instances_train2017.json → train2017/
    let candidates = [
        root.join("images").join(&part),
        root.join(&part),
        root.join("images"),
        beside.join("images"),
        beside.to_owned(),
        root.to_owned(),
    ];
    let first = &images[0].file_name;
    let holds = |folder: &&PathBuf| below(folder, first).is_ok_and(|path| path.is_file());
    if let Some(folder) = candidates.iter().find(holds) {
        return Ok(folder.clone());
    }
    // A name that leads elsewhere is reported as such, not as missing.
    if let Err(reason) = below(&candidates[2], first) {
        return Err(Error::format(json, format!("image {}: {reason}", images[0].id)));
    }
    let mut tried: Vec<String> = Vec::new();
    for folder in candidates.iter().map(|folder| folder.display().to_string()) {
        if !tried.contains(&folder) {
            tried.push(folder);
        }
    }
    let tried = tried.join(", ");
    Err(Error::format(json, format!("its first image `{first}` is in none of {tried}: say where (images = …)")))
}

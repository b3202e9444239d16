//! Which mask belongs to which image.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::data::layout::image_index;
use crate::data::notes::Notes;
use crate::data::{DataOptions, Unpaired};
use crate::{Error, Result};

/// Names that folders of images go by.
const IMAGES: [&str; 7] = ["images", "image", "imgs", "img", "JPEGImages", "inputs", "input"];
/// Names that folders of masks go by.
const MASKS: [&str; 12] = [
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "SegmentationClass",
    "gt",
    "ground_truth",
    "segmentations",
    "segmentation",
    "targets",
    "target",
];
/// What names of masks have after the image's, where both lie in one folder.
const SUFFIXES: [&str; 8] = ["_mask", "_masks", "_seg", "_label", "_labels", "_gt", "-mask", "-seg"];
/// Names of parts.
const PARTS: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// Names of the parts that are there.
pub(super) fn parts(root: &Path, options: &DataOptions) -> Vec<String> {
    let list = |name: &str| root.join("ImageSets/Segmentation").join(format!("{name}.txt")).is_file();
    let names: Vec<&str> = PARTS
        .into_iter()
        .filter(|name| list(name) || root.join(name).is_dir() || inner(root, name, options).is_some())
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Pairs of image and mask, sorted by name.
pub(super) fn find(
    root: &Path,
    part: Option<&str>,
    options: &DataOptions,
    notes: &mut Notes,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let list = part.map(|part| root.join("ImageSets/Segmentation").join(format!("{part}.txt"))).filter(|p| p.is_file());
    let (images, masks) = match part {
        Some(part) if list.is_none() => {
            let base = root.join(part);
            if base.is_dir() {
                folders(&base, options)?
            } else {
                inner(root, part, options).unwrap_or(folders(root, options)?)
            }
        }
        _ => folders(root, options)?,
    };
    let mut image_of = image_index(&images)?;
    let mut mask_of = if images == masks { BTreeMap::new() } else { image_index(&masks)? };
    if images == masks {
        split_by_suffix(&mut image_of, &mut mask_of, &images, options)?;
    }
    if let Some(list) = list {
        let listed = listed(&list)?;
        if let Some(missing) = listed.iter().find(|name| !image_of.contains_key(*name)) {
            return Err(Error::format(&list, format!("`{missing}`: there is no such image in {}", images.display())));
        }
        image_of.retain(|name, _| listed.contains(name));
    }
    let suffix = match &options.mask_suffix {
        Some(suffix) => suffix.clone(),
        None => common_suffix(&image_of, &mask_of),
    };
    pair(image_of, mask_of, &suffix, &masks, options, notes)
}

fn pair(
    images: BTreeMap<String, PathBuf>,
    masks: BTreeMap<String, PathBuf>,
    suffix: &str,
    folder: &Path,
    options: &DataOptions,
    notes: &mut Notes,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let (mut pairs, mut missing) = (Vec::new(), Vec::new());
    for (name, image) in images {
        match masks.get(&format!("{name}{suffix}")) {
            Some(mask) => pairs.push((image, mask.clone())),
            None => missing.push((name, image)),
        }
    }
    let Some((_, first)) = missing.first() else { return Ok(pairs) };
    let has_none = "image left out: it has no mask";
    if options.unpaired == Unpaired::Skip && !pairs.is_empty() {
        missing.iter().for_each(|(_, image)| notes.count(has_none, || image.display().to_string()));
        return Ok(pairs);
    }
    let names: Vec<String> = missing.iter().take(5).map(|(name, _)| format!("`{name}{suffix}`")).collect();
    let more = if missing.len() > 5 { ", …" } else { "" };
    let reason = format!(
        "{} of {} images have no mask: expected {}{more} in {}. Name masks like their images, say what follows the \
         image's name (mask_suffix = \"_mask\"), or leave such images out (unpaired = \"skip\")",
        missing.len(),
        missing.len() + pairs.len(),
        names.join(", "),
        folder.display()
    );
    Err(Error::format(first, reason))
}

/// What every mask's name has after its image's; nothing, if names are the same.
fn common_suffix(images: &BTreeMap<String, PathBuf>, masks: &BTreeMap<String, PathBuf>) -> String {
    let matched = |suffix: &str| images.keys().filter(|name| masks.contains_key(&format!("{name}{suffix}"))).count();
    let Some(first) = images.keys().find(|name| !masks.contains_key(*name)) else { return String::new() };
    let suffixes: BTreeSet<&str> = masks.keys().filter_map(|mask| mask.strip_prefix(first.as_str())).collect();
    // The shortest of those that fit most images.
    let best = suffixes.into_iter().max_by_key(|suffix| (matched(suffix), std::cmp::Reverse(suffix.len())));
    best.filter(|suffix| matched(suffix) > matched("")).unwrap_or("").to_owned()
}

fn split_by_suffix(
    images: &mut BTreeMap<String, PathBuf>,
    masks: &mut BTreeMap<String, PathBuf>,
    folder: &Path,
    options: &DataOptions,
) -> Result<()> {
    let ending = |suffix: &str| images.keys().any(|name| name.ends_with(suffix));
    let suffix = match &options.mask_suffix {
        Some(suffix) => suffix.clone(),
        None => SUFFIXES.into_iter().find(|suffix| ending(suffix)).map(str::to_owned).ok_or_else(|| {
            Error::format(
                folder,
                format!(
                    "no masks found: expected folders like images/ and masks/ in it, or masks beside their images with a \
                     name that ends in {}",
                    SUFFIXES.join(", ")
                ),
            )
        })?,
    };
    let names: Vec<String> = images.keys().filter(|name| name.ends_with(&suffix)).cloned().collect();
    for name in names {
        if let Some(path) = images.remove(&name) {
            masks.insert(name, path);
        }
    }
    Ok(())
}

/// Folders of images and masks; one and the same where masks lie beside images.
fn folders(base: &Path, options: &DataOptions) -> Result<(PathBuf, PathBuf)> {
    let (images, masks) = (candidates(base, &options.images, &IMAGES), candidates(base, &options.annotations, &MASKS));
    match (&images[..], &masks[..]) {
        ([image], [mask]) => Ok((image.clone(), mask.clone())),
        ([], []) => Ok((base.to_owned(), base.to_owned())),
        (images, masks) => {
            let (what, found, option) =
                if images.len() == 1 { ("masks", masks, "annotations") } else { ("images", images, "images") };
            let names: Vec<String> = found.iter().map(|p| p.display().to_string()).collect();
            let (names, expected) = match names.is_empty() {
                true => {
                    let expected = if what == "masks" { MASKS.join(", ") } else { IMAGES.join(", ") };
                    let there = subfolders(base).join(", ");
                    (format!("among its folders ({there})"), format!("expected one of {expected}"))
                }
                false => (format!("is not one: {}", names.join(", ")), "several fit".to_owned()),
            };
            Err(Error::format(base, format!("the folder of {what} {names}: {expected}. Say which ({option} = …)")))
        }
    }
}

fn candidates(base: &Path, wanted: &Option<PathBuf>, names: &[&str]) -> Vec<PathBuf> {
    match wanted {
        Some(path) => vec![base.join(path)],
        // Where names differ in case only, a file system may show one folder under both.
        None => names.iter().map(|name| base.join(name)).filter(|path| path.is_dir()).collect(),
    }
}

/// `images/train` and `masks/train`.
fn inner(root: &Path, part: &str, options: &DataOptions) -> Option<(PathBuf, PathBuf)> {
    let (images, masks) = folders(root, options).ok()?;
    let (images, masks) = (images.join(part), masks.join(part));
    (images.is_dir() && masks.is_dir() && images != masks).then_some((images, masks))
}

fn listed(list: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(list).map_err(|source| Error::Io { path: list.to_owned(), source })?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn subfolders(base: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

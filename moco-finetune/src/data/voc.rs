//! Pascal VOC: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/<part>.txt`.
//!
//! Coordinates are read as the development kit defines them (VOC2007 devkit, `PASreadrecord`): pixels counted from 1,
//! `xmax` and `ymax` inside the box; in edges that is `xmin − 1, ymin − 1, xmax, ymax`, as Detectron2 and torchvision's
//! references take them. Files of tools that write edges are read with [`VocCoordinates::Edges`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node, ParsingOptions};

use super::boxes::{BoxRules, Boxes, class_number};
use super::layout::{Found, folder_of, image_index};
use super::pictures::{Pictures, below, size_of};
use super::{DataOptions, VocCoordinates};
use crate::task::LabelledBox;
use crate::{Error, Result};

/// Bytes of an XML file; real ones have a few thousand.
const MAX_BYTES: u64 = 16 << 20;

/// Whether `root` looks like Pascal VOC with boxes.
pub(super) fn is_voc(root: &Path, options: &DataOptions) -> bool {
    let annotations = options.annotations.as_ref().map_or_else(|| root.join("Annotations"), |path| root.join(path));
    annotations.is_dir() && folder_of(&annotations, "xml").is_ok_and(|files| !files.is_empty())
}

/// Names of the parts that `ImageSets/Main` lists.
pub(super) fn parts(root: &Path) -> Vec<String> {
    let lists = folder_of(&root.join("ImageSets/Main"), "txt").unwrap_or_default();
    let stem = |path: &PathBuf| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    // Lists of one class each are named `<class>_<part>`.
    lists.iter().filter_map(stem).filter(|name| !name.contains('_')).collect()
}

/// Opens a part, or everything that is annotated.
pub(super) fn open(root: &Path, part: Option<&str>, options: &DataOptions) -> Result<Found> {
    let annotations = root.join(options.annotations.as_deref().unwrap_or(Path::new("Annotations")));
    let images =
        match &options.images {
            Some(path) => root.join(path),
            None => ["JPEGImages", "images"].map(|name| root.join(name)).into_iter().find(|p| p.is_dir()).ok_or_else(
                || Error::format(root, "no folder of images: expected JPEGImages or images beside Annotations"),
            )?,
        };
    let by_stem = image_index(&images)?;
    let mut rules = BoxRules::new(options);
    let mut records = Vec::new();
    for entry in listed(root, &annotations, part)? {
        match read(&entry, &images, &by_stem, options, &mut rules) {
            Ok(record) => records.push(record),
            Err(problem) => rules.problems.add(problem),
        }
    }
    let BoxRules { mut notes, mut problems, .. } = rules;
    if part.is_none() {
        let without = by_stem.len().saturating_sub(records.len());
        (0..without).for_each(|_| notes.count("image left out: it has no XML file", || images.display().to_string()));
    }
    let classes = match options.classes.is_empty() {
        false => options.classes.clone(),
        true => {
            let names = records.iter().flat_map(|record| record.objects.iter().map(|object| object.name.clone()));
            names.collect::<BTreeSet<_>>().into_iter().collect()
        }
    };
    let mut boxes = Vec::new();
    for record in &records {
        let labelled = record.objects.iter().filter_map(|object| match class_number(&object.name, &classes) {
            Ok(label) => Some(LabelledBox { bbox: object.bbox, label, ignore: object.difficult }),
            Err(reason) => {
                problems.add(format!("{}, line {}: {reason}", record.xml, object.line));
                None
            }
        });
        boxes.push((record.size, labelled.collect()));
    }
    problems.finish(&annotations)?;
    let pictures = Pictures::look(root, records.into_iter().map(|record| record.image).collect(), options);
    let data = Boxes::new(&annotations, pictures, classes, boxes)?;
    Ok(Found::new(data, "Pascal VOC", notes.into_lines()))
}

/// An XML file to read, and where its name stands.
struct Entry {
    xml: PathBuf,
    listed_in: Option<String>,
}

fn listed(root: &Path, annotations: &Path, part: Option<&str>) -> Result<Vec<Entry>> {
    let Some(part) = part else {
        let files = folder_of(annotations, "xml")?;
        return Ok(files.into_iter().map(|xml| Entry { xml, listed_in: None }).collect());
    };
    let list = root.join("ImageSets/Main").join(format!("{part}.txt"));
    let text = std::fs::read_to_string(&list).map_err(|source| Error::Io { path: list.clone(), source })?;
    let mut entries = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let Some(id) = line.split_whitespace().next() else { continue };
        let place = format!("{}, line {}", list.display(), i + 1);
        let xml = below(annotations, &format!("{id}.xml"))
            .map_err(|reason| Error::format(&list, format!("line {}: {reason}", i + 1)))?;
        entries.push(Entry { xml, listed_in: Some(place) });
    }
    if entries.is_empty() {
        return Err(Error::format(&list, "lists no image: expected one name a line, without an extension"));
    }
    Ok(entries)
}

struct Record {
    xml: String,
    image: PathBuf,
    size: (usize, usize),
    objects: Vec<Object>,
}

struct Object {
    name: String,
    bbox: crate::task::BBox,
    difficult: bool,
    line: u32,
}

fn read(
    entry: &Entry,
    images: &Path,
    by_stem: &std::collections::BTreeMap<String, PathBuf>,
    options: &DataOptions,
    rules: &mut BoxRules<'_>,
) -> std::result::Result<Record, String> {
    let path = &entry.xml;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = read_text(path).map_err(|reason| match &entry.listed_in {
        Some(place) => format!(
            "{place}: {}: {reason} (an image without objects needs an XML file without <object>)",
            path.display()
        ),
        None => format!("{file}: {reason}"),
    })?;
    let parsing = ParsingOptions { allow_dtd: false, nodes_limit: 1 << 20, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&text, parsing).map_err(|e| format!("{file}: no XML: {e}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        return Err(format!("{file}: expected an element <annotation>, it has <{}>", root.tag_name().name()));
    }
    let image = image_of(path, root, images, by_stem).map_err(|reason| format!("{file}: {reason}"))?;
    let size = match stated_size(root).map_err(|reason| format!("{file}, {reason}"))? {
        Some(size) => size,
        None => size_of(&image, options).map_err(|e| format!("{file}: it states no <size>, and {e}"))?,
    };
    let mut objects = Vec::new();
    for object in root.children().filter(|node| node.has_tag_name("object")) {
        let line = line_of(object);
        let place = || format!("{file}, line {line}");
        let parsed = (|| {
            let name = text_of(object, "name")?.to_owned();
            let difficult = match optional(object, "difficult") {
                None | Some("0") => false,
                Some("1") => true,
                Some(other) => return Err(format!("<difficult> is `{other}`: expected 0 or 1")),
            };
            let corners = child(object, "bndbox").ok_or("an <object> without <bndbox>")?;
            let number = |tag: &str| -> std::result::Result<f64, String> {
                let text = text_of(corners, tag)?;
                text.parse().map_err(|_| format!("<{tag}> is `{text}`: expected a number"))
            };
            Ok((name, difficult, [number("xmin")?, number("ymin")?, number("xmax")?, number("ymax")?]))
        })();
        let (name, difficult, [x0, y0, x1, y1]) = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => {
                rules.problems.add(format!("{}: {reason}", place()));
                continue;
            }
        };
        let edges = match options.voc_coordinates {
            // A box of one pixel, xmin = xmax, is a click: no tool draws it on purpose.
            VocCoordinates::FromOne if x1 > x0 && y1 > y0 => [x0 - 1.0, y0 - 1.0, x1, y1],
            _ => [x0, y0, x1, y1],
        };
        if let Some(bbox) = rules.accept(edges, size, place) {
            objects.push(Object { name, bbox, difficult, line });
        }
    }
    Ok(Record { xml: file, image, size, objects })
}

fn read_text(path: &Path) -> std::result::Result<String, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("more than {MAX_BYTES} bytes: no annotation of one image"));
    }
    String::from_utf8(bytes)
        .map_err(|e| format!("not UTF-8 after {} bytes: save it as UTF-8", e.utf8_error().valid_up_to()))
}

/// By the XML file's name; where there is none, by <filename>.
fn image_of(
    xml: &Path,
    root: Node<'_, '_>,
    images: &Path,
    by_stem: &std::collections::BTreeMap<String, PathBuf>,
) -> std::result::Result<PathBuf, String> {
    let stem = xml.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(path) = by_stem.get(&stem) {
        return Ok(path.clone());
    }
    let named = optional(root, "filename").unwrap_or_default();
    if !named.is_empty() {
        let path = below(images, named)?;
        if path.is_file() {
            return Ok(path);
        }
    }
    Err(format!("no image `{stem}` in {}, nor the <filename> `{named}`", images.display()))
}

/// `None` where there is no <size>, or one of 0 as some tools write.
fn stated_size(root: Node<'_, '_>) -> std::result::Result<Option<(usize, usize)>, String> {
    let Some(size) = child(root, "size") else { return Ok(None) };
    let side = |tag: &str| -> std::result::Result<usize, String> {
        let text = text_of(size, tag).map_err(|reason| format!("line {}: {reason}", line_of(size)))?;
        text.parse().map_err(|_| format!("line {}: <{tag}> is `{text}`: expected a whole number", line_of(size)))
    };
    let size = (side("width")?, side("height")?);
    Ok((size.0 > 0 && size.1 > 0).then_some(size))
}

fn child<'a, 'd>(node: Node<'a, 'd>, tag: &str) -> Option<Node<'a, 'd>> {
    node.children().find(|child| child.has_tag_name(tag))
}

fn optional<'a>(node: Node<'a, '_>, tag: &str) -> Option<&'a str> {
    child(node, tag).map(|child| child.text().unwrap_or_default().trim())
}

fn text_of<'a>(node: Node<'a, '_>, tag: &str) -> std::result::Result<&'a str, String> {
    optional(node, tag)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| format!("<{}> has no <{tag}>", node.tag_name().name()))
}

fn line_of(node: Node<'_, '_>) -> u32 {
    node.document().text_pos_at(node.range().start).row
}

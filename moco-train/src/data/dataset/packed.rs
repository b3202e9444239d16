//! Images packed into binary files and held in memory: CIFAR-10, CIFAR-100 and the IDX files of the MNIST family.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use moco_image::{Image, Limits};

use super::{DatasetKind, Split};
use crate::data::{Error, Result};

/// Images of one size, as many files as there are.
#[derive(Debug)]
pub(super) struct Packed {
    pub kind: DatasetKind,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    files: Vec<PackedFile>,
    /// Class of each image, empty without labels.
    pub labels: Vec<u32>,
    pub class_names: Vec<String>,
}

#[derive(Debug)]
struct PackedFile {
    name: String,
    bytes: Vec<u8>,
    /// Bytes before the first image, and before each image's pixels.
    header: usize,
    label_bytes: usize,
    images: usize,
    /// Channel after channel, as CIFAR's, instead of interleaved.
    planar: bool,
}

impl Packed {
    pub fn len(&self) -> usize {
        self.files.iter().map(|f| f.images).sum()
    }

    pub fn name(&self, index: usize) -> String {
        let (file, at) = self.locate(index);
        format!("{}#{at}", file.name)
    }

    pub fn load_into(&self, index: usize, image: &mut Image) -> moco_image::Result<()> {
        let (file, at) = self.locate(index);
        let (pixels, len) = (self.height * self.width, self.height * self.width * self.channels);
        let start = file.header + at * (len + file.label_bytes) + file.label_bytes;
        let source = &file.bytes[start..start + len];
        image.reshape(self.width, self.height, self.channels)?;
        if file.planar && self.channels > 1 {
            for (i, pixel) in image.data_mut().chunks_exact_mut(self.channels).enumerate() {
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = source[c * pixels + i];
                }
            }
        } else {
            image.data_mut().copy_from_slice(source);
        }
        Ok(())
    }

    fn locate(&self, mut index: usize) -> (&PackedFile, usize) {
        for file in &self.files {
            if index < file.images {
                return (file, index);
            }
            index -= file.images;
        }
        panic!("image {index} is past the end of the data set");
    }
}

/// Opens `path` if it is, or holds, CIFAR or IDX files; `None` if it does not.
pub(super) fn open(path: &Path, split: Split, limits: &Limits) -> Result<Option<Packed>> {
    if path.is_file() {
        let name = file_name(path);
        return match () {
            () if is_idx_images(&name) => idx(&[path.to_owned()], limits).map(Some),
            () if name.ends_with(".bin") => {
                let kind = if matches!(&*name, "train.bin" | "test.bin") { CIFAR100 } else { CIFAR10 };
                cifar(kind, &[path.to_owned()], limits).map(Some)
            }
            () => Ok(None),
        };
    }
    for folder in [path.to_owned(), path.join("cifar-10-batches-bin"), path.join("cifar-100-binary")] {
        if let Some(packed) = open_folder(&folder, split, limits)? {
            return Ok(Some(packed));
        }
    }
    Ok(None)
}

fn open_folder(folder: &Path, split: Split, limits: &Limits) -> Result<Option<Packed>> {
    let exists = |name: &String| folder.join(name).is_file();
    let pick = |train: Vec<String>, test: Vec<String>| -> Vec<PathBuf> {
        let (train, test) = match split {
            Split::Train => (train, Vec::new()),
            Split::Test => (Vec::new(), test),
            Split::All => (train, test),
        };
        train.iter().chain(&test).filter(|name| exists(name)).map(|name| folder.join(name)).collect()
    };
    let needed = |files: Vec<PathBuf>, what: &str| {
        if files.is_empty() {
            return Err(Error::Option(format!(
                "{} holds {what} files, but none of the {split:?} part",
                folder.display()
            )));
        }
        Ok(files)
    };
    let batches: Vec<String> = (1..=5).map(|i| format!("data_batch_{i}.bin")).collect();
    let test_batch = vec!["test_batch.bin".to_owned()];
    if batches.iter().chain(&test_batch).any(exists) {
        return cifar(CIFAR10, &needed(pick(batches, test_batch), "CIFAR-10")?, limits).map(Some);
    }
    let (train, test) = (vec!["train.bin".to_owned()], vec!["test.bin".to_owned()]);
    if train.iter().chain(&test).any(exists) {
        return cifar(CIFAR100, &needed(pick(train, test), "CIFAR-100")?, limits).map(Some);
    }
    if ["data_batch_1".to_owned(), "test_batch".to_owned()].iter().all(exists) {
        return Err(Error::Option(format!(
            "{} holds the Python version of CIFAR-10 (pickles), which is not read: get its binary version \
             (data_batch_1.bin …)",
            folder.display()
        )));
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut names: Vec<String> = entries.flatten().map(|e| file_name(&e.path())).filter(|n| is_idx_images(n)).collect();
    names.sort();
    if names.is_empty() {
        return Ok(None);
    }
    // A file and its compressed twin are the same images.
    let plain: Vec<String> = names.iter().filter(|n| !n.ends_with(".gz")).cloned().collect();
    names.retain(|name| name.strip_suffix(".gz").is_none_or(|n| !plain.iter().any(|p| p == n)));
    let (test, train): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| name.contains("t10k") || name.contains("test"));
    idx(&needed(pick(train, test), "IDX")?, limits).map(Some)
}

struct Cifar {
    kind: DatasetKind,
    /// The last of them is the class.
    label_bytes: usize,
    classes: u32,
    names: &'static str,
}

const CIFAR10: Cifar = Cifar { kind: DatasetKind::Cifar10, label_bytes: 1, classes: 10, names: "batches.meta.txt" };
const CIFAR100: Cifar =
    Cifar { kind: DatasetKind::Cifar100, label_bytes: 2, classes: 100, names: "fine_label_names.txt" };

fn cifar(kind: Cifar, paths: &[PathBuf], limits: &Limits) -> Result<Packed> {
    const SIDE: usize = 32;
    let record = kind.label_bytes + 3 * SIDE * SIDE;
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for path in paths {
        let bytes = read(path, limits)?;
        let format = |reason: String| Error::Format { path: path.clone(), reason };
        if bytes.is_empty() || bytes.len() % record != 0 {
            return Err(format(format!(
                "{} bytes are not a whole number of {record}-byte records: not a {:?} binary file, or cut short",
                bytes.len(),
                kind.kind
            )));
        }
        for (i, entry) in bytes.chunks_exact(record).enumerate() {
            let label = u32::from(entry[kind.label_bytes - 1]);
            if label >= kind.classes {
                return Err(format(format!("image {i} has class {label}, expected 0–{}", kind.classes - 1)));
            }
            labels.push(label);
        }
        let (name, images) = (file_name(path), bytes.len() / record);
        files.push(PackedFile { name, bytes, header: 0, label_bytes: kind.label_bytes, images, planar: true });
    }
    let names = paths.first().and_then(|p| p.parent()).map(|folder| folder.join(kind.names));
    let text = names.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let named: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    let numbers = || (0..kind.classes).map(|i| i.to_string()).collect();
    let class_names = if named.len() == kind.classes as usize { named } else { numbers() };
    Ok(Packed { kind: kind.kind, height: SIDE, width: SIDE, channels: 3, files, labels, class_names })
}

/// IDX: a magic of two zeros, a type (8: unsigned bytes) and the number of dimensions, then their sizes, then the data.
fn idx(paths: &[PathBuf], limits: &Limits) -> Result<Packed> {
    let mut shape = None;
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    let mut labelled = true;
    for path in paths {
        let format = |reason: String| Error::Format { path: path.clone(), reason };
        let bytes = read(path, limits)?;
        let (sizes, header) = idx_header(&bytes).map_err(&format)?;
        let (images, size) = match sizes[..] {
            [n, h, w] => (n, [h, w, 1]),
            [n, h, w, c @ (1 | 3)] => (n, [h, w, c]),
            _ => return Err(format(format!("sizes {sizes:?}; expected images × height × width (× 1 or 3 channels)"))),
        };
        if images == 0 || size.contains(&0) {
            return Err(format(format!("no pixels: sizes {sizes:?}")));
        }
        if *shape.get_or_insert(size) != size {
            return Err(format(format!(
                "images of {size:?}, the files before have {shape:?} (height, width, channels)"
            )));
        }
        let label_path = path.with_file_name(file_name(path).replace("images", "labels").replace("idx3", "idx1"));
        let twin = if label_path.extension().is_some_and(|e| e == "gz") {
            label_path.with_extension("")
        } else {
            PathBuf::from(format!("{}.gz", label_path.display()))
        };
        match [label_path, twin].into_iter().find(|p| p != path && p.is_file()) {
            Some(path) if labelled => labels.extend(idx_labels(&path, images, limits)?),
            _ => labelled = false,
        }
        files.push(PackedFile { name: file_name(path), bytes, header, label_bytes: 0, images, planar: false });
    }
    let [height, width, channels] = shape.expect("at least one file is given");
    let labels = if labelled { labels } else { Vec::new() };
    let classes = labels.iter().max().map_or(0, |max| max + 1);
    let class_names = (0..classes).map(|i| i.to_string()).collect();
    Ok(Packed { kind: DatasetKind::Idx, height, width, channels, files, labels, class_names })
}

fn idx_labels(path: &Path, images: usize, limits: &Limits) -> Result<Vec<u32>> {
    let bytes = read(path, limits)?;
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let (sizes, header) = idx_header(&bytes).map_err(format)?;
    if sizes != [images] {
        return Err(format(format!("labels of sizes {sizes:?} for {images} images; expected one label an image")));
    }
    Ok(bytes[header..].iter().map(|&label| u32::from(label)).collect())
}

/// Sizes, and where the data starts; the data is there in full.
fn idx_header(bytes: &[u8]) -> std::result::Result<(Vec<usize>, usize), String> {
    let [0, 0, kind, dimensions, rest @ ..] = bytes else {
        return Err("not an IDX file: it does not start with two zero bytes".into());
    };
    if *kind != 8 {
        return Err(format!("IDX type 0x{kind:02x} is not supported, only 0x08 (unsigned bytes)"));
    }
    let dimensions = usize::from(*dimensions);
    let sizes: Vec<usize> =
        rest.chunks_exact(4).take(dimensions).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    if sizes.len() < dimensions || dimensions == 0 {
        return Err(format!("an IDX header of {dimensions} dimensions that is cut short"));
    }
    let header = 4 + 4 * dimensions;
    let needed = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).and_then(|n| n.checked_add(header));
    if needed != Some(bytes.len()) {
        return Err(format!(
            "sizes {sizes:?} need {} bytes, the file has {}",
            needed.map_or("too many".into(), |n| n.to_string()),
            bytes.len()
        ));
    }
    Ok((sizes, header))
}

fn is_idx_images(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.contains("images") && (name.ends_with("idx3-ubyte") || name.ends_with("idx4-ubyte"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The file's bytes, unpacked if it is gzip; never more than eight times the limit on an image file.
fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let most = limits.max_bytes.saturating_mul(8);
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|e| e == "gz") {
        flate2::read::GzDecoder::new(file).take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    } else {
        file.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    }
    if bytes.len() as u64 > most {
        return Err(Error::Format { path: path.to_owned(), reason: format!("more than {most} bytes") });
    }
    Ok(bytes)
}

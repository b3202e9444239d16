//! The images of a data set: files and the frames in them, opened and brought to the set's channels on demand.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use moco_image::{ImageFile, ImagePlaces, Raster, ReadOptions};

use super::DataOptions;
use crate::{Error, Result};

/// Image files, some of which may hold several images.
#[derive(Debug)]
pub(super) struct Pictures {
    root: PathBuf,
    paths: Vec<PathBuf>,
    places: Vec<(u32, u32)>, // file and number in it of each image
    channels: usize,
    convert: bool,
    bit_depth: u8,
    options: ReadOptions,
    /// Files of several images, with the number of the file, the one read last in front.
    open: Mutex<Vec<(u32, Arc<ImageFile>)>>,
}

/// Bytes of volumes held open: slices are read in a random order, and unpacking a volume costs more than a slice.
const OPEN_BYTES: usize = 1 << 30;

impl Pictures {
    /// Looks at the headers of `paths`, whose names are given below `root`.
    pub fn look(root: &Path, paths: Vec<PathBuf>, options: &DataOptions) -> Self {
        let read = options.read_options();
        let places = ImagePlaces::look(&paths, &read);
        Self {
            root: root.to_owned(),
            paths,
            channels: options.channels.unwrap_or_else(|| places.channels()),
            convert: options.channels.is_some(),
            // Without a range deep images are refused where they are prepared, against a depth of 8.
            bit_depth: if options.values.is_some() { places.bit_depth() } else { 8 },
            places: places.images,
            options: read,
            open: Mutex::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn bit_depth(&self) -> u8 {
        self.bit_depth
    }

    /// The file that image `index` lies in, and its number in it.
    pub fn place(&self, index: usize) -> (usize, usize) {
        let (file, frame) = self.places[index];
        (file as usize, frame as usize)
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> &Path {
        &self.paths[self.place(index).0]
    }

    /// The path below the root, with `#` and the number for one of several in a file.
    pub fn name(&self, index: usize) -> String {
        let (file, frame) = self.places[index];
        let path = &self.paths[file as usize];
        let below = path.strip_prefix(&self.root).ok().filter(|p| !p.as_os_str().is_empty()).unwrap_or(path);
        // Images of one file lie side by side.
        let alone = frame == 0 && self.places.get(index + 1).is_none_or(|(next, _)| *next != file);
        if alone { below.display().to_string() } else { format!("{}#{frame}", below.display()) }
    }

    /// The image, with the set's channels.
    pub fn read(&self, index: usize) -> Result<Raster> {
        self.with_file(index, |file, frame| {
            let mut raster = file.read(frame)?;
            if raster.channels() == 3 && self.channels == 1 && !self.convert {
                return Err(moco_image::Error::Channels(
                    "a colour image in a set that looked grey: say which is meant, channels = 1 or 3".into(),
                ));
            }
            raster.convert(self.channels)?;
            Ok(raster)
        })
    }

    /// Calls `read` with the opened file of image `index` and its number in it; errors carry the path.
    pub fn with_file<T>(
        &self,
        index: usize,
        read: impl FnOnce(&ImageFile, usize) -> moco_image::Result<T>,
    ) -> Result<T> {
        let (file, frame) = self.places[index];
        let path = &self.paths[file as usize];
        // ImageFile::open_path names the path itself.
        let opened = self.opened(file, path)?;
        read(&opened, frame as usize)
            .map_err(|source| moco_image::Error::File { path: path.clone(), source: Box::new(source) }.into())
    }

    fn opened(&self, file: u32, path: &Path) -> Result<Arc<ImageFile>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut open = lock();
            if let Some(at) = open.iter().position(|(number, _)| *number == file) {
                open[..=at].rotate_right(1);
                return Ok(open[0].1.clone());
            }
        }
        let opened = Arc::new(ImageFile::open_path(path, &self.options)?);
        if opened.frames() > 1 {
            let mut open = lock();
            open.insert(0, (file, opened.clone()));
            let mut held = 0;
            let kept = open.iter().take_while(|(_, file)| {
                held += file.bytes_held();
                held <= OPEN_BYTES
            });
            // The one just opened stays, however large.
            let kept = kept.count().max(1);
            open.truncate(kept);
        }
        Ok(opened)
    }
}

/// Width and height by a file's header.
pub(super) fn size_of(path: &Path, options: &DataOptions) -> Result<(usize, usize)> {
    let info = ImageFile::probe_path(path, &options.read_options())?;
    Ok((info.width, info.height))
}

/// The path of a file that an annotation names, which must lie below `folder`.
///
/// # Errors
/// A reason: an absolute path, one that climbs out, or an empty one.
pub(super) fn below(folder: &Path, name: &str) -> std::result::Result<PathBuf, String> {
    use std::path::Component;
    let path = Path::new(name);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || name.contains('\0') || !path.components().all(plain) {
        return Err(format!("the file name {name:?} must be a path below {}, without `..`", folder.display()));
    }
    Ok(folder.join(path))
}

/// The error for an image of another size than its annotation's.
pub(super) fn other_size(what: &str, expected: (usize, usize), raster: &Raster) -> String {
    let (height, width) = raster.size();
    let turned = if expected == (height, width) && width != height {
        "; it may be stored rotated (EXIF): save it upright"
    } else {
        ""
    };
    format!("{what} says {} × {} (width × height), the image has {width} × {height}{turned}", expected.0, expected.1)
}

/// An error that names a sample.
pub(super) fn in_sample(path: &Path, reason: String) -> Error {
    Error::format(path, reason)
}

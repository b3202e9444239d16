//! The image files of a folder, and the images in them.

use std::path::{Path, PathBuf};

use moco_image::{ImageFile, Raster, ReadOptions, is_image_file};
use walkdir::WalkDir;

use crate::{Error, Result};

/// One of the images in a file: a frame, a slice, a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameOf {
    /// The file.
    pub path: PathBuf,
    /// Its number in the file, from 0.
    pub frame: usize,
    /// How many there are.
    pub frames: usize,
}

impl FrameOf {
    /// The file's name below `folder`, with `#` and the number if the file holds several images.
    pub fn name(&self, folder: &Path) -> String {
        // One line a file, whatever its name.
        let name = self.path.strip_prefix(folder).unwrap_or(&self.path).display().to_string().replace('\n', "\\n");
        if self.frames == 1 { name } else { format!("{name}#{}", self.frame) }
    }
}

/// Where an image lies: a path names a file of one image, [`FrameOf`] one of several.
pub trait ImagePlace: Sync {
    /// The file.
    fn path(&self) -> &Path;

    /// The image's number in the file; `None` = there must be one only.
    fn frame(&self) -> Option<usize>;
}

impl ImagePlace for PathBuf {
    fn path(&self) -> &Path {
        self
    }

    fn frame(&self) -> Option<usize> {
        None
    }
}

impl ImagePlace for FrameOf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn frame(&self) -> Option<usize> {
        Some(self.frame)
    }
}

/// Image files below `folder`, at any depth, sorted by path: `.jpg`, `.jpeg`, `.png`, `.tif`, `.tiff`, `.dcm`, `.nii`,
/// `.nii.gz` (any case), and files without an extension that begin as DICOM does. Symbolic links are followed, cycles
/// are an error.
///
/// # Errors
/// [`Error::Io`] for what cannot be listed, [`Error::Input`] if there is no image.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let entry = entry.map_err(|e| Error::Io {
            path: e.path().unwrap_or(folder).to_owned(),
            source: e
                .into_io_error()
                .unwrap_or_else(|| std::io::Error::other("a symbolic link points to a folder above it")),
        })?;
        if entry.file_type().is_file() && is_image_file(entry.path()) {
            files.push(entry.into_path());
        }
    }
    if files.is_empty() {
        return Err(Error::Input(format!(
            "{}: holds no image file (.jpg, .jpeg, .png, .tif, .dcm, .nii, .nii.gz)",
            folder.display()
        )));
    }
    files.sort();
    Ok(files)
}

/// All images of all files, in order. A file whose header cannot be read counts as one image, so that its error shows
/// up where it is extracted.
pub fn frames_of(files: &[PathBuf], options: &ReadOptions) -> Vec<FrameOf> {
    let mut images = Vec::with_capacity(files.len());
    for path in files {
        let frames = match extension(path).as_str() {
            // One image each: no need to look.
            "jpg" | "jpeg" | "png" => 1,
            _ => ImageFile::probe_path(path, options).map_or(1, |info| info.frames),
        };
        images.extend((0..frames).map(|frame| FrameOf { path: path.clone(), frame, frames }));
    }
    images
}

/// Reads images one after the other; a file of several is opened once for those that follow each other.
#[derive(Debug, Default)]
pub struct Reader {
    open: Option<(PathBuf, ImageFile)>,
}

impl Reader {
    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Image`] or [`Error::File`] if it cannot be read, or if `place` names a file of several.
    pub fn read(&mut self, place: &impl ImagePlace, options: &ReadOptions) -> Result<Raster> {
        let path = place.path();
        if self.open.as_ref().is_none_or(|(opened, _)| opened != path) {
            self.open = None;
            self.open = Some((path.to_owned(), ImageFile::open_path(path, options)?));
        }
        let Some((_, file)) = &self.open else { unreachable!("opened in the lines above") };
        let frames = file.frames();
        let frame = match place.frame() {
            Some(frame) => frame,
            None if frames == 1 => 0,
            None => {
                let source = moco_image::Error::Shape(format!(
                    "{frames} images in one file: take them one by one (frames_of, moco_image_open), or embed its folder"
                ));
                return Err(Error::File { path: path.to_owned(), source });
            }
        };
        let raster = file.read(frame).map_err(|source| Error::File { path: path.to_owned(), source });
        if frames == 1 {
            self.open = None;
        }
        raster
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

//! The image files of a folder: found at any depth, in a fixed order, told by their names.

mod kinds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

pub use kinds::{FileKind, ImagePlaces};

use crate::{Error, Result};

/// What lies in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FolderFiles {
    /// Image files, sorted by path.
    pub images: Vec<PathBuf>,
    /// Folders looked through, the root among them.
    pub folders: usize,
    /// Files that are no images by their name: how many of each extension, in lower case and without a dot.
    pub others: BTreeMap<String, usize>,
}

/// Names of image files, for messages.
pub const IMAGE_NAMES: &str = ".jpg, .png, .tif, .dcm, .nii, .nii.gz";

impl FolderFiles {
    /// Looks through `folder` at any depth. Hidden files and folders and `__MACOSX` are passed over, links are
    /// followed, loops and dangling links are not.
    ///
    /// # Errors
    /// [`Error::Io`] naming what cannot be listed.
    pub fn find(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        found.add(folder)?;
        Ok(found)
    }

    /// Adds what lies in another folder; its images come after those already there.
    ///
    /// # Errors
    /// As [`FolderFiles::find`].
    pub fn add(&mut self, folder: &Path) -> Result<()> {
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".") || name == "__MACOSX";
        let entries = WalkDir::new(folder)
            .follow_links(true)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        let start = self.images.len();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                // A link back to a folder that is being walked: its images are found anyway.
                Err(error) if error.loop_ancestor().is_some() => continue,
                // A dangling link.
                Err(error) if error.path().is_some_and(|p| p.is_symlink() && !p.exists()) => continue,
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    return Err(Error::Io { path, source: error.into() });
                }
            };
            if entry.file_type().is_dir() {
                self.folders += 1;
            } else if is_image_file(entry.path()) {
                self.images.push(entry.into_path());
            } else {
                let extension = entry.path().extension().unwrap_or_default().to_string_lossy().to_lowercase();
                *self.others.entry(extension).or_default() += 1;
            }
        }
        self.images[start..].sort();
        Ok(())
    }

    /// What lies there instead of images, in words: `only files 3 with .txt`.
    pub fn others_in_words(&self) -> String {
        let mut seen: Vec<_> = self.others.iter().collect();
        seen.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let name = |ext: &str| if ext.is_empty() { "no extension".to_owned() } else { format!(".{ext}") };
        let seen: Vec<String> = seen.iter().take(4).map(|(ext, n)| format!("{n} with {}", name(ext))).collect();
        if seen.is_empty() { "no files at all".into() } else { format!("only files {}", seen.join(", ")) }
    }
}

/// Whether a file is an image by its name ([`IMAGE_NAMES`] and their variants, any case); one without an extension by
/// DICOM's mark, as scanners write them.
pub fn is_image_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    match Path::new(&name).extension().map(|e| e.to_string_lossy()).as_deref() {
        Some("jpg" | "jpeg" | "jpe" | "jfif" | "png" | "tif" | "tiff" | "dcm" | "dicom" | "nii") => true,
        Some("gz") => name.ends_with(".nii.gz"),
        None | Some("ima") => has_dicom_mark(path).unwrap_or(false) && name != "dicomdir",
        Some(_) => false,
    }
}

fn has_dicom_mark(path: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut start = [0; 132];
    std::fs::File::open(path)?.read_exact(&mut start)?;
    Ok(&start[128..] == b"DICM")
}

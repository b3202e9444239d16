//! The image files of a folder.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::{Error, Result};

/// Files that end in `.jpg`, `.jpeg` or `.png` (any case) below `folder`, at any depth, sorted by path. Symbolic links
/// are followed, cycles are an error.
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
        let extension = entry.path().extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        if entry.file_type().is_file() && ["jpg", "jpeg", "png"].contains(&extension.as_str()) {
            files.push(entry.into_path());
        }
    }
    if files.is_empty() {
        return Err(Error::Input(format!("{}: holds no .jpg, .jpeg or .png file", folder.display())));
    }
    files.sort();
    Ok(files)
}

//! What image files hold, from their headers: how many images, of which depth, channels and kind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Format, ImageFile, ImageInfo, ReadOptions};

/// Files of one kind in a data set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKind {
    /// Format, e.g. `DICOM`, with the modality if the file names one.
    pub format: String,
    /// Bits a value; 32 for floats.
    pub bit_depth: u8,
    /// Channels.
    pub channels: usize,
}

impl FileKind {
    /// Its depth in words.
    pub fn depth(&self) -> String {
        if self.bit_depth == 32 { "floats".into() } else { format!("{} bits", self.bit_depth) }
    }
}

/// The images of a data set's files, from headers: all headers of files that can hold several images, and a look at 64
/// others.
#[derive(Debug, Clone, Default)]
pub struct ImagePlaces {
    /// File and number in it of each image.
    pub images: Vec<(u32, u32)>,
    /// How many of the headers read are of each kind.
    pub kinds: BTreeMap<FileKind, usize>,
}

/// Looks into at most so many files of one image each.
const LOOKS: usize = 64;

impl ImagePlaces {
    /// Looks at the files. One whose header cannot be read counts as one image: what is wrong with it is found out
    /// when it is loaded.
    pub fn look(paths: &[PathBuf], options: &ReadOptions) -> Self {
        let mut found = Self::default();
        let pictures = paths.iter().filter(|path| is_picture(path)).count();
        let looks = pictures.min(LOOKS);
        let (mut picture, mut looked) = (0, 0);
        for (file, path) in paths.iter().enumerate() {
            let mut frames = 1;
            // Pictures are looked at evenly spread; everything else may hold several images.
            let due = is_picture(path) && looked < looks && picture == looked * pictures / looks;
            if due || !is_picture(path) {
                looked += usize::from(due);
                if let Ok(info) = ImageFile::probe_path(path, options) {
                    frames = info.frames;
                    *found.kinds.entry(kind(&info)).or_default() += frames;
                }
            }
            picture += usize::from(is_picture(path));
            found.images.extend((0..frames as u32).map(|frame| (file as u32, frame)));
        }
        found
    }

    /// The depth of the deepest image seen, at least 8; 32 for floats.
    pub fn bit_depth(&self) -> u8 {
        self.kinds.keys().map(|kind| kind.bit_depth).max().unwrap_or(8)
    }

    /// Channels of the set: 1 if only grey images were seen, else 3.
    pub fn channels(&self) -> usize {
        if !self.kinds.is_empty() && self.kinds.keys().all(|kind| kind.channels == 1) { 1 } else { 3 }
    }
}

fn kind(info: &ImageInfo) -> FileKind {
    let format = match info.format {
        Format::Jpeg => "JPEG",
        Format::Png => "PNG",
        Format::Tiff => "TIFF",
        Format::Dicom => "DICOM",
        Format::Nifti => "NIfTI",
    };
    let modality = info.modality.as_deref().map_or(String::new(), |m| format!(" {m}"));
    FileKind { format: format!("{format}{modality}"), bit_depth: info.bit_depth, channels: info.channels }
}

/// JPEG and PNG by name: one image each.
fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(extension.as_str(), "jpg" | "jpeg" | "jpe" | "jfif" | "png")
}

#[cfg(all(test, feature = "nifti", feature = "dicom"))]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_promises_more_images_than_its_file_holds_counts_as_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus/robustness/generated");
        for name in ["nifti_overflow.nii", "nifti_negative_dim.nii", "nifti_short.nii", "dicom_huge_dims.dcm"] {
            let path = folder.join(name);
            let places = ImagePlaces::look(std::slice::from_ref(&path), &ReadOptions::default());
            assert!(path.is_file() && places.images.len() <= 200, "{name}: {}", places.images.len());
        }
        let overflow = folder.join("nifti_overflow.nii");
        assert_eq!(ImagePlaces::look(&[overflow], &ReadOptions::default()).images, [(0, 0)]);
    }
}

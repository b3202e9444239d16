//! Any file of weights, opened as a backbone.

use std::path::{Path, PathBuf};

use moco_image::{PreprocessRule, ResizeRule};

use super::source::Source;
use super::{ImportOptions, import};
use crate::weights::{BackboneFile, choose_weights};
use crate::{Error, Result};

/// A backbone that was opened, whatever the file was.
#[derive(Debug)]
pub struct Opened {
    /// The backbone.
    pub file: BackboneFile,
    /// For weights of others: what was found and assumed, the assumption on preprocessing first. Empty for a backbone
    /// file of ours, whose card says it all.
    pub warnings: Vec<String>,
}

/// Opens a backbone file of ours as it lies, and converts any other file that [`import`] reads in memory. For a folder,
/// the file is the one that [`choose_weights`] chooses. With `channels`, the backbone is made to read images of that many
/// channels, as [`ImportOptions::channels`] does.
///
/// # Errors
/// As [`BackboneFile::open`] and [`import`]; where `moco-train import` has an option that helps, the error says so.
pub fn open(path: &Path, channels: Option<usize>) -> Result<Opened> {
    let path = file_of(path)?;
    let card = Source::open(&path, None)?.card();
    if let Some(card) = &card
        && channels.is_none_or(|channels| channels == card.arch.in_channels)
    {
        return Ok(Opened { file: BackboneFile::open(&path)?, warnings: Vec::new() });
    }
    let imported = import(&path, &ImportOptions { channels, ..ImportOptions::default() })?;
    let file = BackboneFile::converted(&path, &imported.graph, &imported.weights, &imported.card, channels)?;
    if card.is_some() {
        // Its card says the rest; the last note says what became of the first convolution.
        return Ok(Opened { file, warnings: imported.notes.into_iter().next_back().into_iter().collect() });
    }
    let mut warnings = vec![format!(
        "{} has no card, so images are prepared as is usual for its network ({}); if that is wrong, make a backbone file \
         of it with `moco-train import` and say how",
        path.display(),
        summary(&imported.card.preprocess)
    )];
    warnings.extend(imported.notes);
    Ok(Opened { file, warnings })
}

/// A rule in a few words.
fn summary(rule: &PreprocessRule) -> String {
    let resize = match rule.resize {
        ResizeRule::None => "no resize".to_owned(),
        ResizeRule::ShorterSide(side) => format!("shorter side {side}"),
        ResizeRule::Exact { height, width } => format!("{height}×{width}"),
    };
    let crop = rule.crop.map_or_else(String::new, |[height, width]| format!(", centre {height}×{width}"));
    format!("{} channels, {resize}{crop}, mean {:?}, standard deviation {:?}", rule.channels, rule.mean, rule.std)
}

fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let io = |cause| Error::Io { path: path.to_owned(), cause };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let chosen = choose_weights(&names).map_err(|reason| Error::Format { path: path.to_owned(), reason })?;
    Ok(path.join(chosen))
}

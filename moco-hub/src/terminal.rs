//! For programs: a progress bar where there is a terminal, and warnings.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use moco_models::weights::BackboneFile;

use crate::{Progress, Result, open_backbone};

/// As [`open_backbone`], with a progress bar while it is fetched; warnings go to the standard error.
///
/// # Errors
/// As [`open_backbone`].
pub fn open_on_terminal(place: &Path, channels: Option<usize>) -> Result<BackboneFile> {
    let mut bar = Bar::default();
    let opened = open_backbone(place, channels, &mut |progress| bar.show(progress))?;
    opened.warnings.iter().for_each(|warning| eprintln!("note: {warning}"));
    Ok(opened.file)
}

/// Draws transfers: one bar a file, which goes away when the file is there.
#[derive(Debug, Default)]
pub struct Bar {
    file: String,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Shows how far a transfer is.
    pub fn show(&mut self, progress: Progress<'_>) {
        if self.file != progress.file {
            progress.file.clone_into(&mut self.file);
            let style = "{msg}  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.total).with_style(style).with_message(self.file.clone());
            if let Some(old) = self.bar.replace(bar) {
                old.finish_and_clear();
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done);
            if progress.done >= progress.total {
                bar.finish_and_clear();
            }
        }
    }
}

//! `moco-infer embed`: a folder of images to a file of features.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use moco_infer::image_files;
use moco_models::write_atomically;

use super::spool::{Spool, write_npy, write_safetensors};
use super::{Extraction, PrecisionName, Running};

/// Writes the features of all images below DIR, and beside them the list of their files.
///
/// Row i of the features belongs to line i of `<out>.files.txt` (paths relative to DIR). Images that cannot be read
/// are named with the reason in `<out>.skipped.txt` and have no row.
///
/// Example: moco-infer embed photos --backbone run/backbone.safetensors --out feats.npy
///
/// Three times faster: add --precision int8 --calibration int8.json, after `moco-infer calibrate`.
#[derive(Args)]
pub struct Embed {
    /// Folder of image files (JPEG, PNG, TIFF, DICOM, NIfTI), at any depth. Each frame, page or slice has a row of its
    /// own, named `file#number`.
    dir: PathBuf,
    #[command(flatten)]
    extraction: Extraction,
    #[command(flatten)]
    running: Running,
    /// feats.npy (one tap, f32) or feats.safetensors (any number of taps, all held in memory).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Give up after this many images that cannot be read.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_skipped: usize,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
}

impl Embed {
    pub fn run(&self) -> Result<()> {
        let npy = self.is_npy()?;
        let (files_txt, skipped_txt) = (beside(&self.out, "files.txt"), beside(&self.out, "skipped.txt"));
        for file in [&self.out, &files_txt, &skipped_txt] {
            if file.exists() && !self.force {
                bail!("{} exists; give another --out, or --force to overwrite", file.display());
            }
        }
        let files = image_files(&self.dir)?;
        let extractor = self.extraction.extractor(&self.running, &files)?;
        let files = self.extraction.frames(&files);
        let mut spools: Vec<Spool> =
            extractor.taps().iter().map(|tap| Spool::new(tap, &self.out)).collect::<Result<_>>()?;

        let progress = ProgressBar::new(files.len() as u64);
        let style = "{bar:40} {pos}/{len} images  {per_sec}  {eta} left {msg}";
        progress.set_style(ProgressStyle::with_template(style).context("the progress bar")?);
        let (mut kept, mut skipped) = (String::new(), String::new());
        let mut n_skipped = 0;
        let mut problem = None;
        let started = std::time::Instant::now();
        extractor.stream_files(&files, &mut |row| {
            let result = match row.features {
                Ok(taps) => {
                    let _ = writeln!(kept, "{}", files[row.index].name(&self.dir));
                    spools.iter_mut().zip(taps).try_for_each(|(spool, (shape, values))| spool.push(&shape, &values))
                }
                Err(reason) => {
                    n_skipped += 1;
                    let _ = writeln!(skipped, "{}\t{reason}", files[row.index].name(&self.dir));
                    progress.set_message(format!("({n_skipped} skipped)"));
                    match n_skipped > self.max_skipped {
                        true => Err(anyhow::anyhow!(
                            "more than {} images cannot be read (--max-skipped); the last: {reason}",
                            self.max_skipped
                        )),
                        false => Ok(()),
                    }
                }
            };
            progress.inc(1);
            match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    problem = Some(error.context(files[row.index].name(Path::new(""))));
                    ControlFlow::Break(())
                }
            }
        })?;
        progress.finish_and_clear();
        if let Some(problem) = problem {
            return Err(problem);
        }
        let rows = files.len() - n_skipped;
        if rows == 0 {
            bail!(
                "none of the {} images can be read; the first: {}",
                files.len(),
                skipped.lines().next().unwrap_or("")
            );
        }

        write_atomically(&files_txt, |out| out.write_all(kept.as_bytes()))?;
        if n_skipped > 0 {
            write_atomically(&skipped_txt, |out| out.write_all(skipped.as_bytes()))?;
        } else if skipped_txt.exists() {
            std::fs::remove_file(&skipped_txt).with_context(|| skipped_txt.display().to_string())?;
        }
        match (npy, spools.pop()) {
            (true, Some(spool)) => write_npy(spool, &self.out)?,
            (_, last) => {
                let hash = extractor.backbone().file().sha256();
                let mut metadata = BTreeMap::from([("backbone_sha256".to_owned(), hash)]);
                if self.running.precision == PrecisionName::Int8 {
                    metadata.insert("precision".to_owned(), "int8".to_owned());
                }
                spools.extend(last);
                write_safetensors(spools, &metadata, &self.out)?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{} images in {seconds:.1} s ({:.1} images/s), {n_skipped} skipped: {}",
            rows,
            rows as f64 / seconds,
            self.out.display()
        );
        if n_skipped > 0 {
            println!("skipped images and reasons: {}", skipped_txt.display());
        }
        Ok(())
    }

    fn is_npy(&self) -> Result<bool> {
        match self.out.extension().and_then(|e| e.to_str()) {
            Some("npy") if self.extraction.taps.len() > 1 => {
                bail!(
                    "a .npy file holds one array, {} taps are asked for; use .safetensors",
                    self.extraction.taps.len()
                )
            }
            Some("npy") => Ok(true),
            Some("safetensors") => Ok(false),
            _ => bail!("--out {}: must end in .npy or .safetensors", self.out.display()),
        }
    }
}

/// `feats.npy` → `feats.npy.files.txt`.
fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

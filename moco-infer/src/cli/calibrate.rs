//! `moco-infer calibrate`: what int8 needs to know of a backbone and a user's images, in a file.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use moco_infer::image_files;

use super::Extraction;

/// Observes a backbone on your images, so that it can run in int8, and says what that costs in accuracy.
///
/// Writes the ranges of the backbone's activations to a small JSON file, with which `embed` and `bench` run in int8
/// (--precision int8 --calibration FILE), C and C++ programs too (moco_backbone_options.calibration), and with which
/// `moco-train export --to onnx` writes an int8 model. The file belongs to this backbone file and no other. Take images
/// like those the backbone will see.
///
/// Then compares int8 features with f32 features on images that were not observed, prints the agreement and keeps it in
/// the file.
///
/// Example: moco-infer calibrate --backbone run/backbone.safetensors --data photos --output int8.json
#[derive(Args)]
pub struct Calibrate {
    #[command(flatten)]
    extraction: Extraction,
    /// Folder of image files, at any depth; those of several images (frames, slices) are left out. Images are taken evenly from all of it.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The file to write, e.g. int8.json.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Images to observe; at most two thirds of the folder.
    #[arg(long, value_name = "N", default_value_t = 128)]
    images: usize,
    /// Other images to compare int8 and f32 on; 0 = do not compare.
    #[arg(long, value_name = "N", default_value_t = 64)]
    held_out: usize,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

impl Calibrate {
    pub fn run(&self) -> Result<()> {
        if self.output.exists() && !self.force {
            bail!("{} exists; give another --output, or --force to overwrite", self.output.display());
        }
        let files = image_files(&self.data)?;
        let backbone = self.extraction.backbone()?;
        let calibrated = self.extraction.calibrate(&backbone, &files, self.images, self.held_out)?;
        calibrated.calibration.write(&self.output)?;
        println!("written: {}", self.output.display());
        Ok(())
    }
}

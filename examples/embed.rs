//! cargo run --release -p moco-infer --example embed -- backbone.safetensors PICTURE...
//!
//! Prints how similar the features of the first picture are to those of each other one.

use std::path::Path;

use anyhow::{Context, Result};
use moco_infer::{Backbone, Extractor, ExtractorOptions};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (backbone, pictures) = arguments.split_first().context("usage: embed backbone.safetensors PICTURE...")?;

    let backbone = Backbone::open(Path::new(backbone))?;
    let extractor = Extractor::new(&backbone, &ExtractorOptions::default())?;
    let images: Vec<_> = pictures
        .iter()
        .map(|path| moco_image::decode_file(Path::new(path), &moco_image::Limits::default()))
        .collect::<Result<_, _>>()?;

    // One tap was asked for, `pooled`: [images, channels].
    let features = extractor.extract(&images)?.remove(0);
    let rows: Vec<&[f32]> = features.data.chunks(features.shape[1]).collect();
    for (path, row) in pictures.iter().zip(&rows) {
        println!("{:.4}  {path}", cosine(rows[0], row));
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

//! `moco-infer bench`: images per second.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use moco_image::Image;
use moco_infer::{image_files, runtime_info};
use serde_json::json;

use super::{Extraction, PrecisionName, Running};

/// Measures images per second and prints one JSON line.
///
/// With --data the figure is the whole pipeline: reading, decoding, preprocessing and inference, after one pass that
/// warms caches up. Without, images are synthetic and already decoded. `time_share` says which part of the threads' time
/// went into reading and decoding, into resizing and normalising, and into the network.
#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    extraction: Extraction,
    #[command(flatten)]
    running: Running,
    /// Folder of images.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Synthetic images a pass.
    #[arg(long, value_name = "N", default_value_t = 32)]
    images: usize,
    /// Passes; the fastest counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    passes: usize,
}

impl Bench {
    pub fn run(&self) -> Result<()> {
        if self.passes == 0 || self.images == 0 {
            bail!("--passes and --images must be at least 1");
        }
        let files = self.data.as_deref().map(image_files).transpose()?;
        let extractor = self.extraction.extractor(&self.running, files.as_deref().unwrap_or_default())?;
        let clock = extractor.clone();
        let (images, pass): (usize, Box<dyn Fn() -> Result<()>>) = match files {
            Some(files) => {
                let files = self.extraction.frames(&files);
                let n = files.len();
                let pass = move || {
                    let mut unreadable = Vec::new();
                    extractor.stream_files(&files, &mut |row| {
                        unreadable.extend(row.features.err());
                        ControlFlow::Continue(())
                    })?;
                    match unreadable.first() {
                        Some(first) => bail!("{} of the images cannot be used, the first: {first}", unreadable.len()),
                        None => Ok(()),
                    }
                };
                (n, Box::new(pass))
            }
            None => {
                let [height, width] = extractor.backbone().fixed_input_size().unwrap_or([224, 224]);
                let channels = extractor.backbone().card().preprocess.channels;
                let value = |i: usize| ((i * 2_654_435_761) >> 13) as u8;
                let image = Image::new(width, height, channels, (0..height * width * channels).map(value).collect())?;
                let images = vec![image; self.images];
                (self.images, Box::new(move || extractor.extract(&images).map(drop).map_err(Into::into)))
            }
        };
        pass()?;
        let warm = clock.time_spent();
        let mut seconds = Vec::new();
        for _ in 0..self.passes {
            let start = Instant::now();
            pass()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let spent = clock.time_spent().since(warm);
        let total = (spent.decode + spent.preprocess + spent.inference).as_secs_f64();
        let share = |part: std::time::Duration| (1000.0 * part.as_secs_f64() / total).round() / 1000.0;
        let result = json!({
            "images": images, "seconds": best, "img_per_s": images as f64 / best, "all_seconds": seconds,
            "time_share": {
                "decode": share(spent.decode), "preprocess": share(spent.preprocess), "inference": share(spent.inference),
            },
            "precision": if self.running.precision == PrecisionName::Int8 { "int8" } else { "f32" },
            "pipeline": if self.data.is_some() { "files" } else { "pixels" }, "runtime": runtime_info(),
        });
        println!("{result}");
        Ok(())
    }
}

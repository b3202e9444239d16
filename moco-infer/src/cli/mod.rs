//! Commands of the binary, one file each.

mod bench;
mod embed;
mod info;
mod spool;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use moco_hub::open_on_terminal;
use moco_image::Limits;
use moco_infer::{Backbone, Extractor, ExtractorOptions};

/// Features of images from a MoCo backbone, through ONNX Runtime.
///
/// A backbone is a `backbone.safetensors` file written by `moco-train pretrain` or `moco-train import`. Its card says
/// how images are prepared; nothing about that is an option here, so that features are always the ones the backbone
/// was trained for. It may lie in a Hub (hf://owner/name[@revision][/file]; HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN
/// and HF_HUB_OFFLINE are read). Files of MoCo, torchvision, timm and Detectron2 are converted in memory, with a note on
/// what is assumed.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the features of a folder of images to a .npy or .safetensors file.
    Embed(embed::Embed),
    /// Says what a backbone file is: network, taps, preprocessing, training, hash.
    Info(info::Info),
    /// Measures images per second, with synthetic pixels or a folder of images.
    Bench(bench::Bench),
}

/// Options that every extracting command takes.
#[derive(Args)]
struct Extraction {
    /// The backbone: a file, a folder that holds one, or hf://owner/name[@revision][/file].
    #[arg(long, value_name = "PLACE")]
    backbone: PathBuf,
    /// Features to take: pooled, or a feature map c1 … c5 (see `moco-infer info`). May be given several times.
    #[arg(long = "tap", value_name = "NAME", default_value = "pooled")]
    taps: Vec<String>,
    /// Images a session takes at once [default: chosen; results do not depend on it].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    batch: usize,
    /// Images worked on at the same time [default: the number of cores].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// ONNX Runtime's library; otherwise MOCO_ORT_LIB, ORT_DYLIB_PATH, the folder of the program and the usual places.
    #[arg(long, value_name = "FILE")]
    ort: Option<PathBuf>,
    /// Refuse images of more pixels than this [default: moco-image's limit].
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
}

impl Extraction {
    fn extractor(&self) -> Result<Extractor> {
        let backbone = Backbone::from(open_on_terminal(&self.backbone)?);
        let mut limits = Limits::default();
        if let Some(pixels) = self.max_pixels {
            limits.max_pixels = pixels;
        }
        let options = ExtractorOptions {
            taps: self.taps.clone(),
            batch: self.batch,
            threads: self.threads,
            ort_library: self.ort.clone(),
            limits,
        };
        Ok(Extractor::new(&backbone, &options)?)
    }
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Embed(embed) => embed.run(),
        Command::Info(info) => info.run(),
        Command::Bench(bench) => bench.run(),
    }
}

//! `moco-train export`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use moco_hub::open_on_terminal;
use moco_models::export::{detectron2, torchvision};
use moco_models::onnx::{self, ExportOptions, InputSize};

use super::overrides::parse_size;

/// Writes a backbone in the format of another program
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  moco-train export backbone.safetensors --to onnx --out backbone.onnx --tap c5 --tap pooled\n  \
    moco-train export backbone.safetensors --to detectron2 --out backbone.pkl\n  \
    moco-train export backbone.safetensors --to torchvision --out backbone.pth"
)]
pub struct Args {
    /// The backbone: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(value_name = "PLACE")]
    file: PathBuf,

    /// The format
    #[arg(long, value_enum)]
    to: Format,

    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// onnx: a feature to give out (c1 … c5, pooled); may be repeated; default all
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,

    /// onnx: size of the images, 224 or 128x96; default the size of the card's preprocessing
    #[arg(long, conflicts_with = "dynamic_size")]
    size: Option<String>,

    /// onnx: height and width are decided by each call
    #[arg(long)]
    dynamic_size: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A self-contained model with the taps as outputs and a free batch size
    Onnx,
    /// A pickle with MoCo's key map, for detection
    Detectron2,
    /// A state dict with torchvision's names: .pth or .safetensors
    Torchvision,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.to != Format::Onnx && (!args.tap.is_empty() || args.size.is_some() || args.dynamic_size) {
        bail!("--tap, --size and --dynamic-size belong to --to onnx; this format has no use for them");
    }
    if args.out.exists() {
        bail!("{} exists already and is not overwritten: give another --out", args.out.display());
    }
    let file = open_on_terminal(&args.file)?;
    let (graph, weights) = (file.graph(), file.weights()?);
    match args.to {
        Format::Onnx => {
            let image = match &args.size {
                Some(size) => Some(parse_size(size)?.map(|side| side as usize)),
                None if args.dynamic_size => None,
                None => file.card().preprocess.crop,
            };
            let size = InputSize { batch: None, image };
            let options = ExportOptions { taps: args.tap.clone(), size, card: Some(file.card().clone()) };
            onnx::export(&args.out, graph, &weights, &options)?;
        }
        Format::Detectron2 => detectron2(&args.out, graph, &weights)?,
        Format::Torchvision => torchvision(&args.out, graph, &weights, Some(file.card()))?,
    }
    println!("written: {}", args.out.display());
    Ok(())
}

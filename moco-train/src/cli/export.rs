//! `moco-train export`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use moco_hub::{Bar, locate, open_on_terminal};
use moco_models::calibration::Calibration;
use moco_models::export::{detectron2, torchvision};
use moco_models::onnx::{self, ExportOptions, InputSize, Int8, ModelExport, Suppress, WeightBits};
use moco_models::weights::{BACKBONE_FILE, ModelFile, is_model};

use super::overrides::parse_size;

/// Writes a backbone or a fine-tuned model in the format of another program
///
/// A fine-tuned model becomes one ONNX file with its head, from the image to probabilities, a mask or boxes; with --tap,
/// --calibration or another format it is its backbone that is written.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  moco-train export backbone.safetensors --to onnx --out backbone.onnx --tap c5 --tap pooled\n  \
    moco-train export model.safetensors --to onnx --out detector.onnx --nms\n  \
    moco-train export backbone.safetensors --to onnx --out int8.onnx --calibration int8.json\n  \
    moco-train export backbone.safetensors --to detectron2 --out backbone.pkl\n  \
    moco-train export backbone.safetensors --to torchvision --out backbone.pth"
)]
pub struct Args {
    /// The backbone or model: a file, a run folder, or hf://owner/name[@revision][/file]
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

    /// onnx: size of the images, 224 or 128x96; default the size of the card's preprocessing, any size for a model
    #[arg(long, conflicts_with = "dynamic_size")]
    size: Option<String>,

    /// onnx: height and width are decided by each call
    #[arg(long)]
    dynamic_size: bool,

    /// onnx: write the network in int8 (QDQ), over the file that `moco-infer calibrate` wrote for this backbone
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// onnx in int8: bits of the weights; 7 for x86 processors without VNNI, whose 16-bit sums overflow with 8
    #[arg(long, value_name = "BITS", requires = "calibration", default_value_t = 8, value_parser = clap::value_parser!(u8).range(7..=8))]
    weight_bits: u8,

    /// onnx of a model: the scores before softmax or sigmoid as one more output
    #[arg(long)]
    logits: bool,

    /// onnx of a detector: thin out its boxes in the model (non-maximum suppression), which then gives `boxes`, `scores`, `labels` and
    /// `image_index` of those that are left
    #[arg(long)]
    nms: bool,

    /// with --nms: drop boxes that overlap a better one of their class by more, intersection over union
    #[arg(long, value_name = "IOU", requires = "nms", default_value_t = Suppress::default().iou)]
    iou: f32,

    /// with --nms: drop boxes of this score or less
    #[arg(long, value_name = "S", requires = "nms", default_value_t = Suppress::default().score)]
    score: f32,
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
    let for_onnx = !args.tap.is_empty() || args.size.is_some() || args.dynamic_size || args.calibration.is_some();
    if args.to != Format::Onnx && for_onnx {
        bail!("--tap, --size, --dynamic-size and --calibration belong to --to onnx; this format has no use for them");
    }
    if args.out.exists() {
        bail!("{} exists already and is not overwritten: give another --out", args.out.display());
    }
    let mut bar = Bar::default();
    let place = locate(&args.file, &mut |p| bar.show(p))?;
    // A folder with both is that of a backbone, as everywhere.
    let is_model = is_model(&place)? && !place.join(BACKBONE_FILE).is_file();
    if is_model && args.to == Format::Onnx && args.tap.is_empty() && args.calibration.is_none() {
        let image = args.size.as_ref().map(|size| parse_size("--size", size)).transpose()?;
        let size = InputSize { batch: None, image: image.map(|sides| sides.map(|side| side as usize)) };
        let suppress = Suppress { iou: args.iou, score: args.score, ..Suppress::default() };
        let options = ModelExport { size, logits: args.logits, suppress: args.nms.then_some(suppress) };
        onnx::export_model(&args.out, &ModelFile::open(&place)?, &options)?;
        println!("written: {}", args.out.display());
        return Ok(());
    }
    if args.logits || args.nms {
        bail!("--logits and --nms are for a fine-tuned model with --to onnx, without --tap and --calibration");
    }
    if is_model {
        eprintln!("note: {} is a fine-tuned model; its backbone alone is written", place.display());
    }
    let file = open_on_terminal(&place, None)?;
    let (graph, weights) = (file.graph(), file.weights()?);
    match args.to {
        Format::Onnx => {
            let image = match &args.size {
                Some(size) => Some(parse_size("--size", size)?.map(|side| side as usize)),
                None if args.dynamic_size => None,
                None => file.card().preprocess.crop,
            };
            let size = InputSize { batch: None, image };
            if let Some(path) = &args.calibration {
                let taps: Vec<&str> = args.tap.iter().map(String::as_str).collect();
                let weight_bits = if args.weight_bits == 7 { WeightBits::Seven } else { WeightBits::Eight };
                let int8 = Int8 { calibration: &Calibration::read(path)?, weight_bits };
                onnx::export_int8(&args.out, &file, &taps, size, &int8)?;
                println!("written: {}", args.out.display());
                return Ok(());
            }
            let options = ExportOptions { taps: args.tap.clone(), size, card: Some(file.card().clone()) };
            onnx::export(&args.out, graph, &weights, &options)?;
        }
        Format::Detectron2 => detectron2(&args.out, graph, &weights)?,
        Format::Torchvision => torchvision(&args.out, graph, &weights, Some(file.card()))?,
    }
    println!("written: {}", args.out.display());
    Ok(())
}

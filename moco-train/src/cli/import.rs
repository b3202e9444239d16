//! `moco-train import`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use moco_hub::{Bar, locate};
use moco_image::{Filter, ResizeRule};
use moco_models::import::{EncoderChoice, FirstConvolution, ImportOptions, PreprocessChange, import};

use super::overrides::parse_size;

/// Turns weights of others into a backbone file
///
/// Reads MoCo v1, v2 and v3 checkpoints (.pth.tar, legacy and zip), torchvision and timm files, Detectron2's .pkl, and
/// safetensors, from a file or a Hub; which it is, is told by its content. Nothing in the file is ever executed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  moco-train import moco_v2_800ep_pretrain.pth.tar --out moco_v2.safetensors\n  \
    moco-train import moco_v2_800ep_pretrain.pth.tar --explain\n  \
    moco-train import hf://timm/resnet50.a1_in1k --resize 236 --filter bicubic --out supervised.safetensors\n  \
    moco-train import r-50-1000ep.pth.tar --channels 1 --out grey.safetensors\n  \
    moco-train import teacher.pth --prefix teacher.backbone. --out teacher.safetensors")]
pub struct Args {
    /// The file of weights, or hf://owner/name[@revision][/file]
    #[arg(value_name = "PLACE")]
    file: PathBuf,

    /// The backbone file to write
    #[arg(long, value_name = "FILE", required_unless_present = "explain")]
    out: Option<PathBuf>,

    /// Prints what becomes of every tensor of the file; without --out nothing is written
    #[arg(long)]
    explain: bool,

    /// Encoder of a MoCo checkpoint: query (the published one) or key
    #[arg(long, default_value = "query")]
    encoder: String,

    /// Prefix of the backbone's tensors, where the file holds several networks
    #[arg(long)]
    prefix: Option<String>,

    /// Entry of the checkpoint that holds the tensors, if it is not one of the usual
    #[arg(long, value_name = "KEY")]
    state_dict_key: Option<String>,

    /// Keeps the projector of MoCo v1 or v2
    #[arg(long)]
    keep_projector: bool,

    /// Takes the backbone of a file that looks like a linear evaluation
    #[arg(long)]
    force: bool,

    /// Makes the backbone read images of this many channels: 1 for grey, 3 for RGB, or any number
    #[arg(long, value_name = "N")]
    channels: Option<usize>,

    /// What becomes of the first convolution with --channels [default: sum to 1 channel, else replicate]
    #[arg(long, value_enum, requires = "channels")]
    first_conv: Option<FirstConv>,

    #[command(flatten)]
    preprocessing: Preprocessing,

    /// Licence of the weights, written into the card (an SPDX identifier)
    #[arg(long)]
    licence: Option<String>,

    /// What the weights were trained on, written into the card
    #[arg(long)]
    trained_on: Option<String>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "How images are prepared, written into the card")]
struct Preprocessing {
    /// Length of the shorter side before the crop, such as 256; or height and width such as 128x96; or none
    #[arg(long, value_name = "SIZE")]
    resize: Option<String>,

    /// Centre crop, such as 224 or 128x96; or none
    #[arg(long, value_name = "SIZE")]
    crop: Option<String>,

    /// Interpolation of the resize
    #[arg(long, value_enum)]
    filter: Option<FilterName>,

    /// Mean of each channel in [0, 1], such as 0.485,0.456,0.406; one number is that of all
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    mean: Option<Vec<f32>>,

    /// Standard deviation of each channel in [0, 1]; one number is that of all
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    std: Option<Vec<f32>>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FirstConv {
    /// The sum over channels: a grey image is answered as the old network answers it in every channel
    Sum,
    /// The mean over channels
    Mean,
    /// The old channels in turn, each shared out among the new ones that repeat it
    Replicate,
}

#[derive(Clone, Copy, ValueEnum)]
enum FilterName {
    Bilinear,
    Bicubic,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let encoder = match args.encoder.as_str() {
        "query" => EncoderChoice::Query,
        "key" => EncoderChoice::Key,
        other => bail!("--encoder {other}: expected query or key"),
    };
    if let Some(out) = args.out.as_ref().filter(|out| out.exists()) {
        bail!("{} exists already and is not overwritten: give another --out", out.display());
    }
    let options = ImportOptions {
        encoder,
        prefix: args.prefix.clone(),
        state_dict_key: args.state_dict_key.clone(),
        keep_projector: args.keep_projector,
        allow_linear_evaluation: args.force,
        preprocess: args.preprocessing.change()?,
        channels: args.channels,
        first_convolution: args.first_conv.map(|how| match how {
            FirstConv::Sum => FirstConvolution::Sum,
            FirstConv::Mean => FirstConvolution::Mean,
            FirstConv::Replicate => FirstConvolution::Replicate,
        }),
        licence: args.licence.clone(),
        data: args.trained_on.clone(),
        ..ImportOptions::default()
    };
    let mut bar = Bar::default();
    let file = locate(&args.file, &mut |progress| bar.show(progress))?;
    let imported = import(&file, &options)?;
    if args.explain {
        imported.map.iter().for_each(|mapping| println!("{mapping}"));
        println!();
    }
    imported.notes.iter().for_each(|note| println!("{note}"));
    if let Some(out) = &args.out {
        imported.save(out)?;
        println!("written: {}", out.display());
    }
    Ok(())
}

impl Preprocessing {
    fn change(&self) -> Result<PreprocessChange> {
        let pixels = |flag, text: &str| -> Result<[usize; 2]> { Ok(parse_size(flag, text)?.map(|side| side as usize)) };
        let resize = match self.resize.as_deref() {
            None => None,
            Some("none") => Some(ResizeRule::None),
            Some(text) => Some(match text.parse() {
                Ok(side) => ResizeRule::ShorterSide(side),
                Err(_) => {
                    let [height, width] = pixels("--resize", text)?;
                    ResizeRule::Exact { height, width }
                }
            }),
        };
        let crop = match self.crop.as_deref() {
            None => None,
            Some("none") => Some(None),
            Some(text) => Some(Some(pixels("--crop", text)?)),
        };
        let filter = self.filter.map(|filter| match filter {
            FilterName::Bilinear => Filter::Bilinear,
            FilterName::Bicubic => Filter::Bicubic,
        });
        Ok(PreprocessChange { resize, crop, filter, mean: self.mean.clone(), std: self.std.clone() })
    }
}

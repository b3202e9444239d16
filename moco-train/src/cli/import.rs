//! `moco-train import`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use moco_models::import::{EncoderChoice, ImportOptions, import};

/// Turns weights of others into a backbone file
///
/// Reads MoCo v1 and v2 checkpoints (.pth.tar, legacy and zip), torchvision and timm files, and safetensors; which it
/// is, is told by its content. Nothing in the file is ever executed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  moco-train import moco_v2_800ep_pretrain.pth.tar --out moco_v2.safetensors\n  \
    moco-train import teacher.pth --prefix teacher.backbone. --out teacher.safetensors")]
pub struct Args {
    /// The file of weights
    file: PathBuf,

    /// The backbone file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

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

    /// Licence of the weights, written into the card (an SPDX identifier)
    #[arg(long)]
    licence: Option<String>,

    /// What the weights were trained on, written into the card
    #[arg(long)]
    trained_on: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let encoder = match args.encoder.as_str() {
        "query" => EncoderChoice::Query,
        "key" => EncoderChoice::Key,
        other => bail!("--encoder {other}: expected query or key"),
    };
    if args.out.exists() {
        bail!("{} exists already and is not overwritten: give another --out", args.out.display());
    }
    let options = ImportOptions {
        encoder,
        prefix: args.prefix.clone(),
        state_dict_key: args.state_dict_key.clone(),
        keep_projector: args.keep_projector,
        allow_linear_evaluation: args.force,
        licence: args.licence.clone(),
        data: args.trained_on.clone(),
        ..ImportOptions::default()
    };
    let imported = import(&args.file, &options)?;
    imported.save(&args.out)?;
    imported.notes.iter().for_each(|note| println!("{note}"));
    println!("written: {}", args.out.display());
    Ok(())
}

//! `moco-train push`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use moco_hub::{Bar, Hub, PushOptions, Reference, Settings, Upload, open_on_terminal};
use moco_models::onnx::{self, ExportOptions, InputSize};
use moco_models::weights::BACKBONE_FILE;

/// Writes a backbone, its card and an ONNX file to a Hub repository
///
/// In one commit: backbone.safetensors, README.md (the card, with the Hub's header) and backbone.onnx. Others open it as
/// hf://owner/name. The token that may write is HF_TOKEN, or the one in HF_HOME.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train push runs/first hf://somebody/moco-cells --create --private")]
pub struct Args {
    /// The backbone: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(value_name = "PLACE")]
    backbone: PathBuf,

    /// The repository: hf://owner/name, with @branch if it is not main
    #[arg(value_name = "hf://OWNER/NAME")]
    target: String,

    /// Makes the repository if it is not there
    #[arg(long)]
    create: bool,

    /// Makes it private
    #[arg(long, requires = "create")]
    private: bool,

    /// Without backbone.onnx
    #[arg(long)]
    no_onnx: bool,

    /// First line of the commit's message
    #[arg(long, default_value = "Upload a MoCo backbone")]
    message: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let target: Reference = args.target.parse()?;
    if args.message.trim().is_empty() {
        bail!("--message is empty; a commit needs a first line");
    }
    let file = open_on_terminal(&args.backbone, None)?;
    let card = file.card();
    if card.licence.is_none() {
        eprintln!("note: the card names no licence, so nobody knows what they may do with the weights");
    }
    let readme = card.to_readme();
    let model = if args.no_onnx { Vec::new() } else { onnx_bytes(&file)? };
    let mut files = vec![
        Upload { name: BACKBONE_FILE, bytes: file.bytes() },
        Upload { name: "README.md", bytes: readme.as_bytes() },
    ];
    if !args.no_onnx {
        files.push(Upload { name: "backbone.onnx", bytes: &model });
    }
    let options = PushOptions { create: args.create.then_some(args.private), message: args.message.clone() };
    let mut bar = Bar::default();
    let pushed =
        Hub::new(Settings::from_env()?).push(&target, &files, &options, &mut |p| bar.show(p)).with_context(|| {
            if args.create { "nothing was pushed" } else { "nothing was pushed (--create makes a repository)" }
        })?;
    println!("pushed: {target}\ncommit: {}", pushed.url);
    Ok(())
}

/// All taps, at the size of the card's preprocessing.
fn onnx_bytes(file: &moco_models::weights::BackboneFile) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("backbone.onnx");
    let size = InputSize { batch: None, image: file.card().preprocess.crop };
    let options = ExportOptions { taps: Vec::new(), size, card: Some(file.card().clone()) };
    onnx::export(&path, file.graph(), &file.weights()?, &options)?;
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

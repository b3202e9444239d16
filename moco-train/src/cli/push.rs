//! `moco-train push`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use moco_hub::{Bar, Hub, PushOptions, Reference, Settings, Upload, locate, open_on_terminal};
use moco_models::heads::Task;
use moco_models::onnx::{self, ExportOptions, InputSize, ModelExport, Suppress};
use moco_models::weights::{BACKBONE_FILE, MODEL_FILE, ModelFile, is_model};

/// Writes a backbone or a fine-tuned model, its card and an ONNX file to a Hub repository
///
/// In one commit: backbone.safetensors, README.md (the card, with the Hub's header) and backbone.onnx; of a fine-tuned model,
/// model.safetensors, README.md and model.onnx. Others open it as hf://owner/name. The token that may write is HF_TOKEN, or the one in HF_HOME.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train push runs/first hf://somebody/moco-cells --create --private")]
pub struct Args {
    /// The backbone or model: a file, a run folder, or hf://owner/name[@revision][/file]
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

    /// Without the ONNX file
    #[arg(long)]
    no_onnx: bool,

    /// First line of the commit's message [default: what is uploaded]
    #[arg(long)]
    message: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let target: Reference = args.target.parse()?;
    if args.message.as_ref().is_some_and(|message| message.trim().is_empty()) {
        bail!("--message is empty; a commit needs a first line");
    }
    let mut bar = Bar::default();
    let place = locate(&args.backbone, &mut |p| bar.show(p))?;
    // A folder with both is that of a backbone, as everywhere.
    if is_model(&place)? && !place.join(BACKBONE_FILE).is_file() {
        let file = ModelFile::open(&place)?;
        warn_without_licence(file.head().licence.is_none());
        let (readme, onnx) = (file.readme(), model_onnx(args, &file)?);
        return args
            .push(&target, [(MODEL_FILE, file.bytes()), ("README.md", readme.as_bytes()), ("model.onnx", &onnx)]);
    }
    let file = open_on_terminal(&args.backbone, None)?;
    warn_without_licence(file.card().licence.is_none());
    let readme = file.card().to_readme();
    let onnx = if args.no_onnx { Vec::new() } else { onnx_bytes(&file)? };
    args.push(&target, [(BACKBONE_FILE, file.bytes()), ("README.md", readme.as_bytes()), ("backbone.onnx", &onnx)])
}

impl Args {
    /// Pushes the files, the last, ONNX, unless it is not wanted.
    fn push(&self, target: &Reference, files: [(&str, &[u8]); 3]) -> Result<()> {
        let count = if self.no_onnx { 2 } else { 3 };
        let files: Vec<Upload> = files[..count].iter().map(|&(name, bytes)| Upload { name, bytes }).collect();
        let what = if files[0].name == MODEL_FILE { "Upload a fine-tuned model" } else { "Upload a MoCo backbone" };
        let message = self.message.clone().unwrap_or_else(|| what.to_owned());
        let options = PushOptions { create: self.create.then_some(self.private), message };
        let mut bar = Bar::default();
        let hub = Hub::new(Settings::from_env()?);
        let pushed = hub.push(target, &files, &options, &mut |p| bar.show(p)).with_context(|| match self.create {
            true => "nothing was pushed",
            false => "nothing was pushed (--create makes a repository)",
        })?;
        println!("pushed: {target}\ncommit: {}", pushed.url);
        Ok(())
    }
}

fn warn_without_licence(lacks: bool) {
    if lacks {
        eprintln!("note: the card names no licence, so nobody knows what they may do with the weights");
    }
}

/// What answers for images of any size; a detector's with its suppression.
fn model_onnx(args: &Args, file: &ModelFile) -> Result<Vec<u8>> {
    if args.no_onnx {
        return Ok(Vec::new());
    }
    let suppress = (file.head().task() == Task::Detect).then(Suppress::default);
    let (folder, options) = (tempfile::tempdir()?, ModelExport { suppress, ..ModelExport::default() });
    let path = folder.path().join("model.onnx");
    onnx::export_model(&path, file, &options)?;
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
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

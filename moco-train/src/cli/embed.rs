//! `moco-train embed`.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use moco_hub::open_on_terminal;
use moco_models::write_atomically;
use moco_train::data::{Channels, DataOptions, Dataset, Split};
use moco_train::eval::{Extraction, FeatureSet, features};

use super::compute::ComputeArgs;
use super::depth::DepthArgs;

/// Writes the features of a data set, computed by the engine that trains
///
/// The same features come faster from `moco-infer embed`, through ONNX Runtime; this command is there to compare, and
/// for data sets that are no folders of images. Row i of the features belongs to line i of <out>.files.txt.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  moco-train embed --data photos --backbone run/backbone.safetensors --out features.npy"
)]
pub struct Args {
    /// Images; all of them, where the set is divided
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The backbone: a file, a run folder, or hf://owner/name[@revision][/file]
    #[arg(long, value_name = "PLACE")]
    backbone: PathBuf,

    /// The file to write, NumPy's format: float32 [images, features]
    #[arg(long, value_name = "FEATURES.npy")]
    out: PathBuf,

    /// Features to take: pooled, or c1 … c5 (flattened in the order height, width, channels)
    #[arg(long, default_value = "pooled")]
    tap: String,

    /// Give up after this many images that cannot be read
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_skipped: usize,

    #[command(flatten)]
    depth: DepthArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut files = args.out.clone().into_os_string();
    files.push(".files.txt");
    let files = PathBuf::from(files);
    if args.out.extension().is_none_or(|e| e != "npy") {
        bail!("--out {}: this command writes .npy files", args.out.display());
    }
    if let Some(taken) = [&args.out, &files].into_iter().find(|path| path.exists()) {
        bail!("{} exists already and is not overwritten: give another --out", taken.display());
    }
    args.compute.prepare()?;
    let file = open_on_terminal(&args.backbone, None)?;
    let rule = &args.depth.rule(&file.card().preprocess);
    let axis = args.depth.axis()?;
    let channels = if rule.channels == 1 { Channels::Grey } else { Channels::Rgb };
    let dataset =
        Dataset::open(&args.data, &DataOptions { channels, axis, split: Split::All, ..DataOptions::default() })
            .with_context(|| format!("--data {}", args.data.display()))?;
    let bar = ProgressBar::new(dataset.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} images  {per_sec}  {eta} left")?);
    let extraction = Extraction { max_skipped: args.max_skipped, ..args.compute.extraction(&args.tap)? };
    let set = features(file.graph(), &file.weights()?, &dataset, rule, &extraction, &mut |done| {
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    for (name, reason) in &set.skipped {
        eprintln!("skipped {name}: {reason}");
    }
    let mut names = String::new();
    for index in &set.indices {
        let _ = writeln!(names, "{}", dataset.name(*index));
    }
    let bytes = npy(&set);
    write_atomically(&files, |f| f.write_all(names.as_bytes()))?;
    write_atomically(&args.out, |f| f.write_all(&bytes))?;
    println!("{} images × {} features: {}", set.len(), set.dim, args.out.display());
    Ok(())
}

/// NumPy's format, version 1.0: the header is padded so that the values begin at a multiple of 64 bytes.
fn npy(set: &FeatureSet) -> Vec<u8> {
    let shape = format!("({}, {})", set.len(), set.dim);
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let length = (header.len() + 11).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{header:<width$}\n", width = length - 1).bytes());
    bytes.extend(set.data.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

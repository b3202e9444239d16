//! Commands of the binary, one file each.

mod bench;
mod calibrate;
mod embed;
mod info;
mod predict;
mod spool;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moco_hub::open_on_terminal;
use moco_image::{Axis, Limits, ReadOptions, ValueRange};
use moco_infer::{
    Backbone, Calibrated, Calibration, CalibrationOptions, Extractor, ExtractorOptions, FrameOf, Precision, calibrate,
    frames_of,
};

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

// Each is described where it is: a comment here would hide that one.
#[derive(Subcommand)]
enum Command {
    Embed(embed::Embed),
    Info(info::Info),
    Calibrate(calibrate::Calibrate),
    Bench(bench::Bench),
    Predict(predict::Predict),
}

/// Options that every extracting command takes.
#[derive(Args)]
struct Extraction {
    /// The backbone: a file, a folder that holds one, or hf://owner/name[@revision][/file].
    #[arg(long, value_name = "PLACE")]
    backbone: PathBuf,
    /// Make the backbone read images of this many channels: 1 for grey, 3 for RGB. Its first convolution is folded or
    /// spread for it [default: as its card says].
    #[arg(long, value_name = "N")]
    channels: Option<usize>,
    /// Features to take: pooled, or a feature map c1 … c5 (see `moco-infer info`). May be given several times.
    #[arg(long = "tap", value_name = "NAME", default_value = "pooled")]
    taps: Vec<String>,
    /// Images worked on at the same time [default: the number of cores].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// ONNX Runtime's library; otherwise MOCO_ORT_LIB, ORT_DYLIB_PATH, the folder of the program and the usual places.
    #[arg(long, value_name = "FILE")]
    ort: Option<PathBuf>,
    /// Refuse images of more pixels than this [default: moco-image's limit].
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    /// Which values of images of another depth than the card's become black and white: full (all that their bits hold),
    /// file (the window a DICOM file suggests), window:-160,240 or center:40,width:400 (in the file's units, e.g. HU),
    /// min-max, percentile:1,99. Without it such images are refused.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    values: Option<ValueRange>,
    /// Along which axis volumes (NIfTI) are cut into images.
    #[arg(long, value_enum, default_value_t)]
    axis: AxisName,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum AxisName {
    X,
    Y,
    #[default]
    Z,
}

impl From<AxisName> for Axis {
    fn from(axis: AxisName) -> Axis {
        match axis {
            AxisName::X => Axis::X,
            AxisName::Y => Axis::Y,
            AxisName::Z => Axis::Z,
        }
    }
}

/// How the network is run, for commands that only use it.
#[derive(Args)]
struct Running {
    /// Images a session takes at once [default: chosen; results do not depend on it].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    batch: usize,
    /// f32, or int8: some three times faster, with features that differ a little (`moco-infer calibrate` says how much).
    #[arg(long, value_enum, default_value_t)]
    precision: PrecisionName,
    /// int8: the file that `moco-infer calibrate` wrote for this backbone. Without it, the command calibrates on up to
    /// 128 of the images it is given, spread evenly over the folder, and keeps nothing.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum PrecisionName {
    #[default]
    F32,
    Int8,
}

impl Extraction {
    fn backbone(&self) -> Result<Backbone> {
        let backbone = Backbone::from(open_on_terminal(&self.backbone, self.channels)?);
        Ok(match self.values {
            Some(range) => backbone.with_other_depths(range)?,
            None => backbone,
        })
    }

    fn axis(&self) -> Axis {
        self.axis.into()
    }

    /// All images of the files.
    fn frames(&self, files: &[PathBuf]) -> Vec<FrameOf> {
        frames_of(files, &ReadOptions { limits: self.limits(), axis: self.axis() })
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(pixels) = self.max_pixels {
            limits.max_pixels = pixels;
        }
        limits
    }

    /// `files` are the images of the command, to calibrate on where no file is given.
    fn extractor(&self, running: &Running, files: &[PathBuf]) -> Result<Extractor> {
        let backbone = self.backbone()?;
        let precision = match (running.precision, &running.calibration) {
            (PrecisionName::F32, None) => Precision::F32,
            (PrecisionName::F32, Some(_)) => bail!("--calibration belongs to --precision int8"),
            (PrecisionName::Int8, Some(path)) => Precision::Int8(Arc::new(Calibration::read(path)?)),
            (PrecisionName::Int8, None) if files.is_empty() => {
                bail!("--precision int8 needs --calibration FILE (see `moco-infer calibrate`), or a folder of images")
            }
            (PrecisionName::Int8, None) => {
                Precision::Int8(Arc::new(self.calibrate(&backbone, files, 128, 64)?.calibration))
            }
        };
        let options = ExtractorOptions {
            taps: self.taps.clone(),
            batch: running.batch,
            threads: self.threads,
            ort_library: self.ort.clone(),
            limits: self.limits(),
            axis: self.axis(),
            precision,
        };
        Ok(Extractor::new(&backbone, &options)?)
    }

    /// Calibrates with a progress bar; the accuracy and the images that cannot be used are printed on standard error.
    fn calibrate(&self, backbone: &Backbone, files: &[PathBuf], images: usize, held_out: usize) -> Result<Calibrated> {
        let options = CalibrationOptions {
            images,
            held_out,
            taps: self.taps.clone(),
            threads: self.threads,
            ort_library: self.ort.clone(),
            limits: self.limits(),
        };
        let progress = indicatif::ProgressBar::new(0);
        progress.set_style(indicatif::ProgressStyle::with_template("calibrating {bar:40} {pos}/{len} images {eta}")?);
        let result = calibrate(backbone, files, &options, &mut |done, total| {
            progress.set_length(total as u64);
            progress.set_position(done as u64);
        });
        progress.finish_and_clear();
        let calibrated = result?;
        for (_, reason) in &calibrated.skipped {
            eprintln!("not used: {reason}");
        }
        let images = calibrated.calibration.images;
        match &calibrated.calibration.accuracy {
            None => eprintln!("int8: calibrated on {images} images; none was left to measure the accuracy on"),
            Some(accuracy) => {
                eprintln!("int8: calibrated on {images} images, compared with f32 on {} others", accuracy.images);
                for (tap, a) in &accuracy.taps {
                    let mut line =
                        format!("  {tap}: cosine {:.5} on average, {:.5} at worst", a.mean_cosine, a.worst_cosine);
                    if let Some(centred) = a.mean_centred_cosine {
                        line += &format!("; {centred:.4} without the mean feature");
                    }
                    if let Some(same) = a.same_nearest_neighbour {
                        line += &format!("; same nearest neighbour for {:.0} %", 100.0 * same);
                    }
                    eprintln!("{line}");
                }
            }
        }
        Ok(calibrated)
    }
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Embed(embed) => embed.run(),
        Command::Info(info) => info.run(),
        Command::Calibrate(calibrate) => calibrate.run(),
        Command::Bench(bench) => bench.run(),
        Command::Predict(predict) => predict.run(),
    }
}

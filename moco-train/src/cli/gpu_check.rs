//! `moco-train gpu-check`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Runs every GPU kernel beside its CPU twin on fresh random inputs
///
/// Prints what differs by more than rounding explains and ends with an error if anything does. `scripts/gpu-check` runs this
/// and everything else that is worth doing on a machine with a GPU.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train gpu-check --device cuda:0 --out checks.json")]
pub struct Args {
    /// GPU: `cuda` or `cuda:N`; `emulated` in builds with the feature cuda-emulation
    #[arg(long, default_value = "cuda")]
    device: String,

    /// Inputs follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Also writes every comparison as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let precisions = checks(&args.device, args.seed)?;
    let (mut failed, mut total) = (vec![], 0);
    for (precision, checks) in &precisions {
        for check in checks {
            total += 1;
            if check["passed"] != json!(true) {
                failed.push(format!("{precision}: {check}"));
            }
        }
    }
    if let Some(path) = &args.out {
        let precisions: serde_json::Map<_, _> =
            precisions.into_iter().map(|(name, checks)| (name.to_string(), Value::Array(checks))).collect();
        let report = json!({ "device": args.device, "seed": args.seed, "checks": precisions });
        moco_models::write_atomically(path, |out| serde_json::to_writer_pretty(out, &report).map_err(Into::into))
            .with_context(|| format!("--out {}", path.display()))?;
    }
    if !failed.is_empty() {
        bail!(
            "{} of {total} comparisons differ by more than rounding explains:\n  {}",
            failed.len(),
            failed.join("\n  ")
        );
    }
    println!("{total} comparisons: every kernel agrees with its CPU twin");
    Ok(())
}

/// Views of random images, made by the device and by the CPU.
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod views {
    use anyhow::Result;
    use moco_engine::device::DecodedBatch;
    use moco_engine::{Device, Kernels};
    use moco_image::{
        AugmentConfig, CropBox, Image, Rng, Scratch, Step, ViewProgram, ViewTables, augment_exactly, normalise_tables,
    };
    use serde_json::{Value, json};

    /// One comparison a view; differences are in grey levels, of which rounding explains one.
    pub(super) fn check<D: Device>(device: &mut D, seed: u64, n: usize, size: [usize; 2]) -> Result<Vec<Value>> {
        let mut config = AugmentConfig { size, solarize_p: 0.3, ..AugmentConfig::moco_v2() };
        config.order.push(Step::Solarize);
        let mut rng = Rng::new(seed, 0);
        let (mut images, mut drawn, mut programs) = (vec![], vec![], [vec![], vec![]]);
        let mut pixels = vec![];
        for _ in 0..n {
            let (width, height) = (size[1] / 2 + rng.below(2 * size[1]), size[0] / 2 + rng.below(2 * size[0]));
            // Noise over a slope, so that neither the filter nor the contrast meets a flat image.
            let value = |i: usize, rng: &mut Rng| ((i % 160) + rng.below(96)) as u8;
            let data = (0..width * height * 3).map(|i| value(i, &mut rng)).collect();
            let image = Image::new(width, height, 3, data)?;
            let params = [0, 1].map(|_| config.sample(height, width, &mut rng));
            let part = CropBox { top: 0, left: 0, height, width };
            for (programs, params) in programs.iter_mut().zip(&params) {
                let mut program = ViewProgram::default();
                program.compile(part, 3, params, &config)?;
                programs.push((program, pixels.len()));
            }
            pixels.extend_from_slice(image.data());
            images.push(image);
            drawn.push(params);
        }
        let tables = programs.map(|programs| {
            let mut tables = ViewTables::default();
            tables.pack(programs.iter().map(|(program, place)| (program, *place)));
            tables
        });
        let normal = normalise_tables(&config.mean, &config.std).concat();
        let batch = DecodedBatch {
            pixels: &pixels,
            tables: [&tables[0].words, &tables[1].words],
            between: [tables[0].between, tables[1].between],
            normal: [&normal, &normal],
            n,
            size,
            channels: 3,
        };
        let sent = device.send(&batch, None)?;
        let values = size[0] * size[1] * 3;
        let (mut checks, mut scratch, mut expected) = (vec![], Scratch::default(), vec![0.0; values]);
        for which in 0..2 {
            let mut memory = device.buffer(vec![0.0; n * values])?;
            device.make_view(&sent, which, D::Kernels::view_mut(&mut memory, n * values))?;
            let got = device.download(D::Kernels::view(&memory, n * values))?;
            for (i, got) in got.chunks_exact(values).enumerate() {
                augment_exactly(&images[i], &config, &drawn[i][which], &mut scratch, &mut expected)?;
                let levels =
                    got.iter().zip(&expected).enumerate().map(|(v, (g, e))| (g - e).abs() * config.std[v % 3] * 255.0);
                // A NaN is a difference as well.
                let worst = levels.fold(0.0f32, |worst, l| if l <= worst { worst } else { l });
                let name = format!("view {which} of image {i}, {:?}", drawn[i][which]);
                let passed = worst <= 1.01;
                checks.push(json!({ "name": name, "error": f64::from(worst), "bound": 1.01, "passed": passed }));
            }
        }
        Ok(checks)
    }
}

/// All comparisons, by precision.
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
fn checks(device: &str, seed: u64) -> Result<Vec<(&'static str, Vec<Value>)>> {
    use moco_engine::cuda::Bf16;
    use moco_engine::cuda::check::{KernelCheck, Scale, run};

    let as_json = |checks: Vec<KernelCheck>| {
        let one = |c: KernelCheck| {
            let (error, passed) = (if c.error.is_nan() { json!("NaN") } else { json!(c.error) }, c.passed());
            json!({ "name": c.name, "error": error, "bound": c.bound, "passed": passed })
        };
        checks.into_iter().map(one).collect::<Vec<_>>()
    };
    #[cfg(feature = "cuda-emulation")]
    if device == "emulated" {
        use moco_engine::cuda::EmulatedCuda;
        let mut device = EmulatedCuda::<f32>::emulated()?;
        return Ok(vec![
            ("f32", as_json(run(&mut device, seed, Scale::Small)?)),
            ("bf16", as_json(run(&mut EmulatedCuda::<Bf16>::emulated()?, seed, Scale::Small)?)),
            ("views", views::check(&mut device, seed, 4, [24, 20])?),
        ]);
    }
    #[cfg(feature = "cuda")]
    if let Ok(moco_train::compute::DeviceId::Cuda(ordinal)) = device.parse() {
        use moco_engine::cuda::Cuda;
        let failed = |e| anyhow::anyhow!("--device {device}: {e}");
        let mut device = Cuda::<f32>::open(ordinal).map_err(failed)?;
        return Ok(vec![
            ("f32", as_json(run(&mut device, seed, Scale::Full)?)),
            ("bf16", as_json(run(&mut Cuda::<Bf16>::open(ordinal).map_err(failed)?, seed, Scale::Full)?)),
            ("views", views::check(&mut device, seed, 64, [224, 224])?),
        ]);
    }
    bail!("--device {device}: not a device whose kernels this build could check")
}

#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
fn checks(device: &str, _seed: u64) -> Result<Vec<(&'static str, Vec<Value>)>> {
    bail!("--device {device}: this program was built for the CPU only; `cargo xtask cuda` builds one for NVIDIA GPUs")
}

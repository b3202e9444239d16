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
        return Ok(vec![
            ("f32", as_json(run(&mut EmulatedCuda::<f32>::emulated()?, seed, Scale::Small)?)),
            ("bf16", as_json(run(&mut EmulatedCuda::<Bf16>::emulated()?, seed, Scale::Small)?)),
        ]);
    }
    #[cfg(feature = "cuda")]
    if let Ok(moco_train::compute::DeviceId::Cuda(ordinal)) = device.parse() {
        use moco_engine::cuda::Cuda;
        let failed = |e| anyhow::anyhow!("--device {device}: {e}");
        return Ok(vec![
            ("f32", as_json(run(&mut Cuda::<f32>::open(ordinal).map_err(failed)?, seed, Scale::Full)?)),
            ("bf16", as_json(run(&mut Cuda::<Bf16>::open(ordinal).map_err(failed)?, seed, Scale::Full)?)),
        ]);
    }
    bail!("--device {device}: not a device whose kernels this build could check")
}

#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
fn checks(device: &str, _seed: u64) -> Result<Vec<(&'static str, Vec<Value>)>> {
    bail!("--device {device}: this program was built for the CPU only; `cargo xtask cuda` builds one for NVIDIA GPUs")
}

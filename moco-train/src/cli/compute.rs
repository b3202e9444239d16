//! Where to compute.

use anyhow::{Context, Result, bail};

/// Flags that every computing command has.
#[derive(clap::Args)]
pub struct ComputeArgs {
    /// Threads for computing and for decoding; 0 = one a core. Does not change the result
    #[arg(long, default_value_t = 0)]
    pub threads: usize,

    /// Where to compute: this build knows `cpu`
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

impl ComputeArgs {
    /// Sets the number of threads up and refuses devices that this build does not have.
    pub fn prepare(&self) -> Result<()> {
        match self.device.as_str() {
            "cpu" => {}
            "cuda" => bail!("--device cuda: this build computes on the CPU only; use --device cpu"),
            other => bail!("--device {other}: there is no such device; use --device cpu"),
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build_global()
            .with_context(|| format!("cannot start {} threads", self.threads))
    }
}

//! Where to compute.

use anyhow::{Context, Result, anyhow};
use moco_train::compute::{Compute, ComputeRecipe};
use moco_train::eval::Extraction;

use super::processes::Role;

/// Flags that every computing command has.
#[derive(clap::Args)]
pub struct ComputeArgs {
    /// Threads for computing and for decoding; 0 = one a core. Does not change the result
    #[arg(long, default_value_t = 0)]
    pub threads: usize,

    /// Where to compute: `cpu`, `cuda` (the first GPU), `cuda:N`, or `auto`: a GPU if this build can use one, else the CPU
    #[arg(long)]
    pub device: Option<String>,

    /// Precision in which feature maps are stored: `f32`, or `bf16` for half the memory traffic
    #[arg(long)]
    pub precision: Option<String>,
}

impl ComputeArgs {
    /// Sets the number of threads up.
    pub fn prepare(&self) -> Result<()> {
        self.prepare_as(&Role::Alone).map(|_| ())
    }

    /// [`ComputeArgs::prepare`] for one of several processes; its number of threads.
    pub fn prepare_as(&self, role: &Role) -> Result<usize> {
        let threads = role.threads(self.threads);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
        Ok(threads)
    }

    /// What a recipe wishes for, with what the flags say instead.
    pub fn wish(&self, recipe: ComputeRecipe) -> Result<ComputeRecipe> {
        let mut wish = recipe;
        if let Some(text) = &self.device {
            wish.device = text.parse().map_err(|e| anyhow!("--device: {e}"))?;
        }
        if let Some(text) = &self.precision {
            wish.precision = text.parse().map_err(|e| anyhow!("--precision: {e}"))?;
        }
        Ok(wish)
    }

    /// Features of a tap, taken on the device that the flags choose.
    pub fn extraction(&self, tap: &str) -> Result<Extraction> {
        let compute = self.choose(ComputeRecipe::default())?;
        Ok(Extraction { compute, ..Extraction::of(tap) })
    }

    /// The device that the flags choose; says on the standard error what may surprise.
    pub fn choose(&self, recipe: ComputeRecipe) -> Result<Compute> {
        let (compute, note) = self.wish(recipe)?.choose()?;
        if let Some(note) = note {
            eprintln!("{note}");
        }
        Ok(compute)
    }
}

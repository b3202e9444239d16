//! The whole line on real images.

use anyhow::{Result, bail};
use clap::Args;

/// Where the demo writes.
#[derive(Args)]
pub struct Options {}

/// Runs it.
pub fn run(_options: &Options) -> Result<()> {
    bail!("the demo is not here yet")
}

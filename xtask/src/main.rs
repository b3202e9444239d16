//! `cargo xtask <command>`: set-up, tests and the demo, as a Makefile would hold them.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Parser;

/// Tasks of this repository.
#[derive(Parser)]
enum Task {
    /// Runs every test.
    Test,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Test => {
            if !Command::new(env!("CARGO")).args(["test", "--release", "--workspace"]).status()?.success() {
                bail!("tests failed");
            }
        }
    }
    Ok(())
}
